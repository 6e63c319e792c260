//! Models that a bench makes up where no file of weights is at hand: the shape of a recipe with random numbers. Answers
//! mean nothing; what computing them takes is the same.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use wels_device::host::{blocks, random};
use wels_device::{BlockType, Precision, Source};
use wels_model::config::{CacheLayout, ModelConfig};
use wels_model::names::{ParamKind, ParamSpec};
use wels_model::params::{Params, table};
use wels_model::placement::Placement;
use wels_model::sizes::WeightSizes;
use wels_runs::recipe::Recipe;

use crate::model::Quant;

/// Number format of the factors of products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PrecisionArg {
    /// 32 bits
    #[default]
    F32,
    /// 16 bits, sums in 32: on a card its tensor cores
    Bf16,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Bf16 => Precision::Bf16,
        }
    }
}

/// The configuration of a recipe, if `model` is one.
///
/// # Errors
/// As [`Recipe::load`].
pub fn config_of(model: &Path) -> Result<Option<ModelConfig>> {
    match model.extension().is_some_and(|extension| extension == "toml") {
        true => Ok(Some(Recipe::load(model)?.model.config().clone())),
        false => Ok(None),
    }
}

/// Random weights for answering: matrices in bf16, or quantised if so asked. Matrices of one shape are the same.
pub fn params(placement: &Placement, config: &ModelConfig, quant: Quant) -> Params {
    let mut params = Params::unset(placement, config);
    let mut made: HashMap<(usize, usize, BlockType), Vec<u8>> = HashMap::new();
    for (param, spec) in params.specs().to_vec().iter().enumerate() {
        if !spec.kind.is_packable() {
            params.set_values(param, &plain(spec, config));
            continue;
        }
        let count = if let ParamKind::Experts(experts) = spec.kind { experts } else { 1 };
        let (rows, cols, block_type) = (spec.rows / count, spec.cols, format(spec, quant));
        let bytes = made.entry((rows, cols, block_type)).or_insert_with(|| encoded(config, rows, cols, block_type));
        let device = params.device_of(param).clone();
        let pack = |_| device.pack(Source::Blocks { block_type, bytes }, rows, cols);
        params.set_packed(param, device.stack((0..count).map(pack).collect()));
    }
    params
}

/// What they take.
pub fn sizes(config: &ModelConfig, layout: CacheLayout, quant: Quant) -> WeightSizes {
    WeightSizes::of(config, layout, |spec| format(spec, quant))
}

/// As files that are quantised have them; rows that are no whole blocks stay in bf16.
fn format(spec: &ParamSpec, quant: Quant) -> BlockType {
    let wanted = match (quant, spec.kind) {
        (Quant::Stored, _) => BlockType::Bf16,
        (Quant::Q4, ParamKind::Matrix | ParamKind::Experts(_)) => BlockType::Q4_0,
        (Quant::Q4 | Quant::Q8, _) => BlockType::Q8_0,
    };
    if spec.cols.is_multiple_of(wanted.len()) { wanted } else { BlockType::Bf16 }
}

fn encoded(config: &ModelConfig, rows: usize, cols: usize, to: BlockType) -> Vec<u8> {
    let mut bytes = vec![0; rows * to.row_bytes(cols).expect("whole blocks")];
    blocks::encode(to, &normal(rows * cols, config, cols as u64), &mut bytes);
    bytes
}

fn normal(len: usize, config: &ModelConfig, stream: u64) -> Vec<f32> {
    let mut values = vec![0.0; len];
    random::fill_normal(&mut values, f64::from(config.init_std), random::Key { seed: 0, stream }, 0);
    values
}

fn plain(spec: &ParamSpec, config: &ModelConfig) -> Vec<f32> {
    match spec.kind {
        ParamKind::Norm => vec![1.0; spec.len()],
        ParamKind::Bias | ParamKind::RouterBias | ParamKind::ExpertBiases(_) | ParamKind::PlaceBias => {
            vec![0.0; spec.len()]
        }
        ParamKind::Table => table(spec, config.moe.as_ref().map_or(1, |moe| moe.experts)),
        _ => normal(spec.len(), config, spec.len() as u64),
    }
}
