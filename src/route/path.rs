//! Another path for a request: as a whole, of its front, by an expression or by a template. Pure.
//!
//! What is written begins with `/` and has octets of the configuration and of the path that came, which both may stand in a
//! target; so it may, too.

use std::sync::Arc;

use regex_automata::Input;
use regex_automata::meta;
use regex_automata::nfa::thompson::WhichCaptures;
use regex_automata::util::captures::Captures;
use regex_automata::util::syntax;

use super::changes::TooLong;
use super::filled::Filled;
use super::pieces::{Piece, fill};

/// How a path is made from one that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewPath {
    /// This one, whatever came.
    Whole(Box<str>),
    /// `to` in place of the prefix `from`, by whole segments; neither ends in a slash.
    Prefix {
        /// What the route was found by; empty for `/`.
        from: Box<str>,
        /// In its place; empty for `/`.
        to: Box<str>,
    },
    /// What an expression makes of it.
    Regex(Replace),
    /// What the variables of the route's template stand for, in another order or place.
    Filled(Filled),
}

/// An expression that matches a whole path, and what comes in its place.
#[derive(Debug, Clone)]
pub struct Replace {
    text: Box<str>,
    regex: Arc<meta::Regex>,
    pieces: Arc<[Piece<usize>]>,
    to: Box<str>,
}

/// What is wrong with an expression, or with what comes in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadReplace {
    /// It is none, or too large.
    Regex(String),
    /// A group that it does not have.
    Group(usize, usize),
    /// A dollar sign that begins no group.
    Dollar,
}

impl NewPath {
    /// Writes the new path.
    ///
    /// # Errors
    /// When it would be longer than any target may be.
    pub fn write(&self, path: &[u8], out: &mut Vec<u8>) -> Result<(), TooLong> {
        let begin = out.len();
        match self {
            Self::Whole(whole) => out.extend_from_slice(whole.as_bytes()),
            Self::Prefix { from, to } => {
                let rest = path.strip_prefix(from.as_bytes()).unwrap_or(path);
                out.extend_from_slice(to.as_bytes());
                out.extend_from_slice(rest);
            }
            Self::Regex(replace) => replace.write(path, out)?,
            Self::Filled(filled) => filled.write(path, out)?,
        }
        if out.get(begin) != Some(&b'/') {
            out.insert(begin, b'/');
        }
        Ok(())
    }
}

impl Replace {
    /// The longest expression.
    pub const BYTES_MAX: usize = 4096;
    /// The largest automaton.
    const SIZE_MAX: usize = 1024 * 1024;

    /// Compiles an expression and `to`, in which `$1` is what its first group matched and `$$` a dollar sign.
    ///
    /// # Errors
    /// When the expression is none, too long or too large, or `to` names a group that it does not have.
    pub fn parse(text: &str, to: &str) -> Result<Self, BadReplace> {
        if text.len() > Self::BYTES_MAX {
            return Err(BadReplace::Regex(format!("it has more than {} bytes", Self::BYTES_MAX)));
        }
        let config = meta::Config::new()
            .which_captures(WhichCaptures::All)
            .nfa_size_limit(Some(Self::SIZE_MAX))
            .onepass_size_limit(Some(Self::SIZE_MAX))
            // One octet of a path is one character: no search depends on what a caller takes for UTF-8.
            .utf8_empty(false)
            .hybrid(false)
            .dfa(false);
        let syntax = syntax::Config::new().utf8(false).unicode(false).nest_limit(100);
        let regex = meta::Builder::new()
            .configure(config)
            .syntax(syntax)
            // The whole path.
            .build(&format!("^(?:{text})$"))
            .map_err(|error| BadReplace::Regex(words(&error)))?;
        let groups = regex.group_info().group_len(regex_automata::PatternID::ZERO) - 1;
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = to;
        while let Some((before, behind)) = rest.split_once('$') {
            plain.push_str(before);
            let mut chars = behind.chars();
            match chars.next() {
                Some('$') => plain.push('$'),
                Some(digit @ '0'..='9') => {
                    let group = digit as usize - '0' as usize;
                    if group > groups {
                        return Err(BadReplace::Group(group, groups));
                    }
                    pieces.push(Piece::Plain(std::mem::take(&mut plain).into()));
                    pieces.push(Piece::Of(group));
                }
                _ => return Err(BadReplace::Dollar),
            }
            rest = chars.as_str();
        }
        plain.push_str(rest);
        pieces.push(Piece::Plain(plain.into()));
        Ok(Self { text: text.into(), regex: Arc::new(regex), pieces: pieces.into(), to: to.into() })
    }

    /// The expression, as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What comes in its place, as it was written.
    pub fn to(&self) -> &str {
        &self.to
    }

    /// Whether it matches the whole of a text.
    pub fn matches(&self, text: &[u8]) -> bool {
        let mut cache = self.regex.create_cache();
        self.regex.search_half_with(&mut cache, &Input::new(text).earliest(true)).is_some()
    }

    /// A path that does not match stays.
    fn write(&self, path: &[u8], out: &mut Vec<u8>) -> Result<(), TooLong> {
        // Made anew for each search: a kept one would have to be shared with a lock or counted against a ceiling.
        let mut cache = self.regex.create_cache();
        let mut captures = Captures::all(self.regex.group_info().clone());
        self.regex.search_captures_with(&mut cache, &Input::new(path), &mut captures);
        if !captures.is_match() {
            out.extend_from_slice(path);
            return Ok(());
        }
        let group = |group: usize| captures.get_group(group).map_or(&[][..], |span| &path[span.range()]);
        fill(&self.pieces, group, out)
    }
}

/// The last line of what is said of an expression: the others draw it.
fn words(error: &meta::BuildError) -> String {
    match error.syntax_error() {
        Some(syntax) => {
            let text = syntax.to_string();
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            last.trim().trim_start_matches("error: ").to_owned()
        }
        None => "it is too large".into(),
    }
}

impl PartialEq for Replace {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, &self.to) == (&other.text, &other.to)
    }
}

impl Eq for Replace {}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(path: &NewPath, from: &str) -> String {
        let mut out = Vec::new();
        path.write(from.as_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_prefix_is_replaced_by_whole_segments_and_what_comes_out_is_a_path() {
        let prefix = |from: &str, to: &str| NewPath::Prefix { from: from.into(), to: to.into() };
        for (from, to, path, want) in [
            ("/api", "/v2", "/api/x", "/v2/x"),
            ("/api", "/v2", "/api", "/v2"),
            ("/api", "/v2", "/api/", "/v2/"),
            ("/api", "", "/api/x", "/x"),
            ("/api", "", "/api", "/"),
            ("", "/v2", "/x", "/v2/x"),
            ("", "/v2", "/", "/v2/"),
            ("", "", "/x", "/x"),
        ] {
            assert_eq!(made(&prefix(from, to), path), want, "{from} to {to}: {path}");
        }
        assert_eq!(made(&NewPath::Whole("/new".into()), "/old/x"), "/new");
    }

    #[test]
    fn an_expression_matches_the_whole_path_and_its_groups_go_on() {
        let replace = |regex: &str, to: &str| NewPath::Regex(Replace::parse(regex, to).unwrap());
        for (regex, to, path, want) in [
            ("/user/([0-9]+)/(.*)", "/u/$2/$1", "/user/7/a/b", "/u/a/b/7"),
            ("/user/([0-9]+)", "/u/$1", "/user/7/x", "/user/7/x"),
            ("/(a|b)?.*", "$1/x$$1", "/c", "/x$1"),
            ("(?i)/OLD/(.*)", "/$1", "/old/x", "/x"),
            ("/(.*)", "$1", "/x", "/x"),
            (".*", "$0", "/%FF\u{e9}", "/%FF\u{e9}"),
        ] {
            assert_eq!(made(&replace(regex, to), path), want, "{regex} to {to}: {path}");
        }
        let doubled = NewPath::Regex(Replace::parse("(.*)", "$1$1$1").unwrap());
        let long = vec![b'/'; 12 * 1024];
        assert_eq!(doubled.write(&long, &mut Vec::new()), Err(TooLong));
    }

    #[test]
    fn what_is_wrong_with_an_expression_is_told() {
        assert!(
            matches!(Replace::parse("/(a", ""), Err(BadReplace::Regex(why)) if why.contains("unclosed group"))
        );
        assert_eq!(Replace::parse("/(a)", "/$2"), Err(BadReplace::Group(2, 1)));
        assert_eq!(Replace::parse("/(a)", "/$x"), Err(BadReplace::Dollar));
        assert!(matches!(Replace::parse("(.{1000}){1000}", "/"), Err(BadReplace::Regex(_))));
        assert!(matches!(Replace::parse(&"a".repeat(5000), "/"), Err(BadReplace::Regex(_))));
    }
}
