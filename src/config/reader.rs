//! Reads single values out of the parsed TOML: type, environment references, unit and bounds, each mistake reported with
//! its place and the walk going on. `decode` knows which keys there are, this file how a value of a kind is read.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::defaults::Key;
use super::environment::{Environment, expand};
use super::nearest::{did_you_mean, nearest};
use super::raw::At;
use super::report::{Place, Problem, Problems};
use super::schema::{ELSEWHERE, SECTIONS, Section};
use super::values::{self, Complaint, DURATION_UNITS, SIZE_UNITS};

/// A value of the parsed file.
pub(super) type Item<'t> = Spanned<DeValue<'t>>;

/// Reads the values of one file.
pub(super) struct Reader<'a> {
    /// Index of the file in the list of sources.
    pub(super) file: u16,
    /// Its text.
    pub(super) text: &'a str,
    /// Where in the text the part begins that is being read: spans count from there.
    pub(super) base: usize,
    /// How environment variables are looked up.
    pub(super) environment: Environment<'a>,
    /// Where mistakes go.
    pub(super) problems: &'a mut Problems,
    /// Names of the variables met so far, over all files.
    pub(super) variables: &'a mut Vec<Arc<str>>,
    /// Words that repeat thousands of times (zones) and are kept once.
    pub(super) words: HashSet<Arc<str>>,
}

/// A table of which every key is known.
pub(super) struct Opened<'t> {
    section: &'static Section,
    table: &'t DeTable<'t>,
}

impl<'t> Opened<'t> {
    /// The value of a key of the section.
    pub(super) fn value(&self, key: &'static str) -> Option<&'t Item<'t>> {
        debug_assert!(
            self.section.keys.contains(&key),
            "{key} is missing in the schema of {}",
            self.section.path
        );
        self.table.get(key)
    }
}

impl<'a> Reader<'a> {
    // --- tables ---

    /// Reports every key that the section does not know.
    pub(super) fn open<'t>(&mut self, section: &'static Section, table: &'t DeTable<'t>) -> Opened<'t> {
        for key in table.keys() {
            if !section.keys.contains(&key.get_ref().as_ref()) {
                let place = self.place(key.span());
                let name = key.get_ref();
                self.problems.error(|| unknown_key(section, name, place));
            }
        }
        Opened { section, table }
    }

    /// The table that a section is.
    pub(super) fn table<'t>(&mut self, section: &'static Section, item: &'t Item<'t>) -> Option<Opened<'t>> {
        match item.get_ref() {
            DeValue::Table(table) => Some(self.open(section, table)),
            _ => {
                let help = match item.get_ref() {
                    DeValue::Array(_) => format!("write {} with one pair of brackets", section.header),
                    _ => format!("write a table with some of: {}", section.keys.join(", ")),
                };
                self.wrong_type(section.path, item, "a table", help)
            }
        }
    }

    /// The tables that a repeated section is, each with its place.
    pub(super) fn tables<'t>(
        &mut self,
        section: &'static Section,
        item: &'t Item<'t>,
        count_max: usize,
    ) -> Vec<(Opened<'t>, Place)> {
        let DeValue::Array(array) = item.get_ref() else {
            let help = format!("write {} with two pairs of brackets, once for each", section.header);
            let _: Option<()> = self.wrong_type(section.path, item, "a list of tables", help);
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(array.len().min(count_max));
        for entry in array.iter().take(count_max) {
            match entry.get_ref() {
                DeValue::Table(table) => tables.push((self.open(section, table), self.place(entry.span()))),
                _ => {
                    let help = format!("write {} once for each", section.header);
                    let _: Option<()> = self.wrong_type(section.path, entry, "a table", help);
                }
            }
        }
        if let Some(excess) = array.get(count_max) {
            self.too_many(section.path, excess);
        }
        tables
    }

    // --- strings ---

    /// A string with its environment references replaced.
    pub(super) fn string<'t>(
        &mut self,
        key: &str,
        item: &'t Item<'t>,
        example: &str,
    ) -> Option<At<Cow<'t, str>>> {
        match item.get_ref() {
            DeValue::String(text) => self.expanded(key, item, text),
            DeValue::Array(_) => {
                self.wrong_type(key, item, "a string", format!("write one, such as \"{example}\""))
            }
            _ => self.wrong_type(key, item, "a string", format!("write it in quotes, such as \"{example}\"")),
        }
    }

    fn expanded<'t>(&mut self, key: &str, item: &'t Item<'t>, text: &'t str) -> Option<At<Cow<'t, str>>> {
        let place = self.place(item.span());
        match expand(text, self.environment) {
            Ok(expanded) => {
                let variable = expanded.variable.map_or(0, |name| self.variable(name));
                Some(At { value: expanded.text, place, variable })
            }
            Err(why) => {
                // Escapes in the TOML string shift offsets: so look for the reference as it is written.
                let place = self.find(place, &text[why.at]);
                self.problems.error(|| Problem::at(place, format!("{key}: {}", why.message)).help(why.help));
                None
            }
        }
    }

    fn find(&self, place: Place, words: &str) -> Place {
        let written = self.text.get(place.start as usize..place.end as usize);
        let offset = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        match written.and_then(|written| written.find(words)) {
            Some(at) => {
                let start = place.start.saturating_add(offset(at));
                Place { start, end: start.saturating_add(offset(words.len())), ..place }
            }
            None => place,
        }
    }

    fn variable(&mut self, name: &str) -> u16 {
        let known = self.variables.iter().position(|known| &**known == name);
        let index = known.unwrap_or_else(|| {
            // Origins are for display. Past 65 534 names the last one is told for all further ones.
            if self.variables.len() < usize::from(u16::MAX) - 1 {
                self.variables.push(name.into());
            }
            self.variables.len() - 1
        });
        u16::try_from(index + 1).unwrap_or(u16::MAX)
    }

    /// A string that a grammar takes.
    pub(super) fn parsed<T>(
        &mut self,
        key: &str,
        item: &Item<'_>,
        example: &str,
        grammar: impl FnOnce(&str) -> Result<T, Complaint>,
    ) -> Option<At<T>> {
        let text = self.string(key, item, example)?;
        match grammar(&text.value) {
            Ok(value) => Some(text.with(value)),
            Err(complaint) => {
                self.complain(key, &text, complaint);
                None
            }
        }
    }

    /// Reports what a grammar found, and the whole text if the file does not show it.
    pub(super) fn complain(&mut self, key: &str, text: &At<Cow<'_, str>>, complaint: Complaint) {
        let variable = self.variable_name(text.variable);
        self.problems.error(|| {
            let problem =
                Problem::at(text.place, format!("{key}: {}", complaint.message)).help(complaint.help);
            match variable {
                Some(name) => {
                    problem.label(format!("`{}` with the value of `{name}`", shortened(&text.value)))
                }
                None => problem,
            }
        });
    }

    fn variable_name(&self, variable: u16) -> Option<Arc<str>> {
        usize::from(variable).checked_sub(1).and_then(|index| self.variables.get(index)).cloned()
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        item: &Item<'_>,
        words: &[(&str, T)],
    ) -> Option<At<T>> {
        let example = words.first().map_or("", |(word, _)| *word);
        self.parsed(key, item, example, |text| match words.iter().find(|(word, _)| *word == text) {
            Some(&(_, value)) => Ok(value),
            None => {
                let all = one_of(words.iter().map(|(word, _)| *word));
                let guess = did_you_mean(text, words.iter().map(|(word, _)| *word));
                Err(Complaint {
                    message: format!("`{}` is not known", shortened(text)),
                    help: guess
                        .map_or_else(|| format!("write {all}"), |guess| format!("{guess} Possible: {all}")),
                })
            }
        })
    }

    // --- quantities ---

    /// A duration within its bounds.
    pub(super) fn duration(&mut self, key: &Key<Duration>, item: &Item<'_>) -> Option<At<Duration>> {
        if let DeValue::Integer(_) | DeValue::Float(_) = item.get_ref() {
            return self.without_unit(key.name, item, |number| {
                let unit = if number >= 1000.0 || !key.default.as_millis().is_multiple_of(1000) {
                    "ms"
                } else {
                    "s"
                };
                format!("write \"{number}{unit}\" ({DURATION_UNITS})")
            });
        }
        let example = values::duration_text(key.default);
        let value = self.parsed(key.name, item, &example, values::duration)?;
        self.bounded(key, value, |duration| format!("\"{}\"", values::duration_text(duration)))
    }

    /// A size within its bounds.
    pub(super) fn size(&mut self, key: &Key<u64>, item: &Item<'_>) -> Option<At<u64>> {
        if let DeValue::Integer(_) | DeValue::Float(_) = item.get_ref() {
            return self.without_unit(key.name, item, |number| {
                let whole =
                    format!("{number}").parse().map_or_else(|_| format!("{number}B"), values::size_text);
                format!("write \"{whole}\" ({SIZE_UNITS})")
            });
        }
        let value = self.parsed(key.name, item, &values::size_text(key.default.max(1)), values::size)?;
        self.bounded(key, value, |size| format!("\"{}\"", values::size_text(size)))
    }

    fn without_unit<T>(&mut self, key: &str, item: &Item<'_>, help: impl FnOnce(f64) -> String) -> Option<T> {
        let number = match item.get_ref() {
            DeValue::Integer(integer) => number_of(integer).map_or(1.0, |n| n.clamp(0, 1 << 50) as f64),
            DeValue::Float(float) => float.as_str().parse::<f64>().unwrap_or(1.0).abs().min(1e15),
            _ => 1.0,
        };
        let number = if number.is_finite() { number } else { 1.0 };
        let place = self.place(item.span());
        self.problems
            .error(|| Problem::at(place, format!("{key} needs a unit")).label("no unit").help(help(number)));
        None
    }

    /// A whole number within its bounds. A string counts if an environment variable had a part in it.
    pub(super) fn count<T>(&mut self, key: &Key<T>, item: &Item<'_>) -> Option<At<T>>
    where
        T: Copy + Display + Into<i128> + TryFrom<i128>,
    {
        let wanted = "a whole number";
        let number = match item.get_ref() {
            DeValue::Integer(integer) => {
                let value = number_of(integer).unwrap_or(i128::MAX);
                At { value, place: self.place(item.span()), variable: 0 }
            }
            DeValue::String(text) => {
                let text = self.expanded(key.name, item, text)?;
                match text.value.parse::<i64>() {
                    Ok(number) if text.variable > 0 => text.with(i128::from(number)),
                    Ok(number) => {
                        let help = format!("write {number} without quotes");
                        return self.wrong_type(key.name, item, wanted, help);
                    }
                    Err(_) => {
                        let message = format!("`{}` is not a whole number", shortened(&text.value));
                        let help = format!("write one from {} to {}", key.min, key.max);
                        self.complain(key.name, &text, Complaint { message, help });
                        return None;
                    }
                }
            }
            _ => {
                let help = format!("write one from {} to {}, such as {}", key.min, key.max, key.default);
                return self.wrong_type(key.name, item, wanted, help);
            }
        };
        let (min, max): (i128, i128) = (key.min.into(), key.max.into());
        let clamped = T::try_from(number.value.clamp(min, max)).ok();
        match clamped {
            Some(value) if Into::<i128>::into(value) == number.value => Some(number.with(value)),
            _ => {
                self.problems.error(|| {
                    Problem::at(number.place, format!("{} is {}, out of its bounds", key.name, number.value))
                        .help(format!("write a number from {min} to {max}"))
                });
                None
            }
        }
    }

    fn bounded<T: PartialOrd + Copy>(
        &mut self,
        key: &Key<T>,
        value: At<T>,
        text: impl Fn(T) -> String,
    ) -> Option<At<T>> {
        let bound = if value.value < key.min {
            format!("the least is {}", text(key.min))
        } else if value.value > key.max {
            format!("the most is {}", text(key.max))
        } else {
            return Some(value);
        };
        self.problems.error(|| {
            Problem::at(value.place, format!("{} is {}, out of its bounds", key.name, text(value.value)))
                .help(bound)
        });
        None
    }

    /// `true` or `false`. A string counts if an environment variable had a part in it.
    pub(super) fn flag(&mut self, key: &str, item: &Item<'_>) -> Option<At<bool>> {
        let wanted = "true or false";
        match item.get_ref() {
            DeValue::Boolean(value) => {
                Some(At { value: *value, place: self.place(item.span()), variable: 0 })
            }
            DeValue::String(text) => {
                let text = self.expanded(key, item, text)?;
                match text.value.parse::<bool>() {
                    Ok(value) if text.variable > 0 => Some(text.with(value)),
                    Ok(value) => self.wrong_type(key, item, wanted, format!("write {value} without quotes")),
                    Err(_) if text.variable > 0 => {
                        let message = format!("`{}` is neither true nor false", shortened(&text.value));
                        self.complain(
                            key,
                            &text,
                            Complaint { message, help: "set it to one of them".into() },
                        );
                        None
                    }
                    Err(_) => self.wrong_type(key, item, wanted, "write true or false without quotes".into()),
                }
            }
            _ => self.wrong_type(key, item, wanted, "write true or false".into()),
        }
    }

    // --- lists and the rest ---

    /// The entries of a list, at most so many.
    pub(super) fn list<'t>(
        &mut self,
        key: &str,
        item: &'t Item<'t>,
        count_max: usize,
    ) -> Option<&'t [Item<'t>]> {
        let DeValue::Array(array) = item.get_ref() else {
            let help = match item.get_ref() {
                DeValue::String(text) => {
                    format!("write it in brackets: [{}]", values::quoted(&shortened(text)))
                }
                _ => "write a list in brackets".into(),
            };
            return self.wrong_type(key, item, "a list", help);
        };
        if let Some(excess) = array.get(count_max) {
            self.too_many(key, excess);
            return array.get(..count_max);
        }
        Some(array)
    }

    fn too_many(&mut self, key: &str, excess: &Item<'_>) {
        let place = self.place(excess.span());
        self.problems.error(|| {
            Problem::at(place, format!("more of {key} than there may be"))
                .label("the first one too many")
                .help("split the configuration among several proxies")
        });
    }

    /// Reports a value of another type. Always `None`, of whatever the caller wanted.
    pub(super) fn wrong_type<T>(
        &mut self,
        key: &str,
        item: &Item<'_>,
        wanted: &str,
        help: String,
    ) -> Option<T> {
        let place = self.place(item.span());
        let found = match item.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.problems.error(|| {
            Problem::at(place, format!("{key} must be {wanted}")).label(format!("this is {found}")).help(help)
        });
        None
    }

    /// A whole number without bounds, for keys that also take other types.
    pub(super) fn number(item: &Item<'_>) -> Option<i128> {
        match item.get_ref() {
            DeValue::Integer(integer) => number_of(integer),
            _ => None,
        }
    }

    /// The one copy of a word.
    pub(super) fn word(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.words.get(text) {
            return Arc::clone(known);
        }
        let word: Arc<str> = text.into();
        self.words.insert(Arc::clone(&word));
        word
    }

    /// A place in this file.
    pub(super) fn place(&self, span: Range<usize>) -> Place {
        let offset = |n: usize| u32::try_from((self.base + n).min(self.text.len())).unwrap_or(u32::MAX);
        Place { file: self.file, start: offset(span.start), end: offset(span.end.max(span.start)) }
    }
}

fn number_of(integer: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn unknown_key(section: &Section, name: &str, place: Place) -> Problem {
    let problem = Problem::at(place, format!("unknown key `{}` {}", shortened(name), within(section)));
    if let Some(near) = nearest(name, section.keys.iter().copied()) {
        return problem.label("not known").help(format!("did you mean `{near}`?"));
    }
    if let Some((_, here)) = ELSEWHERE.iter().find(|(word, key)| *word == name && section.keys.contains(key))
    {
        return problem.label("not known").help(format!("it is called `{here}` here"));
    }
    if let Some(home) = SECTIONS.iter().find(|other| other.keys.contains(&name)) {
        return problem.label("not here").help(format!("`{name}` belongs {}", within(home)));
    }
    problem.label("not known").help(format!("known here: {}", section.keys.join(", ")))
}

fn within(section: &Section) -> String {
    match section.path {
        "" => "at the top of the file, before the first [table]".into(),
        _ => format!("in {}", section.header),
    }
}

/// `"a", "b" or "c"`.
fn one_of<'w>(words: impl Iterator<Item = &'w str>) -> String {
    let words: Vec<String> = words.map(|word| format!("\"{word}\"")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, before)) => format!("{} or {last}", before.join(", ")),
        None => String::new(),
    }
}

/// A text that is not too long for a message.
pub(super) fn shortened(text: &str) -> Cow<'_, str> {
    const CHARS_MAX: usize = 80;
    match text.char_indices().nth(CHARS_MAX) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
    }
}
