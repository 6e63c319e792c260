//! The tools that an answer may call, and what their schemas say of a call's arguments.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::wire::Tool;

/// Tools by name.
#[derive(Clone, Default)]
pub struct KnownTools(Arc<[Tool]>);

impl KnownTools {
    /// Those that a request brings.
    pub fn new(tools: Vec<Tool>) -> KnownTools {
        KnownTools(tools.into())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|tool| tool.name.as_str())
    }

    fn schema(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|tool| tool.name == name).map(|tool| &tool.parameters)
    }

    /// Whether a tool has this name, and these are arguments that its schema allows: JSON, an object. A schema that is
    /// none is taken to allow all objects.
    pub(super) fn accept(&self, name: &str, arguments: &str) -> bool {
        let Some(schema) = self.schema(name) else { return false };
        let Ok(arguments @ Value::Object(_)) = serde_json::from_str(arguments) else { return false };
        jsonschema::validator_for(schema).map_or(true, |validator| validator.is_valid(&arguments))
    }

    /// Arguments that came as texts, each as what the schema asks for: a string where it may be one, else JSON.
    pub(super) fn typed(&self, name: &str, texts: Vec<(String, String)>) -> String {
        let properties = self.schema(name).map(|schema| &schema["properties"]);
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
