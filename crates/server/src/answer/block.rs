//! A block that may hold calls, read as it comes: objects of JSON one by one, or marked arguments as a whole.

use super::call::{CallReader, Step};
use super::calls::Opener;
use super::known::KnownTools;
use super::marked;

pub(super) struct Block {
    pub opener: Opener,
    /// All of it so far, to be given back if it is no call.
    raw: String,
    /// Whether its calls are told while they come: only where the model is held to the form.
    tells: bool,
    state: State,
    /// Within an array.
    listed: bool,
    calls: Vec<(String, String)>,
    name: Option<String>,
    told: bool,
    arguments: String,
}

enum State {
    /// Before an object, behind a name if there is one.
    Before {
        name: String,
    },
    Object(CallReader),
    /// The arguments alone, behind a name.
    Named {
        name: String,
        reader: CallReader,
    },
    Marked(&'static str),
}

/// What a block turned out to be.
pub(super) enum Outcome {
    /// Calls, and their text in case they may not be made.
    Calls(Vec<(String, String)>, String),
    /// A call that was told as it came, but for the rest of its arguments.
    Told {
        rest: String,
    },
    Text(String),
}

impl Block {
    pub fn new(opener: Opener, marker: &str, tells: bool) -> Block {
        let state = match opener {
            Opener::Function => State::Marked("</function>"),
            _ => State::Before { name: String::new() },
        };
        Block {
            opener,
            raw: marker.to_owned(),
            tells,
            state,
            listed: false,
            calls: Vec::new(),
            name: None,
            told: false,
            arguments: String::new(),
        }
    }

    /// Takes from what is held; what the block is, once that is known.
    pub fn push(&mut self, held: &mut String, tools: &KnownTools) -> Option<Outcome> {
        if let State::Marked(closer) = self.state {
            return self.marked(held, closer, tools);
        }
        let text = std::mem::take(held);
        for (at, c) in text.char_indices() {
            self.raw.push(c);
            if let Some(outcome) = self.char(c) {
                *held = text[at + c.len_utf8()..].to_owned();
                return Some(outcome);
            }
            if let State::Marked(closer) = self.state {
                self.raw.pop();
                *held = text[at..].to_owned();
                return self.marked(held, closer, tools);
            }
        }
        self.tell();
        None
    }

    /// The name of a call that is told as it comes, once.
    pub fn take_name(&mut self) -> Option<String> {
        self.name.take()
    }

    /// What can be told of its arguments.
    pub fn take_arguments(&mut self) -> String {
        std::mem::take(&mut self.arguments)
    }

    /// The end of the answer within the block.
    pub fn finish(mut self, rest: &str) -> Outcome {
        self.raw.push_str(rest);
        match self.state {
            _ if self.told => Outcome::Told { rest: self.arguments },
            State::Before { .. } if !self.calls.is_empty() && !self.listed => Outcome::Calls(self.calls, self.raw),
            _ => Outcome::Text(self.raw),
        }
    }

    fn char(&mut self, c: char) -> Option<Outcome> {
        match &mut self.state {
            State::Before { name } => match c {
                '{' => {
                    let name = name.trim().trim_end_matches("[ARGS]").to_owned();
                    self.state = match name.is_empty() {
                        true => State::Object(CallReader::begun("{")),
                        false => State::Named { name, reader: CallReader::begun("{\"arguments\":{") },
                    };
                    None
                }
                _ if c.is_whitespace() && name.is_empty() => None,
                '[' if name.is_empty() && !self.listed && self.calls.is_empty() => {
                    self.listed = true;
                    None
                }
                ',' if self.listed && !self.calls.is_empty() => None,
                ';' | ',' if self.opener == Opener::Bare && name.is_empty() => None,
                ']' if self.listed => Some(self.end()),
                '<' if matches!(self.opener, Opener::ToolCall | Opener::Tools) => self.enter_marked(),
                '\n' if self.opener == Opener::ToolCall => self.enter_marked(),
                _ if matches!(self.opener, Opener::Mistral | Opener::Bare | Opener::ToolCall) && name.len() < 160 => {
                    name.push(c);
                    None
                }
                _ => Some(self.end_as_text()),
            },
            State::Object(reader) => match reader.push(c) {
                Step::More => None,
                Step::Wrong => Some(self.end_as_text()),
                Step::End => self.end_object(),
            },
            State::Named { name, reader } => match reader.push(c) {
                Step::More if reader.complete => {
                    let call = (std::mem::take(name), std::mem::take(&mut reader.arguments));
                    self.calls.push(call);
                    Some(self.end())
                }
                Step::More => None,
                Step::Wrong | Step::End => Some(self.end_as_text()),
            },
            State::Marked(_) => None,
        }
    }

    /// Marked arguments are read from the opener on.
    fn enter_marked(&mut self) -> Option<Outcome> {
        let closer = if self.opener == Opener::Tools { "</tools>" } else { "</tool_call>" };
        self.state = State::Marked(closer);
        None
    }

    fn marked(&mut self, held: &mut String, closer: &str, tools: &KnownTools) -> Option<Outcome> {
        let at = held.find(closer)?;
        let rest = held.split_off(at);
        let text = self.raw.clone() + held;
        *held = if self.opener == Opener::Function { rest[closer.len()..].to_owned() } else { rest };
        let inner = text.strip_prefix("<tool_call>").or(text.strip_prefix("<tools>")).unwrap_or(&text);
        let calls = marked::read(inner).map(|(name, texts)| {
            let arguments = tools.typed(&name, texts);
            vec![(name, arguments)]
        });
        self.raw = text;
        Some(match calls {
            Some(calls) => {
                Outcome::Calls(calls, self.raw.clone() + if self.opener == Opener::Function { closer } else { "" })
            }
            None => self.end_as_text(),
        })
    }

    fn end_object(&mut self) -> Option<Outcome> {
        self.tell();
        let State::Object(reader) = std::mem::replace(&mut self.state, State::Before { name: String::new() }) else {
            unreachable!("called within an object")
        };
        if self.told {
            return Some(Outcome::Told { rest: std::mem::take(&mut self.arguments) });
        }
        let Some(name) = reader.name else { return Some(self.end_as_text()) };
        let arguments = if reader.arguments.is_empty() { "{}".to_owned() } else { reader.arguments };
        self.calls.push((name, arguments));
        if self.listed { None } else { Some(self.end()) }
    }

    fn end(&mut self) -> Outcome {
        Outcome::Calls(std::mem::take(&mut self.calls), std::mem::take(&mut self.raw))
    }

    fn end_as_text(&mut self) -> Outcome {
        Outcome::Text(std::mem::take(&mut self.raw))
    }

    /// Makes known what is known of an object that is told as it comes.
    fn tell(&mut self) {
        let State::Object(reader) = &mut self.state else { return };
        if !self.tells || self.listed || reader.name.is_none() || reader.arguments.is_empty() && !self.told {
            return;
        }
        if !self.told {
            self.name = reader.name.clone();
            self.told = true;
        }
        self.arguments.push_str(&std::mem::take(&mut reader.arguments));
    }
}
