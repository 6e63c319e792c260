//! Directories of Janus models that learn: what is written, read back to the bit, and refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;
use wels_cpu::testing::emulator;
use wels_device::Tensor;
use wels_device::host::sample;
use wels_model::generate::Sampling;
use wels_model::janus::config::{JanusConfig, VqConfig};
use wels_model::janus::names::{JanusTensor, tensors, vq_tensors};
use wels_model::janus::network::{Network, Sight, Weighted};
use wels_model::janus::preprocess::Preprocessing;
use wels_model::janus::{
    DrawPrompt, Janus, Painter, Vq, VqNetwork, draw_all, presets, read_network, read_vq, save_dir, save_vq,
};
use wels_model::params::Params;
use wels_model::tape::Execution;

use crate::janus::{Oracle, weight};
use crate::janus_gradients;

const CONTEXT: usize = 96;

fn vq_params(config: &VqConfig) -> Params {
    VqNetwork::new(config).params(&wels_cpu::device(), |tensor| weight(&tensor.name, &tensor.shape))
}

/// The oracle's weights, written.
fn saved(oracle: &Oracle) -> TempDir {
    let (dir, config) = (TempDir::new().expect("a directory"), &oracle.config);
    let network = janus_gradients::params(&wels_cpu::device(), config, Sight::Patches);
    save_dir(dir.path(), config, &network, &vq_params(&config.vq), Some(4)).expect("saved");
    dir
}

fn assert_same(found: &Params, expected: &Params) {
    assert_eq!(found.specs(), expected.specs());
    let bits = |params: &Params, i: usize| params.tensors()[i].to_host().iter().map(|x| x.to_bits()).collect();
    for (i, spec) in expected.specs().iter().enumerate() {
        let [found, expected]: [Vec<u32>; 2] = [found, expected].map(|params| bits(params, i));
        assert!(found == expected, "{}", spec.name);
    }
}

#[test]
fn a_configuration_is_read_back() {
    let published = presets::names().map(|name| presets::preset(name).expect("a preset"));
    for config in Oracle::all().map(|oracle| oracle.config).into_iter().chain(published) {
        let text = config.to_hf_json().expect("a configuration that the file can say");
        let (read, notes) = JanusConfig::from_hf_json(&text).expect("it has just been written");
        assert_eq!((&read, notes.len()), (&config, 0), "{notes:?}");
        assert_eq!(VqConfig::from_hf_json(&text).expect("its tokenizer").0, config.vq);
        let text = config.vq.to_hf_json().expect("a configuration that the file can say");
        let (read, notes) = VqConfig::from_hf_json(&text).expect("it has just been written");
        assert_eq!((&read, notes.len()), (&config.vq, 0), "{notes:?}");
    }
}

#[test]
fn what_the_file_cannot_say_is_refused_by_name() {
    let config = Oracle::read("plain").config;
    let refused = |change: fn(&mut JanusConfig)| {
        let mut config = config.clone();
        change(&mut config);
        let dir = TempDir::new().expect("a directory");
        let network = janus_gradients::params(&wels_cpu::device(), &config, Sight::Patches);
        let error = save_dir(dir.path(), &config, &network, &vq_params(&config.vq), None);
        assert!(fs::read_dir(dir.path()).expect("a directory").next().is_none(), "nothing is written");
        error.expect_err("an error").to_string()
    };
    for (error, named) in [
        (refused(|config| config.vq.grid = 5), "`vq_config.num_patches` is 5"),
        (refused(|config| config.vision.layers = 0), "`vision_config.num_hidden_layers` is 0"),
        (refused(|config| config.image_token_id = 80), "`image_token_id` is 80"),
        (refused(|config| config.text.softmax_scale = 1.0), "`text_config` is "),
    ] {
        assert!(error.contains(named), "{error} does not name {named}");
    }
    let error = VqConfig { code_dim: 0, ..config.vq.clone() }.to_hf_json().expect_err("an error").to_string();
    assert!(error.contains("`embed_dim` is 0"), "{error}");
}

/// Names, shapes and bytes of a safetensors file.
fn entries(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(path.join("model.safetensors")).expect("model.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    file.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), view.data().to_vec()))).collect()
}

#[test]
fn files_hold_the_tensors_of_transformers() {
    for oracle in Oracle::all() {
        let dir = saved(&oracle);
        assert!(entries(dir.path()) == entries(oracle.dir.path()), "{}", oracle.name);
        let json = |file: &str| -> Value {
            serde_json::from_str(&fs::read_to_string(dir.path().join(file)).expect(file)).expect(file)
        };
        let theirs: Value = serde_json::from_str(
            &fs::read_to_string(oracle.dir.path().join("config.json")).expect("config.json of transformers"),
        )
        .expect("config.json of transformers");
        for block in ["vision_config", "vq_config"] {
            let mut theirs = theirs[block].clone();
            // Of models before training.
            theirs.as_object_mut().expect("an object").remove("initializer_range");
            assert_eq!(json("config.json")[block], theirs, "{} {block}", oracle.name);
        }
        assert_eq!(json("generation_config.json")["generation_kwargs"], json!({"boi_token_id": 4}));
        assert_eq!(json("processor_config.json")["num_image_tokens"], json!(oracle.config.vision.tokens()));
    }
}

#[test]
fn what_is_saved_is_read_back_to_the_bit() {
    for oracle in Oracle::all() {
        let (dir, device) = (saved(&oracle), wels_cpu::device());
        let (config, network, notes) = read_network(dir.path(), &device).expect("read back");
        assert_eq!((&config, notes.len()), (&oracle.config, 0), "{notes:?}");
        assert_same(&network, &janus_gradients::params(&device, &config, Sight::Patches));
        let (vq, notes) = read_vq(dir.path(), &device).expect("read back");
        assert_eq!((vq.network().config(), notes.len()), (&config.vq, 0), "{notes:?}");
        assert_same(vq.params(), &vq_params(&config.vq));
        let again = save_dir(dir.path(), &config, &network, vq.params(), None).expect_err("a directory with weights");
        assert!(again.to_string().contains("already holds weights"), "{again}");
    }
}

#[test]
fn a_vq_tokenizer_by_itself_is_read_back_and_does_the_same() {
    for oracle in Oracle::all() {
        let (dir, device) = (TempDir::new().expect("a directory"), wels_cpu::device());
        let (config, params) = (&oracle.config.vq, vq_params(&oracle.config.vq));
        save_vq(dir.path(), config, &params).expect("saved");
        let (read, notes) = read_vq(dir.path(), &device).expect("read back");
        assert!(notes.is_empty(), "{notes:?}");
        assert_same(read.params(), &params);
        let execution = Execution::new(device);
        let pixels = oracle.pixels("drawn", config.in_channels, config.image_size());
        let codes = read.encode(&execution, &pixels);
        let kept = Vq::new(VqNetwork::new(config), params);
        assert_eq!(codes, kept.encode(&execution, &pixels));
        assert_eq!(read.decode(&execution, &codes), kept.decode(&execution, &codes));
        let (network, params) = read.into_parts();
        let again = save_vq(dir.path(), network.config(), &params).expect_err("a directory with weights").to_string();
        assert!(again.contains("already holds weights (model.safetensors)"), "{again}");
    }
}

#[test]
fn an_opened_directory_computes_what_the_network_computed() {
    for oracle in Oracle::all() {
        let (dir, device) = (saved(&oracle), wels_cpu::device());
        let (janus, _) = Janus::open(dir.path(), &device, CONTEXT).expect("opened");
        let network = Network::new(oracle.config.clone(), Sight::Patches, CONTEXT);
        let params = janus_gradients::params(&device, &oracle.config, Sight::Patches);
        let painter = Weighted { network: &network, params: &params };
        let execution = Execution::new(device);
        let (text, codes) = (oracle.ids("text"), oracle.ids("codes"));
        // After a text and each code, and after a text with a picture: what training learns from.
        let batch = janus_gradients::batch(&oracle, Sight::Patches);
        let learnt = network.logprobs(&params, &execution, &batch);
        let features = janus.image_features(&execution, &oracle.seen()).expect("features");
        let place = oracle.config.image_token_id;
        let seen = vec![place; oracle.config.vision.tokens()];
        let sees = [&text[..2], &seen, &text[2..8]].concat();
        let logits = [
            (janus.logits(&execution, &text[..8], &[]).expect("logits"), &text[1..9]),
            (janus.logits(&execution, &sees, &[features]).expect("logits"), &text[3..9]),
        ];
        let of_text: Vec<f32> = logits.iter().flat_map(|(logits, targets)| logprobs(logits, targets)).collect();
        assert_eq!(of_text, learnt.text, "{}: text", oracle.name);
        let logits = janus.code_logits(&execution, &text[..5], &codes[..codes.len() - 1]).expect("logits");
        assert_eq!(logprobs(&logits, &codes), learnt.codes, "{}: codes", oracle.name);
        let sampling = Sampling::Random { temperature: 1.0, top_p: 1.0, seed: 6 };
        let prompt = DrawPrompt { tokens: &text, unconditional: &text[..2], guidance: 3.0 };
        let drawn =
            |painter: &dyn Painter| draw_all(painter, &execution, &[(prompt, vec![sampling; 2])]).expect("drawn");
        assert_eq!(drawn(&janus), drawn(&painter), "{}: drawn", oracle.name);
    }
}

/// Of the last rows of logits `[T, V]`.
fn logprobs(logits: &Tensor, targets: &[u32]) -> Vec<f32> {
    let (values, width) = (logits.to_host(), logits.cols());
    let rows = values.chunks_exact(width).skip(logits.rows() - targets.len());
    let one = |(row, target): (&[f32], &u32)| {
        sample::logprob(row[*target as usize], sample::weights(row, 1.0, &mut vec![0.0; width]))
    };
    rows.zip(targets).map(one).collect()
}

/// A file of the weights of these tensors, in 16 bits of which none is lost in f32.
fn write_bf16(path: &Path, tensors: &[JanusTensor]) {
    let bytes = |tensor: &JanusTensor| -> Vec<u8> {
        weight(&tensor.name, &tensor.shape).iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
    };
    let data: Vec<Vec<u8>> = tensors.iter().map(bytes).collect();
    let views = tensors.iter().zip(&data).map(|(tensor, data)| {
        (tensor.name.clone(), TensorView::new(Dtype::BF16, tensor.shape.clone(), data).expect("a tensor"))
    });
    fs::write(path, safetensors::serialize(views, None).expect("a safetensors file")).expect("model.safetensors");
}

#[test]
fn published_numbers_of_16_bits_are_read() {
    let (oracle, device) = (Oracle::read("tied"), wels_cpu::device());
    write_bf16(&oracle.dir.path().join("model.safetensors"), &tensors(&oracle.config));
    let (config, network, _) = read_network(oracle.dir.path(), &device).expect("read");
    let cut = |mut params: Params| {
        for param in 0..params.specs().len() {
            let values = params.tensors()[param].to_host().into_owned();
            let values: Vec<f32> = values.iter().map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)).collect();
            params.set_values(param, &values);
        }
        params
    };
    assert_same(&network, &cut(janus_gradients::params(&device, &config, Sight::Patches)));
    let (vq, _) = read_vq(oracle.dir.path(), &device).expect("read");
    assert_same(vq.params(), &cut(vq_params(&config.vq)));
}

#[test]
fn what_is_wrong_with_a_directory_is_named() {
    let device = wels_cpu::device();
    let errors = |change: &dyn Fn(&mut Vec<JanusTensor>)| {
        let oracle = Oracle::read("plain");
        let mut list = tensors(&oracle.config);
        change(&mut list);
        write_bf16(&oracle.dir.path().join("model.safetensors"), &list);
        let error = |result: Result<(), wels_model::janus::JanusError>| {
            result.expect_err("an error").to_string().replace(&oracle.dir.path().display().to_string(), "DIR")
        };
        let network = error(read_network(oracle.dir.path(), &device).map(drop));
        let vq = read_vq(oracle.dir.path(), &device).map(drop);
        (network, vq.err().map(|error| error.to_string()))
    };
    let without = |name: &'static str| move |list: &mut Vec<JanusTensor>| list.retain(|tensor| tensor.name != name);
    let begin = "the weights in DIR do not fit the configuration: 1 ";
    for name in [
        "model.language_model.layers.0.self_attn.q_proj.weight",
        "model.vision_model.post_layernorm.bias",
        "model.generation_head.vision_head.bias",
    ] {
        let (error, vq) = errors(&without(name));
        assert_eq!(error, format!("{begin}missing\n  missing: {name}"));
        assert_eq!(vq, None, "the VQ tokenizer is whole");
    }
    let (error, vq) = errors(&without("model.vqmodel.decoder.conv_in.bias"));
    assert_eq!(error, format!("{begin}missing\n  missing: model.vqmodel.decoder.conv_in.bias"));
    assert!(vq.expect("an error").ends_with("missing: model.vqmodel.decoder.conv_in.bias"));
    let (error, _) = errors(&|list: &mut Vec<JanusTensor>| {
        let name = "model.language_model.norm.weight";
        list.iter_mut().find(|tensor| tensor.name == name).expect("a tensor").shape = vec![5];
    });
    assert_eq!(error, format!("{begin}misshapen\n  misshapen: model.language_model.norm.weight [5] instead of [24]"));
}

#[test]
fn damaged_files_are_refused_by_path() {
    let (oracle, device) = (Oracle::read("plain"), wels_cpu::device());
    let path = oracle.dir.path().join("model.safetensors");
    let whole = fs::read(&path).expect("model.safetensors");
    fs::write(&path, &whole[..whole.len() - 4]).expect("a shorter one");
    for error in [
        read_network(oracle.dir.path(), &device).map(drop).expect_err("an error"),
        read_vq(oracle.dir.path(), &device).map(drop).expect_err("an error"),
    ] {
        let error = error.to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains("truncated"), "{error}");
    }
    for (text, named) in [("{", "not valid JSON"), (r#"{"model_type": "llama"}"#, "llama"), ("[]", "an object")] {
        fs::write(oracle.dir.path().join("config.json"), text).expect("config.json");
        for error in [
            read_network(oracle.dir.path(), &device).map(drop).expect_err("an error"),
            read_vq(oracle.dir.path(), &device).map(drop).expect_err("an error"),
        ] {
            let error = error.to_string();
            assert!(error.contains(named) && error.contains(&oracle.dir.path().display().to_string()), "{error}");
        }
    }
}

#[test]
fn a_tokenizer_of_another_shape_is_refused_by_its_tensors() {
    let (dir, [one, other, _]) = (TempDir::new().expect("a directory"), Oracle::all());
    save_vq(dir.path(), &one.config.vq, &vq_params(&one.config.vq)).expect("saved");
    let text = other.config.vq.to_hf_json().expect("a configuration");
    fs::write(dir.path().join("config.json"), text).expect("config.json");
    let error = read_vq(dir.path(), &wels_cpu::device()).map(drop).expect_err("an error").to_string();
    assert!(error.contains("model.vqmodel.") && vq_tensors(&other.config.vq).len() > 50, "{error}");
}

#[test]
fn pictures_are_prepared_as_the_written_file_says() {
    let (read, notes) = Preprocessing::from_hf_json(&Preprocessing::hf_json(12)).expect("it has just been written");
    assert!(notes.is_empty(), "{notes:?}");
    assert_eq!(read, Preprocessing::to_unit(12));
}

#[test]
fn a_device_without_operations_of_images_reads_nothing() {
    let Some(card) = emulator(1) else { return };
    let oracle = Oracle::read("tied");
    for error in [
        read_network(oracle.dir.path(), &card).map(drop).expect_err("an error"),
        read_vq(oracle.dir.path(), &card).map(drop).expect_err("an error"),
    ] {
        assert!(error.to_string().ends_with("has no operations of images"), "{error}");
    }
}
