//! What a model's parts take of the memory of the device that has them, before anything is loaded.

use crate::config::{Attention, CacheLayout, ModelConfig};
use crate::gguf::{GgufError, GgufFile, Stored};
use crate::inference::{Quantise, has_fp8_halves};
use crate::names::{ParamSpec, param_specs};
use crate::params::like_halves;
use crate::placement::{Place, Placement};
use crate::weights::{Files, WeightsError};
use wels_device::BlockType;

/// Bytes of each parameter as [`Params::from_files`] and [`Params::from_gguf`] hold it, in the order of
/// [`param_specs`]; at most, since values of a file in f32 that narrower numbers hold are held as these.
///
/// [`Params::from_files`]: crate::params::Params::from_files
/// [`Params::from_gguf`]: crate::params::Params::from_gguf
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSizes {
    /// On a device that keeps 8-bit floating point.
    fp8: Vec<Size>,
    /// On any other.
    others: Vec<Size>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    held: u64,
    /// For a moment: while it is loaded or, if its numbers share scales, multiplied with many rows as numbers of 16
    /// bits.
    scratch: u64,
}

impl WeightSizes {
    /// Of safetensors files, for pages of a layout.
    ///
    /// # Errors
    /// As [`Files::check`].
    pub fn of_files(
        files: &Files,
        config: &ModelConfig,
        quantise: Quantise,
        layout: CacheLayout,
    ) -> Result<WeightSizes, WeightsError> {
        files.check(config)?;
        let specs = param_specs(config);
        let mut stored = vec![BlockType::F32; specs.len()];
        let mut fp8 = vec![false; specs.len()];
        for tensor in files.in_order(config) {
            // 8-bit floating point becomes f32 first where it is not kept.
            let mapped = files.mapped(&tensor).map_or(BlockType::F32, |(block_type, ..)| block_type);
            stored[tensor.param] = if files.is_mxfp4(&tensor) { BlockType::Mxfp4 } else { mapped };
            fp8[tensor.param] = files.is_fp8(&tensor) && quantise.keeps_fp8(specs[tensor.param].kind);
        }
        let kept = |param: usize| if fp8[param] { BlockType::E4m3 } else { stored[param] };
        Ok(WeightSizes {
            fp8: sizes(config, layout, quantise, |param, _| kept(param)),
            others: sizes(config, layout, quantise, |param, _| stored[param]),
        })
    }

    /// Of a GGUF file, for pages of a layout.
    ///
    /// # Errors
    /// As [`GgufFile::check`].
    pub fn of_gguf(
        file: &GgufFile,
        config: &ModelConfig,
        quantise: Quantise,
        layout: CacheLayout,
    ) -> Result<WeightSizes, GgufError> {
        file.check(config)?;
        Ok(WeightSizes::alike(sizes(config, layout, quantise, |_, spec| match file.tensor(config, spec) {
            Stored::Whole(blocks) => blocks.kind,
            Stored::Split { k_b, .. } if k_b.kind.is_quantised() => BlockType::Q8_0,
            Stored::Split { k_b, .. } => k_b.kind,
        })))
    }

    /// Of parameters that are there, each held as `held` says.
    pub fn of(config: &ModelConfig, layout: CacheLayout, held: impl Fn(&ParamSpec) -> BlockType) -> WeightSizes {
        WeightSizes::alike(sizes(config, layout, Quantise::AsStored, |_, spec| held(spec)))
    }

    fn alike(sizes: Vec<Size>) -> WeightSizes {
        WeightSizes { fp8: sizes.clone(), others: sizes }
    }

    /// Each parameter with its bytes on a device that keeps no 8-bit floating point.
    pub fn each(&self, config: &ModelConfig) -> Vec<(ParamSpec, u64)> {
        param_specs(config).into_iter().zip(self.others.iter().map(|size| size.held)).collect()
    }

    /// Bytes of those that a placement has at a place, and the most that one of them takes besides for a moment.
    pub fn at(&self, placement: &Placement, config: &ModelConfig, place: Place) -> (u64, u64) {
        let specs = param_specs(config);
        let sizes = if placement.device(place).keeps_fp8() { &self.fp8 } else { &self.others };
        let there = specs.iter().zip(sizes).filter(|(spec, _)| placement.of(config, spec) == place);
        there.fold((0, 0), |(held, scratch), (_, size)| (held + size.held, scratch.max(size.scratch)))
    }
}

fn sizes(
    config: &ModelConfig,
    layout: CacheLayout,
    quantise: Quantise,
    stored: impl Fn(usize, &ParamSpec) -> BlockType,
) -> Vec<Size> {
    let size = |(param, spec): (usize, &ParamSpec)| match quantise.target(spec.kind, stored(param, spec)) {
        None => Size { held: 4 * spec.len() as u64, scratch: 0 },
        Some(format) => {
            let own = bytes(format, spec.rows, spec.cols);
            let unpacked = if format.shares_scales() { 2 * spec.len() as u64 } else { 0 };
            Size { held: own + absorbed(config, layout, spec, format), scratch: own.max(unpacked) }
        }
    };
    param_specs(config).iter().enumerate().map(size).collect()
}

/// Bytes of a matrix whose rows are filled up to whole blocks.
fn bytes(format: BlockType, rows: usize, cols: usize) -> u64 {
    (rows * cols.div_ceil(format.len()) * format.bytes()) as u64
}

/// Bytes of the halves of an up-projection beside it, which pages of latents need; those of E4M3 are there for others
/// too.
fn absorbed(config: &ModelConfig, layout: CacheLayout, spec: &ParamSpec, held: BlockType) -> u64 {
    let Attention::Mla { heads, kv_lora_rank: latent, nope_dim, v_dim, .. } = config.attention else { return 0 };
    let fp8 = held == BlockType::E4m3 && has_fp8_halves(config, spec);
    if !spec.is_up_projection() || layout != CacheLayout::Latent && !fp8 {
        return 0;
    }
    let format = if fp8 { held } else { like_halves(held) };
    bytes(format, heads * latent, nope_dim) + bytes(format, heads * v_dim, latent)
}
