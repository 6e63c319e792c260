//! `--agent TASK`, and questions from a pipe: nobody is there to be asked.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};
use wels_agent::run::line;
use wels_agent::{End, Event, Host, Permission};

use super::screen::printable;
use super::session::Session;
use crate::interrupt::Interrupt;
use crate::output;

/// Exit codes of a task that was not answered.
const TURNS_USED: u8 = 3;
const TOKENS_USED: u8 = 4;
const INTERRUPTED: u8 = 130;

/// Does a task. The last answer goes to stdout, what happens on the way to stderr; as `json`, all of it to stdout, a
/// line an event.
pub fn run(mut session: Session, task: &str, json: bool) -> Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    let mut host = Alone { shows: if json { Shows::Events } else { Shows::Progress }, interrupt, failed: None };
    let end = session.ask(task, &mut host)?;
    host.failed.map_or(Ok(()), Err)?;
    let (word, code) = match end {
        End::Answered => ("answered", ExitCode::SUCCESS),
        End::Turns => ("turns", ExitCode::from(TURNS_USED)),
        End::Tokens | End::Cut => ("tokens", ExitCode::from(TOKENS_USED)),
        End::Stopped => ("interrupted", ExitCode::from(INTERRUPTED)),
    };
    let messages = session.messages();
    let last = messages.iter().rfind(|message| message.role == "assistant");
    let answer = last.and_then(|message| message.content.as_str()).unwrap_or_default();
    let figures = session.figures();
    if json {
        let tokens = figures.generated;
        output::json(&json!({"event": "end", "reason": word, "answer": answer, "tokens": tokens}))?;
    } else {
        output::line(&on_stdout(answer))?;
        eprintln!("[{figures}]");
    }
    match end {
        End::Turns => eprintln!("note: --max-turns {} are used up, and the task is not done", session.limits.turns),
        End::Tokens => eprintln!("note: the tokens of --max-tokens are used up, and the task is not done"),
        End::Cut => eprintln!("note: the last answer is cut: it fills the context"),
        End::Answered | End::Stopped => {}
    }
    Ok(code)
}

/// Questions from stdin: answers to stdout as they come, the rest to stderr.
pub fn ask(session: &mut Session, question: &str) -> Result<()> {
    let mut host = Alone { shows: Shows::Answers, interrupt: Interrupt::never(), failed: None };
    session.ask(question, &mut host)?;
    host.failed.map_or(Ok(()), Err)?;
    output::line("")?;
    eprintln!("[{}]", session.figures());
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shows {
    /// Answers on stdout, as they come.
    Answers,
    /// Calls and answers on the way on stderr.
    Progress,
    /// Everything on stdout, as JSON.
    Events,
}

/// A host without a person: what was not allowed is refused.
struct Alone {
    shows: Shows,
    interrupt: Interrupt,
    /// stdout could not be written.
    failed: Option<io::Error>,
}

impl Host for Alone {
    fn show(&mut self, event: Event) {
        let shown = match self.shows {
            Shows::Events => as_json(event).map_or(Ok(()), |event| output::json(&event)),
            shows => self.say(event, shows == Shows::Answers),
        };
        self.failed = self.failed.take().or(shown.err());
    }

    fn permit(&mut self, name: &str) -> Permission {
        Permission::Refused(format!(
            "refused: nobody is here to allow it, and {name} was not allowed on the command line"
        ))
    }

    fn is_stopped(&self) -> bool {
        self.interrupt.asked() || self.failed.is_some()
    }
}

impl Alone {
    fn say(&self, event: Event, answers: bool) -> io::Result<()> {
        match event {
            Event::Content(text) if answers => return output::text_now(&on_stdout(text)),
            Event::Reasoning(text) => {
                let _ = io::stderr().write_all(on_stderr(text).as_bytes()); // as `eprintln!`
            }
            Event::Content(_) => {}
            Event::Answered(reply) if !answers && !reply.calls.is_empty() && !reply.content.is_empty() => {
                eprintln!("{}", on_stderr(reply.content.trim_end()));
            }
            Event::Answered(_) => {}
            Event::Calling { name, arguments, .. } => eprintln!("calls {}", on_stderr(&line(name, arguments))),
            Event::Called { outcome, .. } => {
                let (lines, first) = (outcome.text.lines().count(), outcome.text.lines().next().unwrap_or_default());
                let first: String = first.chars().take(160).collect();
                let more = if lines > 1 { format!(" … {lines} lines") } else { String::new() };
                eprintln!("  {}{}{more}", if outcome.worked { "" } else { "failed: " }, on_stderr(&first));
            }
            Event::Shortened(count) => eprintln!("{}", shortened(count)),
        }
        Ok(())
    }
}

/// What goes to stdout of words that a model or a tool has chosen.
fn on_stdout(text: &str) -> Cow<'_, str> {
    shown(text, io::stdout().is_terminal())
}

/// The same to stderr.
fn on_stderr(text: &str) -> Cow<'_, str> {
    shown(text, io::stderr().is_terminal())
}

/// A terminal is not to be driven; a pipe or a file gets everything as it is.
fn shown(text: &str, in_terminal: bool) -> Cow<'_, str> {
    if in_terminal { printable(text) } else { Cow::Borrowed(text) }
}

/// What is said when old results were shortened.
pub fn shortened(count: usize) -> String {
    format!("the context is full: {count} older results of tools were shortened")
}

fn as_json(event: Event) -> Option<Value> {
    Some(match event {
        Event::Reasoning(_) | Event::Content(_) => return None, // told whole, with the answer
        Event::Answered(reply) => {
            let calls: Vec<Value> =
                reply.calls.iter().map(|call| json!({"name": call.name, "arguments": call.arguments})).collect();
            json!({"event": "answer", "reasoning": reply.reasoning, "content": reply.content, "calls": calls,
                "tokens": reply.tokens})
        }
        Event::Calling { name, arguments, .. } => json!({"event": "call", "name": name, "arguments": arguments}),
        Event::Called { name, outcome } => {
            json!({"event": "result", "name": name, "worked": outcome.worked, "text": outcome.text})
        }
        Event::Shortened(count) => json!({"event": "shortened", "results": count}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_what_a_terminal_is_spared() {
        let text = "a\x1b]0;title\x07b\n";
        assert_eq!(shown(text, true), "a\u{fffd}]0;title\u{fffd}b\n");
        assert_eq!(shown(text, false), text);
    }
}
