//! The repository checks itself: what a compiler and clippy do not know of this house. Each message names file, line and
//! remedy. Each rule is also shown to find what it is for, on made-up files, at the end.
//!
//! It reads text, not syntax trees: comments and strings are blanked out first, then words are looked for. Refuses to
//! have a list of exceptions per file, except for `unsafe`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// A rule about who may name whom. Where several rules concern a module, all hold.
struct Direction {
    /// Modules (with all below them) that are concerned.
    from: &'static [&'static str],
    /// What they must not name: modules as `crate::…`, other crates as they are called.
    not: &'static [&'static str],
    /// What they may name although it lies below one of those.
    except: &'static [&'static str],
    remedy: &'static str,
}

const DIRECTIONS: &[Direction] = &[
    Direction {
        from: &[
            "authorize",
            "quota",
            "route",
            "trace",
            "upstream::admission",
            "upstream::affinity",
            "upstream::balance",
            "upstream::breaker",
            "upstream::budget",
            "upstream::retry",
            "upstream::caps",
            "upstream::concurrency",
            "upstream::census",
            "upstream::consistent",
            "upstream::gate",
            "upstream::health",
            "upstream::limiter",
            "upstream::line",
            "upstream::plan",
            "upstream::rise",
            "upstream::spec",
            "upstream::tail",
            "upstream::turns",
        ],
        not: &[
            "crate::io",
            "crate::http",
            "crate::downstream",
            "crate::proxy",
            "crate::shard",
            "crate::control",
            "crate::config",
            "monoio",
            "io_uring",
            "std::time::Instant",
        ],
        except: &[],
        remedy: "these decide and do no I/O; take time, randomness and bytes as arguments",
    },
    Direction {
        from: &["failure"],
        not: &["crate"],
        except: &["crate::failure"],
        remedy: "everybody names failure, so it names nobody",
    },
    Direction {
        from: &["shard::clock"],
        not: &["crate"],
        except: &["crate::shard::clock"],
        remedy: "everybody asks the clock, so it names nobody",
    },
    Direction {
        from: &["io"],
        not: &["crate"],
        // The clock is below everybody; an address is what io connects to.
        except: &["crate::io", "crate::failure", "crate::shard::clock", "crate::upstream::spec::Address"],
        remedy: "io is bytes and knows nobody above it but failure; take it as an argument",
    },
    Direction {
        from: &["http"],
        not: &[
            "crate::downstream",
            "crate::proxy",
            "crate::route",
            "crate::upstream",
            "crate::shard",
            "crate::telemetry",
        ],
        except: &["crate::shard::clock"],
        remedy: "http is the wire format and knows io and failure; routes and services are the business of proxy",
    },
    Direction {
        from: &[
            "authorize",
            "downstream",
            "failure",
            "http",
            "io",
            "proxy",
            "quota",
            "route",
            "shard",
            "snapshot",
            "telemetry",
            "trace",
            "upstream",
        ],
        not: &["crate::control", "crate::config", "tokio", "hyper", "tracing"],
        // Traits that h2 wants of a connection.
        except: &["tokio::io"],
        remedy: "the data side never waits for control: what it must know is in the snapshot, what it has to say goes \
                 through shard::link",
    },
    Direction {
        from: &["control", "config"],
        not: &[
            "crate::io",
            "crate::http",
            "crate::downstream",
            "crate::proxy",
            "crate::shard",
            "crate::upstream::balance",
            "monoio",
        ],
        except: &[
            "crate::shard::link",
            "crate::shard::spawn",
            "crate::shard::Plan",
            "crate::shard::RuntimeChoice",
        ],
        remedy: "control never reaches into a shard: it starts one (shard::spawn) and talks through shard::link",
    },
    Direction {
        from: &["loadtest"],
        not: &["ringmesh"],
        except: &[],
        remedy: "a load generator that shares code with the proxy cannot see its bugs",
    },
];

/// Files that may contain the keyword. Another one needs a reason that the whole house accepts.
const UNSAFE_IN: &[&str] = &["src/io/sys.rs", "src/shard/blocks.rs"];

/// Where cancelling a branch loses nothing: io knows how, control's runtime is made for it.
const SELECT_IN: &[&str] = &["src/io/", "src/control/", "src/demo", "src/main.rs", "loadtest/", "tests/"];

/// Lines of a file without its unit tests: at 500 ask whether it is two things, at this it is.
const LINES_MAX: usize = 800;

/// Words that name nothing in particular or something else to our readers: the glossary has one for what is meant.
const BANNED_WORDS: &[&str] = &[
    "manager", "handler", "helper", "util", "context", "info", "data", "common", "misc", "backend",
    "cluster", "session", "filter", "worker",
];

#[test]
fn dependencies_point_one_way() {
    assert_none(directions(&repository()));
}

#[test]
fn every_file_opens_with_its_argument() {
    assert_none(openings(&repository()));
}

#[test]
fn select_is_left_to_those_who_can_cancel() {
    assert_none(selects(&repository()));
}

#[test]
fn nothing_is_left_for_later() {
    assert_none(leftovers(&repository()));
}

#[test]
fn unsafe_stays_in_its_files() {
    assert_none(unsafe_blocks(&repository()));
}

#[test]
fn files_stay_small() {
    assert_none(long_files(&repository()));
}

#[test]
fn names_use_the_words_of_the_house() {
    assert_none(banned_names(&repository()));
}

#[test]
fn every_file_is_compiled() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert_none(orphans(&repository(), &manifest));
}

/// Else a release would be built without a word about it, and without the profile.
#[test]
fn the_profile_is_for_the_compiler_that_the_house_uses() {
    let text = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let (made_with, toolchain) = (text("loadtest/profile/rustc"), text("rust-toolchain.toml"));
    let version = made_with.split(' ').nth(1).unwrap_or_default();
    assert!(
        !version.is_empty() && toolchain.contains(&format!("channel = \"{version}\"")),
        "loadtest/profile is of rustc {version}, rust-toolchain.toml names another: run loadtest/profile.sh and commit what it makes"
    );
}

fn directions(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let module = source.module();
        let concerned: Vec<_> = DIRECTIONS
            .iter()
            .filter(|direction| direction.from.iter().any(|from| is_below(&module, from)))
            .collect();
        for (line, path) in source.paths() {
            let broken = concerned.iter().find(|direction| {
                direction.not.iter().any(|not| is_below(&path, not))
                    // A module above an exception may be imported; what is named through it has an entry of its own.
                    && !direction.except.iter().any(|except| is_below(&path, except) || is_below(except, &path))
            });
            if let Some(direction) = broken {
                found.push(format!("{}:{line}: {module} names {path}: {}", source.path, direction.remedy));
            }
        }
    }
    found
}

fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn openings(sources: &[Source]) -> Vec<String> {
    // Tests beside a file are introduced by it.
    let concerned = sources.iter().filter(|source| !source.path.ends_with("_test.rs"));
    let missing = concerned.filter(|source| !source.text.starts_with("//!"));
    missing
        .map(|source| {
            format!(
                "{}:1: does not open with `//!`: say what it is for, who calls it, what it refuses to do",
                source.path
            )
        })
        .collect()
}

fn selects(sources: &[Source]) -> Vec<String> {
    let concerned =
        sources.iter().filter(|source| !SELECT_IN.iter().any(|place| source.path.starts_with(place)));
    concerned
        .flat_map(|source| {
            source.lines_with("select").filter(|(_, rest)| rest.starts_with('!')).map(|(line, _)| {
                format!(
                    "{}:{line}: select! drops the operations of the branches that lose, and with them bytes of the \
                     stream: use what io offers (io::timed)",
                    source.path
                )
            })
        })
        .collect()
}

fn leftovers(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        // Put together here, so that this file does not find itself.
        for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")] {
            for (line, _) in words(&source.text, word) {
                found.push(format!(
                    "{}:{line}: {word}: do it now, or say in an issue what is missing",
                    source.path
                ));
            }
        }
        for word in ["todo", "unimplemented"] {
            for (line, _) in source.lines_with(word).filter(|(_, rest)| rest.starts_with('!')) {
                found.push(format!(
                    "{}:{line}: {word}!: return an error that says what is missing",
                    source.path
                ));
            }
        }
    }
    found
}

fn unsafe_blocks(sources: &[Source]) -> Vec<String> {
    let concerned = sources
        .iter()
        .filter(|source| source.path.starts_with("src/") || source.path.starts_with("loadtest/"));
    concerned
        .filter(|source| !UNSAFE_IN.contains(&&*source.path))
        .flat_map(|source| {
            source.lines_with("unsafe").map(|(line, _)| {
                format!(
                    "{}:{line}: unsafe: only {} may have it; give one of them a safe function",
                    source.path,
                    UNSAFE_IN.join(" and ")
                )
            })
        })
        .collect()
}

fn long_files(sources: &[Source]) -> Vec<String> {
    let is_test = |path: &str| path.ends_with("_test.rs") || path.starts_with("tests/");
    let concerned = sources.iter().filter(|source| !is_test(&source.path));
    concerned
        .filter_map(|source| {
            let lines = source.without_tests().lines().count();
            (lines > LINES_MAX).then(|| {
                format!("{}:{lines}: {lines} lines without its tests, at most {LINES_MAX}: it is two things, part them", source.path)
            })
        })
        .collect()
}

fn banned_names(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    let banned = |name: &str| {
        words_of(name).into_iter().find(|word| {
            BANNED_WORDS.iter().any(|banned| word == banned || word.strip_suffix('s') == Some(banned))
        })
    };
    for source in sources {
        if let Some(word) = source.path.split(['/', '.']).find_map(banned) {
            found.push(format!(
                "{}:1: `{word}` in a file's name: the glossary has a word that says more",
                source.path
            ));
        }
        for keyword in ["struct", "enum", "trait", "type", "mod"] {
            for (line, rest) in source.lines_with(keyword) {
                let name: String =
                    rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if let Some(word) = banned(&name) {
                    found.push(format!(
                        "{}:{line}: `{word}` in {name}: the glossary has a word that says more",
                        source.path
                    ));
                }
            }
        }
        for (line, _) in source.lines_with("fn").filter(|(_, rest)| rest.trim_start().starts_with("get_")) {
            found.push(format!("{}:{line}: `get_`: name what is given, as in `fn length()`", source.path));
        }
    }
    found
}

/// Files that no target of the manifest reaches by `mod`: with `autotests = false` a forgotten test is never run.
fn orphans(sources: &[Source], manifest: &str) -> Vec<String> {
    let by_path = |path: &str| sources.iter().find(|source| source.path == path);
    let mut waiting: Vec<(String, bool)> = manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("path = \"")?.strip_suffix('"'))
        .map(|path| (path.to_owned(), true))
        .collect();
    let mut reached = HashSet::new();
    while let Some((path, is_root)) = waiting.pop() {
        let Some(source) = by_path(&path) else { continue };
        if reached.insert(path.clone()) {
            waiting.extend(source.modules(is_root).into_iter().map(|path| (path, false)));
        }
    }
    sources
        .iter()
        .filter(|source| !reached.contains(&source.path))
        .map(|source| {
            format!(
                "{}:1: is never compiled: name it with `mod` in its parent or, if it is a target, in Cargo.toml",
                source.path
            )
        })
        .collect()
}

/// One file of Rust.
struct Source {
    /// From the root of the repository, with `/`.
    path: String,
    /// As it is.
    text: String,
    /// The same with blanks in place of comments and of what stands in strings; lines stay where they are.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: blank(text) }
    }

    /// `upstream::balance` for src/upstream/balance.rs (and for its tests); the folder's name outside of src.
    fn module(&self) -> String {
        let Some(inside) = self.path.strip_prefix("src/") else {
            return self.path.split('/').next().unwrap_or_default().to_owned();
        };
        let name = inside.trim_end_matches(".rs").trim_end_matches("_test");
        name.trim_end_matches("/mod").replace('/', "::")
    }

    /// The code before the module of unit tests; all of it where there is none, nothing in a file of tests.
    fn without_tests(&self) -> &str {
        if self.path.ends_with("_test.rs") {
            return "";
        }
        let tests = self.code.match_indices("#[cfg(test)]").find(|(at, mark)| {
            // Attributes may stand between: `#[path = …]`.
            let mut rest = self.code[at + mark.len()..].trim_start();
            while let Some(attribute) = rest.strip_prefix("#[") {
                rest = attribute.split_once(']').map_or("", |(_, rest)| rest).trim_start();
            }
            rest.starts_with("mod ")
        });
        tests.map_or(&self.code, |(at, _)| &self.code[..at])
    }

    /// Each occurrence of a word in the code: line, and what follows it on that line.
    fn lines_with<'t>(&'t self, word: &'t str) -> impl Iterator<Item = (usize, &'t str)> {
        words(&self.code, word)
    }

    /// All paths from the crate's root (`crate::`, `super::`), and those that begin with a crate's name, without tests.
    fn paths(&self) -> Vec<(usize, String)> {
        let code = self.without_tests();
        let module = self.module();
        let mut here: Vec<&str> = module.split("::").collect();
        if matches!(&*self.path, "src/lib.rs" | "src/main.rs") {
            here.clear();
        }
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(start) = code[at..].find(is_word_char).map(|n| at + n) {
            let end = code[start..].find(|c| !is_word_char(c)).map_or(code.len(), |n| start + n);
            at = end;
            // Only where a path begins: not after `::`, and a tree or a further name must follow.
            if code[..start].ends_with("::") || !code[end..].starts_with("::") {
                continue;
            }
            let line = code[..start].matches('\n').count() + 1;
            let (prefix, rest) = match &code[start..end] {
                "crate" => (vec!["crate"], end),
                "self" => continue,
                "super" => {
                    let mut above = [&["crate"], &here[..]].concat();
                    above.pop();
                    let mut rest = end;
                    while code[rest..].starts_with("::super::") {
                        above.pop();
                        rest += "::super".len();
                    }
                    (above, rest)
                }
                name => (vec![name], end),
            };
            let mut paths = Vec::new();
            at = tree(code, rest, &prefix.join("::"), &mut paths);
            found.extend(paths.into_iter().map(|path| (line, path)));
        }
        // `use crate::shard;` makes `shard::Plan` a path of this crate.
        let modules: Vec<String> = found
            .iter()
            .filter(|(_, path)| path.starts_with("crate::"))
            .filter(|(_, path)| path.rsplit("::").next().is_some_and(starts_small))
            .map(|(_, path)| path.clone())
            .collect();
        for (_, path) in &mut found {
            let (first, rest) = path.split_once("::").unwrap_or((path, ""));
            let imported =
                modules.iter().find(|module| first != "crate" && module.rsplit("::").next() == Some(first));
            if let Some(module) = imported {
                *path = join(module, rest);
            }
        }
        found
    }

    /// The files that `mod name;` may mean.
    fn modules(&self, is_root: bool) -> Vec<String> {
        let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let owns_folder = is_root || self.path.ends_with("/mod.rs");
        let below =
            if owns_folder { folder.to_owned() } else { self.path.trim_end_matches(".rs").to_owned() };
        let mut found = Vec::new();
        let mut given: Option<String> = None;
        for (text, code) in self.text.lines().zip(self.code.lines()) {
            if let Some(path) = text.trim().strip_prefix("#[path = \"") {
                given = path.split('"').next().map(|path| format!("{folder}/{path}"));
                continue;
            }
            let declaration = code.trim().strip_suffix(';').and_then(|code| match code.rsplit_once("mod ") {
                Some((before, name)) if before.is_empty() || before.ends_with(' ') => Some(name),
                _ => None,
            });
            // Comments behind a declaration are blank by now.
            let Some(name) = declaration else {
                if !text.trim().starts_with('#') {
                    given = None;
                }
                continue;
            };
            match given.take() {
                Some(path) => found.push(path),
                None => found.extend([format!("{below}/{name}.rs"), format!("{below}/{name}/mod.rs")]),
            }
        }
        found
    }
}

/// Adds the paths of a tree (`::a::{b, c::d}`) that begins at `at`, and gives the place after it.
fn tree(code: &str, mut at: usize, prefix: &str, found: &mut Vec<String>) -> usize {
    let mut path = prefix.to_owned();
    while code[at..].starts_with("::") {
        at += 2;
        if code[at..].starts_with('{') {
            at += 1;
            loop {
                at += code[at..].find(|c: char| !c.is_whitespace() && c != ',').unwrap_or(code.len() - at);
                if at >= code.len() || code[at..].starts_with('}') {
                    return (at + 1).min(code.len());
                }
                let end = code[at..].find(|c| !is_word_char(c)).map_or(code.len(), |n| at + n);
                let name = &code[at..end];
                let below = if name == "self" { path.clone() } else { join(&path, name) };
                // What is not part of a tree (`as name`, `*`) is passed over.
                let next = tree(code, end, &below, found);
                at = code[next..].find([',', '}']).map_or(code.len(), |n| next + n);
            }
        }
        let end = code[at..].find(|c| !is_word_char(c)).map_or(code.len(), |n| at + n);
        if end == at {
            break;
        }
        path = join(&path, &code[at..end]);
        at = end;
    }
    found.push(path);
    at
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") }
}

/// Each occurrence of `word` that is not part of a longer one: line, and what follows on that line.
fn words<'t>(text: &'t str, word: &'t str) -> impl Iterator<Item = (usize, &'t str)> {
    text.lines().enumerate().flat_map(move |(n, line)| {
        line.match_indices(word)
            .filter(|(at, _)| {
                !line[..*at].ends_with(is_word_char) && !line[at + word.len()..].starts_with(is_word_char)
            })
            .map(move |(at, _)| (n + 1, &line[at + word.len()..]))
    })
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn starts_small(name: &str) -> bool {
    name.starts_with(|c: char| c.is_lowercase())
}

/// `HttpFilter2` and `http_filter` are `http` and `filter`.
fn words_of(name: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for c in name.chars() {
        if c.is_uppercase() || !c.is_alphabetic() {
            found.push(String::new());
        }
        if let (true, Some(word)) = (c.is_alphabetic(), found.last_mut()) {
            word.extend(c.to_lowercase());
        }
    }
    found.retain(|word| !word.is_empty());
    found
}

/// Blanks out comments and the contents of strings and characters.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let before_is_word = code.ends_with(is_word_char);
        let length = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest),
            'r' | 'b' | 'c' if !before_is_word => match raw_string(rest) {
                Some(length) => length,
                None => {
                    code.push(c);
                    rest = &rest[1..];
                    continue;
                }
            },
            '\'' => match character(rest) {
                Some(length) => length,
                None => {
                    code.push(c);
                    rest = &rest[1..];
                    continue;
                }
            },
            _ => {
                code.push(c);
                rest = &rest[c.len_utf8()..];
                continue;
            }
        };
        code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[length..];
    }
    code
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// `r"…"`, `br#"…"#`: the length, or `None` where an ordinary word begins.
fn raw_string(text: &str) -> Option<usize> {
    let prefix = text.len() - text.trim_start_matches(['b', 'c']).len();
    let after = text[prefix..].strip_prefix('r')?;
    let marks = after.len() - after.trim_start_matches('#').len();
    let body = after[marks..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(marks));
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(text.len() - body.len() + length)
}

/// A character between quotes, or `None` for a lifetime.
fn character(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        chars.next()?;
        return chars.find(|(_, c)| *c == '\'').map(|(at, _)| at + 1);
    }
    chars.next().filter(|(_, c)| *c == '\'').map(|(at, _)| at + 1)
}

fn repository() -> Vec<Source> {
    let mut sources = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["src", "loadtest", "tests", "benches"].map(|folder| root().join(folder)).into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the folders of the repository can be read") {
            let path = entry.expect("the folders of the repository can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("sources are UTF-8");
                let relative =
                    path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
                sources.push(Source::new(&relative, &text));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 10, "the repository is not where it is looked for: {}", root().display());
    sources
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn assert_none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

mod the_rules_find_what_they_are_for {
    use super::*;

    fn one(path: &str, text: &str) -> [Source; 1] {
        [Source::new(path, text)]
    }

    #[test]
    fn directions_of_dependency() {
        for (path, text, found_at) in [
            ("src/route/table.rs", "//! x\nuse crate::io::Stream;", Some(2)),
            ("src/route/table.rs", "use crate::{failure::Failure,\n    io};", Some(1)),
            ("src/route/table.rs", "use crate::{failure::{self, Cause}, upstream::{spec, balance}};", None),
            ("src/route/table.rs", "fn f() {\n\n let x = crate::control::machine::ranges(&[]); }", Some(3)),
            ("src/route/table.rs", "use monoio::net::TcpStream;", Some(1)),
            ("src/route/table.rs", "let now = std::time::Instant::now();", Some(1)),
            ("src/route/table.rs", "use super::super::io as bytes;", Some(1)),
            ("src/upstream/balance.rs", "use super::spec::Service;", None),
            ("src/upstream/balance.rs", "use super::super::{failure, control::Proxy};", Some(1)),
            ("src/upstream/pool.rs", "use crate::io::Stream; use monoio::net::TcpStream;", None),
            ("src/upstream/pool.rs", "use crate::config::raw::Service;", Some(1)),
            ("src/proxy.rs", "// use crate::control::Proxy;\nlet s = \"crate::control\";", None),
            ("src/proxy.rs", "#[cfg(test)]\nmod tests {\n use crate::control::Proxy;\n}", None),
            ("src/proxy.rs", "#[cfg(test)]\nuse crate::control::Proxy;", Some(2)),
            (
                "src/proxy.rs",
                "use crate::{\n    http::{self, h1::{Head, Body}},\n    shard::{self, clock},\n};",
                None,
            ),
            ("src/http/h1/head.rs", "use super::super::super::route::Table;", Some(1)),
            ("src/http/h1/mod.rs", "use super::super::route::Table;", Some(1)),
            ("src/control/publish.rs", "use crate::shard::{link::{Link, Order}, Plan, spawn};", None),
            ("src/control/publish.rs", "use crate::shard::{Plan, buffers};", Some(1)),
            ("src/control/publish.rs", "crate::shard::buffers::shrink();", Some(1)),
            ("src/control/publish.rs", "use crate::shard;\nfn f(p: shard::Plan) {}", None),
            (
                "src/control/publish.rs",
                "use crate::{config, shard};\nfn f(b: shard::buffers::Pool) {}",
                Some(2),
            ),
            ("src/control/publish.rs", "use std::io;\nfn f() -> io::Result<()> {}", None),
            ("src/control/publish.rs", "use crate::config; use tokio::net::TcpListener;", None),
            ("src/shard/mod.rs", "use tokio::sync::mpsc;", Some(1)),
            ("src/shard/clock.rs", "use super::Plan;", Some(1)),
            ("src/io/timed.rs", "use crate::{failure, shard::clock::Clock, upstream::spec::Address};", None),
            ("src/io/timed.rs", "use crate::upstream::spec::Service;", Some(1)),
            ("src/demo.rs", "use crate::{config, control};", None),
            ("loadtest/client.rs", "use ringmesh::http::h1;", Some(1)),
        ] {
            let found = directions(&one(path, text));
            match found_at {
                None => assert!(found.is_empty(), "{path} {text}: {found:?}"),
                Some(line) => assert!(
                    found.len() == 1 && found[0].starts_with(&format!("{path}:{line}: ")),
                    "{path} {text}: {found:?}"
                ),
            }
        }
    }

    #[test]
    fn files_without_argument() {
        assert_eq!(openings(&one("src/a.rs", "use b;\n//! late")).len(), 1);
        assert_eq!(openings(&one("src/a.rs", "//! What it is for.\n")).len(), 0);
    }

    #[test]
    fn select_on_the_data_side() {
        let text = "//! x\nasync fn f() { monoio::select! { _ = a => {} } }";
        assert!(selects(&one("src/proxy.rs", text))[0].starts_with("src/proxy.rs:2: "));
        assert!(selects(&one("src/io/timed.rs", text)).is_empty());
        assert!(selects(&one("src/control/admin.rs", text)).is_empty());
        assert!(selects(&one("src/proxy.rs", "// select! is banned\nfn select() {}")).is_empty());
    }

    #[test]
    fn leftovers_in_code_and_comments() {
        for text in [
            concat!("// TO", "DO: x"),
            concat!("fn f() { /* FIX", "ME */ }"),
            "fn f() { todo!() }",
            "unimplemented!(\"x\")",
        ] {
            assert_eq!(leftovers(&one("src/a.rs", text)).len(), 1, "{text}");
        }
        assert!(leftovers(&one("src/a.rs", "let todos = 1; // the todo! macro")).is_empty());
    }

    #[test]
    fn unsafe_outside_its_files() {
        let text = "fn f() { unsafe { g() } }";
        assert_eq!(unsafe_blocks(&one("src/proxy.rs", text)).len(), 1);
        assert_eq!(unsafe_blocks(&one("loadtest/main.rs", text)).len(), 1);
        assert!(unsafe_blocks(&one("src/io/sys.rs", text)).is_empty());
        assert!(
            unsafe_blocks(&one("src/proxy.rs", "#![deny(unsafe_code)] // unsafe\n\"unsafe\"")).is_empty()
        );
    }

    #[test]
    fn files_beyond_the_limit() {
        let lines = |count| "x;\n".repeat(count);
        assert_eq!(long_files(&one("src/a.rs", &lines(LINES_MAX + 1))).len(), 1);
        assert!(long_files(&one("src/a.rs", &lines(LINES_MAX))).is_empty());
        assert!(long_files(&one("src/a_test.rs", &lines(LINES_MAX + 1))).is_empty());
        let tested = format!("{}#[cfg(test)]\nmod tests {{\n{}}}", lines(700), lines(700));
        assert!(long_files(&one("src/a.rs", &tested)).is_empty());
        let in_between = format!("#[cfg(test)]\nfn f() {{}}\n{}", lines(LINES_MAX));
        assert_eq!(long_files(&one("src/a.rs", &in_between)).len(), 1, "only a module ends the code");
    }

    #[test]
    fn banned_words_in_names() {
        for (path, text) in [
            ("src/utils.rs", ""),
            ("src/common/mod.rs", ""),
            ("src/http/head_filter.rs", ""),
            ("src/a.rs", "pub struct ConnectionManager;"),
            ("src/a.rs", "enum Infos {}"),
            ("src/a.rs", "type TaskContext<'a> = ();"),
            ("src/a.rs", "mod helpers {}"),
            ("src/a.rs", "fn get_length() {}"),
        ] {
            assert_eq!(banned_names(&one(path, text)).len(), 1, "{path} {text}");
        }
        let fine =
            "struct Database; enum Information {} fn get() {} fn budget_of() {} let context = cx.get_mut();";
        assert!(banned_names(&one("src/a.rs", fine)).is_empty());
    }

    #[test]
    fn files_that_are_never_compiled() {
        let manifest =
            "[lib]\npath = \"src/lib.rs\"\n[[test]]\nname = \"suite\"\npath = \"tests/suite.rs\"\n";
        let sources = [
            ("src/lib.rs", "pub mod a; // why\npub(crate) mod b;\n// mod f;"),
            ("src/a.rs", "mod c;\n#[cfg(test)]\n#[path = \"a_test.rs\"]\nmod tests;"),
            ("src/a_test.rs", ""),
            ("src/a/c.rs", ""),
            ("src/b/mod.rs", "mod d;"),
            ("src/b/d.rs", ""),
            ("src/e.rs", ""),
            ("src/f.rs", ""),
            ("tests/suite.rs", "#[path = \"suite/route.rs\"]\nmod route;\nmod support;"),
            ("tests/suite/route.rs", ""),
            ("tests/suite/retry.rs", ""),
            ("tests/support/mod.rs", ""),
            ("tests/forgotten.rs", ""),
        ]
        .map(|(path, text)| Source::new(path, text));
        let found = orphans(&sources, manifest);
        let files: Vec<_> = found.iter().map(|found| found.split(':').next().unwrap()).collect();
        assert_eq!(files, ["src/e.rs", "src/f.rs", "tests/suite/retry.rs", "tests/forgotten.rs"]);
    }

    #[test]
    fn code_is_told_from_what_only_looks_like_it() {
        let text = "a /* b /* c */ d */ e \"f \\\" g\" h 'i' 'j '\\'' k r#\"l \" m\"# n // o\nb\"p\" q br\"r\" s &'t u";
        assert_eq!(blank(text).split_whitespace().collect::<String>(), "aeh'jknbqs&'tu");
        assert_eq!(blank(text).len(), text.len());
        assert_eq!(blank("\"a\nb\"\nc").lines().count(), 3, "lines stay where they are");
    }
}
