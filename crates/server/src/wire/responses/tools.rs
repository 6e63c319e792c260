//! Tools of Responses: functions, functions in namespaces, and custom tools, whose input is text. To the model all of
//! them are functions.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::wire::fields::{Fields, wrong_type};
use crate::wire::tools::{NAME_RULE, distinct, is_name};
use crate::wire::{ApiError, Tool, ToolChoice};

/// What a function's name stands for in the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ToolKind {
    /// A function of a namespace, by its own name.
    InNamespace { namespace: String, name: String },
    /// Its input is the argument [`CUSTOM_INPUT`].
    Custom,
}

/// Names that mean something else than a plain function.
pub(super) type Names = HashMap<String, ToolKind>;

/// The one argument of a custom tool.
pub(super) const CUSTOM_INPUT: &str = "input";

#[derive(Default)]
pub(super) struct Tools {
    pub tools: Vec<Tool>,
    pub names: Names,
    pub choice: ToolChoice,
}

/// The name by which the model knows a function of a namespace.
pub(super) fn joined(namespace: &str, name: &str) -> String {
    if namespace.ends_with("__") { format!("{namespace}{name}") } else { format!("{namespace}__{name}") }
}

/// Takes `tools` and `tool_choice`. Tools of types that are not known are tools that OpenAI's server runs, or that only
/// its models know: they are left out, and the model is not told of them.
pub(super) fn take(fields: &mut Fields) -> Result<Tools, ApiError> {
    let mut taken = Tools::default();
    for (at, value) in fields.array("tools")?.unwrap_or_default().into_iter().enumerate() {
        taken.add(value, format!("{}[{at}]", fields.name("tools")))?;
    }
    taken.tools = distinct(std::mem::take(&mut taken.tools), "tools")?;
    taken.choice = taken.choice(fields)?;
    Ok(taken)
}

impl Tools {
    fn add(&mut self, value: Value, path: String) -> Result<(), ApiError> {
        match value["type"].as_str() {
            Some("function") => self.tools.push(function(value, path, None)?),
            Some("custom") => self.custom(value, path)?,
            Some("namespace") => self.namespace(value, path)?,
            Some(_) => {}
            None if value.is_object() => return Err(ApiError::param(path + ".type", "The type is missing.")),
            None => return Err(wrong_type(path, "an object", &value)),
        }
        Ok(())
    }

    fn namespace(&mut self, value: Value, path: String) -> Result<(), ApiError> {
        let mut fields = Fields::of(value, path, &["type", "name", "description", "tools"])?;
        let namespace = name(&mut fields)?;
        for (at, inner) in fields.array("tools")?.unwrap_or_default().into_iter().enumerate() {
            let path = format!("{}[{at}]", fields.name("tools"));
            if inner["type"] != "function" {
                return Err(ApiError::param(path + ".type", "A namespace has tools of the type `function`."));
            }
            let local = inner["name"].as_str().unwrap_or_default().to_owned();
            let tool = function(inner, path, Some(&namespace))?;
            let kind = ToolKind::InNamespace { namespace: namespace.clone(), name: local };
            self.names.insert(tool.name.clone(), kind);
            self.tools.push(tool);
        }
        Ok(())
    }

    /// The grammar of a custom tool's input is told to the model, which is not held to it.
    fn custom(&mut self, value: Value, path: String) -> Result<(), ApiError> {
        let known = &["type", "name", "description", "format", "defer_loading", "allowed_callers"];
        let mut fields = Fields::of(value, path, known)?;
        let name = name(&mut fields)?;
        let mut description = fields.string("description")?.unwrap_or_default();
        if let Some(definition) = fields.take("format").as_ref().and_then(|format| format["definition"].as_str()) {
            description += &format!("\n\nThe input has this form:\n{definition}");
        }
        let parameters = json!({"type": "object", "properties": {CUSTOM_INPUT: {"type": "string"}},
            "required": [CUSTOM_INPUT], "additionalProperties": false});
        self.names.insert(name.clone(), ToolKind::Custom);
        self.tools.push(Tool::new(name, &description, parameters));
        Ok(())
    }

    fn choice(&self, fields: &mut Fields) -> Result<ToolChoice, ApiError> {
        let key = "tool_choice";
        let wrong = |fields: &Fields| {
            fields.error(key, "`tool_choice` is `none`, `auto`, `required`, or names one of the tools.")
        };
        let auto = if self.tools.is_empty() { ToolChoice::None } else { ToolChoice::Auto };
        let choice = match fields.take(key) {
            None => return Ok(auto),
            Some(Value::String(word)) => match word.as_str() {
                "none" => return Ok(ToolChoice::None),
                "auto" => return Ok(auto),
                "required" => ToolChoice::Required,
                _ => return Err(wrong(fields)),
            },
            Some(Value::Object(named)) => match (named.get("type").and_then(Value::as_str), named.get("name")) {
                (Some("function" | "custom"), Some(Value::String(name)))
                    if self.tools.iter().any(|tool| tool.name == *name) =>
                {
                    ToolChoice::Named(name.clone())
                }
                _ => return Err(wrong(fields)),
            },
            Some(_) => return Err(wrong(fields)),
        };
        if self.tools.is_empty() {
            return Err(fields.error(key, "There are no `tools` to choose from."));
        }
        Ok(choice)
    }
}

fn name(fields: &mut Fields) -> Result<String, ApiError> {
    let name = fields.string("name")?;
    let name = fields.required("name", name)?;
    if is_name(&name) { Ok(name) } else { Err(fields.error("name", NAME_RULE)) }
}

fn function(value: Value, path: String, namespace: Option<&str>) -> Result<Tool, ApiError> {
    let known =
        &["type", "name", "description", "parameters", "strict", "defer_loading", "allowed_callers", "output_schema"];
    let mut fields = Fields::of(value, path, known)?;
    let own = name(&mut fields)?;
    let description = fields.string("description")?.unwrap_or_default();
    let parameters = match fields.take("parameters") {
        None => json!({"type": "object", "properties": {}}),
        Some(schema @ Value::Object(_)) => schema,
        Some(other) => return Err(wrong_type(fields.name("parameters"), "a JSON schema", &other)),
    };
    let name = namespace.map_or_else(|| own.clone(), |namespace| joined(namespace, &own));
    Ok(Tool::new(name, &description, parameters))
}
