//! Janus: counts of the published models, what is refused, and results against `transformers`.

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use wels_cpu::naive::Naive;
use wels_cpu::testing::emulator;
use wels_device::{Device, Tensor};
use wels_kernels::par;
use wels_model::config::ConfigError;
use wels_model::generate::Sampling;
use wels_model::inference::{LoadOptions, Purpose, Quantise};
use wels_model::janus::config::JanusConfig;
use wels_model::janus::count::{JanusParams, params};
use wels_model::janus::names::{JanusTensor, Part, tensors};
use wels_model::janus::presets;
use wels_model::janus::{DrawBatch, DrawPrompt, Janus, JanusError, without_words};
use wels_model::paged::CacheDtype;
use wels_model::tape::Execution;

use crate::oracle::split_mix;

/// Largest difference, as a part of the largest number. Ten times better than what is claimed; float32 PyTorch is up to
/// 1.5e-6 from the values here.
const TOLERANCE: f32 = 1e-5;

fn preset(name: &str) -> JanusConfig {
    presets::preset(name).expect("a preset")
}

#[test]
fn counts_are_those_of_the_published_models() {
    let common = JanusParams { vision_model: 303_688_704, generation_embeddings: 131_072, ..JanusParams::default() };
    let small = JanusParams {
        language_model: 1_652_656_128,
        aligner: 6_295_552,
        generation_aligner: 4_214_784,
        generation_head: 37_767_168,
        ..common
    };
    let large = JanusParams {
        language_model: 6_910_365_696,
        aligner: 20_979_712,
        generation_aligner: 16_818_176,
        generation_head: 83_906_560,
        ..common
    };
    for (name, expected) in [("janus-pro-1b", small), ("janus-pro-7b", large)] {
        let config = preset(name);
        let found = params(&config);
        assert_eq!(JanusParams { vqmodel: 0, ..found }, expected, "{name}");
        let elements: u64 = tensors(&config).iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
        assert_eq!(found.total(), elements, "{name}");
    }
}

fn changed(block: &str, key: &str, value: Value) -> Result<JanusConfig, ConfigError> {
    let text_config = json!({"vocab_size": 200, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
        "num_hidden_layers": 1});
    let vision_config = json!({"hidden_size": 16, "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
        "num_image_tokens": 4, "projection_dim": 32});
    let vq_config = json!({"base_channels": 32, "projection_dim": 32, "image_token_embed_dim": 32});
    let mut json = json!({"model_type": "janus", "image_token_id": 7, "text_config": text_config,
        "vision_config": vision_config, "vq_config": vq_config});
    match block {
        "" => json[key] = value,
        block => json[block][key] = value,
    }
    JanusConfig::from_hf_json(&json.to_string()).map(|(config, _)| config)
}

#[test]
fn what_would_change_the_arithmetic_is_refused_by_name() {
    changed("", "image_token_id", json!(7)).expect("the unchanged one is read");
    for (block, key, value, named) in [
        ("", "model_type", json!("llama"), "llama"),
        ("", "image_token_id", json!(200), "image_token_id"),
        ("", "vision_config", json!([]), "vision_config"),
        ("", "text_config", Value::Null, "text_config"),
        ("text_config", "model_type", json!("qwen3"), "text_config.model_type"),
        ("vision_config", "hidden_act", json!("silu"), "vision_config.hidden_act"),
        ("vision_config", "use_qk_norm", json!(true), "vision_config.use_qk_norm"),
        ("vision_config", "patch_size", json!(3), "vision_config.patch_size"),
        ("vision_config", "num_attention_heads", json!(3), "vision_config.num_attention_heads"),
        ("vision_config", "num_image_tokens", json!(5), "vision_config.num_image_tokens"),
        ("vision_config", "projection_dim", json!(31), "vision_config.projection_dim"),
        ("vision_config", "image_size", json!([8, 8]), "vision_config.image_size"),
        ("vision_config", "image_size", json!(1 << 30), "vision_config.image_size"),
        ("vq_config", "double_latent", json!(true), "vq_config.double_latent"),
        ("vq_config", "base_channels", json!(24), "vq_config.base_channels"),
        ("vq_config", "channel_multiplier", json!([1, 0]), "vq_config.channel_multiplier"),
        ("vq_config", "channel_multiplier", json!([]), "vq_config.channel_multiplier"),
        ("vq_config", "image_token_embed_dim", json!(16), "vq_config.image_token_embed_dim"),
    ] {
        let error = changed(block, key, value).expect_err(named).to_string();
        assert!(error.contains(named), "{error} does not name {named}");
    }
}

/// One folder of `tests/janus`, written by `scripts/oracle/make_janus.py`.
pub struct Oracle {
    pub name: String,
    pub config: JanusConfig,
    json: Value,
    tensors: Vec<u8>,
    /// `gradients.safetensors`.
    pub gradients: Vec<u8>,
    learnt: Vec<u8>,
    /// With `config.json` and `model.safetensors`.
    pub dir: TempDir,
}

impl Oracle {
    pub fn all() -> [Oracle; 3] {
        ["plain", "deep", "tied"].map(Oracle::read)
    }

    pub fn read(name: &str) -> Oracle {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/janus").join(name);
        let text = |file: &str| fs::read_to_string(folder.join(file)).expect(file);
        let (config, notes) = JanusConfig::from_hf_json(&text("config.json")).expect("a supported configuration");
        assert!(notes.is_empty(), "{name}: {notes:?}");
        let dir = TempDir::new().expect("a directory");
        fs::write(dir.path().join("config.json"), text("config.json")).expect("config.json");
        fs::write(dir.path().join("model.safetensors"), weights(&tensors(&config))).expect("model.safetensors");
        Oracle {
            name: name.to_owned(),
            json: serde_json::from_str(&text("oracle.json")).expect("oracle.json"),
            tensors: fs::read(folder.join("oracle.safetensors")).expect("oracle.safetensors"),
            gradients: fs::read(folder.join("gradients.safetensors")).expect("gradients.safetensors"),
            learnt: fs::read(folder.join("learnt.safetensors")).expect("learnt.safetensors"),
            config,
            dir,
        }
    }

    fn open(&self, device: &Arc<dyn Device>) -> Janus {
        let (janus, notes) = Janus::open(self.dir.path(), device, 96).unwrap_or_else(|error| panic!("{error}"));
        assert!(notes.is_empty(), "{}: {notes:?}", self.name);
        janus
    }

    pub fn ids(&self, key: &str) -> Vec<u32> {
        self.json[key].as_array().expect(key).iter().map(|id| id.as_u64().expect("an id") as u32).collect()
    }

    /// The numbers of a tensor of `oracle.safetensors`.
    pub fn tensor(&self, key: &str) -> Vec<f32> {
        floats(&self.tensors, key)
    }

    /// The same of `learnt.safetensors`.
    pub fn learnt(&self, key: &str) -> Vec<f32> {
        floats(&self.learnt, key)
    }

    /// The names in it.
    pub fn learnt_names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.learnt).expect("a safetensors file");
        file.names().into_iter().map(|name| name.to_owned()).collect()
    }

    pub fn pixels(&self, name: &str, channels: usize, side: usize) -> Vec<f32> {
        let name = format!("{}.{name}", self.name);
        uniform(&name).take(channels * side * side).map(|x| x as f32).collect()
    }

    pub fn seen(&self) -> Vec<f32> {
        self.pixels("seen", self.config.vision.channels, self.config.vision.image_size)
    }

    fn drawn(&self) -> Vec<f32> {
        self.pixels("drawn", self.config.vq.in_channels, self.config.vq.image_size())
    }

    /// Everything that `transformers` was asked for.
    fn compute(&self, janus: &Janus, execution: &Execution) -> Vec<(&'static str, Vec<f32>)> {
        let host = |tensor: &Tensor| tensor.to_host().into_owned();
        let (text, codes) = (self.ids("text"), self.ids("codes"));
        let features = janus.image_features(execution, &self.seen()).unwrap();
        vec![
            ("vision", host(&janus.vision_states(execution, &self.seen()).unwrap())),
            ("features", host(&features)),
            ("logits", host(&janus.logits(execution, &self.ids("tokens"), &[features]).unwrap())),
            ("code_logits", host(&janus.code_logits(execution, &text, &codes).unwrap())),
            ("latents", host(&janus.latents(execution, &self.drawn()).unwrap())),
            ("pixels", janus.decode(execution, &codes).unwrap()),
        ]
    }
}

fn floats(file: &[u8], key: &str) -> Vec<f32> {
    let file = SafeTensors::deserialize(file).expect("a safetensors file");
    let data = file.tensor(key).unwrap_or_else(|error| panic!("{key}: {error}"));
    data.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A safetensors file of weights by their names.
fn weights(tensors: &[JanusTensor]) -> Vec<u8> {
    let bytes =
        |tensor: &JanusTensor| weight(&tensor.name, &tensor.shape).iter().flat_map(|x| x.to_le_bytes()).collect();
    let data: Vec<Vec<u8>> = tensors.iter().map(bytes).collect();
    let views = tensors.iter().zip(&data).map(|(tensor, data)| {
        let view = TensorView::new(safetensors::Dtype::F32, tensor.shape.clone(), data).expect("a tensor");
        (tensor.name.clone(), view)
    });
    safetensors::serialize(views, None).expect("a safetensors file")
}

/// The weight of `scripts/oracle/make_janus.py`.
pub fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let (offset, scale) = match name {
        _ if name.ends_with("bias") => (0.0, 0.1),
        _ if name.ends_with("embed_tokens.weight") => (0.0, 1.0),
        _ if shape.len() == 1 => (1.0, 0.1),
        _ => (0.0, (3.0 / shape[1..].iter().product::<usize>() as f64).sqrt()),
    };
    uniform(name).take(shape.iter().product()).map(|x| (offset + scale * x) as f32).collect()
}

/// Numbers in −1..1 of a name.
pub fn uniform(name: &str) -> impl Iterator<Item = f64> + use<> {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let first = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    (0..).map(move |i| 2.0 * ((split_mix(first.wrapping_add(i)) >> 40) as f64 / f64::from(1 << 24)) - 1.0)
}

/// The largest difference, as a part of the largest number.
pub fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len(), "numbers");
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

#[test]
fn results_are_those_of_transformers() {
    for oracle in Oracle::all() {
        let device = wels_cpu::device();
        let (janus, execution) = (oracle.open(&device), Execution::new(device));
        for (key, found) in oracle.compute(&janus, &execution) {
            let error = difference(&found, &oracle.tensor(key));
            eprintln!("{} {key}: {error:.1e}", oracle.name);
            assert!(error <= TOLERANCE, "{} {key}: {error:e} of the largest", oracle.name);
        }
        assert_eq!(janus.encode(&execution, &oracle.drawn()).unwrap(), oracle.ids("encoded"), "{}", oracle.name);
        let greedy = janus.draw(&execution, &oracle.ids("text"), Sampling::Greedy).unwrap();
        assert_eq!(greedy, oracle.ids("greedy"), "{}", oracle.name);
    }
}

#[test]
fn threads_and_devices_change_no_bit() {
    for oracle in Oracle::all() {
        let bits = |device: Arc<dyn Device>| {
            let (janus, execution) = (oracle.open(&device), Execution::new(device));
            let results = oracle.compute(&janus, &execution).into_iter();
            let bits = |(key, values): (_, Vec<f32>)| (key, values.iter().map(|x| x.to_bits()).collect::<Vec<u32>>());
            results.map(bits).collect::<Vec<_>>()
        };
        let expected = bits(Naive::new());
        for threads in [1, 2, 3] {
            let found = par::with_threads(threads, || bits(wels_cpu::device()));
            for ((key, found), (_, expected)) in found.iter().zip(&expected) {
                assert!(found == expected, "{} {key} with {threads} threads", oracle.name);
            }
        }
    }
}

/// What is loaded to draw has less in memory, and draws the same.
#[test]
fn the_purpose_of_a_model_changes_no_picture() {
    for oracle in Oracle::all() {
        let (device, tokens) = (wels_cpu::device(), oracle.ids("text"));
        for quantise in [Quantise::AsStored, Quantise::Q8, Quantise::Q4] {
            let draw = |purpose| {
                let options = LoadOptions { purpose, ..LoadOptions::packed(quantise) };
                let (janus, _) = Janus::open_with(oracle.dir.path(), &device, 96, options).expect("a model");
                let execution = Execution::new(device.clone());
                let codes = janus.draw(&execution, &tokens, random(3)).unwrap();
                let half = janus.decode(&execution, &codes).unwrap();
                // With both halves of the tokenizer in memory.
                janus.encode(&execution, &oracle.drawn()).unwrap();
                assert!(half == janus.decode(&execution, &codes).unwrap(), "{}: pixels", oracle.name);
                (codes, half)
            };
            let [both, pictures] = [Purpose::TextAndPictures, Purpose::Pictures].map(draw);
            assert!(both == pictures, "{}, {quantise:?}", oracle.name);
        }
    }
}

/// Of heads and aligners too: the logits of codes, quantised, are near those of the stored weights and not the same.
#[test]
fn quantised_logits_of_codes_are_near_and_the_same_on_both_devices() {
    let oracle = Oracle::read("deep");
    let (text, codes) = (oracle.ids("text"), oracle.ids("codes"));
    let logits = |device: Arc<dyn Device>, quantise| {
        let options = LoadOptions { purpose: Purpose::Pictures, ..LoadOptions::packed(quantise) };
        let (janus, _) = Janus::open_with(oracle.dir.path(), &device, 96, options).expect("a model");
        janus.code_logits(&Execution::new(device), &text, &codes).unwrap().to_host().into_owned()
    };
    let stored = logits(wels_cpu::device(), Quantise::AsStored);
    let mut last = 0.0;
    for (quantise, most) in [(Quantise::Q8, 0.05), (Quantise::Q4, 0.5)] {
        let found = logits(wels_cpu::device(), quantise);
        assert!(found == logits(Naive::new(), quantise), "{quantise:?} on both devices");
        let off = difference(&found, &stored);
        assert!(off > last && off < most, "{quantise:?}: {off} of the largest");
        last = off;
    }
}

#[test]
fn pages_change_no_bit_of_what_is_drawn() {
    let oracle = Oracle::read("deep");
    let (janus, execution) = (oracle.open(&wels_cpu::device()), Execution::new(wels_cpu::device()));
    let sampling = Sampling::Random { temperature: 1.0, top_p: 1.0, seed: 5 };
    let text = oracle.ids("text");
    let drawn = janus.draw(&execution, &text, sampling).unwrap();
    let logits = janus.code_logits(&execution, &text, &drawn).unwrap();
    for (i, logits) in logits.to_host().chunks_exact(oracle.config.vq.codes).take(drawn.len()).enumerate() {
        assert_eq!(sampling.choose(logits, text.len() + i), drawn[i], "code {i}");
    }
}

/// The codes of one picture for each way of sampling, all of them added at once.
fn drawn(
    janus: &Janus,
    execution: &Execution,
    prompt: &DrawPrompt,
    samplings: &[Sampling],
) -> Result<Vec<Vec<u32>>, JanusError> {
    let pages = DrawBatch::pages_for(janus, prompt, samplings.len());
    let mut batch = DrawBatch::new(janus, execution, CacheDtype::F32, pages);
    batch.add(janus, execution, prompt, samplings)?;
    (1..janus.config().vq.tokens()).for_each(|_| batch.step(janus, execution));
    let complete = batch.take_complete(janus);
    assert!(batch.is_empty() && batch.free_pages() == pages, "all pages are free again");
    Ok(complete.into_iter().map(|(_, drawn)| drawn.codes).collect())
}

fn random(seed: u64) -> Sampling {
    Sampling::Random { temperature: 1.0, top_p: 1.0, seed }
}

#[test]
fn guided_codes_are_those_of_transformers() {
    for oracle in Oracle::all() {
        let (janus, execution) = (oracle.open(&wels_cpu::device()), Execution::new(wels_cpu::device()));
        let tokens = oracle.ids("text");
        let unconditional = without_words(&tokens, oracle.json["pad"].as_u64().expect("a token") as u32);
        let guidance = oracle.json["guidance"].as_f64().expect("a number") as f32;
        let prompt = DrawPrompt { tokens: &tokens, unconditional: &unconditional, guidance };
        let codes = drawn(&janus, &execution, &prompt, &[Sampling::Greedy]).unwrap();
        assert_eq!(codes, [oracle.ids("guided")], "{}", oracle.name);
        assert_ne!(codes, [oracle.ids("greedy")], "{}: guidance changes something", oracle.name);
    }
}

#[test]
fn what_else_is_drawn_changes_no_code() {
    let oracle = Oracle::read("deep");
    // One that ends within a page, one with its page, and one of two pages and a half.
    let prompts: Vec<Vec<u32>> = [9, 16, 40].map(|len| (0..len).map(|i| (i * 7 + len) % 60).collect()).into();
    let unconditional: Vec<Vec<u32>> = prompts.iter().map(|tokens| without_words(tokens, 69)).collect();
    let guidances = [5.0, 1.0, 2.5];
    let prompt =
        |i: usize| DrawPrompt { tokens: &prompts[i], unconditional: &unconditional[i], guidance: guidances[i] };
    let (janus, execution) = (oracle.open(&wels_cpu::device()), Execution::new(wels_cpu::device()));
    let alone = |i: usize, seed| drawn(&janus, &execution, &prompt(i), &[random(seed)]).unwrap().remove(0);
    for threads in [1, 3] {
        par::with_threads(threads, || {
            let seeds: Vec<u64> = (0..6).collect();
            let samplings: Vec<Sampling> = seeds.iter().map(|seed| random(*seed)).collect();
            let mut batch = DrawBatch::new(&janus, &execution, CacheDtype::F32, 400);
            let mut expected = Vec::new();
            for i in 0..3 {
                let ids = batch.add(&janus, &execution, &prompt(i), &samplings).unwrap();
                // The next prompt's pictures begin while these are at their third code; one is given up.
                batch.step(&janus, &execution);
                batch.step(&janus, &execution);
                assert!(batch.remove(ids[3]) && !batch.remove(ids[3]));
                let kept = ids.iter().zip(&seeds).filter(|(id, _)| **id != ids[3]);
                expected.extend(kept.map(|(id, seed)| (*id, i, *seed)));
            }
            let mut complete = Vec::new();
            while !batch.is_empty() {
                batch.step(&janus, &execution);
                complete.extend(batch.take_complete(&janus));
            }
            assert_eq!((complete.len(), batch.free_pages()), (15, 400));
            for ((id, drawn), (expected_id, i, seed)) in complete.iter().zip(&expected) {
                assert_eq!(id, expected_id);
                assert!(drawn.logprobs.is_empty(), "nobody has asked for them");
                assert_eq!(drawn.codes, alone(*i, *seed), "prompt {i}, seed {seed}, {threads} threads");
            }
        });
    }
    assert_ne!(alone(0, 1), alone(0, 2), "seeds draw different pictures");
}

#[test]
fn pictures_that_do_not_fit_are_refused_and_take_nothing() {
    let oracle = Oracle::read("plain");
    let (janus, execution) = (oracle.open(&wels_cpu::device()), Execution::new(wels_cpu::device()));
    let prompt = |tokens| DrawPrompt { tokens, unconditional: &[1, 1], guidance: 5.0 };
    assert_eq!(DrawBatch::pages_for(&janus, &prompt(&[1, 2]), 3), 2 * (1 + 3));
    let mut batch = DrawBatch::new(&janus, &execution, CacheDtype::F32, 7);
    let mut refused = |prompt: DrawPrompt, pictures| {
        let samplings = vec![Sampling::Greedy; pictures];
        let error = batch.add(&janus, &execution, &prompt, &samplings).expect_err("an error").to_string();
        assert!(batch.is_empty() && batch.free_pages() == 7, "{error}");
        error
    };
    let messages = [
        refused(prompt(&[1, 2]), 3),
        refused(prompt(&[]), 1),
        refused(prompt(&[80]), 1),
        refused(prompt(&[1; 90]), 1),
        refused(DrawPrompt { tokens: &[1], unconditional: &[], guidance: 2.0 }, 1),
    ];
    let expected = [
        "the pictures need 8 pages of the KV cache, and 7 are free",
        "there are no tokens",
        "token 80, where there are 80",
        "99 tokens, more than the context of 96",
        "there are no tokens",
    ];
    assert_eq!(messages, expected);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let oracle = Oracle::read("plain");
    let (janus, execution) = (oracle.open(&wels_cpu::device()), Execution::new(wels_cpu::device()));
    let features = || janus.image_features(&execution, &oracle.seen()).unwrap();
    let tokens = oracle.ids("tokens");
    let errors = [
        janus.image_features(&execution, &[0.0; 3]).map(drop),
        janus.encode(&execution, &[]).map(drop),
        janus.decode(&execution, &[1; 8]).map(drop),
        janus.decode(&execution, &[50; 9]).map(drop),
        janus.logits(&execution, &[], &[]).map(drop),
        janus.logits(&execution, &[80], &[]).map(drop),
        janus.logits(&execution, &[1; 97], &[]).map(drop),
        janus.logits(&execution, &tokens[1..6], &[features()]).map(drop),
        janus.code_logits(&execution, &[1], &[50]).map(drop),
        janus.draw(&execution, &[1; 90], Sampling::Greedy).map(drop),
    ];
    let messages = errors.map(|error| error.expect_err("an error").to_string());
    let expected = [
        "3 numbers of pixels, expected 432",
        "0 numbers of pixels, expected 108",
        "8 codes, expected 9",
        "code 50, where there are 50",
        "there are no tokens",
        "token 80, where there are 80",
        "97 tokens, more than the context of 96",
        "the text has 2 places for 9 features of pictures",
        "code 50, where there are 50",
        "99 tokens, more than the context of 96",
    ];
    assert_eq!(messages, expected);
}

#[test]
fn a_directory_with_other_tensors_is_refused_with_their_names() {
    let oracle = Oracle::read("tied");
    let mut list = tensors(&oracle.config);
    list.retain(|tensor| tensor.name != "model.aligner.fc1.bias");
    let conv = list.iter_mut().find(|tensor| tensor.name == "model.vqmodel.decoder.conv_in.weight").expect("it");
    conv.shape.swap(0, 1);
    list.push(JanusTensor { name: "model.vision_model.head.probe".into(), shape: vec![2], part: Part::Vision });
    fs::write(oracle.dir.path().join("model.safetensors"), weights(&list)).expect("model.safetensors");
    let error = Janus::open(oracle.dir.path(), &wels_cpu::device(), 96).map(drop).expect_err("an error").to_string();
    for part in
        ["missing: model.aligner.fc1.bias", "surplus: model.vision_model.head.probe", "decoder.conv_in.weight ["]
    {
        assert!(error.contains(part), "{error} lacks {part}");
    }
}

#[test]
fn a_device_without_operations_of_images_is_refused() {
    let Some(card) = emulator(1) else { return };
    let error = Janus::open(Oracle::read("tied").dir.path(), &card, 96).map(drop).expect_err("an error").to_string();
    assert!(error.ends_with("has no operations of images"), "{error}");
}
