//! Weights that stay as they are while an adapter is learnt beside them, held as narrow as is asked for.
//!
//! Products take the numbers that they stand for, in f32, and x as it is ([`Packed::with_whole_rows`]), forward and
//! backward: what is learnt has the bits that it would have beside the same numbers held in f32. The optimizer, the
//! gradients and the engine that samples know nothing of it.

use std::sync::Arc;

use crate::config::{Attention, Family, ModelConfig};
use crate::gguf::{self, Blocks, GgufError, GgufFile, Stored};
use crate::inference::{exact, matrices_of};
use crate::names::{ParamKind, ParamSpec};
use crate::params::Params;
use crate::weights::{Files, WeightsError};
pub use wels_device::BlockType;
use wels_device::{Device, PackedMatrix, Source};

#[cfg(doc)]
use wels_device::Packed;

/// The number format of linear maps that stay as they are. Embedding and head are held as their file has them, all else
/// is f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// As in the file, 8-bit floating point in f32; no number changes.
    AsStored,
    /// Brought to this format, or left where the file has fewer bytes for a number.
    As(BlockType),
}

impl Held {
    /// The format of a parameter that a file has as `stored`.
    pub fn format(self, kind: ParamKind, stored: BlockType) -> BlockType {
        let size = |format: BlockType| format.bytes() as f64 / format.len() as f64;
        match self {
            Held::As(format) if kind.is_layer_matrix() && size(format) < size(stored) => format,
            _ => stored,
        }
    }
}

/// The matrices of each parameter that is packed, with their first rows.
struct Packing {
    device: Arc<dyn Device>,
    matrices: Vec<Vec<(usize, PackedMatrix)>>,
}

impl Packing {
    fn add(&mut self, spec: &ParamSpec, param: usize, (first_row, rows): (usize, usize), source: Source) {
        let count = matrices_of(spec);
        let matrix = self.device.pack_one_of(source, rows, spec.cols, first_row * count / spec.rows, count);
        self.matrices[param].push((first_row, matrix));
    }

    fn finish(self, params: &mut Params) {
        for (param, mut matrices) in self.matrices.into_iter().enumerate().filter(|(_, all)| !all.is_empty()) {
            matrices.sort_by_key(|(first_row, _)| *first_row);
            let matrices = matrices.into_iter().map(|(_, matrix)| matrix).collect();
            params.set_packed(param, self.device.stack(matrices).with_whole_rows());
        }
    }
}

impl Params {
    fn begin_frozen(device: &Arc<dyn Device>, config: &ModelConfig) -> (Params, Packing) {
        let params = Params::unset(device, config);
        let matrices = params.specs().iter().map(|_| Vec::new()).collect();
        (params, Packing { device: device.clone(), matrices })
    }

    /// For a training of an adapter in f32, from safetensors files.
    ///
    /// # Errors
    /// As [`Files::check`].
    pub fn frozen_from_files(
        device: &Arc<dyn Device>,
        files: &Files,
        config: &ModelConfig,
        held: Held,
    ) -> Result<Params, WeightsError> {
        files.check(config)?;
        let (mut params, mut packing) = Params::begin_frozen(device, config);
        let (specs, mut values) = (params.specs().to_vec(), Vec::new());
        for tensor in files.in_order(config) {
            let (param, rows) = (tensor.param, (tensor.first_row, tensor.rows));
            let spec = &specs[param];
            if let Some(bytes) = files.mxfp4(&tensor)
                && held.format(spec.kind, BlockType::Mxfp4) == BlockType::Mxfp4
            {
                packing.add(spec, param, rows, Source::Blocks { block_type: BlockType::Mxfp4, bytes: &bytes });
                continue;
            }
            files.read(&tensor, &mut values);
            let to = if spec.kind.is_packable() { held.format(spec.kind, exact(&values)) } else { BlockType::F32 };
            if to == BlockType::F32 && matrices_of(spec) == 1 {
                params.set_rows(param, tensor.first_row, &values);
            } else {
                packing.add(spec, param, rows, Source::Values { values: &values, to });
            }
        }
        packing.finish(&mut params);
        Ok(params)
    }

    /// The same from a GGUF file, with the rows of a Llama's queries and keys in the order of directories.
    ///
    /// # Errors
    /// As [`GgufFile::check`].
    pub fn frozen_from_gguf(
        device: &Arc<dyn Device>,
        file: &GgufFile,
        config: &ModelConfig,
        held: Held,
    ) -> Result<Params, GgufError> {
        file.check(config)?;
        let (mut params, mut packing) = Params::begin_frozen(device, config);
        for (param, spec) in params.specs().to_vec().iter().enumerate() {
            let stored = match file.tensor(config, spec) {
                Stored::Whole(blocks) if spec.kind.is_packable() => Some(blocks),
                _ => None,
            };
            let to = stored.map(|blocks| held.format(spec.kind, blocks.kind));
            match (stored, to) {
                (Some(blocks), Some(to)) if to == blocks.kind && to != BlockType::F32 => {
                    pack_blocks(&mut packing, config, spec, param, blocks);
                }
                _ => {
                    let mut values = Vec::with_capacity(spec.len());
                    file.read(config, spec, &mut |_, _, rows| values.extend_from_slice(rows));
                    if let Some(head_dim) = interleaved(config, spec) {
                        values = gguf::split_rows(&values, head_dim, if spec.rows == 1 { 1 } else { spec.cols });
                    }
                    // In two pieces, blocks are not those of rows.
                    let joined = || if spec.kind.is_packable() { exact(&values) } else { BlockType::F32 };
                    let to = to.unwrap_or_else(|| held.format(spec.kind, joined()));
                    match to {
                        BlockType::F32 => params.set_values(param, &values),
                        _ => pack_values(&mut packing, spec, param, &values, to),
                    }
                }
            }
            file.release(config, spec);
        }
        packing.finish(&mut params);
        Ok(params)
    }
}

/// Of a parameter of a file whose converter has reordered its rows within each head: the width of a head.
fn interleaved(config: &ModelConfig, spec: &ParamSpec) -> Option<usize> {
    let Attention::Gqa { head_dim, .. } = config.attention else { return None };
    let of_heads = spec.name.contains(".q_proj.") || spec.name.contains(".k_proj.");
    (config.family == Family::Llama && of_heads).then_some(head_dim)
}

fn pack_blocks(packing: &mut Packing, config: &ModelConfig, spec: &ParamSpec, param: usize, blocks: Blocks) {
    let (count, row_bytes) = (matrices_of(spec), blocks.bytes.len() / spec.rows);
    let own = interleaved(config, spec).map(|head_dim| gguf::split_rows(blocks.bytes, head_dim, row_bytes));
    let (rows, bytes) = (spec.rows / count, own.as_deref().unwrap_or(blocks.bytes));
    for (i, bytes) in bytes.chunks_exact(rows * row_bytes).enumerate() {
        let source = Source::Blocks { block_type: blocks.kind, bytes };
        packing.add(spec, param, (i * rows, rows), source);
    }
}

fn pack_values(packing: &mut Packing, spec: &ParamSpec, param: usize, values: &[f32], to: BlockType) {
    let rows = spec.rows / matrices_of(spec);
    for (i, values) in values.chunks_exact(rows * spec.cols).enumerate() {
        packing.add(spec, param, (i * rows, rows), Source::Values { values, to });
    }
}
