//! The items of a request's `input`: messages, reasoning, calls of tools and their results.

use serde_json::{Value, json};
use wels_data::Message;

use super::reply::decode_reasoning;
use super::tools::{CUSTOM_INPUT, joined};
use crate::wire::ApiError;
use crate::wire::conversation::{AssistantTurn, Conversation, MESSAGES_MAX, said};
use crate::wire::fields::{Fields, string, wrong_type};

/// Takes `input` and `instructions`.
pub(super) fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let mut conversation = Conversation::default();
    if let Some(instructions) = fields.string("instructions")?.filter(|text| !text.is_empty()) {
        conversation.say(said("system", instructions));
    }
    let input = fields.take("input");
    match fields.required("input", input)? {
        Value::String(text) => conversation.say(said("user", text)),
        Value::Array(items) if items.len() > MESSAGES_MAX => {
            return Err(fields.error("input", format!("There can be {MESSAGES_MAX} items.")));
        }
        Value::Array(items) => {
            for (at, value) in items.into_iter().enumerate() {
                item(&mut conversation, value, format!("input[{at}]"))?;
            }
        }
        other => return Err(wrong_type(fields.name("input"), "a string or an array of items", &other)),
    }
    let messages = conversation.end();
    match messages.is_empty() {
        true => Err(fields.error("input", "There is nothing to answer.")),
        false => Ok(messages),
    }
}

fn item(to: &mut Conversation, item: Value, path: String) -> Result<(), ApiError> {
    let kind = match (&item["type"], &item["role"]) {
        (Value::String(kind), _) => kind.clone(),
        (Value::Null, Value::String(_)) => "message".to_owned(),
        _ if item.is_object() => return Err(ApiError::param(path + ".type", "The type of the item is missing.")),
        _ => return Err(wrong_type(path, "an object", &item)),
    };
    match kind.as_str() {
        "message" => message(to, item, path),
        "reasoning" => reasoning(to, item, path),
        "function_call" => function_call(to, item, path),
        "custom_tool_call" => custom_call(to, item, path),
        "function_call_output" | "custom_tool_call_output" => output(to, item, path),
        // What tools of another server did; its answer says what came of it.
        "web_search_call" | "file_search_call" | "code_interpreter_call" => Ok(()),
        "item_reference" => Err(ApiError::param(path, "Nothing is stored here: send the item itself.")),
        other => Err(ApiError::param(path + ".type", format!("Items of the type `{other}` are not known here."))),
    }
}

fn message(to: &mut Conversation, item: Value, path: String) -> Result<(), ApiError> {
    let mut fields = Fields::of(item, path, &["type", "role", "content", "id", "status", "phase"])?;
    let role = fields.string("role")?;
    let content = fields.take("content");
    let content = text(fields.required("content", content)?, fields.name("content"))?;
    match fields.required("role", role)?.as_str() {
        "assistant" => AssistantTurn::add(&mut to.turn.content, &content),
        "user" => to.say(said("user", content)),
        "system" | "developer" => to.say(said("system", content)),
        other => return Err(fields.error("role", format!("`{other}` is no role here."))),
    }
    Ok(())
}

/// The text of the reasoning, or else what it was encoded to.
fn reasoning(to: &mut Conversation, item: Value, path: String) -> Result<(), ApiError> {
    let mut fields = Fields::of(item, path, &["type", "id", "summary", "content", "encrypted_content", "status"])?;
    let encoded = fields.string("encrypted_content")?;
    let mut whole = String::new();
    for part in fields.array("content")?.unwrap_or_default() {
        AssistantTurn::add(&mut whole, part["text"].as_str().unwrap_or_default());
    }
    if whole.is_empty() {
        whole = encoded.as_deref().and_then(decode_reasoning).unwrap_or_default();
    }
    AssistantTurn::add(&mut to.turn.reasoning, &whole);
    Ok(())
}

fn function_call(to: &mut Conversation, item: Value, path: String) -> Result<(), ApiError> {
    let known = &["type", "id", "call_id", "name", "arguments", "status", "namespace"];
    let mut fields = Fields::of(item, path, known)?;
    let [id, name, arguments] = required_strings(&mut fields, ["call_id", "name", "arguments"])?;
    let name = match fields.string("namespace")? {
        Some(namespace) => joined(&namespace, &name),
        None => name,
    };
    to.turn.call(&id, &name, &arguments);
    Ok(())
}

fn custom_call(to: &mut Conversation, item: Value, path: String) -> Result<(), ApiError> {
    let mut fields = Fields::of(item, path, &["type", "id", "call_id", "name", "input", "status", "namespace"])?;
    let [id, name, input] = required_strings(&mut fields, ["call_id", "name", "input"])?;
    to.turn.call(&id, &name, &json!({CUSTOM_INPUT: input}).to_string());
    Ok(())
}

fn output(to: &mut Conversation, item: Value, path: String) -> Result<(), ApiError> {
    let mut fields = Fields::of(item, path, &["type", "id", "call_id", "output", "status", "name"])?;
    let [id] = required_strings(&mut fields, ["call_id"])?;
    let output = fields.take("output").unwrap_or_else(|| "".into());
    to.result(id, text(output, fields.name("output"))?);
    Ok(())
}

fn required_strings<const N: usize>(fields: &mut Fields, keys: [&str; N]) -> Result<[String; N], ApiError> {
    let mut strings = [const { String::new() }; N];
    for (string, key) in strings.iter_mut().zip(keys) {
        let value = fields.string(key)?;
        *string = fields.required(key, value)?;
    }
    Ok(strings)
}

/// A string, or parts of text put together.
fn text(content: Value, name: String) -> Result<String, ApiError> {
    let parts = match content {
        Value::Array(parts) => parts,
        other => return string(other, name),
    };
    let mut whole = String::new();
    for (at, part) in parts.into_iter().enumerate() {
        let path = format!("{name}[{at}]");
        match part["type"].as_str() {
            Some("input_text" | "output_text" | "text" | "refusal") => {}
            _ => return Err(ApiError::param(path + ".type", "Only parts of text are understood here.")),
        }
        let known = &["type", "text", "annotations", "logprobs", "refusal", "prompt_cache_breakpoint"];
        let mut part = Fields::of(part, path, known)?;
        let refusal = part.string("refusal")?;
        let text = part.string("text")?.or(refusal);
        whole += &part.required("text", text)?;
    }
    Ok(whole)
}
