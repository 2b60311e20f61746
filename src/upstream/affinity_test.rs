use super::*;
use crate::authorize::Caller;
use crate::identity::SpiffeId;

struct Lines(Vec<(&'static str, &'static str)>);

impl Fields for Lines {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_bytes())
    }
}

fn ask(rules: &[HashRule], lines: &[(&'static str, &'static str)], query: &str, source: &str) -> Affinity {
    let id = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/cart").unwrap();
    let fields = Lines(lines.to_vec());
    let caller = Caller { listener: "inbound", port: 80, source: source.parse().unwrap(), peer: Some(&id) };
    let call = Call { caller, method: b"GET", path: b"/", fields: &fields };
    affinity(rules, &call, query.as_bytes(), false, || 0xab)
}

fn key(rules: &[HashRule], lines: &[(&'static str, &'static str)], query: &str) -> Option<u64> {
    ask(rules, lines, query, "10.0.0.1").key.map(Key::get)
}

fn rule(on: HashOn) -> HashRule {
    HashRule { on, terminal: false }
}

fn header(name: &str) -> HashRule {
    rule(HashOn::Header(name.into()))
}

fn cookie(ttl: Option<u64>) -> HashRule {
    let ttl = ttl.map(Duration::from_secs);
    rule(HashOn::Cookie(Cookie { name: "sid".into(), ttl, path: "/".into() }))
}

#[test]
fn a_key_is_the_documented_hash_of_its_value() {
    let seven = Some(xxh64(b"7", 0));
    assert_eq!(key(&[header("x-user")], &[("x-user", "7")], ""), seven);
    assert_eq!(key(&[cookie(None)], &[("cookie", "a=b; sid=7; c=d")], ""), seven);
    assert_eq!(key(&[cookie(None)], &[("cookie", "sid=\"7\"")], ""), seven);
    assert_eq!(key(&[rule(HashOn::Query("u".into()))], &[], "a=1&u=7&u=8"), seven);
    assert_eq!(key(&[rule(HashOn::Query("u".into()))], &[], "uu=7&u&x"), Some(xxh64(b"", 0)));
    let id = xxh64(b"spiffe://mesh.local/ns/shop/sa/cart", 0);
    assert_eq!(key(&[rule(HashOn::Identity)], &[], ""), Some(id));
    for source in ["10.0.0.1", "::ffff:10.0.0.1"] {
        let key = ask(&[rule(HashOn::Source)], &[], "", source).key.unwrap().get();
        assert_eq!(key, xxh64(&[10, 0, 0, 1], 0), "{source}");
    }
}

#[test]
fn what_is_not_there_makes_no_key() {
    let rules = [header("x-user"), cookie(None), rule(HashOn::Query("u".into()))];
    for (lines, query) in [(&[][..], ""), (&[("cookie", "side=7; xsid=7; sid")][..], "uu=7"), (&[], "au=7")] {
        assert_eq!(key(&rules, lines, query), None, "{lines:?} {query}");
    }
}

#[test]
fn several_are_combined_in_their_order_and_a_terminal_one_ends() {
    let both = [("x-user", "7"), ("x-shop", "a")];
    let (seven, a) = (xxh64(b"7", 0), xxh64(b"a", 0));
    assert_eq!(key(&[header("x-user"), header("x-shop")], &both, ""), Some(seven.rotate_left(1) ^ a));
    assert_ne!(
        key(&[header("x-user"), header("x-shop")], &both, ""),
        key(&[header("x-shop"), header("x-user")], &both, "")
    );
    let first = HashRule { terminal: true, ..header("x-user") };
    assert_eq!(key(&[first.clone(), header("x-shop")], &both, ""), Some(seven));
    assert_eq!(key(&[first, header("x-shop")], &both[1..], ""), Some(a));
}

#[test]
fn lines_of_a_header_are_told_from_one_line() {
    let two = key(&[header("x")], &[("x", "a"), ("x", "b")], "");
    assert!(two != key(&[header("x")], &[("x", "ab")], "") && two != key(&[header("x")], &[("x", "b")], ""));
}

#[test]
fn a_cookie_is_set_where_there_is_none_and_leads_to_the_same_endpoint_when_it_comes_back() {
    let minted = ask(&[cookie(Some(3600))], &[], "", "10.0.0.1");
    let text = minted.minted.as_ref().unwrap().as_str();
    assert_eq!(text, "sid=00000000000000ab; Path=/; Max-Age=3600; HttpOnly");
    let back = ask(&[cookie(Some(3600))], &[("cookie", "sid=00000000000000ab")], "", "10.0.0.1");
    assert_eq!((back.key, back.minted), (minted.key, None));
    // For as long as the browser runs.
    let session = ask(&[cookie(Some(0))], &[], "", "10.0.0.1");
    assert_eq!(session.minted.unwrap().as_str(), "sid=00000000000000ab; Path=/; HttpOnly");
    assert_eq!(ask(&[cookie(None)], &[], "", "10.0.0.1").minted, None);
    let secure = Minted::new(&Cookie { name: "s".into(), ttl: None, path: "/a".into() }, "1", true);
    assert_eq!(secure.as_str(), "s=1; Path=/a; Secure; HttpOnly");
}
