//! OpenAI's Responses: a request's items become a conversation, and its answer a list of items again. Nothing is kept
//! between requests: a client sends the whole conversation each time.

mod input;

mod reply;

mod tools;

pub use reply::ResponsesReply;

use serde_json::{Map, Value, json};

use super::chat::{check_together, json_schema};
use super::fields::{Fields, parse_object};
use super::{ApiError, ChatRequest, Format, SamplingFields, Thinking, picture, sampling};

const KNOWN: &[&str] = &[
    "background",
    "context_management",
    "conversation",
    "image",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "model",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt",
    "reasoning",
    "seed",
    "store",
    "stream",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
    "truncation",
];

/// What asks for nothing that a local server could fail to do.
const IGNORED: &[&str] = &[
    "access_programs",
    "background_options",
    "client_metadata",
    "max_tool_calls", // of tools that a server runs
    "metadata",
    "moderation",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "stream_options", // its only key asks for padding
    "user",
];

/// Fields that a reply repeats.
const ECHOED: &[&str] = &[
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
];

/// Reads a body of `responses`.
///
/// # Errors
/// 400, with the parameter that is wrong.
pub fn parse(body: &[u8]) -> Result<(ChatRequest, ResponsesReply), ApiError> {
    let mut fields = parse_object(body, KNOWN, IGNORED)?;
    let fields = &mut fields;
    let mut echo = echo(fields);
    fields.ignore(IGNORED);
    refuse(fields)?;
    let model = sampling::model(fields)?;
    let tools = tools::take(fields)?;
    let pictures = picture::take(fields, "input")?;
    let messages = input::messages(fields)?;
    let (format, thinking) = (format(fields)?, thinking(fields)?);
    check_together(fields, &format, &tools.choice, false)?;
    let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
    echo.insert("parallel_tool_calls".to_owned(), parallel.into());
    let included = included(fields)?;
    let top = fields.int("top_logprobs", 0, 20)?.map(|top| top as usize);
    let request = ChatRequest {
        model,
        messages,
        pictures,
        prefix: None,
        sampling: SamplingFields::common(fields, "max_output_tokens")?,
        streams: fields.bool("stream")?.unwrap_or(false),
        logprobs: top.or(included.logprobs.then_some(0)),
        tools: tools.tools,
        tool_choice: tools.choice,
        parallel_tool_calls: parallel,
        format,
        thinking,
        template_variables: Map::new(),
    };
    Ok((request, ResponsesReply::new(echo, tools.names, included.reasoning)))
}

fn echo(fields: &Fields) -> Map<String, Value> {
    let value = |key: &&str| ((*key).to_owned(), fields.get(key).cloned().unwrap_or_else(|| default(key)));
    ECHOED.iter().map(value).collect()
}

fn default(key: &str) -> Value {
    match key {
        "metadata" => json!({}),
        "reasoning" => json!({"effort": null, "summary": null}),
        "temperature" | "top_p" => json!(1.0),
        "text" => json!({"format": {"type": "text"}}),
        "tool_choice" => json!("auto"),
        "tools" => json!([]),
        "top_logprobs" => json!(0),
        "truncation" => json!("disabled"),
        _ => Value::Null,
    }
}

/// What would change the answer, or keep something, and is not done.
fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    fields.bool("store")?; // asked for or not, nothing is stored
    let whole = "Nothing is stored here: send the whole conversation as `input`.";
    fields.refuse("previous_response_id", whole)?;
    fields.refuse("conversation", whole)?;
    fields.refuse("prompt", "There are no stored prompts here: send `instructions` and `input`.")?;
    fields.refuse("background", "There are no answers in the background here, where nothing is stored.")?;
    fields.refuse("image", "Answers are text here.")?;
    fields.refuse("context_management", "The conversation is taken as it is sent, and not shortened.")?;
    match fields.string("truncation")?.as_deref() {
        // What is too long is refused when it comes.
        None | Some("auto" | "disabled") => Ok(()),
        Some(_) => Err(fields.error("truncation", "`truncation` is `auto` or `disabled`.")),
    }
}

fn format(fields: &mut Fields) -> Result<Format, ApiError> {
    let Some(text) = fields.take("text") else { return Ok(Format::Text) };
    let mut text = Fields::of(text, fields.name("text"), &["format", "verbosity"])?;
    text.ignore(&["verbosity"]);
    let Some(format) = text.take("format") else { return Ok(Format::Text) };
    let known = &["type", "name", "description", "schema", "strict"];
    let mut format = Fields::of(format, text.name("format"), known)?;
    let kind = format.string("type")?;
    match format.required("type", kind)?.as_str() {
        "text" => Ok(Format::Text),
        "json_object" => Ok(Format::JsonObject),
        "json_schema" => json_schema(&mut format),
        other => {
            let message = format!("`{other}` is none of `text`, `json_object` and `json_schema`.");
            Err(format.error("type", message))
        }
    }
}

fn thinking(fields: &mut Fields) -> Result<Thinking, ApiError> {
    let mut thinking = Thinking::default();
    let Some(reasoning) = fields.take("reasoning") else { return Ok(thinking) };
    let known = &["effort", "summary", "generate_summary", "context", "mode"];
    let mut reasoning = Fields::of(reasoning, fields.name("reasoning"), known)?;
    thinking.take_effort(&mut reasoning, "effort")?;
    Ok(thinking)
}

/// What a reply has beside its text.
#[derive(Default)]
struct Included {
    logprobs: bool,
    /// The reasoning in a form that clients send back, where some drop its text.
    reasoning: bool,
}

fn included(fields: &mut Fields) -> Result<Included, ApiError> {
    let mut included = Included::default();
    for wanted in fields.array("include")?.unwrap_or_default() {
        match wanted.as_str() {
            Some("message.output_text.logprobs") => included.logprobs = true,
            Some("reasoning.encrypted_content") => included.reasoning = true,
            Some(_) => {} // of tools that a server runs
            None => return Err(fields.error("include", "`include` is an array of strings.")),
        }
    }
    Ok(included)
}
