//! A matrix of weights for inference, quantised or wide, packed or in the file's blocks.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::blocks::{self, BlockType};
use super::decode;
use super::pack::{self, Form, Kind, Panel, ROWS};
use super::wide;
use crate::memory::Buffer;
use crate::par::{self, SharedMut};
use crate::scratch;

/// Weights [N, K] of any block type, each row of whole blocks.
pub struct QuantMatrix {
    block_type: BlockType,
    rows: usize,
    columns: usize,
    storage: Storage,
}

enum Storage {
    Packed(Panels),
    /// Rows of blocks, in the file's order, and their panels if the budget allowed for them at a product.
    Blocks {
        owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
        budget: Arc<MemoryBudget>,
        packed: OnceLock<Panels>,
    },
}

/// All panels of a matrix: see [`pack`].
struct Panels {
    terms: Buffer,
    scales: Buffer,
}

/// Memory that may go into panels of matrices that lie in a file: who comes first has it.
#[derive(Debug, Default)]
pub struct MemoryBudget {
    bytes: AtomicU64,
}

impl MemoryBudget {
    /// So many bytes.
    pub fn new(bytes: u64) -> Self {
        MemoryBudget { bytes: AtomicU64::new(bytes) }
    }

    fn take(&self, bytes: u64) -> bool {
        let less = |left: u64| left.checked_sub(bytes);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

impl QuantMatrix {
    /// Packs the blocks of rows.
    ///
    /// # Panics
    /// If `bytes` are not the blocks of `rows` rows of `columns` numbers.
    pub fn from_blocks(block_type: BlockType, bytes: &[u8], rows: usize, columns: usize) -> Self {
        check(block_type, bytes.len(), rows, columns);
        let nothing = Panels { terms: Buffer::zeros(0), scales: Buffer::zeros(0) };
        let mut matrix = QuantMatrix { block_type, rows, columns, storage: Storage::Packed(nothing) };
        let packed = pack_all(&[(&matrix, bytes)]).pop().expect("one matrix");
        matrix.storage = Storage::Packed(packed);
        matrix
    }

    /// Leaves the blocks where they are, as in a mapped file. The first product packs them if `budget` allows; without
    /// it each product packs what it reads. The same bits in all cases.
    ///
    /// # Panics
    /// As [`QuantMatrix::from_blocks`] for the bytes in `range` of `owner`.
    pub fn mapped(
        block_type: BlockType,
        owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
        rows: usize,
        columns: usize,
        budget: &Arc<MemoryBudget>,
    ) -> Self {
        check(block_type, (*owner).as_ref()[range.clone()].len(), rows, columns);
        let storage = Storage::Blocks { owner, range, budget: budget.clone(), packed: OnceLock::new() };
        QuantMatrix { block_type, rows, columns, storage }
    }

    /// Quantises values [rows, columns] to a type that [`BlockType::can_encode`]; a row is filled up with zeros to
    /// whole blocks.
    ///
    /// # Panics
    /// If the type is not such a one, or `values` are not as many.
    pub fn quantise(values: &[f32], rows: usize, columns: usize, to: BlockType) -> Self {
        assert_eq!(values.len(), rows * columns, "values are [{rows}, {columns}]");
        let padded = columns.next_multiple_of(to.len());
        let row_bytes = padded / to.len() * to.bytes();
        let mut bytes = vec![0; rows * row_bytes];
        par::chunks_mut(&mut bytes, row_bytes.max(1), |row, bytes| {
            let mut numbers = scratch::zeros(padded);
            numbers[..columns].copy_from_slice(&values[row * columns..][..columns]);
            blocks::encode(to, &numbers, bytes);
        });
        QuantMatrix { columns, ..Self::from_blocks(to, &bytes, rows, padded) }
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How the numbers are stored.
    pub fn block_type(&self) -> BlockType {
        self.block_type
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.packed().map_or_else(|| self.blocks().len(), |Panels { terms, scales }| 4 * (terms.len() + scales.len()))
    }

    /// Row i, exactly as [`blocks::decode`] has it.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not `[K]`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        assert_eq!(out.len(), self.columns, "a row is [K] with K = {}", self.columns);
        let Some(Panels { terms, scales }) = self.packed() else {
            return blocks::decode(self.block_type, self.block_rows(i..i + 1), out);
        };
        let terms = &terms[i / ROWS * self.panel_terms()..][..self.panel_terms()];
        let scales = &scratch::bytes(scales)[i / ROWS * self.panel_scales()..][..self.panel_scales()];
        match self.kind() {
            Kind::Quantised(_) => pack::unpack_row(self.block_type, scratch::words(terms), scales, i % ROWS, out),
            Kind::Wide => wide::unpack_row(self.block_type, scratch::bytes(terms), i % ROWS, out),
        }
    }

    /// The rows that `ids` name, [ids, K].
    ///
    /// # Panics
    /// As [`QuantMatrix::row`].
    pub fn rows_of(&self, ids: &[u32], out: &mut [f32]) {
        assert_eq!(out.len(), ids.len() * self.columns, "{} rows of {}", ids.len(), self.columns);
        par::chunks_mut(out, self.columns, |i, out| self.row(ids[i] as usize, out));
    }

    /// Some rows, from the first of a panel on, as [`QuantMatrix::row`] has each.
    ///
    /// # Panics
    /// If they are not there or do not begin with a panel, or `out` is not `[rows, K]`.
    pub(super) fn numbers(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.start.is_multiple_of(ROWS) && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert_eq!(out.len(), rows.len() * self.columns, "{} rows of {}", rows.len(), self.columns);
        let (terms, scales) = (4 * self.panel_terms(), self.panel_scales());
        par::chunks_mut(out, ROWS * self.columns, |i, out| match (self.packed(), self.kind()) {
            (Some(panels), Kind::Quantised(_)) => {
                let panel = rows.start / ROWS + i;
                let terms = &scratch::bytes(&panels.terms)[panel * terms..][..terms];
                let scales = &scratch::bytes(&panels.scales)[panel * scales..][..scales];
                decode::rows(self.block_type, (terms, scales), self.columns, out);
            }
            _ => {
                let first = rows.start + i * ROWS;
                out.chunks_exact_mut(self.columns).enumerate().for_each(|(row, out)| self.row(first + row, out));
            }
        });
    }

    pub(super) fn kind(&self) -> Kind {
        if self.block_type.is_quantised() { Kind::Quantised(Form::of(self.block_type)) } else { Kind::Wide }
    }

    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Records of a row.
    pub(super) fn records(&self) -> usize {
        self.columns.div_ceil(self.block_type.len())
    }

    /// Words of a panel's terms.
    pub(super) fn panel_terms(&self) -> usize {
        let record = match self.kind() {
            Kind::Quantised(form) => form.blocks() * form.term_bytes(),
            Kind::Wide => ROWS * self.block_type.bytes(),
        };
        self.records() * record / 4
    }

    /// Bytes of a panel's scales.
    pub(super) fn panel_scales(&self) -> usize {
        match self.kind() {
            Kind::Quantised(form) => self.records() * form.scale_bytes(),
            Kind::Wide => 0,
        }
    }

    /// The first of the panels, which lie one after the other.
    ///
    /// Panels of blocks are packed into `terms` and `scales`, which have room for them.
    pub(super) fn panel(&self, panels: Range<usize>, terms: &mut [f32], scales: &mut [f32]) -> Panel {
        assert!(panels.start < panels.end && panels.end <= self.panels(), "{panels:?} of {}", self.panels());
        let (term_words, scale_bytes) = (self.panel_terms(), self.panel_scales());
        if let Some(Panels { terms, scales }) = self.packed() {
            let terms = scratch::bytes(&terms[panels.start * term_words..]);
            return Panel {
                terms: terms.as_ptr(),
                scales: scratch::bytes(scales)[panels.start * scale_bytes..].as_ptr(),
            };
        }
        let scales = scratch::bytes_mut(scales);
        let rows = panels.start * ROWS..self.rows.min(panels.end * ROWS);
        if rows.len() < ROWS * panels.len() {
            let last = panels.len() - 1;
            terms[last * term_words..][..term_words].fill(0.0);
            scales[last * scale_bytes..][..scale_bytes].fill(0);
        }
        let bytes = self.block_rows(rows.clone());
        let row_bytes = bytes.len() / rows.len();
        for (i, rows) in bytes.chunks(ROWS * row_bytes).enumerate() {
            let (terms, scales) = (&mut terms[i * term_words..], &mut scales[i * scale_bytes..]);
            pack_panel(self.block_type, rows, row_bytes, &mut terms[..term_words], &mut scales[..scale_bytes]);
        }
        Panel { terms: terms.as_ptr().cast(), scales: scales.as_ptr() }
    }

    /// Whether no panel has to be packed when it is read.
    pub(super) fn is_packed(&self) -> bool {
        self.packed().is_some()
    }

    /// The addresses of the terms, as a product reads them.
    pub(super) fn terms(&self) -> Range<usize> {
        let bytes = self.packed().map_or_else(|| self.blocks(), |panels| scratch::bytes(&panels.terms));
        bytes.as_ptr().addr()..bytes.as_ptr().addr() + bytes.len()
    }

    fn packed(&self) -> Option<&Panels> {
        match &self.storage {
            Storage::Packed(panels) => Some(panels),
            Storage::Blocks { packed, .. } => packed.get(),
        }
    }

    /// The blocks where they are kept; none of a matrix that never was in a file.
    fn blocks(&self) -> &[u8] {
        let Storage::Blocks { owner, range, .. } = &self.storage else { return &[] };
        &(**owner).as_ref()[range.clone()]
    }

    fn block_rows(&self, rows: Range<usize>) -> &[u8] {
        let row_bytes = self.records() * self.block_type.bytes();
        &self.blocks()[rows.start * row_bytes..rows.end * row_bytes]
    }

    fn packed_bytes(&self) -> u64 {
        (self.panels() * (4 * self.panel_terms() + self.panel_scales())) as u64
    }
}

/// Packs those of the matrices that are not and fit into their budget, to stay so.
pub(super) fn pack_where_room_is<'a>(matrices: impl Iterator<Item = &'a QuantMatrix>) {
    let mut chosen: Vec<(&QuantMatrix, &[u8])> = Vec::new();
    for matrix in matrices {
        if let Storage::Blocks { budget, packed, .. } = &matrix.storage
            && packed.get().is_none()
            && !chosen.iter().any(|(other, _)| std::ptr::eq(*other, matrix))
            && budget.take(matrix.packed_bytes())
        {
            chosen.push((matrix, matrix.blocks()));
        }
    }
    for ((matrix, _), panels) in chosen.iter().zip(pack_all(&chosen)) {
        // Somebody else may have packed it meanwhile; then this copy goes.
        if let Storage::Blocks { budget, packed, .. } = &matrix.storage
            && packed.set(panels).is_err()
        {
            budget.bytes.fetch_add(matrix.packed_bytes(), Ordering::Relaxed);
        }
    }
}

/// The panels of matrices whose blocks are given.
fn pack_all(matrices: &[(&QuantMatrix, &[u8])]) -> Vec<Panels> {
    let mut all: Vec<Panels> = Vec::with_capacity(matrices.len());
    let mut tasks = Vec::new();
    for (i, (matrix, _)) in matrices.iter().enumerate() {
        let count = matrix.panels();
        let terms = Buffer::beside_others(count * matrix.panel_terms());
        all.push(Panels { terms, scales: Buffer::beside_others(count * matrix.panel_scales() / 4) });
        tasks.extend((0..count).map(|panel| (i, panel)));
    }
    let places: Vec<_> =
        all.iter_mut().map(|p| (SharedMut::new(&mut p.terms), SharedMut::new(&mut p.scales))).collect();
    par::run(tasks.len(), |task| {
        let (i, panel) = tasks[task];
        let ((matrix, bytes), (terms, scales)) = (matrices[i], places[i]);
        let (term_words, scale_words) = (matrix.panel_terms(), matrix.panel_scales() / 4);
        // SAFETY: each panel's part is written by one task.
        let (terms, scales) =
            unsafe { (terms.slice(panel * term_words, term_words), scales.slice(panel * scale_words, scale_words)) };
        let row_bytes = matrix.records() * matrix.block_type.bytes();
        let rows = &bytes[panel * ROWS * row_bytes..bytes.len().min((panel + 1) * ROWS * row_bytes)];
        pack_panel(matrix.block_type, rows, row_bytes, terms, scratch::bytes_mut(scales));
    });
    all
}

fn pack_panel(block_type: BlockType, rows: &[u8], row_bytes: usize, terms: &mut [f32], scales: &mut [u8]) {
    if block_type.is_quantised() {
        pack::pack(block_type, rows, row_bytes, scratch::words_mut(terms), scales);
    } else {
        wide::pack(block_type, rows, row_bytes, scratch::bytes_mut(terms));
    }
}

fn check(block_type: BlockType, bytes: usize, rows: usize, columns: usize) {
    assert!(columns > 0, "rows without numbers");
    assert!(block_type != BlockType::E4m3, "{} is packed as f32", block_type.name());
    let expected = block_type.row_bytes(columns).and_then(|row_bytes| row_bytes.checked_mul(rows));
    assert!(expected == Some(bytes), "{bytes} bytes of {} for [{rows}, {columns}]", block_type.name());
}
