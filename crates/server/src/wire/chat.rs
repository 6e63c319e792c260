//! `chat/completions`.

use serde_json::{Map, Value, json};
use wels_data::Message;

use super::conversation::{MESSAGES_MAX, said};
use super::fields::{Fields, parse_object, string, wrong_type};
use super::sampling::{self, sampling_keys};
use super::{ApiError, ChatRequest, Format, Prefix, SamplingFields, StreamMode, Thinking, ToolChoice, picture, tools};

/// What asks for nothing that a local server could fail to do: names for the client's own records, hints for caches,
/// tiers and styles.
const IGNORED: &[&str] = &[
    "metadata",
    "moderation",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "verbosity",
];

/// Variables of a chat template that are the server's own to set.
const OWN_VARIABLES: &[&str] = &["messages", "tools", "add_generation_prompt", "bos_token", "eos_token"];

/// What a chat completion asks of its reply's form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChatForm {
    /// In a stream, a last event that has the usage and no choice.
    pub include_usage: bool,
    /// Calls are `function_call`s, as before there were tools.
    pub functions: bool,
}

impl ChatRequest {
    /// Reads a body of `chat/completions`. `beta`: the prefix of an answer may be given.
    ///
    /// # Errors
    /// 400, with the parameter that is wrong.
    pub fn parse(body: &[u8], beta: bool) -> Result<(ChatRequest, ChatForm), ApiError> {
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
                "functions",
                "function_call",
                "response_format",
                "reasoning_effort",
                "thinking",
                "chat_template_kwargs",
                "modalities",
                "audio",
                "web_search_options",
            ],
            IGNORED,
        )?;
        let fields = &mut fields;
        fields.ignore(IGNORED);
        refuse_other_media(fields)?;
        let model = sampling::model(fields)?;
        let pictures = picture::take(fields, "messages")?;
        let (messages, prefix) = messages(fields, beta)?;
        let limit = fields.int("max_completion_tokens", 1, i64::from(i32::MAX))?.map(|count| count as usize);
        let mut sampling = SamplingFields::take(fields)?;
        if limit.is_some() && sampling.max_tokens.is_some_and(|tokens| Some(tokens) != limit) {
            return Err(fields.error("max_tokens", "`max_tokens` and `max_completion_tokens` are the same thing."));
        }
        sampling.max_tokens = limit.or(sampling.max_tokens);
        let (tools, tool_choice, functions) = tools::take(fields)?;
        let parallel_tool_calls = fields.bool("parallel_tool_calls")?.unwrap_or(true) && !functions;
        let format = format(fields)?;
        check_together(fields, &format, &tool_choice, prefix.is_some())?;
        let (thinking, template_variables) = thinking(fields)?;
        let stream = sampling::stream(fields)?;
        let request = ChatRequest {
            model,
            messages,
            pictures,
            prefix,
            sampling,
            streams: stream != StreamMode::Whole,
            logprobs: logprobs(fields)?,
            tools,
            tool_choice,
            parallel_tool_calls,
            format,
            thinking,
            template_variables,
        };
        let include_usage = stream == StreamMode::Events { include_usage: true };
        Ok((request, ChatForm { include_usage, functions }))
    }
}

/// What does not go together.
pub(super) fn check_together(
    fields: &Fields,
    format: &Format,
    choice: &ToolChoice,
    prefixed: bool,
) -> Result<(), ApiError> {
    if *format != Format::Text && matches!(choice, ToolChoice::Required | ToolChoice::Named(_)) {
        let message = "An answer in a given format cannot be a call of a tool: leave out one of the two.";
        return Err(fields.error("tool_choice", message));
    }
    if prefixed && (*format != Format::Text || *choice != ToolChoice::None) {
        return Err(fields.error("messages", "A prefix goes with neither tools nor a format."));
    }
    Ok(())
}

fn refuse_other_media(fields: &mut Fields) -> Result<(), ApiError> {
    for modality in fields.array("modalities")?.unwrap_or_default() {
        if modality != "text" {
            return Err(fields.error("modalities", format!("Answers are `text` here, not {modality}.")));
        }
    }
    fields.refuse("audio", "Answers are text here.")?;
    fields.refuse("web_search_options", "There is no search of the web here.")
}

/// `thinking` comes before `chat_template_kwargs`, which come before `reasoning_effort`.
fn thinking(fields: &mut Fields) -> Result<(Thinking, Map<String, Value>), ApiError> {
    let mut thinking = Thinking::default();
    thinking.take_effort(fields, "reasoning_effort")?;
    let variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
    if let Some(name) = variables.keys().find(|name| OWN_VARIABLES.contains(&name.as_str())) {
        let message = format!("`{name}` is set by the server.");
        return Err(fields.error(&format!("chat_template_kwargs.{name}"), message));
    }
    let switch = ["enable_thinking", "thinking"].iter().find_map(|name| variables.get(*name)?.as_bool());
    thinking.on = switch.or(thinking.on);
    thinking.take_object(fields)?;
    Ok((thinking, variables))
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.int("top_logprobs", 0, 20)?;
    match (wanted, top) {
        (false, Some(1..)) => Err(fields.error("top_logprobs", "`top_logprobs` goes with `logprobs: true` only.")),
        (false, _) => Ok(None),
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
            json_schema(&mut schema)
        }
        _ => Err(format.error("type", format!("`{kind}` is none of `text`, `json_object` and `json_schema`."))),
    }
}

/// A format's schema, with its name.
pub(super) fn json_schema(schema: &mut Fields) -> Result<Format, ApiError> {
    let name = schema.string("name")?;
    if !tools::is_name(&schema.required("name", name)?) {
        return Err(schema.error("name", tools::NAME_RULE));
    }
    schema.string("description")?;
    schema.bool("strict")?; // the schema is kept to in any case
    match schema.take("schema") {
        Some(schema @ Value::Object(_)) => Ok(Format::JsonSchema(schema)),
        _ => Err(schema.error("schema", "`schema` has to be an object.")),
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
    let known = &[
        "role",
        "content",
        "name",
        "tool_calls",
        "function_call",
        "tool_call_id",
        "prefix",
        "reasoning_content",
        "reasoning",
        "refusal",
        "annotations",
        "audio",
        "cache_control",
    ];
    let mut fields = Fields::of(value, path.to_owned(), known)?;
    fields.ignore(&["refusal", "annotations", "cache_control"]);
    fields.refuse("audio", "Only text is understood here.")?;
    let role = fields.string("role")?;
    let role = fields.required("role", role)?;
    let role = match role.as_str() {
        "developer" => "system",
        "function" => return function_result(fields),
        role @ ("system" | "user" | "assistant" | "tool") => role,
        other => return Err(fields.error("role", format!("`{other}` is no role here."))),
    };
    let content = fields.take("content").map(|content| text(content, fields.name("content"))).transpose()?;
    let mut other = Map::new();
    if let Some(name) = fields.string("name")? {
        other.insert("name".to_owned(), name.into());
    }
    if role != "assistant" {
        for key in ["tool_calls", "function_call", "prefix", "reasoning_content", "reasoning"] {
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
    let mut calls = tool_calls(&mut fields)?;
    calls.extend(function_call(&mut fields)?);
    let reasoning = fields.string("reasoning_content")?;
    let reasoning = fields.string("reasoning")?.or(reasoning); // as OpenRouter and vLLM name it
    if fields.bool("prefix")?.unwrap_or(false) {
        if !beta {
            return Err(fields.error("prefix", "A prefix is completed at the address `/beta/chat/completions`."));
        }
        return Ok(Turn::Prefix(Prefix { reasoning, content: content.unwrap_or_default() }));
    }
    let content = match (content, calls.is_empty()) {
        (Some(text), _) => Value::String(text),
        (None, false) => Value::Null,
        (None, true) if role == "assistant" && reasoning.is_some() => Value::String(String::new()),
        (None, true) => return Err(fields.error("content", "`content` is missing.")),
    };
    // Earlier reasoning is read where tools were called, whose results the model goes on to think about, and else is
    // not part of the conversation: api-docs.deepseek.com, "Thinking Mode".
    if !calls.is_empty() {
        other.insert("tool_calls".to_owned(), Value::Array(calls));
        other.extend(reasoning.map(|text| ("reasoning_content".to_owned(), text.into())));
    }
    Ok(Turn::Message(Message { role: role.to_owned(), content, other }))
}

/// The result of a legacy function, named like the function.
fn function_result(mut fields: Fields) -> Result<Turn, ApiError> {
    let name = fields.string("name")?;
    let name = fields.required("name", name)?;
    let content = fields.take("content").unwrap_or_else(|| "".into());
    let mut message = said("tool", text(content, fields.name("content"))?);
    message.other.insert("tool_call_id".to_owned(), name.clone().into());
    message.other.insert("name".to_owned(), name.into());
    Ok(Turn::Message(message))
}

/// An assistant's legacy `function_call`.
fn function_call(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let Some(call) = fields.take("function_call") else { return Ok(None) };
    let (name, arguments) = called(call, fields.name("function_call"))?;
    Ok(Some(json!({"id": name, "type": "function", "function": {"name": name, "arguments": arguments}})))
}

/// Name and arguments of a call.
fn called(function: Value, path: String) -> Result<(String, String), ApiError> {
    let mut function = Fields::of(function, path, &["name", "arguments"])?;
    let name = function.string("name")?;
    let name = function.required("name", name)?;
    let arguments = function.take("arguments").unwrap_or_else(|| "{}".into());
    let arguments = match arguments {
        Value::String(text) => text,
        other => return Err(wrong_type(function.name("arguments"), "a string of JSON", &other)),
    };
    Ok((name, arguments))
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
        if part["type"] != "text" {
            return Err(ApiError::param(path + ".type", "Only parts of the type `text` are understood here."));
        }
        let mut part = Fields::of(part, path, &["type", "text", "cache_control"])?;
        part.ignore(&["type", "cache_control"]);
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
            let (name, arguments) = called(call.required("function", function)?, call.name("function"))?;
            Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
        })
        .collect()
}
