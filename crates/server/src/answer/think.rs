//! `<think>…</think>` apart from what follows it.

use super::undecided;

const BEGIN: &str = "<think>";
const END: &str = "</think>";

/// A piece of text, and what it is.
pub(super) enum Part {
    Reasoning(String),
    Content(String),
}

/// Reads a text that may begin with thinking. White space around the thinking and before the answer is left out.
pub(super) struct ThinkSplitter {
    state: State,
    held: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// `<think>` may come.
    Begin,
    /// Within, before the first character that is not white space.
    Opening,
    Thinking,
    /// After `</think>`, before the first character of the answer.
    Closed,
    Answer,
}

impl ThinkSplitter {
    pub fn new(thinking: bool) -> ThinkSplitter {
        ThinkSplitter { state: if thinking { State::Opening } else { State::Begin }, held: String::new() }
    }

    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Opening | State::Thinking)
    }

    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    pub fn finish(&mut self) -> Vec<Part> {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Opening | State::Closed => Vec::new(),
            State::Thinking => vec![Part::Reasoning(rest.trim_end().to_owned())],
            State::Begin | State::Answer => vec![Part::Content(rest)],
        }
    }

    /// Takes from what is held; whether the state has changed.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Begin => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(BEGIN) {
                    self.held = rest.to_owned();
                    self.state = State::Opening;
                } else if BEGIN.starts_with(text) {
                    return false;
                } else {
                    self.state = State::Answer;
                }
                true
            }
            State::Opening | State::Closed => {
                self.held = self.held.trim_start().to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.state = if self.state == State::Opening { State::Thinking } else { State::Answer };
                true
            }
            State::Thinking => self.think(parts),
            State::Answer => {
                parts.push(Part::Content(std::mem::take(&mut self.held)));
                false
            }
        }
    }

    fn think(&mut self, parts: &mut Vec<Part>) -> bool {
        if let Some((thought, rest)) = self.held.split_once(END) {
            parts.push(Part::Reasoning(thought.trim_end().to_owned()));
            self.held = rest.to_owned();
            self.state = State::Closed;
            return true;
        }
        let sure = &self.held[..self.held.len() - undecided(&self.held, END)];
        let sure = sure.trim_end().len();
        let rest = self.held.split_off(sure);
        parts.push(Part::Reasoning(std::mem::replace(&mut self.held, rest)));
        false
    }
}
