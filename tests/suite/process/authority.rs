//! `ringmesh ca` from outside: files as openssl and x509-parser see them, and the Workload API as the `spiffe` crate, which
//! shares no code with ours, sees it; asked as this user and as another one.

use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ringmesh::control::identity::{SourceError, Update, workload_api};
use ringmesh::identity::SpiffeId;
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Context};
use tokio_stream::StreamExt as _;
use x509_parser::prelude::*;

use super::binary::{Folder, Running, eventually, ringmesh};

/// Longer than anything takes.
const HANG: Duration = Duration::from_secs(20);

/// Runs `ringmesh ca` in a folder to its end: exit code, standard output, standard error.
fn ca(folder: &Folder, arguments: &[&str]) -> (i32, String, String) {
    let state = folder.path("ca");
    let mut all = vec!["ca", arguments[0], "--state", state.to_str().unwrap()];
    all.extend(&arguments[1..]);
    let mut process = Running::start(ringmesh(all));
    let code = process.wait().code().unwrap();
    (code, process.stdout(), process.stderr())
}

fn done(folder: &Folder, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = ca(folder, arguments);
    assert_eq!(code, 0, "{stderr}");
    stdout
}

fn issue(folder: &Folder, id: &str, out: &Path) -> (i32, String, String) {
    ca(folder, &["issue", "--id", id, "--out", out.to_str().unwrap()])
}

fn openssl_verifies(bundle: &Path, chain: &Path) -> bool {
    ["sslserver", "sslclient"].iter().all(|purpose| {
        let mut openssl = Command::new("openssl");
        openssl.args(["verify", "-x509_strict", "-purpose", purpose]).arg("-CAfile").arg(bundle);
        let verified = openssl.arg("-untrusted").arg(chain).arg(chain).output().unwrap();
        verified.status.success()
    })
}

/// What SPIFFE asks of a leaf; gives its URI.
fn uri_of_leaf(der: &[u8]) -> String {
    let (_, leaf) = X509Certificate::from_der(der).unwrap();
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => (*uri).to_owned(),
        other => panic!("{other:?}"),
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_authority_is_made_shown_and_signs_what_openssl_accepts() {
    let folder = Folder::new();
    done(&folder, &["init", "--trust-domain", "mesh.local"]);
    let out = folder.path("cart");
    let (code, _, stderr) = issue(&folder, "spiffe://mesh.local/ns/shop/sa/cart", &out);
    assert_eq!(code, 0, "{stderr}");
    let (chain, bundle) = (out.join("cert.pem"), out.join("bundle.pem"));
    assert!(openssl_verifies(&bundle, &chain));
    assert_eq!((mode(&out.join("key.pem")), mode(&chain)), (0o600, 0o644));
    let leaf = CertificateDer::from_pem_file(&chain).unwrap();
    assert_eq!(uri_of_leaf(&leaf), "spiffe://mesh.local/ns/shop/sa/cart");
    assert_eq!(CertificateDer::pem_file_iter(&chain).unwrap().count(), 2, "leaf and issuer");

    let shown: Value = serde_json::from_str(&done(&folder, &["show", "--json"])).unwrap();
    let fingerprint = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(&bundle)
        .output()
        .unwrap();
    let fingerprint = String::from_utf8(fingerprint.stdout).unwrap();
    let fingerprint = fingerprint.trim().rsplit('=').next().unwrap().replace(':', "").to_lowercase();
    assert_eq!(shown["roots"][0]["sha256"], fingerprint);
    assert_eq!(shown["roots"][0]["phase"], "signs");
    let words = done(&folder, &["show"]);
    assert!(words.contains(&fingerprint) && !words.contains("PRIVATE"), "{words}");
}

#[test]
fn what_is_refused_comes_with_a_remedy_and_an_exit_code() {
    let folder = Folder::new();
    let (code, _, said) = ca(&folder, &["show"]);
    assert!(code == 1 && said.contains("help: ") && said.contains("ringmesh ca init"), "{said}");
    done(&folder, &["init", "--trust-domain", "mesh.local"]);
    let out = folder.path("out");
    let (code, _, said) = issue(&folder, "spiffe://other.local/cart", &out);
    assert!(code == 1 && said.contains("not of trust domain mesh.local"), "{said}");
    let (code, _, said) = ca(&folder, &["init", "--trust-domain", "other.local"]);
    assert!(code == 1 && said.contains("is the authority of trust domain mesh.local"), "{said}");
    let (code, _, said) = issue(&folder, "mesh.local/cart", &out);
    assert!(code == 2 && said.contains("spiffe://mesh.local/ns/shop/sa/cart"), "{said}");
    let (code, _, _) = ca(&folder, &["rotate-root", "--now", "--grace", "1h"]);
    assert_eq!(code, 2);
    assert!(!out.join("key.pem").exists());
}

#[test]
fn a_root_is_replaced_by_hand() {
    let folder = Folder::new();
    done(&folder, &["init", "--trust-domain", "mesh.local"]);
    let [old, between, new] = ["old", "between", "new"].map(|name| folder.path(name));
    issue(&folder, "spiffe://mesh.local/a", &old);
    assert!(done(&folder, &["rotate-root"]).contains("root 2  announced"));
    let (code, _, said) = ca(&folder, &["rotate-root"]);
    assert!(code == 1 && said.contains("--now"), "{said}");
    issue(&folder, "spiffe://mesh.local/a", &between);
    assert!(done(&folder, &["rotate-root", "--now"]).contains("root 1  retiring"));
    issue(&folder, "spiffe://mesh.local/a", &new);
    let verifies =
        |bundle: &Path, chain: &Path| openssl_verifies(&bundle.join("bundle.pem"), &chain.join("cert.pem"));
    for chain in [&old, &between, &new] {
        assert!(verifies(&between, chain) && verifies(&new, chain), "both roots are trusted");
    }
    assert!(verifies(&old, &between) && !verifies(&old, &new), "this is what the announcement is for");
}

// --- the Workload API ---

/// `ringmesh ca serve` with these rules, until it listens.
fn serve(folder: &Folder, rules: &str) -> Running {
    let running = Running::start(serve_command(folder, rules));
    listens(&running);
    running
}

fn listens(running: &Running) {
    eventually("the workload api is served", || {
        assert!(!running.has_ended(), "{}", running.stderr());
        running.stderr().contains("serving the workload api").then_some(())
    });
}

fn serve_command(folder: &Folder, rules: &str) -> Command {
    let config = write_rules(folder, rules);
    ringmesh(["ca", "serve", "--config", config.to_str().unwrap()])
}

fn write_rules(folder: &Folder, rules: &str) -> std::path::PathBuf {
    let text = format!(
        "socket = \"{}\"\nstate = \"{}\"\ntrust_domain = \"mesh.local\"\n{rules}",
        folder.path("w.sock").display(),
        folder.path("ca").display()
    );
    folder.write("workloads.toml", &text)
}

fn rule(id: &str, selectors: &str) -> String {
    format!("[[workload]]\nid = \"spiffe://mesh.local/{id}\"\n{selectors}\n")
}

fn my_uid() -> String {
    format!("uid = {}", rustix::process::geteuid().as_raw())
}

fn my_executable() -> String {
    format!("executable = \"{}\"", std::env::current_exe().unwrap().display())
}

fn socket(folder: &Folder) -> String {
    format!("unix://{}", folder.path("w.sock").display())
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(HANG, work).await.expect("it hangs") })
}

fn ask(socket: &str) -> Result<X509Context, WorkloadApiError> {
    wait(async { WorkloadApiClient::connect_to(socket).await?.fetch_x509_context().await })
}

fn ids(state: &X509Context) -> Vec<String> {
    state.svids().iter().map(|svid| svid.spiffe_id().to_string()).collect()
}

/// Asks as another user, if this one may become another: a thread of its own, which the kernel asks for itself.
fn ask_as(uid: u32, socket: &str) -> Option<Result<X509Context, WorkloadApiError>> {
    let socket = socket.to_owned();
    let thread = std::thread::spawn(move || {
        rustix::process::geteuid().is_root().then(|| {
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(uid)).unwrap();
            ask(&socket)
        })
    });
    thread.join().unwrap()
}

#[test]
fn who_may_gets_identities_in_order_and_they_keep_the_rules() {
    let folder = Folder::new();
    let both = format!("{}\n{}", my_uid(), my_executable());
    let rules = rule("first", &both) + &rule("other", "uid = 4000000000") + &rule("second", &my_executable());
    let running = serve(&folder, &rules);
    let state = ask(&socket(&folder)).unwrap();
    assert_eq!(ids(&state), ["spiffe://mesh.local/first", "spiffe://mesh.local/second"]);
    let svid = state.default_svid().unwrap();
    assert_eq!(uri_of_leaf(svid.leaf().as_bytes()), "spiffe://mesh.local/first");
    assert_eq!(svid.cert_chain().len(), 2);
    let bundles = wait(async {
        WorkloadApiClient::connect_to(socket(&folder)).await.unwrap().fetch_x509_bundles().await
    });
    assert_eq!(&bundles.unwrap(), &**state.bundle_set(), "asked alone or with identities: the same");

    // And openssl says that it leads to the bundle.
    let out = folder.path("out");
    issue(&folder, "spiffe://mesh.local/x", &out);
    let pem = |der: &[u8]| {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    };
    let chain: String = svid.cert_chain().iter().map(|certificate| pem(certificate.as_bytes())).collect();
    assert!(openssl_verifies(&out.join("bundle.pem"), &folder.write("chain.pem", &chain)));
    assert!(!running.stderr().contains("PRIVATE"));
}

#[test]
fn who_may_not_is_denied_and_told_of_in_the_log() {
    let folder = Folder::new();
    let elsewhere = format!("{}\nexecutable = \"/bin/sh\"", my_uid());
    let running = serve(&folder, &(rule("shell", &elsewhere) + &rule("mine", "uid = 23456")));
    let denied = |answer: Result<X509Context, WorkloadApiError>| {
        let error = answer.unwrap_err();
        assert!(
            matches!(error, WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_)),
            "{error:?}"
        );
    };
    denied(ask(&socket(&folder)));
    let exe = std::env::current_exe().unwrap();
    let logged = |what: &str| {
        eventually("it is logged", || running.stderr().contains(what).then_some(()));
    };
    logged("denied: no [[workload]] matches");
    logged(&my_uid().replace(" = ", "="));
    logged(exe.to_str().unwrap());
    if let Some(answer) = ask_as(23457, &socket(&folder)) {
        denied(answer);
        logged("uid=23457");
        assert_eq!(ids(&ask_as(23456, &socket(&folder)).unwrap().unwrap()), ["spiffe://mesh.local/mine"]);
    }
}

#[test]
fn calls_without_the_metadata_and_calls_about_jwts_are_refused() {
    let folder = Folder::new();
    let _running = serve(&folder, &rule("a", &my_uid()));
    let call = |path: &'static str, metadata: Option<&'static str>| {
        wait(async {
            let channel = tonic::transport::Endpoint::new(socket(&folder)).unwrap().connect().await.unwrap();
            let mut client = tonic::client::Grpc::new(channel);
            client.ready().await.unwrap();
            let mut request = tonic::Request::new(());
            if let Some(value) = metadata {
                request.metadata_mut().insert("workload.spiffe.io", value.parse().unwrap());
            }
            let codec = tonic_prost::ProstCodec::<(), ()>::default();
            let path = http::uri::PathAndQuery::from_static(path);
            client.server_streaming(request, path, codec).await.map(|_| ()).map_err(|status| status.code())
        })
    };
    for path in ["/SpiffeWorkloadAPI/FetchX509SVID", "/SpiffeWorkloadAPI/FetchX509Bundles"] {
        assert_eq!(call(path, None), Err(tonic::Code::InvalidArgument));
        assert_eq!(call(path, Some("yes")), Err(tonic::Code::InvalidArgument));
        assert_eq!(call(path, Some("true")), Ok(()));
    }
    for path in ["FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"] {
        let path = format!("/SpiffeWorkloadAPI/{path}").leak();
        assert_eq!(call(path, Some("true")), Err(tonic::Code::Unimplemented));
    }
}

#[test]
fn renewals_rotations_and_new_rules_are_pushed() {
    let folder = Folder::new();
    let head = |ttl| format!("leaf_ttl = \"{ttl}\"\n");
    let running = serve(&folder, &(head("4s") + &rule("a", &my_uid())));
    wait(async {
        let client = WorkloadApiClient::connect_to(socket(&folder)).await.unwrap();
        let mut states = client.stream_x509_contexts().await.unwrap();
        let mut bundles = client.stream_x509_bundles().await.unwrap();
        let mut next = async || states.next().await.unwrap();
        let leaf = |state: &X509Context| state.default_svid().unwrap().leaf().as_bytes().to_vec();
        let roots = |state: &X509Context| state.bundle_set().iter().next().unwrap().1.authorities().len();

        let first = next().await.unwrap();
        let renewed = next().await.unwrap();
        assert_ne!(leaf(&first), leaf(&renewed), "before it ended");
        assert_eq!(roots(&renewed), 1);
        let not_after = |state: &X509Context| {
            let leaf = leaf(state);
            X509Certificate::from_der(&leaf).unwrap().1.validity().not_after.timestamp()
        };
        assert!(not_after(&renewed) > not_after(&first));

        assert_eq!(bundles.next().await.unwrap().unwrap().iter().next().unwrap().1.authorities().len(), 1);
        done(&folder, &["rotate-root", "--grace", "1h"]);
        while roots(&next().await.unwrap()) < 2 {}
        assert_eq!(bundles.next().await.unwrap().unwrap().iter().next().unwrap().1.authorities().len(), 2);

        write_rules(&folder, &(head("4s") + &rule("b", &my_uid())));
        running.signal(Signal::HUP);
        while ids(&next().await.unwrap()) != ["spiffe://mesh.local/b"] {}
        write_rules(&folder, &(head("4s") + &rule("b", "uid = 4000000000")));
        running.signal(Signal::HUP);
        let end = loop {
            if let Err(error) = next().await {
                break error;
            }
        };
        assert!(
            matches!(end, WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_)),
            "{end:?}"
        );
    });
}

#[test]
fn a_socket_in_use_is_left_alone_and_a_dead_one_replaced() {
    let folder = Folder::new();
    let rules = rule("a", &my_uid());
    let mut first = serve(&folder, &rules);
    assert_eq!(mode(&folder.path("w.sock")), 0o666);
    let mut second = Running::start(serve_command(&folder, &rules));
    assert_eq!(second.wait().code(), Some(1));
    assert!(second.stderr().contains("another process listens on"), "{}", second.stderr());
    ask(&socket(&folder)).unwrap();
    first.signal(Signal::KILL);
    first.wait();
    assert!(folder.path("w.sock").exists());
    let mut third = serve(&folder, &rules);
    ask(&socket(&folder)).unwrap();
    third.signal(Signal::TERM);
    assert_eq!(third.wait().code(), Some(0), "{}", third.stderr());
    assert!(!folder.path("w.sock").exists());
    let mut wrong = Running::start(serve_command(&folder, &rule("a", "")));
    assert_eq!(wrong.wait().code(), Some(2));
    assert!(wrong.stderr().contains("every program would be"), "{}", wrong.stderr());
}

#[test]
fn the_source_of_a_proxy_takes_what_it_wants_and_comes_back() {
    let folder = Folder::new();
    let rules = rule("first", &my_uid()) + &rule("second", &my_uid());
    let mut running = serve(&folder, &rules);
    let source = |want: Option<&str>| {
        let want = want.map(|id| SpiffeId::parse(id).unwrap());
        let (updates, received) = tokio::sync::mpsc::channel(1);
        tokio::spawn(workload_api::run(Some(socket(&folder)), want, updates));
        received
    };
    let told = |update: Option<Update>| -> Result<String, SourceError> {
        update.unwrap().map(|material| {
            assert_eq!((material.chain.len(), material.bundles.roots("mesh.local").len()), (2, 1));
            material.id.to_string()
        })
    };
    wait(async {
        let mut any = source(None);
        assert_eq!(told(any.recv().await).unwrap(), "spiffe://mesh.local/first");
        let mut second = source(Some("spiffe://mesh.local/second"));
        assert_eq!(told(second.recv().await).unwrap(), "spiffe://mesh.local/second");
        let mut third = source(Some("spiffe://mesh.local/third"));
        let error = told(third.recv().await).unwrap_err();
        assert!(error.what.contains("does not give spiffe://mesh.local/third"), "{error:?}");

        running.signal(Signal::KILL);
        running.wait();
        let error = told(any.recv().await).unwrap_err();
        assert!(error.what.contains("w.sock"), "{error:?}");
        let _again = serve(&folder, &rules);
        loop {
            if told(any.recv().await).is_ok_and(|id| id == "spiffe://mesh.local/first") {
                break;
            }
        }
    });
}
