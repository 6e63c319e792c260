//! A JSON object whose keys are asked for one by one, with types and ranges checked.

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde_json::{Map, Value};

use crate::config::{ConfigError, Note};

/// An object of the file, and which of its keys have been looked at.
pub struct Keys<'a> {
    map: &'a Map<String, Value>,
    parent: &'static str,
    read: BTreeSet<&'static str>,
    pub notes: Vec<Note>,
}

impl<'a> Keys<'a> {
    /// `parent`: what stands before a key in messages, such as `rope_scaling.`.
    pub fn new(map: &'a Map<String, Value>, parent: &'static str) -> Keys<'a> {
        Keys { map, parent, read: BTreeSet::new(), notes: Vec::new() }
    }

    /// The value, null included; the key counts as read.
    pub fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.read.insert(key);
        self.map.get(key)
    }

    /// Counts keys as read whose values do not matter.
    pub fn mark(&mut self, keys: &[&'static str]) {
        self.read.extend(keys);
    }

    /// Whether a reader has asked for the key.
    pub fn is_read(&self, key: &str) -> bool {
        self.read.contains(key)
    }

    /// Present and not null.
    pub fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// Present and null.
    pub fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// Keys that nothing asked for, in the order of the file.
    pub fn unread(&self) -> Vec<&'a str> {
        self.map.keys().map(String::as_str).filter(|key| !self.read.contains(key)).collect()
    }

    /// A size: at least 1. A null counts as absent.
    pub fn size(&mut self, key: &'static str, default: Option<usize>, max: usize) -> Result<usize, ConfigError> {
        self.integer(key, default, 1, max)
    }

    /// A size that a null switches off.
    pub fn optional_size(
        &mut self,
        key: &'static str,
        default: Option<usize>,
        max: usize,
    ) -> Result<Option<usize>, ConfigError> {
        if self.has(key) {
            return self.integer(key, None, 1, max).map(Some);
        }
        self.read.insert(key);
        Ok(if self.is_null(key) { None } else { default })
    }

    /// A whole number in `min..=max`. A null counts as absent; absent without a default is an error.
    pub fn integer(
        &mut self,
        key: &'static str,
        default: Option<usize>,
        min: usize,
        max: usize,
    ) -> Result<usize, ConfigError> {
        let value = match self.get(key) {
            None | Some(Value::Null) => return default.ok_or_else(|| ConfigError::Missing { key: self.path(key) }),
            Some(value @ Value::Number(number)) if !number.is_f64() => value,
            Some(other) => return Err(self.wrong_type(key, other, "a whole number")),
        };
        match value.as_u64().and_then(|value| usize::try_from(value).ok()) {
            Some(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(self.range(key, value, min, max)),
        }
    }

    /// A number in `min..=max`; otherwise as [`Keys::integer`].
    pub fn real(&mut self, key: &'static str, default: Option<f64>, min: f64, max: f64) -> Result<f64, ConfigError> {
        match self.get(key) {
            None | Some(Value::Null) => default.ok_or_else(|| ConfigError::Missing { key: self.path(key) }),
            Some(value @ Value::Number(_)) => match value.as_f64() {
                Some(number) if (min..=max).contains(&number) => Ok(number),
                _ => Err(self.range(key, value, min, max)),
            },
            Some(other) => Err(self.wrong_type(key, other, "a number")),
        }
    }

    /// True or false; a null is the default.
    pub fn flag(&mut self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong_type(key, other, "true or false")),
        }
    }

    /// A string; `None` where the key is absent or null.
    pub fn word(&mut self, key: &'static str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(word)) => Ok(Some(word)),
            Some(other) => Err(self.wrong_type(key, other, "a string")),
        }
    }

    /// Fails unless the key is absent or one of `accepted`.
    pub fn check_word(&mut self, key: &'static str, accepted: &[&str], why: &'static str) -> Result<(), ConfigError> {
        match self.word(key)? {
            Some(word) if !accepted.contains(&word) => Err(self.unsupported(key, why)),
            _ => Ok(()),
        }
    }

    /// One token id or several; `None` where the key is absent. A null gives an empty list.
    pub fn token_ids(&mut self, key: &'static str) -> Result<Option<Vec<u32>>, ConfigError> {
        let expected = "a token id or a list of them";
        let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match self.get(key) {
            None => return Ok(None),
            Some(Value::Null) => Some(Vec::new()),
            Some(Value::Array(list)) if list.len() <= 1024 => list.iter().map(one).collect(),
            Some(value) => one(value).map(|id| vec![id]),
        };
        // -1 is a common way to write "none".
        match (ids, self.map.get(key).and_then(Value::as_i64)) {
            (Some(ids), _) => Ok(Some(ids)),
            (None, Some(-1)) => Ok(Some(Vec::new())),
            (None, _) => Err(self.wrong_type(key, &self.map[key], expected)),
        }
    }

    /// The key as messages name it, behind its parent.
    pub fn path(&self, key: &str) -> String {
        format!("{}{key}", self.parent)
    }

    /// The error of a value that is not `expected`.
    pub fn wrong_type(&self, key: &str, value: &Value, expected: &'static str) -> ConfigError {
        ConfigError::Type { key: self.path(key), value: abbreviate(value), expected }
    }

    /// The error of a number outside `min..=max`.
    pub fn range(&self, key: &str, value: &Value, min: impl Debug, max: impl Debug) -> ConfigError {
        ConfigError::Range {
            key: self.path(key),
            value: abbreviate(value),
            min: format!("{min:?}"),
            max: format!("{max:?}"),
        }
    }

    /// The error of a value whose arithmetic is not implemented.
    pub fn unsupported(&self, key: &str, why: &'static str) -> ConfigError {
        let value = self.map.get(key).map_or_else(|| "absent".to_owned(), abbreviate);
        ConfigError::Unsupported { key: self.path(key), value, why }
    }

    /// The error of two keys that cannot both be meant.
    pub fn contradiction(
        &self,
        key: &str,
        value: impl ToString,
        other: &str,
        other_value: impl ToString,
        why: &'static str,
    ) -> ConfigError {
        ConfigError::Contradiction {
            key: self.path(key),
            value: value.to_string(),
            other: other.to_owned(),
            other_value: other_value.to_string(),
            why,
        }
    }
}

/// A JSON value for a message: at most 60 characters.
pub fn abbreviate(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
