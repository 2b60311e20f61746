//! Ceilings that hold for a proxy as a whole, whichever of its shards a caller comes to: never one more, and never one less. Four shards,
//! more callers than there is room for, and a ceiling of less than one for each.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use ringmesh::control::{Proxy, Start};

use crate::support::authority::Authority;
use crate::support::client::Client;
use crate::support::folder::Folder;
use crate::support::mesh::until;
use crate::support::origin::Origin;
use crate::support::{End, Gate, Watched};

/// With a chance of 4 * (3/4)^CALLERS, less than one of a million, one of the shards has none of them.
const CALLERS: usize = 60;
/// Fewer than there are shards.
const MOST: usize = 3;

fn start(limits: &str, listener: &str, services: &str) -> Proxy {
    let text = format!(
        "shards = 4\n[admin]\naddress = \"127.0.0.1:0\"\n[limits]\n{limits} = {MOST}\n[timeouts]\nhandshake = \"1h\"\ndrain = \"1ms\"\n\
         [[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n{listener}\n{services}"
    );
    Proxy::start(Start::text(text)).unwrap()
}

/// All at once: each on a connection of its own.
fn callers(proxy: &Proxy) -> Vec<Client> {
    let address = proxy.listener("in").unwrap();
    let mut clients: Vec<Client> = (0..CALLERS).map(|_| Client::connect(address)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
    clients
}

/// Waits until the metrics have this line.
fn wait_metric(proxy: &Proxy, line: &str) {
    until(line, || {
        let mut admin = Client::connect(proxy.admin().unwrap());
        admin.send("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        admin.response().text().lines().any(|known| known == line)
    });
}

fn end(proxy: Proxy) {
    proxy.drain();
    proxy.join();
}

#[test]
fn faults_are_counted_for_all_shards_together() {
    let (gate, origin) = Origin::gated();
    let service = format!("[[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n", origin.endpoint);
    let route = "[[route]]\nservice = \"app\"\nfault = { delay = { fixed = \"1ms\" } }\n";
    let proxy = start("faults_max", "", &(service + route));
    let mut clients = callers(&proxy);
    // Who was held up keeps his place to the end of his exchange.
    origin.wait_requests(CALLERS);
    gate.open();
    assert!(clients.iter_mut().all(|client| client.response().status() == 200));
    wait_metric(&proxy, &format!("ringmesh_faults_total{{service=\"app\",kind=\"delay\"}} {MOST}"));
    wait_metric(&proxy, &format!("ringmesh_faults_refused_total{{service=\"app\"}} {}", CALLERS - MOST));
    // All places are free again.
    let mut clients = callers(&proxy);
    assert!(clients.iter_mut().all(|client| client.response().status() == 200));
    end(proxy);
}

#[test]
fn copies_are_counted_for_all_shards_together() {
    let origin = Origin::plain();
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
    let shadow = Origin::answering(move |request| {
        theirs.pass();
        crate::support::origin::ok(request)
    });
    let services = format!(
        "[[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n[[service]]\nname = \"shadow\"\nendpoints = [\"{}\"]\n[[route]]\nservice = \
         \"app\"\nmirror = [{{ service = \"shadow\" }}]\n",
        origin.endpoint, shadow.endpoint
    );
    let proxy = start("mirrored_max", "", &services);
    let mut clients = callers(&proxy);
    assert!(clients.iter_mut().all(|client| client.response().status() == 200));
    // None of the copies is over before it is known how many there were.
    wait_metric(
        &proxy,
        &format!("ringmesh_mirrored_unsent_total{{service=\"shadow\",why=\"busy\"}} {}", CALLERS - MOST),
    );
    assert_eq!(shadow.wait_requests(MOST).len(), MOST);
    gate.open();
    wait_metric(&proxy, &format!("ringmesh_mirrored_total{{service=\"shadow\",class=\"2xx\"}} {MOST}"));
    let mut client = Client::connect(proxy.listener("in").unwrap());
    client.send("GET /once HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    shadow.wait_requests(MOST + 1);
    end(proxy);
}

#[test]
fn handshakes_are_counted_for_all_shards_together() {
    let folder = Folder::new();
    let leaf = Authority::new("public").host("a.test");
    let certificate = folder.write("a.pem", &leaf.chain_pem());
    let key = folder.write("a.key", &leaf.key_pem());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let listener = format!(
        "tls = \"terminate\"\ncertificate = \"{}\"\nkey = \"{}\"",
        certificate.display(),
        key.display()
    );
    let origin = Origin::plain();
    let service = format!(
        "[[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n[[route]]\nservice = \"app\"\n",
        origin.endpoint
    );
    let proxy = start("handshakes_max", &listener, &service);
    let address = proxy.listener("in").unwrap();
    let ended = Arc::new(Watched::<usize>::default());
    for _ in 0..CALLERS {
        let ended = Arc::clone(&ended);
        std::thread::spawn(move || {
            let mut client = Client::connect(address);
            // It begins, and does not go on.
            client.send([0x16, 3, 1, 0, 200, 1]);
            assert!(matches!(client.end(), End::Fin | End::Reset));
            ended.change(|ended| *ended += 1);
        });
    }
    ended.wait("those that find no room", |ended| (*ended == CALLERS - MOST).then_some(()));
    wait_metric(
        &proxy,
        &format!(
            "ringmesh_connection_failures_total{{stage=\"handshake\",side=\"local\",cause=\"overloaded\"}} {}",
            CALLERS - MOST
        ),
    );
    assert_eq!(*ended.lock(), CALLERS - MOST, "the others wait for their callers");
    end(proxy);
    ended.wait("all", |ended| (*ended == CALLERS).then_some(()));
}
