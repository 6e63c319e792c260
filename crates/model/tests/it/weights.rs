//! Weights in and out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use wels_cpu::testing::device;

use proptest::prelude::*;
use safetensors::tensor::{Dtype as FileDtype, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;
use wels_model::config::{Dtype, ModelConfig};
use wels_model::inference::{LoadOptions, Quantise};
use wels_model::model::{Batch, Model};
use wels_model::names::{self, ParamKind};
use wels_model::params::Params;
use wels_model::tape::Execution;
use wels_model::weights::{self, WeightsError};

pub const ALL_BYTES: u64 = u64::MAX;

/// A tiny model of each family: MLA with and without query latent, both routers, MTP, biases, tied and untied heads.
pub fn tiny_configs() -> Vec<ModelConfig> {
    let deepseek = json!({
        "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20, "intermediate_size": 10,
        "kv_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4, "q_lora_rank": null,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 5, "first_k_dense_replace": 1,
        "n_group": 2, "topk_group": 1,
    });
    let dense = json!({
        "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": 20, "intermediate_size": 10,
    });
    let with = |base: &Value, more: Value| {
        let mut json = base.clone();
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ModelConfig::from_hf_json(&json.to_string()).unwrap().0
    };
    vec![
        with(&deepseek, json!({"model_type": "deepseek_v3", "num_nextn_predict_layers": 1, "q_lora_rank": 6})),
        with(
            &deepseek,
            json!({"model_type": "deepseek_v3", "num_nextn_predict_layers": 2, "tie_word_embeddings": true}),
        ),
        with(&deepseek, json!({"model_type": "deepseek_v2", "topk_method": "group_limited_greedy"})),
        with(&dense, json!({"model_type": "qwen2"})),
        with(&dense, json!({"model_type": "llama", "tie_word_embeddings": true})),
        with(&dense, json!({"model_type": "llama", "attention_bias": true, "head_dim": 8})),
        with(&dense, json!({"model_type": "mistral", "sliding_window": null})),
        with(&dense, json!({"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": true})),
        with(
            &dense,
            json!({
                "model_type": "qwen3_moe", "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
                "moe_intermediate_size": 5, "norm_topk_prob": true,
            }),
        ),
        with(
            &dense,
            json!({
                "model_type": "glm4_moe", "head_dim": 8, "use_qk_norm": true, "attention_bias": true,
                "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 5,
                "num_nextn_predict_layers": 1,
            }),
        ),
        with(
            &dense,
            json!({
                "model_type": "gpt_oss", "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
                "sliding_window": 5, "rope_theta": 1000,
            }),
        ),
        with(&dense, json!({"model_type": "glm4", "head_dim": 8, "num_attention_heads": 3})),
        with(&dense, json!({"model_type": "phi3", "head_dim": 8, "eos_token_id": 2})),
        with(&dense, json!({"model_type": "phi3", "head_dim": 8, "eos_token_id": 2, "rope_scaling": long_rope()})),
        with(&dense, json!({"model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5})),
        with(
            &dense,
            json!({
                "model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 6,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            }),
        ),
    ]
}

fn long_rope() -> Value {
    json!({
        "type": "longrope", "short_factor": [1.0, 1.1, 1.25, 1.5], "long_factor": [1.0, 3.5, 9.1, 20.0],
        "original_max_position_embeddings": 1024, "attention_factor": 1.25,
    })
}

/// Values between -1 and 1 that a wrong order, offset or transposition would show.
pub fn made_up(config: &ModelConfig) -> Vec<Vec<f32>> {
    let specs = names::param_specs(config);
    let value = |param: usize, i: usize| ((param * 7919 + i * 104_729) % 2003) as f32 / 1001.0 - 1.0;
    specs.iter().enumerate().map(|(param, spec)| (0..spec.len()).map(|i| value(param, i)).collect()).collect()
}

pub fn save(dir: &Path, config: &ModelConfig, dtype: Dtype, shard_bytes: u64, params: &[Vec<f32>]) {
    weights::save_dir(dir, config, dtype, shard_bytes, &|param| Cow::Borrowed(&params[param][..])).unwrap();
}

/// Loads into NaN and checks that each row came once.
pub fn load(dir: &Path, config: &ModelConfig) -> Result<(Vec<Vec<f32>>, Vec<String>), WeightsError> {
    let specs = names::param_specs(config);
    let mut params: Vec<Vec<f32>> = specs.iter().map(|spec| vec![f32::NAN; spec.len()]).collect();
    let notes = weights::load_dir(dir, config, &mut |param, first_row, rows, values| {
        let cols = specs[param].cols;
        let place = &mut params[param][first_row * cols..][..rows * cols];
        assert!(place.iter().all(|value| value.is_nan()), "{} comes twice", specs[param].name);
        place.copy_from_slice(values);
    })?;
    Ok((params, notes.iter().map(ToString::to_string).collect()))
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn round(value: f32, dtype: Dtype, kind: ParamKind) -> f32 {
    match dtype {
        _ if kind == ParamKind::RouterBias => value,
        Dtype::F32 => value,
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        Dtype::Bf16 | Dtype::Fp8 => half::bf16::from_f32(value).to_f32(),
    }
}

/// `transformers` turns the same blocks into the same numbers: scripts/oracle/make_mxfp4.py.
#[test]
fn experts_in_mxfp4_are_what_transformers_makes_of_them() {
    let oracle = include_bytes!("../mxfp4/experts.safetensors");
    let oracle = safetensors::SafeTensors::deserialize(oracle).unwrap();
    let json = json!({
        "model_type": "gpt_oss", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 20, "intermediate_size": 32, "num_local_experts": 2,
        "num_experts_per_tok": 1, "sliding_window": 5, "rope_theta": 1000,
    });
    let (config, _) = ModelConfig::from_hf_json(&json.to_string()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &config, Dtype::Bf16, ALL_BYTES, &made_up(&config));
    let path = dir.path().join("model.safetensors");
    let saved = fs::read(&path).unwrap();
    let saved = safetensors::SafeTensors::deserialize(&saved).unwrap();
    let experts = "model.layers.0.mlp.experts.";
    let written = |with_blocks: bool, but: Option<&str>| {
        let is_expert =
            |name: &str| ["gate_up_proj", "down_proj"].iter().any(|part| name == format!("{experts}{part}"));
        let mut tensors: BTreeMap<String, TensorView> =
            saved.tensors().into_iter().filter(|(name, _)| !is_expert(name)).collect();
        let packed = |name: &str| name.ends_with("_blocks") || name.ends_with("_scales");
        let chosen = oracle.tensors().into_iter().filter(|(name, _)| packed(name) == with_blocks);
        let chosen = chosen.filter(|(name, _)| Some(&name[..]) != but);
        tensors.extend(chosen.map(|(name, view)| (format!("{experts}{name}"), view)));
        fs::write(&path, serialize(tensors, None).unwrap()).unwrap();
    };
    written(false, None);
    let (expected, _) = load(dir.path(), &config).unwrap();
    written(true, None);
    let (values, notes) = load(dir.path(), &config).unwrap();
    assert!(values == expected && notes.is_empty(), "numbers of blocks");
    let (_, files, _) = weights::open_dir(dir.path()).unwrap();
    let (params, _) = Params::from_files(&device(), &files, &config, LoadOptions::packed(Quantise::AsStored)).unwrap();
    for (param, spec) in params.specs().iter().enumerate().filter(|(_, spec)| spec.kind == ParamKind::Experts(2)) {
        let packed = params.packed(param).unwrap_or_else(|| panic!("{} is not packed", spec.name));
        // A card keeps them in bfloat16.
        let held = if device().name() == "cuda" { "BF16" } else { "MXFP4" };
        assert_eq!(packed.block_type().name(), held, "{}", spec.name);
        assert!(device().unpack(packed) == expected[param], "{}", spec.name);
    }
    written(true, Some("down_proj_scales"));
    let error = load(dir.path(), &config).unwrap_err().to_string();
    assert!(error.contains("missing: model.layers.0.mlp.experts.down_proj_scales"), "{error}");
}

#[test]
fn every_family_and_format_comes_back() {
    for config in tiny_configs() {
        let params = made_up(&config);
        let specs = names::param_specs(&config);
        for (dtype, shard_bytes) in
            [(Dtype::F32, ALL_BYTES), (Dtype::F32, 700), (Dtype::Bf16, 500), (Dtype::F16, ALL_BYTES)]
        {
            let dir = tempfile::tempdir().unwrap();
            save(dir.path(), &config, dtype, shard_bytes, &params);
            let (read, open, _) = weights::open_dir(dir.path()).unwrap();
            assert_eq!(read, config);
            open.check(&config).unwrap();
            let (loaded, notes) = load(dir.path(), &config).unwrap();
            for ((spec, before), after) in specs.iter().zip(&params).zip(&loaded) {
                let expected: Vec<f32> = before.iter().map(|value| round(*value, dtype, spec.kind)).collect();
                assert_eq!(after, &expected, "{} as {dtype:?}", spec.name);
            }
            let copies = 2 * config.mtp_depth;
            let note = format!("{copies} copies of embedding and head in MTP layers are ignored");
            assert_eq!(notes, if copies > 0 { vec![note] } else { vec![] });
        }
    }
}

#[test]
fn fp8_comes_back_within_its_precision_and_then_exactly() {
    for config in tiny_configs() {
        let params = made_up(&config);
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        save(dirs[0].path(), &config, Dtype::Fp8, ALL_BYTES, &params);
        let (loaded, _) = load(dirs[0].path(), &config).unwrap();
        for ((spec, before), after) in names::param_specs(&config).iter().zip(&params).zip(&loaded) {
            for (before, after) in before.iter().zip(after) {
                assert!((before - after).abs() <= before.abs() / 16.0 + 1e-5, "{}: {before} became {after}", spec.name);
            }
        }
        save(dirs[1].path(), &config, Dtype::Fp8, ALL_BYTES, &loaded);
        let (again, _) = load(dirs[1].path(), &config).unwrap();
        for (loaded, again) in loaded.iter().flatten().zip(again.iter().flatten()) {
            assert!((loaded - again).abs() <= 1e-6 * loaded.abs(), "{loaded} became {again}");
        }
        let tensors = safetensors_of(&dirs[0].path().join("model.safetensors"));
        let scaled = tensors.values().filter(|(dtype, ..)| *dtype == FileDtype::F8_E4M3).count();
        let scales = tensors.keys().filter(|name| name.ends_with(".weight_scale_inv")).count();
        assert!(scaled > 0 && scaled == scales, "{scaled} tensors, {scales} scales");
    }
}

#[test]
fn files_are_laid_out_as_on_the_hub() {
    let config = &tiny_configs()[3];
    let params = made_up(config);
    let dir = tempfile::tempdir().unwrap();
    save(&dir.path().join("one"), config, Dtype::Bf16, ALL_BYTES, &params);
    assert_eq!(files(&dir.path().join("one")), ["config.json", "model.safetensors"]);
    let bytes = fs::read(dir.path().join("one/model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");

    save(&dir.path().join("many"), config, Dtype::Bf16, 1500, &params);
    let names = files(&dir.path().join("many"));
    assert_eq!(names[..3], ["config.json", "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"]);
    let rest = ["model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors", "model.safetensors.index.json"];
    assert_eq!(names[3..], rest);
    let index = fs::read_to_string(dir.path().join("many/model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let elements: usize = params.iter().map(Vec::len).sum();
    assert_eq!(index["metadata"]["total_size"], json!(2 * elements));
    assert_eq!(index["weight_map"]["model.embed_tokens.weight"], json!("model-00001-of-00004.safetensors"));

    let error =
        weights::save_dir(&dir.path().join("many"), config, Dtype::Bf16, 1500, &|i| Cow::Borrowed(&params[i][..]))
            .unwrap_err();
    assert!(matches!(&error, WeightsError::Occupied { .. }));
    assert!(error.to_string().contains("many already holds weights (model"), "{error}");
}

pub type Tensors = BTreeMap<String, (FileDtype, Vec<usize>, Vec<u8>)>;

pub fn safetensors_of(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let own = |(name, view): (&str, TensorView)| {
        (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    file.iter().map(own).collect()
}

pub fn to_bytes(tensors: &Tensors) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    serialize(views, None).unwrap()
}

fn insert(tensors: &mut Tensors, name: &str, shape: &[usize]) {
    let data = vec![0; 4 * shape.iter().product::<usize>()];
    tensors.insert(name.to_owned(), (FileDtype::F32, shape.to_vec(), data));
}

/// Saves `config` in f32, lets `change` edit its tensors, and loads.
fn load_changed(config: &ModelConfig, change: impl FnOnce(&mut Tensors)) -> Result<Vec<String>, String> {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), config, Dtype::F32, ALL_BYTES, &made_up(config));
    let path = dir.path().join("model.safetensors");
    let mut tensors = safetensors_of(&path);
    change(&mut tensors);
    fs::write(&path, to_bytes(&tensors)).unwrap();
    let result = load(dir.path(), config).map(|(_, notes)| notes);
    result.map_err(|error| error.to_string().replace(&dir.path().display().to_string(), "DIR"))
}

#[test]
fn all_differences_are_in_one_message() {
    let error = load_changed(&tiny_configs()[3], |tensors| {
        tensors.remove("model.norm.weight");
        tensors.remove("model.layers.1.self_attn.k_proj.bias");
        insert(tensors, "model.layers.0.self_attn.o_proj.bias", &[12]);
        insert(tensors, "model.layers.2.mlp.up_proj.weight", &[10, 12]);
        insert(tensors, "model.layers.0.mlp.down_proj.weight", &[10, 12]);
        tensors.insert("lm_head.weight".into(), (FileDtype::I64, vec![20, 12], vec![0; 8 * 240]));
    });
    assert_eq!(
        error.unwrap_err(),
        "the weights in DIR do not fit the configuration: 2 missing, 2 surplus, 1 misshapen, 1 of an unsupported type\n  \
         missing: model.layers.1.self_attn.k_proj.bias, model.norm.weight\n  \
         surplus: model.layers.0.self_attn.o_proj.bias, model.layers.2.mlp.up_proj.weight\n  \
         misshapen: model.layers.0.mlp.down_proj.weight [10, 12] instead of [12, 10]\n  \
         of an unsupported type: lm_head.weight I64"
    );
    let error = load_changed(&tiny_configs()[3], |tensors| {
        (0..25).for_each(|i| insert(tensors, &format!("extra.{i:02}"), &[1]));
    });
    let error = error.unwrap_err();
    assert!(error.contains(": 25 surplus\n  surplus: extra.00, ") && error.ends_with("extra.19 and 5 more"), "{error}");
}

#[test]
fn nothing_is_handed_out_unless_everything_fits() {
    let config = &tiny_configs()[4];
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), config, Dtype::F32, ALL_BYTES, &made_up(config));
    let other = ModelConfig { layers: 3, ..config.clone() };
    let error = weights::load_dir(dir.path(), &other, &mut |_, _, _, _| panic!("handed out")).unwrap_err();
    assert!(error.to_string().contains("9 missing"), "{error}");
}

#[test]
fn what_may_be_ignored_is_noted() {
    let configs = tiny_configs();
    // A table that older files carry.
    let notes = load_changed(&configs[4], |tensors| {
        insert(tensors, "model.layers.0.self_attn.rotary_emb.inv_freq", &[3]);
    });
    assert_eq!(notes, Ok(vec![]));
    // The head beside a tied embedding.
    let copy =
        |tensors: &mut Tensors| tensors.insert("lm_head.weight".into(), tensors["model.embed_tokens.weight"].clone());
    let notes = load_changed(&configs[4], |tensors| drop(copy(tensors)));
    assert_eq!(notes, Ok(vec![]));
    let error = load_changed(&configs[4], |tensors| {
        copy(tensors);
        tensors.get_mut("lm_head.weight").unwrap().2[0] ^= 1;
    });
    assert!(error.unwrap_err().ends_with(
        "contradicting: lm_head.weight differs from model.embed_tokens.weight, although tie_word_embeddings is true"
    ));
    // MTP layers that the configuration does not mention, and the reverse.
    let config = &configs[0];
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), config, Dtype::F32, ALL_BYTES, &made_up(config));
    let (_, notes) = load(dir.path(), &ModelConfig { mtp_depth: 0, ..config.clone() }).unwrap();
    assert_eq!(notes, ["32 tensors of MTP layers from layer 2 on are ignored"]);
    let path = dir.path().join("model.safetensors");
    let mut tensors = safetensors_of(&path);
    tensors.retain(|name, _| !name.starts_with("model.layers.2."));
    fs::write(&path, to_bytes(&tensors)).unwrap();
    let (read, _, notes) = weights::open_dir(dir.path()).unwrap();
    assert_eq!(read, ModelConfig { mtp_depth: 0, ..config.clone() });
    assert_eq!(notes[0].to_string(), "the files hold no MTP layer; 1 announced in config.json is left out");
}

/// Saves in f32 and lets `change` edit the configuration and the tensors.
pub fn changed_dir(config: &ModelConfig, change: impl FnOnce(&mut Value, &mut Tensors)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), config, Dtype::F32, ALL_BYTES, &made_up(config));
    let paths = ["config.json", "model.safetensors"].map(|name| dir.path().join(name));
    let mut json = serde_json::from_str(&fs::read_to_string(&paths[0]).unwrap()).unwrap();
    let mut tensors = safetensors_of(&paths[1]);
    change(&mut json, &mut tensors);
    fs::write(&paths[0], json.to_string()).unwrap();
    fs::write(&paths[1], to_bytes(&tensors)).unwrap();
    dir
}

#[test]
fn a_head_that_is_nowhere_is_the_embedding_unless_the_configuration_says_otherwise() {
    for tied in tiny_configs().into_iter().filter(|config| config.tied_head) {
        for silence in [None, Some(Value::Null)] {
            let dir = changed_dir(&tied, |json, _| {
                json.as_object_mut().unwrap().shift_remove("tie_word_embeddings").unwrap();
                silence.iter().for_each(|null| json["tie_word_embeddings"] = null.clone());
            });
            let (read, _, notes) = weights::open_dir(dir.path()).unwrap();
            assert_eq!(read, tied);
            let said =
                "the files hold no lm_head.weight, and config.json no `tie_word_embeddings`: the embedding is the head";
            assert!(notes.iter().any(|note| note.0 == said), "{notes:?}");
            assert_eq!(load(dir.path(), &read).unwrap().0, made_up(&tied));
        }
        // Said to be untied, it is missing.
        let dir = changed_dir(&tied, |json, _| json["tie_word_embeddings"] = false.into());
        let error = weights::open_dir(dir.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.ends_with("missing: lm_head.weight"), "{error}");
    }
    // A head that is there is a head: no family ties by default.
    let untied = &tiny_configs()[5];
    let dir = changed_dir(untied, |json, _| {
        json.as_object_mut().unwrap().shift_remove("tie_word_embeddings");
    });
    assert_eq!(&weights::open_dir(dir.path()).unwrap().0, untied);
}

#[test]
fn f64_tensors_are_rounded_to_f32() {
    for config in tiny_configs() {
        let expected = made_up(&config);
        // Less than half a step of f32 away: the nearest f32 is the one it was.
        let to_f64 = |bytes: &[u8]| -> Vec<u8> {
            let values = bytes.as_chunks::<4>().0.iter().map(|word| f64::from(f32::from_le_bytes(*word)));
            values.flat_map(|value| (value * (1.0 + 1e-9)).to_le_bytes()).collect()
        };
        let dir = changed_dir(&config, |_, tensors| {
            for (dtype, _, data) in tensors.values_mut() {
                (*dtype, *data) = (FileDtype::F64, to_f64(data));
            }
        });
        let (read, files, _) = weights::open_dir(dir.path()).unwrap();
        assert_eq!((&read, load(dir.path(), &config).unwrap().0), (&config, expected.clone()));
        let plain = changed_dir(&config, |_, _| {});
        let (_, plain_files, _) = weights::open_dir(plain.path()).unwrap();
        for options in [LoadOptions::packed(Quantise::AsStored), LoadOptions::mapped(Quantise::AsStored)] {
            let logprobs = [&files, &plain_files].map(|files| {
                let (params, _) = Params::from_files(&device(), files, &config, options).unwrap();
                let batch = Batch { tokens: vec![1, 5, 2], targets: vec![5, 2, 9], starts: vec![0, 3] };
                Model::new(config.clone(), 3).logprobs(&params, &Execution::new(device()), &batch)
            });
            assert_eq!(logprobs[0], logprobs[1]);
        }
    }
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_not_opened() {
    let config = &tiny_configs()[4];
    for name in ["config.json", "model.safetensors"] {
        let dir = changed_dir(config, |_, _| {});
        let path = dir.path().join(name);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let error = weights::open_dir(dir.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.ends_with("not a regular file"), "{name}: {error}");
        fs::remove_file(&path).unwrap();
        // Nobody writes to it: opening it would wait for ever.
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = weights::open_dir(dir.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.ends_with("not a regular file"), "{name}: {error}");
    }
}

#[test]
fn fp8_without_scales_is_refused() {
    let config = &tiny_configs()[4];
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), config, Dtype::Fp8, ALL_BYTES, &made_up(config));
    let path = dir.path().join("model.safetensors");
    let mut tensors = safetensors_of(&path);
    tensors.remove("model.layers.0.self_attn.q_proj.weight_scale_inv");
    insert(&mut tensors, "model.layers.0.self_attn.k_proj.weight_scale_inv", &[2, 1]);
    insert(&mut tensors, "model.norm.weight_scale_inv", &[1, 1]);
    fs::write(&path, to_bytes(&tensors)).unwrap();
    let error = load(dir.path(), config).unwrap_err().to_string();
    let (_, names) = error.split_once('\n').unwrap();
    assert_eq!(
        names,
        "  missing: model.layers.0.self_attn.q_proj.weight_scale_inv\n  \
         surplus: model.norm.weight_scale_inv\n  \
         misshapen: model.layers.0.self_attn.k_proj.weight_scale_inv [2, 1] instead of [1, 1]"
    );
}

/// A file with this header text (its length before it) and this much data.
fn file_with(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn damaged_files_are_refused_in_words() {
    let tensor = |offsets: &str| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#);
    let two = |a: &str, b: &str| format!(r#"{{"a":{},"b":{}}}"#, tensor(a), tensor(b));
    let mut huge = file_with("{}", 0);
    huge[..8].copy_from_slice(&(1u64 << 30).to_le_bytes());
    let mut too_long = file_with("{}", 0);
    too_long[0] = 200;
    let not_utf8 = [&4u64.to_le_bytes()[..], b"{\"\xff\"}"].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "it has 0 bytes, less than the length of a header"),
        (vec![1, 2, 3], "it has 3 bytes, less than the length of a header"),
        (huge, "its header claims more than 100 MB"),
        (too_long, "its header claims more than the 10 bytes of the file"),
        (not_utf8, "invalid UTF-8 in header: invalid utf-8 sequence of 1 bytes from index 2"),
        (
            file_with("[]", 0),
            "invalid JSON in header: invalid type: sequence, expected struct HashMetadata at line 1 column 0",
        ),
        (
            file_with(&format!(r#"{{"a":{}}}"#, tensor("[0,8]")), 4),
            "its tensors do not add up to the 66 bytes of the file (truncated?)",
        ),
        (
            file_with(&two("[0,8]", "[4,12]"), 12),
            "the data of `b` does not begin where the tensor before it ends (overlap, gap or repeated name)",
        ),
        (
            file_with(&two("[0,8]", "[16,24]"), 24),
            "the data of `b` does not begin where the tensor before it ends (overlap, gap or repeated name)",
        ),
        (
            file_with(&format!(r#"{{"a":{},"a":{}}}"#, tensor("[0,8]"), tensor("[8,16]")), 16),
            "the data of `a` does not begin where the tensor before it ends (overlap, gap or repeated name)",
        ),
        (
            file_with(&format!(r#"{{"a":{}}}"#, tensor("[0,4]")), 4),
            "a tensor's shape and type do not give its number of bytes",
        ),
        (
            file_with(r#"{"a":{"dtype":"F32","shape":[9223372036854775807,16],"data_offsets":[0,4]}}"#, 4),
            "a tensor's shape overflows",
        ),
    ];
    for (bytes, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        fs::write(&path, &bytes).unwrap();
        let error = weights::Files::open(dir.path()).err().expect(expected).to_string();
        assert_eq!(error, format!("{} is not a valid safetensors file: {expected}", path.display()));
    }
}

#[test]
fn damaged_directories_are_refused_in_words() {
    let config = &tiny_configs()[4];
    let params = made_up(config);
    let case = |change: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), config, Dtype::F32, 2000, &params);
        change(dir.path());
        let error = weights::open_dir(dir.path()).err().expect("damaged").to_string();
        error.replace(&dir.path().display().to_string(), "DIR")
    };
    let index = |text: &str| {
        let text = text.to_owned();
        move |dir: &Path| fs::write(dir.join("model.safetensors.index.json"), &text).unwrap()
    };
    let index_path = "DIR/model.safetensors.index.json";
    assert_eq!(
        case(&|dir| fs::remove_file(dir.join("model-00002-of-00005.safetensors")).unwrap()),
        "cannot read DIR/model-00002-of-00005.safetensors: No such file or directory (os error 2)"
    );
    assert_eq!(case(&index("{}")), format!("{index_path} is not a valid index: it has no object `weight_map`"));
    assert_eq!(
        case(&index(r#"{"weight_map": {}}"#)),
        format!("{index_path} is not a valid index: its `weight_map` is empty")
    );
    for file in ["../secret", "/etc/passwd", ".", "a/b"] {
        assert_eq!(
            case(&index(&json!({"weight_map": {"x": file}}).to_string())),
            format!("{index_path} is not a valid index: `x` is in \"{file}\", which is not a file name")
        );
    }
    assert_eq!(
        case(&index(&json!({"weight_map": {"nothing": "model-00001-of-00005.safetensors"}}).to_string())),
        format!(
            "{index_path} is not a valid index: 1 tensors are not where it says: \
             nothing in model-00001-of-00005.safetensors"
        )
    );
    let repeated = case(&|dir| {
        let [first, second] = [1, 2].map(|i| dir.join(format!("model-0000{i}-of-00005.safetensors")));
        let mut tensors = safetensors_of(&second);
        tensors.extend(safetensors_of(&first));
        fs::write(second, to_bytes(&tensors)).unwrap();
    });
    assert!(repeated.contains(
        "repeated: model.embed_tokens.weight (in model-00001-of-00005.safetensors and model-00002-of-00005.safetensors)"
    ));
    assert_eq!(
        case(&|dir| fs::write(dir.join("config.json"), r#"{"model_type": "bert"}"#).unwrap()),
        "in DIR: model_type `bert` is not supported (supported: deepseek_v3, kimi_k2, deepseek_v32, deepseek_v4, deepseek_v2, qwen3, qwen3_moe, qwen2, glm4_moe, gpt_oss, glm4, phi3, gemma2, gemma3_text, mistral, llama)"
    );
    assert_eq!(
        case(&|dir| fs::write(dir.join("config.json"), " ".repeat(1 << 21)).unwrap()),
        "DIR/config.json has 2097152 bytes, more than the 1048576 expected of such a file"
    );
}

#[test]
fn directories_without_weights() {
    let dir = tempfile::tempdir().unwrap();
    let message = |dir: &Path| weights::Files::open(dir).err().expect("no weights").to_string();
    let plain = format!("{} holds neither model.safetensors nor model.safetensors.index.json", dir.path().display());
    assert_eq!(message(dir.path()), plain);
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    assert_eq!(
        message(dir.path()),
        format!("{plain}; its PyTorch files are not read, because loading them can run code")
    );
    let nowhere = dir.path().join("nowhere");
    assert_eq!(message(&nowhere), format!("cannot read {}: No such file or directory (os error 2)", nowhere.display()));
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert!(message(dir.path()).ends_with("model.safetensors: not a regular file"));
}

/// A saved model and the bytes of one of its files.
fn saved(config: usize, shard_bytes: u64, file: &str) -> (TempDir, Vec<u8>) {
    let config = &tiny_configs()[config];
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), config, Dtype::F16, shard_bytes, &made_up(config));
    let bytes = fs::read(dir.path().join(file)).unwrap();
    (dir, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(2),
        ..ProptestConfig::default()
    })]

    /// Cut files and files with changed bytes, most of them in the header: an error or numbers, and never a panic.
    #[test]
    fn damaged_bytes_never_panic(
        edits in prop::collection::vec((0usize..6000, any::<u8>()), 0..6),
        cut in prop::option::of(0usize..20000),
        length in prop::option::of(any::<u64>()),
    ) {
        static SAVED: LazyLock<(TempDir, Vec<u8>)> = LazyLock::new(|| saved(2, ALL_BYTES, "model.safetensors"));
        let (dir, original) = &*SAVED;
        let mut bytes = original.clone();
        for (at, byte) in edits {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Some(length) = length {
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        let _ = weights::load_dir(dir.path(), &tiny_configs()[2], &mut |_, _, _, _| {});
    }

    /// The same for the index.
    #[test]
    fn damaged_indexes_never_panic(edits in prop::collection::vec((0usize..3000, any::<u8>()), 1..4)) {
        static SAVED: LazyLock<(TempDir, Vec<u8>)> = LazyLock::new(|| saved(4, 500, "model.safetensors.index.json"));
        let (dir, original) = &*SAVED;
        let mut bytes = original.clone();
        for (at, byte) in edits {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        fs::write(dir.path().join("model.safetensors.index.json"), bytes).unwrap();
        let _ = weights::load_dir(dir.path(), &tiny_configs()[4], &mut |_, _, _, _| {});
    }
}
