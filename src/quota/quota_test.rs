//! What makes a key, and what several limits of one route do together.

use super::*;
use crate::authorize::Caller;
use crate::identity::SpiffeId;

const S: u64 = 1_000_000_000;

struct Lines(Vec<(&'static str, &'static str)>);

impl Fields for Lines {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_bytes())
    }
}

fn quota(name: &str, burst: u32, by: &[By]) -> Arc<Quota> {
    let spec = Spec { name: name.into(), rate: 1, per_ns: 3600 * S, burst, by: by.into(), keys_max: 100 };
    Arc::new(Quota::new(spec))
}

/// How many requests like this pass one limit of two by `by`, on that route.
fn pass(quotas: &[Arc<Quota>], route: &str, peer: Option<&str>, source: &str, lines: &Lines) -> usize {
    let peer = peer.map(|id| SpiffeId::parse(id).unwrap());
    let source = source.parse().unwrap();
    let caller = Caller { listener: "in", port: 1, source, peer: peer.as_ref() };
    let call = Call { caller, method: b"GET", path: b"/", fields: lines };
    let of: Vec<u32> = (0..quotas.len() as u32).collect();
    (0..10).filter(|_| charge(quotas, &of, route, &call, S).is_none()).count()
}

fn none() -> Lines {
    Lines(Vec::new())
}

#[test]
fn each_key_has_a_bucket_of_its_own() {
    let one = [quota("one", 2, &[])];
    assert_eq!(pass(&one, "0", None, "10.0.0.1", &none()), 2);
    assert_eq!(pass(&one, "1", None, "10.0.0.2", &none()), 0);

    let by_route = [quota("route", 2, &[By::Route])];
    assert_eq!(pass(&by_route, "0", None, "10.0.0.1", &none()), 2);
    assert_eq!(pass(&by_route, "1", None, "10.0.0.1", &none()), 2);
    assert_eq!(pass(&by_route, "0", None, "10.0.0.2", &none()), 0);

    let by_source = [quota("source", 2, &[By::Source])];
    for (source, passed) in [
        ("10.0.0.1", 2),
        ("10.0.0.2", 2),
        ("::ffff:10.0.0.1", 0),
        ("2001:db8::1", 2),
        ("2001:db8::2", 0),
        ("2001:db8:0:1::1", 2),
    ] {
        assert_eq!(pass(&by_source, "0", None, source, &none()), passed, "{source}");
    }

    let by_identity = [quota("identity", 2, &[By::Identity])];
    for (peer, passed) in [
        (Some("spiffe://a/x"), 2),
        (Some("spiffe://a/y"), 2),
        (None, 2),
        (Some("spiffe://a/x"), 0),
        (None, 0),
    ] {
        assert_eq!(pass(&by_identity, "0", peer, "10.0.0.1", &none()), passed, "{peer:?}");
    }

    let by_field = [quota("field", 2, &[By::Header("x-tenant".into()), By::Route])];
    let with = |values: &[&'static str]| Lines(values.iter().map(|value| ("x-tenant", *value)).collect());
    for (route, values, passed) in [
        ("0", &["a"][..], 2),
        ("1", &["a"], 2),
        ("0", &["b"], 2),
        ("0", &["a"], 0),
        // Without it they are one, and empty is not without.
        ("0", &[], 2),
        ("0", &[], 0),
        ("0", &[""], 2),
        ("0", &["a", "b"], 2),
        ("0", &["ab"], 2),
        ("0", &["b", "a"], 2),
    ] {
        assert_eq!(pass(&by_field, route, None, "10.0.0.1", &with(values)), passed, "{route} {values:?}");
    }
}

#[test]
fn what_one_limit_refuses_takes_nothing_from_the_others() {
    let quotas = [quota("wide", 5, &[]), quota("narrow", 2, &[By::Source])];
    assert_eq!(pass(&quotas, "0", None, "10.0.0.1", &none()), 2);
    // Eight were refused by the second limit, and the first has three left.
    assert_eq!(pass(&quotas, "0", None, "10.0.0.2", &none()), 2);
    assert_eq!(pass(&quotas, "0", None, "10.0.0.3", &none()), 1);
    let counted = |quota: &Quota| {
        (quota.counts.passed.load(Ordering::Relaxed), quota.counts.refused.load(Ordering::Relaxed))
    };
    assert_eq!((counted(&quotas[0]), counted(&quotas[1])), ((5, 9), (5, 16)));
}

#[test]
fn who_comes_too_soon_learns_when_to_come_again() {
    let spec =
        Spec { name: "slow".into(), rate: 2, per_ns: 60 * S, burst: 2, by: Box::default(), keys_max: 1 };
    let quotas = [Arc::new(Quota::new(spec))];
    let lines = none();
    let caller = Caller { listener: "in", port: 1, source: "10.0.0.1".parse().unwrap(), peer: None };
    let call = Call { caller, method: b"GET", path: b"/", fields: &lines };
    let at = |now_ns| charge(&quotas, &[0], "r", &call, now_ns).and_then(|over| over.wait_seconds);
    assert_eq!((at(S), at(S), at(S)), (None, None, Some(30)));
    assert_eq!(at(S + 29 * S + S / 2), Some(1));
    assert_eq!(at(31 * S), None);
    assert_eq!(quotas[0].window_seconds(), 60);
    // What does not exist limits nobody.
    assert!(charge(&quotas, &[7], "r", &call, S).is_none());
}
