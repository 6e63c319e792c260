//! The tools that an answer may call, and what their schemas say of a call's arguments.

use std::sync::{Arc, OnceLock};

use jsonschema::Validator;
use serde_json::{Map, Value};

use super::bounds::is_bounded;
use crate::wire::Tool;

/// Tools by name.
#[derive(Clone, Default)]
pub struct KnownTools(Arc<[KnownTool]>);

struct KnownTool {
    tool: Tool,
    /// Whether its schema can be checked by: see [`is_bounded`].
    is_bounded: bool,
    /// Made with the first call, once for all answers to a request; `None` if the schema is none.
    validator: OnceLock<Option<Validator>>,
}

impl KnownTool {
    /// What checks arguments, if the schema is one, and not one that takes too long.
    fn validator(&self) -> Option<&Validator> {
        let made = || jsonschema::validator_for(&self.tool.parameters).ok();
        if self.is_bounded { self.validator.get_or_init(made).as_ref() } else { None }
    }
}

impl KnownTools {
    /// Those that a request brings.
    pub fn new(tools: Vec<Tool>) -> KnownTools {
        let known = |tool: Tool| {
            let is_bounded = is_bounded(&tool.parameters);
            KnownTool { tool, is_bounded, validator: OnceLock::new() }
        };
        KnownTools(tools.into_iter().map(known).collect())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|known| known.tool.name.as_str())
    }

    fn find(&self, name: &str) -> Option<&KnownTool> {
        self.0.iter().find(|known| known.tool.name == name)
    }

    /// Whether a tool has this name, and these are arguments that its schema allows: JSON, an object. A schema that is
    /// none, or that leads too far, is taken to allow all objects.
    pub(super) fn accept(&self, name: &str, arguments: &str) -> bool {
        let Some(known) = self.find(name) else { return false };
        let Ok(arguments @ Value::Object(_)) = serde_json::from_str(arguments) else { return false };
        known.validator().is_none_or(|validator| validator.is_valid(&arguments))
    }

    /// Arguments that came as texts, each as what the schema asks for: a string where it may be one, else JSON.
    pub(super) fn typed(&self, name: &str, texts: Vec<(String, String)>) -> String {
        let properties = self.find(name).map(|known| &known.tool.parameters["properties"]);
        let value = |key: &str, text: String| {
            let wanted = properties.map_or(&Value::Null, |properties| &properties[key]);
            let stringy = wanted["type"] == "string" || (wanted["type"].is_null() && wanted["anyOf"].is_null());
            match serde_json::from_str(&text) {
                Ok(value) if !stringy => value,
                _ => Value::String(text),
            }
        };
        let arguments: Map<String, Value> =
            texts.into_iter().map(|(key, text)| (key.clone(), value(&key, text))).collect();
        Value::Object(arguments).to_string()
    }
}
