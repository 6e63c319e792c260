//! GGUF files that are written: read back, bytes, number formats, failures.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use tempfile::TempDir;
use wels_cpu::testing::{device, host};
use wels_device::BlockType;
use wels_model::config::{Family, ModelConfig, RopeLayout, RopeScaling, Router, SoftmaxMethod};
use wels_model::gguf::{self, GgufError, GgufFile, Item, Stored};
use wels_model::inference::{LoadOptions, Quantise};
use wels_model::model::Model;
use wels_model::names::{self, ParamKind};
use wels_model::params::Params;
use wels_model::presets;
use wels_model::tape::Execution;

use super::load;
use crate::shapes;
use crate::weights::{made_up, tiny_configs};

fn save(path: &Path, config: &ModelConfig, kind: BlockType, params: &[Vec<f32>]) -> Result<(), GgufError> {
    let keys = [("general.name".to_owned(), Item::Text("tiny".to_owned()))];
    gguf::save(path, config, kind, &keys, &|param| Cow::Borrowed(&params[param][..]), &mut |done, total| {
        assert!(done <= total)
    })
}

#[test]
fn what_is_written_reads_back() {
    let dir = TempDir::new().unwrap();
    for (i, config) in tiny_configs().into_iter().enumerate() {
        let path = dir.path().join(format!("{i}.gguf"));
        let params = made_up(&config);
        save(&path, &config, BlockType::F32, &params).unwrap();
        let (read, file, notes) = GgufFile::open_model(&path).unwrap();
        assert_eq!(notes, []);
        assert_eq!(file.metadata().get("general.name").unwrap().as_str(), Some("tiny"));
        let mut expected = ModelConfig { mtp_depth: 0, ..config.clone() };
        // What GGUF has no keys for, and what the caller would have put in: ids of tokens, initial weights.
        (expected.bos_id, expected.pad_id, expected.init_std) = (read.bos_id, read.pad_id, read.init_std);
        expected.eos_ids = read.eos_ids.clone();
        let llama = matches!(config.family, Family::Llama | Family::Mistral);
        if llama {
            // Mistral's models are `llama` there.
            (expected.family, expected.rope.layout) = (Family::Llama, RopeLayout::Interleaved);
        }
        assert_eq!(read, expected);
        for ((name, found), original) in load(&file, &read).into_iter().zip(&params) {
            let rotates = llama && (name.contains(".q_proj.") || name.contains(".k_proj."));
            let cols = if name.ends_with(".bias") { 1 } else { config.hidden_size };
            let head_dim = config.attention.qk_dim();
            let restored = if rotates { gguf::split_rows(&found, head_dim, cols) } else { found.clone() };
            // GGUF has 1 + w of Gemma's norms, rounded.
            let gemma = matches!(config.family, Family::Gemma2 | Family::Gemma3);
            let rounding = if gemma && name.ends_with("norm.weight") { 6e-8 } else { 0.0 };
            let close = restored.iter().zip(original).all(|(a, b)| (a - b).abs() <= rounding);
            assert!(restored.len() == original.len() && close, "{name} of {i}");
            assert!(!rotates || found != *original, "{name} of {i} has not been reordered");
        }
    }
}

#[test]
fn rows_of_a_head_are_interleaved_as_llama_cpp_does() {
    // Two heads of four rows, one column: reshape(heads, 2, n/2).swapaxes(1, 2).
    let rows: Vec<f32> = (0..8).map(|row| row as f32).collect();
    let interleaved = gguf::interleave_rows(&rows, 4, 1);
    assert_eq!(interleaved, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(gguf::split_rows(&interleaved, 4, 1), rows);
}

/// `scripts/oracle/check_gguf.py` has found llama.cpp to read such files, and to compute from them what `transformers`
/// computes: so their bytes may change for a reason only.
#[test]
fn written_files_keep_their_bytes() {
    let dir = TempDir::new().unwrap();
    let hash = |bytes: &[u8]| {
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
    };
    let mut found = Vec::new();
    for (i, config) in tiny_configs().iter().enumerate() {
        let path = dir.path().join(format!("{i}.gguf"));
        save(&path, config, BlockType::Bf16, &made_up(config)).unwrap();
        found.push(format!("{:016x}", hash(&fs::read(&path).unwrap())));
    }
    assert_eq!(found, GOLDEN);
}

const GOLDEN: [&str; 16] = [
    "46d3a72615117841",
    "88e2e1248b31f450",
    "f7f8dab26136c8e6",
    "17cd0ab7c82602d1",
    "f6fd512d0512f169",
    "2a482a2b2b2cc11f",
    "3a9a7dc28a54cba2",
    "2a78cbc08115278a",
    "3a650ede9b0294ed",
    "5b7e7f08565df180",
    "577bc5e8507376ba",
    "68560e532014ed02",
    "941b9b18bdcbb66c",
    "4e3989fbca98e1b9",
    "3b1d916ba24f5d7a",
    "b2eb54c7e99924d2",
];

#[test]
fn what_llama_cpp_would_compute_otherwise_is_not_written() {
    let dir = TempDir::new().unwrap();
    let refused = |config: &ModelConfig, part: &str| {
        let error = save(&dir.path().join("no.gguf"), config, BlockType::F32, &made_up(config)).unwrap_err();
        assert!(error.to_string().contains(part) || format!("{error:?}").contains(part), "{error:?}");
    };
    for config in [shapes::mistral(), shapes::qwen3()] {
        refused(&config, "sliding_window");
    }
    let mut config = shapes::qwen3_moe();
    let moe = config.moe.as_mut().unwrap();
    moe.router = Router::Softmax { method: SoftmaxMethod::Greedy, normalize: false, scale: 1.0 };
    refused(&config, "norm_topk_prob");
    let gemma = || ModelConfig { softmax_scale: 1.0 / 8f32.sqrt(), ..shapes::gemma2() };
    save(&dir.path().join("yes.gguf"), &gemma(), BlockType::F32, &made_up(&gemma())).unwrap();
    refused(&ModelConfig { softmax_scale: 0.25, ..gemma() }, "query_pre_attn_scalar");
    refused(&ModelConfig { attention_cap: None, ..gemma() }, "attn_logit_softcapping");
    refused(&ModelConfig { logit_cap: None, ..gemma() }, "final_logit_softcapping");
    let mut config = gemma();
    config.window.as_mut().unwrap().layers = vec![false, true];
    refused(&config, "layer_types");
    refused(&ModelConfig { attention_cap: Some(3.0), ..shapes::gemma3() }, "layer_types");
    let mut config = shapes::llama();
    let (short, long) = (vec![1.0; 3], vec![2.0; 3]);
    config.rope.scaling = RopeScaling::Long { short, long, original_max_positions: 8, table_scale: 1.0 };
    refused(&config, "GGUF has it for phi3 only");
}

/// A factor beside YaRN's own goes where llama.cpp multiplies with it; the converter's key for it is read as vLLM does.
#[test]
fn the_factor_of_cos_and_sin_is_kept() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.gguf");
    let mut config = ModelConfig { window: None, ..shapes::qwen3() };
    config.rope.scaling = presets::preset("r1-0528-qwen3-8b").unwrap().rope.scaling;
    save(&path, &config, BlockType::F32, &made_up(&config)).unwrap();
    let (read, file, notes) = GgufFile::open_model(&path).unwrap();
    assert_eq!(notes, []);
    let factor = file.metadata().get("qwen3.rope.scaling.attn_factor").unwrap().as_f64().unwrap();
    assert_eq!(factor as f32, 0.878_248_9);
    let RopeScaling::Yarn { table_scale, .. } = read.rope.scaling else { panic!("{:?}", read.rope) };
    assert!((table_scale - 1.0).abs() < 1e-7, "{table_scale}");
}

#[test]
fn types_are_chosen_by_what_a_tensor_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("q4.gguf");
    let mut config = tiny_configs().remove(4);
    (config.hidden_size, config.dense_intermediate) = (32, 48);
    let params = made_up(&config);
    save(&path, &config, BlockType::Q4_0, &params).unwrap();
    let (config, file, _) = GgufFile::open_model(&path).unwrap();
    for spec in names::param_specs(&config) {
        let Stored::Whole(blocks) = file.tensor(&config, &spec) else { panic!("{}", spec.name) };
        let expected = match spec.kind {
            ParamKind::Norm => BlockType::F32,
            ParamKind::Embedding => BlockType::Q8_0,
            // Rows of 48 or 12 are no whole blocks.
            _ if !spec.cols.is_multiple_of(32) => BlockType::F16,
            _ => BlockType::Q4_0,
        };
        assert_eq!(blocks.kind, expected, "{}", spec.name);
    }
}

#[test]
fn weights_in_the_file_and_packed_ones_have_the_same_bits() {
    let dir = TempDir::new().unwrap();
    for (i, mut config) in tiny_configs().into_iter().enumerate() {
        (config.hidden_size, config.dense_intermediate) = (32, 64);
        let path = dir.path().join(format!("{i}.gguf"));
        save(&path, &config, BlockType::Q4_0, &made_up(&config)).unwrap();
        let (config, file, _) = GgufFile::open_model(&path).unwrap();
        let model = Model::new(config.clone(), 16);
        let tokens: Vec<u32> = (0..16).map(|i| i * 7 % config.vocab_size as u32).collect();
        let bits = |options| {
            let (params, _) = Params::from_gguf(&device(), &file, &config, options).unwrap();
            let logits = model.logits(&params, &Execution::new(device()), &tokens, &[0, 16]);
            host(&logits).iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let packed = bits(LoadOptions::packed(Quantise::AsStored));
        assert_eq!(packed, bits(LoadOptions::mapped(Quantise::AsStored)), "{i}");
        let half = LoadOptions { pack_bytes: 8 << 10, ..LoadOptions::packed(Quantise::AsStored) };
        assert_eq!(packed, bits(half), "{i}, some of both");
    }
}

#[test]
fn nothing_is_replaced_and_nothing_half_written_is_left() {
    let dir = TempDir::new().unwrap();
    let config = tiny_configs().remove(3);
    let params = made_up(&config);
    let path = dir.path().join("a.gguf");
    save(&path, &config, BlockType::F32, &params).unwrap();
    assert!(matches!(save(&path, &config, BlockType::F32, &params), Err(GgufError::Occupied { .. })));
    let nowhere = dir.path().join("no/such/folder/a.gguf");
    assert!(matches!(save(&nowhere, &config, BlockType::F32, &params), Err(GgufError::Io { action: "write", .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
