//! Configurations of published models, as `config.json` files read by the same reader as any other.

use crate::config::{ConfigError, ModelConfig};

/// Name and `config.json` of every preset.
const PRESETS: [(&str, &str); 39] = [
    ("deepseek-v3", include_str!("presets/deepseek-v3.json")),
    ("deepseek-r1", include_str!("presets/deepseek-v3.json")),
    ("deepseek-v3.2", include_str!("presets/deepseek-v3.2.json")),
    ("deepseek-v2", include_str!("presets/deepseek-v2.json")),
    ("deepseek-v2-lite", include_str!("presets/deepseek-v2-lite.json")),
    ("r1-distill-qwen-1.5b", include_str!("presets/r1-distill-qwen-1.5b.json")),
    ("r1-distill-qwen-7b", include_str!("presets/r1-distill-qwen-7b.json")),
    ("r1-distill-qwen-14b", include_str!("presets/r1-distill-qwen-14b.json")),
    ("r1-distill-qwen-32b", include_str!("presets/r1-distill-qwen-32b.json")),
    ("r1-distill-llama-8b", include_str!("presets/r1-distill-llama-8b.json")),
    ("r1-distill-llama-70b", include_str!("presets/r1-distill-llama-70b.json")),
    ("r1-0528-qwen3-8b", include_str!("presets/r1-0528-qwen3-8b.json")),
    ("kimi-k2", include_str!("presets/kimi-k2.json")),
    ("qwen3-0.6b", include_str!("presets/qwen3-0.6b.json")),
    ("qwen3-1.7b", include_str!("presets/qwen3-1.7b.json")),
    ("qwen3-4b", include_str!("presets/qwen3-4b.json")),
    ("qwen3-8b", include_str!("presets/qwen3-8b.json")),
    ("qwen3-14b", include_str!("presets/qwen3-14b.json")),
    ("qwen3-32b", include_str!("presets/qwen3-32b.json")),
    ("qwen3-30b-a3b", include_str!("presets/qwen3-30b-a3b.json")),
    ("qwen3-235b-a22b", include_str!("presets/qwen3-235b-a22b.json")),
    ("glm-4.5-air", include_str!("presets/glm-4.5-air.json")),
    ("glm-4.5", include_str!("presets/glm-4.5.json")),
    ("gpt-oss-20b", include_str!("presets/gpt-oss-20b.json")),
    ("gpt-oss-120b", include_str!("presets/gpt-oss-120b.json")),
    ("mistral-7b-v0.1", include_str!("presets/mistral-7b-v0.1.json")),
    ("phi-3-mini-4k", include_str!("presets/phi-3-mini-4k.json")),
    ("phi-4", include_str!("presets/phi-4.json")),
    ("glm-4-9b-0414", include_str!("presets/glm-4-9b-0414.json")),
    ("glm-4-32b-0414", include_str!("presets/glm-4-32b-0414.json")),
    ("gemma-2-2b", include_str!("presets/gemma-2-2b.json")),
    ("gemma-2-9b", include_str!("presets/gemma-2-9b.json")),
    ("gemma-2-27b", include_str!("presets/gemma-2-27b.json")),
    ("gemma-3-270m", include_str!("presets/gemma-3-270m.json")),
    ("gemma-3-1b", include_str!("presets/gemma-3-1b.json")),
    ("gemma-3-4b-text", include_str!("presets/gemma-3-4b-text.json")),
    ("gemma-3-12b-text", include_str!("presets/gemma-3-12b-text.json")),
    ("gemma-3-27b-text", include_str!("presets/gemma-3-27b-text.json")),
    ("smollm2-135m", include_str!("presets/smollm2-135m.json")),
];

/// Names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The `config.json` of a preset.
///
/// # Errors
/// [`ConfigError::UnknownPreset`] with the most similar name.
pub fn json(name: &str) -> Result<&'static str, ConfigError> {
    match PRESETS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
        Some((_, json)) => Ok(json),
        None => {
            let similarity = |known: &&str| strsim::jaro_winkler(known, &name.to_ascii_lowercase());
            let nearest = names().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
            Err(ConfigError::UnknownPreset { name: name.to_owned(), nearest: nearest.expect("there are presets") })
        }
    }
}

/// The configuration of a preset.
///
/// # Errors
/// [`ConfigError::UnknownPreset`] with the most similar name.
pub fn preset(name: &str) -> Result<ModelConfig, ConfigError> {
    let (config, _) = ModelConfig::from_hf_json(json(name)?)?;
    Ok(config)
}
