//! Discovery against a name server of the test's own, over UDP.

use super::*;
use crate::control::testing::{Zone, name_server};
use std::net::Ipv4Addr;
use tokio::net::UdpSocket;

/// Only a failing test waits this long.
const LONG: Duration = Duration::from_secs(20);

fn quick() -> Pace {
    Pace {
        ttl_min: Duration::from_millis(20),
        ttl_max: Duration::from_secs(60),
        retry: Duration::from_millis(20),
    }
}

#[tokio::test]
async fn addresses_follow_the_name_server_and_outlive_its_failures() {
    let zone = Zone::default();
    let server = name_server(&zone);
    let set = |ips: &[[u8; 4]]| {
        let ips = ips.iter().map(|ip| Ipv4Addr::from(*ip)).collect();
        zone.lock().unwrap().insert("app.internal".into(), ips);
    };
    set(&[[10, 0, 0, 2], [10, 0, 0, 1]]);
    let mut discovery = Discovery::new(vec![server], quick());
    discovery.configure([("app.internal", "app"), ("missing.internal", "app")].into_iter(), LONG).await;
    let now =
        |d: &Discovery| d.addresses("app.internal", 80).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(now(&discovery), ["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(discovery.unresolved().collect::<Vec<_>>(), ["missing.internal"]);

    set(&[[10, 0, 0, 3]]);
    tokio::time::timeout(LONG, discovery.changed()).await.unwrap();
    assert_eq!(now(&discovery), ["10.0.0.3:80"]);

    // The server fails for a while: nothing changes until another name does, later.
    zone.lock().unwrap().remove("app.internal");
    let bad = discovery.counts().bad.load(Ordering::Relaxed);
    let failures = async {
        while discovery.counts().bad.load(Ordering::Relaxed) < bad + 4 {
            tokio::time::timeout(Duration::from_millis(20), discovery.changed()).await.unwrap_err();
        }
    };
    tokio::time::timeout(LONG, failures).await.unwrap();
    assert_eq!(now(&discovery), ["10.0.0.3:80"], "the last good addresses stay");
    set(&[[10, 0, 0, 4]]);
    tokio::time::timeout(LONG, discovery.changed()).await.unwrap();
    assert_eq!(now(&discovery), ["10.0.0.4:80"]);
}

#[tokio::test]
async fn no_more_addresses_than_the_ceiling() {
    // 64 KiB of UDP would hold more than 70 addresses; 512 octets of plain DNS hold 30, so the table is filled by hand.
    let mut discovery = Discovery::new(Vec::new(), quick());
    let far = Instant::now() + LONG;
    let services = "service app".to_owned();
    discovery
        .names
        .insert("app".into(), Name { addresses: vec![], due: far, asking: true, failures: 0, services });
    let many: BTreeSet<IpAddr> = (0..100).map(|n| IpAddr::from([10, 0, 0, n])).collect();
    assert!(discovery.settle(Outcome { name: "app".into(), answer: Ok((many, far)) }));
    let used = discovery.addresses("app", 1);
    assert_eq!(used.len(), Discovery::ADDRESSES_MAX);
    assert_eq!(used[63].to_string(), "10.0.0.63:1");
}

#[tokio::test]
async fn localhost_needs_no_name_server() {
    let mut discovery = Discovery::new(Vec::new(), Pace::default());
    discovery.configure([("localhost", "app")].into_iter(), LONG).await;
    assert_eq!(discovery.addresses("localhost", 9000), ["127.0.0.1:9000".parse().unwrap()]);
}

#[tokio::test]
async fn a_silent_name_server_delays_the_start_by_the_wait_only() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut discovery = Discovery::new(vec![silent.local_addr().unwrap()], Pace::default());
    discovery.configure([("app.internal", "app")].into_iter(), Duration::from_millis(50)).await;
    assert_eq!(discovery.unresolved().count(), 1);
    // A reload without the name forgets it, and the answer that never came.
    discovery.configure([].into_iter(), Duration::ZERO).await;
    assert_eq!(discovery.unresolved().count(), 0);
}

#[test]
fn a_name_that_cannot_be_resolved_is_told_of_in_words() {
    let services = of_services_text(&BTreeSet::from(["a", "b", "c", "d", "e"]));
    let mut name = Name { addresses: vec![], due: Instant::now(), asking: false, failures: 1, services };
    let said = name.said_unresolved("x.internal", "no such name");
    assert!(
        said.contains("name x.internal of services a, b, c, 2 more cannot be resolved (no such name)"),
        "{said}"
    );
    assert!(said.contains("no addresses yet, so these endpoints are missing"), "{said}");
    name.services = of_services_text(&BTreeSet::from(["a"]));
    name.addresses = vec![IpAddr::from([10, 0, 0, 1])];
    let said = name.said_unresolved("x.internal", "no such name");
    assert!(
        said.contains("of service a cannot") && said.contains("its last good address stays in use"),
        "{said}"
    );
}
