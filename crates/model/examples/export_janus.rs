//! Writes small Janus models as learning would leave them, and beside each what Wels computes with it, for
//! `scripts/oracle/check_janus_export.py`.
//!
//! ```text
//! cargo run --release -p wels-model --example export_janus -- FOLDER
//! ```
//!
//! Each is a folder below: the model's files, and `expected.safetensors` with `text`, `tokens` (with a picture),
//! `codes` and `pixels` that went in, and `text_logits` `[T, V]`, `logits` of text with the picture, `code_logits`
//! after the text and each code, and `decoded` `[channels, side, side]`.

use std::path::PathBuf;

use safetensors::tensor::TensorView;
use wels_device::host::random::{self, Key};
use wels_model::janus::config::JanusConfig;
use wels_model::janus::network::{self, Sight};
use wels_model::janus::{Janus, VqNetwork, save_dir};
use wels_model::names::ParamKind;
use wels_model::params::Params;
use wels_model::tape::Execution;

/// Name and `config.json`.
const MODELS: [(&str, &str); 3] = [
    ("plain", include_str!("../tests/janus/plain/config.json")),
    ("deep", include_str!("../tests/janus/deep/config.json")),
    ("tied", include_str!("../tests/janus/tied/config.json")),
];

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("name a folder")?);
    for (seed, (name, config)) in (1..).zip(MODELS) {
        let (config, _) = JanusConfig::from_hf_json(config)?;
        let (device, dir) = (wels_cpu::device(), folder.join(name));
        let network = disturbed(network::init(&device, &config, Sight::Patches, seed), seed);
        let vq = disturbed(VqNetwork::new(&config.vq).init(&device, seed), seed);
        save_dir(&dir, &config, &network, &vq, Some(2))?;
        let (janus, _) = Janus::open(&dir, &device, config.text.rope.max_positions)?;
        std::fs::write(dir.join("expected.safetensors"), expected(&janus, seed)?)?;
        println!("{}", dir.display());
    }
    Ok(())
}

/// With biases and norms that are not all the same, so that none can be left out or take another's place.
fn disturbed(mut params: Params, seed: u64) -> Params {
    for (param, spec) in params.specs().to_vec().iter().enumerate() {
        if matches!(spec.kind, ParamKind::Norm | ParamKind::Bias) {
            let mut values = params.tensors()[param].to_host().into_owned();
            let key = Key { seed, stream: param as u64 };
            let mut noise = vec![0.0; values.len()];
            random::fill_normal(&mut noise, 0.1, key, 0);
            values.iter_mut().zip(noise).for_each(|(x, noise)| *x += noise);
            params.set_values(param, &values);
        }
    }
    params
}

fn expected(janus: &Janus, seed: u64) -> Result<Vec<u8>, Failure> {
    let (config, execution) = (janus.config(), Execution::new(janus.device().clone()));
    let key = |stream: u64| Key { seed, stream: 1000 + stream };
    let ids = |count: usize, below: usize, stream| -> Vec<u32> {
        (0..count as u64).map(|i| key(stream).below_at(i, below as u64) as u32).collect()
    };
    let place = config.image_token_id;
    let mut text = ids(9, config.text.vocab_size, 0);
    text.iter_mut().filter(|token| **token == place).for_each(|token| *token = (place + 1) % 50);
    let codes = ids(config.vq.tokens(), config.vq.codes, 1);
    let mut pixels = vec![0.0; config.vision.channels * config.vision.image_size.pow(2)];
    random::fill_normal(&mut pixels, 0.5, key(2), 0);
    let tokens = [&text[..4], &vec![place; config.vision.tokens()], &text[4..]].concat();
    let features = janus.image_features(&execution, &pixels)?;
    let decoded = janus.decode(&execution, &codes)?;
    let side = config.vq.image_size();
    let floats = [
        ("pixels", vec![config.vision.channels, config.vision.image_size, config.vision.image_size], pixels),
        ("decoded", vec![config.vq.out_channels, side, side], decoded),
    ];
    let logits = [
        ("text_logits", janus.logits(&execution, &text, &[])?),
        ("logits", janus.logits(&execution, &tokens, &[features])?),
        ("code_logits", janus.code_logits(&execution, &text, &codes)?),
    ];
    let logits = logits.map(|(name, tensor)| (name, vec![tensor.rows(), tensor.cols()], tensor.to_host().into_owned()));
    let floats: Vec<_> = floats.into_iter().chain(logits).collect();
    let words = [("text", text), ("tokens", tokens), ("codes", codes)];
    let bytes = floats.iter().map(|(.., values)| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    let bytes: Vec<Vec<u8>> =
        bytes.chain(words.iter().map(|(_, ids)| ids.iter().flat_map(|id| id.to_le_bytes()).collect())).collect();
    let kinds = floats.iter().map(|(name, shape, _)| (*name, shape.clone(), safetensors::Dtype::F32));
    let kinds = kinds.chain(words.iter().map(|(name, ids)| (*name, vec![ids.len()], safetensors::Dtype::I32)));
    let views =
        kinds.zip(&bytes).map(|((name, shape, dtype), bytes)| Ok((name, TensorView::new(dtype, shape, bytes)?)));
    let views: Vec<(&str, TensorView)> = views.collect::<Result<_, Failure>>()?;
    Ok(safetensors::serialize(views, None)?)
}
