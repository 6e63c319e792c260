//! Markdown in a terminal, as it comes.
//!
//! The text of the block under way is parsed anew with each word (`pulldown-cmark`), and what its rendering has gained
//! is written; what was written is never taken back. So what could still turn out otherwise is held: an open `**`, a
//! word of which more may come, a line of code without its end, a table. Where a block turns out otherwise all the same
//! (a line of `===` below a paragraph), it is written once more as a whole.

mod render;

mod table;

mod wrap;

use std::ops::Range;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag};

use render::render;
use wrap::{Cell, Paint};

/// What is understood besides CommonMark.
pub(super) fn options() -> Options {
    Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS
}

/// A text that is shown while it comes.
pub struct Markdown {
    width: usize,
    /// Of the blocks that are not yet complete.
    text: String,
    /// What was written of the first of them.
    written: Vec<Cell>,
    /// Whether a block was written before.
    follows: bool,
    /// Whether the block became something else than what was written of it.
    broken: bool,
}

impl Markdown {
    /// For so many columns.
    pub fn new(width: usize) -> Markdown {
        Markdown { width: width.max(20), text: String::new(), written: Vec::new(), follows: false, broken: false }
    }

    /// What a piece of text adds to what is shown, with the terminal's codes.
    pub fn push(&mut self, piece: &str) -> String {
        self.text.push_str(piece);
        // Between two words nothing becomes sure.
        if piece.contains(char::is_whitespace) { self.advance(false) } else { String::new() }
    }

    /// The rest.
    pub fn finish(&mut self) -> String {
        self.advance(true)
    }

    fn advance(&mut self, end: bool) -> String {
        let mut shown = String::new();
        loop {
            let sure = if end { self.text.len() } else { word_end(&self.text) };
            let mut blocks = blocks(&self.text[..sure]);
            if !end && blocks.first().is_some_and(|first| first.kind == Kind::Table) {
                // A line that is a row only as a whole looks like the end of the table.
                blocks = self::blocks(&self.text[..line_end(&self.text)]);
            }
            let Some(first) = blocks.first() else { break };
            let next = blocks.get(1).map(|next| next.range.start);
            if next.is_none() && !end {
                let settled = first.settled(&self.text[..sure]);
                let cells = render(&self.text[..settled], self.width);
                self.add(&cells, &mut shown);
                break;
            }
            let cells = render(&self.text[..next.unwrap_or(sure)], self.width);
            self.end_block(&cells, &mut shown);
            self.text.drain(..next.unwrap_or(sure));
        }
        shown
    }

    /// Writes what is new in the rendering of a block.
    fn add(&mut self, cells: &[Cell], shown: &mut String) {
        if self.broken || !cells.starts_with(&self.written) {
            // Less is no contradiction: something more is held now.
            self.broken |= !self.written.starts_with(cells);
            return;
        }
        if self.written.is_empty() && !cells.is_empty() && self.follows {
            shown.push('\n');
        }
        ansi(&cells[self.written.len()..], shown);
        self.written = cells.to_vec();
    }

    fn end_block(&mut self, cells: &[Cell], shown: &mut String) {
        if self.broken || !cells.starts_with(&self.written) {
            shown.push('\n');
            self.written.clear();
            (self.broken, self.follows) = (false, false);
        }
        self.add(cells, shown);
        if !cells.is_empty() {
            shown.push('\n');
            self.follows = true;
        }
        self.written.clear();
    }
}

/// Up to where the words are complete.
fn word_end(text: &str) -> usize {
    text.char_indices().rev().find(|(_, c)| c.is_whitespace()).map_or(0, |(at, c)| at + c.len_utf8())
}

/// Up to where the lines are complete.
fn line_end(text: &str) -> usize {
    text.rfind('\n').map_or(0, |at| at + 1)
}

/// A block that is not within another one.
struct Block {
    range: Range<usize>,
    kind: Kind,
    /// Where the first mark stands that may yet begin something.
    open: Option<usize>,
}

#[derive(PartialEq, Eq)]
enum Kind {
    /// Its lines are sure when they are complete.
    Code,
    /// Its columns are known at its end.
    Table,
    Other,
}

impl Block {
    /// Up to where its text will be shown as it would be now.
    fn settled(&self, text: &str) -> usize {
        match self.kind {
            Kind::Table => 0,
            Kind::Code => line_end(text),
            // It may become a table.
            Kind::Other if text[self.range.start..].trim_start().starts_with('|') => 0,
            Kind::Other => self.open.map_or(text.len(), |open| word_end(&text[..open])),
        }
    }
}

fn blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut depth): (Vec<Block>, usize) = (Vec::new(), 0);
    for (event, range) in Parser::new_ext(text, options()).into_offset_iter() {
        if depth == 0 {
            blocks.push(Block { range: range.clone(), kind: kind(&event), open: None });
        }
        let block = blocks.last_mut().expect("pushed at depth 0");
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(_) | CodeBlockKind::Indented)) => {
                block.kind = Kind::Code;
                depth += 1;
            }
            Event::Start(_) => depth += 1,
            Event::End(_) => depth -= 1,
            Event::Text(_) if block.kind != Kind::Code && block.open.is_none() => {
                block.open = open_mark(text, range);
            }
            _ => {}
        }
    }
    blocks
}

fn kind(event: &Event) -> Kind {
    match event {
        Event::Start(Tag::CodeBlock(_)) => Kind::Code,
        Event::Start(Tag::Table(_)) => Kind::Table,
        _ => Kind::Other,
    }
}

/// The first mark in what is plain text so far that could begin emphasis, code or a link.
fn open_mark(text: &str, range: Range<usize>) -> Option<usize> {
    let begin = range.start;
    text[range].char_indices().map(|(at, c)| (begin + at, c)).find_map(|(at, c)| {
        let before = text[..at].chars().next_back();
        let after = text[at + c.len_utf8()..].chars().next();
        let opens = match c {
            '`' | '[' => true,
            '*' | '~' => after.is_some_and(|c| !c.is_whitespace()),
            // Within a word it is a part of it.
            '_' => after.is_some_and(|c| !c.is_whitespace()) && before.is_none_or(|c| !c.is_alphanumeric() && c != '_'),
            _ => false,
        };
        opens.then_some(at)
    })
}

/// Text with the codes of its paints.
fn ansi(cells: &[Cell], out: &mut String) {
    let mut paint = Paint::default();
    for (c, own) in cells {
        if *own != paint {
            out.push_str("\x1b[0m");
            out.push_str(&own.codes());
            paint = *own;
        }
        out.push(*c);
    }
    if paint != Paint::default() {
        out.push_str("\x1b[0m");
    }
}

#[cfg(test)]
mod tests;
