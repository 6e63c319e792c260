//! GGUF files made byte by byte: small ones of the architectures that are read.

use std::fs;

use tempfile::TempDir;
use wels_model::config::ModelConfig;
use wels_model::gguf::{GgufError, GgufFile};

/// A file in the making.
#[derive(Clone, Default)]
pub struct Builder {
    pub keys: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub id: u32,
    pub bytes: Vec<u8>,
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Builder {
    pub fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.keys.retain(|(name, _)| name != key);
        self.keys.push((key.to_owned(), [&kind.to_le_bytes()[..], value].concat()));
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.put(key, 4, &value.to_le_bytes());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.put(key, 6, &value.to_le_bytes());
    }

    pub fn word(&mut self, key: &str, value: &str) {
        self.put(key, 8, &string(value));
    }

    pub fn floats(&mut self, name: &str, dims: &[u64]) {
        let count: u64 = dims.iter().product();
        let salt = name.bytes().fold(7u64, |sum, byte| sum * 31 % 65_537 + u64::from(byte));
        let value = |i: u64| ((salt * 7919 + i * 104_729) % 2003) as f32 / 1001.0 - 1.0;
        let bytes = (0..count).flat_map(|i| value(i).to_le_bytes()).collect();
        self.tensors.push(Tensor { name: name.to_owned(), dims: dims.to_vec(), id: 0, bytes });
    }

    pub fn values(&self, name: &str) -> Vec<f32> {
        let tensor = self.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        tensor.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    pub fn without(&self, name: &str) -> Builder {
        let mut other = self.clone();
        other.tensors.retain(|tensor| tensor.name != name);
        other.keys.retain(|(key, _)| key != name);
        other
    }

    pub fn with_u32(&self, key: &str, value: u32) -> Builder {
        let mut other = self.clone();
        other.u32(key, value);
        other
    }

    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            out.extend(string(key));
            out.extend(value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            out.extend(string(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.id.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.bytes.len()).next_multiple_of(32);
        }
        out
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.bytes);
        }
        out
    }

    pub fn open(&self) -> Result<(ModelConfig, GgufFile, Vec<String>), GgufError> {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, self.bytes()).unwrap();
        let (config, file, notes) = GgufFile::open_model(&path)?;
        Ok((config, file, notes.into_iter().map(|note| note.0).collect()))
    }

    pub fn error(&self) -> String {
        match self.open() {
            Ok(_) => panic!("the file was accepted"),
            Err(error) => error.to_string(),
        }
    }
}

/// D 8, 2 layers, 2 heads of 4, 1 key-value head, a tied head, 11 tokens.
pub fn llama() -> Builder {
    let mut file = Builder::default();
    file.word("general.architecture", "llama");
    for (key, value) in [
        ("block_count", 2),
        ("context_length", 64),
        ("embedding_length", 8),
        ("feed_forward_length", 12),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", 4),
        ("vocab_size", 11),
    ] {
        file.u32(&format!("llama.{key}"), value);
    }
    file.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    file.f32("llama.rope.freq_base", 5e5);
    file.u32("tokenizer.ggml.bos_token_id", 1);
    file.u32("tokenizer.ggml.eos_token_id", 2);
    file.floats("token_embd.weight", &[8, 11]);
    for layer in 0..2 {
        for (name, dims) in [
            ("attn_norm", &[8][..]),
            ("attn_q", &[8, 8]),
            ("attn_k", &[8, 4]),
            ("attn_v", &[8, 4]),
            ("attn_output", &[8, 8]),
            ("ffn_norm", &[8]),
            ("ffn_gate", &[8, 12]),
            ("ffn_up", &[8, 12]),
            ("ffn_down", &[12, 8]),
        ] {
            file.floats(&format!("blk.{layer}.{name}.weight"), dims);
        }
    }
    file.floats("output_norm.weight", &[8]);
    file
}

/// D 8, 2 layers of which the first is dense, 2 heads, 4 experts in 2 groups, YaRN; `kv_b_proj` in two pieces.
pub fn deepseek() -> Builder {
    let mut file = Builder::default();
    file.word("general.architecture", "deepseek2");
    for (key, value) in [
        ("block_count", 2),
        ("context_length", 640),
        ("embedding_length", 8),
        ("feed_forward_length", 12),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.q_lora_rank", 5),
        ("attention.kv_lora_rank", 6),
        ("attention.key_length", 8),
        ("attention.value_length", 6),
        ("attention.key_length_mla", 5),
        ("attention.value_length_mla", 4),
        ("rope.dimension_count", 2),
        ("expert_count", 4),
        ("expert_used_count", 2),
        ("expert_shared_count", 1),
        ("expert_feed_forward_length", 7),
        ("expert_gating_func", 2),
        ("expert_group_count", 2),
        ("expert_group_used_count", 1),
        ("leading_dense_block_count", 1),
        ("rope.scaling.original_context_length", 16),
    ] {
        file.u32(&format!("deepseek2.{key}"), value);
    }
    file.f32("deepseek2.attention.layer_norm_rms_epsilon", 1e-6);
    file.f32("deepseek2.rope.scaling.factor", 40.0);
    file.f32("deepseek2.rope.scaling.yarn_log_multiplier", 0.1 * 0.707);
    file.f32("deepseek2.expert_weights_scale", 2.5);
    file.put("deepseek2.expert_weights_norm", 7, &[1]);
    file.word("deepseek2.rope.scaling.type", "yarn");
    file.floats("token_embd.weight", &[8, 11]);
    file.floats("output_norm.weight", &[8]);
    file.floats("output.weight", &[8, 11]);
    for layer in 0..2 {
        let mut put = |name: &str, dims: &[u64]| file.floats(&format!("blk.{layer}.{name}"), dims);
        put("attn_norm.weight", &[8]);
        put("attn_q_a.weight", &[8, 5]);
        put("attn_q_a_norm.weight", &[5]);
        put("attn_q_b.weight", &[5, 10]);
        put("attn_kv_a_mqa.weight", &[8, 8]);
        put("attn_kv_a_norm.weight", &[6]);
        put("attn_k_b.weight", &[3, 6, 2]);
        put("attn_v_b.weight", &[6, 4, 2]);
        put("attn_output.weight", &[8, 8]);
        put("ffn_norm.weight", &[8]);
        if layer == 0 {
            put("ffn_gate.weight", &[8, 12]);
            put("ffn_up.weight", &[8, 12]);
            put("ffn_down.weight", &[12, 8]);
        } else {
            put("ffn_gate_inp.weight", &[8, 4]);
            put("exp_probs_b.bias", &[4]);
            put("ffn_gate_exps.weight", &[8, 7, 4]);
            put("ffn_up_exps.weight", &[8, 7, 4]);
            put("ffn_down_exps.weight", &[7, 8, 4]);
            put("ffn_gate_shexp.weight", &[8, 7]);
            put("ffn_up_shexp.weight", &[8, 7]);
            put("ffn_down_shexp.weight", &[7, 8]);
        }
    }
    file
}
