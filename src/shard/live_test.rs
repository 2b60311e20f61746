//! Real sockets on a runtime of the test: what ends when the rules change, and what does not.

use super::*;
use std::net::SocketAddr;
use std::time::Duration;

use monoio::net::{TcpListener, TcpStream};
use monoio::{LegacyDriver, RuntimeBuilder};

use crate::authorize::{self, Action, Rule, TextMatch};
use crate::identity::{IdMatch, SpiffeId};
use crate::io::timed::OnDeadline;
use crate::io::{Connection, Fault};
use crate::shard::clock::NEVER;
use crate::shard::link::Link;
use crate::snapshot::{ForwardedFields, Forwarding, Http2, Limits, Timeouts};

fn snapshot(generation: u64, rules: Vec<Rule>) -> Arc<Snapshot> {
    let second = Duration::from_secs(1);
    Arc::new(Snapshot {
        generation,
        listeners: Vec::new(),
        routes: Arc::default(),
        services: Vec::new(),
        by_name: Vec::new(),
        health: Vec::new(),
        limits: Limits {
            head_bytes_max: 1024,
            target_bytes_max: 1024,
            paths: crate::snapshot::Paths::Any,
            fields_max: 16,
            body_bytes_max: 0,
            connections_max: 100,
            interim_responses_max: 1,
            handshakes_max: 1,
            mirrored_max: 1,
            mirrored_body_bytes_max: 1,
            faults_max: 1,
        },
        timeouts: Timeouts {
            head: second,
            idle: second,
            body_stall: second,
            stream_idle: None,
            drain: second,
            handshake: second,
        },
        forwarding: Forwarding { via: None, forwarded: ForwardedFields::Keep, failure_header: true },
        access_log: None,
        tracing: None,
        identity: None,
        authorization: Arc::new(Policy::new(rules, Verdict::Allow).unwrap()),
        quotas: Arc::default(),
        globals: Arc::from([]),
        http2: Http2::default(),
    })
}

fn deny(from: &str) -> Rule {
    Rule {
        name: "gone".into(),
        action: Action::Deny,
        listeners: vec!["in".into()],
        from: vec![IdMatch::parse(from).unwrap()],
        sources: Vec::new(),
        ports: Vec::new(),
        methods: Vec::new(),
        paths: Vec::new(),
        headers: Vec::new(),
    }
}

struct NoFields;

impl authorize::Fields for NoFields {
    fn values(&self, _: &str) -> impl Iterator<Item = &[u8]> {
        std::iter::empty()
    }
}

/// A shard, and connections to it whose other ends are kept open.
struct Rig {
    shard: Rc<Shard>,
    listener: TcpListener,
    callers: Vec<TcpStream>,
    generation: u64,
}

impl Rig {
    fn new() -> Self {
        let (link, _bell) = Link::new(0).unwrap();
        let shard =
            Rc::new(Shard::new(link, Duration::from_secs(60), Duration::ZERO, snapshot(1, Vec::new())));
        let listener = TcpListener::bind::<SocketAddr>(([127, 0, 0, 1], 0).into()).unwrap();
        Self { shard, listener, callers: Vec::new(), generation: 1 }
    }

    /// A connection of that peer, on the list.
    async fn open(&mut self, peer: &str) -> (Listed, Connection) {
        let address = self.listener.local_addr().unwrap();
        self.callers.push(TcpStream::connect_addr(address).await.unwrap());
        let (stream, from) = self.listener.accept().await.unwrap();
        let connection = Connection::accepted(stream, &self.shard.deadlines);
        let id = SpiffeId::parse(peer).unwrap();
        let peer = Some(Rc::new(Peer { id, chain: Vec::new(), fingerprint: [0; 32], not_after: 0 }));
        let kind = Kind::Requests(connection.control());
        let (source, listener, port) = (from.ip(), "in".into(), address.port());
        let with = With::Caller { source, listener, port, encrypted: true };
        let open = Open { peer, with, kind };
        (self.shard.live.list(open), connection)
    }

    /// A tunnel of that peer, or of nobody known, that began with a request for that path.
    fn tunnel(&self, peer: Option<&str>, path: &'static str) -> (Listed, Rc<Ending>) {
        let id = |peer| SpiffeId::parse(peer).unwrap();
        let peer = peer.map(|peer| {
            Rc::new(Peer { id: id(peer), chain: Vec::new(), fingerprint: [0; 32], not_after: 0 })
        });
        let notice = Rc::new(Ending::default());
        let ask = move |policy: &Policy, caller: Caller<'_>| {
            let call = authorize::Call { caller, method: b"GET", path: path.as_bytes(), fields: &NoFields };
            policy.decide(&call, |_| {}).verdict
        };
        let kind = Kind::Tunnel(Box::new(ask), Rc::clone(&notice));
        let source = [127, 0, 0, 1].into();
        let with = With::Caller { source, listener: "in".into(), port: 1, encrypted: true };
        (self.shard.live.list(Open { peer, with, kind }), notice)
    }

    /// Puts rules in place; whether connections are to be looked through.
    fn rules(&mut self, rules: Vec<Rule>) -> bool {
        self.generation += 1;
        self.shard.apply(snapshot(self.generation, rules))
    }

    /// Connections that were closed, by cause.
    fn revoked(&self) -> Vec<(Cause, u64)> {
        self.shard.tick();
        let mut all = Vec::new();
        while let Some(interval) = self.shard.link.intervals.pop() {
            all.extend(interval.revoked);
        }
        all
    }
}

/// Whether it was ended from here; one that goes on has nothing to read.
fn is_ended(connection: &Connection) -> bool {
    !connection.is_usable()
}

fn run(test: impl Future<Output = ()>) {
    RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().unwrap().block_on(test);
}

#[test]
fn a_connection_that_is_not_allowed_any_more_ends_and_the_others_go_on() {
    run(async {
        let mut rig = Rig::new();
        let (_gone, mut gone) = rig.open("spiffe://mesh.local/web").await;
        let (_stays, stays) = rig.open("spiffe://mesh.local/cart").await;
        let (left, _) = rig.open("spiffe://mesh.local/web").await;
        drop(left);
        assert!(!rig.rules(Vec::new()), "the same rules");
        assert!(rig.rules(vec![deny("spiffe://mesh.local/web")]));
        assert!(
            !rig.rules(vec![deny("spiffe://mesh.local/web"), deny("spiffe://other/*")]),
            "once at a time"
        );
        look_through(Rc::clone(&rig.shard)).await;
        // A wait that was going on ends, too.
        let mut buffer = Vec::with_capacity(16);
        let read = gone.reader.read(&mut buffer, 0, NEVER, OnDeadline::Shutdown).await;
        assert!(matches!(read, Ok(0) | Err(Fault::Reset)), "{read:?}");
        assert!(!is_ended(&stays));
        assert_eq!(rig.revoked(), [(Cause::Denied, 1)]);
        assert!(rig.rules(vec![deny("spiffe://mesh.local/*")]), "and again");
        look_through(Rc::clone(&rig.shard)).await;
        assert!(is_ended(&stays));
        drop((_gone, _stays));
        assert!(!rig.rules(Vec::new()), "nobody to look at");
    });
}

#[test]
fn what_depends_on_the_request_ends_no_connection() {
    run(async {
        let mut rig = Rig::new();
        let (_listed, connection) = rig.open("spiffe://mesh.local/web").await;
        let admin = Rule { paths: vec![TextMatch::Prefix("/admin".into())], ..deny("*") };
        assert!(rig.rules(vec![admin]));
        look_through(Rc::clone(&rig.shard)).await;
        assert!(!is_ended(&connection));
        assert!(rig.revoked().is_empty());
    });
}

#[test]
fn a_tunnel_ends_when_its_request_would_be_refused_now() {
    run(async {
        let mut rig = Rig::new();
        let (_of_web, connection) = rig.open("spiffe://mesh.local/web").await;
        let (_chat, chat) = rig.tunnel(Some("spiffe://mesh.local/web"), "/chat");
        let (_admin, admin) = rig.tunnel(Some("spiffe://mesh.local/web"), "/admin/log");
        let (_plain, plain) = rig.tunnel(None, "/admin/log");
        let rule = Rule { from: Vec::new(), paths: vec![TextMatch::Prefix("/admin".into())], ..deny("*") };
        assert!(rig.rules(vec![rule]));
        look_through(Rc::clone(&rig.shard)).await;
        assert!(!is_ended(&connection));
        let causes = [&chat, &admin, &plain].map(|notice| notice.cause.get());
        assert_eq!(causes, [None, Some(Cause::Denied), Some(Cause::Denied)]);
        assert_eq!(rig.revoked(), [(Cause::Denied, 2)]);
        // A tunnel on a connection that ends is not counted beside it.
        assert!(rig.rules(vec![deny("spiffe://mesh.local/web")]));
        look_through(Rc::clone(&rig.shard)).await;
        assert!(is_ended(&connection));
        assert_eq!(chat.cause.get(), Some(Cause::Denied));
        assert_eq!(rig.revoked(), [(Cause::Denied, 1)]);
    });
}

#[test]
fn a_place_is_used_again_and_more_connections_than_one_look_takes_are_all_seen() {
    run(async {
        let mut rig = Rig::new();
        let (_first, connection) = rig.open("spiffe://mesh.local/web").await;
        let list = |n: u32| {
            let id = SpiffeId::parse(&format!("spiffe://mesh.local/web-{n}")).unwrap();
            let peer = Rc::new(Peer { id, chain: Vec::new(), fingerprint: [0; 32], not_after: 0 });
            let (source, kind) = ([127, 0, 0, 1].into(), Kind::Requests(connection.control()));
            let with = With::Caller { source, listener: "in".into(), port: 1, encrypted: true };
            rig.shard.live.list(Open { peer: Some(peer), with, kind })
        };
        let mut listed: Vec<Listed> = (0..1000).map(list).collect();
        listed.retain(|listed| listed.slot % 2 == 0);
        listed.extend((1000..1400).map(list));
        assert_eq!(rig.shard.live.slots.borrow().len(), 1001);
        assert!(rig.rules(vec![deny("spiffe://mesh.local/*")]));
        look_through(Rc::clone(&rig.shard)).await;
        assert!(is_ended(&connection));
        assert_eq!(rig.revoked(), [(Cause::Denied, 1 + listed.len() as u64)]);
    });
}

#[test]
fn what_ends_a_connection_never_ends_the_one_that_has_its_number_now() {
    run(async {
        let mut rig = Rig::new();
        let (listed, connection) = rig.open("spiffe://mesh.local/a").await;
        // Its halves are closed by tasks of their own, so its place may be taken for a moment longer.
        drop(connection);
        let (other, stays) = rig.open("spiffe://mesh.local/b").await;
        assert!(rig.rules(vec![deny("spiffe://mesh.local/a")]));
        look_through(Rc::clone(&rig.shard)).await;
        assert!(!is_ended(&stays));
        drop((listed, other));
    });
}
