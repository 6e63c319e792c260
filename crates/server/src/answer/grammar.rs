//! What holds a model's calls to their tools' schemas while it writes: a grammar of the whole answer, in llguidance's
//! dialect of Lark.

use serde_json::{Value, json};

use super::calls::{CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEPARATOR, ToolFormat};
use crate::wire::{Tool, ToolChoice};

/// What else an answer is held to.
pub struct Held<'a> {
    pub choice: &'a ToolChoice,
    /// Whether there may be several calls.
    pub parallel: bool,
    /// The schema of an answer that calls nothing; `None`: any text.
    pub format: Option<&'a Value>,
    /// The ids of markers that are special tokens of the vocabulary.
    pub token: &'a dyn Fn(&str) -> Option<u32>,
}

/// A grammar of answers that may call `tools`; `None` where the form has none and nothing has to be held to.
pub fn grammar(format: ToolFormat, tools: &[Tool], held: &Held) -> Option<String> {
    let must = matches!(held.choice, ToolChoice::Required | ToolChoice::Named(_));
    let form = match format {
        ToolFormat::Marked if !must && held.format.is_none() => return None,
        // Arguments that are marked one by one have no grammar here, and the general form is read as well.
        ToolFormat::Marked => ToolFormat::Hermes,
        format => format,
    };
    let allowed = |tool: &&Tool| !matches!(held.choice, ToolChoice::Named(name) if *name != tool.name);
    let tools: Vec<&Tool> = tools.iter().filter(allowed).collect();
    let marker = |text: &str| match (held.token)(text) {
        Some(id) => format!("<[{id}]>"),
        None => json!(text).to_string(),
    };
    let (block, opener) = block(form, held.parallel, &marker);
    let mut rules = match (must, held.format) {
        (true, _) => "start: block\n".to_owned(),
        (false, Some(schema)) => format!("start: block | answer\nanswer: %json {}\n", with_short_space(schema)),
        (false, None) if form == ToolFormat::Json => {
            "start: block | TEXT\nTEXT: /(?s:.*)/ & ~/\\s*\\{\\s*\"name\"(?s:.*)/\n".to_owned()
        }
        (false, None) => format!("start: TEXT block?\n{}", text_before(&opener)),
    };
    rules += &block;
    let names: Vec<String> = (0..tools.len()).map(|at| format!("call{at}")).collect();
    rules += &format!("call: {}\n", names.join(" | "));
    for (at, tool) in tools.iter().enumerate() {
        rules += &format!("call{at}: {}\n", call(form, &tool.name, &format!("arguments{at}"), &marker));
        rules += &format!("arguments{at}: %json {}\n", with_short_space(&tool.parameters));
    }
    Some(rules)
}

/// A schema whose JSON has little white space: a model could go on with it for ever.
fn with_short_space(schema: &Value) -> Value {
    let mut schema = schema.clone();
    schema["x-guidance"] = json!({"whitespace_pattern": "[ \\n]{0,16}"});
    schema
}

/// The rule of all calls of an answer, and the marker before them.
fn block(form: ToolFormat, parallel: bool, marker: &dyn Fn(&str) -> String) -> (String, String) {
    const SPACE: &str = "SPACE: /[ \\n]{0,4}/\n";
    let more = |item: &str| if parallel { format!("({item})*") } else { String::new() };
    match form {
        ToolFormat::DeepSeek => {
            let [open, close, begin, end] = [CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END].map(marker);
            let more = more(&format!("SPACE {begin} call {end}"));
            (format!("block: {open} SPACE {begin} call {end} {more} SPACE {close}\n{SPACE}"), open)
        }
        ToolFormat::Hermes | ToolFormat::Marked => {
            let (open, close) = (marker("<tool_call>"), marker("</tool_call>"));
            let one = format!("{open} SPACE call SPACE {close}");
            (format!("block: {one} {} SPACE\n{SPACE}", more(&format!("SPACE {one}"))), open)
        }
        ToolFormat::Mistral => {
            let open = marker("[TOOL_CALLS]");
            (format!("block: {open} SPACE \"[\" call {} \"]\"\n{SPACE}", more("\", \" call")), open)
        }
        ToolFormat::Json => ("block: call\n".to_owned(), String::new()),
    }
}

/// The rule of one call.
fn call(form: ToolFormat, name: &str, arguments: &str, marker: &dyn Fn(&str) -> String) -> String {
    let literal = |text: String| json!(text).to_string();
    match form {
        ToolFormat::Hermes | ToolFormat::Marked | ToolFormat::Mistral => {
            format!("{} {arguments} \"}}\"", literal(format!("{{\"name\": \"{name}\", \"arguments\": ")))
        }
        ToolFormat::Json => {
            format!("{} {arguments} \"}}\"", literal(format!("{{\"name\": \"{name}\", \"parameters\": ")))
        }
        ToolFormat::DeepSeek => {
            let (separator, fenced) = (marker(SEPARATOR), literal(format!("{name}\n```json\n")));
            let (plain, end) = (literal(name.to_owned()), literal("\n```".to_owned()));
            format!("\"function\" {separator} {fenced} {arguments} {end} | {plain} {separator} {arguments}")
        }
    }
}

/// Free text without the marker of a call. A marker that is a token of its own is no text in any case.
fn text_before(marker: &str) -> String {
    let Ok(literal) = serde_json::from_str::<String>(marker) else { return "TEXT: /(?s:.*)/\n".to_owned() };
    let escaped = |c: char| if c.is_alphanumeric() { c.to_string() } else { format!("\\{c}") };
    let pattern: String = literal.chars().map(escaped).collect();
    format!("TEXT: /(?s:.*)/ & ~/(?s:.*){pattern}(?s:.*)/\n")
}
