//! Hyper-connections: what attention and feed-forward layers read of the residual streams, and how they join them.
//!
//! ```text
//! raw = W norm(x)        of the streams x [T, n·D] side by side, normed without a weight; in f32
//! ```
//! Source: DeepSeek-V4 report, §2.2, and `transformers` 5.23.

use crate::config::Streams;
use crate::ops::{bring, collapse, expand, linear, plain_norm_heads, weigh_streams};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use wels_device::{Mixing, Precision};

pub(crate) struct Connection {
    of: Mixing,
    map: Weight,
    base: Weight,
    scale: Weight,
    eps: f32,
}

impl Connection {
    /// Of a layer.
    pub fn new(wiring: &mut Wiring, name: &str, streams: Streams, eps: f32) -> Self {
        Self::named(wiring, ["fn", "base", "scale"].map(|part| format!("{name}.{part}")), streams, eps, true)
    }

    /// What the final norm reads the streams by.
    pub fn before_head(wiring: &mut Wiring, streams: Streams, eps: f32) -> Self {
        let names = ["hc_fn", "hc_base", "hc_scale"].map(|part| format!("model.hc_head.{part}"));
        Self::named(wiring, names, streams, eps, false)
    }

    fn named(wiring: &mut Wiring, names: [String; 3], of: Streams, eps: f32, whole: bool) -> Self {
        let Streams { count: streams, iterations, eps: added } = of;
        let [map, base, scale] = names.map(|name| wiring.weight(&name));
        Connection { of: Mixing { streams, iterations, eps: added, whole }, map, base, scale, eps }
    }

    /// `[T, D]` of `[T, n·D]`, and the weights that [`Connection::write`] takes.
    pub fn read(&self, g: &mut Graph, x: &Var) -> (Var, Var) {
        g.follow(self.map);
        let x = &bring(g, x.clone());
        let normed = plain_norm_heads(g, x.clone(), 1, self.eps);
        let raw = linear(g, Precision::F32, &normed, self.map);
        let weights = weigh_streams(g, self.of, raw, self.base, self.scale);
        (collapse(g, self.of, x, &weights), weights)
    }

    /// The next streams `[T, n·D]`, of these and what the layer gives, `[T, D]`.
    pub fn write(&self, g: &mut Graph, x: &Var, y: Var, weights: &Var) -> Var {
        expand(g, self.of, x, y, weights)
    }
}
