//! What a terminal shows of a conversation, and whom it asks.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wels_agent::{Event, Host, Outcome, Permission};

use super::keys::Quiet;
use super::markdown::Markdown;
use super::task::shortened;

/// Lines of a call, and of a result, that are shown.
const CALL_LINES: usize = 40;
const RESULT_LINES: usize = 6;
const LINE_CHARS: usize = 200;

/// How things are shown.
#[derive(Clone)]
pub struct Style {
    pub color: bool,
    /// Thinking is only counted.
    pub fold: bool,
    /// Answers are shown as the Markdown that they are.
    pub markdown: bool,
}

impl Style {
    /// As the terminal and its settings have it.
    pub fn of_terminal(fold: bool) -> Style {
        let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Style { color: color && !dumb, fold, markdown: color && !dumb }
    }

    fn painted<'a>(&self, code: &str, text: &'a str) -> Cow<'a, str> {
        if self.color { Cow::Owned(format!("\x1b[{code}m{text}\x1b[0m")) } else { Cow::Borrowed(text) }
    }

    pub fn dim<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.painted("2", text)
    }

    pub fn note(&self, text: &str) {
        eprintln!("{}", self.dim(&printable(text)));
    }
}

/// Shows one question's answers.
pub struct Screen<'a> {
    style: &'a Style,
    interrupted: &'a Arc<AtomicBool>,
    /// The terminal without echo, where that can be had.
    quiet: Option<Quiet>,
    /// Tools whose calls are asked for are shown more of than others.
    asks: BTreeSet<String>,
    markdown: Option<Markdown>,
    /// What the call that was shown last would do.
    preview: String,
    hidden: usize,
    thought: bool,
    /// Whether the cursor is at the beginning of a line.
    fresh: bool,
    failed: Option<io::Error>,
}

impl<'a> Screen<'a> {
    /// `asks`: the tools whose calls are asked for.
    pub fn new(style: &'a Style, interrupted: &'a Arc<AtomicBool>, asks: BTreeSet<String>) -> Screen<'a> {
        interrupted.store(false, Ordering::Relaxed);
        let quiet = Quiet::begin().ok();
        Screen {
            style,
            interrupted,
            quiet,
            asks,
            markdown: None,
            preview: String::new(),
            hidden: 0,
            thought: false,
            fresh: true,
            failed: None,
        }
    }

    /// What was typed meanwhile.
    ///
    /// # Errors
    /// The terminal was lost.
    pub fn end(mut self) -> io::Result<String> {
        self.end_text();
        let typed = self.quiet.take().map(Quiet::end).unwrap_or_default();
        self.failed.map_or(Ok(typed), Err)
    }

    fn write(&mut self, text: &str) {
        if text.is_empty() || self.failed.is_some() {
            return;
        }
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        self.failed = written.err();
        self.fresh = text.ends_with('\n');
    }

    fn line(&mut self, text: &str) {
        if !self.fresh {
            self.write("\n");
        }
        self.write(&format!("{text}\n"));
    }

    fn content(&mut self, text: &str) {
        if std::mem::take(&mut self.thought) {
            self.write("\n\n");
        }
        let text = printable(text);
        if !self.style.markdown {
            return self.write(&text);
        }
        let markdown = self.markdown.get_or_insert_with(|| Markdown::new(width()));
        let shown = markdown.push(&text);
        self.write(&shown);
    }

    fn reasoning(&mut self, text: &str) {
        self.thought = true;
        if self.style.fold {
            self.hidden += text.len();
            let line = format!("\r{}", self.style.dim(&format!("thinking: {} characters", self.hidden)));
            return self.write(&line);
        }
        let text = self.style.dim(&printable(text)).into_owned();
        self.write(&text);
    }

    /// Shows what is held back of an answer, and ends its last line.
    fn end_text(&mut self) {
        if let Some(mut markdown) = self.markdown.take() {
            let rest = markdown.finish();
            self.write(&rest);
        }
        (self.thought, self.hidden) = (false, 0);
        if !self.fresh {
            self.write("\n");
        }
    }

    fn calling(&mut self, name: &str, preview: &str) {
        self.preview = printable(preview).into_owned();
        let head = self.style.painted("1", name).into_owned();
        self.line(&format!("● {head}"));
        self.show_preview(if self.asks.contains(name) { CALL_LINES } else { RESULT_LINES });
    }

    fn show_preview(&mut self, lines: usize) {
        for line in shown_lines(&self.preview, lines) {
            let code = match line.as_bytes().first() {
                Some(b'+') => "32",
                Some(b'-') => "31",
                _ => "2",
            };
            let line = self.style.painted(code, &line).into_owned();
            self.line(&format!("  {line}"));
        }
    }

    fn called(&mut self, outcome: &Outcome) {
        let text = printable(&outcome.text).into_owned();
        let code = if outcome.worked { "2" } else { "33" };
        for line in shown_lines(&text, RESULT_LINES) {
            let line = self.style.painted(code, &line).into_owned();
            self.line(&format!("  → {line}"));
        }
        self.line("");
    }
}

impl Host for Screen<'_> {
    fn show(&mut self, event: Event) {
        match event {
            Event::Reasoning(text) => self.reasoning(text),
            Event::Content(text) => self.content(text),
            Event::Answered(_) => self.end_text(),
            Event::Calling { name, preview, .. } => self.calling(name, preview),
            Event::Called { outcome, .. } => self.called(outcome),
            Event::Shortened(count) => self.line(&shortened(count)),
        }
    }

    fn permit(&mut self, name: &str) -> Permission {
        let all = if is_cut(&self.preview) { "v show all of it, " } else { "" };
        let question = format!("call {name}? y once, a always in this session, n no, {all}q stop ");
        let Some(mut quiet) = self.quiet.take() else {
            return Permission::Refused("refused: the terminal cannot be asked".to_owned());
        };
        let question = self.style.painted("1", &question).into_owned();
        self.write(&question);
        let key = loop {
            match quiet.key(&|| self.is_stopped()) {
                Ok(Some(key)) if "yYaAnNqQ".contains(key) => break key.to_ascii_lowercase(),
                Ok(Some('v' | 'V')) => {
                    self.write("v\n");
                    self.show_preview(usize::MAX);
                    self.write(&question);
                }
                Ok(Some(_)) => {}
                Ok(None) => break 'q',
                Err(error) => {
                    self.failed = Some(error);
                    break 'q';
                }
            }
        };
        self.quiet = Some(quiet);
        self.write(&format!("{key}\n"));
        match key {
            'y' => Permission::Once,
            'a' => Permission::Always,
            'n' => Permission::Refused("refused: the user does not want this call".to_owned()),
            _ => Permission::Quit,
        }
    }

    fn is_stopped(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || self.failed.is_some()
    }
}

/// Whether a call is shown in part only.
fn is_cut(text: &str) -> bool {
    text.lines().count() > CALL_LINES || text.lines().any(|line| line.chars().count() > LINE_CHARS)
}

/// The first lines of a text, none too long, and how many more there are. All of it: as many as there can be.
fn shown_lines(text: &str, many: usize) -> Vec<String> {
    let cut = |line: &str| match line.char_indices().nth(LINE_CHARS).filter(|_| many < usize::MAX) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    };
    let count = text.lines().count();
    let mut lines: Vec<String> = text.lines().take(many).map(cut).collect();
    if count > many {
        lines.push(format!("… {} lines more", count - many));
    }
    lines
}

/// Columns of the terminal.
fn width() -> usize {
    #[cfg(unix)]
    if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdout())
        && size.ws_col > 0
    {
        return usize::from(size.ws_col);
    }
    80
}

/// Without control characters: a model must not drive the terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| (c.is_control() && c != '\n' && c != '\t') || is_invisible(c);
    if text.contains(harmful) { Cow::Owned(text.replace(harmful, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Characters that turn the direction of what is around them: a call could look like another one.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n\tc\r\u{9b}"), "a\u{fffd}[2Jb\n\tc\u{fffd}\u{fffd}");
        assert_eq!(printable("rm \u{202e}txt"), "rm \u{fffd}txt");
        assert!(matches!(printable("plain"), Cow::Borrowed("plain")));
    }

    #[test]
    fn long_texts_are_shown_in_part() {
        assert_eq!(shown_lines("a\nb\nc", 2), ["a", "b", "… 1 lines more"]);
        let long = "é".repeat(300);
        assert_eq!(shown_lines(&long, 2)[0].chars().count(), LINE_CHARS + 1);
        assert_eq!(shown_lines(&long, usize::MAX), [long.as_str()]);
        assert!(is_cut(&long) && is_cut(&"a\n".repeat(41)) && !is_cut(&"a\n".repeat(40)));
    }
}
