//! The KV cache: keys and values of past tokens, in pages; where an indexer chooses among them, its keys too.
//!
//! A page holds [`PAGE_TOKENS`] tokens of all layers, MTP layers included. Which pages a sequence has, and what is in
//! them, is the caller's to know.

use crate::config::{Attention, CacheLayout, Indexer, ModelConfig};
use crate::entry_pages::page_len;
use crate::placement::{Place, Placement};
use std::ops::Range;
use std::sync::Arc;
use wels_device::{CacheDtype, CachePages, Device, KvLayout, LatentLayout, PAGE, PagedSequences, Sequence};

/// Tokens in a page.
pub const PAGE_TOKENS: usize = PAGE;

/// Memory for pages.
pub struct PagedCache {
    layout: LayerLayout,
    /// Width of the index keys that lie behind a layer's other numbers; 0 for none.
    index_dim: usize,
    parts: Vec<Part>,
    layers: usize,
}

/// What a device has of all pages.
struct Part {
    device: Arc<dyn Device>,
    pages: CachePages,
    /// Whose keys and values they are.
    layers: Range<usize>,
    /// Where the part of each of these begins in a page.
    offsets: Vec<usize>,
}

#[derive(Clone, Copy)]
enum LayerLayout {
    Expanded(KvLayout),
    Latent(LatentLayout),
    /// Rows of tokens and entries, as [`page_len`] says for each layer.
    Rows,
}

impl LayerLayout {
    /// # Panics
    /// If the layout is latent and the attention is not MLA.
    fn new(config: &ModelConfig, layout: CacheLayout) -> Self {
        match (&config.attention, layout) {
            (&Attention::Mla { heads, nope_dim, rope_dim, v_dim, .. }, CacheLayout::Expanded) => {
                LayerLayout::Expanded(KvLayout { kv_heads: heads, own: nope_dim, shared: rope_dim, v: v_dim })
            }
            (&Attention::Gqa { kv_heads, head_dim, .. }, CacheLayout::Expanded) => {
                LayerLayout::Expanded(KvLayout { kv_heads, own: head_dim, shared: 0, v: head_dim })
            }
            (&Attention::Mla { kv_lora_rank: latent, rope_dim: rotary, .. }, CacheLayout::Latent) => {
                LayerLayout::Latent(LatentLayout { latent, rotary })
            }
            (Attention::Compressed { .. }, CacheLayout::Expanded) => LayerLayout::Rows,
            (Attention::Gqa { .. } | Attention::Compressed { .. }, CacheLayout::Latent) => {
                panic!("latent pages for attention without latents")
            }
        }
    }

    /// Numbers that a page has of a layer.
    fn page_len(self) -> usize {
        match self {
            LayerLayout::Expanded(layout) => layout.page_len(),
            LayerLayout::Latent(layout) => layout.page_len(),
            LayerLayout::Rows => 0,
        }
    }
}

/// Numbers that a page has of each of some layers, index keys included.
fn layer_lens(config: &ModelConfig, layout: CacheLayout, layers: Range<usize>) -> Vec<usize> {
    let len = LayerLayout::new(config, layout).page_len() + Indexer::page_len(index_dim(config));
    let of_layer = |layer| if config.attention.is_compressed() { page_len(config, layer) } else { len };
    layers.map(of_layer).collect()
}

/// Width of index keys that are kept of each token.
fn index_dim(config: &ModelConfig) -> usize {
    config.indexer.filter(|_| config.attention.is_mla()).map_or(0, |indexer| indexer.dim)
}

const PLACES: [Place; 2] = [Place::Main, Place::Other];

fn layers(config: &ModelConfig) -> usize {
    config.layers + config.mtp_depth
}

impl PagedCache {
    /// Memory for `pages` pages, which the system gives as it is touched.
    ///
    /// # Panics
    /// If the layout is latent and the model's attention is not MLA.
    pub fn new(
        device: &Arc<dyn Device>,
        config: &ModelConfig,
        layout: CacheLayout,
        dtype: CacheDtype,
        pages: usize,
    ) -> Self {
        Self::placed(&device.into(), config, layout, [dtype; 2], pages)
    }

    /// The same where the layers are: on the main device in the first number format, on the other in the second.
    ///
    /// # Panics
    /// Likewise.
    pub fn placed(
        placement: &Placement,
        config: &ModelConfig,
        layout: CacheLayout,
        dtypes: [CacheDtype; 2],
        pages: usize,
    ) -> Self {
        let part = |(place, dtype)| {
            let (device, layers) = (placement.device(place).clone(), placement.cached_layers(config, place));
            let mut len = 0;
            let offset = |own| {
                len += own;
                len - own
            };
            let offsets: Vec<usize> = layer_lens(config, layout, layers.clone()).into_iter().map(offset).collect();
            let pages = (!layers.is_empty()).then(|| device.pages(dtype, pages, len));
            pages.map(|pages| Part { device, pages, layers, offsets })
        };
        let parts = PLACES.into_iter().zip(dtypes).filter_map(part).collect();
        let layout = LayerLayout::new(config, layout);
        PagedCache { layout, index_dim: index_dim(config), parts, layers: layers(config) }
    }

    /// Bytes that a page takes.
    ///
    /// # Panics
    /// As for [`PagedCache::new`].
    pub fn bytes_per_page(config: &ModelConfig, layout: CacheLayout, dtype: CacheDtype) -> usize {
        layer_lens(config, layout, 0..layers(config)).iter().sum::<usize>() * dtype.bytes()
    }

    /// Bytes that a page takes of the main and of the other device, as [`PagedCache::placed`] has it.
    ///
    /// # Panics
    /// As for [`PagedCache::new`].
    pub fn bytes_per_page_at(
        placement: &Placement,
        config: &ModelConfig,
        layout: CacheLayout,
        dtypes: [CacheDtype; 2],
    ) -> [usize; 2] {
        let bytes = |place, dtype: CacheDtype| {
            layer_lens(config, layout, placement.cached_layers(config, place)).iter().sum::<usize>() * dtype.bytes()
        };
        [bytes(Place::Main, dtypes[0]), bytes(Place::Other, dtypes[1])]
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.parts[0].pages.count
    }

    /// Takes the memory of some pages from the system before it is touched.
    ///
    /// # Panics
    /// If there are no such pages.
    pub fn populate(&self, pages: Range<usize>) {
        self.parts.iter().for_each(|part| part.device.populate(&part.pages, pages.clone()));
    }

    /// Copies page `from` over page `to`, for a sequence that goes on from a page that another one goes on from too.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        self.parts.iter_mut().for_each(|part| part.device.copy_page(&mut part.pages, from, to));
    }

    /// Where a layer's keys and values are, and where in a page.
    fn of_layer(&mut self, layer: usize) -> (&mut CachePages, usize) {
        let part = self.parts.iter_mut().find(|part| part.layers.contains(&layer));
        let Part { pages, layers, offsets, .. } = part.expect("a layer of the model that the cache is of");
        (pages, offsets[layer - layers.start])
    }
}

/// The cache under way in a pass.
pub(crate) struct Paging<'a> {
    cache: &'a mut PagedCache,
    sequences: Vec<Sequence<'a>>,
}

impl<'a> Paging<'a> {
    /// # Panics
    /// If the cache was made for another model.
    pub fn new(cache: &'a mut PagedCache, sequences: Vec<Sequence<'a>>, config: &ModelConfig) -> Self {
        assert_eq!(cache.layers, layers(config), "layers of the cache and of the model");
        Paging { cache, sequences }
    }

    /// How attention is to be computed.
    pub fn layout(&self) -> CacheLayout {
        match self.cache.layout {
            LayerLayout::Expanded(_) | LayerLayout::Rows => CacheLayout::Expanded,
            LayerLayout::Latent(_) => CacheLayout::Latent,
        }
    }

    /// The pages, the sequences with where the layer's part of a page begins, and how it is laid out.
    pub fn expanded(&mut self, layer: usize) -> (&mut CachePages, PagedSequences<'_>, KvLayout) {
        let LayerLayout::Expanded(layout) = self.cache.layout else { panic!("the cache holds latents") };
        let (pages, offset) = self.cache.of_layer(layer);
        let at = PagedSequences { offset, sequences: &self.sequences };
        (pages, at, layout)
    }

    /// As [`Paging::expanded`], where the layer's index keys begin.
    pub fn index(&mut self, layer: usize) -> (&mut CachePages, PagedSequences<'_>) {
        assert!(self.cache.index_dim > 0, "the cache holds no index keys");
        let behind = self.cache.layout.page_len();
        let (pages, offset) = self.cache.of_layer(layer);
        (pages, PagedSequences { offset: offset + behind, sequences: &self.sequences })
    }

    /// The new tokens of each sequence, and those before.
    pub fn sequences(&self) -> &[Sequence<'a>] {
        &self.sequences
    }

    /// As [`Paging::expanded`], of a cache of rows and entries.
    pub fn rows(&mut self, layer: usize) -> (&mut CachePages, PagedSequences<'_>) {
        let (pages, offset) = self.cache.of_layer(layer);
        (pages, PagedSequences { offset, sequences: &self.sequences })
    }

    /// As [`Paging::expanded`], of a cache of latents.
    pub fn latent(&mut self, layer: usize) -> (&mut CachePages, PagedSequences<'_>, LatentLayout) {
        let LayerLayout::Latent(layout) = self.cache.layout else { panic!("the cache holds no latents") };
        let (pages, offset) = self.cache.of_layer(layer);
        let at = PagedSequences { offset, sequences: &self.sequences };
        (pages, at, layout)
    }
}
