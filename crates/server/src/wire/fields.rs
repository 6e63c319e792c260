//! JSON as it comes from a stranger, taken apart field by field until none is left.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::ApiError;

/// Reads a body. Keys that are neither `known` nor `ignored`, nesting deeper than 128 and keys that occur twice in one
/// object are refused. What is ignored is for the caller to take out, who may want to look at it first.
pub(super) fn parse_object(
    body: &[u8],
    known: &'static [&'static str],
    ignored: &'static [&'static str],
) -> Result<Fields, ApiError> {
    let value = serde_json::from_slice::<Strict>(body)
        .map_err(|error| ApiError::invalid(format!("The body is not the JSON that is understood here: {error}.")))?;
    match value.0 {
        Value::Object(map) => Fields::new(map, String::new(), &[known, ignored]),
        _ => Err(ApiError::invalid("The body is not a JSON object.")),
    }
}

/// An object whose keys are taken one by one.
pub(super) struct Fields {
    map: Map<String, Value>,
    path: String,
}

impl Fields {
    /// Keys that are not `known` are refused; those that are null count as absent.
    fn new(mut map: Map<String, Value>, path: String, known: &[&[&str]]) -> Result<Fields, ApiError> {
        map.retain(|_, value| !value.is_null());
        if let Some(key) = map.keys().find(|key| !known.iter().any(|known| known.contains(&key.as_str()))) {
            let message = format!("`{key}` is not supported here.");
            return Err(ApiError { code: Some("unknown_parameter"), ..ApiError::param(join(&path, key), message) });
        }
        Ok(Fields { map, path })
    }

    /// An object within an object.
    pub fn of(value: Value, path: String, known: &'static [&'static str]) -> Result<Fields, ApiError> {
        match value {
            Value::Object(map) => Fields::new(map, path, &[known]),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// The full name of a key.
    pub fn name(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// An error about a key.
    pub fn error(&self, key: &str, message: impl Into<String>) -> ApiError {
        ApiError::param(self.name(key), message)
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.map.get_mut(key)
    }

    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Takes what asks for nothing that a local server could fail to do.
    pub fn ignore(&mut self, keys: &[&str]) {
        keys.iter().for_each(|key| drop(self.take(key)));
    }

    /// Refuses what is not done here, unless it is absent or says no: `false`, an empty array or object.
    pub fn refuse(&mut self, key: &str, message: &str) -> Result<(), ApiError> {
        match self.take(key) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(Value::Array(items)) if items.is_empty() => Ok(()),
            Some(Value::Object(map)) if map.is_empty() => Ok(()),
            Some(_) => Err(self.error(key, message)),
        }
    }

    pub fn object(&mut self, key: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(wrong_type(self.name(key), "an object", &other)),
        }
    }

    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.map.swap_remove(key)
    }

    pub fn required<T>(&mut self, key: &str, value: Option<T>) -> Result<T, ApiError> {
        let missing = || {
            let error = self.error(key, format!("`{}` is missing.", self.name(key)));
            ApiError { code: Some("missing_required_parameter"), ..error }
        };
        value.ok_or_else(missing)
    }

    pub fn string(&mut self, key: &str) -> Result<Option<String>, ApiError> {
        self.take(key).map(|value| string(value, self.name(key))).transpose()
    }

    pub fn bool(&mut self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(self.name(key), "true or false", &other)),
        }
    }

    pub fn array(&mut self, key: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(wrong_type(self.name(key), "an array", &other)),
        }
    }

    /// An integer between two others, both included.
    pub fn int(&mut self, key: &str, least: i64, most: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let name = self.name(key);
        let Some(number) = value.as_i64() else { return Err(wrong_type(name, "an integer", &value)) };
        if !(least..=most).contains(&number) {
            return Err(ApiError::param(name, format!("{number} is not between {least} and {most}.")));
        }
        Ok(Some(number))
    }

    /// A number between two others, both included.
    pub fn number(&mut self, key: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let name = self.name(key);
        let Some(number) = value.as_f64() else { return Err(wrong_type(name, "a number", &value)) };
        if !(least..=most).contains(&number) {
            return Err(ApiError::param(name, format!("{number} is not between {least} and {most}.")));
        }
        Ok(Some(number as f32))
    }
}

pub(super) fn string(value: Value, name: String) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(name, "a string", &other)),
    }
}

pub(super) fn wrong_type(name: String, wanted: &str, value: &Value) -> ApiError {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    let message = format!("`{name}` has to be {wanted}, and is {found}.");
    ApiError { code: Some("invalid_type"), ..ApiError::param(name, message) }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A [`Value`] none of whose objects has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strict, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if map.contains_key(&key) {
                return Err(serde::de::Error::custom(format!("the key `{key}` occurs twice")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
