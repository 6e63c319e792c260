//! Calls of tools in the forms that models are trained on, read while they come.
//!
//! A model is told one form, [`ToolFormat`], and all are read, since models write others as well: DeepSeek's; objects
//! of JSON within `<tool_call>`, in a fence, behind `[TOOL_CALLS]` or `<|python_tag|>`, or as the whole answer; and calls
//! whose arguments are marked one by one. What names no tool, or has arguments that the tool's schema refuses, is text.

use super::block::{Block, Outcome};
use super::channels::CHANNEL;
use super::known::KnownTools;
use super::{append, undecided};
use crate::keys::random_hex;
use crate::wire::{CallDelta, ChatDelta};

/// How a model is told to write a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// DeepSeek-V3 and R1: calls within special tokens, the arguments fenced as JSON; V3.1's form without fence, too.
    DeepSeek,
    /// Hermes and Qwen: JSON objects within `<tool_call>…</tool_call>`.
    Hermes,
    /// Llama 3.1: the answer is one JSON object.
    Json,
    /// Mistral: an array of JSON behind `[TOOL_CALLS]`.
    Mistral,
    /// Qwen3-Coder and GLM: arguments that are marked one by one.
    Marked,
}

pub(super) const CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
pub(super) const CALLS_END: &str = "<｜tool▁calls▁end｜>";
pub(super) const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
pub(super) const CALL_END: &str = "<｜tool▁call▁end｜>";
pub(super) const SEPARATOR: &str = "<｜tool▁sep｜>";
const FENCE: &str = "```json\n";
const FENCE_END: &str = "\n```";

impl ToolFormat {
    /// The format that a chat template speaks of.
    pub fn of_template(template: &str) -> Option<ToolFormat> {
        if template.contains(CALLS_BEGIN) || template.contains("tool▁calls▁begin") {
            Some(ToolFormat::DeepSeek)
        } else if template.contains(CHANNEL) {
            // Calls in channels go on in this form.
            Some(ToolFormat::Hermes)
        } else if template.contains("<function=") || template.contains("<arg_key>") {
            Some(ToolFormat::Marked)
        } else if template.contains("<tool_call>") {
            Some(ToolFormat::Hermes)
        } else if template.contains("[TOOL_CALLS]") {
            Some(ToolFormat::Mistral)
        } else if template.contains("\"parameters\": ") && template.contains("ipython") {
            Some(ToolFormat::Json)
        } else {
            None
        }
    }
}

/// Where a call may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opener {
    /// `<｜tool▁calls▁begin｜>`
    DeepSeek,
    /// `<tool_call>`: JSON, or marked arguments.
    ToolCall,
    /// `<tools>`, which some models write for `<tool_call>`.
    Tools,
    /// `<function=`: marked arguments.
    Function,
    /// `[TOOL_CALLS]`: an array, or names before their arguments.
    Mistral,
    /// `<|python_tag|>`
    Python,
    /// A fence of JSON.
    Fence,
    /// The beginning of the answer.
    Bare,
}

const OPENERS: [(&str, Opener); 8] = [
    (CALLS_BEGIN, Opener::DeepSeek),
    ("<tool_call>", Opener::ToolCall),
    ("<tools>", Opener::Tools),
    ("<function=", Opener::Function),
    ("[TOOL_CALLS]", Opener::Mistral),
    ("<|python_tag|>", Opener::Python),
    ("```json", Opener::Fence),
    ("```tool_call", Opener::Fence),
];

impl Opener {
    /// What ends the block behind its JSON.
    fn closer(self) -> Option<&'static str> {
        match self {
            Opener::ToolCall => Some("</tool_call>"),
            Opener::Tools => Some("</tools>"),
            Opener::Fence => Some("```"),
            _ => None,
        }
    }

    /// Whether this is how the form begins a call.
    fn is_of(self, format: ToolFormat) -> bool {
        match format {
            ToolFormat::DeepSeek => self == Opener::DeepSeek,
            ToolFormat::Hermes => self == Opener::ToolCall,
            ToolFormat::Json => self == Opener::Bare,
            ToolFormat::Mistral | ToolFormat::Marked => false,
        }
    }
}

/// Reads an answer's text.
pub(super) struct CallParser {
    tools: KnownTools,
    /// The form that the model is held to, whose calls need no check and are told while they come.
    held_to: Option<ToolFormat>,
    state: State,
    held: String,
    /// Whether there was text since the beginning or since the last call: then JSON is no call without a marker.
    has_text: bool,
    begun: usize,
    complete: usize,
}

enum State {
    Text,
    /// Between DeepSeek's calls.
    Between,
    /// DeepSeek: before the separator.
    Header,
    /// DeepSeek: the name and the fence after it.
    Name,
    /// DeepSeek: the arguments, up to the marker, with the name before it is told.
    Arguments {
        name: String,
        end: &'static str,
        text: String,
    },
    /// A block of JSON or of marked arguments.
    Block(Box<Block>),
    /// Behind a block, up to its closer.
    Tail(&'static str),
}

impl CallParser {
    pub fn new(tools: KnownTools, held_to: Option<ToolFormat>) -> CallParser {
        CallParser { tools, held_to, state: State::Text, held: String::new(), has_text: false, begun: 0, complete: 0 }
    }

    pub fn complete(&self) -> usize {
        self.complete
    }

    pub fn has_begun(&self) -> bool {
        self.begun > 0
    }

    pub fn push(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) {
        self.held.push_str(text);
        while self.step(deltas) {}
    }

    /// What was cut off is no call, unless it has been told already.
    pub fn finish(&mut self, deltas: &mut Vec<ChatDelta>) {
        let rest = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text if self.begun > 0 && rest.trim().is_empty() => {}
            State::Text => append(deltas, ChatDelta::Content(rest)),
            State::Arguments { .. } if self.held_to == Some(ToolFormat::DeepSeek) => {
                self.arguments(rest.trim_end_matches(FENCE_END), deltas);
            }
            State::Arguments { name, text, .. } => {
                let text = text + &rest;
                self.call(&name, text.trim_end_matches(FENCE_END), &text, deltas);
            }
            State::Block(block) => match block.finish(&rest) {
                Outcome::Calls(calls, raw) => self.calls(calls, &raw, deltas),
                Outcome::Told { rest } => self.arguments(&rest, deltas),
                Outcome::Text(raw) => append(deltas, ChatDelta::Content(raw)),
            },
            State::Between | State::Header | State::Name | State::Tail(_) => {}
        }
    }

    /// Takes from what is held; whether there may be more to take.
    fn step(&mut self, deltas: &mut Vec<ChatDelta>) -> bool {
        match &mut self.state {
            State::Text => self.text(deltas),
            State::Between => self.between(),
            State::Header => match self.take_until(SEPARATOR) {
                Some(header) if header.trim() == "function" => self.enter(State::Name),
                Some(name) => self.enter_arguments(name.trim(), CALL_END, deltas),
                None => false,
            },
            State::Name => match self.take_until(FENCE) {
                Some(name) => self.enter_arguments(name.trim(), FENCE_END, deltas),
                None => false,
            },
            State::Arguments { .. } => self.read_arguments(deltas),
            State::Block(_) => self.block(deltas),
            State::Tail(closer) => {
                let closer = *closer;
                let text = self.held.trim_start();
                match text.strip_prefix(closer) {
                    Some(rest) => self.held = rest.to_owned(),
                    None if closer.starts_with(text) => return false,
                    None => {} // some models leave it out
                }
                self.enter(State::Text)
            }
        }
    }

    fn enter(&mut self, state: State) -> bool {
        self.state = state;
        true
    }

    fn take_until(&mut self, marker: &str) -> Option<String> {
        let (before, after) = self.held.split_once(marker)?;
        let (before, after) = (before.to_owned(), after.to_owned());
        self.held = after;
        Some(before)
    }

    fn text(&mut self, deltas: &mut Vec<ChatDelta>) -> bool {
        if !self.has_text {
            match self.bare() {
                Bare::Call => return self.open(Opener::Bare, ""),
                Bare::Undecided => return false,
                Bare::Text => {}
            }
        }
        let first = OPENERS
            .iter()
            .filter_map(|(marker, opener)| Some((self.held.find(marker)?, marker, opener)))
            .min_by_key(|found| found.0);
        if let Some((at, marker, opener)) = first {
            let after = self.held.split_off(at + marker.len());
            let before = std::mem::replace(&mut self.held, after);
            self.say(before[..at].trim_end().to_owned(), deltas);
            return self.open(*opener, marker);
        }
        // White space before a call is not part of the answer.
        let undecided = OPENERS.iter().map(|(marker, _)| undecided(&self.held, marker)).max().unwrap_or(0);
        let sure = self.held[..self.held.len() - undecided].trim_end().len();
        let rest = self.held.split_off(sure);
        let text = std::mem::replace(&mut self.held, rest);
        self.say(text, deltas);
        false
    }

    fn say(&mut self, text: String, deltas: &mut Vec<ChatDelta>) {
        self.has_text |= !text.trim().is_empty();
        append(deltas, ChatDelta::Content(text));
    }

    /// Whether what is held begins with a call without a marker, as some forms have it once special tokens are hidden:
    /// an object, an array of objects, or a tool's name with an object behind it.
    fn bare(&self) -> Bare {
        let text = self.held.trim_start();
        let text = if self.begun > 0 { text.trim_start_matches([';', ',']).trim_start() } else { text };
        let named = |name: &str| match text.strip_prefix(name) {
            Some(rest) if rest.starts_with('{') || rest.starts_with("[ARGS]") => Bare::Call,
            Some(rest) if "[ARGS]".starts_with(rest) => Bare::Undecided,
            None if !text.is_empty() && name.starts_with(text) => Bare::Undecided,
            _ => Bare::Text,
        };
        match text.chars().next() {
            None => Bare::Undecided,
            Some('{') => Bare::Call,
            Some('[') => match text[1..].trim_start().chars().next() {
                Some('{') => Bare::Call,
                None => Bare::Undecided,
                Some(_) => Bare::Text,
            },
            Some(_) => self.tools.names().map(named).find(|bare| *bare != Bare::Text).unwrap_or(Bare::Text),
        }
    }

    fn open(&mut self, opener: Opener, marker: &str) -> bool {
        let told = self.held_to.is_some_and(|format| opener.is_of(format));
        self.enter(match opener {
            Opener::DeepSeek => State::Between,
            _ => State::Block(Box::new(Block::new(opener, marker, told))),
        })
    }

    fn between(&mut self) -> bool {
        let begin = self.held.find(CALL_BEGIN);
        let end = self.held.find(CALLS_END);
        match (begin, end) {
            (Some(begin), end) if end.is_none_or(|end| begin < end) => {
                self.take_until(CALL_BEGIN);
                self.enter(State::Header)
            }
            (_, Some(_)) => {
                self.take_until(CALLS_END);
                self.enter(State::Text)
            }
            _ => false,
        }
    }

    fn enter_arguments(&mut self, name: &str, end: &'static str, deltas: &mut Vec<ChatDelta>) -> bool {
        if self.held_to == Some(ToolFormat::DeepSeek) {
            self.begin(name, deltas);
        }
        self.enter(State::Arguments { name: name.to_owned(), end, text: String::new() })
    }

    fn read_arguments(&mut self, deltas: &mut Vec<ChatDelta>) -> bool {
        let told = self.held_to == Some(ToolFormat::DeepSeek);
        let State::Arguments { name, end, mut text } = std::mem::replace(&mut self.state, State::Between) else {
            unreachable!("called within arguments")
        };
        if let Some(rest) = self.take_until(end) {
            text += &rest;
            if told {
                self.arguments(&text, deltas);
                self.complete += 1;
            } else {
                self.call(&name, &text, &text, deltas);
            }
            return true;
        }
        let sure = self.held.len() - undecided(&self.held, end);
        let rest = self.held.split_off(sure);
        text += &std::mem::replace(&mut self.held, rest);
        if told {
            self.arguments(&std::mem::take(&mut text), deltas);
        }
        self.state = State::Arguments { name, end, text };
        false
    }

    fn block(&mut self, deltas: &mut Vec<ChatDelta>) -> bool {
        let State::Block(mut block) = std::mem::replace(&mut self.state, State::Text) else {
            unreachable!("called within a block")
        };
        let end = block.push(&mut self.held, &self.tools);
        if let Some(name) = block.take_name() {
            self.begin(&name, deltas);
        }
        let arguments = block.take_arguments();
        self.arguments(&arguments, deltas);
        let Some(outcome) = end else {
            self.state = State::Block(block);
            return false;
        };
        if let Some(closer) = block.opener.closer() {
            self.state = State::Tail(closer);
        }
        match outcome {
            Outcome::Told { rest } => {
                self.arguments(&rest, deltas);
                self.complete += 1;
                self.has_text = false;
            }
            Outcome::Calls(calls, raw) => self.calls(calls, &raw, deltas),
            Outcome::Text(raw) => {
                self.state = State::Text;
                self.say(raw, deltas);
            }
        }
        true
    }

    /// Calls, if all of them may be made; else their text.
    fn calls(&mut self, calls: Vec<(String, String)>, raw: &str, deltas: &mut Vec<ChatDelta>) {
        if !calls.iter().all(|(name, arguments)| self.tools.accept(name, arguments)) {
            self.state = State::Text;
            return self.say(raw.to_owned(), deltas);
        }
        for (name, arguments) in calls {
            self.call(&name, &arguments, raw, deltas);
        }
    }

    /// A call, if it may be made; else its text.
    fn call(&mut self, name: &str, arguments: &str, raw: &str, deltas: &mut Vec<ChatDelta>) {
        if !self.tools.accept(name, arguments) {
            return self.say(raw.to_owned(), deltas);
        }
        self.begin(name, deltas);
        self.arguments(arguments, deltas);
        self.complete += 1;
        self.has_text = false;
    }

    fn begin(&mut self, name: &str, deltas: &mut Vec<ChatDelta>) {
        let id = format!("call_{}", random_hex::<12>().unwrap_or_else(|_| self.begun.to_string()));
        append(deltas, ChatDelta::Call(CallDelta::Begin { index: self.begun, id, name: name.to_owned() }));
        self.begun += 1;
    }

    fn arguments(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) {
        let delta = CallDelta::Arguments { index: self.begun.saturating_sub(1), text: text.to_owned() };
        append(deltas, ChatDelta::Call(delta));
    }
}

/// What the beginning of an answer is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bare {
    Call,
    Undecided,
    Text,
}
