//! Anthropic's Messages: blocks become a conversation, and its answer blocks again.

mod input;

mod reply;

pub use reply::{MessagesReply, error_json};

use serde_json::{Map, Value, json};

use super::chat::check_together;
use super::fields::{Fields, parse_object, string, wrong_type};
use super::tools::{NAME_RULE, distinct, is_name};
use super::{ApiError, ChatRequest, Format, SamplingFields, Thinking, Tool, ToolChoice, picture, sampling};

const KNOWN: &[&str] = &[
    "compaction",
    "container",
    "context_management",
    "max_tokens",
    "mcp_servers",
    "messages",
    "model",
    "output_config",
    "output_format",
    "seed",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "thread",
    "tool_choice",
    "tools",
    "top_k",
    "top_p",
];

/// What asks for nothing that a local server could fail to do.
const IGNORED: &[&str] = &[
    "betas",
    "billing_policy",
    "cache_control",
    "diagnostics",
    "fallback_credit_token",
    "fallbacks",
    "inference_geo",
    "metadata",
    "service_tier",
    "speed",
    "user_profile_id",
    "workspace_id",
];

/// Reads a body of `messages`, or of `messages/count_tokens`.
///
/// # Errors
/// 400, with the parameter that is wrong.
pub fn parse(body: &[u8]) -> Result<ChatRequest, ApiError> {
    let mut fields = parse_object(body, KNOWN, IGNORED)?;
    let fields = &mut fields;
    fields.ignore(IGNORED);
    refuse(fields)?;
    let model = sampling::model(fields)?;
    let pictures = picture::take(fields, "messages")?;
    let (messages, prefix) = input::messages(fields)?;
    let (tools, tool_choice, parallel_tool_calls) = tools(fields)?;
    let (format, thinking) = output(fields)?;
    check_together(fields, &format, &tool_choice, prefix.is_some())?;
    Ok(ChatRequest {
        model,
        messages,
        pictures,
        prefix,
        sampling: SamplingFields {
            stop: sampling::stops(fields, "stop_sequences")?,
            ..SamplingFields::common(fields, "max_tokens")?
        },
        streams: fields.bool("stream")?.unwrap_or(false),
        logprobs: None,
        tools,
        tool_choice,
        parallel_tool_calls,
        format,
        thinking,
        template_variables: Map::new(),
    })
}

/// What would change the answer, or keep something, and is not done.
fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    fields.refuse("container", "There are no containers here.")?;
    fields.refuse("mcp_servers", "The server calls no tools: give them as `tools`, and call them yourself.")?;
    fields.refuse("thread", "Nothing is stored here: send the whole conversation as `messages`.")?;
    fields.refuse("compaction", "The conversation is taken as it is sent, and not shortened.")?;
    let Some(management) = fields.take("context_management") else { return Ok(()) };
    for edit in management["edits"].as_array().into_iter().flatten() {
        // Earlier thinking is left out in any case.
        if !edit["type"].as_str().is_some_and(|kind| kind.starts_with("clear_thinking")) {
            let message = "The conversation is taken as it is sent, and not shortened.";
            return Err(fields.error("context_management.edits", message));
        }
    }
    Ok(())
}

/// `thinking` comes before the effort of `output_config`.
fn output(fields: &mut Fields) -> Result<(Format, Thinking), ApiError> {
    let (mut format, mut thinking) = (Format::Text, Thinking::default());
    if let Some(config) = fields.take("output_config") {
        let known = &["effort", "format", "task_budget"];
        let mut config = Fields::of(config, fields.name("output_config"), known)?;
        config.ignore(&["task_budget"]);
        thinking.take_effort(&mut config, "effort")?;
        format = schema(&mut config, "format")?.unwrap_or(format);
    }
    format = schema(fields, "output_format")?.unwrap_or(format);
    thinking.take_object(fields)?;
    Ok((format, thinking))
}

fn schema(fields: &mut Fields, key: &str) -> Result<Option<Format>, ApiError> {
    let Some(format) = fields.take(key) else { return Ok(None) };
    let mut format = Fields::of(format, fields.name(key), &["type", "schema"])?;
    match (format.string("type")?.as_deref(), format.take("schema")) {
        (Some("json_schema"), Some(schema @ Value::Object(_))) => Ok(Some(Format::JsonSchema(schema))),
        (Some("json_schema"), _) => Err(format.error("schema", "`schema` has to be an object.")),
        _ => Err(format.error("type", "The type of a format is `json_schema`.")),
    }
}

/// The tools, whether they have to be called, and whether several may be.
fn tools(fields: &mut Fields) -> Result<(Vec<Tool>, ToolChoice, bool), ApiError> {
    let values = fields.array("tools")?.unwrap_or_default();
    let name = fields.name("tools");
    let read = |(at, value)| tool(value, format!("{name}[{at}]"));
    let tools = distinct(values.into_iter().enumerate().map(read).collect::<Result<_, _>>()?, &name)?;
    let auto = if tools.is_empty() { ToolChoice::None } else { ToolChoice::Auto };
    let Some(choice) = fields.take("tool_choice") else { return Ok((tools, auto, true)) };
    let known = &["type", "name", "disable_parallel_tool_use"];
    let mut choice = Fields::of(choice, fields.name("tool_choice"), known)?;
    let parallel = !choice.bool("disable_parallel_tool_use")?.unwrap_or(false);
    let kind = choice.string("type")?;
    let named = choice.string("name")?;
    let chosen = match choice.required("type", kind)?.as_str() {
        "none" => ToolChoice::None,
        "auto" => auto,
        "any" if !tools.is_empty() => ToolChoice::Required,
        "any" => return Err(choice.error("type", "There are no `tools` to choose from.")),
        "tool" => match named {
            Some(name) if tools.iter().any(|tool| tool.name == name) => ToolChoice::Named(name),
            _ => return Err(choice.error("name", "`name` is that of one of the tools.")),
        },
        other => return Err(choice.error("type", format!("`{other}` is none of `auto`, `any`, `tool`, `none`."))),
    };
    Ok((tools, chosen, parallel))
}

fn tool(value: Value, path: String) -> Result<Tool, ApiError> {
    if let Some(kind) = value["type"].as_str().filter(|kind| *kind != "custom") {
        let message = format!("Tools of the type `{kind}` are not known here: describe yours by `input_schema`.");
        return Err(ApiError::param(path + ".type", message));
    }
    let known = &[
        "type",
        "name",
        "description",
        "input_schema",
        "cache_control",
        "strict",
        "defer_loading",
        "allowed_callers",
        "input_examples",
        "eager_input_streaming",
    ];
    let mut fields = Fields::of(value, path, known)?;
    let name = fields.string("name")?;
    let name = fields.required("name", name)?;
    if !is_name(&name) {
        return Err(fields.error("name", NAME_RULE));
    }
    let description = fields.string("description")?.unwrap_or_default();
    let parameters = match fields.take("input_schema") {
        Some(schema @ Value::Object(_)) => schema,
        Some(other) => return Err(wrong_type(fields.name("input_schema"), "a JSON schema", &other)),
        None => json!({"type": "object", "properties": {}}),
    };
    Ok(Tool::new(name, &description, parameters))
}

/// A string, or blocks of text put together with `between` them.
fn text(content: Value, name: &str, between: &str) -> Result<String, ApiError> {
    let blocks = match content {
        Value::Array(blocks) => blocks,
        other => return string(other, name.to_owned()),
    };
    let texts = blocks.into_iter().enumerate().map(|(at, block)| text_block(block, format!("{name}[{at}]")));
    Ok(texts.collect::<Result<Vec<String>, ApiError>>()?.join(between))
}

fn text_block(block: Value, path: String) -> Result<String, ApiError> {
    match block["type"].as_str() {
        Some("text") => {
            let mut block = Fields::of(block, path, &["type", "text", "cache_control", "citations"])?;
            let text = block.string("text")?;
            block.required("text", text)
        }
        Some("document") if block["source"]["type"] == "text" => string(block["source"]["data"].clone(), path),
        Some("tool_reference") => string(block["tool_name"].clone(), path),
        _ => Err(ApiError::param(path + ".type", "Only blocks of text are understood here.")),
    }
}
