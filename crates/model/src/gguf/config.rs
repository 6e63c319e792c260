//! Metadata → [`ModelConfig`], by way of `config.json`.
//!
//! llama.cpp's converter renames the keys of a `config.json`; reading renames them back, so that one reader
//! ([`ModelConfig::from_hf_json`]) knows all limits and contradictions, and messages name the file's own keys. What
//! files say with tensors instead of keys (tied head, biases, vocabulary, Llama 3.1's rotary factors) is looked up
//! there.

use serde_json::{Map, Value as Json, json};

use super::metadata::Value;
use super::{GgufError, GgufFile, names, rope};
use crate::config::{Attention, ConfigError, Family, ModelConfig, Note, RopeLayout, RopeScaling};
use crate::config_json::{part_of, yarn_table_scale};
use crate::family::{AttentionKeys, Biases, QkNorm, RouterKeys};

/// Keys after the architecture's name, and their names in `config.json`.
type Table = &'static [(&'static str, &'static str, Presence)];

const COMMON: Table = &[
    ("block_count", "num_hidden_layers", Presence::Required),
    ("context_length", "max_position_embeddings", Presence::Required),
    ("embedding_length", "hidden_size", Presence::Required),
    ("feed_forward_length", "intermediate_size", Presence::Required),
    ("attention.head_count", "num_attention_heads", Presence::Required),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps", Presence::Required),
    ("rope.freq_base", "rope_theta", Presence::Optional),
];

/// Those of grouped-query attention.
const GQA: Table = &[
    ("attention.head_count_kv", "num_key_value_heads", Presence::Optional),
    ("attention.key_length", "head_dim", Presence::Optional),
];

/// Those of latent attention.
const MLA: Table = &[
    ("attention.kv_lora_rank", "kv_lora_rank", Presence::Required),
    ("rope.dimension_count", "qk_rope_head_dim", Presence::Required),
];

/// Those of experts as DeepSeek has them.
const EXPERTS: Table = &[
    ("expert_count", "n_routed_experts", Presence::Required),
    ("expert_used_count", "num_experts_per_tok", Presence::Required),
    ("expert_shared_count", "n_shared_experts", Presence::Required),
    ("expert_feed_forward_length", "moe_intermediate_size", Presence::Required),
    ("leading_dense_block_count", "first_k_dense_replace", Presence::Optional),
    ("expert_group_count", "n_group", Presence::Optional),
    ("expert_group_used_count", "topk_group", Presence::Optional),
    ("expert_weights_scale", "routed_scaling_factor", Presence::Optional),
    ("expert_weights_norm", "norm_topk_prob", Presence::Optional),
];

/// Those of experts as Qwen3 has them, and keys of others that the reader of `config.json` refuses.
const QWEN3_EXPERTS: Table = &[
    ("expert_count", "num_experts", Presence::Required),
    ("expert_used_count", "num_experts_per_tok", Presence::Required),
    ("expert_feed_forward_length", "moe_intermediate_size", Presence::Required),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size", Presence::Optional),
    ("expert_weights_scale", "routed_scaling_factor", Presence::Optional),
];

/// Those of experts as gpt-oss has them, whose width stands there twice.
const GPT_OSS_EXPERTS: Table = &[
    ("expert_count", "num_local_experts", Presence::Required),
    ("expert_used_count", "num_experts_per_tok", Presence::Required),
    ("expert_feed_forward_length", "intermediate_size", Presence::Required),
    ("attention.sliding_window", "sliding_window", Presence::Optional),
];

/// Those of Gemma 2.
const GEMMA2: Table = &[
    ("attention.sliding_window", "sliding_window", Presence::Optional),
    ("attn_logit_softcapping", "attn_logit_softcapping", Presence::Optional),
    ("final_logit_softcapping", "final_logit_softcapping", Presence::Optional),
];

/// Those of Gemma 3.
const GEMMA3: Table = &[
    ("attention.sliding_window", "sliding_window", Presence::Optional),
    ("attention.sliding_window_pattern", "sliding_window_pattern", Presence::Optional),
    ("final_logit_softcapping", "final_logit_softcapping", Presence::Optional),
    ("rope.freq_base_swa", "rope_local_base_freq", Presence::Optional),
];

/// Those of Phi-3.
const PHI3: Table = &[("attention.sliding_window", "sliding_window", Presence::Optional)];

/// What is read and written one by one: of all families, of the kind of attention, of the kind of experts.
pub(super) fn tables(family: Family) -> [Table; 3] {
    let attention = if family.is_deepseek() { MLA } else { GQA };
    let others: Table = match family {
        Family::Phi3 => PHI3,
        Family::Gemma2 => GEMMA2,
        Family::Gemma3 => GEMMA3,
        _ => &[],
    };
    let experts = family.row().experts.as_ref().map_or(others, |experts| match experts.router {
        RouterKeys::Sigmoid { .. } | RouterKeys::Softmax => EXPERTS,
        RouterKeys::SoftmaxNormalized => QWEN3_EXPERTS,
        RouterKeys::SoftmaxOfChosen => GPT_OSS_EXPERTS,
        RouterKeys::SqrtSoftplus => unreachable!("a family without a name in GGUF"),
    });
    [COMMON, attention, experts]
}

/// Names for messages of keys that are read one by one below.
const RENAMED: &[(&str, &str)] = &[
    ("rope.dimension_count", "partial_rotary_factor"),
    ("attention.q_lora_rank", "q_lora_rank"),
    ("attention.key_length_mla", "qk_nope_head_dim"),
    ("attention.value_length_mla", "v_head_dim"),
    ("rope.scaling.factor", "rope_scaling.factor"),
    ("rope.scaling.original_context_length", "rope_scaling.original_max_position_embeddings"),
    ("rope.scaling.yarn_beta_fast", "rope_scaling.beta_fast"),
    ("rope.scaling.yarn_beta_slow", "rope_scaling.beta_slow"),
    ("rope.scaling.yarn_log_multiplier", "rope_scaling.mscale_all_dim"),
];

/// Whether a key has a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Required,
    Optional,
}

/// Keys of other architectures that change the arithmetic, with the value at which they change nothing.
const FOREIGN: &[(&str, f64)] = &[
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.output_scale", 1.0),
    ("attention.indexer.top_k", 0.0),
    ("attention.scale", 0.0),
    ("attention.shared_kv_layers", 0.0),
    ("attention.temperature_length", 0.0),
    ("attention.temperature_scale", 0.0),
    ("attention.value_scale", 1.0),
    ("attn_logit_softcapping", 0.0),
    ("embedding_scale", 1.0),
    ("expert_group_scale", 1.0),
    ("final_logit_softcapping", 0.0),
    ("hyper_connection.count", 0.0),
    ("logit_scale", 1.0),
    ("moe_latent_size", 0.0),
    ("residual_scale", 1.0),
    ("rope.scale_linear", 1.0),
    ("rope.scaling.alpha", 0.0),
    ("rope.scaling.yarn_ext_factor", 1.0),
    ("router_logit_softcapping", 0.0),
    ("swiglu_clamp_exp", 0.0),
    ("swiglu_clamp_shexp", 0.0),
    ("swin_norm", 0.0),
    ("use_parallel_residual", 0.0),
];

/// Windows of attention, which change nothing where they hold the whole context.
const WINDOWS: &[&str] = &["attention.chunk_size", "attention.sliding_window"];

/// Keys that say nothing about the arithmetic, or what the tensors say as well.
const IRRELEVANT: &[&str] = &["attention.head_count_kv", "rope.scaling.finetuned", "tensor_data_layout", "vocab_size"];

/// The configuration in a file's metadata and tensors, and what was passed over in it.
pub fn read(file: &GgufFile) -> Result<(ModelConfig, Vec<Note>), GgufError> {
    let architecture = file.metadata().get("general.architecture");
    let word = architecture.and_then(|value| value.as_str()).unwrap_or_default();
    let Some(family) = Family::of_gguf(word) else {
        let found = word.chars().take(60).collect();
        return Err(GgufError::Architecture { path: file.path().to_owned(), found });
    };
    let mut reader = Reader { file, family, json: Map::new(), read: Vec::new(), notes: Vec::new() };
    let result = reader.model();
    result.map(|config| (config, reader.notes)).map_err(|source| file.config_error(source))
}

struct Reader<'a> {
    file: &'a GgufFile,
    /// Of those with the file's architecture, the one that [`Reader::router`] has not excluded.
    family: Family,
    /// What a `config.json` would say.
    json: Map<String, Json>,
    /// Keys that have been looked at, without the architecture's name.
    read: Vec<&'static str>,
    notes: Vec<Note>,
}

impl Reader<'_> {
    fn model(&mut self) -> Result<ModelConfig, ConfigError> {
        for (key, name, presence) in tables(self.family).into_iter().flatten() {
            self.copy(key, name, *presence)?;
        }
        self.foreign()?;
        let deepseek = self.family.is_deepseek();
        if deepseek {
            self.latents()?
        } else {
            self.heads()?
        };
        match self.family.row().experts.as_ref().map(|experts| experts.router) {
            None => self.no_experts()?,
            Some(RouterKeys::Sigmoid { .. } | RouterKeys::Softmax) => self.router()?,
            Some(RouterKeys::SoftmaxNormalized) => self.softmax_router()?,
            Some(RouterKeys::SoftmaxOfChosen) => self.chosen_router()?,
            Some(RouterKeys::SqrtSoftplus) => unreachable!("a family without a name in GGUF"),
        }
        self.mtp()?;
        self.gemma();
        self.put("model_type", json!(self.family.model_type()));
        let mut base = self.json.get("rope_theta").and_then(Json::as_f64).unwrap_or(10_000.0);
        self.scaling(deepseek)?;
        self.vocabulary()?;
        let text = Json::Object(self.json.clone()).to_string();
        let (mut config, notes) = ModelConfig::from_hf_json(&text).map_err(|error| self.renamed(error))?;
        self.notes.extend(notes);
        if let Attention::Gqa { o_bias, head_dim, rope_dim, .. } = &mut config.attention {
            *o_bias = self.file.dims("blk.0.attn_output.bias").is_some();
            let (head_dim, rope_dim) = (*head_dim, *rope_dim);
            self.check_head(head_dim, rope_dim)?;
            base = base.max(1.0);
            self.rope_factors(&mut config.rope.scaling, rope_dim, base)?;
        }
        if config.family == Family::Llama {
            // The converter reorders the rows of query and key for ggml's rotation of neighbours.
            config.rope.layout = RopeLayout::Interleaved;
        }
        self.unknown();
        Ok(config)
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.family.row().gguf.expect("a family that was found by this name"))
    }

    fn get(&mut self, key: &'static str) -> Option<Value<'_>> {
        self.read.push(key);
        self.file.metadata().get(&self.full(key))
    }

    /// A value as JSON; a list of equal values, one for each layer, as one of them.
    fn json(&mut self, key: &'static str) -> Result<Option<Json>, ConfigError> {
        let name = self.full(key);
        let Some(value) = self.get(key) else { return Ok(None) };
        let value = match value.as_array() {
            None => value,
            Some(array) => {
                let mut elements = array.iter();
                let first = elements.next();
                match first.filter(|first| elements.all(|element| element == *first)) {
                    Some(first) => first,
                    None => return Err(unsupported(name, &value, "only layers that are all alike are implemented")),
                }
            }
        };
        let json = match value {
            Value::Unsigned(number) => json!(number),
            Value::Signed(number) => json!(number),
            Value::Bool(flag) => json!(flag),
            Value::String(_) => json!(value.as_str()),
            Value::Single(_) | Value::Double(_) => json!(value.as_f64()),
            Value::Array(_) => Json::Null,
        };
        if json.is_null() {
            return Err(unsupported(name, &value, "it has to be a number or a word"));
        }
        Ok(Some(json))
    }

    fn copy(&mut self, key: &'static str, name: &'static str, presence: Presence) -> Result<(), ConfigError> {
        match self.json(key)? {
            Some(value) => _ = self.json.insert(name.to_owned(), value),
            None if presence == Presence::Required => return Err(ConfigError::Missing { key: self.full(key) }),
            None => {}
        }
        Ok(())
    }

    fn integer(&mut self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        let name = self.full(key);
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(ConfigError::Type { key: name, value: value.to_string(), expected: "a whole number" }),
            },
        }
    }

    fn real(&mut self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        let name = self.full(key);
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(ConfigError::Type { key: name, value: value.to_string(), expected: "a number" }),
            },
        }
    }

    fn put(&mut self, name: &str, value: Json) {
        self.json.insert(name.to_owned(), value);
    }

    fn no_experts(&mut self) -> Result<(), ConfigError> {
        let experts = self.integer("expert_count")?.unwrap_or(0);
        if experts > 0 {
            let value = Value::Unsigned(experts);
            return Err(unsupported(
                self.full("expert_count"),
                &value,
                "this architecture is implemented without experts",
            ));
        }
        self.integer("expert_used_count")?;
        Ok(())
    }

    /// Of grouped-query attention: what tensors say, and which part of a head rotates.
    fn heads(&mut self) -> Result<(), ConfigError> {
        let AttentionKeys::Gqa { biases, qk_norm, partial_rotary, .. } = self.family.row().attention else {
            unreachable!("{:?} has grouped-query attention", self.family)
        };
        let bias = self.file.dims("blk.0.attn_q.bias").is_some();
        self.put("attention_bias", json!(bias || biases == Biases::QueryKeyValue));
        if let QkNorm::Key(key) = qk_norm {
            self.put(key, json!(self.file.dims("blk.0.attn_q_norm.weight").is_some()));
        }
        // Files say every width; a class of `transformers` may have another default.
        let number = |json: &Map<String, Json>, key| json.get(key).and_then(Json::as_u64).filter(|number| *number > 0);
        let head_dim = number(&self.json, "head_dim").or_else(|| {
            let (hidden, heads) = (number(&self.json, "hidden_size")?, number(&self.json, "num_attention_heads")?);
            hidden.is_multiple_of(heads).then_some(hidden / heads)
        });
        if let Some(head_dim) = head_dim {
            self.put("head_dim", json!(head_dim));
        }
        if let (Some(_), Some(head_dim)) = (partial_rotary, head_dim) {
            let rotary = self.integer("rope.dimension_count")?.unwrap_or(head_dim);
            self.put("partial_rotary_factor", json!(part_of(rotary as usize, head_dim as usize)));
        }
        Ok(())
    }

    /// The widths of a head that other keys repeat.
    fn check_head(&mut self, head_dim: usize, rope_dim: usize) -> Result<(), ConfigError> {
        for (key, expected) in [("attention.value_length", head_dim), ("rope.dimension_count", rope_dim)] {
            if self.integer(key)?.is_some_and(|width| width != expected as u64) {
                let why = "heads have one width for keys and values, and all of it rotates";
                let value = self.get(key).map_or(Value::Unsigned(0), |value| value).to_string();
                return Err(ConfigError::Unsupported { key: self.full(key), value, why });
            }
        }
        Ok(())
    }

    /// What llama.cpp's Gemma has whatever a file says: a scale of scores that hangs on the number of layers, and in
    /// Gemma 3 other bases and windows where keys are absent than a `config.json`.
    fn gemma(&mut self) {
        if !matches!(self.family, Family::Gemma2 | Family::Gemma3) {
            return;
        }
        let number = |json: &Map<String, Json>, key| json.get(key).and_then(Json::as_u64);
        let sizes = ["num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim"];
        if let [Some(layers), Some(hidden), Some(heads), Some(head_dim)] = sizes.map(|key| number(&self.json, key)) {
            self.put(
                "query_pre_attn_scalar",
                json!(gemma_query_scalar(self.family, layers, (hidden, heads), head_dim)),
            );
        }
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if self.json.get(key).and_then(Json::as_f64) == Some(0.0) {
                self.put(key, Json::Null);
            }
        }
        if self.family == Family::Gemma3 {
            self.json.entry("rope_theta").or_insert(json!(10_000.0));
            let window = number(&self.json, "sliding_window").unwrap_or(0);
            let layers = number(&self.json, "num_hidden_layers").filter(|layers| window == 0 && *layers < 1 << 16);
            if let Some(layers) = layers {
                self.put("sliding_window", Json::Null);
                self.put("layer_types", json!(vec!["full_attention"; layers as usize]));
            }
        }
    }

    fn latents(&mut self) -> Result<(), ConfigError> {
        let q_lora_rank = self.integer("attention.q_lora_rank")?.filter(|rank| *rank > 0);
        self.put("q_lora_rank", json!(q_lora_rank));
        // Since the two halves of kv_b_proj are stored apart, the plain keys have the widths of the absorbed form.
        let mut width = |mla, plain| -> Result<u64, ConfigError> {
            let (new, old) = (self.integer(mla)?, self.integer(plain)?);
            new.or(old).ok_or_else(|| ConfigError::Missing { key: self.full(mla) })
        };
        let qk = width("attention.key_length_mla", "attention.key_length")?;
        let v = width("attention.value_length_mla", "attention.value_length")?;
        let rope = self.integer("rope.dimension_count")?.unwrap_or(0);
        let Some(nope) = qk.checked_sub(rope).filter(|nope| *nope > 0) else {
            return Err(ConfigError::Contradiction {
                key: self.full("attention.key_length_mla"),
                value: qk.to_string(),
                other: self.full("rope.dimension_count"),
                other_value: rope.to_string(),
                why: "a part of a key has no position",
            });
        };
        self.put("qk_nope_head_dim", json!(nope));
        self.put("v_head_dim", json!(v));
        Ok(())
    }

    /// Layers for multi-token prediction are not read from GGUF.
    fn mtp(&mut self) -> Result<(), ConfigError> {
        let depth = self.integer("nextn_predict_layers")?.unwrap_or(0);
        let Some(layers) = self.json.get("num_hidden_layers").and_then(Json::as_u64) else { return Ok(()) };
        if depth > 0 && depth < layers {
            self.put("num_hidden_layers", json!(layers - depth));
            self.notes.push(Note(format!("the file's {depth} layers for multi-token prediction are ignored")));
        }
        Ok(())
    }

    fn router(&mut self) -> Result<(), ConfigError> {
        let refuse = |reader: &Self, found, why| {
            Err(unsupported(reader.full("expert_gating_func"), &Value::Unsigned(found), why))
        };
        self.family = match (self.integer("expert_gating_func")?, self.family) {
            (None | Some(0 | 2), Family::Glm4Moe) => Family::Glm4Moe,
            (Some(other), Family::Glm4Moe) => return refuse(self, other, "experts are gated by sigmoid (2)"),
            // Files from before V3 do not say that they mean softmax.
            (None | Some(0 | 1), _) => Family::DeepseekV2,
            (Some(2), _) => Family::DeepseekV3,
            (Some(other), _) => return refuse(self, other, "experts are gated by softmax (1) or sigmoid (2)"),
        };
        if self.json.get("routed_scaling_factor").is_none_or(|scale| scale.as_f64() == Some(0.0)) {
            self.put("routed_scaling_factor", json!(1.0));
        }
        self.json.entry("norm_topk_prob").or_insert(json!(false));
        self.json.entry("first_k_dense_replace").or_insert(json!(0));
        let groups = self.json.get("n_group").and_then(Json::as_u64);
        match self.family {
            Family::DeepseekV3 | Family::Glm4Moe if groups.is_none() => {
                self.put("n_group", json!(1));
                self.put("topk_group", json!(1));
                self.notes.push(Note("the file names no groups of experts; tokens choose among all".to_owned()));
            }
            Family::DeepseekV2 if groups.is_some_and(|groups| groups > 1) => {
                self.put("topk_method", json!("group_limited_greedy"));
            }
            _ => {}
        }
        Ok(())
    }

    /// llama.cpp divides the weights of qwen3moe by their sum, whatever a file says.
    fn softmax_router(&mut self) -> Result<(), ConfigError> {
        if let Some(other) = self.integer("expert_gating_func")?.filter(|gating| *gating > 1) {
            let why = "experts are gated by softmax (1)";
            return Err(unsupported(self.full("expert_gating_func"), &Value::Unsigned(other), why));
        }
        for (name, neutral) in [("routed_scaling_factor", [0.0, 1.0]), ("shared_expert_intermediate_size", [0.0, 0.0])]
        {
            if self.json.get(name).and_then(Json::as_f64).is_some_and(|number| neutral.contains(&number)) {
                self.json.remove(name);
            }
        }
        self.put("norm_topk_prob", json!(true));
        Ok(())
    }

    /// llama.cpp takes the softmax of the chosen logits of gpt-oss, whatever a file says.
    fn chosen_router(&mut self) -> Result<(), ConfigError> {
        if let Some(other) = self.integer("expert_gating_func")?.filter(|gating| ![0, 3].contains(gating)) {
            let why = "experts are gated by the softmax of the chosen (3)";
            return Err(unsupported(self.full("expert_gating_func"), &Value::Unsigned(other), why));
        }
        Ok(())
    }

    fn scaling(&mut self, deepseek: bool) -> Result<(), ConfigError> {
        let factor = self.real("rope.scaling.factor")?;
        let original = self.integer("rope.scaling.original_context_length")?;
        let [fast, slow, log_multiplier] =
            ["rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier"]
                .map(|key| self.real(key));
        let (fast, slow, log_multiplier) = (fast?, slow?, log_multiplier?);
        let name = self.full("rope.scaling.type");
        let value =
            self.get("rope.scaling.type").map(|value| (value.as_str().unwrap_or("?").to_owned(), value.to_string()));
        let (word, shown) = value.unwrap_or_else(|| ("linear".to_owned(), String::new()));
        let divisors = names::ROPE_FACTORS.map(|name| self.file.floats(name));
        let attn_factor = self.attn_factor(word == "yarn" || divisors[0].is_some())?;
        if let [Some(short), Some(long)] = divisors {
            self.long_rope([short, long], original, attn_factor);
            return Ok(());
        }
        let scaling = match &word[..] {
            "none" => return Ok(()),
            "linear" if factor.is_none_or(|factor| factor == 0.0 || factor == 1.0) => return Ok(()),
            "linear" => json!({"type": "linear", "factor": factor}),
            "yarn" => {
                let mut scaling = json!({"type": "yarn", "factor": factor});
                for (key, value) in [
                    ("original_max_position_embeddings", json!(original)),
                    ("beta_fast", json!(fast)),
                    ("beta_slow", json!(slow)),
                ] {
                    if !value.is_null() {
                        scaling[key] = value;
                    }
                }
                if self.family == Family::GptOss {
                    // Files do not say it. llama.cpp rounds the ends of the ramp, the model was trained without.
                    scaling["truncate"] = json!(false);
                }
                let mut usual = yarn_table_scale(factor.unwrap_or(1.0), None, None);
                if deepseek {
                    let mscale = self.mscale(log_multiplier)?;
                    scaling["mscale"] = json!(mscale);
                    scaling["mscale_all_dim"] = json!(mscale);
                    usual = 1.0;
                } else if log_multiplier.is_some_and(|multiplier| multiplier != 0.0) {
                    let key = self.full("rope.scaling.yarn_log_multiplier");
                    let value = Value::Double(log_multiplier.unwrap_or(0.0));
                    return Err(unsupported(key, &value, "it is implemented for deepseek2 only"));
                }
                if attn_factor != 1.0 {
                    scaling["attention_factor"] = json!(usual * attn_factor);
                }
                scaling
            }
            _ => {
                let why = "the types of rotary scaling are none, linear and yarn";
                return Err(ConfigError::Unsupported { key: name, value: shown, why });
            }
        };
        self.put("rope_scaling", scaling);
        Ok(())
    }

    /// LongRoPE's divisors, which files have as tensors.
    fn long_rope(&mut self, [short, long]: [Vec<f32>; 2], original: Option<u64>, attention_factor: f64) {
        // Their decimals are shorter than those of the f64 next to them.
        let decimal = |number: f32| number.to_string().parse::<f64>().unwrap_or(f64::from(number));
        let list = |list: Vec<f32>| list.into_iter().map(decimal).collect::<Vec<f64>>();
        let mut scaling = json!({"type": "longrope", "short_factor": list(short), "long_factor": list(long)});
        scaling["attention_factor"] = json!(decimal(attention_factor as f32));
        if let Some(original) = original {
            scaling["original_max_position_embeddings"] = json!(original);
        }
        self.put("rope_scaling", scaling);
    }

    /// What YaRN's own factor on cos and sin is multiplied by: `rope.scaling.attn_factor`, and what a `config.json` had
    /// as `attn_factor`.
    fn attn_factor(&mut self, yarn: bool) -> Result<f64, ConfigError> {
        let mut product = 1.0;
        for key in ["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"] {
            let Some(factor) = self.real(key)?.filter(|factor| *factor != 1.0) else { continue };
            let name = self.full(key);
            if !yarn || !(1e-3..1e3).contains(&factor) {
                let why = "it is implemented with yarn and longrope, from 0.001 to 1000";
                return Err(unsupported(name, &Value::Double(factor), why));
            }
            if key == "rope.scaling.yarn_attn_factor" {
                let text =
                    "multiplies cos and sin beside YaRN's own factor, as in vLLM and SGLang; llama.cpp ignores it";
                self.notes.push(Note(format!("`{name}` = {factor} {text}")));
            }
            product *= factor;
        }
        Ok(product)
    }

    /// `mscale_all_dim`, which the converter writes times 0.1; `mscale` is not written and taken to be the same, as it
    /// is in all published models and in llama.cpp.
    fn mscale(&self, log_multiplier: Option<f64>) -> Result<f64, ConfigError> {
        let key = self.full("rope.scaling.yarn_log_multiplier");
        let multiplier = log_multiplier.ok_or(ConfigError::Missing { key })?;
        Ok((multiplier * 1e7).round() / 1e6)
    }

    fn rope_factors(&mut self, scaling: &mut RopeScaling, dim: usize, base: f64) -> Result<(), ConfigError> {
        let Some(divisors) = self.file.floats(names::ROPE_FREQS) else { return Ok(()) };
        let found = rope::from_divisors(&divisors, dim, base);
        let refuse = |why| ConfigError::Unsupported {
            key: names::ROPE_FREQS.to_owned(),
            value: format!("a list of {}", divisors.len()),
            why,
        };
        if *scaling != RopeScaling::None {
            return Err(refuse("only one change of the rotary frequencies is implemented"));
        }
        *scaling = found.ok_or_else(|| refuse("the divisors are not those of Llama 3.1's scaling"))?;
        Ok(())
    }

    fn vocabulary(&mut self) -> Result<(), ConfigError> {
        let Some([_, rows]) = self.file.dims(names::EMBEDDING) else {
            return Err(ConfigError::Missing { key: names::EMBEDDING.to_owned() });
        };
        let rows = *rows;
        self.put("vocab_size", json!(rows));
        self.put("tie_word_embeddings", json!(self.file.dims(names::HEAD).is_none()));
        let metadata = self.file.metadata();
        let id = |key: &str| metadata.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(|value| value.as_u64());
        let ends: Vec<u64> = id("eos").into_iter().chain(id("eot").filter(|eot| id("eos") != Some(*eot))).collect();
        let (bos, pad) = (id("bos"), id("padding"));
        self.put("bos_token_id", json!(bos));
        self.put("eos_token_id", json!(ends));
        self.put("pad_token_id", json!(pad));
        Ok(())
    }

    fn foreign(&mut self) -> Result<(), ConfigError> {
        const CAUSAL: &str = "attention.causal";
        let causal = self.full(CAUSAL);
        if let Some(value) = self.get(CAUSAL).filter(|value| value.as_bool() != Some(true)) {
            return Err(unsupported(causal, &value, "a token attends to itself and to those before it alone"));
        }
        let context = self.json.get("max_position_embeddings").and_then(Json::as_u64).unwrap_or(0);
        let own: Vec<&str> = tables(self.family).into_iter().flatten().map(|(key, ..)| *key).collect();
        for key in WINDOWS.iter().copied().filter(|key| !own.contains(key)) {
            let name = self.full(key);
            let Some(value) = self.get(key) else { continue };
            if !value.as_u64().is_some_and(|window| window == 0 || window >= context) {
                return Err(unsupported(name, &value, "attention over a sliding window is not implemented"));
            }
        }
        for (key, neutral) in FOREIGN.iter().filter(|(key, _)| !own.contains(key)) {
            let name = self.full(key);
            let Some(value) = self.get(key) else { continue };
            let holds = value.as_f64() == Some(*neutral) || value.as_bool() == Some(false);
            if !holds {
                return Err(unsupported(name, &value, "it belongs to an architecture that is not implemented"));
            }
        }
        Ok(())
    }

    /// Keys of the architecture that nothing has looked at.
    fn unknown(&mut self) {
        let prefix = self.full("");
        for key in self.file.metadata().keys() {
            let Some(short) = key.strip_prefix(&prefix) else { continue };
            if !self.read.contains(&short) && !IRRELEVANT.contains(&short) {
                let value = self.file.metadata().get(key).map_or(String::new(), |value| value.to_string());
                self.notes.push(Note(format!("unknown key `{key}` = {value} is ignored")));
            }
        }
    }

    /// An error about a key of `config.json`, with the key of this file.
    fn renamed(&self, mut error: ConfigError) -> ConfigError {
        let rename = |key: &mut String| {
            let tables = tables(self.family).into_iter().flatten().map(|(there, here, _)| (*there, *here));
            let found = tables.chain(RENAMED.iter().copied()).find(|(_, here)| here == key);
            if let Some((there, _)) = found {
                *key = self.full(there);
            }
        };
        match &mut error {
            ConfigError::Missing { key }
            | ConfigError::Type { key, .. }
            | ConfigError::Range { key, .. }
            | ConfigError::Unsupported { key, .. } => rename(key),
            ConfigError::Contradiction { key, other, .. } => {
                rename(key);
                rename(other);
            }
            _ => {}
        }
        error
    }
}

/// Of which llama.cpp's scale of scores in Gemma is the inverse root: the width of a head, but in the 27B models the
/// width of the residual stream by heads.
pub(super) fn gemma_query_scalar(family: Family, layers: u64, (hidden, heads): (u64, u64), head_dim: u64) -> u64 {
    let of_27b = if family == Family::Gemma2 { 46 } else { 62 };
    if layers == of_27b { hidden / heads.max(1) } else { head_dim }
}

fn unsupported(key: String, value: &Value<'_>, why: &'static str) -> ConfigError {
    ConfigError::Unsupported { key, value: value.to_string(), why }
}
