//! TLS with the programs that people use: curl and openssl.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use ringmesh::snapshot::ListenerTls;

use crate::support::authority::Authority;
use crate::support::rig::Rig;

const APP: &str = "spiffe://mesh.local/ns/shop/sa/app";
const CALLER: &str = "spiffe://mesh.local/ns/shop/sa/caller";

/// Files of one test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ringmesh-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        shown(&path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A rig with an edge for shop.test.
fn edge() -> (Authority, Rig) {
    let authority = Authority::new("public");
    let mode = ListenerTls::Terminate(authority.host("shop.test").termination(&[b"h2", b"http/1.1"]));
    let rig = Rig::with(|config| config.change(move |snapshot| snapshot.listeners[0].tls = mode.clone()));
    (authority, rig)
}

/// Runs `openssl s_client` with these words and this input: all that it says.
fn s_client(rig: &Rig, words: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &rig.mesh.address.to_string(), "-servername", "shop.test"])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn curl_is_served_at_an_edge_and_in_the_mesh() {
    let folder = Folder::new("curl");
    let (authority, rig) = edge();
    let ca = folder.write("ca.pem", &authority.pem());
    let port = rig.mesh.address.port();
    let curl = |ca: &str, port: u16, more: &[&str]| {
        let output = Command::new("curl")
            .args(["-sS", "--noproxy", "*", "--max-time", "30", "--cacert", ca])
            .args(["--resolve", &format!("shop.test:{port}:127.0.0.1")])
            .args(more)
            .arg(format!("https://shop.test:{port}/a"))
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    assert_eq!(curl(&ca, port, &["--http1.1"]), "/a");
    assert_eq!(curl(&ca, port, &["--http1.1", "--tls-max", "1.2"]), "/a");
    assert_eq!(curl(&ca, port, &["--http2"]), "/a");
    // t27
    for version in ["--http1.1", "--http2"] {
        let misdirected = curl(&ca, port, &[version, "-H", "Host: other.test", "-w", " %{http_code}"]);
        assert!(misdirected.ends_with(" 421"), "{misdirected}");
    }
    let version = curl(&ca, port, &["--http2", "-o", "/dev/null", "-w", "%{http_version}"]);
    assert_eq!(version, "2");
    rig.done();

    // In the mesh curl wants a name and the mesh an id: this leaf has both.
    let authority = Authority::new("mesh");
    let both = authority.leaf(|params| {
        params.subject_alt_names = vec![
            crate::support::authority::uri(APP),
            rcgen::SanType::DnsName("shop.test".try_into().unwrap()),
        ];
    });
    let credentials = authority.credentials(APP, &both, &[b"http/1.1"]);
    let rig = Rig::with(|config| {
        config.change(move |snapshot| {
            snapshot.listeners[0].tls = ListenerTls::Strict;
            snapshot.identity = Some(Arc::clone(&credentials));
        })
    });
    let ca = folder.write("mesh.pem", &authority.pem());
    let pair = folder.write("caller.pem", &authority.workload(CALLER).pem());
    let port = rig.mesh.address.port();
    assert_eq!(curl(&ca, port, &["--http1.1", "--cert", &pair]), "/a");
    let refused = curl(&ca, port, &["--http1.1"]);
    assert!(refused.contains("certificate required"), "{refused}");
    let seen = rig.done().seen;
    assert_eq!(seen.connection_failures.get("handshake.downstream.certificate_missing"), Some(&1));
}

#[test]
fn t24_openssl_with_an_old_version_is_refused() {
    let (_, rig) = edge();
    for version in ["-tls1", "-tls1_1"] {
        let said = s_client(&rig, &[version, "-cipher", "DEFAULT@SECLEVEL=0"], b"");
        assert!(said.contains("alert") && said.contains("Cipher is (NONE)"), "{said}");
    }
    let seen = rig.done().seen;
    assert_eq!(seen.connection_failures.get("handshake.downstream.bad_handshake"), Some(&2));
}

#[test]
fn t25_openssl_may_not_renegotiate() {
    let (_, rig) = edge();
    // A line that is just R asks for it.
    let said = s_client(&rig, &["-tls1_2"], b"R\n");
    assert!(said.contains("RENEGOTIATING"), "{said}");
    assert!(said.contains("no renegotiation") || said.contains("alert"), "{said}");
    rig.done_unseen();
}

#[test]
fn t26_openssl_with_another_protocol_is_refused() {
    let (_, rig) = edge();
    let said = s_client(&rig, &["-alpn", "spdy/3"], b"");
    assert!(said.contains("no application protocol"), "{said}");
    assert_eq!(rig.done().seen.connection_failures.len(), 1);
}
