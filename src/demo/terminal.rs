//! Drawing: styled lines, cut to the width of the terminal, and a block of them that is redrawn in place.
//!
//! On a terminal a frame is one write: the cursor goes up to the block's first line, every line overwrites the old one,
//! and terminals that can hold a frame back until it is whole are asked to (mode 2026). Elsewhere frames are plain text.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

/// Lines are cut here where the width is not known.
const PLAIN_COLUMNS: usize = 160;

/// How a piece of text is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// As the terminal writes.
    Plain,
    /// What names the rest.
    Dim,
    /// What matters.
    Bold,
    /// A curve.
    Curve,
    /// What is wrong.
    Bad,
    /// That all is well.
    Good,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Dim => "\x1b[2m",
            Self::Bold => "\x1b[1m",
            Self::Curve => "\x1b[36m",
            Self::Bad => "\x1b[1;31m",
            Self::Good => "\x1b[32m",
        }
    }
}

/// One line, in pieces. Every character is one column wide.
#[derive(Debug, Clone, Default)]
pub(super) struct Line(Vec<(Style, String)>);

impl Line {
    /// An empty line.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The line, and a piece more.
    pub(super) fn add(mut self, style: Style, text: impl Into<String>) -> Self {
        self.0.push((style, text.into()));
        self
    }

    /// Columns.
    pub(super) fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.chars().count()).sum()
    }

    /// At most `columns` of it, without spaces at the end.
    pub(super) fn render(&self, colour: bool, columns: usize) -> String {
        let mut out = String::new();
        let mut left = columns;
        for (style, text) in &self.0 {
            let part: String = text.chars().take(left).collect();
            left -= part.chars().count();
            if colour && !style.code().is_empty() && !part.trim().is_empty() {
                let _ = write!(out, "{}{part}\x1b[0m", style.code());
            } else {
                out.push_str(&part);
            }
        }
        out.truncate(out.trim_end().len());
        out
    }
}

/// Standard output.
pub(super) struct Terminal {
    live: bool,
    colour: bool,
    /// Lines of the block that stands above the cursor.
    drawn: usize,
    /// Columns when it was drawn.
    columns: usize,
}

impl Terminal {
    /// Looks what standard output is.
    pub(super) fn of_stdout() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let live = io::stdout().is_terminal() && !dumb;
        let colour = live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { live, colour, drawn: 0, columns: 0 }
    }

    /// Whether a block can be redrawn in place.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// Columns.
    pub(super) fn columns(&self) -> usize {
        self.size().map_or(PLAIN_COLUMNS, |(columns, _)| columns)
    }

    /// Draws the block: in place of the last one, where that can be.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub(super) fn frame(&mut self, lines: &[Line]) -> io::Result<()> {
        let Some((columns, rows)) = self.size() else { return self.print(lines) };
        let mut out = String::from("\x1b[?2026h\x1b[?25l");
        if self.drawn > 0 && self.columns != columns {
            // The old block was wrapped anew by the terminal, nobody knows how.
            out.push_str("\x1b[2J\x1b[H");
        } else if self.drawn > 0 {
            let _ = write!(out, "\r\x1b[{}A", self.drawn);
        }
        // What does not fit cannot be reached by the cursor again.
        let shown = &lines[..lines.len().min(rows.saturating_sub(1))];
        for line in shown {
            let _ = write!(out, "{}\x1b[K\r\n", line.render(self.colour, columns));
        }
        out.push_str("\x1b[J\x1b[?2026l");
        (self.drawn, self.columns) = (shown.len(), columns);
        write(&out)
    }

    /// Writes lines below what is there, for good.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub(super) fn print(&mut self, lines: &[Line]) -> io::Result<()> {
        let columns = self.columns();
        // What the user typed (`^C`) stands where the cursor is.
        let mut out = if self.live { "\r\x1b[J".to_owned() } else { String::new() };
        for line in lines {
            out.push_str(&line.render(self.colour, columns));
            out.push('\n');
        }
        self.drawn = 0;
        write(&out)
    }

    /// Columns and rows of a terminal.
    fn size(&self) -> Option<(usize, usize)> {
        if !self.live {
            return None;
        }
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 0);
        Some(size.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into())))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.live {
            let _ = write("\x1b[?25h");
        }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_by_columns_whatever_its_colours() {
        let line = Line::new().add(Style::Bold, "año ").add(Style::Plain, "→ x").add(Style::Dim, "yz  ");
        assert_eq!(line.width(), 11);
        assert_eq!(line.render(false, 100), "año → xyz");
        assert_eq!(line.render(false, 6), "año →");
        assert_eq!(line.render(true, 5), "\x1b[1maño \x1b[0m→");
        assert_eq!(line.render(true, 0), "");
    }
}
