//! GGUF files that are read: good ones of each architecture, damaged ones.

mod builder;
mod written;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;
use wels_device::BlockType;
use wels_device::host::blocks;
use wels_model::config::{Family, ModelConfig, RopeLayout, RopeScaling, Router};
use wels_model::gguf::{GgufError, GgufFile, Stored};
use wels_model::names;

use builder::{Builder, deepseek, llama};

/// All parameters by name, after checking that each row came once.
fn load(file: &GgufFile, config: &ModelConfig) -> Vec<(String, Vec<f32>)> {
    let specs = names::param_specs(config);
    let mut params: Vec<Vec<f32>> = specs.iter().map(|spec| vec![f32::NAN; spec.len()]).collect();
    let mut seen: Vec<Vec<u32>> = specs.iter().map(|spec| vec![0; spec.rows]).collect();
    file.load(config, &mut |param, first_row, rows, values| {
        let cols = specs[param].cols;
        params[param][first_row * cols..][..rows * cols].copy_from_slice(values);
        seen[param][first_row..][..rows].iter_mut().for_each(|count| *count += 1);
    })
    .unwrap();
    assert!(seen.iter().flatten().all(|count| *count == 1));
    specs.into_iter().map(|spec| spec.name).zip(params).collect()
}

fn named<'a>(params: &'a [(String, Vec<f32>)], name: &str) -> &'a [f32] {
    &params.iter().find(|(found, _)| found == name).unwrap().1
}

#[test]
fn llama_files() {
    let builder = llama();
    let (config, file, notes) = builder.open().unwrap();
    assert_eq!((config.family, config.rope.layout), (Family::Llama, RopeLayout::Interleaved));
    assert_eq!((config.vocab_size, config.tied_head, config.norm_eps), (11, true, 1e-5));
    assert_eq!((config.rope.base, config.bos_id, &config.eos_ids[..]), (5e5, Some(1), &[2][..]));
    assert_eq!(notes, [""; 0]);
    let params = load(&file, &config);
    assert_eq!(named(&params, "model.layers.1.mlp.down_proj.weight"), builder.values("blk.1.ffn_down.weight"));
    assert_eq!(named(&params, "model.embed_tokens.weight"), builder.values("token_embd.weight"));

    let mut untied = builder.clone();
    untied.floats("output.weight", &[8, 11]);
    assert!(!untied.open().unwrap().0.tied_head);
}

#[test]
fn qwen2_files_have_biases_and_unpermuted_rows() {
    let mut builder = llama();
    for (key, _) in &mut builder.keys {
        *key = key.replace("llama.", "qwen2.");
    }
    builder.word("general.architecture", "qwen2");
    for layer in 0..2 {
        for (name, width) in [("attn_q", 8), ("attn_k", 4), ("attn_v", 4)] {
            builder.floats(&format!("blk.{layer}.{name}.bias"), &[width]);
        }
    }
    let (config, file, _) = builder.open().unwrap();
    assert_eq!((config.family, config.rope.layout), (Family::Qwen2, RopeLayout::HalfSplit));
    let params = load(&file, &config);
    assert_eq!(named(&params, "model.layers.0.self_attn.k_proj.bias"), builder.values("blk.0.attn_k.bias"));
}

#[test]
fn deepseek_files() {
    let builder = deepseek();
    let (config, file, notes) = builder.open().unwrap();
    assert_eq!(notes, [""; 0]);
    assert_eq!(config.family, Family::DeepseekV3);
    let moe = config.moe.as_ref().unwrap();
    assert_eq!(moe.router, Router::Sigmoid { groups: 2, top_groups: 1, normalize: true, scale: 2.5 });
    let RopeScaling::Yarn { factor, mscale_all_dim, table_scale, .. } = config.rope.scaling else {
        panic!("{:?}", config.rope.scaling)
    };
    assert_eq!((factor, mscale_all_dim, table_scale), (40.0, Some(0.707), 1.0));
    let params = load(&file, &config);
    let experts = named(&params, "model.layers.1.mlp.experts.down_proj");
    assert_eq!(experts, builder.values("blk.1.ffn_down_exps.weight"));

    // kv_b_proj [heads · (nope 3 + v 4), rank 6] from k_b [heads][rank, nope] and v_b [heads][v, rank].
    let kv_b = named(&params, "model.layers.0.self_attn.kv_b_proj.weight");
    let (k_b, v_b) = (builder.values("blk.0.attn_k_b.weight"), builder.values("blk.0.attn_v_b.weight"));
    for h in 0..2 {
        for r in 0..6 {
            for i in 0..3 {
                assert_eq!(kv_b[(h * 7 + i) * 6 + r], k_b[(h * 6 + r) * 3 + i]);
            }
            for j in 0..4 {
                assert_eq!(kv_b[(h * 7 + 3 + j) * 6 + r], v_b[(h * 4 + j) * 6 + r]);
            }
        }
    }
}

#[test]
fn older_deepseek_files_say_less() {
    let mut builder = deepseek();
    builder.tensors.retain(|tensor| {
        let absent = ["attn_k_b", "attn_v_b", "attn_q_a", "attn_q_b", "exp_probs_b"];
        !absent.iter().any(|part| tensor.name.contains(part))
    });
    for layer in 0..2 {
        builder.floats(&format!("blk.{layer}.attn_kv_b.weight"), &[6, 14]);
        builder.floats(&format!("blk.{layer}.attn_q.weight"), &[8, 10]);
    }
    for key in ["expert_gating_func", "expert_weights_norm", "attention.q_lora_rank", "attention.key_length_mla"] {
        builder = builder.without(&format!("deepseek2.{key}"));
    }
    builder = builder.without("deepseek2.attention.value_length_mla");
    builder.u32("deepseek2.attention.key_length", 5);
    builder.u32("deepseek2.attention.value_length", 4);
    let (config, file, _) = builder.open().unwrap();
    assert_eq!(config.family, Family::DeepseekV2);
    assert!(matches!(config.moe.as_ref().unwrap().router, Router::Softmax { scale: 2.5, .. }));
    let params = load(&file, &config);
    assert_eq!(named(&params, "model.layers.1.self_attn.kv_b_proj.weight"), builder.values("blk.1.attn_kv_b.weight"));
}

#[test]
fn quantised_tensors_are_handed_out_as_they_lie() {
    let mut builder = llama();
    builder.u32("llama.embedding_length", 32);
    builder.u32("llama.rope.dimension_count", 16);
    builder.u32("llama.feed_forward_length", 64);
    for tensor in &mut builder.tensors {
        let dims = match tensor.dims[..] {
            [12, 8] => vec![64, 32],
            [8, 12] => vec![32, 64],
            [8, 4] => vec![32, 16],
            [8, 8] => vec![32, 32],
            [8, 11] => vec![32, 11],
            _ => vec![32],
        };
        let count = dims.iter().product::<u64>() as usize;
        let numbers: Vec<f32> = (0..count).map(|i| (i * 31 % 41) as f32 / 20.0 - 1.0).collect();
        let kind = if dims.len() == 1 { BlockType::F32 } else { BlockType::Q8_0 };
        tensor.bytes = vec![0; count / kind.len() * kind.bytes()];
        blocks::encode(kind, &numbers, &mut tensor.bytes);
        tensor.id = if dims.len() == 1 { 0 } else { 8 };
        tensor.dims = dims;
    }
    let (config, file, _) = builder.open().unwrap();
    let specs = names::param_specs(&config);
    let spec = specs.iter().find(|spec| spec.name == "model.layers.1.mlp.down_proj.weight").unwrap();
    let Stored::Whole(stored) = file.tensor(&config, spec) else { panic!("it is one tensor") };
    assert_eq!((stored.kind, stored.rows, stored.cols), (BlockType::Q8_0, 32, 64));
    assert_eq!(stored.bytes, builder.tensors.iter().find(|t| t.name == "blk.1.ffn_down.weight").unwrap().bytes);
    let mut numbers = vec![0.0; 32 * 64];
    blocks::decode(stored.kind, stored.bytes, &mut numbers);
    assert_eq!(named(&load(&file, &config), &spec.name), numbers);
}

#[test]
fn what_is_missing_surplus_or_misshapen_is_said_at_once() {
    let mut builder = llama().without("blk.1.ffn_up.weight");
    builder.floats("blk.0.attn_k_norm.weight", &[4]);
    let q = builder.tensors.iter_mut().find(|tensor| tensor.name == "blk.0.attn_q.weight").unwrap();
    q.dims = vec![4, 16];
    builder.tensors.iter_mut().find(|tensor| tensor.name == "output_norm.weight").unwrap().id = 24;
    let error = builder.error();
    for part in [
        "1 missing, 1 surplus, 1 misshapen, 1 of an unsupported type",
        "missing: blk.1.ffn_up.weight",
        "surplus: blk.0.attn_k_norm.weight",
        "blk.0.attn_q.weight [4, 16] instead of [8, 8]",
        "output_norm.weight I8",
    ] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

#[test]
fn keys_that_would_change_the_arithmetic_are_refused_by_name() {
    let refused = |builder: Builder, part: &str| {
        let error = builder.error();
        assert!(error.contains(part), "{part:?} is not in {error}");
    };
    let llama = llama();
    refused(llama.with_u32("llama.expert_count", 8), "`llama.expert_count` is 8");
    refused(llama.with_u32("llama.attention.sliding_window", 63), "`llama.attention.sliding_window` is ");
    refused(llama.with_u32("llama.attention.chunk_size", 8), "`llama.attention.chunk_size` is 8");
    refused(llama.with_u32("llama.attention.indexer.top_k", 8), "`llama.attention.indexer.top_k` is 8");
    let mut other = llama.clone();
    other.put("llama.attention.causal", 7, &[0]);
    refused(other, "`llama.attention.causal` is false");
    let mut other = llama.clone();
    other.put("llama.attention.causal", 7, &[1]);
    for (key, value) in [("sliding_window", 0), ("sliding_window", 64), ("chunk_size", 64)] {
        let (config, ..) = other.with_u32(&format!("llama.attention.{key}"), value).open().unwrap();
        assert_eq!(config, llama.open().unwrap().0, "{key} {value}");
    }
    refused(llama.with_u32("llama.rope.dimension_count", 2), "`llama.rope.dimension_count` is 2");
    refused(llama.with_u32("llama.attention.head_count", 0), "`llama.attention.head_count` is 0, expected 1 to");
    refused(llama.with_u32("llama.block_count", 1 << 30), "`llama.block_count` is 1073741824");
    refused(llama.without("llama.block_count"), "the key `llama.block_count` is missing");
    refused(llama.without("token_embd.weight"), "`token_embd.weight` is missing");
    let mut other = llama.clone();
    other.word("llama.rope.scaling.type", "longrope");
    refused(other.clone(), "`llama.rope.scaling.type` is \"longrope\"");
    other.word("general.architecture", "mamba");
    refused(
        other,
        "the architecture `mamba`, which is not supported (supported: deepseek2, qwen3, qwen3moe, qwen2, glm4moe, gpt-oss, glm4, phi3, gemma2, gemma3, llama)",
    );
    refused(deepseek().with_u32("deepseek2.expert_gating_func", 3), "`deepseek2.expert_gating_func` is 3");
    refused(deepseek().with_u32("deepseek2.attention.key_length_mla", 2), "`deepseek2.attention.key_length_mla` is 2");
    refused(deepseek().with_u32("deepseek2.expert_used_count", 5), "`deepseek2.expert_used_count` is 5");
    refused(deepseek().without("deepseek2.rope.scaling.yarn_log_multiplier"), "yarn_log_multiplier` is missing");
    let mut unknown = llama;
    unknown.u32("llama.some_new_thing", 3);
    assert_eq!(unknown.open().unwrap().2, ["unknown key `llama.some_new_thing` = 3 is ignored"]);
}

#[test]
fn split_files_are_read_whole_or_not_at_all() {
    let dir = TempDir::new().unwrap();
    let whole = llama();
    let part_path = |i: usize| dir.path().join(format!("m-{i:05}-of-00002.gguf"));
    let part = |number: usize| {
        let mut part = whole.clone();
        if number == 1 {
            part.keys.clear();
        }
        part.tensors = part.tensors.into_iter().enumerate().filter(|(i, _)| i % 2 == number).map(|(_, t)| t).collect();
        part.u32("split.no", number as u32);
        part.u32("split.count", 2);
        part.u32("split.tensors.count", whole.tensors.len() as u32);
        part
    };
    (0..2).for_each(|i| fs::write(part_path(i + 1), part(i).bytes()).unwrap());
    for asked in 1..=2 {
        let (config, file, _) = GgufFile::open_model(&part_path(asked)).unwrap();
        let expected = whole.values("blk.1.ffn_down.weight");
        assert_eq!(named(&load(&file, &config), "model.layers.1.mlp.down_proj.weight"), expected);
    }
    let error = |path: &Path| GgufFile::open(path).err().unwrap().to_string();
    let renamed = dir.path().join("m.gguf");
    fs::copy(part_path(1), &renamed).unwrap();
    assert!(error(&renamed).contains("its name has to end in `-00001-of-00002.gguf`"));
    fs::write(part_path(2), part(0).bytes()).unwrap();
    assert!(error(&part_path(1)).contains("does not call itself part 1 of 2"));
    fs::remove_file(part_path(2)).unwrap();
    assert!(error(&part_path(1)).contains("m-00002-of-00002.gguf is missing"));
}

/// The problem with a file of these bytes.
fn problem(bytes: &[u8]) -> String {
    let dir = TempDir::new().unwrap();
    let path: PathBuf = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    match GgufFile::open(&path) {
        Ok(_) => String::new(),
        Err(GgufError::File { problem, .. }) => problem,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn damaged_headers_are_described() {
    let good = llama();
    let bytes = good.bytes();
    let edited = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        problem(&bytes)
    };
    assert_eq!(problem(&bytes), "");
    assert_eq!(problem(b""), "it does not begin with `GGUF`");
    assert_eq!(problem(b"GGUF"), "the version takes 4 bytes, and 0 are left in the file (truncated?)");
    assert_eq!(edited(4, &1u32.to_le_bytes()), "its version is 1, and versions 2 and 3 are read");
    assert_eq!(edited(4, &3u32.to_be_bytes()), "it is big-endian, which is not read");
    assert!(edited(8, &u64::MAX.to_le_bytes()).starts_with("it claims 18446744073709551615 tensors"));
    assert!(edited(16, &(1u64 << 40).to_le_bytes()).starts_with("it claims 1099511627776 keys"));
    // The length of the first key's name.
    assert!(
        edited(24, &(1u64 << 62).to_le_bytes()).contains("the name of key 1 of 13 takes 4611686018427387904 bytes")
    );

    let mut twice = good.clone();
    twice.keys.push(twice.keys[1].clone());
    assert_eq!(problem(&twice.bytes()), "the key `llama.block_count` comes twice");
    let mut twice = good.clone();
    twice.tensors.push(twice.tensors[0].clone());
    assert_eq!(problem(&twice.bytes()), "the tensor `token_embd.weight` comes twice");
    for (kind, value, expected) in [
        (13, &[][..], "`x` has type 13, which GGUF does not define"),
        (9, &9u32.to_le_bytes(), "`x` is a list of lists"),
        (9, &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64], "`x` claims 4611686018427387904 elements"),
    ] {
        let mut other = good.clone();
        other.put("x", kind, value);
        assert!(problem(&other.bytes()).contains(expected), "{}", problem(&other.bytes()));
    }
    assert!(problem(&good.with_u32("general.alignment", 48).bytes()).contains("`general.alignment` is 48"));

    let with_dims = |dims: &[u64]| {
        let mut other = good.clone();
        other.tensors[0].dims = dims.to_vec();
        problem(&other.bytes())
    };
    assert_eq!(with_dims(&[u64::MAX, u64::MAX]), format!("`token_embd.weight` has the shape [{0}, {0}]", u64::MAX));
    assert_eq!(with_dims(&[0, 4]), "`token_embd.weight` has the shape [0, 4]");
    assert_eq!(with_dims(&[]), "`token_embd.weight` has 0 dimensions, expected 1 to 4");
    assert!(with_dims(&[1 << 30, 11]).contains("beyond the"));
    assert!(with_dims(&[8, 12]).contains("`token_embd.weight` and `blk.0.attn_norm.weight` overlap"));
    let mut odd = good.clone();
    odd.tensors[0].id = 8;
    assert_eq!(problem(&odd.bytes()), "`token_embd.weight` has rows of 8, and Q8_0 takes multiples of 32");
    let truncated = problem(&bytes[..bytes.len() - 8]);
    assert!(
        truncated.contains("`output_norm.weight` takes 32 bytes") && truncated.contains("truncated?"),
        "{truncated}"
    );
}

#[test]
fn rotary_factors_of_llama_3() {
    let mut builder = llama();
    // Of the two frequencies the second, 5e5^(-1/2), has a wavelength between 8192/4 and 8192: on the slope.
    let wavelength = std::f64::consts::TAU * 5e5f64.sqrt();
    let t = (8192.0 / wavelength - 1.0) / 3.0;
    let divisors = [1.0, (1.0 / ((1.0 - t) / 32.0 + t)) as f32];
    builder.floats("rope_freqs.weight", &[2]);
    builder.tensors.last_mut().unwrap().bytes = divisors.iter().flat_map(|x| x.to_le_bytes()).collect();
    let scaling = builder.open().unwrap().0.rope.scaling;
    assert!(matches!(scaling, RopeScaling::Llama3 { factor: 32.0, original_max_positions: 8192, .. }), "{scaling:?}");
    builder.tensors.last_mut().unwrap().bytes = [1.0f32, 0.5].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert!(builder.error().contains("`rope_freqs.weight`"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is damaged, the file is read or refused: no panic, no memory on the word of the file.
    #[test]
    fn damage_never_panics(
        deepseek_file in any::<bool>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        words in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            Just(u64::MAX), Just(0), Just(1 << 63), Just(1 << 40), any::<u64>(), 0..64u64,
        ]), 0..2),
        end in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let builder = if deepseek_file { deepseek() } else { llama() };
        let mut bytes = builder.bytes();
        // Most of a file is data, which cannot be wrong: damage the header.
        let header = builder.header().len();
        for (at, byte) in edits {
            bytes[at.index(header)] = byte;
        }
        for (at, word) in words {
            bytes[at.index(header - 8)..][..8].copy_from_slice(&word.to_le_bytes());
        }
        if let Some(end) = end {
            bytes.truncate(end.index(bytes.len()));
        }
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, &bytes).unwrap();
        if let Ok((config, file, _)) = GgufFile::open_model(&path) {
            load(&file, &config);
        }
    }
}
