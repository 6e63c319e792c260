//! Hugging Face `config.json`, read and written.
//!
//! Reading has two stages. The JSON is what somebody typed; [`ModelConfig`] is complete and consistent, and nothing
//! after it looks at the JSON again. A key that would change the arithmetic and is not supported, or that contradicts
//! another, is a [`ConfigError`] that names it. A key that is unknown and cannot be judged is returned as a [`Note`].
//!
//! Missing keys take the defaults of `transformers` 5, whose configuration and modelling files are the source for what
//! each key means.

mod compressed;
mod foreign;
pub(crate) mod keys;
mod read;
mod rope;
mod window;
mod write;

pub(crate) use rope::yarn_table_scale;
pub(crate) use write::{decimal, part_of, query_scalar, token_ids};

use crate::config::{ConfigError, Dtype, ModelConfig, Note};

impl ModelConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key: malformed JSON, an unknown `model_type`, a key missing, out of range,
    /// unsupported, or contradicting another.
    pub fn from_hf_json(text: &str) -> Result<(ModelConfig, Vec<Note>), ConfigError> {
        read::read(text)
    }

    /// Writes the configuration so that `transformers` 5 loads a directory of such weights unchanged.
    ///
    /// `from_hf_json(to_hf_json())` gives an equal configuration.
    pub fn to_hf_json(&self, dtype: Dtype) -> String {
        write::write(self, dtype)
    }
}
