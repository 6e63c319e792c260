//! What pages hold of layers with compressed keys: rows of tokens, what entries are made of, and entries.

use crate::config::{Attention, Entries, ModelConfig};
use wels_device::{Compression, PAGE, RowLayout};

/// How a layer's part of a page is laid out: rows, then the parts of its compressor, then those of its indexer's.
#[derive(Default)]
pub(crate) struct Parts {
    len: usize,
}

impl Parts {
    /// Of rows `width` wide, one for each so many tokens.
    pub fn rows(&mut self, width: usize, every: usize) -> RowLayout {
        let layout = RowLayout { offset: self.len, width, every };
        self.len += layout.page_len();
        layout
    }

    /// Of what entries are made of, kv and gate, and of entries.
    pub fn compressor(&mut self, of: Compression) -> [RowLayout; 3] {
        [self.rows(of.cols(), 1), self.rows(of.cols(), 1), self.rows(of.dim, of.rate)]
    }
}

/// How a layer's entries, `dim` wide, are made; none where there are none.
pub(crate) fn compression(entries: Entries, dim: usize) -> Option<Compression> {
    let overlap = matches!(entries, Entries::Chosen { .. });
    (entries != Entries::None).then(|| Compression { rate: entries.rate(), dim, overlap })
}

/// Numbers that a page has of decoder layer `layer`.
///
/// # Panics
/// If its attention is another.
pub(crate) fn page_len(config: &ModelConfig, layer: usize) -> usize {
    let Attention::Compressed { head_dim, .. } = config.attention else { panic!("entries of {:?}", config.attention) };
    let (mut parts, entries) = (Parts::default(), config.entries(layer));
    parts.rows(head_dim, 1);
    if let Some(of) = compression(entries, head_dim) {
        parts.compressor(of);
    }
    if let (Some(indexer), Entries::Chosen { .. }) = (config.indexer, entries) {
        compression(entries, indexer.dim).map(|of| parts.compressor(of));
    }
    parts.len.next_multiple_of(PAGE)
}
