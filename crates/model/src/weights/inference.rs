//! Weights for inference: matrices packed for products, in their file's number format or quantised while they are read.

use super::{Files, WeightsError};
use crate::config::{ModelConfig, Note};
use crate::gguf::{Blocks, GgufError, GgufFile, Stored};
use crate::names::{ParamKind, ParamSpec};
use crate::params::{Packed, Params};
use wels_kernels::convert;
use wels_kernels::quant::QuantMatrix;
use wels_kernels::quant::blocks::{self, BlockType};

/// Number formats of matrices while a model answers. Norms, biases and routers are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantise {
    /// As in the file; 8-bit floating point as f32.
    #[default]
    AsStored,
    /// 8 bits a number (Q8_0), or fewer where the file has fewer.
    Q8,
    /// 4 bits a number (Q4_0), embedding and head 8; or fewer where the file has fewer.
    Q4,
}

impl Quantise {
    /// The format of a parameter that a file has as `stored`; none if it is not to be packed.
    fn target(self, kind: ParamKind, stored: BlockType) -> Option<BlockType> {
        if !kind.is_packable() {
            return None;
        }
        let wanted = match (self, kind) {
            (Quantise::AsStored, _) => stored,
            (Quantise::Q4, ParamKind::Matrix | ParamKind::Experts(_)) => BlockType::Q4_0,
            (Quantise::Q4 | Quantise::Q8, _) => BlockType::Q8_0,
        };
        let size = |kind: BlockType| kind.bytes() as f64 / kind.len() as f64;
        Some(if size(stored) <= size(wanted) { stored } else { wanted })
    }
}

/// The narrowest floating-point format that holds all of the values exactly.
fn exact(values: &[f32]) -> BlockType {
    if values.iter().all(|x| x.to_bits() & 0xffff == 0) {
        BlockType::Bf16
    } else if values.chunks(PIECE).all(|values| {
        let mut bits = vec![0; values.len()];
        let mut back = vec![0.0; values.len()];
        convert::to_f16s(values, &mut bits);
        convert::from_f16s(&bits, &mut back);
        back == values
    }) {
        BlockType::F16
    } else {
        BlockType::F32
    }
}

/// Numbers that are looked at together.
const PIECE: usize = 1 << 12;

impl Params {
    /// From safetensors files.
    ///
    /// # Errors
    /// As [`Files::load`].
    pub fn from_files(
        files: &Files,
        config: &ModelConfig,
        quantise: Quantise,
    ) -> Result<(Params, Vec<Note>), WeightsError> {
        let mut params = Params::unset(config);
        let specs = params.specs().to_vec();
        let mut matrices: Vec<Vec<(usize, QuantMatrix)>> = specs.iter().map(|_| Vec::new()).collect();
        let notes = files.load(config, &mut |param, first_row, rows, values| {
            let spec = &specs[param];
            match quantise.target(spec.kind, exact(values)) {
                Some(target) => {
                    matrices[param].push((first_row, QuantMatrix::quantise(values, rows, spec.cols, target)));
                }
                None => {
                    if params.values[param].is_empty() {
                        params.set_values(param, vec![0.0; spec.len()]);
                    }
                    params.set_rows(param, first_row, values);
                }
            }
        })?;
        for (param, mut matrices) in matrices.into_iter().enumerate().filter(|(_, matrices)| !matrices.is_empty()) {
            matrices.sort_by_key(|(first_row, _)| *first_row);
            params.set_packed(param, Packed::new(matrices.into_iter().map(|(_, matrix)| matrix).collect()));
        }
        Ok((params, notes))
    }

    /// From a GGUF file.
    ///
    /// # Errors
    /// As [`GgufFile::check`].
    pub fn from_gguf(
        file: &GgufFile,
        config: &ModelConfig,
        quantise: Quantise,
    ) -> Result<(Params, Vec<Note>), GgufError> {
        let notes = file.check(config)?;
        let mut params = Params::unset(config);
        for (param, spec) in params.specs().to_vec().iter().enumerate() {
            match file.tensor(config, spec) {
                Stored::Whole(blocks) => match quantise.target(spec.kind, blocks.kind) {
                    Some(target) => params.set_packed(param, packed(spec, blocks, target)),
                    None => params.set_values(param, decoded(blocks.kind, blocks.bytes, spec.len())),
                },
                Stored::Split { k_b, .. } => {
                    let mut values = Vec::with_capacity(spec.len());
                    file.read(config, spec, &mut |_, _, rows| values.extend_from_slice(rows));
                    // Transposed, blocks are no longer the same blocks.
                    let kind = if k_b.kind.is_quantised() { BlockType::Q8_0 } else { k_b.kind };
                    let kind = quantise.target(spec.kind, kind).unwrap_or(kind);
                    let matrix = QuantMatrix::quantise(&values, spec.rows, spec.cols, kind);
                    params.set_packed(param, Packed::new(vec![matrix]));
                }
            }
            file.release(config, spec);
        }
        Ok((params, notes))
    }
}

/// The matrices of a parameter, as type `target`.
fn packed(spec: &ParamSpec, blocks: Blocks, target: BlockType) -> Packed {
    let count = if let ParamKind::Experts(experts) = spec.kind { experts } else { 1 };
    let rows = spec.rows / count;
    let matrix = |bytes: &[u8]| {
        if blocks.kind == target {
            return QuantMatrix::from_blocks(target, bytes, rows, spec.cols);
        }
        QuantMatrix::quantise(&decoded(blocks.kind, bytes, rows * spec.cols), rows, spec.cols, target)
    };
    Packed::new(blocks.bytes.chunks_exact(blocks.bytes.len() / count).map(matrix).collect())
}

fn decoded(kind: BlockType, bytes: &[u8], len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    blocks::decode(kind, bytes, &mut values);
    values
}
