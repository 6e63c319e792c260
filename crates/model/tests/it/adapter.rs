//! Adapters: logits, gradients and merged weights against PEFT, its files in and out, and what is refused.
//!
//! The files in `tests/adapters` are written by `scripts/oracle/make_adapters.py`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;
use wels_cpu::testing::device;
use wels_device::{Coefficient, Tensor};
use wels_model::adapter::{Adapter, AdapterConfig, AdapterFiles, BaseName, Targets};
use wels_model::config::{CacheLayout, Dtype};
use wels_model::frozen::{BlockType, Held};
use wels_model::gguf::{self, GgufFile};
use wels_model::model::{Losses, Model, Objective};
use wels_model::names::param_specs;
use wels_model::paged::{CacheDtype, Chunk, PagedCache};
use wels_model::params::Params;
use wels_model::tape::Execution;
use wels_model::weights::{Files, save_dir};

use crate::oracle::Oracle;

const CASES: [&str; 5] =
    ["llama_tied_smollm2", "qwen2_untied", "qwen3_untied", "deepseek_v3_groups_yarn", "deepseek_v3_no_q_lora"];
/// A part of the largest logit; a relative error of a gradient, by norm.
const TOLERANCE: f64 = 1e-5;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/adapters").join(name)
}

fn open(oracle: &Oracle, folder: &Path) -> Result<Adapter, wels_model::adapter::AdapterError> {
    AdapterFiles::open(folder)?.load(&oracle.config, &|_| device())
}

fn values(file: &[u8], name: &str) -> Vec<f64> {
    let tensors = SafeTensors::deserialize(file).expect("a safetensors file");
    let view = tensors.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    view.data().as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
}

fn host(tensor: &Tensor) -> Vec<f32> {
    tensor.to_host().into_owned()
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn logits_and_gradients_equal_those_of_peft() {
    for name in CASES {
        let (oracle, expected) = (Oracle::named(name), fs::read(folder(name).join("oracle.safetensors")).expect(name));
        let model = Model::new(oracle.config.clone(), 64);
        let mut params = oracle.params();
        params.attach(&open(&oracle, &folder(name)).expect(name));
        let (execution, batch) = (Execution::new(device()), &oracle.batch);
        let logits = host(&model.logits(&params, &execution, &batch.tokens, &batch.starts));
        let theirs = values(&expected, "logits");
        let largest = theirs.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        let error = logits.iter().zip(&theirs).map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, f64::max) / largest;
        assert!(error <= TOLERANCE, "{name}: logits differ by {error:.1e} of the largest");

        let mut grads = model.grads_of(&params, 1);
        let objective = Objective {
            coefficient: Coefficient::Uniform(1.0 / batch.tokens.len() as f32),
            mtp_coefficient: 0.0,
            balance_coefficient: 0.0,
            indexer_coefficient: 0.0,
            teacher: None,
        };
        grads.begin();
        model.accumulate(&params, &mut grads, &execution, batch, &objective, &mut Losses::default());
        grads.finish();
        let mut worst = 0.0_f64;
        for (param, (spec, gradient)) in params.specs().iter().zip(grads.values()).enumerate() {
            assert_eq!(gradient.is_empty(), param < params.frozen(), "{name}: {}", spec.name);
            if gradient.is_empty() {
                continue;
            }
            let theirs = values(&expected, &format!("gradients.base_model.model.{}", spec.name));
            let difference = norm(gradient.to_host().iter().zip(&theirs).map(|(x, y)| f64::from(*x) - y));
            worst = worst.max(difference / norm(theirs.iter().copied()));
        }
        println!("{name}: logits {error:.1e}, gradients {worst:.1e}");
        assert!(worst <= TOLERANCE, "{name}: a gradient is off by {worst:.1e}");
        let adapter = 4 * params.adapter().expect("attached").len();
        assert_eq!(grads.bytes(), adapter, "{name}: what is frozen takes no memory");
    }
}

/// Weights that a file has in bf16 are held so while an adapter is learnt, and gradients have the bits of f32.
#[test]
fn a_base_in_bf16_is_held_narrower_and_changes_no_bit() {
    for name in CASES {
        let (oracle, dir) = (Oracle::named(name), TempDir::new().unwrap());
        let params = oracle.params();
        save_dir(dir.path(), &oracle.config, Dtype::Bf16, 1 << 30, &|param| params.tensors()[param].to_host()).unwrap();
        let (mut plain, files) = (Params::zeros(&device(), &oracle.config), Files::open(dir.path()).expect(name));
        files.load(&oracle.config, &mut |param, row, _, values| plain.set_rows(param, row, values)).expect(name);
        let mut held = Params::frozen_from_files(&device(), &files, &oracle.config, Held::AsStored).expect(name);
        let matrices = |params: &Params| {
            let of_layers = (0..params.specs().len()).filter(|param| params.specs()[*param].kind.is_layer_matrix());
            of_layers.map(|param| params.bytes(param, CacheLayout::Expanded)).sum::<usize>()
        };
        // Rows of so small matrices are filled up to whole panels.
        assert!(matrices(&held) < matrices(&plain), "{name}: {} of {}", matrices(&held), matrices(&plain));
        let [of_plain, of_held] = [&mut plain, &mut held].map(|params| learnt(name, &oracle, params));
        assert!(of_plain == of_held, "{name}");
    }
}

/// The log-probabilities of a pass with PEFT's adapter, and the gradients of it.
fn learnt(name: &str, oracle: &Oracle, params: &mut Params) -> (Vec<f32>, Vec<Vec<f32>>) {
    let (model, execution) = (Model::new(oracle.config.clone(), 64), Execution::new(device()));
    params.attach(&open(oracle, &folder(name)).expect(name));
    let mut grads = model.grads_of(params, 1);
    let objective = Objective {
        coefficient: Coefficient::Uniform(1.0 / oracle.batch.tokens.len() as f32),
        mtp_coefficient: 0.0,
        balance_coefficient: 0.0,
        indexer_coefficient: 0.0,
        teacher: None,
    };
    grads.begin();
    let logp = model.accumulate(params, &mut grads, &execution, &oracle.batch, &objective, &mut Losses::default());
    grads.finish();
    (logp, grads.values().iter().map(host).collect())
}

/// An oracle's weights in a directory, and as they are held.
fn held(oracle: &Oracle, dir: &Path, dtype: Dtype, held: Held) -> Params {
    let params = oracle.params();
    save_dir(dir, &oracle.config, dtype, 1 << 30, &|param| params.tensors()[param].to_host()).expect("written");
    Params::frozen_from_files(&device(), &Files::open(dir).expect("files"), &oracle.config, held).expect("held")
}

/// The same numbers as plain tensors.
fn plain(params: &Params) -> Params {
    let mut plain = params.clone();
    for param in 0..params.specs().len() {
        if let Some(packed) = params.packed(param) {
            plain.set_values(param, &device().unpack(packed));
        }
    }
    plain
}

/// QLoRA: what is learnt beside blocks has the bits of what is learnt beside their numbers in f32, and the engine's
/// pass those of training.
#[test]
fn a_base_in_blocks_changes_no_bit_of_its_numbers_in_f32() {
    for (case, block_type) in
        CASES.into_iter().zip([BlockType::Q4_0, BlockType::Q8_0, BlockType::Q4_1, BlockType::Q8_0, BlockType::Q4_0])
    {
        let (oracle, dir) = (Oracle::named(case), TempDir::new().unwrap());
        let mut narrow = held(&oracle, dir.path(), Dtype::Bf16, Held::As(block_type));
        let kept = |param: &usize| narrow.packed(*param).map(|packed| packed.block_type());
        for param in 0..narrow.specs().len() {
            let (kind, found) = (narrow.specs()[param].kind, kept(&param));
            let expected = if kind.is_layer_matrix() { block_type } else { BlockType::Bf16 };
            assert_eq!(found, kind.is_packable().then_some(expected), "{case}: {}", narrow.specs()[param].name);
        }
        let mut wide = plain(&narrow);
        let (of_wide, of_narrow) = (learnt(case, &oracle, &mut wide), learnt(case, &oracle, &mut narrow));
        assert!(of_wide == of_narrow, "{case}");
        assert_ne!(of_narrow, learnt(case, &oracle, &mut oracle.params()), "{case}: as if nothing were quantised");

        let (model, execution) = (Model::new(oracle.config.clone(), 64), Execution::new(device()));
        let text = &oracle.batch.tokens[..17];
        let mut cache = PagedCache::new(&device(), &oracle.config, CacheLayout::Expanded, CacheDtype::F32, 2);
        let chunks = [0..12, 12..17].map(|part| Chunk {
            tokens: &text[part.clone()],
            past: part.start,
            pages: &[1, 0],
            logits: part.len(),
            states: 0,
        });
        let sampled: Vec<f32> = chunks
            .iter()
            .flat_map(|chunk| host(&model.step(&narrow, &execution, &mut cache, &[*chunk]).logits))
            .collect();
        assert_eq!(sampled, host(&model.logits(&narrow, &execution, text, &[0, 17])), "{case}");
    }
}

/// The blocks of a GGUF file are taken as they are, with the rows in the order of directories.
#[test]
fn a_base_from_a_gguf_file_keeps_its_blocks() {
    for case in ["llama_tied_smollm2", "qwen3_untied"] {
        let (oracle, dir) = (Oracle::named(case), TempDir::new().unwrap());
        let (path, params) = (dir.path().join("base.gguf"), oracle.params());
        let values = |param: usize| params.tensors()[param].to_host();
        gguf::save(&path, &oracle.config, BlockType::Q4_0, &[], &values, &mut |_, _| {}).expect("written");
        let file = GgufFile::open(&path).expect("a file");
        let mut narrow = Params::frozen_from_gguf(&device(), &file, &oracle.config, Held::AsStored).expect("held");
        let bytes: usize = (0..narrow.specs().len()).map(|param| narrow.bytes(param, CacheLayout::Expanded)).sum();
        assert!(bytes < 4 * params.tensors().iter().map(Tensor::len).sum::<usize>() * 3 / 4, "{case}: {bytes} bytes");
        let mut wide = Params::zeros(&device(), &oracle.config);
        file.load(&oracle.config, &mut |param, row, _, values| wide.set_rows(param, row, values)).expect("loaded");
        if case.starts_with("llama") {
            for param in 0..wide.specs().len() {
                let spec = wide.specs()[param].clone();
                if spec.name.contains("q_proj") || spec.name.contains("k_proj") {
                    let rows =
                        gguf::split_rows(&host(&wide.tensors()[param]), oracle.config.attention.qk_dim(), spec.cols);
                    wide.set_values(param, &rows);
                }
            }
        }
        assert!(learnt(case, &oracle, &mut wide) == learnt(case, &oracle, &mut narrow), "{case}");
    }
}

/// Against PyTorch beside the numbers of gguf-py's blocks: `scripts/oracle/make_qlora.py`.
#[test]
fn gradients_beside_blocks_equal_those_of_pytorch() {
    let cases = [
        ("llama_tied_smollm2", BlockType::Q4_0),
        ("qwen3_untied", BlockType::Q8_0),
        ("qwen3_untied", BlockType::Q4_1),
        ("deepseek_v3_no_q_lora", BlockType::Q4_0),
    ];
    for (name, block_type) in cases {
        let (oracle, dir) = (Oracle::named(name), TempDir::new().unwrap());
        let file = folder(name).join(format!("{}.safetensors", block_type.name().to_lowercase()));
        let expected = fs::read(file).expect(name);
        let mut params = held(&oracle, dir.path(), Dtype::F32, Held::As(block_type));
        let (_, gradients) = learnt(name, &oracle, &mut params);
        let model = Model::new(oracle.config.clone(), 64);
        let logits = model.logits(&params, &Execution::new(device()), &oracle.batch.tokens, &oracle.batch.starts);
        let theirs = values(&expected, "logits");
        let largest = theirs.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        let logits = host(&logits);
        let error = logits.iter().zip(&theirs).map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, f64::max) / largest;
        let mut worst = 0.0_f64;
        for (spec, gradient) in params.specs().iter().zip(&gradients).skip(params.frozen()) {
            let theirs = values(&expected, &format!("gradients.base_model.model.{}", spec.name));
            let difference = norm(gradient.iter().zip(&theirs).map(|(x, y)| f64::from(*x) - y));
            worst = worst.max(difference / norm(theirs.iter().copied()));
        }
        println!("{name} beside {}: logits {error:.1e}, gradients {worst:.1e}", block_type.name());
        assert!(error <= TOLERANCE && worst <= TOLERANCE, "{name}: logits {error:.1e}, gradients {worst:.1e}");
    }
}

#[test]
fn merged_weights_equal_those_of_peft() {
    for name in CASES {
        let (oracle, expected) = (Oracle::named(name), fs::read(folder(name).join("oracle.safetensors")).expect(name));
        let (mut params, adapter) = (oracle.params(), open(&oracle, &folder(name)).expect(name));
        params.merge(&adapter);
        let mut worst = 0.0_f64;
        for pair in adapter.pairs() {
            let theirs = values(&expected, &format!("merged.{}", params.specs()[pair.param].name));
            let merged = params.tensors()[pair.param].to_host();
            worst = merged.iter().zip(&theirs).map(|(x, y)| (f64::from(*x) - y).abs()).fold(worst, f64::max);
        }
        println!("{name}: merged weights differ by up to {worst:.1e}");
        assert!(worst <= 1e-6, "{name}: {worst:.1e}");
    }
}

#[test]
fn files_are_those_of_peft() {
    for name in CASES {
        let (oracle, own) = (Oracle::named(name), TempDir::new().unwrap());
        let adapter = open(&oracle, &folder(name)).expect(name);
        let base = BaseName { name: Some(name.into()), revision: None, sha256: Some("ab".into()) };
        adapter.save(own.path(), &oracle.config, &base).expect("written");
        let read = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).expect("weights");
        let (ours, theirs) = (read(own.path()), read(&folder(name)));
        let names = |file: &[u8]| -> Vec<String> {
            let mut names = SafeTensors::deserialize(file)
                .expect("safetensors")
                .names()
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>();
            names.sort();
            names
        };
        assert_eq!(names(&ours), names(&theirs), "{name}");
        names(&ours).iter().for_each(|tensor| assert_eq!(values(&ours, tensor), values(&theirs, tensor), "{tensor}"));
        let config = |folder: &Path| -> Value {
            serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).expect("config")).expect("JSON")
        };
        let (ours, theirs) = (config(own.path()), config(&folder(name)));
        for (key, value) in ours.as_object().expect("an object") {
            match key.as_str() {
                "target_modules" => assert!(!value.as_array().expect("a list").is_empty()),
                _ => assert_eq!(*value, theirs[key], "{name}: {key}"),
            }
        }
        let again = AdapterFiles::open(own.path()).expect("opened");
        assert_eq!(again.base, base);
        let again = again.load(&oracle.config, &|_| device()).expect("loaded");
        assert_eq!(again.config(), adapter.config());
        adapter.save(own.path(), &oracle.config, &base).expect("written again");
        assert_eq!(read(own.path()), read(own.path()), "the same bytes each time");
    }
}

#[test]
fn a_new_adapter_changes_nothing_and_follows_from_the_seed() {
    let oracle = Oracle::named("qwen3_untied");
    let config = AdapterConfig { rank: 4, alpha: 8.0, rank_stabilised: false, targets: Targets::AllLinear };
    let new = |seed| Adapter::init(&device(), &oracle.config, config.clone(), seed).expect("an adapter");
    let (model, execution) = (Model::new(oracle.config.clone(), 64), Execution::new(device()));
    let logits = |params: &Params| host(&model.logits(params, &execution, &oracle.batch.tokens, &oracle.batch.starts));
    let mut params = oracle.params();
    let before = logits(&params);
    params.attach(&new(1));
    assert_eq!(logits(&params), before);
    assert_eq!(params.detach().expect("attached").len(), new(1).len());
    assert_eq!((params.frozen(), logits(&params)), (0, before));
    let a = |seed| host(&new(seed).pairs()[0].a);
    assert_eq!(a(1), a(1));
    assert_ne!(a(1), a(2));
    let bound = 1.0 / (oracle.config.hidden_size as f32).sqrt();
    let (least, most) = a(1).iter().fold((0.0_f32, 0.0_f32), |(least, most), x| (least.min(*x), most.max(*x)));
    assert!(-bound <= least && least < -0.9 * bound && 0.9 * bound < most && most <= bound, "{least} to {most}");
}

/// Sequences with and without adapters in one step have the bits that they have alone, and those of training.
#[test]
fn a_batch_of_several_adapters_gives_each_its_own_bits() {
    let oracle = Oracle::named("qwen3_untied");
    let (model, execution) = (Model::new(oracle.config.clone(), 64), Execution::new(device()));
    let base = oracle.params();
    let theirs = Arc::new(open(&oracle, &folder("qwen3_untied")).expect("PEFT's"));
    let config = AdapterConfig {
        rank: 3,
        alpha: 9.0,
        rank_stabilised: true,
        targets: Targets::Names(vec!["o_proj".into(), "up_proj".into()]),
    };
    let own = Adapter::init(&device(), &oracle.config, config, 7).expect("an adapter");
    // B is zero where training begins.
    let pairs = own.pairs().iter().cloned().map(|mut pair| {
        pair.b = Tensor::of(&device(), pair.b.rows(), pair.b.cols(), &vec![0.05; pair.b.len()]);
        pair
    });
    let own = Arc::new(Adapter::new(own.config().clone(), pairs.collect()));
    let adapters = [Some(theirs.clone()), None, Some(own), Some(theirs)];
    let texts: Vec<&[u32]> = (0..4).map(|i| &oracle.batch.tokens[i * 9..i * 9 + 5 + 2 * i]).collect();
    let cache = || PagedCache::new(&device(), &oracle.config, CacheLayout::Expanded, CacheDtype::F32, 4);
    let chunk = |i: usize, pages| Chunk { tokens: texts[i], past: 0, pages, logits: texts[i].len(), states: 0 };
    let pages: Vec<[u32; 1]> = (0..4).map(|page| [page]).collect();
    let chunks: Vec<Chunk> = (0..4).map(|i| chunk(i, &pages[i])).collect();
    let together = model.step_adapted(&base, &execution, &mut cache(), &chunks, &[], &adapters);
    let mut alone = Vec::new();
    for (i, adapter) in adapters.iter().enumerate() {
        let own = std::slice::from_ref(adapter);
        let output = model.step_adapted(&base, &execution, &mut cache(), &[chunk(i, &[2])], &[], own);
        let mut params = base.clone();
        adapter.iter().for_each(|adapter| params.attach(adapter));
        let trained = model.logits(&params, &execution, texts[i], &[0, texts[i].len() as u32]);
        assert_eq!(host(&output.logits), host(&trained), "sequence {i} by itself");
        alone.extend(host(&output.logits));
    }
    assert_eq!(host(&together.logits), alone);
}

/// Over pages of latents, where the up-projection's adapter is computed in its absorbed form.
#[test]
fn adapters_over_pages_of_latents_give_the_same_logits() {
    for name in ["deepseek_v3_no_q_lora", "deepseek_v3_groups_yarn"] {
        let oracle = Oracle::named(name);
        let (model, execution) = (Model::new(oracle.config.clone(), 64), Execution::new(device()));
        let adapter = Arc::new(open(&oracle, &folder(name)).expect(name));
        let mut params = oracle.params();
        params.prepare_latent(&model);
        let text = &oracle.batch.tokens[..23];
        let step = |params: &Params, chunks: &[&[u32]], adapters: &[Option<Arc<Adapter>>]| {
            let mut cache = PagedCache::new(&device(), &oracle.config, CacheLayout::Latent, CacheDtype::F32, 8);
            let pages: Vec<[u32; 2]> = (0..chunks.len() as u32).map(|i| [2 * i, 2 * i + 1]).collect();
            let chunks: Vec<Chunk> = chunks
                .iter()
                .zip(&pages)
                .map(|(tokens, pages)| Chunk { tokens, past: 0, pages, logits: tokens.len(), states: 0 })
                .collect();
            host(&model.step_adapted(params, &execution, &mut cache, &chunks, &[], adapters).logits)
        };
        let alone = step(&params, &[text], &[Some(adapter.clone())]);
        let mut attached = params.clone();
        attached.attach(&adapter);
        assert_eq!(step(&attached, &[text], &[]), alone, "{name}: attached");
        let expanded = host(&model.logits(&attached, &execution, text, &[0, text.len() as u32]));
        let largest = expanded.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        let error = alone.iter().zip(&expanded).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) / largest;
        assert!(error < 1e-5, "{name}: logits differ by {error:.1e} of the largest");
        let base = step(&params, &[&text[2..9]], &[]);
        let mixed = step(&params, &[&text[2..9], text], &[None, Some(adapter)]);
        assert_eq!(mixed, [base, alone].concat(), "{name}: mixed");
    }
}

/// A copy of PEFT's directory with another configuration, or other bytes of weights.
fn changed(name: &str, change: impl FnOnce(&mut Value, &mut Vec<u8>)) -> TempDir {
    let (from, to) = (folder(name), TempDir::new().unwrap());
    let mut config = serde_json::from_slice(&fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    let mut weights = fs::read(from.join("adapter_model.safetensors")).unwrap();
    change(&mut config, &mut weights);
    fs::write(to.path().join("adapter_config.json"), config.to_string()).unwrap();
    fs::write(to.path().join("adapter_model.safetensors"), weights).unwrap();
    to
}

#[test]
fn what_is_no_adapter_of_the_model_is_refused() {
    let oracle = Oracle::named("qwen3_untied");
    let refusal = |folder: &Path| open(&oracle, folder).expect_err("refused").to_string();
    let keys = [
        ("use_dora", json!(true), "use_dora = true is not supported"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save = [\"lm_head\"] is not supported"),
        ("peft_type", json!("IA3"), "peft_type = \"IA3\" is not supported"),
        ("bias", json!("all"), "bias = \"all\" is not supported"),
        ("rank_pattern", json!({"q_proj": 8}), "rank_pattern = {\"q_proj\":8} is not supported"),
        ("alpha_pattern", json!({"q_proj": 8}), "alpha_pattern"),
        ("init_lora_weights", json!("pissa"), "init_lora_weights = \"pissa\" is not supported"),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"]), "target_parameters"),
        ("r", json!(0), "r is 0, expected a rank of 1 to 65536"),
        ("r", json!(6), "instead of [6, "),
        ("lora_alpha", json!("much"), "lora_alpha is \"much\", expected a number above 0"),
        ("use_rslora", json!("yes"), "use_rslora is \"yes\", expected true or false"),
    ];
    for (key, value, expected) in keys {
        let dir = changed("qwen3_untied", |config, _| config[key] = value);
        let message = refusal(dir.path());
        assert!(message.contains(expected), "{key}: {message}");
    }
    let message = refusal(&folder("llama_tied_smollm2"));
    assert!(message.contains("does not fit the model") && message.contains("instead of"), "{message}");
    let message = refusal(&folder("deepseek_v3_no_q_lora"));
    assert!(message.contains("kv_a_proj_with_mqa.lora_A.weight: the model has no such module"), "{message}");
    for kept in [0, 7, 100, 2000] {
        let dir = changed("qwen3_untied", |_, weights| weights.truncate(kept));
        assert!(refusal(dir.path()).contains("is not a valid safetensors file"), "{kept} bytes");
    }
    let dir = changed("qwen3_untied", |_, weights| {
        let last = weights.len() - 4;
        weights[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert!(refusal(dir.path()).contains("is not finite"), "{}", refusal(dir.path()));
    fs::remove_file(dir.path().join("adapter_model.safetensors")).unwrap();
    assert!(refusal(dir.path()).contains("there is no adapter_model.safetensors"));
    fs::write(dir.path().join("adapter_model.bin"), "pickled").unwrap();
    let error = open(&oracle, dir.path()).expect_err("refused");
    assert!(error.to_string().contains("loading it can run code") && error.hint().contains("safe_serialization"));
    fs::write(dir.path().join("adapter_config.json"), "{").unwrap();
    fs::write(dir.path().join("adapter_model.safetensors"), "").unwrap();
    assert!(refusal(dir.path()).contains("not a valid adapter_config.json"));
}

#[test]
fn target_modules_are_named_as_in_peft() {
    let matrices = |model: &str, names: &[&str]| {
        let config = Oracle::named(model).config;
        let targets = match names {
            ["all-linear"] => Targets::AllLinear,
            names => Targets::Names(names.iter().map(|name| (*name).to_owned()).collect()),
        };
        let specs = param_specs(&config);
        let found = targets.matrices(&config).map_err(|error| error.to_string())?;
        Ok(found.into_iter().map(|param| specs[param].name.clone()).collect::<Vec<_>>())
    };
    let two: Result<Vec<String>, String> =
        matrices("qwen3_untied", &["layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"]);
    assert_eq!(two.unwrap(), ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"]);
    assert_eq!(matrices("qwen3_untied", &["all-linear"]).unwrap().len(), 14);
    assert_eq!(matrices("deepseek_v3_groups_yarn", &["all-linear"]).unwrap().len(), 15);
    let none = |model: &str, name: &str| matrices(model, &[name]).unwrap_err();
    assert!(
        none("qwen3_untied", "w_proj").contains("no module \"w_proj\" to adapt; it has down_proj, gate_proj, k_proj")
    );
    assert!(none("qwen3_untied", "proj").contains("no module \"proj\""));
    assert!(none("qwen3_untied", "lm_head").contains("embedding and head stay as they are"));
    assert!(none("deepseek_v3_groups_yarn", "gate_proj").contains("mixture of experts have no adapters yet"));
    assert!(none("qwen3_moe", "mlp.experts").contains("mixture of experts have no adapters yet"));
    assert!(none("phi3_short", "o_proj").contains("fuse several matrices"));
}
