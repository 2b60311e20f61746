//! TOML to checked values: every error at once, with file, line, caret and what to write instead.
//!
//! `load` reads files, `parse` takes a text; both walk `decode` (types, units, bounds, unknown keys) and `compile` (how
//! values fit together) and give [`Compiled`], which makes snapshots, or a [`Report`]. Pure apart from reading the files
//! that it is told; watching them, resolving names and publishing are control's. Named by `control` and the binaries
//! only.

mod canary;
mod chunks;
mod collector;
mod compile;
mod compiled;
mod decode;
mod defaults;
mod effective;
mod effective_choice;
mod effective_retry;
mod environment;
mod nearest;
mod policy_text;
mod raw;
mod reader;
mod report;
mod route_text;
mod schema;
mod values;
mod warn;

#[cfg(test)]
mod chunks_test;
#[cfg(test)]
mod reference_test;

use std::io::Write;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

pub use canary::{Canary, CanaryRules};
pub use collector::{CollectorProtocol, Tracing};
pub use compiled::{
    AccessLog, Compiled, Edge, Identity, IdentitySource, Names, Settings, Termination, TlsVersion,
};
pub use defaults::{FOLDER as AUTHORITY_FOLDER, SHARDS_MAX};
pub use effective::{Origin, Setting};
pub(crate) use effective_choice::choice_text;
pub(crate) use effective_retry::hedge_text;
pub use environment::{Environment, process_environment};
pub use raw::{Destination, MemoryMax, Shards};
pub use report::{Look, Report};
pub(crate) use route_text::{conditions_text, path_text, test_text};
pub(crate) use values::{duration_text, host_text, size_text};

use raw::Raw;
use reader::Reader;
use report::{Place, Problem, Problems, Source, plural};

/// A configuration without errors.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub compiled: Compiled,
    /// What is legal but surely unintended.
    pub warnings: Report,
}

/// Reads and checks files as one configuration. A directory stands for all its `*.toml`, in the order of their names.
///
/// # Errors
/// Everything that is wrong in any of them, or why they cannot be read.
pub fn load(paths: &[PathBuf], environment: Environment<'_>) -> Result<Loaded, Report> {
    let mut problems = Problems::default();
    let mut texts = Vec::new();
    for path in files(paths, &mut problems) {
        if let Some(text) = read(&path, &mut problems) {
            texts.push((path.display().to_string(), text));
        }
    }
    check(texts, environment, chunks::CHUNK_BYTES, problems)
}

/// Checks one text; `name` is what messages call it.
///
/// # Errors
/// Everything that is wrong in it.
pub fn parse(name: &str, text: &str, environment: Environment<'_>) -> Result<Loaded, Report> {
    let mut problems = Problems::default();
    let mut texts = Vec::new();
    if text.len() as u64 > defaults::FILE_BYTES_MAX {
        problems.error(|| too_large(name, text.len() as u64));
    } else {
        texts.push((name.to_owned(), text.to_owned()));
    }
    check(texts, environment, chunks::CHUNK_BYTES, problems)
}

/// `ringmesh check`: prints all errors and warnings and a last line that sums up. Gives the exit code: 0, or 2 if there
/// are errors.
pub fn check_command(paths: &[PathBuf], environment: Environment<'_>, out: &mut dyn Write, look: Look) -> u8 {
    let shown: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let names = shown.join(", ");
    let (text, code) = match load(paths, environment) {
        Ok(Loaded { compiled, warnings }) => {
            let of_machine = doubts_about_machine(&compiled);
            let mut text = warnings.render(look) + &of_machine.render(look);
            text += &format!(
                "{names}: ok, {}, {}",
                plural(compiled.service_count(), "service"),
                plural(compiled.route_count(), "route")
            );
            let doubts = warnings.warnings() + of_machine.warnings();
            if doubts > 0 {
                text += &format!(", {}", plural(doubts, "warning"));
            }
            (text, 0)
        }
        Err(report) => {
            let mut text = format!("{}{names}: {}", report.render(look), plural(report.errors(), "error"));
            if paths.len() > 1 {
                text +=
                    " in all of them, read as one configuration; check each alone if each is meant to be one";
            }
            (text, 2)
        }
    };
    // Nobody reads any more: the exit code still tells.
    let _ = writeln!(out, "{text}");
    code
}

/// What a start on this machine would fail by, although another may have what is missing: so a warning, of `check` only.
fn doubts_about_machine(compiled: &Compiled) -> Report {
    let mut problems = Problems::default();
    if let Some(AccessLog { path: Destination::File(path), .. }) = &compiled.settings.access_log
        && let Some(folder) =
            path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
    {
        problems.warn(|| {
            Problem::nowhere(format!("access_log.path: {} is not a folder here", folder.display()))
                .help("make it before the start, which opens the file, or choose another path")
        });
    }
    problems.report(Vec::new())
}

/// A duration of the command line, written as in the configuration: `250ms`, `1.5s`, `5m`.
///
/// # Errors
/// What is wrong with it and what to write instead.
pub fn duration_argument(text: &str) -> Result<std::time::Duration, String> {
    values::duration(text).map_err(|complaint| format!("{}: {}", complaint.message, complaint.help))
}

impl Look {
    /// For standard error or output: boxes on a terminal, and colours there unless `NO_COLOR` is set.
    pub fn of(stream: &impl std::io::IsTerminal, environment: Environment<'_>) -> Self {
        let terminal = stream.is_terminal();
        let colour = environment("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: terminal && colour, unicode: terminal }
    }
}

fn check(
    texts: Vec<(String, String)>,
    environment: Environment<'_>,
    chunk_bytes: usize,
    mut problems: Problems,
) -> Result<Loaded, Report> {
    let sources: Vec<Source> = texts.into_iter().map(|(name, text)| Source::new(&name, text)).collect();
    let mut raw = Raw::default();
    let mut is_toml = true;
    for (file, source) in (0..).zip(&sources) {
        is_toml &= decode_text(file, source.text(), environment, chunk_bytes, &mut raw, &mut problems);
    }
    // With a file missing, what the others say cannot be judged: a service may be declared there.
    let compiled = if is_toml && problems.errors_outside_files() == 0 {
        compile::compile(raw, &sources, &mut problems)
    } else {
        None
    };
    match compiled {
        Some(compiled) => Ok(Loaded { compiled, warnings: problems.report(sources) }),
        None => Err(problems.report(sources)),
    }
}

/// Whether the text is TOML at all; if not, all its mistakes of syntax are reported.
fn decode_text(
    file: u16,
    text: &str,
    environment: Environment<'_>,
    chunk_bytes: usize,
    raw: &mut Raw,
    problems: &mut Problems,
) -> bool {
    let mut variables = std::mem::take(&mut raw.variables);
    let mut reader = Reader {
        file,
        text,
        base: 0,
        environment,
        problems,
        variables: &mut variables,
        words: std::collections::HashSet::new(),
    };
    let mut is_toml = true;
    for chunk in chunks::chunks(text, chunk_bytes) {
        reader.base = chunk.start;
        let (table, errors) = DeTable::parse_recoverable(&text[chunk]);
        for error in &errors {
            let place = reader.place(error.span().unwrap_or(0..0));
            reader.problems.error(|| syntax(error.message(), place));
        }
        is_toml &= errors.is_empty();
        if is_toml {
            decode::file(&mut reader, table.get_ref(), raw);
        }
    }
    raw.variables = variables;
    is_toml
}

fn syntax(message: &str, place: Place) -> Problem {
    let problem = Problem::at(place, format!("not TOML: {message}"));
    if message.contains("duplicate key") {
        return problem
            .label("again here")
            .help("a key stands once in a table; repeated tables have two pairs of brackets: [[service]]");
    }
    if message.contains("escaped value") {
        return problem.label("no such escape").help(
            "`\\` begins an escape within double quotes: write the text in single quotes, or each `\\` twice",
        );
    }
    problem.label("here").help("text stands in quotes, lists in brackets, and every key in a line of its own")
}

// --- files ---

fn files(paths: &[PathBuf], problems: &mut Problems) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        match toml_files(path) {
            Ok(found) if found.is_empty() => problems.error(|| {
                Problem::nowhere(format!("there is no *.toml in {}", path.display()))
                    .help("name a file, or a directory that contains some")
            }),
            Ok(found) => files.extend(found),
            Err(error) => problems.error(|| cannot_read(path, &error)),
        }
    }
    if paths.is_empty() {
        problems.error(|| Problem::nowhere("no configuration file was named").help("name at least one"));
    }
    // By what they are, not by how they are named. What cannot be found is told of when it is read.
    let mut seen = std::collections::HashSet::new();
    files.retain(|file| {
        let first = file.canonicalize().map_or(true, |path| seen.insert(path));
        if !first {
            problems.error(|| {
                Problem::nowhere(format!("{} is named twice", file.display())).help("name it once")
            });
        }
        first
    });
    if files.len() > defaults::FILES_MAX {
        problems.error(|| {
            Problem::nowhere(format!("{} files, more than {}", files.len(), defaults::FILES_MAX))
                .help("put several of them into one")
        });
        files.truncate(defaults::FILES_MAX);
    }
    files
}

/// Hidden names are left out: Kubernetes keeps earlier versions of a mounted ConfigMap under such.
fn toml_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") && path.is_file() {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn read(path: &Path, problems: &mut Problems) -> Option<String> {
    let bytes = match bounded_bytes(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            problems.error(|| cannot_read(path, &error));
            return None;
        }
    };
    if bytes.len() as u64 > defaults::FILE_BYTES_MAX {
        problems.error(|| too_large(&path.display().to_string(), bytes.len() as u64));
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = before.split(|&byte| byte == b'\n').count();
            problems.error(|| {
                Problem::nowhere(format!(
                    "{} is not UTF-8 text: the first bad byte is in line {line}",
                    path.display()
                ))
                .help("save it as UTF-8")
            });
            None
        }
    }
}

/// Reads no more than one byte past the bound, whatever the file claims to be (a pipe, a device).
fn bounded_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(defaults::FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Problem {
    let problem = Problem::nowhere(format!("cannot read {}: {error}", path.display()));
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            problem.help("look at the path; config/minimal.toml is an example to begin with")
        }
        std::io::ErrorKind::PermissionDenied => problem.help("let the user that runs ringmesh read it"),
        _ => problem,
    }
}

fn too_large(name: &str, bytes: u64) -> Problem {
    let bound = size_text(defaults::FILE_BYTES_MAX);
    Problem::nowhere(format!("{name} has {bytes} bytes or more, a configuration file at most {bound}"))
        .help("look whether it is a configuration file; split it if it is")
}
