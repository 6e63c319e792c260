//! The text of HTML: what a reader of the page sees, block by block.
//!
//! Tags are dropped; scripts, styles, the head (but for the title) and comments go with all that is in them. Elements
//! that stand on lines of their own end a line, headings become `#` lines and `<code>` becomes a span in backticks, as
//! in Markdown, for the readers that look for either. In `<pre>` white space stays as it is. What is not well formed is
//! read as far as it goes: no text is an error.

/// Elements whose content nobody reads.
const SILENT: [&str; 8] = ["script", "style", "template", "noscript", "svg", "iframe", "object", "select"];

/// Elements that begin and end a paragraph.
const BLOCKS: [&str; 30] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "figure",
    "footer",
    "form",
    "head",
    "header",
    "hr",
    "html",
    "li",
    "main",
    "nav",
    "ol",
    "p",
    "pre",
    "section",
    "summary",
    "table",
    "tbody",
    "title",
    "tr",
    "ul",
];

/// Named character references that pages use; others stay as they are.
const ENTITIES: [(&str, &str); 28] = [
    ("amp", "&"),
    ("lt", "<"),
    ("gt", ">"),
    ("quot", "\""),
    ("apos", "'"),
    ("nbsp", " "),
    ("ndash", "–"),
    ("mdash", "—"),
    ("hellip", "…"),
    ("lsquo", "‘"),
    ("rsquo", "’"),
    ("ldquo", "“"),
    ("rdquo", "”"),
    ("laquo", "«"),
    ("raquo", "»"),
    ("copy", "©"),
    ("reg", "®"),
    ("trade", "™"),
    ("times", "×"),
    ("middot", "·"),
    ("bull", "•"),
    ("deg", "°"),
    ("sect", "§"),
    ("para", "¶"),
    ("rarr", "→"),
    ("larr", "←"),
    ("euro", "€"),
    ("shy", ""),
];

/// The longest reference, for a `&` that begins none.
const REFERENCE_BYTES_MAX: usize = 12;

/// The text of a page.
pub(super) fn text_of(html: &str) -> String {
    let mut page = Page::default();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        page.text(&rest[..at]);
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.find("-->").map_or("", |end| &comment[end + 3..]);
            continue;
        }
        let Some(tag) = Tag::read(rest) else {
            page.text("<");
            rest = &rest[1..];
            continue;
        };
        rest = &rest[tag.bytes..];
        if !tag.closes && SILENT.contains(&tag.name.as_str()) {
            rest = behind_the_end(rest, &tag.name);
        } else {
            page.tag(&tag);
        }
    }
    page.text(rest);
    page.end()
}

/// What follows `</name>`; nothing if it never comes.
fn behind_the_end<'a>(rest: &'a str, name: &str) -> &'a str {
    let mut from = 0;
    while let Some(at) = rest[from..].find("</").map(|at| from + at) {
        match Tag::read(&rest[at..]) {
            Some(tag) if tag.name == name => return &rest[at + tag.bytes..],
            _ => from = at + 2,
        }
    }
    ""
}

/// A tag, or a declaration, which has no name.
struct Tag {
    /// In lower case.
    name: String,
    closes: bool,
    /// From `<` to `>`.
    bytes: usize,
}

impl Tag {
    /// The tag that `text` begins with; `None` where `<` is but a character.
    fn read(text: &str) -> Option<Tag> {
        let inner = text.strip_prefix('<')?;
        let closes = inner.starts_with('/');
        let begin = &inner[usize::from(closes)..];
        if !begin.starts_with(|c: char| c.is_ascii_alphabetic() || c == '!' || c == '?') {
            return None;
        }
        let name: String = begin.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let mut quote = None;
        let end = text.char_indices().find(|(_, c)| match (quote, *c) {
            (Some(open), c) => {
                quote = (c != open).then_some(open);
                false
            }
            (None, '"' | '\'') => {
                quote = Some(*c);
                false
            }
            (None, c) => c == '>',
        });
        // A quote that never closes is no quote.
        let end = end.map(|(at, _)| at).or_else(|| text.find('>')).unwrap_or(text.len() - 1);
        Some(Tag { name: name.to_ascii_lowercase(), closes, bytes: end + 1 })
    }
}

/// The text so far.
#[derive(Default)]
struct Page {
    out: String,
    /// How many `<pre>` are open.
    pre: usize,
    /// Whether white space stands between what is written and what comes.
    space: bool,
    /// Whether the element is within the head, of which the title alone is read.
    in_head: bool,
    in_title: bool,
}

impl Page {
    fn tag(&mut self, tag: &Tag) {
        match (tag.name.as_str(), tag.closes) {
            ("head", closes) => self.in_head = !closes,
            ("body", false) => self.in_head = false,
            ("title", closes) => self.in_title = !closes,
            ("br", _) => self.line(1),
            ("pre", false) => {
                self.line(2);
                self.out.push_str("```\n");
                self.pre += 1;
            }
            ("pre", true) if self.pre > 0 => {
                self.line(1);
                self.out.push_str("```");
                self.pre -= 1;
                self.line(2);
            }
            ("code" | "kbd" | "samp", closes) if self.pre == 0 => match closes {
                true => self.out.push('`'),
                false => self.mark("`"),
            },
            ("td" | "th", false) => self.space = true,
            (name, closes) if is_heading(name) => {
                self.line(2);
                if !closes {
                    let level = usize::from(name.as_bytes()[1] - b'0');
                    self.out.push_str(&"#".repeat(level));
                    self.space = true;
                }
            }
            ("li", false) => {
                self.line(1);
                self.out.push_str("- ");
            }
            ("li" | "tr" | "dt" | "dd", _) => self.line(1),
            (name, _) if BLOCKS.contains(&name) => self.line(2),
            _ => {}
        }
    }

    /// Something that is written close to what follows it.
    fn mark(&mut self, mark: &str) {
        if std::mem::take(&mut self.space) && !self.out.is_empty() && !self.out.ends_with(char::is_whitespace) {
            self.out.push(' ');
        }
        self.out.push_str(mark);
    }

    fn text(&mut self, text: &str) {
        if self.in_head && !self.in_title {
            return;
        }
        let text = &decoded(text);
        if self.pre > 0 {
            self.out.push_str(text);
            return;
        }
        for (n, word) in text.split(char::is_whitespace).enumerate() {
            self.space |= n > 0;
            if !word.is_empty() {
                self.mark(word);
            }
        }
    }

    /// Ends the line, with an empty one behind it for 2.
    fn line(&mut self, ends: usize) {
        self.space = false;
        if self.pre == 0 {
            self.out.truncate(self.out.trim_end_matches(' ').len());
        }
        if self.out.is_empty() {
            return;
        }
        let there = self.out.len() - self.out.trim_end_matches('\n').len();
        self.out.push_str(&"\n".repeat(ends.saturating_sub(there)));
    }

    fn end(self) -> String {
        self.out.trim().to_owned()
    }
}

fn is_heading(name: &str) -> bool {
    matches!(name.as_bytes(), [b'h', b'1'..=b'6'])
}

/// `text` with its character references replaced.
fn decoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let end = rest.bytes().take(REFERENCE_BYTES_MAX).position(|byte| byte == b';');
        match end.and_then(|end| Some((character(&rest[..end])?, end))) {
            Some((character, end)) => {
                out.push_str(&character);
                rest = &rest[end + 1..];
            }
            None => out.push('&'),
        }
    }
    out + rest
}

/// What stands for `&reference;`.
fn character(reference: &str) -> Option<String> {
    let Some(number) = reference.strip_prefix('#') else {
        return ENTITIES.iter().find(|(name, _)| *name == reference).map(|(_, text)| (*text).to_owned());
    };
    let code = match number.strip_prefix(['x', 'X']) {
        Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16).ok()?,
        None => number.parse().ok()?,
    };
    char::from_u32(code).filter(|c| *c != '\0').map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_what_is_read_of_them() {
        let page = "<!DOCTYPE html><html><head><title>The &amp; manual</title><meta x=\"a>b\"><style>p { }</style>\
            </head>\
            <body onload='f(\"</body>\")'><h2>Set&nbsp;up</h2>\n<p>Use <code>--jobs</code>, not\n <b>more</b>.<br>\
            Twice: 1 < 2 \
            &#x2192; &#50;&bogus;</p><script>if (a < b) { \"<p>no</p>\" }</script><ul><li>one</li><li>two</li></ul>\
            <pre>a\n  b &lt;c&gt;</pre><!-- <p>hidden</p> --><table><tr><td>x</td><td>y</td></tr></table>";
        let text = "The & manual\n\n## Set up\n\nUse `--jobs`, not more.\nTwice: 1 < 2 → 2&bogus;\n\n- one\n- two\n\n\
            ```\na\n  b <c>\n```\n\nx y";
        assert_eq!(text_of(page), text);
    }

    #[test]
    fn what_is_not_well_formed_is_read_as_far_as_it_goes() {
        for (html, text) in [
            ("", ""),
            ("no tags & no end <", "no tags & no end <"),
            ("<p", ""),
            ("a<script>b", "a"),
            ("a</script>b", "ab"),
            ("<a href=\"x>y</a> z", "y z"),
            ("a <!-- b", "a"),
            ("&#0;&#xfffffff;&;&", "&#0;&#xfffffff;&;&"),
        ] {
            assert_eq!(text_of(html), text, "{html}");
        }
    }
}
