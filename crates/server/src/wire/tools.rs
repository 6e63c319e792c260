//! The tools that a model may call.

use serde_json::{Value, json};

use super::ApiError;
use super::fields::{Fields, wrong_type};

/// Tools of one request.
const TOOLS_MAX: usize = 128;

/// A function.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// The JSON schema of its arguments, an object.
    pub parameters: Value,
    /// As the client sent it, for the template.
    pub definition: Value,
}

/// Whether tools have to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// None may be.
    None,
    /// As the model sees fit.
    Auto,
    /// One of them has to be.
    Required,
    /// This one has to be.
    Named(String),
}

/// Takes `tools` and `tool_choice`.
pub(super) fn take(fields: &mut Fields) -> Result<(Vec<Tool>, ToolChoice), ApiError> {
    let values = fields.array("tools")?.unwrap_or_default();
    let name = fields.name("tools");
    if values.len() > TOOLS_MAX {
        return Err(ApiError::param(name, format!("{} tools, and {TOOLS_MAX} are the most.", values.len())));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(values.len());
    for (at, value) in values.into_iter().enumerate() {
        let tool = tool(value, format!("{name}[{at}]"))?;
        if tools.iter().any(|other| other.name == tool.name) {
            return Err(ApiError::param(format!("{name}[{at}]"), format!("There are two tools `{}`.", tool.name)));
        }
        tools.push(tool);
    }
    let choice = choice(fields, &tools)?;
    Ok((tools, choice))
}

fn tool(value: Value, path: String) -> Result<Tool, ApiError> {
    let definition = value.clone();
    let mut fields = Fields::of(value, path, &["type", "function"])?;
    match fields.string("type")?.as_deref() {
        Some("function") => {}
        _ => return Err(fields.error("type", "The type of a tool is `function`.")),
    }
    let function = fields.take("function");
    let function = fields.required("function", function)?;
    let mut function = Fields::of(function, fields.name("function"), &["name", "description", "parameters", "strict"])?;
    let name = function.string("name")?;
    let name = function.required("name", name)?;
    if !is_name(&name) {
        return Err(function.error("name", "A name has 1 to 64 letters, digits, `_` and `-`."));
    }
    function.string("description")?;
    function.bool("strict")?;
    let parameters = match function.take("parameters") {
        None => json!({"type": "object", "properties": {}}),
        Some(schema @ Value::Object(_)) => schema,
        Some(other) => return Err(wrong_type(function.name("parameters"), "a JSON schema", &other)),
    };
    Ok(Tool { name, parameters, definition })
}

fn choice(fields: &mut Fields, tools: &[Tool]) -> Result<ToolChoice, ApiError> {
    let key = "tool_choice";
    let wrong = |fields: &Fields| {
        fields.error(key, "`tool_choice` is `none`, `auto`, `required`, or names a function among `tools`.")
    };
    let choice = match fields.take(key) {
        None if tools.is_empty() => return Ok(ToolChoice::None),
        None => return Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Ok(ToolChoice::None),
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => return Err(wrong(fields)),
        },
        Some(object @ Value::Object(_)) => {
            let mut named = Fields::of(object, fields.name(key), &["type", "function"])?;
            if named.string("type")?.as_deref() != Some("function") {
                return Err(named.error("type", "The type of a tool is `function`."));
            }
            let function = named.take("function").unwrap_or(Value::Null);
            let mut function = Fields::of(function, named.name("function"), &["name"])?;
            match function.string("name")? {
                Some(name) if tools.iter().any(|tool| tool.name == name) => ToolChoice::Named(name),
                _ => return Err(wrong(fields)),
            }
        }
        Some(_) => return Err(wrong(fields)),
    };
    if tools.is_empty() {
        return Err(fields.error(key, "There are no `tools` to choose from."));
    }
    Ok(choice)
}

pub(super) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}
