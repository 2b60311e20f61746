//! Cross-origin requests of browsers (Fetch §3.2): which pages may read what a route answers. Pure.
//!
//! Preflights are answered here, for the service; other requests go on whatever their origin, since CORS keeps pages from
//! reading and nobody from asking. What the service says of CORS itself is taken out: two answers are none to a browser.

use std::time::Duration;

use http::HeaderName;
use http::header;

use super::changes::Change;
use super::path::Replace;
use super::text::Seen;
use crate::authorize::{Call, Fields};

/// Who may read what a route answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Origins of pages; not empty.
    pub origins: Box<[Origin]>,
    /// Methods beside the simple ones; `*` for any.
    pub methods: Box<[Box<str>]>,
    /// Fields that a request may have beside the simple ones, in lower case; `*` for any.
    pub headers: Box<[Box<str>]>,
    /// Fields of a response that scripts may read beside the simple ones.
    pub expose: Box<[Box<str>]>,
    /// How long a browser remembers the answer to a preflight; `None`: as it likes.
    pub max_age: Option<Duration>,
    /// Whether requests with cookies may be read. Never with any origin.
    pub credentials: bool,
}

/// Which origins are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Every one.
    Any,
    /// `https://shop.example`, `https://shop.example:8443`, `null`.
    Exact(Box<str>),
    /// `https://*.shop.example`: the scheme with its slashes, then what ends the rest, from the dot on.
    Below(Box<str>, Box<str>),
    /// What an expression matches as a whole.
    Regex(Replace),
}

/// What a request is to CORS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A preflight of a page that may, or may not.
    Preflight(bool),
    /// Any other.
    Plain,
}

const ORIGIN_OF: [HeaderName; 3] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
];

impl Cors {
    /// What a request is.
    pub fn kind<F: Fields>(&self, seen: &Seen<'_, '_, F>) -> Kind {
        match self.origin(seen) {
            Some(origin) if Self::is_preflight(seen.call) => Kind::Preflight(self.allows(origin)),
            _ => Kind::Plain,
        }
    }

    /// Whether a browser asks for leave to ask (Fetch, "CORS-preflight fetch"). It sends nothing that tells who asks: no rule could
    /// let it pass, and no limit is for it.
    pub fn is_preflight<F: Fields>(call: &Call<'_, F>) -> bool {
        call.method == b"OPTIONS"
            && call.fields.values("access-control-request-method").next().is_some()
            && one(call.fields.values("origin")).is_some()
    }

    /// The origin of the page that asks, if there is one.
    pub fn origin<'s, F: Fields>(&self, seen: &Seen<'s, '_, F>) -> Option<&'s [u8]> {
        one(seen.call.fields.values("origin"))
    }

    /// Tells of the fields of the answer to a preflight of a page that may.
    pub fn tell_preflight<F: Fields>(&self, seen: &Seen<'_, '_, F>, to: &mut impl Change) {
        let fields = seen.call.fields;
        let asked = |name| fields.values(name).next().unwrap_or_default().to_vec();
        self.tell_origin(one(fields.values("origin")), to);
        let any = |list: &[Box<str>]| list.iter().any(|word| &**word == "*");
        // `*` does not mean Authorization, and nothing at all where there are cookies: so what was asked for.
        let list = |list: &[Box<str>], wanted: Vec<u8>| {
            if any(list) { wanted } else { list.join(", ").into_bytes() }
        };
        to.set(
            &header::ACCESS_CONTROL_ALLOW_METHODS,
            list(&self.methods, asked("access-control-request-method")),
        );
        to.set(
            &header::ACCESS_CONTROL_ALLOW_HEADERS,
            list(&self.headers, asked("access-control-request-headers")),
        );
        if let Some(age) = self.max_age {
            to.set(&header::ACCESS_CONTROL_MAX_AGE, age.as_secs().to_string().into_bytes());
        }
        Self::tell_vary(to);
    }

    /// Tells that the answer to a preflight depends on what is asked.
    pub fn tell_vary(to: &mut impl Change) {
        to.add(
            &header::VARY,
            b"origin, access-control-request-method, access-control-request-headers".to_vec(),
        );
    }

    /// Tells of the fields of any other response.
    pub fn tell<F: Fields>(&self, seen: &Seen<'_, '_, F>, to: &mut impl Change) {
        let origin = one(seen.call.fields.values("origin"));
        ORIGIN_OF.iter().for_each(|name| to.remove(name));
        let allowed = origin.is_some_and(|origin| self.allows(origin));
        if allowed {
            self.tell_origin(origin, to);
            to.set(&header::ACCESS_CONTROL_EXPOSE_HEADERS, self.expose.join(", ").into_bytes());
        }
        if !self.is_for_all() {
            to.add(&header::VARY, b"origin".to_vec());
        }
    }

    fn tell_origin(&self, origin: Option<&[u8]>, to: &mut impl Change) {
        let told = if self.is_for_all() { b"*" } else { origin.unwrap_or_default() };
        to.set(&header::ACCESS_CONTROL_ALLOW_ORIGIN, told.to_vec());
        if self.credentials {
            to.set(&header::ACCESS_CONTROL_ALLOW_CREDENTIALS, b"true".to_vec());
        }
    }

    fn is_for_all(&self) -> bool {
        self.origins.contains(&Origin::Any)
    }

    /// Whether pages of this origin may.
    pub fn allows(&self, origin: &[u8]) -> bool {
        self.origins.iter().any(|allowed| match allowed {
            Origin::Any => true,
            Origin::Exact(exact) => exact.as_bytes() == origin,
            Origin::Below(scheme, end) => origin
                .strip_prefix(scheme.as_bytes())
                .and_then(|rest| rest.strip_suffix(end.as_bytes()))
                .is_some_and(|labels| {
                    // Labels only: no port, no user, no further scheme.
                    labels.split(|b| *b == b'.').all(|label| {
                        !label.is_empty()
                            && label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                    })
                }),
            Origin::Regex(regex) => regex.matches(origin),
        })
    }
}

/// The only value, if there is one.
fn one<'v>(mut values: impl Iterator<Item = &'v [u8]>) -> Option<&'v [u8]> {
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::text::tests::with;
    use super::*;

    #[derive(Default)]
    struct Told(BTreeMap<String, String>);

    impl Change for Told {
        fn remove(&mut self, name: &HeaderName) {
            self.0.insert(name.to_string(), "-".into());
        }
        fn set(&mut self, name: &HeaderName, value: Vec<u8>) {
            self.0.insert(name.to_string(), String::from_utf8(value).unwrap());
        }
        fn add(&mut self, name: &HeaderName, value: Vec<u8>) {
            self.0.insert(name.to_string(), format!("+{}", String::from_utf8(value).unwrap()));
        }
    }

    fn cors(origins: Vec<Origin>) -> Cors {
        Cors {
            origins: origins.into(),
            methods: ["GET".into(), "PUT".into()].into(),
            headers: ["x-token".into()].into(),
            expose: ["x-total".into()].into(),
            max_age: Some(Duration::from_secs(600)),
            credentials: false,
        }
    }

    #[test]
    fn origins_are_compared_as_browsers_write_them() {
        let below = || Origin::Below("https://".into(), ".shop.example".into());
        for (allowed, origin, may) in [
            (Origin::Any, "http://anything", true),
            (Origin::Exact("https://a.example".into()), "https://a.example", true),
            (Origin::Exact("https://a.example".into()), "https://a.example:8443", false),
            (Origin::Exact("https://a.example".into()), "http://a.example", false),
            (Origin::Exact("https://a.example".into()), "https://a.example.evil.test", false),
            (Origin::Exact("https://a.example".into()), "null", false),
            (below(), "https://www.shop.example", true),
            (below(), "https://a.b.shop.example", true),
            (below(), "https://shop.example", false),
            (below(), "https://.shop.example", false),
            (below(), "https://evil.test:1.shop.example", false),
            (below(), "https://evil.test/.shop.example", false),
            (below(), "https://evilshop.example", false),
            (Origin::Regex(Replace::parse("https://[a-z]+\\.test", "").unwrap()), "https://a.test", true),
            (
                Origin::Regex(Replace::parse("https://[a-z]+\\.test", "").unwrap()),
                "https://a.test.evil",
                false,
            ),
        ] {
            assert_eq!(cors(vec![allowed.clone()]).allows(origin.as_bytes()), may, "{allowed:?} {origin}");
        }
    }

    #[test]
    fn a_preflight_is_told_from_other_requests() {
        let cors = cors(vec![Origin::Exact("https://a.example".into())]);
        let origin = ("origin", "https://a.example");
        let method = ("access-control-request-method", "PUT");
        for (asked, fields, kind) in [
            ("OPTIONS", &[origin, method][..], Kind::Preflight(true)),
            ("OPTIONS", &[("origin", "https://b.example"), method], Kind::Preflight(false)),
            ("OPTIONS", &[origin], Kind::Plain),
            ("OPTIONS", &[method], Kind::Plain),
            ("OPTIONS", &[origin, origin, method], Kind::Plain),
            ("GET", &[origin, method], Kind::Plain),
        ] {
            assert_eq!(with(asked, "/", fields, |seen| cors.kind(seen)), kind, "{asked} {fields:?}");
        }
    }

    #[test]
    fn the_answer_to_a_preflight_says_what_may_be_asked() {
        let told = |cors: &Cors| {
            let fields = [
                ("origin", "https://a.example"),
                ("access-control-request-method", "PATCH"),
                ("access-control-request-headers", "authorization,x-b"),
            ];
            let mut told = Told::default();
            with("OPTIONS", "/", &fields, |seen| cors.tell_preflight(seen, &mut told));
            told.0
        };
        let mut named = cors(vec![Origin::Exact("https://a.example".into())]);
        named.credentials = true;
        let answer = told(&named);
        assert_eq!(answer["access-control-allow-origin"], "https://a.example");
        assert_eq!(answer["access-control-allow-credentials"], "true");
        assert_eq!(answer["access-control-allow-methods"], "GET, PUT");
        assert_eq!(answer["access-control-allow-headers"], "x-token");
        assert_eq!(answer["access-control-max-age"], "600");
        assert!(answer["vary"].contains("origin"));
        let mut any = cors(vec![Origin::Any]);
        (any.methods, any.headers, any.max_age) = (["*".into()].into(), ["*".into()].into(), None);
        let answer = told(&any);
        assert_eq!(answer["access-control-allow-origin"], "*");
        assert_eq!(answer["access-control-allow-methods"], "PATCH");
        assert_eq!(answer["access-control-allow-headers"], "authorization,x-b");
        assert!(
            !answer.contains_key("access-control-max-age")
                && !answer.contains_key("access-control-allow-credentials")
        );
    }

    #[test]
    fn a_response_is_for_pages_that_may_and_says_that_it_depends_on_them() {
        let told = |cors: &Cors, fields: &[(&'static str, &str)]| {
            let mut told = Told::default();
            with("GET", "/", fields, |seen| cors.tell(seen, &mut told));
            told.0
        };
        let named = cors(vec![Origin::Exact("https://a.example".into())]);
        let mine = told(&named, &[("origin", "https://a.example")]);
        assert_eq!((&*mine["access-control-allow-origin"], &*mine["vary"]), ("https://a.example", "+origin"));
        assert_eq!(mine["access-control-expose-headers"], "x-total");
        // What the service says is taken out, also for those that may not, and where nobody asks.
        for fields in [&[("origin", "https://b.example")][..], &[]] {
            let others = told(&named, fields);
            assert_eq!((&*others["access-control-allow-origin"], &*others["vary"]), ("-", "+origin"));
        }
        let any = told(&cors(vec![Origin::Any]), &[("origin", "https://b.example")]);
        assert_eq!(any["access-control-allow-origin"], "*");
        assert!(!any.contains_key("vary"));
    }
}
