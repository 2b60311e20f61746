//! `ringmesh explain FILE... -- GET https://shop/cart`: reads the files, asks, prints. Called by `main`. Needs no running
//! proxy and opens no socket; names of endpoints are not resolved.

use std::io::Write;
use std::path::PathBuf;

use clap::Parser;

use super::question::Question;
use super::report::{changes, changes_json, changes_text};
use super::{NEVER_SERVED, check_listener, explain, text};
use crate::config::{self, Compiled, Environment, Look};
use crate::control::canary::Canaries;
use crate::snapshot::Snapshot;

/// It is served, or nothing changes for it.
const SERVED: u8 = 0;
/// It is refused here, or something changes for it.
const REFUSED: u8 = 1;
/// The configuration or the question is wrong.
const WRONG: u8 = 2;

/// What is asked, behind `--`.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, name = "ringmesh explain FILE... --", disable_help_subcommand = true)]
pub struct Asked {
    /// The method
    #[arg(value_name = "METHOD")]
    method: String,
    /// The URL: `https://shop.example/cart?a=b`, shop.example/cart, or /cart for a request without host
    #[arg(value_name = "URL")]
    url: String,
    /// A field, as 'name: value'; repeat it for more
    #[arg(short = 'H', long = "header", value_name = "FIELD")]
    headers: Vec<String>,
    /// The verified identity of who calls
    #[arg(long, value_name = "SPIFFE_ID")]
    from: Option<String>,
    /// The address that the connection comes from
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    source: String,
    /// The listener by its name [default: the one with --port, or the first]
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// The port of the listener [default: that of the listener]
    #[arg(long, value_name = "NUMBER")]
    port: Option<String>,
}

/// How it is told.
#[derive(Debug, Default)]
pub struct How {
    /// As a JSON object.
    pub json: bool,
    /// With every other route.
    pub all: bool,
    /// Only what would be otherwise with these files.
    pub diff: Vec<PathBuf>,
}

impl Asked {
    fn question(&self) -> Result<Question, String> {
        let mut question = Question::new(&self.method, &self.url)?;
        self.headers.iter().try_for_each(|line| question.field(line))?;
        if let Some(from) = &self.from {
            question.from(from)?;
        }
        question.source(&self.source)?;
        if let Some(name) = &self.listener {
            question.listener(name);
        }
        if let Some(port) = &self.port {
            question.port(port)?;
        }
        Ok(question)
    }
}

/// Asks about the words behind `--`. Gives the exit code: 0 when the request would be served (with `diff`: when nothing
/// changes for it), 1 when it would be refused here (when something changes), 2 when files or words are wrong.
pub fn run(
    files: &[PathBuf],
    words: &[String],
    how: &How,
    environment: Environment<'_>,
    out: &mut dyn Write,
    look: Look,
) -> u8 {
    let asked = match Asked::try_parse_from(words) {
        Ok(asked) => asked,
        Err(error) => {
            let _ = write!(out, "{error}");
            return if error.use_stderr() { WRONG } else { SERVED };
        }
    };
    let told = asked.question().and_then(|question| {
        let (compiled, before) = snapshot(files, environment, look)?;
        check_listener(&before, &question)?;
        let explanation = explain(&compiled, &before, &question, how.all);
        if how.diff.is_empty() {
            let code = if explanation.is_served { SERVED } else { REFUSED };
            let shown = match how.json {
                true => format!("{:#}\n", explanation.json(&question)),
                false => text(&question, &explanation),
            };
            return Ok((shown, code));
        }
        let (compiled, after) = snapshot(&how.diff, environment, look)?;
        let after = explain(&compiled, &after, &question, how.all);
        let changes = changes(&explanation, &after);
        let shown = match how.json {
            true => format!("{:#}\n", changes_json(&question, &changes)),
            false => changes_text(&question, &changes),
        };
        Ok((shown, if changes.is_empty() { SERVED } else { REFUSED }))
    });
    let (shown, code) = told.unwrap_or_else(|wrong| (format!("{}\n", wrong.trim_end()), WRONG));
    // Nobody reads any more: the exit code still tells.
    let _ = write!(out, "{shown}");
    code
}

fn snapshot(
    files: &[PathBuf],
    environment: Environment<'_>,
    look: Look,
) -> Result<(Compiled, Snapshot), String> {
    let loaded = config::load(files, environment).map_err(|report| report.render(look))?;
    let mut snapshot = loaded.compiled.snapshot(NEVER_SERVED, &|_, _| Vec::new());
    Canaries::at_first_step(loaded.compiled.canaries()).apply(&mut snapshot);
    Ok((loaded.compiled, snapshot))
}
