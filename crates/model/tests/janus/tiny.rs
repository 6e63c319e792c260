//! A Janus model of random weights in a directory, for the tests of several crates.

use std::fs;
use std::path::Path;

use serde_json::json;
use wels_model::janus::config::JanusConfig;
use wels_model::janus::names::tensors;

/// Codes of a picture that it draws, and places of one that it sees.
pub const CODES: usize = 16;
/// Side of both, in pixels.
pub const SIDE: usize = 16;

/// Writes `config.json`, `preprocessor_config.json` and `model.safetensors` of a model with this vocabulary.
pub fn write(folder: &Path, vocab_size: usize, image_token_id: u32, context: usize) {
    let text = json!({"model_type": "llama", "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 44,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": context, "tie_word_embeddings": false});
    let vision = json!({"hidden_size": 36, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": SIDE,
        "patch_size": 4, "projection_dim": 32, "num_image_tokens": CODES});
    let vq = json!({"embed_dim": 8, "num_embeddings": 64, "latent_channels": 16, "base_channels": 32,
        "channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "projection_dim": 32, "image_token_embed_dim": 32});
    let config = json!({"model_type": "janus", "image_token_id": image_token_id, "text_config": text,
        "vision_config": vision, "vq_config": vq})
    .to_string();
    let preprocessing = json!({"size": {"height": SIDE, "width": SIDE}, "min_size": 2, "resample": 3,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]});
    fs::create_dir_all(folder).expect("a folder");
    fs::write(folder.join("config.json"), &config).expect("config.json");
    fs::write(folder.join("preprocessor_config.json"), preprocessing.to_string()).expect("preprocessor_config.json");
    let (config, notes) = JanusConfig::from_hf_json(&config).expect("a supported configuration");
    assert!(notes.is_empty(), "{notes:?}");
    fs::write(folder.join("model.safetensors"), weights(&config)).expect("model.safetensors");
}

/// Uniform around 0 with the variance of a matrix's inputs; norms around 1.
fn weights(config: &JanusConfig) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    for tensor in tensors(config) {
        let inputs: usize = tensor.shape.iter().skip(1).product();
        let (offset, scale) = match tensor.shape.len() {
            1 if tensor.name.ends_with("bias") => (0.0, 0.1),
            1 => (1.0, 0.1),
            _ if tensor.name.ends_with("embed_tokens.weight") => (0.0, 1.0),
            _ => (0.0, (3.0 / inputs as f32).sqrt()),
        };
        let begin = data.len();
        for _ in 0..tensor.shape.iter().product::<usize>() {
            data.extend((offset + scale * uniform()).to_le_bytes());
        }
        let offsets = [begin, data.len()];
        header.insert(tensor.name, json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": offsets}));
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}
