//! Weights for inference: matrices in their file's number format or quantised while they are read; packed for products,
//! or left in the mapped file, of which then only those rows and experts come into memory that a product reads, and are
//! packed when they first do while memory for it lasts. Both have the same bits; packed ones are the faster, and take
//! their own memory.

use std::sync::Arc;

use crate::config::{Attention, ModelConfig, Note};
use crate::gguf::{Blocks, GgufError, GgufFile, Stored};
use crate::names::{HfTensor, ParamKind, ParamSpec};
use crate::params::Params;
use crate::placement::Placement;
use crate::weights::{FP8_BLOCK, Files, Fp8Matrix, WeightsError};
use wels_device::host::{blocks, convert};
use wels_device::{BlockType, Device, MemoryBudget, Packed, PackedMatrix, Source};

/// Number formats of matrices while a model answers. Norms, biases and routers are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantise {
    /// As in the file; 8-bit floating point as f32, and in its 8 bits on a device that keeps them.
    #[default]
    AsStored,
    /// 8 bits a number (Q8_0), or fewer where the file has fewer.
    Q8,
    /// 4 bits a number (Q4_0), embedding and head 8; or fewer where the file has fewer.
    Q4,
}

/// What a model is loaded for. A picture depends on the prompt's embeddings: a model that draws has them as stored,
/// whatever else it does, and they stay in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    #[default]
    Text,
    TextAndPictures,
    /// The head of text stays in the file, unread.
    Pictures,
}

/// How weights are loaded for inference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    pub purpose: Purpose,
    /// Their number format.
    pub quantise: Quantise,
    /// Bytes up to which matrices that need not be quantised are packed; the others stay in the file. Experts are the
    /// last: packed at once all or none, and otherwise each as it is used, while these bytes last.
    pub pack_bytes: u64,
    /// Bytes up to which experts are packed at once.
    pub pack_expert_bytes: u64,
    /// Of how many ranks each packs its part: the bytes are those of all together.
    pub ranks: u64,
}

impl LoadOptions {
    /// Packs all matrices that products read.
    pub fn packed(quantise: Quantise) -> Self {
        LoadOptions { purpose: Purpose::Text, quantise, pack_bytes: u64::MAX, pack_expert_bytes: u64::MAX, ranks: 1 }
    }

    /// Leaves all matrices in the file that need not be quantised, and packs none for longer than a product.
    pub fn mapped(quantise: Quantise) -> Self {
        LoadOptions { purpose: Purpose::Text, quantise, pack_bytes: 0, pack_expert_bytes: 0, ranks: 1 }
    }

    /// Whether a parameter is only read by rows, or not at all, and so stays as it is stored.
    fn is_left(self, config: &ModelConfig, kind: ParamKind) -> bool {
        match (kind, self.purpose) {
            (ParamKind::Embedding, Purpose::TextAndPictures | Purpose::Pictures) => !config.tied_head,
            (ParamKind::Head, Purpose::Pictures) => true,
            _ => false,
        }
    }

    /// As [`Quantise::target`].
    fn target(self, config: &ModelConfig, kind: ParamKind, stored: BlockType) -> Option<BlockType> {
        let quantise = if self.is_left(config, kind) { Quantise::AsStored } else { self.quantise };
        quantise.target(kind, stored)
    }

    /// Which parameters stay in the file, of those that a file has in so many bytes where they may stay; and the budget
    /// that is left for packing them. What a device copies to memory of its own is none of them.
    fn stay(self, config: &ModelConfig, specs: &[ParamSpec], bytes: &[Option<u64>]) -> (Vec<bool>, Arc<MemoryBudget>) {
        let is_expert = |spec: &ParamSpec| matches!(spec.kind, ParamKind::Experts(_));
        let experts = specs.iter().zip(bytes).filter(|(spec, _)| is_expert(spec));
        let experts: u64 = experts.filter_map(|(_, bytes)| *bytes).sum();
        let mut left = self.pack_bytes;
        let mut fits = |bytes: u64| {
            let fits = bytes <= left;
            left -= if fits { bytes } else { 0 };
            fits
        };
        let others = specs.iter().zip(bytes).map(|(spec, bytes)| match (spec.kind, bytes) {
            // A row at a time is read from it.
            (ParamKind::Embedding, Some(_)) if !config.tied_head => true,
            (kind, Some(_)) if self.is_left(config, kind) => true,
            (ParamKind::Experts(_), _) | (_, None) => false,
            (_, Some(bytes)) => !fits(*bytes),
        });
        let mut stay: Vec<bool> = others.collect();
        if experts > self.pack_expert_bytes || !fits(experts) {
            let all = stay.iter_mut().zip(specs.iter().zip(bytes));
            all.for_each(|(stay, (spec, bytes))| *stay |= is_expert(spec) && bytes.is_some());
        }
        (stay, Arc::new(MemoryBudget::new(left / self.ranks)))
    }
}

impl Quantise {
    /// The format of a parameter that a file has as `stored`; none if it is not to be packed.
    pub(crate) fn target(self, kind: ParamKind, stored: BlockType) -> Option<BlockType> {
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

impl Quantise {
    /// Whether such a parameter stays in the 8-bit floating point of its file on a device that keeps that.
    pub(crate) fn keeps_fp8(self, kind: ParamKind) -> bool {
        self == Quantise::AsStored && matches!(kind, ParamKind::Matrix | ParamKind::Experts(_))
    }
}

/// The narrowest floating-point format that holds all of the values exactly.
pub(crate) fn exact(values: &[f32]) -> BlockType {
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
    /// As [`Files::check`].
    pub fn from_files(
        placement: impl Into<Placement>,
        files: &Files,
        config: &ModelConfig,
        options: LoadOptions,
    ) -> Result<(Params, Vec<Note>), WeightsError> {
        let notes = files.check(config)?;
        let mut params = Params::unset(placement, config);
        let specs = params.specs().to_vec();
        let tensors = files.in_order(config);
        let mut bytes = vec![Some(0); specs.len()];
        for tensor in &tensors {
            let kind = specs[tensor.param].kind;
            let as_stored = |&(stored, ..): &(BlockType, _, _)| options.target(config, kind, stored) == Some(stored);
            let found = files.mapped(tensor).filter(as_stored).map(|(.., range)| range.len() as u64);
            bytes[tensor.param] = bytes[tensor.param].zip(found).map(|(sum, bytes)| sum + bytes);
        }
        let copied = params.copied();
        let own = bytes.iter_mut().zip(&copied).map(|(bytes, copied)| if *copied { bytes.take() } else { None });
        // As they are in the file; what is there in f32 may be held narrower.
        let as_stored: Vec<bool> = own.map(|bytes| bytes.is_some()).collect();
        let (stay, budget) = options.stay(config, &specs, &bytes);
        let mut matrices: Vec<Vec<(usize, PackedMatrix)>> = specs.iter().map(|_| Vec::new()).collect();
        let (mut values, mut halves) = (Vec::new(), Vec::new());
        for tensor in &tensors {
            let HfTensor { param, first_row, rows, .. } = *tensor;
            let spec = &specs[param];
            let device = params.device_of(param).clone();
            let count = matrices_of(spec);
            let pack = |source| device.pack_one_of(source, rows, spec.cols, first_row * count / spec.rows, count);
            if device.keeps_fp8()
                && options.quantise.keeps_fp8(spec.kind)
                && let Some(matrix) = files.fp8(tensor)
            {
                let blocks = Source::Blocks { block_type: BlockType::E4m3, bytes: &matrix.rows(0..rows) };
                matrices[param].push((first_row, pack(blocks)));
                halves.extend(fp8_halves(&device, config, spec, &matrix).map(|halves| (param, halves)));
                files.release(tensor);
                continue;
            }
            if let Some(bytes) = files.mxfp4(tensor) {
                let blocks = Source::Blocks { block_type: BlockType::Mxfp4, bytes: &bytes };
                matrices[param].push((first_row, pack(blocks)));
                continue;
            }
            let mapped = files.mapped(tensor);
            if let Some((block_type, map, range)) = mapped
                && (stay[param] || as_stored[param] && block_type != BlockType::F32)
            {
                let source = Source::Mapped { block_type, owner: map.clone(), range, budget: &budget };
                matrices[param].push((first_row, pack(source)));
                continue;
            }
            files.read(tensor, &mut values);
            match options.target(config, spec.kind, exact(&values)) {
                Some(to) => {
                    let source = Source::Values { values: &values, to };
                    matrices[param].push((first_row, pack(source)));
                }
                None => params.set_rows(param, first_row, &values),
            }
        }
        for (param, mut matrices) in matrices.into_iter().enumerate().filter(|(_, matrices)| !matrices.is_empty()) {
            matrices.sort_by_key(|(first_row, _)| *first_row);
            let matrices = matrices.into_iter().map(|(_, matrix)| matrix).collect();
            params.set_packed(param, params.device_of(param).stack(matrices));
        }
        halves.into_iter().for_each(|(param, halves)| params.set_absorbed(param, halves));
        Ok((params, notes))
    }

    /// From a GGUF file.
    ///
    /// # Errors
    /// As [`GgufFile::check`].
    pub fn from_gguf(
        placement: impl Into<Placement>,
        file: &GgufFile,
        config: &ModelConfig,
        options: LoadOptions,
    ) -> Result<(Params, Vec<Note>), GgufError> {
        let notes = file.check(config)?;
        let mut params = Params::unset(placement, config);
        let specs = params.specs().to_vec();
        let (quantise, copied) = (options.quantise, params.copied());
        let bytes = specs.iter().zip(&copied).map(|(spec, copied)| match file.tensor(config, spec) {
            Stored::Whole(blocks) if !copied && quantise.target(spec.kind, blocks.kind) == Some(blocks.kind) => {
                Some(blocks.bytes.len() as u64)
            }
            _ => None,
        });
        let bytes: Vec<Option<u64>> = bytes.collect();
        let (stay, budget) = options.stay(config, &specs, &bytes);
        for (param, spec) in specs.iter().enumerate() {
            let device = &params.device_of(param).clone();
            match file.tensor(config, spec) {
                Stored::Whole(blocks) if stay[param] => {
                    params.set_packed(param, mapped(device, spec, blocks, &budget));
                    continue;
                }
                Stored::Whole(blocks) => match quantise.target(spec.kind, blocks.kind) {
                    Some(target) => params.set_packed(param, packed(device, spec, blocks, target)),
                    None => {
                        let mut values = Vec::with_capacity(spec.len());
                        file.read(config, spec, &mut |_, _, rows| values.extend_from_slice(rows));
                        params.set_values(param, &values);
                    }
                },
                Stored::Split { k_b, v_b } => {
                    let mut values = Vec::with_capacity(spec.len());
                    file.read(config, spec, &mut |_, _, rows| values.extend_from_slice(rows));
                    // Transposed, blocks are no longer the same blocks.
                    let kind = if k_b.kind.is_quantised() { BlockType::Q8_0 } else { k_b.kind };
                    let kind = quantise.target(spec.kind, kind).unwrap_or(kind);
                    let source = Source::Values { values: &values, to: kind };
                    params.set_packed(param, device.stack(vec![device.pack(source, spec.rows, spec.cols)]));
                    params.set_absorbed(param, [k_b, v_b].map(|half| heads_of(device, config, spec, half, quantise)));
                }
            }
            file.release(config, spec);
        }
        Ok((params, notes))
    }
}

impl Params {
    /// Which parameters lie on a device that has memory of its own, and copies there whatever it is given.
    fn copied(&self) -> Vec<bool> {
        (0..self.specs().len()).map(|param| self.device_of(param).memory().is_some()).collect()
    }
}

/// The matrices of a parameter where they are.
fn mapped(device: &Arc<dyn Device>, spec: &ParamSpec, blocks: Blocks, budget: &Arc<MemoryBudget>) -> Packed {
    let count = matrices_of(spec);
    let (rows, len, (map, start)) = (spec.rows / count, blocks.bytes.len() / count, blocks.place);
    let matrix = |i: usize| {
        let range = start + i * len..start + (i + 1) * len;
        let source = Source::Mapped { block_type: blocks.kind, owner: map.clone(), range, budget };
        device.pack_one_of(source, rows, spec.cols, i, count)
    };
    device.stack((0..count).map(matrix).collect())
}

/// Matrices that a parameter is held as.
pub(crate) fn matrices_of(spec: &ParamSpec) -> usize {
    if let ParamKind::Experts(experts) = spec.kind { experts } else { 1 }
}

/// A half of the up-projection as absorbed latent attention multiplies with it, a matrix for each head.
fn heads_of(
    device: &Arc<dyn Device>,
    config: &ModelConfig,
    spec: &ParamSpec,
    half: Blocks,
    quantise: Quantise,
) -> Packed {
    let Attention::Mla { heads, .. } = config.attention else {
        unreachable!("{} in two is of latent attention", spec.name)
    };
    let target = quantise.target(spec.kind, half.kind).unwrap_or(half.kind);
    stacked(device, half, heads, target)
}

/// Whether halves of an up-projection in 8-bit floating point are that too: where a head's rows begin, blocks do.
pub(crate) fn has_fp8_halves(config: &ModelConfig, spec: &ParamSpec) -> bool {
    let Attention::Mla { nope_dim, v_dim, .. } = config.attention else { return false };
    spec.is_up_projection() && (nope_dim + v_dim).is_multiple_of(FP8_BLOCK)
}

/// The halves of an up-projection for absorbed latent attention, in the 8 bits of the file: keys transposed, and
/// values, a matrix for each head.
fn fp8_halves(
    device: &Arc<dyn Device>,
    config: &ModelConfig,
    spec: &ParamSpec,
    matrix: &Fp8Matrix,
) -> Option<[Packed; 2]> {
    let Attention::Mla { heads, nope_dim, v_dim, .. } = config.attention else { return None };
    if !has_fp8_halves(config, spec) {
        return None;
    }
    let pack = |head, bytes: &[u8], rows, cols| {
        device.pack_one_of(Source::Blocks { block_type: BlockType::E4m3, bytes }, rows, cols, head, heads)
    };
    let keys_of = |head| head * (nope_dim + v_dim)..head * (nope_dim + v_dim) + nope_dim;
    let values_of = |head| keys_of(head).end..keys_of(head).end + v_dim;
    let keys = (0..heads).map(|head| pack(head, &matrix.transposed(keys_of(head)), spec.cols, nope_dim));
    let values = (0..heads).map(|head| pack(head, &matrix.rows(values_of(head)), v_dim, spec.cols));
    Some([device.stack(keys.collect()), device.stack(values.collect())])
}

/// The matrices of a parameter, as type `target`.
fn packed(device: &Arc<dyn Device>, spec: &ParamSpec, blocks: Blocks, target: BlockType) -> Packed {
    stacked(device, blocks, matrices_of(spec), target)
}

/// Blocks as `count` matrices of type `target`.
fn stacked(device: &Arc<dyn Device>, blocks: Blocks, count: usize, target: BlockType) -> Packed {
    let (rows, cols) = (blocks.rows / count, blocks.cols);
    let matrix = |(i, bytes): (usize, &[u8])| {
        if blocks.kind == target {
            return device.pack_one_of(Source::Blocks { block_type: target, bytes }, rows, cols, i, count);
        }
        let values = decoded(blocks.kind, bytes, rows * cols);
        device.pack_one_of(Source::Values { values: &values, to: target }, rows, cols, i, count)
    };
    device.stack(blocks.bytes.chunks_exact(blocks.bytes.len() / count).enumerate().map(matrix).collect())
}

fn decoded(kind: BlockType, bytes: &[u8], len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    blocks::decode(kind, bytes, &mut values);
    values
}
