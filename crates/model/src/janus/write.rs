//! [`JanusConfig`] → `config.json`, the reverse of the `read` module beside this one, and the small files beside it.
//! Every key that shapes or arithmetic follow from is written, whatever the defaults of `transformers` are.

use serde_json::{Map, Value, json};

use super::config::{JanusConfig, VisionConfig, VqConfig};
use super::read::{MODEL_TYPE, VQ_MODEL_TYPE};
use crate::config::{ConfigError, Dtype};
use crate::config_json::{decimal, part_of, token_ids};

impl JanusConfig {
    /// The `config.json` of a directory in f32, of which `transformers` makes the same model.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key if the file cannot say it: what [`JanusConfig::from_hf_json`] refuses, or a
    /// grid of codes that is not that of the patches.
    pub fn to_hf_json(&self) -> Result<String, ConfigError> {
        let JanusConfig { text, vision, vq, image_token_id } = self;
        let text_json = text.to_hf_json(Dtype::F32);
        let text_config: Value = serde_json::from_str(&text_json)?;
        let json = json!({
            "architectures": ["JanusForConditionalGeneration"],
            "model_type": MODEL_TYPE,
            "dtype": "float32",
            "image_token_id": image_token_id,
            "tie_word_embeddings": text.tied_head,
            "text_config": text_config,
            "vision_config": vision_json(vision, text.hidden_size),
            "vq_config": vq_json(vq, text.hidden_size),
        });
        let written = format!("{json:#}\n");
        let (read, _) = JanusConfig::from_hf_json(&written)?;
        if read.vq.grid != vq.grid {
            return Err(contradiction(vq.grid, vision.grid()));
        }
        if read == *self {
            return Ok(written);
        }
        let why = "the file of a Janus model has no key for all that is asked of it";
        let key = if read.text == *text { "vision_config and vq_config" } else { "text_config" };
        let value = if read.text == *text { format!("{vision:?}, {vq:?}") } else { format!("{text:?}") };
        Err(ConfigError::Unsupported { key: key.into(), value, why })
    }

    /// The `processor_config.json`.
    pub(super) fn processor_json(&self) -> String {
        let json = json!({
            "processor_class": "JanusProcessor", "num_image_tokens": self.vision.tokens(),
            "use_default_system_prompt": false,
        });
        format!("{json:#}\n")
    }

    /// The `generation_config.json`; without the token that begins a picture `generate` draws none.
    pub(super) fn generation_json(&self, begin_of_image: Option<u32>) -> String {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| {
            if !value.is_null() {
                map.insert(key.into(), value);
            }
        };
        put("bos_token_id", json!(self.text.bos_id));
        put("eos_token_id", token_ids(&self.text.eos_ids));
        put("pad_token_id", json!(self.text.pad_id));
        put("guidance_scale", json!(5.0));
        put("generation_kwargs", begin_of_image.map_or(Value::Null, |id| json!({"boi_token_id": id})));
        format!("{:#}\n", Value::Object(map))
    }
}

fn contradiction(codes: usize, patches: usize) -> ConfigError {
    ConfigError::Contradiction {
        key: "vq_config.num_patches".into(),
        value: codes.to_string(),
        other: "vision_config.image_size / vision_config.patch_size".into(),
        other_value: patches.to_string(),
        why: "a picture has as many codes as patches",
    }
}

impl VqConfig {
    /// The `config.json` of a VQ tokenizer by itself, which [`VqConfig::from_hf_json`] reads.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key, if it would be refused.
    pub fn to_hf_json(&self) -> Result<String, ConfigError> {
        let mut json = vq_json(self, self.head_width);
        json["architectures"] = json!(["JanusVQVAE"]);
        json["dtype"] = json!("float32");
        let written = format!("{json:#}\n");
        VqConfig::from_hf_json(&written)?;
        Ok(written)
    }
}

fn vision_json(vision: &VisionConfig, hidden_size: usize) -> Value {
    json!({
        "model_type": "janus_vision_model",
        "hidden_size": vision.hidden_size,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "num_channels": vision.channels,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": "gelu",
        "layer_norm_eps": decimal(vision.norm_eps),
        "mlp_ratio": part_of(vision.intermediate, vision.hidden_size),
        "attention_bias": vision.qkv_bias,
        "attention_dropout": 0.0,
        "hidden_dropout_rate": 0.0,
        "projection_dim": hidden_size,
        "projection_dropout": 0.0,
        "use_qk_norm": false,
        "depth": vision.aligner_layers,
        "num_image_tokens": vision.tokens(),
    })
}

fn vq_json(vq: &VqConfig, hidden_size: usize) -> Value {
    json!({
        "model_type": VQ_MODEL_TYPE,
        "embed_dim": vq.code_dim,
        "num_embeddings": vq.codes,
        "double_latent": false,
        "latent_channels": vq.latent_channels,
        "in_channels": vq.in_channels,
        "out_channels": vq.out_channels,
        "base_channels": vq.base_channels,
        "channel_multiplier": vq.multipliers,
        "num_res_blocks": vq.res_blocks,
        "dropout": 0.0,
        "num_patches": vq.grid,
        "hidden_act": "gelu",
        "num_hidden_layers": vq.aligner_layers,
        "projection_dim": vq.head_width,
        "image_token_embed_dim": hidden_size,
    })
}
