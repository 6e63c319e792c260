//! Keys and values of past tokens, in the layout of training (*expanded*): each layer keeps the rows from which
//! attention reads its heads, exactly as the forward pass computed them.

use crate::config::{Attention, ModelConfig};

/// One sequence's past.
#[derive(Clone, Debug)]
pub struct KvCache {
    len: usize,
    layers: Vec<LayerCache>,
}

/// One layer's rows, one a token: those that hold keys (and, in MLA, the values beside them), those that hold values
/// apart from keys, those of the rotary key that the heads share.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerCache {
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
    pub shared: Vec<f32>,
}

impl KvCache {
    /// An empty past.
    pub fn new(config: &ModelConfig) -> Self {
        KvCache { len: 0, layers: vec![LayerCache::default(); config.layers] }
    }

    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all but the first `len` tokens.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "{len} tokens to keep of {}", self.len);
        for rows in self.layers.iter_mut().flat_map(|layer| [&mut layer.keys, &mut layer.values, &mut layer.shared]) {
            let width = rows.len() / self.len.max(1);
            rows.truncate(width * len);
        }
        self.len = len;
    }

    /// Bytes that a token takes, all layers together.
    pub fn bytes_per_token(config: &ModelConfig) -> usize {
        let width = match config.attention {
            Attention::Mla { heads, nope_dim, v_dim, rope_dim, .. } => heads * (nope_dim + v_dim) + rope_dim,
            Attention::Gqa { kv_heads, head_dim, .. } => 2 * kv_heads * head_dim,
        };
        config.layers * width * size_of::<f32>()
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        let rows = self.layers.iter().flat_map(|layer| [&layer.keys, &layer.values, &layer.shared]);
        rows.map(|rows| size_of_val(&rows[..])).sum()
    }

    pub(crate) fn layer(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }

    /// All layers have got `tokens` more.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
