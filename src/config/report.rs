//! What is wrong with a configuration, for eyes: every error and warning with file, line, caret and what to write
//! instead. Collected by `decode` and `compile`, rendered through miette for `check`, for a failed start and for a refused
//! reload. Refuses to grow without bound: past `PROBLEMS_MAX` of a severity problems are counted, no longer described.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents,
    Severity, SourceCode, SourceSpan, SpanContents,
};

/// Problems of one severity that are described; the rest are counted. A hundred screens are more than anybody reads.
pub(super) const PROBLEMS_MAX: usize = 200;

/// Everything found wrong or doubtful in one or several files, in their order.
pub struct Report {
    problems: Vec<Problem>,
    sources: Arc<[Source]>,
    errors: usize,
    warnings: usize,
}

/// How a report is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// With terminal colours.
    pub colour: bool,
    /// With box-drawing characters instead of ASCII.
    pub unicode: bool,
}

impl Report {
    /// Errors found, also those too many to be described.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// Warnings found, also those too many to be described.
    pub fn warnings(&self) -> usize {
        self.warnings
    }

    /// Neither errors nor warnings.
    pub fn is_empty(&self) -> bool {
        self.errors + self.warnings == 0
    }

    /// All problems with excerpts of the files, for a terminal or a log.
    pub fn render(&self, look: Look) -> String {
        let theme = match (look.colour, look.unicode) {
            (true, true) => GraphicalTheme::unicode(),
            (true, false) => GraphicalTheme::ascii(),
            (false, true) => GraphicalTheme::unicode_nocolor(),
            (false, false) => GraphicalTheme::none(),
        };
        let renderer =
            GraphicalReportHandler::new_themed(theme).with_width(100).with_context_lines(0).with_links(false);
        let renderer = if look.colour { renderer } else { renderer.without_syntax_highlighting() };
        let mut out = String::new();
        for problem in &self.problems {
            let shown = Shown::new(problem, &self.sources);
            if renderer.render_report(&mut out, &shown).is_err() {
                // An excerpt that cannot be drawn: the words alone still say what and where.
                let _ = writeln!(out, "  {}", self.line(problem));
            }
            out.push('\n');
        }
        for (count, word) in [(self.errors, "error"), (self.warnings, "warning")] {
            if count > PROBLEMS_MAX {
                let _ =
                    writeln!(out, "  ... and {}\n", plural(count - PROBLEMS_MAX, &format!("more {word}")));
            }
        }
        out
    }

    /// One line per problem, `file:line:column: error: what; help`, for logs and machines.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.problems.iter().map(|problem| self.line(problem))
    }

    fn line(&self, problem: &Problem) -> String {
        let mut line = String::new();
        if let Some(place) = problem.place
            && let Some(source) = self.sources.get(usize::from(place.file))
        {
            let (row, column) = source.position(place.start as usize);
            let _ = write!(line, "{}:{row}:{column}: ", source.name);
        }
        let severity = if problem.severity == Severity::Warning { "warning" } else { "error" };
        let _ = write!(line, "{severity}: {}", problem.message);
        if let Some(help) = &problem.help {
            let _ = write!(line, "; {help}");
        }
        line
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Look::default()))
    }
}

/// As `Display`: a derived one would print whole files.
impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{self}")
    }
}

impl std::error::Error for Report {}

/// `1 error`, `2 errors`.
pub(super) fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

/// A stretch of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Index into the list of sources.
    pub(super) file: u16,
    /// First byte.
    pub(super) start: u32,
    /// One past the last byte.
    pub(super) end: u32,
}

/// One thing wrong or doubtful.
#[derive(Debug)]
pub(super) struct Problem {
    severity: Severity,
    message: String,
    /// Where, and the words beside the caret.
    place: Option<Place>,
    label: Option<String>,
    /// Another place that belongs to it, with its words.
    other: Option<(Place, &'static str)>,
    help: Option<String>,
}

impl Problem {
    /// A problem at a place.
    pub(super) fn at(place: Place, message: impl Into<String>) -> Self {
        Self { place: Some(place), ..Self::nowhere(message) }
    }

    /// A problem of no place in particular.
    pub(super) fn nowhere(message: impl Into<String>) -> Self {
        let message = plain_words(message.into());
        Self { severity: Severity::Error, message, place: None, label: None, other: None, help: None }
    }

    /// With words beside the caret.
    pub(super) fn label(self, label: impl Into<String>) -> Self {
        Self { label: Some(plain_words(label.into())), ..self }
    }

    /// With what to do.
    pub(super) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(plain_words(help.into())), ..self }
    }

    /// With another place that belongs to it.
    pub(super) fn other(self, place: Place, label: &'static str) -> Self {
        Self { other: Some((place, label)), ..self }
    }
}

/// Where problems are collected.
#[derive(Debug, Default)]
pub(super) struct Problems {
    described: Vec<Problem>,
    errors: usize,
    warnings: usize,
}

impl Problems {
    /// Adds an error. It is put into words only while there is room, because a suggestion may cost a search.
    pub(super) fn error(&mut self, describe: impl FnOnce() -> Problem) {
        if self.errors < PROBLEMS_MAX {
            self.described.push(describe());
        }
        self.errors += 1;
    }

    /// Adds a warning.
    pub(super) fn warn(&mut self, describe: impl FnOnce() -> Problem) {
        if self.warnings < PROBLEMS_MAX {
            self.described.push(Problem { severity: Severity::Warning, ..describe() });
        }
        self.warnings += 1;
    }

    /// Errors so far.
    pub(super) fn errors(&self) -> usize {
        self.errors
    }

    /// Errors of no place: files that could not be read.
    pub(super) fn errors_outside_files(&self) -> usize {
        self.described.iter().filter(|p| p.severity == Severity::Error && p.place.is_none()).count()
    }

    /// The report, in the order of files and lines; what has no place comes first.
    pub(super) fn report(mut self, sources: Vec<Source>) -> Report {
        self.described.sort_by_key(|p| (p.severity != Severity::Error, p.place));
        let sources = if self.described.is_empty() { Vec::new() } else { sources };
        Report {
            problems: self.described,
            sources: sources.into(),
            errors: self.errors,
            warnings: self.warnings,
        }
    }
}

/// The text of one file and where its lines start.
pub(super) struct Source {
    /// The name under which it is shown.
    pub(super) name: Arc<str>,
    text: String,
    /// The text with control characters made harmless byte for byte, if it has any: it may go to a terminal.
    shown: Option<String>,
    line_starts: Vec<u32>,
}

impl Source {
    /// A file's name and text; the text has fewer than 4 GiB (`FILE_BYTES_MAX` sees to that).
    pub(super) fn new(name: &str, text: String) -> Self {
        let mut line_starts = vec![0];
        // TOML ends lines with LF; the caller's bound on the size makes the conversion exact.
        line_starts.extend(
            text.bytes()
                .enumerate()
                .filter(|&(_, b)| b == b'\n')
                .map(|(at, _)| u32::try_from(at + 1).unwrap_or(u32::MAX)),
        );
        Self { name: plain_words(name.to_owned()).into(), shown: harmless(&text), text, line_starts }
    }

    /// The text as it was read.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Line and column (in characters) of a byte, both from 1.
    pub(super) fn position(&self, at: usize) -> (usize, usize) {
        let line = self.line_of(at);
        let start = self.line_start(line);
        let column = self.text.get(start..at).map_or(at - start, |before| before.chars().count());
        (line + 1, column + 1)
    }

    /// The line of a byte, from 1.
    pub(super) fn line(&self, at: u32) -> u32 {
        u32::try_from(self.line_of(at as usize) + 1).unwrap_or(u32::MAX)
    }

    fn line_of(&self, at: usize) -> usize {
        self.line_starts.partition_point(|&start| start as usize <= at).saturating_sub(1)
    }

    fn line_start(&self, line: usize) -> usize {
        self.line_starts.get(line).map_or(self.text.len(), |&start| start as usize)
    }
}

/// Longest line of which an excerpt is drawn; of a longer one only the position is told.
const LINE_BYTES_MAX: usize = 1000;

/// miette's `SourceCode` for `str` reads the text from its start for every label. With the line index an excerpt costs
/// the same wherever it is.
impl SourceCode for Source {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let end = span.offset() + span.len();
        if end > self.text.len() {
            return Err(MietteError::OutOfBounds);
        }
        let line = self.line_of(span.offset());
        let first = line.saturating_sub(before);
        let last = self.line_of(end.saturating_sub(1).max(span.offset())) + after;
        let start = self.line_start(first);
        let stop = self.line_start(last + 1);
        let (_, column) = self.position(span.offset());
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.to_string(),
            &self.shown.as_ref().unwrap_or(&self.text).as_bytes()[start..stop],
            (start, stop - start).into(),
            first,
            // miette asks without context for the position in its heading, with context for the lines.
            if before == 0 { column - 1 } else { 0 },
            last - first + 1,
        )))
    }
}

/// Words that quote what an operator or the environment wrote, in one line, not too long, without terminal controls.
fn plain_words(words: String) -> String {
    const CHARS_MAX: usize = 500;
    let dangerous = |c: char| dangerous(c) || matches!(c, '\n' | '\t');
    if words.len() <= CHARS_MAX && !words.contains(dangerous) {
        return words;
    }
    let mut plain = String::new();
    for (count, c) in words.chars().enumerate() {
        match c {
            _ if count == CHARS_MAX => {
                plain.push_str("...");
                break;
            }
            c if dangerous(c) => plain.extend(c.escape_unicode()),
            c => plain.push(c),
        }
    }
    plain
}

/// Characters that move a terminal's cursor, colour it, or turn the direction of writing.
fn dangerous(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn harmless(text: &str) -> Option<String> {
    if !text.contains(dangerous) {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\r' && chars.peek() == Some(&'\n') || !dangerous(c) {
            out.push(c);
        } else {
            out.extend(std::iter::repeat_n('?', c.len_utf8()));
        }
    }
    Some(out)
}

/// A problem together with its file, as miette wants it.
struct Shown<'a> {
    problem: &'a Problem,
    message: String,
    source: Option<&'a Source>,
    labels: Vec<LabeledSpan>,
    elsewhere: Option<Box<Self>>,
    elsewhere_problem: Option<&'static str>,
}

impl<'a> Shown<'a> {
    fn new(problem: &'a Problem, sources: &'a [Source]) -> Self {
        let mut shown = Self {
            problem,
            message: problem.message.clone(),
            source: None,
            labels: Vec::new(),
            elsewhere: None,
            elsewhere_problem: None,
        };
        let Some(place) = problem.place else { return shown };
        shown.point_at(place, problem.label.clone(), sources);
        if let Some((other, label)) = problem.other {
            if other.file == place.file && !shown.labels.is_empty() {
                let span = (other.start as usize, (other.end - other.start) as usize);
                shown.labels.push(LabeledSpan::new_with_span(Some(label.to_owned()), span));
            } else {
                let mut elsewhere = Self {
                    problem,
                    message: label.to_owned(),
                    source: None,
                    labels: Vec::new(),
                    elsewhere: None,
                    elsewhere_problem: Some(label),
                };
                elsewhere.point_at(other, None, sources);
                shown.elsewhere = Some(Box::new(elsewhere));
            }
        }
        shown
    }

    fn point_at(&mut self, place: Place, label: Option<String>, sources: &'a [Source]) {
        let Some(source) = sources.get(usize::from(place.file)) else { return };
        let (start, end) = (place.start as usize, place.end as usize);
        let lines = source.line_start(source.line_of(start))..source.line_start(source.line_of(end) + 1);
        if lines.len() > LINE_BYTES_MAX {
            let (line, column) = source.position(start);
            self.message = format!("{} ({}:{line}:{column})", self.message, source.name);
            return;
        }
        self.source = Some(source);
        self.labels.push(LabeledSpan::new_primary_with_span(label, (start, end - start)));
    }
}

impl Diagnostic for Shown<'_> {
    fn severity(&self) -> Option<Severity> {
        Some(if self.elsewhere_problem.is_some() { Severity::Advice } else { self.problem.severity })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        match (&self.problem.help, self.elsewhere_problem) {
            (Some(help), None) => Some(Box::new(help)),
            _ => None,
        }
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        if self.labels.is_empty() { None } else { Some(Box::new(self.labels.iter().cloned())) }
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        let elsewhere = self.elsewhere.as_deref()?;
        Some(Box::new(std::iter::once(elsewhere as &dyn Diagnostic)))
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// `Shown` prints its message; miette also wants `Debug` of an error.
impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Shown<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let source = Source::new("a", "x\nöäü = 1\r\n\u{1b}[31m".into());
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position("x\nöä".len()), (2, 3));
        assert_eq!(source.line(2), 2);
        assert_eq!(source.line(10_000), 3);
    }

    #[test]
    fn a_file_cannot_speak_to_the_terminal() {
        let source = Source::new("a", "a\u{1b}[31m\r\n\u{9b}\rb\tc".into());
        assert_eq!(source.shown.unwrap(), "a?[31m\r\n???b\tc");
        let problem = Problem::nowhere(format!("a\u{1b}\n\u{202e}{}", "b".repeat(1000))).help("c\td");
        assert!(
            problem.message.starts_with("a\\u{1b}\\u{a}\\u{202e}bbb") && problem.message.ends_with("b...")
        );
        assert_eq!(problem.help.as_deref(), Some("c\\u{9}d"));
    }

    #[test]
    fn problems_past_the_bound_are_counted() {
        let mut problems = Problems::default();
        for n in 0..PROBLEMS_MAX + 7 {
            problems.error(|| Problem::nowhere(format!("problem {n}")));
        }
        let report = problems.report(Vec::new());
        assert_eq!(report.errors(), PROBLEMS_MAX + 7);
        assert!(report.to_string().ends_with("... and 7 more errors\n\n"), "{report}");
    }

    #[test]
    fn an_excerpt_at_the_end_of_a_file_and_a_huge_line_are_both_drawn() {
        let text = format!("a = 1\nb = \"{}\"\nc =", "y".repeat(5000));
        let end = u32::try_from(text.len()).unwrap();
        let mut problems = Problems::default();
        problems.error(|| Problem::at(Place { file: 0, start: end, end }, "nothing follows").label("here"));
        problems.error(|| Problem::at(Place { file: 0, start: 10, end: 5000 }, "too long").label("here"));
        let shown = problems.report(vec![Source::new("f.toml", text)]).to_string();
        assert!(shown.contains("too long (f.toml:2:5)"), "{shown}");
        assert!(shown.contains("f.toml:3:4") && shown.contains("c ="), "{shown}");
        assert!(shown.len() < 1000);
    }
}
