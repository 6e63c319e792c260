//! Directories of Janus models that learn: the form of `transformers`, which [`super::Janus`] opens too, and a VQ
//! tokenizer by itself. Numbers are read back to the bits that were saved, which is f32; published files of 16 bits are
//! read as f32.
//!
//! The files differ from what learns in two ways: the head of codes is a weight and a bias there and one parameter
//! here ([`CODE_HEAD`]), and convolutions of the VQ tokenizer have their windows in another order.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use super::config::{JanusConfig, VqConfig};
use super::error::JanusError;
use super::layers::Source;
use super::names::{JanusTensor, Part, file_name, image_tensors, language_name, tensors, vq_tensors};
use super::network::{CODE_HEAD, Sight, specs};
use super::preprocess::Preprocessing;
use super::vq::{Vq, VqPart, in_file};
use crate::config::{ConfigError, Note};
use crate::inference::Quantise;
use crate::names::param_specs;
use crate::params::Params;
use crate::weights::{DEFAULT_SHARD_BYTES, Files, MAX_CONFIG_BYTES, Mismatch, WeightsError, read_text, save_tensors};
use wels_device::Device;

const CONFIG: &str = "config.json";

/// Writes a model to `dir`, which is made if need be: the parameters of [`specs`] with the tower ([`Sight::Patches`]),
/// those of the VQ tokenizer, and all configurations, so that only the tokenizer's files are missing.
/// `begin_of_image`: the token after which `generate` of `transformers` draws.
///
/// # Errors
/// `dir` already holds weights or cannot be written, or the file has no words for the configuration.
///
/// # Panics
/// If the parameters are not those of the configuration.
pub fn save_dir(
    dir: &Path,
    config: &JanusConfig,
    network: &Params,
    vq: &Params,
    begin_of_image: Option<u32>,
) -> Result<(), WeightsError> {
    let texts = [
        ("preprocessor_config.json", Preprocessing::hf_json(config.vision.image_size)),
        ("processor_config.json", config.processor_json()),
        ("generation_config.json", config.generation_json(begin_of_image)),
        (CONFIG, config.to_hf_json().map_err(in_dir(dir))?),
    ];
    let origins: Vec<(JanusTensor, Origin)> = tensors(config)
        .into_iter()
        .map(|tensor| {
            let origin = Origin::of(&tensor, network, vq);
            (tensor, origin)
        })
        .collect();
    let shapes = origins.iter().map(|(tensor, _)| (tensor.name.clone(), tensor.shape.clone())).collect();
    let values = |i: usize| match &origins[i] {
        (_, Origin::Network(param)) => network.tensors()[*param].to_host(),
        (_, Origin::HeadWeight(param)) => without_last_column(network, *param),
        (_, Origin::HeadBias(param)) => last_column(network, *param),
        (tensor, Origin::Vq(param)) => in_file(&tensor.shape, &vq.tensors()[*param]),
    };
    save_tensors(dir, shapes, DEFAULT_SHARD_BYTES, &values, &texts)
}

/// The parameter that a tensor of the file is of.
enum Origin {
    Network(usize),
    HeadWeight(usize),
    HeadBias(usize),
    Vq(usize),
}

impl Origin {
    fn of(tensor: &JanusTensor, network: &Params, vq: &Params) -> Origin {
        let name = &tensor.name;
        let position = |params: &Params, name: &str| {
            params.position(name).unwrap_or_else(|| panic!("no parameter {name} for a directory of Janus"))
        };
        match (tensor.part, name.strip_prefix(CODE_HEAD)) {
            (Part::Vq, _) => Origin::Vq(position(vq, name)),
            (_, Some(".weight")) => Origin::HeadWeight(position(network, CODE_HEAD)),
            (_, Some(_)) => Origin::HeadBias(position(network, CODE_HEAD)),
            _ => Origin::Network(position(network, &language_name(name).unwrap_or_else(|| name.clone()))),
        }
    }
}

fn without_last_column(params: &Params, param: usize) -> Cow<'_, [f32]> {
    let cols = params.specs()[param].cols;
    Cow::Owned(params.tensors()[param].to_host().chunks_exact(cols).flat_map(|row| &row[..cols - 1]).copied().collect())
}

fn last_column(params: &Params, param: usize) -> Cow<'_, [f32]> {
    let cols = params.specs()[param].cols;
    Cow::Owned(params.tensors()[param].to_host().iter().skip(cols - 1).step_by(cols).copied().collect())
}

/// What [`save_dir`] wrote, or a published model, to learn on: the parameters of [`specs`] with the tower
/// ([`Sight::Patches`]).
///
/// # Errors
/// Whatever is wrong with configuration or files, by the names in the file; the device has no operations of images.
pub fn read_network(dir: &Path, device: &Arc<dyn Device>) -> Result<(JanusConfig, Params, Vec<Note>), JanusError> {
    let Opened { config, language, files, mut notes } = Opened::read(dir, device)?;
    notes.extend(language.check(&config.text).map_err(in_file_names)?);
    let mut params = Params::listed(device, specs(&config, Sight::Patches));
    let mut sink = |param, first_row, _, values: &[f32]| params.set_rows(param, first_row, values);
    language.load(&config.text, &mut sink).map_err(in_file_names)?;
    for param in param_specs(&config.text).len()..params.specs().len() {
        let values = match &params.specs()[param].name {
            name if name == CODE_HEAD => read_head(&files),
            name => files.values(name),
        };
        params.set_values(param, &values);
    }
    Ok((config, params, notes))
}

/// [`CODE_HEAD`] from its weight and bias.
pub(super) fn read_head(files: &Files) -> Vec<f32> {
    let [weight, bias] = ["weight", "bias"].map(|part| files.values(&format!("{CODE_HEAD}.{part}")));
    let rows = weight.chunks_exact(weight.len() / bias.len()).zip(&bias);
    rows.flat_map(|(row, bias)| row.iter().chain([bias]).copied()).collect()
}

/// Writes a VQ tokenizer by itself to `dir`, which is made if need be. Its tensors have the names that they have in a
/// Janus model.
///
/// # Errors
/// As [`save_dir`].
///
/// # Panics
/// If the parameters are not those of the configuration.
pub fn save_vq(dir: &Path, config: &VqConfig, params: &Params) -> Result<(), WeightsError> {
    let text = config.to_hf_json().map_err(in_dir(dir))?;
    let list = vq_tensors(config);
    assert_eq!(list.len(), params.specs().len(), "parameters of a VQ tokenizer");
    let shapes = list.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
    let values = |i: usize| in_file(&list[i].shape, &params.tensors()[i]);
    save_tensors(dir, shapes, DEFAULT_SHARD_BYTES, &values, &[(CONFIG, text)])
}

/// The VQ tokenizer that [`save_vq`] wrote, or that of a Janus model.
///
/// # Errors
/// As [`read_network`].
pub fn read_vq(dir: &Path, device: &Arc<dyn Device>) -> Result<(Vq, Vec<Note>), JanusError> {
    check_device(device)?;
    let text = read_text(&dir.join(CONFIG), MAX_CONFIG_BYTES)?;
    let (config, notes) = VqConfig::from_hf_json(&text).map_err(in_dir(dir))?;
    let of_vq = |name: &str| name.starts_with("model.vqmodel.").then(|| name.to_owned());
    let files = Files::open(dir)?.split_off(of_vq);
    check(&files, &vq_tensors(&config))?;
    let source = Source { files: &files, device, quantise: Quantise::AsStored };
    Ok((Vq::read(&source, &config, VqPart::Both), notes))
}

/// A directory whose configuration is read, and whose tensors beside the language model are those that it asks for.
pub(super) struct Opened {
    pub config: JanusConfig,
    /// By the names of a text model, not checked yet.
    pub language: Files,
    pub files: Files,
    pub notes: Vec<Note>,
}

impl Opened {
    pub fn read(dir: &Path, device: &Arc<dyn Device>) -> Result<Opened, JanusError> {
        check_device(device)?;
        let text = read_text(&dir.join(CONFIG), MAX_CONFIG_BYTES)?;
        let (mut config, notes) = JanusConfig::from_hf_json(&text).map_err(in_dir(dir))?;
        let mut files = Files::open(dir)?;
        let language = files.split_off(language_name);
        // As `transformers` does: a head that is there and not the embedding is not tied to it.
        config.text.tied_head &= !language.has("lm_head.weight");
        check(&files, &image_tensors(&config))?;
        Ok(Opened { config, language, files, notes })
    }
}

fn check_device(device: &Arc<dyn Device>) -> Result<(), JanusError> {
    match device.images() {
        Some(_) => Ok(()),
        None => Err(JanusError::Device { device: device.in_words() }),
    }
}

fn check(files: &Files, expected: &[JanusTensor]) -> Result<(), WeightsError> {
    files.check_list(expected.iter().map(|tensor| (tensor.name.as_str(), &tensor.shape[..])))
}

fn in_dir(dir: &Path) -> impl FnOnce(ConfigError) -> WeightsError {
    let dir = dir.to_owned();
    move |source| WeightsError::Config { dir, source: Box::new(source) }
}

/// What is wrong with the language model, by the names that its tensors have in the file.
pub(super) fn in_file_names(mut error: WeightsError) -> WeightsError {
    if let WeightsError::Mismatch { mismatch, .. } = &mut error {
        let Mismatch { missing, surplus, misshapen, unreadable, repeated, contradicting } = &mut **mismatch;
        for list in [missing, surplus, misshapen, unreadable, repeated, contradicting] {
            list.iter_mut().for_each(|line| *line = file_name(line));
        }
    }
    error
}
