//! Templates of paths: `/users/{id}/orders`, `/files/{path=**}`. A variable stands for one whole segment that is not
//! empty; `{name=**}`, at the end only, for all that is left, slashes and nothing at all included.
//!
//! Compared octet by octet, as all paths are. Refuses parts of segments (`{name}.png`): those are for expressions.

use std::fmt;
use std::hash::{Hash, Hasher};

/// A template, parsed. Two are the same when they mean the same paths: names of variables do not count.
#[derive(Clone)]
pub struct Template {
    text: Box<str>,
    pub(super) segments: Box<[Segment]>,
}

/// What stands between two slashes.
#[derive(Debug, Clone)]
pub(super) enum Segment {
    /// Itself.
    Literal(Box<str>),
    /// One segment, by this name.
    One(Box<str>),
    /// The rest, by this name.
    Rest(Box<str>),
}

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadTemplate {
    /// In words.
    pub what: String,
    /// What to write instead.
    pub help: String,
}

impl Template {
    /// The most segments.
    pub const SEGMENTS_MAX: usize = 64;

    /// Reads a template.
    ///
    /// # Errors
    /// When braces do not stand around whole segments, a variable has no name or one twice, the rest is not at the end,
    /// or there is no variable at all.
    pub fn parse(text: &str) -> Result<Self, BadTemplate> {
        let bad = |what: String, help: &str| Err(BadTemplate { what, help: help.into() });
        let Some(rest) = text.strip_prefix('/') else {
            return bad("a template begins with `/`".into(), "write one such as \"/users/{id}\"");
        };
        let mut segments: Vec<Segment> = Vec::new();
        let mut parts = rest.split('/').peekable();
        while let Some(part) = parts.next() {
            if segments.len() == Self::SEGMENTS_MAX {
                return bad(format!("more than {} segments", Self::SEGMENTS_MAX), "write a path_prefix");
            }
            let Some(inside) = part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) else {
                if part.contains(['{', '}']) {
                    return bad(
                        format!("`{part}` is a variable and more"),
                        "a variable is a whole segment, {name}; for parts of one write a path_regex",
                    );
                }
                if part.contains('*') {
                    return bad(
                        format!("`{part}` is no variable"),
                        "write {name} for one segment, {name=**} at the end for all that is left",
                    );
                }
                segments.push(Segment::Literal(part.into()));
                continue;
            };
            let (name, rest) = match inside.split_once('=') {
                None => (inside, false),
                Some((name, "**")) => (name, true),
                Some((name, "*")) => (name, false),
                Some((_, kind)) => {
                    return bad(
                        format!("`{kind}` is no kind of variable"),
                        "write {name} for one segment, {name=**} at the end for all that is left",
                    );
                }
            };
            if !Self::is_name(name) {
                return bad(
                    format!("`{name}` is no name of a variable"),
                    "use letters, digits and `_`, with a letter first",
                );
            }
            if segments.iter().any(|segment| segment.name() == Some(name)) {
                return bad(format!("two variables are called `{name}`"), "give each a name of its own");
            }
            if rest && parts.peek().is_some() {
                return bad(
                    format!("`{{{name}=**}}` does not stand at the end"),
                    "put it at the end, or write a path_regex",
                );
            }
            segments.push(if rest { Segment::Rest(name.into()) } else { Segment::One(name.into()) });
        }
        if segments.iter().all(|segment| segment.name().is_none()) {
            return bad(
                "there is no variable in it".into(),
                "write it as `path`, or a variable such as {id}",
            );
        }
        Ok(Self { text: text.into(), segments: segments.into() })
    }

    /// Whether a variable may be called so.
    pub(super) fn is_name(name: &str) -> bool {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        name.bytes().all(legal) && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What stands between its slashes and is no variable.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(text) => Some(&**text),
            Segment::One(_) | Segment::Rest(_) => None,
        })
    }

    /// The names of its variables, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(Segment::name)
    }

    /// Whether a path is meant.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.walk(path, |_, _| {})
    }

    /// What a variable stands for in a path that is meant.
    pub fn captured<'p>(&self, path: &'p [u8], name: &str) -> Option<&'p [u8]> {
        let mut captured = None;
        let meant = self.walk(path, |variable, value| {
            if variable == name {
                captured = Some(value);
            }
        });
        captured.filter(|_| meant)
    }

    /// What its variables stand for in a path that is meant, in their order.
    pub(super) fn capture<'p>(&self, path: &'p [u8]) -> Option<Vec<&'p [u8]>> {
        let mut captured = Vec::with_capacity(self.segments.len());
        self.walk(path, |_, value| captured.push(value)).then_some(captured)
    }

    fn walk<'p>(&self, path: &'p [u8], mut with: impl FnMut(&str, &'p [u8])) -> bool {
        let mut rest = path.strip_prefix(b"/");
        for segment in &self.segments {
            let Some(left) = rest else { return false };
            let (part, behind) = split(left);
            match segment {
                Segment::Literal(text) if text.as_bytes() == part => {}
                Segment::One(name) if !part.is_empty() => with(name, part),
                Segment::Rest(name) => {
                    with(name, left);
                    return true;
                }
                Segment::Literal(_) | Segment::One(_) => return false,
            }
            rest = behind;
        }
        rest.is_none()
    }

    /// How exact each segment is: what is compared, from the left, to tell which of two templates that mean a path is the
    /// more exact one.
    pub(super) fn exactness(&self) -> impl Iterator<Item = u8> {
        self.segments.iter().map(|segment| match segment {
            Segment::Literal(_) => 2,
            Segment::One(_) => 1,
            Segment::Rest(_) => 0,
        })
    }
}

/// Up to the next slash, and what is behind it, if there is one.
pub(super) fn split(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'/', path) {
        Some(slash) => (&path[..slash], Some(&path[slash + 1..])),
        None => (path, None),
    }
}

impl Segment {
    fn name(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::One(name) | Self::Rest(name) => Some(name),
        }
    }

    /// What counts of it.
    fn meaning(&self) -> (u8, &str) {
        match self {
            Self::Literal(text) => (2, text),
            Self::One(_) => (1, ""),
            Self::Rest(_) => (0, ""),
        }
    }
}

impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        self.segments.iter().map(Segment::meaning).eq(other.segments.iter().map(Segment::meaning))
    }
}

impl Eq for Template {}

impl Hash for Template {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.segments.iter().for_each(|segment| segment.meaning().hash(state));
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({:?})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        Template::parse(text).unwrap()
    }

    #[test]
    fn a_variable_is_one_whole_segment_and_the_rest_is_anything() {
        for (text, path, meant) in [
            ("/users/{id}/orders", "/users/7/orders", true),
            ("/users/{id}/orders", "/users//orders", false),
            ("/users/{id}/orders", "/users/7/8/orders", false),
            ("/users/{id}/orders", "/users/7/orders/", false),
            ("/users/{id}/orders", "/users/7", false),
            ("/users/{id}", "/users/", false),
            ("/users/{id}/", "/users/7/", true),
            ("/files/{path=**}", "/files/", true),
            ("/files/{path=**}", "/files/a//b/", true),
            ("/files/{path=**}", "/files", false),
            ("/{all=**}", "/", true),
            ("/{all=**}", "*", false),
            ("/{all=**}", "", false),
            ("/{one=*}", "/a", true),
        ] {
            assert_eq!(template(text).matches(path.as_bytes()), meant, "{text} {path}");
        }
    }

    #[test]
    fn variables_are_captured_where_the_template_matches() {
        let two = template("/u/{id}/f/{path=**}");
        assert_eq!(two.captured(b"/u/7/f/a/b", "id"), Some(&b"7"[..]));
        assert_eq!(two.captured(b"/u/7/f/a/b", "path"), Some(&b"a/b"[..]));
        assert_eq!(two.captured(b"/u/7/f/", "path"), Some(&b""[..]));
        assert_eq!(two.captured(b"/u/7/g/a", "id"), None);
        assert_eq!(two.captured(b"/u/7/f/a", "other"), None);
        assert_eq!(two.names().collect::<Vec<_>>(), ["id", "path"]);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for text in [
            "users/{id}",
            "/users",
            "/users/{id}.png",
            "/users/{}",
            "/users/{i-d}",
            "/users/{7}",
            "/{a}/{a}",
            "/{a=**}/b",
            "/{a=***}",
            "/{a",
            "/a}",
            "/*/{a}",
            "/**",
        ] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_do_not_tell_two_templates_apart() {
        assert_eq!(template("/a/{x}"), template("/a/{y}"));
        assert_ne!(template("/a/{x}"), template("/a/{x=**}"));
        assert_ne!(template("/a/{x}"), template("/b/{x}"));
        assert_ne!(template("/a/{x}"), template("/a/{x}/"));
    }
}
