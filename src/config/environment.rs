//! `${NAME}` and `${NAME:-default}` inside string values. Pure: the environment is an argument, so that tests own it.
//! As in a shell, the default also stands in for an empty value. `$${` is a literal `${`; a `$` elsewhere is itself.
//! Values are not expanded again, and a default cannot contain another reference.

use std::borrow::Cow;
use std::ops::Range;

/// How values are looked up: the variable's name to its value.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process. What is not UTF-8 counts as not set.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Longest text that a value may have after expansion.
pub(super) const EXPANDED_BYTES_MAX: usize = 64 * 1024;

/// A text after expansion.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expanded<'a> {
    /// The text.
    pub(super) text: Cow<'a, str>,
    /// The first variable that had a part in it.
    pub(super) variable: Option<&'a str>,
}

/// Why a text cannot be expanded; `at` are the bytes of the reference.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unexpandable {
    pub(super) at: Range<usize>,
    pub(super) message: String,
    pub(super) help: String,
}

/// Replaces the references in `text`.
pub(super) fn expand<'a>(text: &'a str, environment: Environment<'_>) -> Result<Expanded<'a>, Unexpandable> {
    let mut out = String::new();
    let mut variable = None;
    let mut done = 0;
    let mut from = 0;
    while let Some(found) = text[from..].find("${").map(|n| from + n) {
        if text[done..found].ends_with('$') {
            out.push_str(&text[done..found]);
            out.push('{');
            done = found + 2;
            from = done;
            continue;
        }
        let Some(length) = text[found..].find('}') else {
            return Err(Unexpandable {
                at: found..text.len(),
                message: "`${` without `}`".into(),
                help: "write `${NAME}`, or `$${` for the characters `${` themselves".into(),
            });
        };
        let at = found..found + length + 1;
        let (name, value) = reference(text, at.clone(), environment)?;
        out.push_str(&text[done..found]);
        out.push_str(&value);
        if out.len() > EXPANDED_BYTES_MAX {
            return Err(Unexpandable {
                at,
                message: format!("longer than {EXPANDED_BYTES_MAX} bytes with its variables replaced"),
                help: format!("look at the value of `{name}`"),
            });
        }
        variable = variable.or(Some(name));
        done = found + length + 1;
        from = done;
    }
    if done == 0 {
        return Ok(Expanded { text: Cow::Borrowed(text), variable: None });
    }
    out.push_str(&text[done..]);
    Ok(Expanded { text: Cow::Owned(out), variable })
}

/// A variable's name and what stands in its place.
type Replaced<'a> = (&'a str, Cow<'a, str>);

fn reference<'a>(
    text: &'a str,
    at: Range<usize>,
    environment: Environment<'_>,
) -> Result<Replaced<'a>, Unexpandable> {
    let inside = &text[at.start + 2..at.end - 1];
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let first_is_letter = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !first_is_letter || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(Unexpandable {
            at,
            message: format!("`{name}` is not the name of an environment variable"),
            help: "write `${NAME}` or `${NAME:-default}` with letters, digits and `_` in the name, or `$${` for the \
                   characters `${` themselves"
                .into(),
        });
    }
    match (environment(name), default) {
        (Some(value), None) => Ok((name, Cow::Owned(value))),
        (Some(value), Some(_)) if !value.is_empty() => Ok((name, Cow::Owned(value))),
        (_, Some(default)) => Ok((name, Cow::Borrowed(default))),
        (None, None) => Err(Unexpandable {
            at,
            message: format!("the environment variable `{name}` is not set"),
            help: format!("set it, or write a default: \"${{{name}:-default}}\""),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("9000".into()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${PORT}".into()),
            "HUGE" => Some("x".repeat(EXPANDED_BYTES_MAX)),
            _ => None,
        }
    }

    fn text(value: &str) -> String {
        expand(value, &environment).unwrap().text.into_owned()
    }

    #[test]
    fn references_are_replaced_once() {
        assert_eq!(text("127.0.0.1:${PORT}"), "127.0.0.1:9000");
        assert_eq!(text("${PORT}${PORT}x${EMPTY}y"), "90009000xy");
        assert_eq!(text("${NESTED}"), "${PORT}");
        assert_eq!(expand("a${PORT}${EMPTY}", &environment).unwrap().variable, Some("PORT"));
    }

    #[test]
    fn defaults_stand_in_for_unset_and_empty() {
        assert_eq!(text("${PORT:-1}"), "9000");
        assert_eq!(text("${UNSET:-80}"), "80");
        assert_eq!(text("${EMPTY:-80}"), "80");
        assert_eq!(text("${UNSET:-}"), "");
        assert_eq!(text("${UNSET:-a:-b}"), "a:-b");
    }

    #[test]
    fn dollars_are_themselves_and_can_be_escaped() {
        assert_eq!(text("a$b$$c$"), "a$b$$c$");
        assert_eq!(text("$${PORT}"), "${PORT}");
        assert_eq!(text("$${${PORT}$${"), "${9000${");
        assert_eq!(text("öä"), "öä");
    }

    #[test]
    fn what_cannot_be_replaced_is_pointed_at() {
        let unset = expand("ä ${NOPE} b", &environment).unwrap_err();
        assert_eq!(&"ä ${NOPE} b"[unset.at], "${NOPE}");
        assert!(expand("${PORT", &environment).unwrap_err().message.contains("without"));
        for name in ["${}", "${1A}", "${A-B}", "${a b}", "${ä}", "${:-x}", "${PORT:9}"] {
            assert!(expand(name, &environment).unwrap_err().message.contains("not the name"), "{name}");
        }
        assert!(expand("x${HUGE}", &environment).unwrap_err().message.contains("longer than"));
    }
}
