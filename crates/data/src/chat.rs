//! Chat templates: a conversation → the text a model was trained on, and which part of it to train on.
//!
//! Templates are the Jinja of `transformers`: `trim_blocks` and `lstrip_blocks` on, no HTML escaping, `tojson` as
//! Python's `json.dumps`, `raise_exception`, `strftime_now`, loop controls, Python's string and dictionary methods.
//! A template comes from a stranger's checkpoint, so its steps, its memory and its depth are bounded
//! ([`ChatError::Endless`]).

mod bounds;
mod charges;
mod python;

pub use python::{civil, strftime};
mod train;

mod pictures;

pub use pictures::PictureTokens;
pub use train::{Segment, completion, encode_segments};

use bounds::{Bounded, NESTS_ANYWHERE, NESTS_MAX, SOURCE_BYTES_MAX, STACK_BYTES, WORK_MAX};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, Value as Jinja};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::tokenizer::{Tokenizer, TokenizerError};

/// DeepSeek-V3's chat format.
pub const DEEPSEEK_V3: &str = include_str!("chat/templates/deepseek_v3.jinja");

/// The chat format of DeepSeek-R1 and its distilled models.
pub const DEEPSEEK_R1: &str = include_str!("chat/templates/deepseek_r1.jinja");

/// The chat format of Janus-Pro.
pub const JANUS: &str = include_str!("chat/templates/janus.jinja");

/// Steps of the template engine that one rendering may take. The longest known template takes about 300 a message.
const STEPS_MAX: u64 = 20_000_000;

/// What can go wrong with a chat template.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// Not Jinja, or not the Jinja that is understood here.
    #[error("the chat template is not valid: {reason}")]
    Syntax { reason: String },
    /// The template itself refuses the conversation, with `raise_exception`.
    #[error("the chat template refuses the conversation: {message}")]
    Refused { message: String },
    /// The template fails on the conversation.
    #[error("the chat template failed: {reason}")]
    Failed { reason: String },
    /// It loops, writes or grows without end.
    #[error("the chat template does not end: stopped after {STEPS_MAX} steps, {WORK_MAX} bytes or {NESTS_MAX} lists")]
    Endless,
    /// Earlier turns look different once later ones follow, so they cannot be trained on in one text.
    #[error("the chat template rewrites the conversation before message {message} when later messages follow")]
    RewritesHistory {
        /// From 0.
        message: usize,
    },
    /// The text cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// One message of a conversation, as in OpenAI's chat API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text, usually; null where an assistant only calls tools.
    #[serde(default)]
    pub content: Value,
    /// What else the template may look at: `tool_calls`, `name`, `reasoning_content`, …
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Message {
    /// A message of text.
    pub fn new(role: &str, text: &str) -> Message {
        Message { role: role.to_owned(), content: Value::String(text.to_owned()), other: Map::new() }
    }
}

/// What a rendering depends on besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// End with what makes the model answer.
    pub add_generation_prompt: bool,
    /// The tools that the model may call, in OpenAI's format.
    pub tools: Vec<Value>,
    /// Further variables of the template.
    pub variables: Map<String, Value>,
    /// The time that `strftime_now` tells, in seconds since 1970-01-01 00:00. Given, not taken from the clock, so that
    /// training data do not depend on the day.
    pub now_unix_s: i64,
}

/// A compiled chat template, with the strings of its tokenizer's special tokens.
pub struct ChatTemplate {
    environment: Environment<'static>,
    compiled: Bounded,
    eos: String,
}

const NAME: &str = "chat_template";
const NOW: &str = "__now_unix_s";

impl ChatTemplate {
    /// Compiles `source`. `bos` and `eos` are what it sees as `bos_token` and `eos_token`.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, ChatError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.expect("the delimiters are Jinja's own");
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(STEPS_MAX));
        environment.set_formatter(python::write);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_global("bos_token", bos);
        environment.add_global("eos_token", eos);
        // They show what no template needs, and format with widths of their own.
        environment.remove_global("debug");
        environment.remove_filter("pprint");
        bounds::add_functions(&mut environment);
        if source.len() > SOURCE_BYTES_MAX {
            let reason = format!("it has {} bytes, more than {SOURCE_BYTES_MAX}", source.len());
            return Err(ChatError::Syntax { reason });
        }
        // A long expression is a deep tree.
        let source = without_generation_tags(source);
        let compiled = on_a_large_stack(|| Bounded::compile(&source, syntax, &mut environment))?
            .map_err(|e| ChatError::Syntax { reason: describe(&e) })?;
        Ok(ChatTemplate { environment, compiled, eos: eos.to_owned() })
    }

    /// The template that came with `tokenizer`; `None` if it has none.
    pub fn of(tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, ChatError> {
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let special = tokenizer.special();
        let compile = |source| ChatTemplate::new(source, &text(special.bos), &text(special.eos));
        tokenizer.chat_template().map(compile).transpose()
    }

    /// The text of a conversation.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, ChatError> {
        let mut variables = options.variables.clone();
        variables.insert("messages".to_owned(), json!(messages));
        variables.insert("add_generation_prompt".to_owned(), json!(options.add_generation_prompt));
        let tools = if options.tools.is_empty() { Value::Null } else { json!(options.tools) };
        variables.insert("tools".to_owned(), tools);
        variables.insert(NOW.to_owned(), json!(options.now_unix_s));
        // Few conversations make values that are deep enough to need more stack than a thread has anyway.
        match self.attempt(&variables, NESTS_ANYWHERE) {
            Err(ChatError::Endless) if bounds::is_out_of_nests() => {
                on_a_large_stack(|| self.attempt(&variables, NESTS_MAX))?
            }
            rendered => rendered,
        }
    }

    fn attempt(&self, variables: &Map<String, Value>, nests: u64) -> Result<String, ChatError> {
        bounds::begin(nests);
        let rendered = self.compiled.render(&self.environment, Jinja::from(Serde(variables)));
        rendered.map_err(|error| classify(&error))
    }

    /// What ends an assistant's turn.
    pub fn eos(&self) -> &str {
        &self.eos
    }
}

/// Does `work` on a thread with a stack for the deepest expressions and values.
fn on_a_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, ChatError> {
    let failed = || ChatError::Failed { reason: "it could not be rendered on a thread of its own".to_owned() };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".to_owned()).stack_size(STACK_BYTES);
        thread.spawn_scoped(scope, work).map_err(|_| failed())?.join().map_err(|_| failed())
    })
}

/// Marks an error as the template's own, made by `raise_exception`.
const RAISED: &str = "raise_exception: ";

fn raise_exception(message: String) -> Result<Jinja, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    let now = state.lookup(NOW).and_then(|now| now.as_i64()).unwrap_or(0);
    python::strftime(now, format)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("strftime_now cannot format `{format}`")))
}

/// `json.dumps(value, ensure_ascii=False, indent=…, separators=…, sort_keys=…)`, as `transformers` defines `tojson`.
fn to_json(value: Jinja, _positional: Rest<Jinja>, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let value = serde_json::to_value(&value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(python::json_dumps(
        &value,
        &python::DumpOptions {
            indent,
            sort_keys: sort_keys.unwrap_or(false),
            ensure_ascii: ensure_ascii.unwrap_or(false),
            separators: separators.and_then(|pair| <[String; 2]>::try_from(pair).ok()),
        },
    ))
}

fn classify(error: &Error) -> ChatError {
    let detail = error.detail().unwrap_or_default();
    if let Some(message) = detail.strip_prefix(RAISED) {
        return ChatError::Refused { message: message.to_owned() };
    }
    match error.kind() {
        ErrorKind::OutOfFuel | ErrorKind::WriteFailure => ChatError::Endless,
        _ => ChatError::Failed { reason: describe(error) },
    }
}

/// The error's words with its line, and those of the error behind it.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// `{% generation %}` marks the assistant's part of a template, for `transformers` to make masks from. It prints
/// nothing; here it becomes a block that is always entered.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        text.push_str(before);
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        let prefix = &tag[..tag.len() - name.len()];
        text.push_str(prefix);
        let swap = [("generation", "if true"), ("endgeneration", "endif")];
        let ends = |tail: &str| tail.trim_start().trim_start_matches(['-', '+']).starts_with("%}");
        rest = match swap.iter().find_map(|(from, to)| Some((name.strip_prefix(from).filter(|t| ends(t))?, to))) {
            Some((tail, to)) => {
                text.push_str(to);
                tail
            }
            None => name,
        };
    }
    text.push_str(rest);
    text
}
