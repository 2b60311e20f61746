//! mTLS from outside: certificates in files that are replaced while requests run, and programs that share no code with
//! ringmesh (Envoy, curl, nghttp, openssl) at the other end.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use super::binary::{Folder, Running, eventually, page};
use super::peers::Load;
use super::{none, until_warm};
use crate::support::authority::{Authority, Leaf, uri};
use crate::support::client::Client;
use crate::support::origin::Origin;

const ENVOY: &str = "spiffe://mesh.local/ns/shop/sa/envoy";
const NEAR: &str = "spiffe://mesh.local/ns/shop/sa/near";
const FAR: &str = "spiffe://mesh.local/ns/shop/sa/far";
const GET: &str = "GET /a HTTP/1.1\r\nHost: app\r\n\r\n";

/// Writes what one identity needs, the key for its owner alone.
fn write(folder: &Folder, name: &str, leaf: &Leaf, roots: &[&Authority]) {
    folder.write(&format!("{name}.pem"), &leaf.chain_pem());
    write_bundle(folder, name, roots);
    let key = folder.path(&format!(".{name}.key.new"));
    std::fs::write(&key, leaf.key_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(key, folder.path(&format!("{name}.key"))).unwrap();
}

fn write_bundle(folder: &Folder, name: &str, roots: &[&Authority]) {
    folder.write(&format!("{name}.ca"), &roots.iter().map(|root| root.pem()).collect::<String>());
}

fn shown(folder: &Folder, name: &str) -> String {
    folder.path(name).to_str().unwrap().to_owned()
}

/// A proxy with the identity `name` from files.
fn proxy(folder: &Folder, name: &str, listener_tls: &str, service: &str) -> Running {
    let file = |end: &str| shown(folder, &format!("{name}.{end}"));
    let text = format!(
        "shards = 1\n[admin]\naddress = \"127.0.0.1:0\"\n[forwarding]\nvia = \"{name}\"\n[identity]\nsource = \
         \"files\"\ncertificate = \"{}\"\nkey = \"{}\"\nbundle = \"{}\"\n[[listener]]\nname = \"in\"\naddress = \
         \"127.0.0.1:0\"\ntls = \"{listener_tls}\"\n{service}",
        file("pem"),
        file("key"),
        file("ca"),
    );
    Running::proxy(&folder.write(&format!("{name}.toml"), &text))
}

fn to(name: &str, endpoint: &str, more: &str) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\nendpoints = [\"{endpoint}\"]\n{more}\n[[route]]\nhosts = [\"{name}\"]\nservice = \
         \"{name}\"\n"
    )
}

/// The binary of Envoy, as loadtest/peers/install.sh installs it; `None`, said loudly, where there is none and it is not
/// demanded (RINGMESH_PEERS=required, as .ci/run does).
pub(super) fn envoy() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_ringmesh"));
    let path = path.parent().unwrap().parent().unwrap().join("peers/envoy");
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("RINGMESH_PEERS").is_none(), "{} is demanded and missing", path.display());
    eprintln!("NOT RUN: there is no Envoy at {}: run loadtest/peers/install.sh", path.display());
    None
}

/// Envoy with a listener `inner` for mTLS that sends what comes to `far` by mTLS.
fn envoy_config(folder: &Folder, far: SocketAddr) -> String {
    let tls = |what: &str, peer: &str, more: &str| {
        let file = |end: &str| shown(folder, &format!("envoy.{end}"));
        let [certificate, key, ca] = ["pem", "key", "ca"].map(file);
        format!(
            r#"{{ name: tls, typed_config: {{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{what}TlsContext", {more}
        common_tls_context: {{
          alpn_protocols: [h2],
          tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }},
          tls_certificates: [{{ certificate_chain: {{ filename: "{certificate}" }}, private_key: {{ filename: "{key}" }} }}],
          validation_context: {{
            trusted_ca: {{ filename: "{ca}" }},
            match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ exact: "{peer}" }} }}] }} }} }} }}"#
        )
    };
    format!(
        r#"admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }} }}
static_resources:
  listeners:
  - name: inner
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - transport_socket: {}
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: inner
          codec_type: AUTO
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              request_headers_to_add:
              - header: {{ key: x-envoy-saw-peer, value: "%DOWNSTREAM_PEER_URI_SAN%" }}
              - header: {{ key: x-envoy-saw-protocol, value: "%PROTOCOL%" }}
              - header: {{ key: x-envoy-saw-scheme, value: "%REQ(:SCHEME)%" }}
              routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: far }} }}]
          http_filters:
          - name: router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: far
    type: STATIC
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    transport_socket: {}
    load_assignment:
      cluster_name: far
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }} }}] }}]
"#,
        tls("Downstream", NEAR, "require_client_certificate: true,"),
        tls("Upstream", FAR, ""),
        far.port(),
    )
}

#[test]
fn envoy_is_a_peer_in_both_directions() {
    let Some(envoy) = envoy() else { return };
    let folder = Folder::new();
    let authority = Authority::new("mesh");
    for (name, id) in [("envoy", ENVOY), ("near", NEAR), ("far", FAR)] {
        write(&folder, name, &authority.workload(id), &[&authority]);
    }
    // Requests are heads only, and their targets come back.
    let origin = Origin::plain();
    let far = proxy(&folder, "far", "strict", &to("app", &origin.endpoint, ""));
    let config = folder.write("envoy.yaml", &envoy_config(&folder, far.listener("in")));
    let admin_file = folder.path("envoy.admin");
    let mut command = Command::new(envoy);
    command.args(["--concurrency", "1", "--disable-hot-restart", "-l", "warn", "-c"]).arg(config);
    command.arg("--admin-address-path").arg(&admin_file);
    let running = Running::start(command);
    let inner = eventually("Envoy listens", || {
        assert!(!running.has_ended(), "{}", running.stderr());
        let admin = std::fs::read_to_string(&admin_file).ok()?.trim().parse().ok()?;
        let (_, listeners) = page(admin, "/listeners").ok()?;
        listeners.lines().find_map(|line| line.strip_prefix("inner::")).map(str::to_owned)
    });
    let mesh = |ids: &str| format!("tls = \"mesh\"\nidentities = [\"{ids}\"]");
    let services = to("app", &inner, &mesh(ENVOY)) + &to("other", &inner, &mesh(FAR));
    let near = proxy(&folder, "near", "off", &services);

    // near -> Envoy -> far -> service, twice over mTLS and HTTP/2.
    let mut client = Client::connect(near.listener("in"));
    for _ in 0..3 {
        client.send(GET);
        let response = client.response();
        assert_eq!((response.status(), response.text().as_str()), (200, "/a"), "{response:?}");
    }
    client.send("POST /b HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    assert_eq!(client.response().text(), "/b");
    let requests = origin.wait_requests(4);
    let of = |name: &str| requests[0].one(name).unwrap_or_default();
    assert_eq!(of("x-envoy-saw-peer"), NEAR, "what near presented");
    assert_eq!(of("x-envoy-saw-protocol"), "HTTP/2");
    assert_eq!(of("x-envoy-saw-scheme"), "https");
    let cert = of("x-forwarded-client-cert");
    assert!(cert.contains(&format!("By={FAR}")) && cert.contains(&format!("URI={ENVOY}")), "{cert}");
    assert_eq!(requests[3].body, b"abc");

    // Envoy is not who the other service must be.
    client.send(GET.replace("app", "other"));
    let refused = client.response();
    assert_eq!(refused.one("x-ringmesh-failure").as_deref(), Some("handshake.upstream.wrong_identity"));

    // A near that Envoy does not expect is refused by it; an Envoy that far does not trust is refused by far.
    let stranger = Authority::new("stranger");
    write(&folder, "stranger", &stranger.workload(NEAR), &[&stranger, &authority]);
    let unknown = proxy(&folder, "stranger", "off", &to("app", &inner, &mesh(ENVOY)));
    let mut client = Client::connect(unknown.listener("in"));
    client.send(GET);
    assert_eq!(client.response().status(), 502);
    assert_eq!(origin.recorded().iter().map(|r| r.requests().len()).sum::<usize>(), 4);
}

/// Runs a program of the machine to its end: all that it says.
pub(super) fn said(program: &str, words: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn curl_nghttp_and_openssl_are_let_in_with_a_certificate_and_not_without() {
    let folder = Folder::new();
    let authority = Authority::new("mesh");
    // These verify names of hosts; a leaf may have one beside its id.
    let both = authority.leaf(|params| {
        let host = rcgen::SanType::DnsName("app.test".try_into().unwrap());
        params.subject_alt_names = vec![uri(FAR), host];
    });
    write(&folder, "far", &both, &[&authority]);
    write(&folder, "near", &authority.workload(NEAR), &[&authority]);
    let origin = Origin::plain();
    let far = proxy(&folder, "far", "strict", &to("app.test", &origin.endpoint, ""));
    let address = far.listener("in");
    let (certificate, key, ca) =
        (shown(&folder, "near.pem"), shown(&folder, "near.key"), shown(&folder, "near.ca"));
    let url = format!("https://app.test:{}/a", address.port());
    let resolve = format!("app.test:{}:127.0.0.1", address.port());
    let curl = |version: &str, more: &[&str]| {
        let mut words = vec!["-sS", "--noproxy", "*", "--max-time", "20", version, "--cacert", &ca];
        words.extend(["--resolve", &resolve]);
        words.extend(more);
        words.push(&url);
        said("curl", &words, "")
    };
    for (version, spoken) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let with = ["--cert", &certificate, "--key", &key, "-w", " by %{http_version}"];
        assert_eq!(curl(version, &with), format!("/a by {spoken}"));
        let without = curl(version, &[]);
        assert!(without.contains("certificate required"), "{without}");
    }
    let files = [format!("--cert={certificate}"), format!("--key={key}")];
    let by_address = format!("https://127.0.0.1:{}/a", address.port());
    let nghttp = |files: &[String]| {
        let mut words = vec!["-v", "-y", "-H", ":authority: app.test"];
        words.extend(files.iter().map(String::as_str));
        words.push(&by_address);
        said("nghttp", &words, "")
    };
    if Command::new("nghttp").arg("--version").output().is_ok() {
        let answered = nghttp(&files);
        assert!(
            answered.contains("The negotiated protocol: h2") && answered.contains(":status: 200"),
            "{answered}"
        );
        assert!(!nghttp(&[]).contains(":status: 200"));
    } else {
        assert!(std::env::var_os("RINGMESH_PEERS").is_none(), "nghttp is demanded and missing");
        eprintln!("NOT RUN: nghttp is not installed: run loadtest/peers/install.sh");
    }
    let connect = address.to_string();
    let openssl = |more: &[&str]| {
        let mut words = vec!["s_client", "-quiet", "-no_ign_eof", "-connect", &connect, "-CAfile", &ca];
        words.extend(["-verify_return_error", "-alpn", "http/1.1"]);
        words.extend(more);
        said("openssl", &words, "GET /a HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n")
    };
    let answered = openssl(&["-ign_eof", "-cert", &certificate, "-key", &key]);
    assert!(answered.contains("HTTP/1.1 200") && answered.contains("\r\n\r\n/a"), "{answered}");
    let refused = openssl(&["-ign_eof"]);
    assert!(refused.contains("certificate required"), "{refused}");
    drop(far);
    let requests = origin.settle().iter().flat_map(|r| r.requests()).collect::<Vec<_>>();
    assert!(requests.iter().all(|r| r.one("x-forwarded-proto").is_none_or(|proto| proto == "https")));
    assert!(requests.len() >= 3, "{requests:?}");
}

/// From one authority to another as an operator does it, file by file, under load from proxy to proxy: t31.
#[test]
fn t31_a_root_is_replaced_under_load_and_whoever_stays_with_the_old_one_is_cut() {
    let folder = Folder::new();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    write(&folder, "near", &old.workload(NEAR), &[&old]);
    write(&folder, "far", &old.workload(FAR), &[&old]);
    let origin = super::peers::Origin::start("hello");
    let far = proxy(&folder, "far", "strict", &to("app", &origin.address.to_string(), ""));
    let mesh = format!("tls = \"mesh\"\nidentities = [\"{FAR}\"]");
    let near = proxy(&folder, "near", "off", &to("app", &far.listener("in").to_string(), &mesh));
    let load = Load::start(near.listener("in"), 4);
    until_warm(&load);
    let step = |proxy: &Running, change: &dyn Fn()| {
        let before = proxy.generation();
        change();
        eventually("the files are taken", || (proxy.generation() > before).then_some(()));
        let answered = load.answered();
        eventually("the load goes on", || (load.answered() > answered + 200).then_some(()));
    };
    // Everybody trusts both, then presents the new one.
    step(&near, &|| write_bundle(&folder, "near", &[&old, &new]));
    step(&far, &|| write_bundle(&folder, "far", &[&old, &new]));
    step(&near, &|| write(&folder, "near", &new.workload(NEAR), &[&old, &new]));
    step(&far, &|| write(&folder, "far", &new.workload(FAR), &[&old, &new]));
    // Two callers with connections of their own: one that has a new certificate, and one that does not.
    let caller = |of: &Authority| {
        let config = new.anybody_client(Some(&of.workload(NEAR)), crate::support::authority::TLS13);
        Client::connect(far.listener("in")).tls(config, "app")
    };
    let (mut renewed, mut late) = (caller(&new), caller(&old));
    for client in [&mut renewed, &mut late] {
        client.send(GET);
        assert_eq!(client.response().text(), "hello");
    }
    none(&load.stop());
    // What near and far opened with the old certificates has to go with the late one; requests then open anew.
    let before = far.generation();
    write_bundle(&folder, "far", &[&new]);
    eventually("the files are taken", || (far.generation() > before).then_some(()));
    assert_eq!(late.end(), crate::support::End::Cut);
    renewed.send(GET);
    assert_eq!(renewed.response().text(), "hello");
    let mut refused = caller(&old);
    refused.send(GET);
    assert!(refused.try_response(false).is_err());
    let told = eventually("it is told", || {
        let said = far.stderr();
        said.lines().find(|line| line.contains("open connections were closed")).map(str::to_owned)
    });
    assert!(told.contains("cause=\"unknown_issuer\"") && told.contains(NEAR), "{told}");
    eventually("they are counted", || {
        let (_, metrics) = far.page("/metrics");
        let line = metrics
            .lines()
            .find(|l| l.starts_with("ringmesh_connections_revoked_total{cause=\"unknown_issuer\"}"))?;
        (line.rsplit(' ').next()?.parse::<f64>().ok()? >= 2.0).then_some(())
    });
    let load = Load::start(near.listener("in"), 4);
    until_warm(&load);
    none(&load.stop());
}

/// Both at once, as fast as they are taken: certificates that end soon are replaced on both sides, in an order that differs
/// from time to time, while the files of both proxies change and SIGHUP comes.
#[test]
fn t31_rotations_and_reloads_in_a_tight_loop_fail_no_request() {
    let folder = Folder::new();
    let authority = Authority::new("mesh");
    let leaf = |id: &str| {
        authority.leaf(|params| {
            params.subject_alt_names = vec![uri(id)];
            params.not_after = (SystemTime::now() + Duration::from_secs(10)).into();
        })
    };
    let renew = |name: &str, id: &str| write(&folder, name, &leaf(id), &[&authority]);
    renew("near", NEAR);
    renew("far", FAR);
    let origin = super::peers::Origin::start("hello");
    let far = proxy(&folder, "far", "strict", &to("app", &origin.address.to_string(), ""));
    let mesh = format!("tls = \"mesh\"\nidentities = [\"{FAR}\"]");
    let near = proxy(&folder, "near", "off", &to("app", &far.listener("in").to_string(), &mesh));
    let files = ["near", "far"]
        .map(|name| (name, std::fs::read_to_string(folder.path(&format!("{name}.toml"))).unwrap()));
    let load = Load::start(near.listener("in"), 4);
    until_warm(&load);
    for round in 0..100 {
        let before = (near.generation(), far.generation());
        let both = [("near", NEAR), ("far", FAR)];
        for (name, id) in if round % 2 == 0 { both } else { [both[1], both[0]] } {
            renew(name, id);
        }
        for (name, text) in &files {
            folder
                .write(&format!("{name}.toml"), &format!("{text}[timeouts]\nidle = \"{}s\"\n", 100 + round));
        }
        near.signal(Signal::HUP);
        far.signal(Signal::HUP);
        eventually("the files are taken", || {
            (near.generation() > before.0 && far.generation() > before.1).then_some(())
        });
    }
    let answered = load.answered();
    eventually("the load goes on", || (load.answered() > answered + 200).then_some(()));
    none(&load.stop());
    // On a machine without time a handshake lasts longer than `timeouts.connect`: near leaves it and tries again, which fails no
    // request. One that hangs would fail three times in a row, and one that is refused has another cause.
    const LEFT: &str = "{stage=\"handshake\",side=\"downstream\",cause=\"closed_early\"}";
    for (proxy, left) in [(&near, None), (&far, Some(LEFT))] {
        let (_, metrics) = proxy.page("/metrics");
        let failed = |line: &&str| {
            (line.starts_with("ringmesh_failures_total")
                || line.starts_with("ringmesh_connection_failures_total"))
                && !left.is_some_and(|left| line.contains(left))
        };
        assert_eq!(metrics.lines().filter(failed).collect::<Vec<_>>(), Vec::<&str>::new());
    }
}
