//! Failures that are the user's to mend.

use thiserror::Error;

/// What cannot be done, and what to do instead.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct Refusal {
    message: String,
    hint: String,
}

impl Refusal {
    /// What to do about it.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

/// A [`Refusal`] as an error.
pub fn refuse(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Refusal { message: message.into(), hint: hint.into() }.into()
}
