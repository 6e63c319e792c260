//! The tools that a model may call.

use serde_json::{Value, json};

use super::ApiError;
use super::fields::{Fields, wrong_type};

/// Tools of one request.
const TOOLS_MAX: usize = 512;

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

impl Tool {
    /// A function, defined as templates are told of it.
    pub fn new(name: String, description: &str, parameters: Value) -> Tool {
        let function = json!({"name": name, "description": description, "parameters": parameters});
        Tool { name, parameters, definition: json!({"type": "function", "function": function}) }
    }
}

/// Whether tools have to be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// None may be.
    #[default]
    None,
    /// As the model sees fit.
    Auto,
    /// One of them has to be.
    Required,
    /// This one has to be.
    Named(String),
}

/// Takes `tools` and `tool_choice`, or their legacy names; whether it was those.
pub(super) fn take(fields: &mut Fields) -> Result<(Vec<Tool>, ToolChoice, bool), ApiError> {
    if let Some(functions) = fields.array("functions")?.filter(|functions| !functions.is_empty()) {
        if fields.has("tools") {
            return Err(
                fields.error("functions", "`functions` is the older name of `tools`: leave out one of the two.")
            );
        }
        let name = fields.name("functions");
        let path = |at| format!("{name}[{at}]");
        let read = |(at, value): (usize, Value)| {
            function(value.clone(), path(at), json!({"type": "function", "function": value}))
        };
        let tools = distinct(functions.into_iter().enumerate().map(read).collect::<Result<_, _>>()?, "functions")?;
        let choice = match fields.take("function_call") {
            Some(Value::Object(named)) => Some(json!({"type": "function", "function": named})),
            other => other,
        };
        let choice = choose(choice, &tools, fields.name("function_call"))?;
        return Ok((tools, choice, true));
    }
    fields.ignore(&["functions", "function_call"]);
    let values = fields.array("tools")?.unwrap_or_default();
    let name = fields.name("tools");
    let read = |(at, value)| tool(value, format!("{name}[{at}]"));
    let tools = distinct(values.into_iter().enumerate().map(read).collect::<Result<_, _>>()?, &name)?;
    let choice = choose(fields.take("tool_choice"), &tools, fields.name("tool_choice"))?;
    Ok((tools, choice, false))
}

/// Tools, if they are not too many and all names differ.
pub(super) fn distinct(tools: Vec<Tool>, path: &str) -> Result<Vec<Tool>, ApiError> {
    if tools.len() > TOOLS_MAX {
        return Err(ApiError::param(path, format!("{} tools, and {TOOLS_MAX} are the most.", tools.len())));
    }
    let twice = |at: &usize| tools[..*at].iter().any(|other| other.name == tools[*at].name);
    if let Some(at) = (0..tools.len()).find(twice) {
        let message = format!("There are two tools `{}`.", tools[at].name);
        return Err(ApiError::param(format!("{path}[{at}]"), message));
    }
    Ok(tools)
}

fn tool(value: Value, path: String) -> Result<Tool, ApiError> {
    let mut definition = value.clone();
    definition.as_object_mut().map(|definition| definition.remove("cache_control"));
    let mut fields = Fields::of(value, path, &["type", "function", "cache_control"])?;
    match fields.string("type")?.as_deref() {
        Some("function") => {}
        _ => return Err(fields.error("type", "The type of a tool is `function`.")),
    }
    fields.ignore(&["cache_control"]);
    let described = fields.take("function");
    function(fields.required("function", described)?, fields.name("function"), definition)
}

fn function(value: Value, path: String, definition: Value) -> Result<Tool, ApiError> {
    let mut function = Fields::of(value, path, &["name", "description", "parameters", "strict"])?;
    let name = function.string("name")?;
    let name = function.required("name", name)?;
    if !is_name(&name) {
        return Err(function.error("name", NAME_RULE));
    }
    function.string("description")?;
    function.bool("strict")?; // arguments are held to the schema in any case
    let parameters = match function.take("parameters") {
        None => json!({"type": "object", "properties": {}}),
        Some(schema @ Value::Object(_)) => schema,
        Some(other) => return Err(wrong_type(function.name("parameters"), "a JSON schema", &other)),
    };
    Ok(Tool { name, parameters, definition })
}

fn choose(choice: Option<Value>, tools: &[Tool], name: String) -> Result<ToolChoice, ApiError> {
    let wrong = || {
        let message = format!("`{name}` is `none`, `auto`, `required`, or names a function among the tools.");
        ApiError::param(&name, message)
    };
    let choice = match choice {
        None if tools.is_empty() => return Ok(ToolChoice::None),
        None => return Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Ok(ToolChoice::None),
            "auto" if tools.is_empty() => return Ok(ToolChoice::None),
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => return Err(wrong()),
        },
        Some(object @ Value::Object(_)) => {
            let mut named = Fields::of(object, name.clone(), &["type", "function"])?;
            if named.string("type")?.as_deref() != Some("function") {
                return Err(named.error("type", "The type of a tool is `function`."));
            }
            let function = named.take("function").unwrap_or(Value::Null);
            let mut function = Fields::of(function, named.name("function"), &["name"])?;
            match function.string("name")? {
                Some(name) if tools.iter().any(|tool| tool.name == name) => ToolChoice::Named(name),
                _ => return Err(wrong()),
            }
        }
        Some(_) => return Err(wrong()),
    };
    if tools.is_empty() {
        return Err(ApiError::param(&name, "There are no `tools` to choose from."));
    }
    Ok(choice)
}

pub(super) const NAME_RULE: &str = "A name has 1 to 128 letters, digits, `_` and `-`.";

pub(super) fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}
