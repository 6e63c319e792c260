//! Questions out of documents: sentences in which something checkable is blanked out, a code span, a number or a name.
//!
//! ```text
//! document   Markdown, reStructuredText, text   → sections, without code blocks and tables
//! section    heading, sentences                 → sentences of 8 to 45 words
//! sentence   spans that stand in it once        → question, answer, passage around it
//! ```
//! What is asked follows from the document alone. Whether a question can be answered is for whoever asks a model.

use std::ops::Range;

use wels_data::Message;

/// Words of a sentence that is asked about.
const WORDS: std::ops::RangeInclusive<usize> = 8..=45;
/// Words of the sentence before what is asked for, enough to tell which sentence it is.
const WORDS_BEFORE: usize = 3;
/// Questions of one sentence.
const SPANS_MAX: usize = 2;
/// Characters of an answer.
const ANSWER_CHARS: std::ops::RangeInclusive<usize> = 2..=40;
/// Sentences before and behind one, that are shown with it.
const AROUND: usize = 2;
/// Bytes of a passage; of a longer one the sentence alone is shown.
const PASSAGE_BYTES_MAX: usize = 1500;
/// Bytes of a heading that is shown.
const HEADING_BYTES_MAX: usize = 120;

const ASKS: &str = "Say the next word.";
/// Shown before each question, for the form of the answer.
const EXAMPLE: (&str, &str) = ("Planets: The planet that is nearest to the sun is", "Mercury");

/// A sentence with something to be blanked out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloze {
    /// What the section is called, or the document.
    pub heading: String,
    /// The sentence and those around it.
    pub passage: String,
    /// The whole of it.
    pub sentence: String,
    /// Bytes of the sentence that are asked for.
    pub blank: Range<usize>,
}

impl Cloze {
    /// What stands in the blank.
    pub fn answer(&self) -> &str {
        &self.sentence[self.blank.clone()]
    }

    /// The question as a chat, behind one about something else that shows the form of an answer.
    pub fn messages(&self) -> Vec<Message> {
        let asked = |question: &str| format!("{ASKS} {question}");
        let question = asked(&self.beginning(false));
        let (example, answer) = EXAMPLE;
        vec![Message::new("user", &asked(example)), Message::new("assistant", answer), Message::new("user", &question)]
    }

    /// The sentence up to the blank, to be gone on with, which a small model does without being taught to; `open` shows
    /// the passage before it.
    pub fn beginning(&self, open: bool) -> String {
        let sentence = format!("{}: {}", self.heading, self.sentence[..self.blank.start].trim_end());
        if open { format!("{}\n\n{sentence}", self.passage) } else { sentence }
    }
}

/// The questions of a document, in the order of their sentences; `name` is its heading as long as it has none.
pub fn clozes(name: &str, document: &str) -> Vec<Cloze> {
    let mut found = Vec::new();
    for Section { heading, sentences } in sections(name, document) {
        for (at, sentence) in sentences.iter().enumerate() {
            if !WORDS.contains(&sentence.split_whitespace().count()) {
                continue;
            }
            let spans = spans(sentence).into_iter().filter(|span| is_asked_for(span, sentence, &heading));
            for blank in spans.take(SPANS_MAX) {
                let passage = passage(&sentences, at);
                found.push(Cloze { heading: heading.clone(), passage, sentence: sentence.clone(), blank });
            }
        }
    }
    found
}

/// Whether the sentence has the answer once, behind some of its words, and the heading does not give it away.
fn is_asked_for(span: &Range<usize>, sentence: &str, heading: &str) -> bool {
    let answer = &sentence[span.clone()];
    let lower = answer.to_lowercase();
    let words_before = sentence[..span.start].split_whitespace().filter(|word| word.contains(char::is_alphanumeric));
    words_before.count() >= WORDS_BEFORE
        && ANSWER_CHARS.contains(&answer.chars().count())
        && sentence.to_lowercase().matches(&lower).count() == 1
        && !heading.to_lowercase().contains(&lower)
}

fn passage(sentences: &[String], at: usize) -> String {
    let around = &sentences[at.saturating_sub(AROUND)..(at + AROUND + 1).min(sentences.len())];
    let passage = around.join(" ");
    if passage.len() <= PASSAGE_BYTES_MAX { passage } else { sentences[at].clone() }
}

/// What stands under one heading.
struct Section {
    heading: String,
    sentences: Vec<String>,
}

fn sections(name: &str, document: &str) -> Vec<Section> {
    let mut sections = vec![Section { heading: name.to_owned(), sentences: Vec::new() }];
    let mut block = String::new();
    let mut fence: Option<&str> = None;
    let close = |block: &mut String, sections: &mut Vec<Section>| {
        let text = plain(&std::mem::take(block));
        sections.last_mut().expect("there is one at first").sentences.extend(sentences(&text));
    };
    for line in document.lines() {
        let text = line.trim();
        if let Some(open) = fence {
            fence = (!text.starts_with(open)).then_some(open);
            continue;
        }
        if let Some(open) = ["```", "~~~"].into_iter().find(|mark| text.starts_with(mark)) {
            fence = Some(open);
            close(&mut block, &mut sections);
        } else if let Some(heading) = heading(text, &block) {
            if text.starts_with('#') {
                close(&mut block, &mut sections);
            }
            block.clear();
            sections.push(Section { heading: cut(&plain(&heading), HEADING_BYTES_MAX), sentences: Vec::new() });
        } else if text.is_empty() || is_no_prose(text) {
            close(&mut block, &mut sections);
        } else {
            let item = item_of_list(text);
            if item.is_some() {
                close(&mut block, &mut sections);
            }
            block.push_str(item.unwrap_or(text).trim_start_matches("> "));
            block.push(' ');
        }
    }
    close(&mut block, &mut sections);
    sections
}

/// The heading that ends with this line: of Markdown, or the one line before that reStructuredText underlines.
fn heading(line: &str, block: &str) -> Option<String> {
    let marks = line.bytes().take_while(|byte| *byte == b'#').count();
    if (1..=6).contains(&marks) && line[marks..].starts_with(' ') {
        return Some(line[marks..].trim_matches(['#', ' ']).to_owned());
    }
    let first = line.chars().next().filter(|c| "=-~^\"'*+".contains(*c))?;
    let underlines = line.chars().count() >= 3 && line.chars().all(|c| c == first);
    (underlines && !block.trim().is_empty() && block.trim().len() <= HEADING_BYTES_MAX).then(|| block.trim().to_owned())
}

/// Tables, definitions of links, comments, pictures, rules.
fn is_no_prose(line: &str) -> bool {
    let is_rule = line.len() >= 3 && line.bytes().all(|byte| b"-=*_~^+".contains(&byte));
    is_rule
        || line.starts_with('|')
        || line.starts_with("<!--")
        || line.starts_with("![")
        || line.starts_with(".. ")
        || (line.starts_with('[') && line.contains("]: "))
}

/// The text of an item behind its mark.
fn item_of_list(line: &str) -> Option<&str> {
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let numbered = line[digits..].strip_prefix(". ").filter(|_| digits > 0);
    ["- ", "* ", "+ "].iter().find_map(|mark| line.strip_prefix(mark)).or(numbered)
}

/// Markdown's inline marks taken away, but for code spans: links are their texts.
fn plain(text: &str) -> String {
    let text = text.replace("``", "`").replace("**", "");
    let mut out = String::with_capacity(text.len());
    let mut code = false;
    let mut rest = text.as_str();
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '`' => {
                code = !code;
                out.push(c);
            }
            '[' | '!' if !code && (c == '[' || rest.starts_with('[')) => {}
            ']' if !code => {
                // `(address)` or `[name]` behind it.
                let close = [('(', ')'), ('[', ']')].into_iter().find(|(open, _)| rest.starts_with(*open));
                if let Some(end) = close.and_then(|(_, close)| rest.find(close)) {
                    rest = &rest[end + 1..];
                }
            }
            _ => out.push(c),
        }
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Where sentences end: a mark, white space, and then something that begins one.
fn sentences(text: &str) -> Vec<String> {
    const SHORTENED: [&str; 6] = ["e.g.", "i.e.", "etc.", "vs.", "cf.", "resp."];
    let (mut found, mut from, mut code) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        code ^= c == '`';
        let end = at + c.len_utf8();
        let mut behind = text[end..].chars();
        let ends = !code
            && ".!?".contains(c)
            && behind.next().is_none_or(char::is_whitespace)
            && behind.next().is_none_or(|next| next.is_uppercase() || "`\"“(".contains(next))
            && !SHORTENED.iter().any(|word| text[..end].ends_with(word));
        if ends {
            found.push(text[from..end].trim().to_owned());
            from = end;
        }
    }
    // What does not end with a mark is a line of a list, a caption, or a piece of something.
    found.retain(|sentence| sentence.matches('`').count() % 2 == 0);
    found
}

/// What may be asked for: code spans first, then numbers, then names.
fn spans(sentence: &str) -> Vec<Range<usize>> {
    let marks: Vec<usize> = sentence.match_indices('`').map(|(at, _)| at).collect();
    let code: Vec<Range<usize>> = marks.chunks_exact(2).map(|pair| pair[0] + 1..pair[1]).collect();
    let of_code = |span: &Range<usize>| {
        let text = &sentence[span.clone()];
        !text.contains(char::is_whitespace) && text.contains(char::is_alphanumeric)
    };
    let mut words = Vec::new();
    let mut from = 0;
    for word in sentence.split_whitespace() {
        let at = from + sentence[from..].find(word).expect("a word of it");
        from = at + word.len();
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
        if let Some(begin) = word.find(bare).filter(|_| !bare.is_empty()) {
            words.push(at + begin..at + begin + bare.len());
        }
    }
    let outside = |span: &Range<usize>| !code.iter().any(|code| span.start < code.end + 1 && code.start < span.end + 1);
    let is_number = |span: &Range<usize>| {
        let text = &sentence[span.clone()];
        text.starts_with(|c: char| c.is_ascii_digit())
            && text.bytes().all(|byte| byte.is_ascii_digit() || b".,".contains(&byte))
    };
    let is_name = |span: &Range<usize>| {
        let text = &sentence[span.clone()];
        let ended = sentence[..span.start].trim_end().ends_with(['.', '!', '?', ':']);
        span.start > 0
            && !ended
            && text.chars().count() >= 3
            && text.starts_with(char::is_uppercase)
            && text.chars().all(char::is_alphanumeric)
    };
    let plain: Vec<Range<usize>> = words.into_iter().filter(outside).collect();
    let mut spans: Vec<Range<usize>> = code.iter().filter(|span| of_code(span)).cloned().collect();
    spans.extend(plain.iter().filter(|span| is_number(span)).cloned());
    spans.extend(plain.iter().filter(|span| is_name(span)).cloned());
    spans
}

/// The beginning of `text`, of whole characters.
fn cut(text: &str, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANUAL: &str = "# Widgets\n\nA widget is built by the call [`build`](https://x.y/z) of its **factory**, once \
        all parts\nare there. It holds up to 64 parts, e.g. wheels, of which Vienna delivers most. Short one.\n\n\
        ```rust\nlet no = \"prose of more than eight words that nobody should ask about `x`.\";\n```\n\n\
        - The item `limit` of a list sets how many are made at a time.\n\
        - Without a mark at its end nothing is a sentence `x` here at all\n\n\
        Parts\n=====\n\nEvery part of a widget has a ``serial`` that is never given twice.\n\
        Parts are called parts, and `Parts` is what the list of them is called.\n";

    fn asked(document: &str) -> Vec<(String, String)> {
        let pairs = clozes("manual", document);
        pairs.iter().map(|it| (it.beginning(false), it.answer().to_owned())).collect()
    }

    #[test]
    fn sentences_are_asked_for_what_can_be_checked() {
        let expected = [
            ("Widgets: A widget is built by the call `", "build"),
            ("Widgets: It holds up to", "64"),
            ("Widgets: It holds up to 64 parts, e.g. wheels, of which", "Vienna"),
            ("Parts: Every part of a widget has a `", "serial"),
        ];
        let expected: Vec<_> = expected.map(|(question, answer)| (question.to_owned(), answer.to_owned())).into();
        assert_eq!(asked(MANUAL), expected);
    }

    #[test]
    fn the_passage_has_the_answer_and_the_question_alone_has_not() {
        for cloze in clozes("manual", MANUAL) {
            assert!(cloze.passage.contains(&cloze.sentence));
            let shown = |open| cloze.beginning(open);
            assert!(shown(true).contains(cloze.answer()) && !shown(false).contains(cloze.answer()), "{cloze:?}");
            assert!(shown(true).ends_with(&shown(false)));
            assert!(!cloze.messages().last().unwrap().content.as_str().unwrap().contains(cloze.answer()));
        }
    }

    #[test]
    fn whatever_a_document_holds_is_no_failure() {
        for document in
            ["", "`", "``` open", "# ", "###### ", "][)(", "[a](", "1. ", "ä`ö`. Ü", "===\n---", "\u{feff}# Ä\n\n"]
        {
            assert!(asked(document).is_empty(), "{document}");
        }
        let long = format!("# {}\n\nThe value of `x1` is what all of the others depend on here.", "ü".repeat(100));
        assert_eq!(clozes("n", &long)[0].heading.len(), HEADING_BYTES_MAX);
    }
}
