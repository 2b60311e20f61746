//! A new path by template: `/v2/{id}/{rest}`, filled with what the variables of the route's own template stand for. Pure.
//!
//! Octets go over as they came, encoded or not. Refuses what could make another path than was written: variables side by side,
//! and a segment of a variable and dots, which could come out as `..`.

use super::changes::TooLong;
use super::pieces::{Piece, fill};
use super::template::{BadTemplate, Template};

/// A path with variables, parsed; not yet of any route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    text: Box<str>,
    /// Variables by name.
    pieces: Box<[Piece<Box<str>>]>,
}

/// A form, and the template that says what its variables stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filled {
    text: Box<str>,
    from: Template,
    /// Variables by their number in the template.
    pieces: Box<[Piece<usize>]>,
}

impl Form {
    /// Reads a form.
    ///
    /// # Errors
    /// When braces hold no name, two variables touch each other, a segment is a variable and dots, or there is no variable at
    /// all.
    pub fn parse(text: &str) -> Result<Self, BadTemplate> {
        let bad = |what: String, help: &str| Err(BadTemplate { what, help: help.into() });
        if !text.starts_with('/') {
            return bad("a path begins with `/`".into(), "write one such as \"/v2/{id}\"");
        }
        let mut pieces = Vec::new();
        for segment in text.split_inclusive('/') {
            let begin = pieces.len();
            let mut rest = segment;
            while let Some((before, behind)) = rest.split_once('{') {
                let Some((name, behind)) = behind.split_once('}') else {
                    return bad("`{` without `}`".into(), "write a variable such as {id}");
                };
                if let Some((name, _)) = name.split_once('=') {
                    let help =
                        format!("write {{{name}}}: the route's own path_template says what it stands for");
                    return bad("`=` in a variable".into(), &help);
                }
                if !Template::is_name(name) {
                    return bad(
                        format!("`{name}` is no name of a variable"),
                        "use letters, digits and `_`, with a letter first",
                    );
                }
                if before.is_empty() && pieces.len() > begin {
                    return bad(
                        format!("`{{{name}}}` stands at once behind another variable"),
                        "write something between them, such as `/` or `-`",
                    );
                }
                push_plain(&mut pieces, before);
                pieces.push(Piece::Of(name.into()));
                rest = behind;
            }
            let plain = segment_plain(&pieces[begin..], rest);
            if pieces.len() > begin && !plain.is_empty() && plain.bytes().all(|octet| octet == b'.') {
                return bad(
                    format!("`{}` could come out as `..`", segment.trim_end_matches('/')),
                    "write something else than dots beside the variable",
                );
            }
            push_plain(&mut pieces, rest);
        }
        if text.contains('}')
            && pieces.iter().any(|piece| matches!(piece, Piece::Plain(text) if text.contains('}')))
        {
            return bad("`}` without `{`".into(), "write a variable such as {id}");
        }
        if !pieces.iter().any(|piece| matches!(piece, Piece::Of(_))) {
            return bad(
                "there is no variable in it".into(),
                "write it as `path`, or a variable such as {id}",
            );
        }
        Ok(Self { text: text.into(), pieces: pieces.into() })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it has besides variables.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Plain(text) => Some(&**text),
            Piece::Of(_) => None,
        })
    }

    /// Of a route that is found by this template.
    ///
    /// # Errors
    /// The variable that the template does not have.
    pub fn of(&self, from: &Template) -> Result<Filled, Box<str>> {
        let pieces = self.pieces.iter().map(|piece| match piece {
            Piece::Plain(text) => Ok(Piece::Plain(text.clone())),
            Piece::Of(name) => match from.names().position(|known| *known == **name) {
                Some(at) => Ok(Piece::Of(at)),
                None => Err(name.clone()),
            },
        });
        Ok(Filled { text: self.text.clone(), pieces: pieces.collect::<Result<_, _>>()?, from: from.clone() })
    }
}

/// What a segment has besides variables, its slash left out.
fn segment_plain(pieces: &[Piece<Box<str>>], rest: &str) -> String {
    let plain = pieces.iter().map(|piece| match piece {
        Piece::Plain(text) => &**text,
        Piece::Of(_) => "",
    });
    plain.chain([rest.trim_end_matches('/')]).collect()
}

fn push_plain(pieces: &mut Vec<Piece<Box<str>>>, text: &str) {
    if !text.is_empty() {
        pieces.push(Piece::Plain(text.into()));
    }
}

impl Filled {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Writes the path that is made of one that came; one that the template does not mean stays.
    ///
    /// # Errors
    /// When it would be longer than any target may be.
    pub(super) fn write(&self, path: &[u8], out: &mut Vec<u8>) -> Result<(), TooLong> {
        let Some(captured) = self.from.capture(path) else {
            out.extend_from_slice(path);
            return Ok(());
        };
        fill(&self.pieces, |at| captured.get(at).copied().unwrap_or_default(), out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(template: &str, form: &str, path: &[u8]) -> Result<Vec<u8>, TooLong> {
        let filled = Form::parse(form).unwrap().of(&Template::parse(template).unwrap()).unwrap();
        let mut out = Vec::new();
        filled.write(path, &mut out).map(|()| out)
    }

    #[test]
    fn variables_stand_for_what_the_template_captured_octet_by_octet() {
        for (template, form, path, want) in [
            ("/u/{id}/i/{rest=**}", "/v2/{id}/items/{rest}", "/u/7/i/a/b", "/v2/7/items/a/b"),
            ("/u/{id}/i/{rest=**}", "/v2/{rest}/of/{id}", "/u/7/i/a/b", "/v2/a/b/of/7"),
            ("/u/{id}/i/{rest=**}", "/v2/{id}/{rest}", "/u/7/i/", "/v2/7/"),
            ("/u/{id}/i/{rest=**}", "/{id}/{id}", "/u/7/i/x", "/7/7"),
            ("/{a}/{b}", "/p-{b}-{a}.png", "/x/y", "/p-y-x.png"),
            // As it came: encoded, dots, empty segments.
            ("/f/{p=**}", "/g/{p}", "/f/a%2Fb//../%C3%A9", "/g/a%2Fb//../%C3%A9"),
            ("/f/{p=**}", "/{p}", "/f//evil.test/x", "//evil.test/x"),
            ("/f/{p}", "/g/{p}", "/f/%7Bid%7D", "/g/%7Bid%7D"),
            // Not meant: stays.
            ("/f/{p}", "/g/{p}", "/f/a/b", "/f/a/b"),
        ] {
            assert_eq!(
                made(template, form, path.as_bytes()).unwrap(),
                want.as_bytes(),
                "{template} {form} {path}"
            );
        }
        assert_eq!(made("/{a}", "/x/{a}", b"/\xff\x80").unwrap(), b"/x/\xff\x80");
        let long = format!("/{}", "x".repeat(12 * 1024));
        assert_eq!(made("/{a}", "/{a}/{a}/{a}", long.as_bytes()), Err(TooLong));
    }

    #[test]
    fn what_is_no_form_is_refused_and_so_is_a_variable_that_is_not_there() {
        for (form, what) in [
            ("v2/{id}", "begins with `/`"),
            ("/v2", "no variable"),
            ("/{id", "`{` without `}`"),
            ("/id}/{id}", "`}` without `{`"),
            ("/{i-d}", "`i-d` is no name"),
            ("/{}", "`` is no name"),
            ("/{7}", "`7` is no name"),
            ("/{a=**}", "`=` in a variable"),
            ("/{a}{b}", "`{b}` stands at once behind"),
            ("/.{a}", "could come out as `..`"),
            ("/x/{a}./y", "could come out as `..`"),
            ("/{a}.{b}", "could come out as `..`"),
        ] {
            let bad = Form::parse(form).unwrap_err();
            assert!(bad.what.contains(what), "{form}: {bad:?}");
        }
        let form = Form::parse("/{a}/{c}").unwrap();
        assert_eq!(form.of(&Template::parse("/{a}/{b}").unwrap()), Err("c".into()));
    }
}
