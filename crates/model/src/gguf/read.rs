//! Tensors → parameters.

use std::collections::BTreeSet;
use std::sync::Arc;

use wels_device::BlockType;
use wels_device::host::blocks;

use super::names::{self, Expected, Place, place};
use super::{GgufError, GgufFile, Located};
use crate::config::{Attention, ModelConfig, Note};
use crate::family::NormWeights;
use crate::names::{ParamKind, ParamSpec, param_specs};
use crate::weights::{MappedFile, Mismatch, Sink};

/// Numbers that are decoded at once.
const PIECE: usize = 1 << 20;

/// The bytes of a parameter, or of a part of one: rows of blocks.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    /// Number format.
    pub kind: BlockType,
    /// Rows; of stacked matrices, those of all.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `rows` times [`BlockType::row_bytes`]. The file's, so possibly at an odd address.
    pub bytes: &'a [u8],
    /// The mapped file, and where in it `bytes` begin.
    pub(crate) place: (&'a Arc<MappedFile>, usize),
}

/// Where a parameter lies.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// In one piece, row by row as [`ParamSpec`] says.
    Whole(Blocks<'a>),
    /// `kv_b_proj` in the two pieces that absorbed latent attention multiplies with: for each head the transposed
    /// key part and the value part.
    Split {
        /// [heads · rank, nope]: row `h·rank + r` holds column r of rows `h·(nope + v) ..+ nope` of `kv_b_proj`.
        k_b: Blocks<'a>,
        /// [heads · v, rank]: row `h·v + j` is row `h·(nope + v) + nope + j` of `kv_b_proj`.
        v_b: Blocks<'a>,
    },
}

impl GgufFile {
    /// Checks that the file holds exactly the tensors of `config`; returns what will be ignored.
    ///
    /// # Errors
    /// [`GgufError::Mismatch`] with everything that is missing, surplus, misshapen or of a type that is not read.
    pub fn check(&self, config: &ModelConfig) -> Result<Vec<Note>, GgufError> {
        let mut mismatch = Mismatch::default();
        let mut surplus: BTreeSet<&str> = self.tensors.keys().map(String::as_str).collect();
        let mut expect = |expected: &Expected| {
            surplus.remove(&expected.name[..]);
            let Some(Located { info, .. }) = self.tensors.get(&expected.name) else {
                return mismatch.missing.push(expected.name.clone());
            };
            if info.dims != expected.dims {
                let (found, expected_dims) = (&info.dims, &expected.dims);
                mismatch.misshapen.push(format!("{} {found:?} instead of {expected_dims:?}", expected.name));
            }
            if info.kind.is_err() {
                mismatch.unreadable.push(format!("{} {}", expected.name, info.kind_name()));
            }
        };
        for spec in param_specs(config) {
            match place(config, &spec, self.splits(&spec)) {
                Place::Whole(tensor) | Place::Rows(tensor, 0) => expect(&tensor),
                // With the first of its parameters.
                Place::Rows(..) => {}
                Place::Split { k_b, v_b } => [k_b, v_b].iter().for_each(&mut expect),
            }
        }
        let mut notes = Vec::new();
        surplus.retain(|name| {
            *name != names::ROPE_FREQS && !names::ROPE_FACTORS.contains(name) && !name.ends_with(".rope_freqs.weight")
        });
        let beyond = config.layers + config.mtp_depth;
        let before = surplus.len();
        surplus.retain(|name| layer_of(name).is_none_or(|layer| layer < beyond));
        if surplus.len() < before {
            notes.push(Note(format!("{} tensors of layers from {beyond} on are ignored", before - surplus.len())));
        }
        mismatch.surplus.extend(surplus.into_iter().map(str::to_owned));
        if mismatch.is_empty() {
            return Ok(notes);
        }
        Err(GgufError::Mismatch { path: self.path().to_owned(), mismatch: Box::new(mismatch) })
    }

    /// The bytes of a parameter of a configuration that has passed [`GgufFile::check`].
    ///
    /// # Panics
    /// If the configuration has not passed.
    pub fn tensor(&self, config: &ModelConfig, spec: &ParamSpec) -> Stored<'_> {
        match place(config, spec, self.splits(spec)) {
            Place::Whole(tensor) => Stored::Whole(self.blocks(&tensor.name)),
            Place::Rows(tensor, first) => Stored::Whole(self.blocks(&tensor.name).rows(first, spec.rows)),
            Place::Split { k_b, v_b } => Stored::Split { k_b: self.blocks(&k_b.name), v_b: self.blocks(&v_b.name) },
        }
    }

    /// Loads all parameters as f32 into wherever `sink` puts them, in canonical order; every row comes exactly once.
    ///
    /// # Errors
    /// As [`GgufFile::check`]; nothing has been handed out then.
    pub fn load(&self, config: &ModelConfig, sink: &mut Sink<'_>) -> Result<Vec<Note>, GgufError> {
        let notes = self.check(config)?;
        for (param, spec) in param_specs(config).iter().enumerate() {
            self.read(config, spec, &mut |first_row, rows, values| sink(param, first_row, rows, values));
            self.release(config, spec);
        }
        Ok(notes)
    }

    /// Decodes a parameter, some rows at a time in order: `take(first_row, rows, values)`.
    ///
    /// # Panics
    /// As [`GgufFile::tensor`].
    pub fn read(&self, config: &ModelConfig, spec: &ParamSpec, take: &mut dyn FnMut(usize, usize, &[f32])) {
        match self.tensor(config, spec) {
            Stored::Whole(blocks) if is_one_more(config, spec) => blocks.decode_rows(&mut |first, rows, values| {
                take(first, rows, &values.iter().map(|sum| sum - 1.0).collect::<Vec<f32>>());
            }),
            Stored::Whole(blocks) => blocks.decode_rows(take),
            Stored::Split { k_b, v_b } => join(config, k_b, v_b, take),
        }
    }

    /// Gives back the memory that reading a parameter's pages has taken.
    pub fn release(&self, config: &ModelConfig, spec: &ParamSpec) {
        let release = |tensor: &Expected| {
            if let Some(Located { part, info }) = self.tensors.get(&tensor.name) {
                self.parts[*part].map.release(info.bytes.clone());
            }
        };
        match place(config, spec, self.splits(spec)) {
            Place::Whole(tensor) | Place::Rows(tensor, _) => release(&tensor),
            Place::Split { k_b, v_b } => [k_b, v_b].iter().for_each(release),
        }
    }

    /// The numbers of a small tensor of a readable type.
    pub(super) fn floats(&self, name: &str) -> Option<Vec<f32>> {
        const MAX: usize = 1 << 16;
        self.tensors.get(name)?.info.kind.ok()?;
        let blocks = self.blocks(name);
        let count = blocks.rows.checked_mul(blocks.cols).filter(|count| *count <= MAX)?;
        let mut values = vec![0.0; count];
        blocks::decode(blocks.kind, blocks.bytes, &mut values);
        Some(values)
    }

    fn blocks(&self, name: &str) -> Blocks<'_> {
        let Located { part, info } = &self.tensors[name];
        let kind = info.kind.unwrap_or_else(|id| panic!("{name} has type {id}, which is not read"));
        let cols = info.dims[0] as usize;
        let rows = info.dims[1..].iter().product::<u64>() as usize;
        let map = &self.parts[*part].map;
        Blocks { kind, rows, cols, bytes: &map[info.bytes.clone()], place: (map, info.bytes.start) }
    }

    /// Whether this is a `kv_b_proj` that the file has in two pieces.
    fn splits(&self, spec: &ParamSpec) -> bool {
        let layer =
            spec.name.strip_prefix("model.layers.").and_then(|rest| rest.strip_suffix(".self_attn.kv_b_proj.weight"));
        layer.is_some_and(|layer| !self.tensors.contains_key(&format!("blk.{layer}.attn_kv_b.weight")))
    }
}

impl<'a> Blocks<'a> {
    /// So many rows, from `first` on.
    fn rows(self, first: usize, rows: usize) -> Blocks<'a> {
        let (start, len, (map, at)) = (first * self.row_bytes(), rows * self.row_bytes(), self.place);
        Blocks { rows, bytes: &self.bytes[start..start + len], place: (map, at + start), ..self }
    }
}

impl Blocks<'_> {
    /// Decodes some rows at a time: `take(first_row, rows, values)`.
    fn decode_rows(&self, take: &mut dyn FnMut(usize, usize, &[f32])) {
        let at_once = (PIECE / self.cols).clamp(1, self.rows);
        let row_bytes = self.row_bytes();
        let mut values = vec![0.0; at_once * self.cols];
        for (piece, bytes) in self.bytes.chunks(at_once * row_bytes).enumerate() {
            let rows = bytes.len() / row_bytes;
            let values = &mut values[..rows * self.cols];
            blocks::decode(self.kind, bytes, values);
            take(piece * at_once, rows, values);
        }
    }

    fn row_bytes(&self) -> usize {
        self.kind.row_bytes(self.cols).expect("the header's reader has checked that rows are whole blocks")
    }
}

/// Whether a file has 1 more than the parameter.
fn is_one_more(config: &ModelConfig, spec: &ParamSpec) -> bool {
    spec.kind == ParamKind::Norm && config.family.row().norm_weights == NormWeights::OneMore
}

/// `kv_b_proj` from its two pieces, head by head.
fn join(config: &ModelConfig, k_b: Blocks, v_b: Blocks, take: &mut dyn FnMut(usize, usize, &[f32])) {
    let Attention::Mla { heads, kv_lora_rank: rank, nope_dim: nope, v_dim: v, .. } = config.attention else {
        unreachable!("only MLA has kv_b_proj")
    };
    let mut transposed = vec![0.0; rank * nope];
    let mut head = vec![0.0; (nope + v) * rank];
    let (k_bytes, v_bytes) = (rank * k_b.row_bytes(), v * v_b.row_bytes());
    for h in 0..heads {
        blocks::decode(k_b.kind, &k_b.bytes[h * k_bytes..][..k_bytes], &mut transposed);
        let (keys, values) = head.split_at_mut(nope * rank);
        for (i, row) in keys.chunks_exact_mut(rank).enumerate() {
            row.iter_mut().zip(transposed[i..].iter().step_by(nope)).for_each(|(to, from)| *to = *from);
        }
        blocks::decode(v_b.kind, &v_b.bytes[h * v_bytes..][..v_bytes], values);
        take(h * (nope + v), nope + v, &head);
    }
}

/// The number in `blk.{i}.…`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}
