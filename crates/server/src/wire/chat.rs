//! `chat/completions`.

use serde_json::{Map, Value, json};
use wels_data::Message;

use super::fields::{Fields, parse_object, string, wrong_type};
use super::sampling::{self, sampling_keys};
use super::{ApiError, Format, SamplingFields, StreamMode, Tool, ToolChoice, tools};

/// Messages of one conversation.
const MESSAGES_MAX: usize = 4096;

/// A request for the next message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    pub model: String,
    /// At least one. Arguments of earlier tool calls are strings.
    pub messages: Vec<Message>,
    /// What the answer has to begin with.
    pub prefix: Option<Prefix>,
    /// How tokens are chosen.
    pub sampling: SamplingFields,
    /// How the reply comes.
    pub stream: StreamMode,
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
}

/// The beginning of an answer, given by the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    pub reasoning: Option<String>,
    /// What stands behind the reasoning.
    pub content: String,
}

impl ChatRequest {
    /// Reads a body. `beta`: the prefix of an answer may be given.
    pub fn parse(body: &[u8], beta: bool) -> Result<ChatRequest, ApiError> {
        let mut fields = parse_object(
            body,
            sampling_keys![
                "messages",
                "max_completion_tokens",
                "logprobs",
                "top_logprobs",
                "tools",
                "tool_choice",
                "parallel_tool_calls",
                "response_format",
                "store",
                "service_tier",
            ],
        )?;
        let fields = &mut fields;
        let model = sampling::model(fields)?;
        let (messages, prefix) = messages(fields, beta)?;
        let limit = fields.int("max_completion_tokens", 1, i64::from(i32::MAX))?.map(|count| count as usize);
        let mut sampling = SamplingFields::take(fields)?;
        if limit.is_some() && sampling.max_tokens.is_some() {
            return Err(fields.error("max_tokens", "`max_tokens` and `max_completion_tokens` are the same thing."));
        }
        sampling.max_tokens = limit.or(sampling.max_tokens);
        if fields.bool("store")? == Some(true) {
            return Err(fields.error("store", "Nothing is stored here."));
        }
        if let Some(tier) = fields.string("service_tier")?.filter(|tier| !["auto", "default"].contains(&tier.as_str()))
        {
            return Err(fields.error("service_tier", format!("There is no tier `{tier}` here.")));
        }
        let (tools, tool_choice) = tools::take(fields)?;
        let parallel_tool_calls = fields.bool("parallel_tool_calls")?;
        if parallel_tool_calls.is_some() && tools.is_empty() {
            return Err(fields.error("parallel_tool_calls", "`parallel_tool_calls` goes with `tools` only."));
        }
        let format = format(fields)?;
        if format != Format::Text && tool_choice != ToolChoice::None {
            let message = "An answer in a given format cannot call tools: leave out one of the two.";
            return Err(fields.error("response_format", message));
        }
        if prefix.is_some() && (format != Format::Text || tool_choice != ToolChoice::None) {
            return Err(fields.error("messages", "A prefix goes with neither `tools` nor `response_format`."));
        }
        Ok(ChatRequest {
            model,
            messages,
            prefix,
            sampling,
            stream: sampling::stream(fields)?,
            logprobs: logprobs(fields)?,
            tools,
            tool_choice,
            parallel_tool_calls: parallel_tool_calls.unwrap_or(true),
            format,
        })
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.int("top_logprobs", 0, 20)?;
    match (wanted, top) {
        (false, Some(_)) => Err(fields.error("top_logprobs", "`top_logprobs` goes with `logprobs: true` only.")),
        (false, None) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
    }
}

fn format(fields: &mut Fields) -> Result<Format, ApiError> {
    let Some(value) = fields.take("response_format") else { return Ok(Format::Text) };
    let mut format = Fields::of(value, fields.name("response_format"), &["type", "json_schema"])?;
    let kind = format.string("type")?;
    let kind = format.required("type", kind)?;
    if kind != "json_schema" && format.has("json_schema") {
        return Err(format.error("json_schema", "`json_schema` goes with the type `json_schema` only."));
    }
    match kind.as_str() {
        "text" => Ok(Format::Text),
        "json_object" => Ok(Format::JsonObject),
        "json_schema" => {
            let schema = format.take("json_schema");
            let schema = format.required("json_schema", schema)?;
            let path = format.name("json_schema");
            let mut schema = Fields::of(schema, path, &["name", "description", "schema", "strict"])?;
            let name = schema.string("name")?;
            if !tools::is_name(&schema.required("name", name)?) {
                return Err(schema.error("name", "A name has 1 to 64 letters, digits, `_` and `-`."));
            }
            schema.string("description")?;
            schema.bool("strict")?; // the schema is kept to in any case
            match schema.take("schema") {
                Some(schema @ Value::Object(_)) => Ok(Format::JsonSchema(schema)),
                _ => Err(schema.error("schema", "`schema` has to be an object.")),
            }
        }
        _ => Err(format.error("type", format!("`{kind}` is none of `text`, `json_object` and `json_schema`."))),
    }
}

fn messages(fields: &mut Fields, beta: bool) -> Result<(Vec<Message>, Option<Prefix>), ApiError> {
    let values = fields.array("messages")?;
    let values = fields.required("messages", values)?;
    if values.is_empty() || values.len() > MESSAGES_MAX {
        return Err(fields.error("messages", format!("There have to be 1 to {MESSAGES_MAX} messages.")));
    }
    let last = values.len() - 1;
    let mut messages = Vec::with_capacity(values.len());
    for (at, value) in values.into_iter().enumerate() {
        let path = format!("messages[{at}]");
        match message(value, &path, beta)? {
            Turn::Message(message) => messages.push(message),
            Turn::Prefix(prefix) if at == last && at > 0 => return Ok((messages, Some(prefix))),
            Turn::Prefix(_) => {
                let message = "Only the last message can be a prefix, and not the first.";
                return Err(ApiError::param(format!("{path}.prefix"), message));
            }
        }
    }
    Ok((messages, None))
}

enum Turn {
    Message(Message),
    Prefix(Prefix),
}

fn message(value: Value, path: &str, beta: bool) -> Result<Turn, ApiError> {
    let known = &["role", "content", "name", "tool_calls", "tool_call_id", "prefix", "reasoning_content"];
    let mut fields = Fields::of(value, path.to_owned(), known)?;
    let role = fields.string("role")?;
    let role = fields.required("role", role)?;
    let role = match role.as_str() {
        "developer" => "system",
        role @ ("system" | "user" | "assistant" | "tool") => role,
        other => return Err(fields.error("role", format!("`{other}` is no role here."))),
    };
    let content = fields.take("content").map(|content| text(content, fields.name("content"))).transpose()?;
    let mut other = Map::new();
    if let Some(name) = fields.string("name")? {
        other.insert("name".to_owned(), name.into());
    }
    if role != "assistant" {
        for key in ["tool_calls", "prefix", "reasoning_content"] {
            if fields.has(key) {
                return Err(fields.error(key, format!("`{key}` belongs to an assistant's message.")));
            }
        }
    }
    if role == "tool" {
        let id = fields.string("tool_call_id")?;
        other.insert("tool_call_id".to_owned(), fields.required("tool_call_id", id)?.into());
    } else if fields.has("tool_call_id") {
        return Err(fields.error("tool_call_id", "`tool_call_id` belongs to a tool's message."));
    }
    let calls = tool_calls(&mut fields)?;
    let reasoning = fields.string("reasoning_content")?;
    if fields.bool("prefix")?.unwrap_or(false) {
        if !beta {
            return Err(fields.error("prefix", "A prefix is completed at the address `/beta/chat/completions`."));
        }
        return Ok(Turn::Prefix(Prefix { reasoning, content: content.unwrap_or_default() }));
    }
    if reasoning.is_some() {
        let message = "Earlier reasoning is not part of a conversation: leave it out.";
        return Err(fields.error("reasoning_content", message));
    }
    let content = match (content, calls.is_empty()) {
        (Some(text), _) => Value::String(text),
        (None, false) => Value::Null,
        (None, true) => return Err(fields.error("content", "`content` is missing.")),
    };
    if !calls.is_empty() {
        other.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    Ok(Turn::Message(Message { role: role.to_owned(), content, other }))
}

/// A string, or parts of text put together.
fn text(content: Value, name: String) -> Result<String, ApiError> {
    let parts = match content {
        Value::Array(parts) => parts,
        other => return string(other, name),
    };
    let mut whole = String::new();
    for (at, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(part, format!("{name}[{at}]"), &["type", "text"])?;
        match part.string("type")?.as_deref() {
            Some("text") => {}
            _ => return Err(part.error("type", "Only parts of the type `text` are understood here.")),
        }
        let text = part.string("text")?;
        whole += &part.required("text", text)?;
    }
    Ok(whole)
}

fn tool_calls(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let name = fields.name("tool_calls");
    let calls = fields.array("tool_calls")?.unwrap_or_default();
    calls
        .into_iter()
        .enumerate()
        .map(|(at, call)| {
            let mut call = Fields::of(call, format!("{name}[{at}]"), &["id", "type", "function", "index"])?;
            call.int("index", 0, i64::from(i32::MAX))?;
            let id = call.string("id")?;
            let id = call.required("id", id)?;
            match call.string("type")?.as_deref() {
                Some("function") | None => {}
                Some(_) => return Err(call.error("type", "The type of a tool is `function`.")),
            }
            let function = call.take("function");
            let function = call.required("function", function)?;
            let mut function = Fields::of(function, call.name("function"), &["name", "arguments"])?;
            let name = function.string("name")?;
            let name = function.required("name", name)?;
            let arguments = function.take("arguments").unwrap_or_else(|| "{}".into());
            if !arguments.is_string() {
                return Err(wrong_type(function.name("arguments"), "a string of JSON", &arguments));
            }
            Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
        })
        .collect()
}
