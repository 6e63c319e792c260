//! `system` and `messages`.

use serde_json::Value;
use wels_data::Message;

use super::{text, text_block};
use crate::wire::conversation::{AssistantTurn, Conversation, MESSAGES_MAX, said};
use crate::wire::fields::{Fields, string, wrong_type};
use crate::wire::{ApiError, Prefix};

/// What an agent puts before its system prompt for its own accounts. It differs from request to request, so it would
/// keep every prompt out of the prefix cache.
const BILLING: &str = "x-anthropic-billing-header";

/// Takes both; and what the answer begins with, if the last message is the assistant's.
pub(super) fn messages(fields: &mut Fields) -> Result<(Vec<Message>, Option<Prefix>), ApiError> {
    let mut conversation = Conversation::default();
    if let Some(system) = fields.take("system") {
        let system = system_text(system, &fields.name("system"))?;
        if !system.is_empty() {
            conversation.say(said("system", system));
        }
    }
    let values = fields.array("messages")?;
    let values = fields.required("messages", values)?;
    if values.is_empty() || values.len() > MESSAGES_MAX {
        return Err(fields.error("messages", format!("There have to be 1 to {MESSAGES_MAX} messages.")));
    }
    for (at, value) in values.into_iter().enumerate() {
        let mut message = Fields::of(value, format!("messages[{at}]"), &["role", "content", "cache_control", "id"])?;
        let role = message.string("role")?;
        let content = message.take("content");
        let content = message.required("content", content)?;
        match message.required("role", role)?.as_str() {
            "user" => user(&mut conversation, content, &message.name("content"))?,
            "assistant" => assistant(&mut conversation, content, &message.name("content"))?,
            "system" => conversation.say(said("system", text(content, &message.name("content"), "\n\n")?)),
            other => return Err(message.error("role", format!("`{other}` is no role here."))),
        }
    }
    let prefix = conversation.open_text().map(|content| Prefix { reasoning: None, content });
    let messages = conversation.end();
    match messages.is_empty() {
        true => Err(fields.error("messages", "There is nothing to answer.")),
        false => Ok((messages, prefix)),
    }
}

fn system_text(mut system: Value, name: &str) -> Result<String, ApiError> {
    let bills = |text: &str| text.get(..BILLING.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(BILLING));
    match &mut system {
        Value::Array(blocks) => blocks.retain(|block| !block["text"].as_str().is_some_and(bills)),
        Value::String(text) if bills(text) => {
            *text = text.split_once('\n').map(|(_, rest)| rest.trim_start().to_owned()).unwrap_or_default();
        }
        _ => {}
    }
    text(system, name, "\n\n")
}

/// Results of tools come first: they belong to the calls before them.
fn user(to: &mut Conversation, content: Value, name: &str) -> Result<(), ApiError> {
    let blocks = match content {
        Value::Array(blocks) => blocks,
        other => {
            to.say(said("user", string(other, name.to_owned())?));
            return Ok(());
        }
    };
    let mut whole = String::new();
    for (at, block) in blocks.into_iter().enumerate() {
        let path = format!("{name}[{at}]");
        if block["type"] == "tool_result" {
            result(to, block, path)?;
        } else {
            AssistantTurn::add(&mut whole, &text_block(block, path)?);
        }
    }
    if !whole.is_empty() {
        to.say(said("user", whole));
    }
    Ok(())
}

fn result(to: &mut Conversation, block: Value, path: String) -> Result<(), ApiError> {
    let known = &["type", "tool_use_id", "content", "is_error", "cache_control"];
    let mut fields = Fields::of(block, path, known)?;
    let id = fields.string("tool_use_id")?;
    let id = fields.required("tool_use_id", id)?;
    fields.bool("is_error")?; // the text says what went wrong
    let content = fields.take("content").unwrap_or_else(|| "".into());
    to.result(id, text(content, &fields.name("content"), "\n\n")?);
    Ok(())
}

fn assistant(to: &mut Conversation, content: Value, name: &str) -> Result<(), ApiError> {
    let blocks = match content {
        Value::Array(blocks) => blocks,
        other => {
            AssistantTurn::add(&mut to.turn.content, &string(other, name.to_owned())?);
            return Ok(());
        }
    };
    for (at, block) in blocks.into_iter().enumerate() {
        let path = format!("{name}[{at}]");
        match block["type"].as_str() {
            Some("thinking") => {
                let mut fields = Fields::of(block, path, &["type", "thinking", "signature", "cache_control"])?;
                let thinking = fields.string("thinking")?;
                AssistantTurn::add(&mut to.turn.reasoning, &fields.required("thinking", thinking)?);
            }
            // What only the server that wrote it can read, and what that server's own tools did.
            Some("redacted_thinking" | "server_tool_use" | "web_search_tool_result") => {}
            Some("tool_use") => {
                let known = &["type", "id", "name", "input", "cache_control", "caller"];
                let mut fields = Fields::of(block, path, known)?;
                let (id, name) = (fields.string("id")?, fields.string("name")?);
                let (id, name) = (fields.required("id", id)?, fields.required("name", name)?);
                match fields.take("input").unwrap_or_else(|| Value::Object(Default::default())) {
                    input @ Value::Object(_) => to.turn.call(&id, &name, &input.to_string()),
                    other => return Err(wrong_type(fields.name("input"), "an object", &other)),
                }
            }
            _ => AssistantTurn::add(&mut to.turn.content, &text_block(block, path)?),
        }
    }
    Ok(())
}
