//! A matrix of weights for inference, quantised or wide, packed or in the file's blocks.

use std::ops::Range;
use std::sync::Arc;

use super::blocks::{self, BlockType};
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
    /// Panels: see [`pack`].
    Packed { terms: Buffer, scales: Buffer },
    /// Rows of blocks, in the file's order.
    Blocks { owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize> },
}

impl QuantMatrix {
    /// Packs the blocks of rows.
    ///
    /// # Panics
    /// If `bytes` are not the blocks of `rows` rows of `columns` numbers.
    pub fn from_blocks(block_type: BlockType, bytes: &[u8], rows: usize, columns: usize) -> Self {
        let row_bytes = check(block_type, bytes.len(), rows, columns);
        let packed = |storage| QuantMatrix { block_type, rows, columns, storage };
        let matrix = packed(Storage::Packed { terms: Buffer::zeros(0), scales: Buffer::zeros(0) });
        let (term_words, scale_bytes) = (matrix.panel_terms(), matrix.panel_scales());
        let panels = rows.div_ceil(ROWS);
        let mut terms = Buffer::beside_others(panels * term_words);
        let mut scales = Buffer::beside_others(panels * scale_bytes / 4);
        let (all_terms, all_scales) = (SharedMut::new(&mut terms), SharedMut::new(&mut scales));
        par::run(panels, |panel| {
            // SAFETY: each panel's part is written by one task.
            let (terms, scales) = unsafe {
                (
                    all_terms.slice(panel * term_words, term_words),
                    all_scales.slice(panel * scale_bytes / 4, scale_bytes / 4),
                )
            };
            let rows = &bytes[panel * ROWS * row_bytes..bytes.len().min((panel + 1) * ROWS * row_bytes)];
            pack_panel(block_type, rows, row_bytes, terms, scratch::bytes_mut(scales));
        });
        packed(Storage::Packed { terms, scales })
    }

    /// Leaves the blocks where they are, as in a mapped file: each product unpacks what it reads. The same bits as
    /// packed, in more time.
    ///
    /// # Panics
    /// As [`QuantMatrix::from_blocks`] for the bytes in `range` of `owner`.
    pub fn mapped(
        block_type: BlockType,
        owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
        rows: usize,
        columns: usize,
    ) -> Self {
        check(block_type, (*owner).as_ref()[range.clone()].len(), rows, columns);
        QuantMatrix { block_type, rows, columns, storage: Storage::Blocks { owner, range } }
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
        match &self.storage {
            Storage::Packed { terms, scales } => 4 * (terms.len() + scales.len()),
            Storage::Blocks { range, .. } => range.len(),
        }
    }

    /// Row i, exactly as [`blocks::decode`] has it.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not `[K]`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        assert_eq!(out.len(), self.columns, "a row is [K] with K = {}", self.columns);
        match &self.storage {
            Storage::Packed { terms, scales } => {
                let terms = &terms[i / ROWS * self.panel_terms()..][..self.panel_terms()];
                let scales = &scratch::bytes(scales)[i / ROWS * self.panel_scales()..][..self.panel_scales()];
                match self.kind() {
                    Kind::Quantised(_) => {
                        pack::unpack_row(self.block_type, scratch::words(terms), scales, i % ROWS, out)
                    }
                    Kind::Wide => wide::unpack_row(self.block_type, scratch::bytes(terms), i % ROWS, out),
                }
            }
            Storage::Blocks { .. } => blocks::decode(self.block_type, self.block_rows(i..i + 1), out),
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
        if let Storage::Packed { terms, scales } = &self.storage {
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

    /// Whether panels have to be packed when they are read.
    pub(super) fn is_packed(&self) -> bool {
        matches!(self.storage, Storage::Packed { .. })
    }

    /// The blocks of rows, where they are kept as blocks.
    fn block_rows(&self, rows: Range<usize>) -> &[u8] {
        let Storage::Blocks { owner, range } = &self.storage else { return &[] };
        let row_bytes = self.records() * self.block_type.bytes();
        &(**owner).as_ref()[range.clone()][rows.start * row_bytes..rows.end * row_bytes]
    }
}

fn pack_panel(block_type: BlockType, rows: &[u8], row_bytes: usize, terms: &mut [f32], scales: &mut [u8]) {
    if block_type.is_quantised() {
        pack::pack(block_type, rows, row_bytes, scratch::words_mut(terms), scales);
    } else {
        wide::pack(block_type, rows, row_bytes, scratch::bytes_mut(terms));
    }
}

/// The bytes of a row.
fn check(block_type: BlockType, bytes: usize, rows: usize, columns: usize) -> usize {
    assert!(columns > 0, "rows without numbers");
    let row_bytes = block_type.row_bytes(columns);
    let expected = row_bytes.and_then(|row_bytes| row_bytes.checked_mul(rows));
    assert!(expected == Some(bytes), "{bytes} bytes of {} for [{rows}, {columns}]", block_type.name());
    bytes.checked_div(rows).unwrap_or(0)
}
