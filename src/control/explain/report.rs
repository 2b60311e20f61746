//! An explanation for people, and what differs between two. Pure.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Explanation, Line, Question};

/// The width of names.
const NAMES: usize = 11;

/// As text.
pub(in crate::control) fn text(question: &Question, explanation: &Explanation) -> String {
    let mut text = format!("{}\n\n", question.text());
    let mut services: Vec<&str> =
        explanation.lines.iter().filter_map(|line| line.service.as_deref()).collect();
    services.dedup();
    for line in &explanation.lines {
        let _ = writeln!(text, "{}", line_text(line, services.len() > 1));
    }
    if !explanation.others.is_empty() {
        text += "\nother routes\n";
        let width = explanation.others.iter().map(|other| other.route.len()).max().unwrap_or(0).min(30);
        for other in &explanation.others {
            let _ = writeln!(text, "  {:width$} {}", other.route, other.why);
        }
    }
    if explanation.left_out > 0 {
        let _ = writeln!(
            text,
            "\n{} further away; ask for all of them with `all`",
            if explanation.left_out == 1 {
                "1 more route is".into()
            } else {
                format!("{} more routes are", explanation.left_out)
            }
        );
    }
    text
}

/// A line; where there are several services, each line of theirs says which.
fn line_text(line: &Line, several: bool) -> String {
    match &line.service {
        Some(service) if several => format!("{:NAMES$} {service}: {}", line.name, line.text),
        _ => format!("{:NAMES$} {}", line.name, line.text),
    }
}

/// One thing that differs.
pub(super) struct Change<'e> {
    before: Option<&'e Line>,
    after: Option<&'e Line>,
}

/// What differs in what applies, in its order. Which other routes there are does not count, nor where they stand in the files.
pub(super) fn changes<'e>(before: &'e Explanation, after: &'e Explanation) -> Vec<Change<'e>> {
    let same = |one: &Line, other: &Line| one.name == other.name && one.service == other.service;
    let counts = |line: &&Line| line.name != "place";
    let gone_or_changed = before.lines.iter().filter(counts).filter_map(|line| {
        let after = after.lines.iter().find(|other| same(line, other));
        (after != Some(line)).then_some(Change { before: Some(line), after })
    });
    let new =
        after.lines.iter().filter(counts).filter(|line| !before.lines.iter().any(|other| same(line, other)));
    gone_or_changed.chain(new.map(|line| Change { before: None, after: Some(line) })).collect()
}

/// As text.
pub(super) fn changes_text(question: &Question, changes: &[Change<'_>]) -> String {
    let mut text = format!("{}\n\n", question.text());
    if changes.is_empty() {
        text += "nothing changes for it\n";
    }
    for change in changes {
        if let Some(line) = change.before {
            let _ = writeln!(text, "- {}", line_text(line, true));
        }
        if let Some(line) = change.after {
            let _ = writeln!(text, "+ {}", line_text(line, true));
        }
    }
    text
}

/// For programs.
pub(super) fn changes_json(question: &Question, changes: &[Change<'_>]) -> Value {
    let of = |line: Option<&Line>| line.map(|line| line.json.clone());
    let all = changes.iter().filter_map(|change| {
        let Line { name, service, .. } = change.before.or(change.after)?;
        Some(json!({
            "name": name, "service": service.as_deref(), "before": of(change.before), "after": of(change.after),
        }))
    });
    json!({ "version": 1, "request": question.json(), "changes": all.collect::<Vec<_>>() })
}
