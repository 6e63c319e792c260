//! Taking a completion apart: thinking, answer, faults of form.
//!
//! The full form is `<think> … </think> <answer> … </answer>` with nothing but white space around and between the two.
//! Which parts of it are asked for is the task's [`Format`]. Accuracy is more patient than form: the answer is looked
//! for after the last `</think>`, whatever else is wrong, and of several answers the last one counts. Only a completion
//! that is still thinking at its end has no answer.

const THINK: [&str; 2] = ["<think>", "</think>"];
const ANSWER: [&str; 2] = ["<answer>", "</answer>"];

/// Where thinking stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// Not asked for. Where a completion thinks nevertheless, its answer is looked for behind that.
    Free,
    /// Between `<think>` and `</think>`, at the start of the completion.
    Tagged,
    /// The prompt has opened `<think>` already: the completion begins inside, and closes it.
    Opened,
}

/// Where the answer stands, behind the thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerStyle {
    /// Between `<answer>` and `</answer>`.
    Tags,
    /// In the last `\boxed{…}` (MATH).
    Boxed,
    /// After the last `####`, to the end of its line (GSM8K).
    Hashes,
    LastNumber,
    Whole,
    /// The last fenced block of code; without one all of it, its indentation kept.
    Code,
    /// Between the tags, and there as [`AnswerStyle::Code`].
    TaggedCode,
}

/// The form that completions should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Where thinking stands.
    pub thinking: Thinking,
    /// Where the answer stands.
    pub answer: AnswerStyle,
}

/// A fault of form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum Fault {
    /// White space at most.
    #[error("the completion is empty")]
    Empty,
    /// `<think>` is missing.
    #[error("there is no <think>")]
    NoThinking,
    /// Something stands before `<think>`.
    #[error("there is text before <think>")]
    TextBeforeThinking,
    /// `<think>` without `</think>`: mostly a completion that was cut off.
    #[error("the thinking does not end")]
    ThinkingUnclosed,
    /// `<think>` within `<think>`.
    #[error("<think> stands within the thinking")]
    ThinkingNested,
    /// `</think>` where nothing is open.
    #[error("</think> closes nothing")]
    ThinkingUnopened,
    /// `<think>` again, behind `</think>`.
    #[error("thinking begins again behind </think>")]
    ThinkingTwice,
    /// Answer tags within the thinking.
    #[error("answer tags stand within the thinking")]
    AnswerInThinking,
    /// The answer is missing.
    #[error("no answer stands where it should")]
    NoAnswer,
    /// `<answer>` without `</answer>`, or a box without its brace.
    #[error("the answer does not end")]
    AnswerUnclosed,
    /// `</answer>` where nothing is open.
    #[error("</answer> closes nothing")]
    AnswerUnopened,
    /// More than one answer, or one within another.
    #[error("there is more than one answer")]
    SeveralAnswers,
    /// Text between `</think>` and `<answer>`, or behind `</answer>`.
    #[error("there is text around the answer tags")]
    TextAroundAnswer,
    /// The answer is white space.
    #[error("the answer is empty")]
    AnswerEmpty,
}

/// A completion taken apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Completion<'a> {
    /// Between the tags; to the end where it does not end; `None` without tags.
    pub thinking: Option<&'a str>,
    /// The answer, trimmed (code only of blank lines) and not empty; or why there is none.
    pub answer: Result<&'a str, Fault>,
    /// The first fault of form.
    pub fault: Option<Fault>,
}

impl Format {
    /// The full form.
    pub const TAGS: Format = Format { thinking: Thinking::Tagged, answer: AnswerStyle::Tags };

    /// Takes `completion` apart.
    pub fn parse<'a>(&self, completion: &'a str) -> Completion<'a> {
        if completion.trim().is_empty() {
            return Completion { thinking: None, answer: Err(Fault::Empty), fault: Some(Fault::Empty) };
        }
        let (thinking, rest) = split_thinking(completion, self.thinking);
        let Some(rest) = rest else {
            let fault = thinking_fault(completion, self.thinking).or(Some(Fault::ThinkingUnclosed));
            return Completion { thinking, answer: Err(Fault::ThinkingUnclosed), fault };
        };
        let answer = find_answer(rest, self.answer);
        let fault = thinking_fault(completion, self.thinking)
            .or_else(|| {
                thinking
                    .filter(|text| self.answer.is_tagged() && has_any(text, &ANSWER))
                    .map(|_| Fault::AnswerInThinking)
            })
            .or_else(|| answer_fault(rest, self.answer))
            .or(answer.err());
        Completion { thinking, answer, fault }
    }
}

impl AnswerStyle {
    /// Whether the answer stands in tags.
    fn is_tagged(self) -> bool {
        matches!(self, AnswerStyle::Tags | AnswerStyle::TaggedCode)
    }
}

fn has_any(text: &str, tags: &[&str]) -> bool {
    tags.iter().any(|tag| text.contains(tag))
}

/// The thinking, and what follows the last `</think>`; `None` for the latter where the thinking does not end.
fn split_thinking(completion: &str, thinking: Thinking) -> (Option<&str>, Option<&str>) {
    let begin = match (completion.find(THINK[0]), thinking) {
        (Some(at), _) if completion[..at].trim().is_empty() || thinking != Thinking::Opened => {
            Some(at + THINK[0].len())
        }
        (_, Thinking::Opened) => Some(0),
        _ => None,
    };
    match (begin, completion.rfind(THINK[1])) {
        (begin, Some(end)) => {
            let rest = &completion[end + THINK[1].len()..];
            let thought =
                begin.filter(|&begin| begin <= end).map_or(&completion[..end], |begin| &completion[begin..end]);
            let rest = if rest.contains(THINK[0]) { None } else { Some(rest) };
            (Some(thought), rest)
        }
        (Some(begin), None) => (Some(&completion[begin..]), None),
        (None, None) => (None, Some(completion)),
    }
}

/// The first fault of the think tags.
fn thinking_fault(completion: &str, thinking: Thinking) -> Option<Fault> {
    let mut text = completion;
    match thinking {
        Thinking::Free if !has_any(completion, &THINK) => return None,
        Thinking::Opened => {}
        Thinking::Free | Thinking::Tagged => {
            let Some(at) = completion.find(THINK[0]) else {
                return Some(if completion.contains(THINK[1]) { Fault::ThinkingUnopened } else { Fault::NoThinking });
            };
            if completion[..at].contains(THINK[1]) {
                return Some(Fault::ThinkingUnopened);
            }
            if !completion[..at].trim().is_empty() {
                return Some(Fault::TextBeforeThinking);
            }
            text = &completion[at + THINK[0].len()..];
        }
    }
    let Some(end) = text.find(THINK[1]) else {
        return Some(if text.contains(THINK[0]) { Fault::ThinkingNested } else { Fault::ThinkingUnclosed });
    };
    let (inside, behind) = (&text[..end], &text[end + THINK[1].len()..]);
    if inside.contains(THINK[0]) {
        return Some(Fault::ThinkingNested);
    }
    match (behind.find(THINK[0]), behind.find(THINK[1])) {
        (None, None) => None,
        (Some(open), Some(close)) if close < open => Some(Fault::ThinkingUnopened),
        (Some(_), _) => Some(Fault::ThinkingTwice),
        (None, Some(_)) => Some(Fault::ThinkingUnopened),
    }
}

fn find_answer(rest: &str, style: AnswerStyle) -> Result<&str, Fault> {
    let answer = match style {
        AnswerStyle::Tags => last_tagged(rest)?,
        AnswerStyle::Boxed => last_boxed(rest)?,
        AnswerStyle::Hashes => {
            let (_, behind) = rest.rsplit_once("####").ok_or(Fault::NoAnswer)?;
            behind.lines().next().unwrap_or_default()
        }
        AnswerStyle::LastNumber => last_number(rest).ok_or(Fault::NoAnswer)?,
        AnswerStyle::Whole => rest,
        AnswerStyle::Code => return code(rest),
        AnswerStyle::TaggedCode => return code(without_one_space(last_tagged(rest)?)),
    };
    let answer = answer.trim();
    if answer.is_empty() { Err(Fault::AnswerEmpty) } else { Ok(answer) }
}

/// The text of the last complete pair of answer tags; of nested ones the inner.
fn last_tagged(rest: &str) -> Result<&str, Fault> {
    let Some(end) = rest.rfind(ANSWER[1]) else {
        return Err(if rest.contains(ANSWER[0]) { Fault::AnswerUnclosed } else { Fault::NoAnswer });
    };
    let (_, answer) = rest[..end].rsplit_once(ANSWER[0]).ok_or(Fault::AnswerUnopened)?;
    Ok(answer)
}

/// The content of the last `\boxed{…}` or `\fbox{…}`, or of `\boxed 5`; of nested ones the outer.
pub(crate) fn last_boxed(text: &str) -> Result<&str, Fault> {
    let mut found = Err(Fault::NoAnswer);
    let mut from = 0;
    while let Some(at) = ["\\boxed", "\\fbox"].iter().filter_map(|command| text[from..].find(command)).min() {
        let command = from + at;
        let behind = command + if text[command..].starts_with("\\boxed") { 6 } else { 5 };
        match balanced(&text[behind..]) {
            Some((content, end)) => {
                found = Ok(content);
                from = behind + end;
            }
            None => {
                found = Err(Fault::AnswerUnclosed);
                from = behind;
            }
        }
    }
    found
}

/// The content of the braces that `text` begins with, and where they end; without braces one word.
fn balanced(text: &str) -> Option<(&str, usize)> {
    let start = text.len() - text.trim_start().len();
    if !text[start..].starts_with('{') {
        let word = text[start..].split(|c: char| c.is_whitespace() || c == '$').next()?;
        return (!word.is_empty()).then_some((word, start + word.len()));
    }
    let (mut depth, mut escaped) = (0usize, false);
    for (at, c) in text[start..].char_indices().map(|(at, c)| (start + at, c)) {
        match c {
            '\\' => {
                escaped = !escaped;
                continue;
            }
            '{' if !escaped => depth += 1,
            '}' if !escaped => depth -= 1,
            _ => {}
        }
        escaped = false;
        if depth == 0 {
            return Some((&text[start + 1..at], at + 1));
        }
    }
    None
}

/// The code in a text, without blank lines around it. Its first line keeps its indentation: a body that goes on with a
/// head has one.
fn code(text: &str) -> Result<&str, Fault> {
    let mut code = last_block(text).trim_end();
    while let Some((line, rest)) = code.split_once('\n')
        && line.trim().is_empty()
    {
        code = rest;
    }
    if code.is_empty() { Err(Fault::AnswerEmpty) } else { Ok(code) }
}

/// Without a single space in front, which is none of code: R1-Zero's template shows one behind `<answer>`.
fn without_one_space(text: &str) -> &str {
    match text.strip_prefix(' ') {
        Some(code) if !code.starts_with(char::is_whitespace) => code,
        _ => text,
    }
}

/// The last fenced block that is closed, without its language; or the only one, which was cut off.
fn last_block(text: &str) -> &str {
    let block = || {
        let (before, behind) = text.rsplit_once("```")?;
        let block = before.rsplit_once("```").map_or(behind, |(_, block)| block);
        Some(block.split_once('\n')?.1)
    };
    block().unwrap_or(text)
}

/// The last number, with its sign, commas and decimal point.
fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let mut start = end;
    while start > 0 {
        let digit_before = start >= 2 && bytes[start - 2].is_ascii_digit();
        match bytes[start - 1] {
            b'0'..=b'9' => start -= 1,
            b',' | b'.' if digit_before => start -= 1,
            b'.' => return Some(&text[with_sign(bytes, start - 1)..end]),
            _ => break,
        }
    }
    Some(&text[with_sign(bytes, start)..end])
}

/// Takes a minus sign in unless it stands between two numbers.
fn with_sign(bytes: &[u8], start: usize) -> usize {
    let minus = start > 0 && bytes[start - 1] == b'-';
    let within = start > 1 && (bytes[start - 2].is_ascii_alphanumeric() || bytes[start - 2] == b')');
    if minus && !within { start - 1 } else { start }
}

/// The first fault of the answer's form.
fn answer_fault(rest: &str, style: AnswerStyle) -> Option<Fault> {
    match style {
        AnswerStyle::Tags | AnswerStyle::TaggedCode => tag_fault(rest),
        AnswerStyle::Boxed if rest.matches("\\boxed").count() > 1 => Some(Fault::SeveralAnswers),
        AnswerStyle::Hashes if rest.matches("####").count() > 1 => Some(Fault::SeveralAnswers),
        _ => None,
    }
}

fn tag_fault(rest: &str) -> Option<Fault> {
    let Some(open) = rest.find(ANSWER[0]) else {
        return Some(if rest.contains(ANSWER[1]) { Fault::AnswerUnopened } else { Fault::NoAnswer });
    };
    let (before, text) = (&rest[..open], &rest[open + ANSWER[0].len()..]);
    if before.contains(ANSWER[1]) {
        return Some(Fault::AnswerUnopened);
    }
    let Some(close) = text.find(ANSWER[1]) else { return Some(Fault::AnswerUnclosed) };
    let behind = &text[close + ANSWER[1].len()..];
    if text[..close].contains(ANSWER[0]) || has_any(behind, &ANSWER) {
        return Some(Fault::SeveralAnswers);
    }
    (!before.trim().is_empty() || !behind.trim().is_empty()).then_some(Fault::TextAroundAnswer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_tags_is_exact() {
        let cases: [(&str, Result<&str, Fault>, Option<Fault>); 21] = [
            ("<think>a</think><answer> 4 </answer>", Ok("4"), None),
            (" <think> </think>\n<answer>4</answer>\n", Ok("4"), None),
            ("", Err(Fault::Empty), Some(Fault::Empty)),
            (" \n", Err(Fault::Empty), Some(Fault::Empty)),
            ("4", Err(Fault::NoAnswer), Some(Fault::NoThinking)),
            ("<answer>4</answer>", Ok("4"), Some(Fault::NoThinking)),
            ("so <think>a</think><answer>4</answer>", Ok("4"), Some(Fault::TextBeforeThinking)),
            ("<think>a", Err(Fault::ThinkingUnclosed), Some(Fault::ThinkingUnclosed)),
            ("<think>a<answer>4</answer>", Err(Fault::ThinkingUnclosed), Some(Fault::ThinkingUnclosed)),
            ("<think>a<think>b</think><answer>4</answer>", Ok("4"), Some(Fault::ThinkingNested)),
            ("<think>a<think>b</think></think><answer>4</answer>", Ok("4"), Some(Fault::ThinkingNested)),
            ("a</think><answer>4</answer>", Ok("4"), Some(Fault::ThinkingUnopened)),
            ("</think>a<think><answer>4</answer>", Err(Fault::ThinkingUnclosed), Some(Fault::ThinkingUnopened)),
            ("<think>a</think></think><answer>4</answer>", Ok("4"), Some(Fault::ThinkingUnopened)),
            ("<think>a</think><think>b</think><answer>4</answer>", Ok("4"), Some(Fault::ThinkingTwice)),
            ("<think><answer>3</answer></think><answer>4</answer>", Ok("4"), Some(Fault::AnswerInThinking)),
            ("<think>a</think>4", Err(Fault::NoAnswer), Some(Fault::NoAnswer)),
            ("<think>a</think><answer>4", Err(Fault::AnswerUnclosed), Some(Fault::AnswerUnclosed)),
            ("<think>a</think><answer>3</answer><answer>4</answer>", Ok("4"), Some(Fault::SeveralAnswers)),
            ("<think>a</think><answer>4</answer> so", Ok("4"), Some(Fault::TextAroundAnswer)),
            ("<think>a</think><answer> </answer>", Err(Fault::AnswerEmpty), Some(Fault::AnswerEmpty)),
        ];
        for (text, answer, fault) in cases {
            let parsed = Format::TAGS.parse(text);
            assert_eq!((parsed.answer, parsed.fault), (answer, fault), "{text:?}");
        }
    }

    #[test]
    fn code_is_the_last_block_whole_or_cut_off() {
        let format = Format { thinking: Thinking::Free, answer: AnswerStyle::Code };
        for (text, code) in [
            ("So:\n```python\nx = 1\n```\nand\n```\ny = 2\n```\ndone", "y = 2"),
            ("So:\n```python\nx = 1\ny =", "x = 1\ny ="),
            ("    return 1\n", "    return 1"),
        ] {
            assert_eq!(format.parse(text).answer, Ok(code), "{text:?}");
        }
    }

    #[test]
    fn code_in_tags_is_without_fences_and_keeps_its_indentation() {
        let format = Format { thinking: Thinking::Tagged, answer: AnswerStyle::TaggedCode };
        for (answer, code) in [
            ("```python\ndef f(x):\n    return x\n```", Ok("def f(x):\n    return x")),
            ("\nSo:\n```\nx = 1\n```\nbetter:\n```python\n    return 2\n```\n", Ok("    return 2")),
            ("```python\nx = 1\n", Ok("x = 1")),
            ("    y = 1\n    return y\n", Ok("    y = 1\n    return y")),
            ("\n  \n    return 1\n\n", Ok("    return 1")),
            ("\r\n    return 1\r\n", Ok("    return 1")),
            ("\n\treturn 1 ", Ok("\treturn 1")),
            (" def f(x):\n    return x ", Ok("def f(x):\n    return x")),
            (" \n ", Err(Fault::AnswerEmpty)),
            ("```python\n\n```", Err(Fault::AnswerEmpty)),
        ] {
            let text = format!("<think>a</think> <answer>{answer}</answer>");
            let parsed = format.parse(&text);
            assert_eq!((parsed.answer, parsed.fault), (code, code.err()), "{answer:?}");
        }
        let faults = |text| format.parse(text).fault;
        assert_eq!(faults("<think>a</think>return 1"), Some(Fault::NoAnswer));
        assert_eq!(faults("<think><answer>1</answer></think><answer>2</answer>"), Some(Fault::AnswerInThinking));
        assert_eq!(faults("<think>a</think><answer>1</answer> so"), Some(Fault::TextAroundAnswer));
    }

    #[test]
    fn a_prompt_may_open_the_thinking() {
        let format = Format { thinking: Thinking::Opened, answer: AnswerStyle::Boxed };
        let parsed = format.parse("so \\boxed{3}? no</think> It is $\\boxed{\\frac{1}{2}}$.");
        assert_eq!(parsed.thinking, Some("so \\boxed{3}? no"));
        assert_eq!((parsed.answer, parsed.fault), (Ok("\\frac{1}{2}"), None));
        assert_eq!(format.parse("still at it").answer, Err(Fault::ThinkingUnclosed));
        assert_eq!(format.parse("<think>again</think> \\boxed{1}").fault, Some(Fault::ThinkingNested));
    }

    #[test]
    fn boxes_are_found() {
        assert_eq!(last_boxed("\\boxed{1} \\boxed{ {2} }"), Ok(" {2} "));
        assert_eq!(last_boxed("\\boxed{a \\boxed{b}}"), Ok("a \\boxed{b}"));
        assert_eq!(last_boxed("\\boxed{\\{1, 2\\}}"), Ok("\\{1, 2\\}"));
        assert_eq!(last_boxed("\\boxed 5$."), Ok("5"));
        assert_eq!(last_boxed("\\boxed\u{a0}{2}"), Ok("2"));
        assert_eq!(last_boxed("\\boxed {é}"), Ok("é"));
        assert_eq!(last_boxed("\\boxed{1"), Err(Fault::AnswerUnclosed));
        assert_eq!(last_boxed("1"), Err(Fault::NoAnswer));
    }

    #[test]
    fn other_styles_find_their_answers() {
        let find = |text, answer| Format { thinking: Thinking::Free, answer }.parse(text).answer;
        assert_eq!(find("6 * 7\n#### 1\n#### 42\n", AnswerStyle::Hashes), Ok("42"));
        assert_eq!(find("####", AnswerStyle::Hashes), Err(Fault::AnswerEmpty));
        assert_eq!(find("It is 1,234.50 dollars.", AnswerStyle::LastNumber), Ok("1,234.50"));
        assert_eq!(find("x = -.5", AnswerStyle::LastNumber), Ok("-.5"));
        assert_eq!(find("10-3", AnswerStyle::LastNumber), Ok("3"));
        assert_eq!(find("<think>5</think> 6 ", AnswerStyle::Whole), Ok("6"));
        assert_eq!(find("none", AnswerStyle::LastNumber), Err(Fault::NoAnswer));
    }
}
