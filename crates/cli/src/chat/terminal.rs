//! Talking in a terminal: an editor for questions, commands, answers as they come.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use reedline::{
    EditCommand, Emacs, FileBackedHistory, KeyCode, KeyModifiers, Prompt, PromptEditMode, PromptHistorySearch,
    Reedline, ReedlineEvent, Signal, ValidationResult, Validator, default_emacs_keybindings,
};
use signal_hook::consts::SIGINT;
use wels_agent::{End, Host};
use wels_pipeline::refusal::refuse;

use super::screen::{Screen, Style, printable};
use super::session::Session;
use crate::failure;

const HELP: &str = "\
Enter sends. Alt-Enter, or a \\ at the end of a line, begins another line.
Ctrl-C stops an answer or a tool, Ctrl-D leaves.
  /image FILE          ask about a picture (PNG, JPEG, WebP), with the next question
  /retry               ask the last question again
  /system [TEXT]       tell the model something before the conversation; nothing takes it back
  /set NAME VALUE      temperature, top_p, top_k, min_p, repetition_penalty, seed, max_tokens
  /set                 show the settings
  /fold                show or hide thinking from now on
  /thinking            show the thinking before the last answer
  /save FILE           write the conversation
  /load FILE           go on with a conversation
  /new                 forget what was said (/clear, too)
  /tools               list the tools, and those whose calls are asked for
  /markdown            show answers as Markdown, or as they are written
  /quit                leave";

/// Questions that are remembered.
const HISTORY: usize = 1000;

/// A conversation in a terminal.
struct Talk {
    session: Session,
    style: Style,
    interrupted: Arc<AtomicBool>,
    /// What was typed while an answer came.
    typed: String,
}

/// Talks until the user leaves.
pub fn talk(session: Session, fold: bool) -> Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, Arc::clone(&interrupted)).context("cannot listen for Ctrl-C")?;
    let style = Style::of_terminal(fold);
    if !session.model.can_chat() {
        style.note("this model has no chat template: what you write is continued like any text");
    }
    style.note("/help says what there is besides talking");
    let mut talk = Talk { session, style, interrupted, typed: String::new() };
    let mut editor = editor();
    loop {
        let typed = std::mem::take(&mut talk.typed);
        if !typed.is_empty() {
            editor.run_edit_commands(&[EditCommand::InsertString(typed)]);
        }
        match editor.read_line(&ChatPrompt).context("cannot read from the terminal")? {
            Signal::Success(text) => match text.trim() {
                "" => {}
                "/quit" | "/exit" => return Ok(()),
                command if command.starts_with('/') => {
                    if let Err(error) = talk.obey(command) {
                        failure::report(&error);
                    }
                }
                question => {
                    let question = question.replace("\\\n", "\n");
                    talk.answer(|session, host| session.ask(&question, host))?;
                }
            },
            Signal::CtrlD => return Ok(()),
            _ => {}
        }
    }
}

impl Talk {
    /// Shows answers while `ask` makes them, and their figures. What goes wrong is said; only a lost terminal is an
    /// error.
    fn answer(&mut self, ask: impl FnOnce(&mut Session, &mut dyn Host) -> Result<End>) -> Result<()> {
        let asks = self.asked_for();
        let mut screen = Screen::new(&self.style, &self.interrupted, asks);
        let end = ask(&mut self.session, &mut screen);
        self.typed = screen.end()?;
        match end {
            Ok(end) => {
                self.style.note(&format!("[{}]", self.session.figures()));
                if end == End::Turns {
                    let turns = self.session.limits.turns;
                    self.style.note(&format!("{turns} answers were given, and the last one calls tools: say `go on`"));
                }
            }
            Err(error) => drop(failure::report(&error)),
        }
        Ok(())
    }

    /// Tools whose calls are asked for.
    fn asked_for(&mut self) -> BTreeSet<String> {
        let names: Vec<String> = self.session.agent.tools.names().map(str::to_owned).collect();
        names.into_iter().filter(|name| self.session.agent.asks(name)).collect()
    }

    fn list_tools(&mut self) {
        let asked = self.asked_for();
        let tools = self.session.agent.tools.definitions();
        if tools.is_empty() {
            self.style.note("there are none; `wels chat --help` says how to give the model some");
        }
        for tool in tools {
            let first: String = tool.description.lines().next().unwrap_or_default().chars().take(100).collect();
            let asks = if asked.contains(&tool.name) { "asks" } else { "    " };
            println!("{asks}  {}  {}", tool.name, self.style.dim(&printable(&first)));
        }
    }

    /// Does what begins with a slash.
    fn obey(&mut self, command: &str) -> Result<()> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let file = || match rest {
            "" => Err(refuse(format!("{name} needs the name of a file"), format!("{name} {}", example(name)))),
            file => Ok(Path::new(file)),
        };
        match name {
            "/help" => println!("{HELP}"),
            "/image" => {
                self.session.attach(file()?)?;
                self.style.note("the next question is about it");
            }
            "/retry" => self.answer(|session, host| session.retry(host))?,
            "/system" => self.session.set_system((!rest.is_empty()).then(|| rest.to_owned())),
            "/set" if rest.is_empty() => show_settings(&self.session),
            "/set" => set(&mut self.session, rest)?,
            "/fold" => {
                self.style.fold = !self.style.fold;
                self.style.note(if self.style.fold {
                    "thinking is hidden; /thinking shows it"
                } else {
                    "thinking is shown"
                });
            }
            "/thinking" => match self.session.model.thinking.as_str() {
                "" => self.style.note("there was none"),
                text => println!("{}", self.style.dim(&printable(text))),
            },
            "/tools" => self.list_tools(),
            "/markdown" => {
                self.style.markdown = !self.style.markdown;
                let how = if self.style.markdown { "as Markdown" } else { "as they are written" };
                self.style.note(&format!("answers are shown {how}"));
            }
            "/save" => {
                self.session.save(file()?)?;
                self.style.note(&format!("saved to {rest}"));
            }
            "/load" => {
                let messages = self.session.load(file()?)?;
                self.style.note(&format!("{messages} messages loaded"));
            }
            "/new" | "/clear" => self.session.clear(),
            _ => return Err(refuse(format!("there is no command {name}"), "/help lists them")),
        }
        Ok(())
    }
}

fn example(command: &str) -> &'static str {
    if command == "/image" { "picture.png" } else { "talk.json" }
}

fn show_settings(session: &Session) {
    let settings = &session.model.settings;
    let s = &settings.sampling;
    println!("temperature {}, top_p {}, top_k {}, min_p {}", s.temperature, s.top_p, s.top_k, s.min_p);
    println!("repetition_penalty {}, seed {}, max_tokens {}", s.repetition_penalty, s.seed, settings.max_tokens);
}

/// Changes a setting. Whether the value makes sense is for the engine to say, with the next question.
fn set(session: &mut Session, text: &str) -> Result<()> {
    let (name, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let value = value.trim();
    let wrong = || refuse(format!("`{value}` is no value for {name}"), "/set temperature 0.6");
    let settings = &mut session.model.settings;
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
    let file = folder.join("chat_history");
    // The folder may be an older one that others can read.
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(&file).ok()?;
    Some(file)
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
