//! What the three chat APIs ask for, in one form: the rest of the server knows this one alone.

use serde_json::{Map, Value, json};
use wels_data::Message;

use super::fields::Fields;
use super::{ApiError, Format, PictureFile, SamplingFields, Tool, ToolChoice};

/// Messages of one conversation.
pub(super) const MESSAGES_MAX: usize = 4096;

/// A request for the next message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    pub model: String,
    /// At least one. Arguments of earlier tool calls are strings; earlier reasoning, as `reasoning_content`, is there
    /// for messages that call tools.
    pub messages: Vec<Message>,
    /// What users' messages show, in the order of [`PICTURE`](super::PICTURE) in their texts.
    pub pictures: Vec<PictureFile>,
    /// What the answer has to begin with.
    pub prefix: Option<Prefix>,
    /// How tokens are chosen.
    pub sampling: SamplingFields,
    /// Whether the reply comes as server-sent events.
    pub streams: bool,
    /// With each token, its log-probability and those of so many likeliest ones.
    pub logprobs: Option<usize>,
    /// That may be called.
    pub tools: Vec<Tool>,
    /// Whether they have to be.
    pub tool_choice: ToolChoice,
    /// Whether several may be called in one answer.
    pub parallel_tool_calls: bool,
    /// What the answer has to be.
    pub format: Format,
    /// Of the thinking before the answer.
    pub thinking: Thinking,
    /// Further variables of the chat template.
    pub template_variables: Map<String, Value>,
}

/// The beginning of an answer, given by the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    pub reasoning: Option<String>,
    /// What stands behind the reasoning.
    pub content: String,
}

/// What a client asks of the thinking before an answer. A model that does not think does not because of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thinking {
    /// Whether the model thinks; `None`: as its template has it.
    pub on: Option<bool>,
    /// The most tokens of it, after which it is ended.
    pub budget: Option<usize>,
    /// The client's word, for templates with a variable for it.
    pub effort: Option<&'static str>,
}

/// Words of `reasoning_effort`, and the tokens that each leaves to thinking.
const EFFORTS: [(&str, Option<usize>); 7] = [
    ("none", Some(0)),
    ("minimal", Some(512)),
    ("low", Some(2048)),
    ("medium", Some(8192)),
    ("high", None),
    ("xhigh", None),
    ("max", None),
];

impl Thinking {
    /// Takes a word for the effort from `fields`.
    pub(super) fn take_effort(&mut self, fields: &mut Fields, key: &str) -> Result<(), ApiError> {
        let Some(word) = fields.string(key)? else { return Ok(()) };
        let Some((effort, budget)) = EFFORTS.iter().find(|(known, _)| *known == word) else {
            let known: Vec<String> = EFFORTS.iter().map(|(word, _)| format!("`{word}`")).collect();
            return Err(fields.error(key, format!("`{word}` is none of {}.", known.join(", "))));
        };
        let off = *effort == "none";
        self.effort = Some(effort);
        self.on = Some(!off);
        self.budget = budget.filter(|_| !off);
        Ok(())
    }

    /// Takes `thinking`, `{"type": "enabled", "budget_tokens": 2000}`, which comes before an effort.
    pub(super) fn take_object(&mut self, fields: &mut Fields) -> Result<(), ApiError> {
        let Some(object) = fields.take("thinking") else { return Ok(()) };
        let mut object = Fields::of(object, fields.name("thinking"), &["type", "budget_tokens", "display"])?;
        object.string("display")?; // whether summaries are shown; what is shown here is the thinking itself
        let kind = object.string("type")?;
        let budget = object.int("budget_tokens", 1, i64::from(i32::MAX))?.map(|tokens| tokens as usize);
        match object.required("type", kind)?.as_str() {
            "enabled" => self.on = Some(true),
            "disabled" => *self = Thinking { on: Some(false), ..*self },
            "adaptive" => self.on = self.on.filter(|on| *on),
            other => {
                let message = format!("`{other}` is none of `enabled`, `disabled` and `adaptive`.");
                return Err(object.error("type", message));
            }
        }
        self.budget = budget.or(self.budget);
        Ok(())
    }
}

/// A message with a text.
pub(super) fn said(role: &str, text: impl Into<String>) -> Message {
    Message { role: role.to_owned(), content: Value::String(text.into()), other: Map::new() }
}

/// Messages as they are put together from an API's items or blocks.
#[derive(Default)]
pub(super) struct Conversation {
    messages: Vec<Message>,
    /// What the assistant said last, as long as nobody else has said anything.
    pub turn: AssistantTurn,
}

impl Conversation {
    /// Adds a message of the system's or the user's. Two of one role that follow one another become one, with an empty
    /// line between: these APIs allow several in a row, and many chat templates do not.
    pub fn say(&mut self, message: Message) {
        self.end_turn();
        match (self.messages.last_mut(), &message.content) {
            (Some(Message { role, content: Value::String(before), .. }), Value::String(text))
                if *role == message.role =>
            {
                AssistantTurn::add(before, text);
            }
            _ => self.messages.push(message),
        }
    }

    /// Adds the result of the call with this id.
    pub fn result(&mut self, id: String, text: String) {
        self.end_turn();
        let mut message = said("tool", text);
        let calls = self.messages.iter().rev().filter_map(|message| message.other.get("tool_calls")?.as_array());
        let called = calls.flatten().find(|call| call["id"] == id.as_str());
        if let Some(name) = called.and_then(|call| call["function"]["name"].as_str()) {
            message.other.insert("name".to_owned(), name.into());
        }
        message.other.insert("tool_call_id".to_owned(), id.into());
        self.messages.push(message);
    }

    pub fn end_turn(&mut self) {
        self.messages.extend(std::mem::take(&mut self.turn).message());
    }

    /// What the assistant has said, if it ends the conversation and called no tool: the beginning of the answer.
    pub fn open_text(&mut self) -> Option<String> {
        let open = !self.messages.is_empty() && self.turn.calls.is_empty() && !self.turn.content.is_empty();
        open.then(|| std::mem::take(&mut self.turn).content)
    }

    pub fn end(mut self) -> Vec<Message> {
        self.end_turn();
        self.messages
    }
}

/// What an assistant said, thought and called, put together from an API's items.
#[derive(Default)]
pub(super) struct AssistantTurn {
    pub reasoning: String,
    pub content: String,
    /// In OpenAI's form.
    pub calls: Vec<Value>,
}

impl AssistantTurn {
    pub fn call(&mut self, id: &str, name: &str, arguments: &str) {
        let function = json!({"name": name, "arguments": arguments});
        self.calls.push(json!({"id": id, "type": "function", "function": function}));
    }

    /// Separates texts by empty lines.
    pub fn add(text: &mut String, more: &str) {
        if !text.is_empty() && !more.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(more);
    }

    /// The message, if there is anything in it. Reasoning stays with calls of tools, whose results are thought about
    /// next; that of earlier answers is left out, as DeepSeek does.
    pub fn message(self) -> Option<Message> {
        if self.content.is_empty() && self.calls.is_empty() {
            return None;
        }
        let mut message = said("assistant", self.content);
        if !self.calls.is_empty() {
            if message.content == "" {
                message.content = Value::Null;
            }
            message.other.insert("tool_calls".to_owned(), Value::Array(self.calls));
            if !self.reasoning.is_empty() {
                message.other.insert("reasoning_content".to_owned(), Value::String(self.reasoning));
            }
        }
        Some(message)
    }
}
