//! Characters with their paint, in lines of limited width.

use unicode_width::UnicodeWidthChar;

/// How a character looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paint {
    pub bold: bool,
    pub italic: bool,
    pub underlined: bool,
    pub struck: bool,
    pub dim: bool,
    pub code: bool,
}

/// A character.
pub type Cell = (char, Paint);

impl Paint {
    pub fn codes(self) -> String {
        let on = [
            (self.bold, "1"),
            (self.dim, "2"),
            (self.italic, "3"),
            (self.underlined, "4"),
            (self.struck, "9"),
            (self.code, "36"),
        ];
        let codes: Vec<&str> = on.into_iter().filter(|(on, _)| *on).map(|(_, code)| code).collect();
        if codes.is_empty() { String::new() } else { format!("\x1b[{}m", codes.join(";")) }
    }
}

pub fn painted(text: &str, paint: Paint) -> impl Iterator<Item = Cell> + '_ {
    text.chars().map(move |c| (c, paint))
}

/// Columns that cells take.
pub fn columns(cells: &[Cell]) -> usize {
    cells.iter().map(|(c, _)| c.width().unwrap_or(0)).sum()
}

/// Lines of at most so many columns, broken between words; a longer word is not broken. What begins alike has lines
/// that begin alike.
pub fn wrapped(cells: &[Cell], width: usize) -> Vec<Vec<Cell>> {
    let mut lines = Vec::new();
    for part in cells.split(|(c, _)| *c == '\n') {
        let (mut line, mut used): (Vec<Cell>, usize) = (Vec::new(), 0);
        for word in part.split_inclusive(|(c, _)| *c == ' ') {
            let (word, space) = match word.split_last() {
                Some((last, word)) if last.0 == ' ' => (word, Some(*last)),
                _ => (word, None),
            };
            let wide = columns(word);
            let spaces = line.iter().rev().take_while(|(c, _)| *c == ' ').count();
            if used + wide > width && used > spaces {
                line.truncate(line.len() - spaces);
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            line.extend_from_slice(word);
            line.extend(space);
            used += wide + usize::from(space.is_some());
        }
        while line.pop_if(|(c, _)| *c == ' ').is_some() {}
        lines.push(line);
    }
    lines
}
