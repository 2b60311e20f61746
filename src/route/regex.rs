//! Regular expressions of routes: a text is meant when the *whole* of it matches, octet by octet, ASCII classes only.
//!
//! Each is compiled into a complete automaton when the configuration is read: a search is one table look-up per octet,
//! whatever the expression and whatever the caller sends; nothing is allocated, cached or locked. An automaton that would
//! be larger than [`Regex::AUTOMATON_BYTES_MAX`] is an error of the configuration. Several expressions are searched at
//! once by a common automaton ([`Set`]).
//!
//! Refuses look-around and back-references, which no automaton can do in linear time.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
use regex_syntax::hir::{Hir, HirKind};

/// A regular expression, compiled.
#[derive(Clone)]
pub struct Regex(Arc<Compiled>);

struct Compiled {
    text: Box<str>,
    /// What every text that matches begins with.
    prefix: Box<[u8]>,
    automaton: Automaton,
}

/// What is wrong with an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadRegex {
    /// It matches the empty text only.
    Empty,
    /// It has more than [`Regex::BYTES_MAX`] octets.
    TooLong,
    /// What the grammar says, and from which octet on.
    Syntax {
        /// In words.
        what: String,
        /// Octets before the place.
        at: usize,
    },
    /// Its automaton would be larger than [`Regex::AUTOMATON_BYTES_MAX`].
    TooLarge,
}

impl Regex {
    /// The longest expression: far more than a person writes.
    pub const BYTES_MAX: usize = 4096;
    /// The largest automaton. Usual ones have a few KiB; what exceeds this counts far (`.*a.{20}`).
    pub const AUTOMATON_BYTES_MAX: usize = 1024 * 1024;

    /// Compiles an expression.
    ///
    /// # Errors
    /// When it is none, or its automaton too large.
    pub fn parse(text: &str) -> Result<Self, BadRegex> {
        match text.len() {
            0 => return Err(BadRegex::Empty),
            1..=Self::BYTES_MAX => {}
            _ => return Err(BadRegex::TooLong),
        }
        let hir = parsed(text)?;
        let automaton = Automaton::new(&[&hir], Self::AUTOMATON_BYTES_MAX).ok_or(BadRegex::TooLarge)?;
        let prefix = literal_prefix(&hir);
        Ok(Self(Arc::new(Compiled { text: text.into(), prefix, automaton })))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &[u8]) -> bool {
        let mut found = false;
        self.0.automaton.each(text, |_| found = true);
        found
    }

    /// Whether a text that begins with this octet may match.
    pub fn may_begin_with(&self, octet: u8) -> bool {
        let Automaton { dfa, start } = &self.0.automaton;
        !dfa.is_dead_state(dfa.next_state(*start, octet))
    }

    /// What every text that matches begins with.
    pub fn literal_prefix(&self) -> &[u8] {
        &self.0.prefix
    }

    /// What `|` parts the whole expression into; empty where it does not. What stands in front of them all holds for the
    /// first alone.
    pub fn branches(&self) -> Vec<&str> {
        use regex_syntax::ast::{Ast, parse::Parser};
        let Ok(Ast::Alternation(ref parted)) = Parser::new().parse(&self.0.text) else { return Vec::new() };
        let text = |part: &Ast| self.0.text.get(part.span().start.offset..part.span().end.offset);
        parted.asts.iter().filter_map(text).collect()
    }

    /// Octets that its automaton takes.
    #[cfg(test)]
    fn automaton_bytes(&self) -> usize {
        self.0.automaton.dfa.memory_usage()
    }

    /// Whether every text that begins with the literal prefix matches: `/a/.*`, but not `/a/[0-9]+`.
    pub fn is_prefix_only(&self) -> bool {
        let Ok(hir) = parsed(&self.0.text) else { return false };
        let rest = match hir.kind() {
            HirKind::Concat(parts) => parts.iter().skip_while(|part| is_literal(part)).collect::<Vec<_>>(),
            _ => vec![&hir],
        };
        matches!(rest[..], [part] if is_anything(part))
    }
}

/// `.*`
fn is_anything(hir: &Hir) -> bool {
    matches!(hir.kind(), HirKind::Repetition(repetition)
        if repetition.min == 0 && repetition.max.is_none()
            && matches!(repetition.sub.kind(), HirKind::Class(class) if covers_text(class)))
}

/// Whether a class has every octet but perhaps the line feed, which no head contains.
fn covers_text(class: &regex_syntax::hir::Class) -> bool {
    let regex_syntax::hir::Class::Bytes(bytes) = class else { return false };
    (0..=255_u8)
        .filter(|b| *b != b'\n')
        .all(|b| bytes.ranges().iter().any(|range| (range.start()..=range.end()).contains(&b)))
}

fn is_literal(hir: &Hir) -> bool {
    matches!(hir.kind(), HirKind::Literal(_) | HirKind::Look(regex_syntax::hir::Look::Start))
}

fn literal_prefix(hir: &Hir) -> Box<[u8]> {
    let parts = match hir.kind() {
        HirKind::Concat(parts) => &parts[..],
        _ => std::slice::from_ref(hir),
    };
    let mut prefix = Vec::new();
    for part in parts.iter().take_while(|part| is_literal(part)) {
        if let HirKind::Literal(literal) = part.kind() {
            prefix.extend_from_slice(&literal.0);
        }
    }
    prefix.into()
}

fn parsed(text: &str) -> Result<Hir, BadRegex> {
    let parser =
        regex_syntax::ParserBuilder::new().unicode(false).utf8(false).nest_limit(64).build().parse(text);
    parser.map_err(|error| {
        let (what, at) = match &error {
            regex_syntax::Error::Parse(error) => (error.kind().to_string(), error.span().start.offset),
            regex_syntax::Error::Translate(error) => (error.kind().to_string(), error.span().start.offset),
            _ => (error.to_string(), 0),
        };
        BadRegex::Syntax { what, at }
    })
}

/// Several expressions, searched together.
pub(super) struct Set {
    /// Each with the number of its first expression.
    automatons: Box<[(Found, usize)]>,
}

/// An automaton for one expression, which has one already, or for several.
enum Found {
    One(Regex),
    Several(Box<Automaton>),
}

impl Set {
    /// The largest common automaton: what exceeds it is parted in two.
    const AUTOMATON_BYTES_MAX: usize = 4 * 1024 * 1024;

    pub(super) fn new(regexes: &[Regex]) -> Self {
        let mut automatons = Vec::new();
        Self::add(regexes, 0, &mut automatons);
        Self { automatons: automatons.into() }
    }

    fn add(regexes: &[Regex], first: usize, automatons: &mut Vec<(Found, usize)>) {
        match regexes {
            [] => {}
            [one] => automatons.push((Found::One(one.clone()), first)),
            _ => {
                let hirs: Vec<Hir> = regexes.iter().filter_map(|regex| parsed(&regex.0.text).ok()).collect();
                let hirs: Vec<&Hir> = hirs.iter().collect();
                match Automaton::new(&hirs, Self::AUTOMATON_BYTES_MAX) {
                    Some(automaton) if hirs.len() == regexes.len() => {
                        automatons.push((Found::Several(Box::new(automaton)), first));
                    }
                    _ => {
                        let (left, right) = regexes.split_at(regexes.len() / 2);
                        Self::add(left, first, automatons);
                        Self::add(right, first + left.len(), automatons);
                    }
                }
            }
        }
    }

    /// Tells the number of each expression that the whole text matches.
    pub(super) fn each(&self, text: &[u8], mut with: impl FnMut(usize)) {
        for (found, first) in &self.automatons {
            match found {
                Found::One(regex) => regex.0.automaton.each(text, |n| with(first + n)),
                Found::Several(automaton) => automaton.each(text, |n| with(first + n)),
            }
        }
    }
}

/// A complete automaton, anchored at the begin.
struct Automaton {
    dfa: dense::DFA<Vec<u32>>,
    start: StateID,
}

impl Automaton {
    fn new(hirs: &[&Hir], bytes_max: usize) -> Option<Self> {
        let nfa = thompson::Compiler::new()
            .configure(
                thompson::Config::new()
                    .utf8(false)
                    .which_captures(thompson::WhichCaptures::None)
                    .nfa_size_limit(Some(bytes_max)),
            )
            .build_many_from_hir(hirs)
            .ok()?;
        // All ways are followed to the end of the text, so that a match there is seen whatever was met before.
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            .match_kind(MatchKind::All)
            .accelerate(false)
            .dfa_size_limit(Some(bytes_max))
            .determinize_size_limit(Some(4 * bytes_max));
        let dfa = dense::Builder::new().configure(config).build_from_nfa(&nfa).ok()?;
        let start = dfa.start_state(&start::Config::new().anchored(Anchored::Yes)).ok()?;
        Some(Self { dfa, start })
    }

    /// Tells the number of each expression that ends where the text does.
    fn each(&self, text: &[u8], mut with: impl FnMut(usize)) {
        let mut state = self.start;
        for octet in text {
            state = self.dfa.next_state(state, *octet);
            if self.dfa.is_dead_state(state) {
                return;
            }
        }
        let state = self.dfa.next_eoi_state(state);
        if self.dfa.is_match_state(state) {
            (0..self.dfa.match_len(state)).for_each(|n| with(self.dfa.match_pattern(state, n).as_usize()));
        }
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for Regex {}

impl Hash for Regex {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.text.hash(state);
    }
}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Regex({:?})", self.0.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regex(text: &str) -> Regex {
        Regex::parse(text).unwrap()
    }

    #[test]
    fn the_whole_text_must_match() {
        for (pattern, text, matches) in [
            ("a+", "aaa", true),
            ("a+", "aab", false),
            ("a+", "baa", false),
            ("a|ab", "ab", true),
            ("a*?", "aaa", true),
            ("(?:a|b)*", "", true),
            ("^a$", "a", true),
            ("^a$", "a\n", false),
            ("(?i)gold", "GoLd", true),
            (r"/v\d+/.*", "/v12/", true),
            (r"/v\d+/.*", "/v/", false),
            (r"\bab\b", "ab", true),
            ("ä", "ä", true),
            ("..", "ä", true),
            (".", "\u{ff}", false),
        ] {
            assert_eq!(regex(pattern).matches(text.as_bytes()), matches, "{pattern} {text:?}");
        }
    }

    #[test]
    fn a_set_finds_all_that_match_wherever_they_are_parted() {
        let patterns: Vec<Regex> =
            ["a.*", ".*b", "ab", "x", "(?:ab)+", "a.*"].iter().map(|p| regex(p)).collect();
        let parted = {
            let mut automatons = Vec::new();
            let (left, right) = patterns.split_at(2);
            Set::add(left, 0, &mut automatons);
            Set::add(right, 2, &mut automatons);
            Set { automatons: automatons.into() }
        };
        for set in [Set::new(&patterns), parted] {
            for text in ["ab", "a", "xb", "abab", "x", "", "ba"] {
                let mut found = Vec::new();
                set.each(text.as_bytes(), |n| found.push(n));
                found.sort_unstable();
                let each: Vec<usize> =
                    (0..patterns.len()).filter(|n| patterns[*n].matches(text.as_bytes())).collect();
                assert_eq!(found, each, "{text}");
            }
        }
    }

    #[test]
    fn what_counts_too_far_is_refused_and_what_people_write_is_small() {
        assert_eq!(Regex::parse(".*a.{20}").unwrap_err(), BadRegex::TooLarge);
        assert_eq!(Regex::parse("(?:.{300}){300}").unwrap_err(), BadRegex::TooLarge);
        for usual in [
            "/service-17/v[0-9]+/.*",
            "/users/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            r".*\.(?:png|jpe?g|gif|css|js)",
            "(?i)mozilla.*(?:iphone|android).*",
        ] {
            let bytes = regex(usual).automaton_bytes();
            assert!(bytes < 32 * 1024, "{usual}: {bytes}");
        }
    }

    #[test]
    fn branches_are_those_of_the_whole_expression() {
        for (pattern, branches) in [
            ("/x/a|b", &["/x/a", "b"][..]),
            ("/a|/b|", &["/a", "/b", ""]),
            ("/x/(?:a|b)", &[]),
            (r"/a\|b", &[]),
            ("/a[|]b", &[]),
        ] {
            assert_eq!(regex(pattern).branches(), branches, "{pattern}");
        }
    }

    #[test]
    fn what_is_no_expression_is_told_with_its_place() {
        let Err(BadRegex::Syntax { what, at }) = Regex::parse("ab(c") else { panic!() };
        assert_eq!((&*what, at), ("unclosed group", 2));
        assert!(matches!(Regex::parse("(?=a)b"), Err(BadRegex::Syntax { .. })));
        assert!(matches!(Regex::parse(r"(a)\1"), Err(BadRegex::Syntax { .. })));
        assert!(matches!(Regex::parse(r"\pL"), Err(BadRegex::Syntax { .. })));
        assert_eq!(Regex::parse(""), Err(BadRegex::Empty));
    }

    #[test]
    fn the_literal_prefix_is_what_every_match_begins_with() {
        for (pattern, prefix, only) in [
            ("/a/b.*", "/a/b", true),
            ("^/a/[0-9]+", "/a/", false),
            ("/a|/b", "", false),
            ("(?i)/a", "/", false),
            (".*", "", true),
            ("/ab*", "/a", false),
            ("/a/.*x", "/a/", false),
            ("/a/.+", "/a/", false),
        ] {
            assert_eq!(regex(pattern).literal_prefix(), prefix.as_bytes(), "{pattern}");
            assert_eq!(regex(pattern).is_prefix_only(), only, "{pattern}");
        }
    }
}
