//! Configurations of the published models.

use super::config::JanusConfig;

const PRESETS: [(&str, &str); 2] = [
    ("janus-pro-1b", include_str!("presets/janus-pro-1b.json")),
    ("janus-pro-7b", include_str!("presets/janus-pro-7b.json")),
];

/// Names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The configuration of a preset, if there is one of this name.
pub fn preset(name: &str) -> Option<JanusConfig> {
    let (_, json) = PRESETS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
    let (config, _) = JanusConfig::from_hf_json(json).expect("presets are read by the tests");
    Some(config)
}
