//! Talking in a terminal: an editor for questions, commands, answers as they come.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use reedline::{
    EditCommand, Emacs, FileBackedHistory, KeyCode, KeyModifiers, Prompt, PromptEditMode, PromptHistorySearch,
    Reedline, ReedlineEvent, Signal, ValidationResult, Validator, default_emacs_keybindings,
};
use signal_hook::consts::SIGINT;
use wels_pipeline::refusal::refuse;

use super::session::{Answer, Part, Session};

use crate::failure;

const HELP: &str = "\
Enter sends. Alt-Enter, or a \\ at the end of a line, begins another line. Ctrl-C stops an answer, Ctrl-D leaves.
  /retry               ask the last question again
  /system [TEXT]       tell the model something before the conversation; nothing takes it back
  /set NAME VALUE      temperature, top_p, top_k, min_p, repetition_penalty, seed, max_tokens
  /set                 show the settings
  /fold                show or hide thinking from now on
  /thinking            show the thinking before the last answer
  /save FILE           write the conversation
  /load FILE           go on with a conversation
  /clear               forget what was said
  /quit                leave";

/// Questions that are remembered.
const HISTORY: usize = 1000;

/// Talks until the user leaves.
pub fn talk(mut session: Session, fold: bool) -> Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, Arc::clone(&interrupted)).context("cannot listen for Ctrl-C")?;
    let mut screen = Screen { color: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()), fold };
    if !session.can_chat() {
        screen.note("this model has no chat template: what you write is continued like any text");
    }
    screen.note("/help says what there is besides talking");
    let mut editor = editor();
    loop {
        match editor.read_line(&ChatPrompt).context("cannot read from the terminal")? {
            Signal::Success(text) => match text.trim() {
                "" => {}
                "/quit" | "/exit" => return Ok(()),
                command if command.starts_with('/') => {
                    if let Err(error) = obey(command, &mut session, &mut screen, &interrupted) {
                        failure::report(&error);
                    }
                }
                question => {
                    let question = question.replace("\\\n", "\n");
                    screen.answer(&interrupted, |stop, show| session.ask(&question, stop, show))?;
                }
            },
            Signal::CtrlD => return Ok(()),
            _ => {}
        }
    }
}

/// Does what begins with a slash.
fn obey(command: &str, session: &mut Session, screen: &mut Screen, interrupted: &AtomicBool) -> Result<()> {
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    let file = || match rest {
        "" => Err(refuse(format!("{name} needs the name of a file"), format!("{name} talk.json"))),
        file => Ok(Path::new(file)),
    };
    match name {
        "/help" => println!("{HELP}"),
        "/retry" => screen.answer(interrupted, |stop, show| session.retry(stop, show))?,
        "/system" => session.set_system((!rest.is_empty()).then(|| rest.to_owned())),
        "/set" if rest.is_empty() => show_settings(session),
        "/set" => set(session, rest)?,
        "/fold" => {
            screen.fold = !screen.fold;
            screen.note(if screen.fold { "thinking is hidden; /thinking shows it" } else { "thinking is shown" });
        }
        "/thinking" => screen.thinking(session.thinking()),
        "/save" => {
            session.save(file()?)?;
            screen.note(&format!("saved to {rest}"));
        }
        "/load" => {
            let messages = session.load(file()?)?;
            screen.note(&format!("{messages} messages loaded"));
        }
        "/clear" => session.clear(),
        _ => return Err(refuse(format!("there is no command {name}"), "/help lists them")),
    }
    Ok(())
}

fn show_settings(session: &Session) {
    let settings = &session.settings;
    let s = &settings.sampling;
    println!("temperature {}, top_p {}, top_k {}, min_p {}", s.temperature, s.top_p, s.top_k, s.min_p);
    println!("repetition_penalty {}, seed {}, max_tokens {}", s.repetition_penalty, s.seed, settings.max_tokens);
}

/// Changes a setting. Whether the value makes sense is for the engine to say, with the next question.
fn set(session: &mut Session, text: &str) -> Result<()> {
    let (name, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let value = value.trim();
    let wrong = || refuse(format!("`{value}` is no value for {name}"), "/set temperature 0.6");
    let settings = &mut session.settings;
    let number = || value.parse::<f32>().ok().filter(|number| number.is_finite()).ok_or_else(wrong);
    match name {
        "temperature" => settings.sampling.temperature = number()?,
        "top_p" => settings.sampling.top_p = number()?,
        "min_p" => settings.sampling.min_p = number()?,
        "repetition_penalty" => settings.sampling.repetition_penalty = number()?,
        "top_k" => settings.sampling.top_k = value.parse().map_err(|_| wrong())?,
        "seed" => settings.sampling.seed = value.parse().map_err(|_| wrong())?,
        "max_tokens" => settings.max_tokens = value.parse().map_err(|_| wrong())?,
        _ => return Err(refuse(format!("there is no setting {name}"), "/set shows those there are")),
    }
    Ok(())
}

fn editor() -> Reedline {
    let mut keys = default_emacs_keybindings();
    let newline = || ReedlineEvent::Edit(vec![EditCommand::InsertNewline]);
    keys.add_binding(KeyModifiers::ALT, KeyCode::Enter, newline());
    keys.add_binding(KeyModifiers::SHIFT, KeyCode::Enter, newline());
    let editor = Reedline::create()
        .use_bracketed_paste(true)
        .with_validator(Box::new(BackslashContinues))
        .with_edit_mode(Box::new(Emacs::new(keys)));
    // A history that cannot be kept is no reason not to talk.
    match history_file().map(|file| FileBackedHistory::with_file(HISTORY, file)) {
        Some(Ok(history)) => editor.with_history(Box::new(history)),
        _ => editor,
    }
}

/// `$XDG_STATE_HOME/wels/chat_history`, readable by its owner alone.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let folder = state.or_else(home)?.join("wels");
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(&folder).ok()?;
    Some(folder.join("chat_history"))
}

/// A line that ends with a backslash goes on.
struct BackslashContinues;

impl Validator for BackslashContinues {
    fn validate(&self, line: &str) -> ValidationResult {
        if line.ends_with('\\') { ValidationResult::Incomplete } else { ValidationResult::Complete }
    }
}

struct ChatPrompt;

impl Prompt for ChatPrompt {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _mode: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("> ")
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Borrowed("  ")
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        Cow::Owned(format!("(search: {}) ", search.term))
    }
}

/// How things are shown.
struct Screen {
    color: bool,
    fold: bool,
}

impl Screen {
    /// Shows an answer while `ask` makes it, and its figures. What goes wrong is said; only a lost terminal is an
    /// error.
    fn answer(
        &mut self,
        interrupted: &AtomicBool,
        ask: impl FnOnce(&dyn Fn() -> bool, &mut dyn FnMut(Part) -> io::Result<()>) -> Result<Answer>,
    ) -> Result<()> {
        interrupted.store(false, Ordering::Relaxed);
        let mut stdout = io::stdout().lock();
        let (mut hidden, mut thought) = (0usize, false);
        let answer = ask(&|| interrupted.load(Ordering::Relaxed), &mut |part| {
            match part {
                Part::Thinking(text) if self.fold => {
                    hidden += text.len();
                    write!(stdout, "\r{}", self.dim(&format!("thinking: {hidden} characters")))?;
                }
                Part::Thinking(text) => write!(stdout, "{}", self.dim(&printable(text)))?,
                Part::Answer(text) => {
                    if std::mem::take(&mut thought) {
                        write!(stdout, "\n\n")?;
                    }
                    write!(stdout, "{}", printable(text))?;
                }
            }
            thought |= matches!(part, Part::Thinking(_));
            stdout.flush()
        });
        writeln!(stdout)?;
        drop(stdout);
        match answer {
            Ok(answer) => self.note(&format!("[{answer}]")),
            Err(error) if error.is::<io::Error>() => return Err(error),
            Err(error) => _ = failure::report(&error),
        }
        Ok(())
    }

    fn thinking(&self, text: &str) {
        match text {
            "" => self.note("there was none"),
            text => println!("{}", self.dim(&printable(text))),
        }
    }

    fn note(&self, text: &str) {
        eprintln!("{}", self.dim(text));
    }

    fn dim<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.color { Cow::Owned(format!("\x1b[2m{text}\x1b[22m")) } else { Cow::Borrowed(text) }
    }
}

/// Without control characters: a model must not drive the terminal.
fn printable(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(harmful) { Cow::Owned(text.replace(harmful, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n\tc\r\u{9b}"), "a\u{fffd}[2Jb\n\tc\u{fffd}\u{fffd}");
        assert!(matches!(printable("plain"), Cow::Borrowed("plain")));
    }
}
