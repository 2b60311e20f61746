//! What a caller says of the retries and timeouts of its request, to Envoy and to ringmesh: curl is the caller, and the service
//! must see as much of it behind the one as behind the other.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::binary::{Folder, Running, eventually, page};
use super::mtls::{envoy, said};
use crate::support::origin::Origin;

/// Envoy that listens to whoever is on this machine. Routes below `/listed` list a status of their own.
fn envoy_config(origin: &str) -> String {
    let port = origin.rsplit(':').next().unwrap();
    format!(
        r#"admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }} }}
static_resources:
  listeners:
  - name: plain
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: plain
          codec_type: AUTO
          use_remote_address: true
          internal_address_config: {{ cidr_ranges: [{{ address_prefix: 127.0.0.0, prefix_len: 8 }}] }}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/listed" }}
                route: {{ cluster: app, retry_policy: {{ retry_on: retriable-status-codes, retriable_status_codes: [500], num_retries: 1 }} }}
              - {{ match: {{ prefix: "/" }}, route: {{ cluster: app }} }}
          http_filters:
          - name: router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: app
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: app
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}]
"#
    )
}

fn ringmesh_config(origin: &str) -> String {
    format!(
        r#"shards = 1
[admin]
address = "127.0.0.1:0"
[[listener]]
name = "in"
address = "127.0.0.1:0"
[[service]]
name = "app"
endpoints = ["{origin}"]
timeouts = {{ response = "1h" }}
[[route]]
path_prefix = "/listed"
service = "app"
retry = {{ attempts_max = 2, on = [], statuses = [500] }}
caller_may = {{ attempts_max = 5 }}
[[route]]
service = "app"
timeout = "15s"
retry = {{ attempts_max = 1, on = [], statuses = [] }}
caller_may = {{ attempts_max = 5 }}
"#
    )
}

/// Answers with the status that the target says; never, where it says `hang`; where it says `first` the first time is never.
fn origin(came: &Arc<Mutex<BTreeMap<String, usize>>>) -> Origin {
    let came = Arc::clone(came);
    Origin::scripted(move |visit| {
        while let Some(request) = visit.request() {
            let target = request.target().to_owned();
            let times = {
                let mut came = came.lock().unwrap();
                let times = came.entry(target.clone()).or_default();
                *times += 1;
                *times
            };
            let says = target.split('/').nth_back(1).unwrap();
            if says == "hang" || (says == "first" && times == 1) {
                visit.drain();
                return;
            }
            let status = says.parse().unwrap_or(200);
            visit.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
        }
    })
}

/// What is asked for, and what the caller says; how it is answered, and how often the service must have been asked.
type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str, usize);

#[test]
fn curl_gets_of_ringmesh_what_it_gets_of_envoy() {
    const ON: &str = "x-envoy-retry-on";
    const LIST: &str = "x-envoy-retriable-status-codes";
    const RETRIES: &str = "x-envoy-max-retries";
    const EACH: &str = "x-envoy-upstream-rq-per-try-timeout-ms";
    const HEDGE: &str = "x-envoy-hedge-on-per-try-timeout";
    let Some(envoy) = envoy() else { return };
    let folder = Folder::new();
    let came = Arc::default();
    let origin = origin(&came);
    let config = folder.write("envoy.yaml", &envoy_config(&origin.endpoint));
    let admin_file = folder.path("envoy.admin");
    let mut command = Command::new(envoy);
    command.args(["--concurrency", "1", "--disable-hot-restart", "-l", "warn", "-c"]).arg(config);
    command.arg("--admin-address-path").arg(&admin_file);
    let running = Running::start(command);
    let plain = eventually("Envoy listens", || {
        assert!(!running.has_ended(), "{}", running.stderr());
        let admin = std::fs::read_to_string(&admin_file).ok()?.trim().parse().ok()?;
        let (_, listeners) = page(admin, "/listeners").ok()?;
        listeners.lines().find_map(|line| line.strip_prefix("plain::")).map(str::to_owned)
    });
    let ringmesh = Running::proxy(&folder.write("ringmesh.toml", &ringmesh_config(&origin.endpoint)));
    let proxies = [plain, ringmesh.listener("in").to_string()];
    let cases: &[Case] = &[
        // Where the route says nothing of retries.
        ("/503", &[], "503", 1),
        ("/503", &[(ON, "5xx")], "503", 2),
        ("/503", &[(ON, "5xx"), (RETRIES, "3")], "503", 4),
        ("/503", &[(ON, "5xx"), (RETRIES, "0")], "503", 1),
        ("/503", &[(RETRIES, "3")], "503", 1),
        ("/500", &[(ON, "gateway-error")], "500", 1),
        ("/502", &[(ON, "connect-failure,gateway-error")], "502", 2),
        ("/409", &[(ON, "retriable-4xx")], "409", 2),
        ("/404", &[(ON, "retriable-4xx,unheard-of")], "404", 1),
        ("/404", &[(LIST, "404")], "404", 1),
        ("/404", &[(LIST, "404"), (RETRIES, "2")], "404", 1),
        ("/404", &[(LIST, "404"), (ON, "5xx")], "404", 1),
        ("/404", &[(LIST, "404"), (ON, "retriable-status-codes")], "404", 2),
        ("/404", &[(LIST, "403, 404"), (ON, "reset,retriable-status-codes"), (RETRIES, "2")], "404", 3),
        ("/404", &[(ON, "retriable-status-codes")], "404", 1),
        // Where it lists statuses.
        ("/listed/500", &[], "500", 2),
        ("/listed/404", &[], "404", 1),
        ("/listed/404", &[(LIST, "404")], "404", 2),
        ("/listed/404", &[(LIST, "404"), (RETRIES, "3")], "404", 4),
        ("/listed/503", &[(ON, "gateway-error")], "503", 2),
        // Where one is not answered.
        ("/hang", &[("x-envoy-upstream-rq-timeout-ms", "50")], "504", 1),
        ("/first", &[(EACH, "50"), (ON, "5xx")], "200", 2),
        // Envoy asks the only endpoint once more beside it, ringmesh in its place.
        ("/first", &[(EACH, "50"), (ON, "5xx"), (HEDGE, "true")], "200", 2),
        ("/hang", &[(EACH, "50"), (ON, "5xx"), (HEDGE, "false")], "504", 2),
    ];
    for (number, (path, fields, status, attempts)) in cases.iter().enumerate() {
        for (proxy, of) in proxies.iter().zip(["envoy", "ringmesh"]) {
            for version in ["--http1.1", "--http2-prior-knowledge"] {
                let target = format!("{path}/{number}{of}{version}");
                let url = format!("http://{proxy}{target}");
                let mut words = vec!["-sS", "--noproxy", "*", "--max-time", "20", version, "-o", "/dev/null"];
                words.extend(["-w", "%{http_code}"]);
                let lines: Vec<String> =
                    fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
                words.extend(lines.iter().flat_map(|line| ["-H", line]));
                words.push(&url);
                let got = said("curl", &words, "");
                let seen = came.lock().unwrap().get(&target).copied().unwrap_or_default();
                assert_eq!((got.as_str(), seen), (*status, *attempts), "{of} {version}: {path} {fields:?}");
            }
        }
    }
}
