//! From the events of the parser to painted lines.

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Parser, Tag, TagEnd};

use super::wrap::{Cell, Paint, columns, painted, wrapped};
use super::{options, table};

/// Columns of a line between parts.
const RULE: usize = 40;

/// A text as it is shown, in lines of `width` columns; no line break at its end.
pub fn render(text: &str, width: usize) -> Vec<Cell> {
    let mut page = Page { width, ..Page::default() };
    Parser::new_ext(text, options()).for_each(|event| page.event(event));
    page.end_leaf();
    page.out
}

#[derive(Default)]
struct Page {
    width: usize,
    out: Vec<Cell>,
    /// What stands before every line: marks of quotes, the indent of lists.
    before: Vec<Vec<Cell>>,
    /// What stands before the next line in place of the last of these.
    marker: Option<Vec<Cell>>,
    /// Numbers of the lists around, `None` for those with points.
    lists: Vec<Option<u64>>,
    /// The text of a paragraph, a heading, an item.
    leaf: Vec<Cell>,
    paints: Vec<Paint>,
    code: Option<String>,
    links: Vec<(String, usize)>,
    rows: Vec<Vec<Vec<Cell>>>,
}

const DIM: Paint = Paint { bold: false, italic: false, underlined: false, struck: false, dim: true, code: false };

impl Page {
    fn paint(&self) -> Paint {
        self.paints.last().copied().unwrap_or_default()
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) => match &mut self.code {
                Some(code) => code.push_str(&text),
                None => self.add(&text, self.paint()),
            },
            Event::Code(text) => self.add(&text, Paint { code: true, ..self.paint() }),
            Event::SoftBreak | Event::HardBreak => self.add("\n", Paint::default()),
            Event::Html(text) | Event::InlineHtml(text) => self.add(&text, DIM),
            Event::Rule => self.line(painted(&"─".repeat(RULE.min(self.width)), DIM).collect()),
            Event::TaskListMarker(done) => self.add(if done { "☑ " } else { "☐ " }, Paint::default()),
            Event::FootnoteReference(text) | Event::InlineMath(text) | Event::DisplayMath(text) => {
                self.add(&text, self.paint());
            }
        }
    }

    fn add(&mut self, text: &str, paint: Paint) {
        let text = text.replace('\t', "    ");
        self.leaf.extend(painted(&text, paint));
    }

    fn start(&mut self, tag: Tag) {
        let paint = self.paint();
        match tag {
            Tag::Emphasis => self.paints.push(Paint { italic: true, ..paint }),
            Tag::Strong => self.paints.push(Paint { bold: true, ..paint }),
            Tag::Strikethrough => self.paints.push(Paint { struck: true, ..paint }),
            Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. } => {
                self.links.push((dest_url.into_string(), self.leaf.len()));
                self.paints.push(Paint { underlined: true, ..paint });
            }
            Tag::Heading { level, .. } => {
                self.end_leaf();
                let underlined = level == HeadingLevel::H1;
                self.paints.push(Paint { bold: true, underlined, ..paint });
            }
            Tag::CodeBlock(kind) => {
                self.end_leaf();
                self.code = Some(String::new());
                if let CodeBlockKind::Fenced(language) = kind
                    && !language.is_empty()
                {
                    self.line(painted(&format!("── {language}"), DIM).collect());
                }
            }
            Tag::BlockQuote(_) => {
                self.end_leaf();
                self.before.push(painted("│ ", DIM).collect());
            }
            Tag::List(first) => {
                self.end_leaf();
                self.lists.push(first);
            }
            Tag::Item => self.start_item(),
            Tag::TableHead => {
                self.rows.push(Vec::new());
                self.paints.push(Paint { bold: true, ..paint });
            }
            Tag::TableRow => self.rows.push(Vec::new()),
            _ => {}
        }
    }

    fn start_item(&mut self) {
        self.end_leaf();
        let marker = match self.lists.last_mut() {
            Some(Some(number)) => {
                *number += 1;
                format!("{}. ", *number - 1)
            }
            _ => "• ".to_owned(),
        };
        let marker: Vec<Cell> = painted(&marker, Paint::default()).collect();
        self.before.push(painted(&" ".repeat(columns(&marker)), Paint::default()).collect());
        self.marker = Some(marker);
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Emphasis | TagEnd::Strong | TagEnd::Strikethrough => drop(self.paints.pop()),
            TagEnd::Link | TagEnd::Image => self.end_link(),
            TagEnd::Heading(_) => {
                self.end_leaf();
                self.paints.pop();
            }
            TagEnd::Paragraph | TagEnd::HtmlBlock => self.end_leaf(),
            TagEnd::CodeBlock => self.end_code(),
            TagEnd::BlockQuote(_) => {
                self.end_leaf();
                self.before.pop();
            }
            TagEnd::List(_) => drop(self.lists.pop()),
            TagEnd::Item => {
                self.end_leaf();
                self.before.pop();
                self.marker = None; // an item without text
            }
            TagEnd::TableCell => {
                let cell = std::mem::take(&mut self.leaf);
                self.rows.last_mut().into_iter().for_each(|row| row.push(cell.clone()));
            }
            TagEnd::TableHead => drop(self.paints.pop()),
            TagEnd::Table => {
                let rows = std::mem::take(&mut self.rows);
                table::lines(&rows, self.room()).into_iter().for_each(|line| self.line(line));
            }
            _ => {}
        }
    }

    /// Where a link leads stands behind it, unless it is its text.
    fn end_link(&mut self) {
        self.paints.pop();
        let Some((address, begin)) = self.links.pop() else { return };
        let text: String = self.leaf[begin..].iter().map(|(c, _)| c).collect();
        if address != text && address.strip_prefix("mailto:") != Some(&text) {
            self.add(&format!(" ({address})"), DIM);
        }
    }

    fn end_code(&mut self) {
        let code = self.code.take().unwrap_or_default();
        for text in code.lines() {
            let text = text.replace('\t', "    ");
            let bar = painted("▏ ", DIM);
            self.line(bar.chain(painted(&text, Paint { code: true, ..Paint::default() })).collect());
        }
    }

    /// Columns beside what stands before every line.
    fn room(&self) -> usize {
        let before: usize = self.before.iter().map(|part| columns(part)).sum();
        self.width.saturating_sub(before + 1).max(10)
    }

    fn end_leaf(&mut self) {
        let leaf = std::mem::take(&mut self.leaf);
        if leaf.iter().all(|(c, _)| c.is_whitespace()) {
            return;
        }
        wrapped(&leaf, self.room()).into_iter().for_each(|line| self.line(line));
    }

    fn line(&mut self, line: Vec<Cell>) {
        if !self.out.is_empty() {
            self.out.push(('\n', Paint::default()));
        }
        let last = self.before.len().saturating_sub(1);
        for (at, part) in self.before.iter().enumerate() {
            let marker = self.marker.as_ref().filter(|_| at == last);
            self.out.extend_from_slice(marker.unwrap_or(part));
        }
        self.marker = None;
        self.out.extend(line);
    }
}
