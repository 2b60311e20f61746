//! Cuts a large file at its `[[...]]` headers, so that it is parsed and decoded piece by piece: a parsed tree takes thirty
//! times the bytes of its text, and only one piece's tree is in memory at a time. Small files, and those whose pieces
//! would not mean alone what they mean together, stay whole. Pure; decides by tokens alone and refuses nothing itself.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use toml_parser::Source;
use toml_parser::lexer::{Token, TokenKind};

/// Pieces are joined until they have so many bytes: some hundred services, some megabytes of tree.
pub(super) const CHUNK_BYTES: usize = 128 * 1024;

/// The parts of `text`, in order and without gaps, that may be parsed one after the other. A part has `chunk_bytes` or
/// more, except the last.
pub(super) fn chunks(text: &str, chunk_bytes: usize) -> Vec<Range<usize>> {
    let whole = std::iter::once(0..text.len()).collect();
    if text.len() <= chunk_bytes {
        return whole;
    }
    let Some(pieces) = pieces(text).filter(|pieces| independent(pieces)) else { return whole };
    let mut chunks = Vec::new();
    let mut start = 0;
    for piece in pieces.iter().skip(1) {
        if piece.start > start && piece.start - start >= chunk_bytes {
            chunks.push(start..piece.start);
            start = piece.start;
        }
    }
    chunks.push(start..text.len());
    chunks
}

/// What lies between two headers of the form `[[name]]`.
struct Piece<'t> {
    start: usize,
    /// The name in the header that begins it; the first piece has none.
    name: Option<&'t str>,
    /// First words of the other headers in it, and of the keys before any header.
    words: Vec<&'t str>,
}

/// `None` if a header or a key at the top is quoted: names could then be written in several ways.
fn pieces(text: &str) -> Option<Vec<Piece<'_>>> {
    let mut pieces = vec![Piece { start: 0, name: None, words: Vec::new() }];
    let mut before_headers = true;
    let mut depth = 0_usize;
    let mut at_line_start = true;
    let mut tokens = Source::new(text).lex().peekable();
    while let Some(token) = tokens.next() {
        let starts_line = std::mem::replace(&mut at_line_start, false);
        match token.kind() {
            TokenKind::Newline => at_line_start = depth == 0,
            TokenKind::Whitespace | TokenKind::Comment => at_line_start = starts_line,
            TokenKind::LeftSquareBracket if starts_line => {
                before_headers = false;
                let header = header(text, &mut tokens)?;
                if header.repeated && !header.nested {
                    let start = token.span().start();
                    pieces.push(Piece { start, name: Some(header.word), words: Vec::new() });
                } else {
                    pieces.last_mut()?.words.push(header.word);
                }
            }
            TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => depth += 1,
            TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => depth = depth.saturating_sub(1),
            TokenKind::Atom if starts_line && before_headers => {
                pieces.last_mut()?.words.push(words(text, token))
            }
            TokenKind::BasicString | TokenKind::LiteralString if starts_line && before_headers => {
                return None;
            }
            _ => {}
        }
    }
    Some(pieces)
}

struct Header<'t> {
    /// The first part of its name.
    word: &'t str,
    /// Whether the name has further parts.
    nested: bool,
    /// Whether it has two pairs of brackets.
    repeated: bool,
}

/// The rest of a header whose first bracket was taken, up to the end of its name.
fn header<'t>(
    text: &'t str,
    tokens: &mut std::iter::Peekable<impl Iterator<Item = Token>>,
) -> Option<Header<'t>> {
    let repeated = tokens.next_if(|token| token.kind() == TokenKind::LeftSquareBracket).is_some();
    while tokens.next_if(|token| token.kind() == TokenKind::Whitespace).is_some() {}
    let word = tokens.next_if(|token| token.kind() == TokenKind::Atom)?;
    let mut nested = false;
    while let Some(token) = tokens.next_if(|token| token.kind() != TokenKind::Newline) {
        nested |= token.kind() == TokenKind::Dot;
    }
    Some(Header { word: words(text, word), nested, repeated })
}

fn words(text: &str, token: Token) -> &str {
    text.get(token.span().start()..token.span().end()).unwrap_or_default()
}

/// Whether no piece says anything of what another piece is: a name of `[[name]]` stands as another header only below its
/// own, and every other table is in one piece.
fn independent(pieces: &[Piece<'_>]) -> bool {
    let repeated: HashSet<&str> = pieces.iter().filter_map(|piece| piece.name).collect();
    let mut home: HashMap<&str, usize> = HashMap::new();
    pieces.iter().enumerate().all(|(index, piece)| {
        piece.words.iter().all(|&word| {
            let below_its_own = piece.name == Some(word);
            below_its_own || (!repeated.contains(word) && *home.entry(word).or_insert(index) == index)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> usize {
        let chunks = chunks(text, 1);
        assert_eq!((chunks[0].start, chunks[chunks.len() - 1].end), (0, text.len()));
        assert!(chunks.windows(2).all(|two| two[0].end == two[1].start));
        chunks.len()
    }

    #[test]
    fn a_file_is_cut_at_repeated_headers() {
        assert_eq!(
            count(
                "a = 1\n[[s]]\nb = [\n[1],\n]\n[s.x]\n[[r]] # note\n  [[s]]\n[limits]\nc = \"\"\"\n[[s]]\n\"\"\"\n"
            ),
            4
        );
    }

    #[test]
    fn a_file_whose_pieces_mean_something_together_stays_whole() {
        for text in [
            "[[s]]\n[[r]]\n[s.x]\n",
            "[[s]]\n[x]\n[[s]]\n[x.y]\n",
            "x.y = 1\n[[s]]\n[x]\n",
            "s = 1\n[[s]]\n[[s]]\n",
            "\"s\" = 1\n[[s]]\n[[s]]\n",
            "[[\"s\"]]\n[[s]]\n",
            "[s]\n[[s]]\n[[s]]\n",
            "x = [\n[[s]]\n[[s]]\n",
        ] {
            assert_eq!(count(text), 1, "{text}");
        }
    }

    #[test]
    fn chunks_have_the_size_that_is_wanted() {
        let text = "[[s]]\nname = \"0123456789\"\n".repeat(1000);
        let chunks = chunks(&text, 1000);
        assert!(chunks.len() > 20);
        assert!(chunks.iter().rev().skip(1).all(|chunk| (1000..1100).contains(&chunk.len())));
    }
}
