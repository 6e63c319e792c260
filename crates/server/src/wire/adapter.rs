//! The request that loads an adapter.

use super::ApiError;
use super::fields::parse_object;

/// The most letters of a name.
const NAME_MAX: usize = 128;

/// What is to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterRequest {
    /// By which clients will ask for it.
    pub name: String,
    /// Its directory, from the one that the operator names.
    pub path: String,
    /// Whose it is, where that is said.
    pub model: Option<String>,
}

impl AdapterRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400, with the parameter that is wrong.
    pub fn parse(body: &[u8]) -> Result<AdapterRequest, ApiError> {
        let mut fields = parse_object(body, &["name", "path", "model"], &[])?;
        let (name, path) = (fields.string("name")?, fields.string("path")?);
        let (name, path) = (fields.required("name", name)?, fields.required("path", path)?);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
            let message = format!("A name has 1 to {NAME_MAX} letters, digits, `-`, `_`, `.`, `:` or `/`.");
            return Err(fields.error("name", message));
        }
        Ok(AdapterRequest { name, path, model: fields.string("model")? })
    }
}
