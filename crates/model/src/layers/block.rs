//! A decoder layer: `u = h + attention(norm(h))`, `h' = u + ffn(norm(u))`; in some families with a norm of what
//! attention and feed-forward layer give before it is added, and in one with several streams in place of h, of which
//! both read a sum.

use super::{compressed::CompressedAttention, gqa::Gqa, mla::Mla, mlp::Mlp, moe::Moe, streams::Connection};
use crate::config::{Attention, ModelConfig};
use crate::ops::{add, bring, rms_norm};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use std::sync::Arc;
use wels_device::Rotary;

pub(crate) struct Block {
    layer: usize,
    name: String,
    attention_norm: Weight,
    attention: AttentionLayer,
    ffn_norm: Weight,
    ffn: Ffn,
    /// Of what attention and feed-forward layer give.
    post_norms: [Option<Weight>; 2],
    /// How attention and feed-forward layer are connected to the streams, where there are several.
    connections: Option<[Connection; 2]>,
    eps: f32,
}

enum AttentionLayer {
    Mla(Mla),
    Gqa(Gqa),
    Compressed(Box<CompressedAttention>),
}

enum Ffn {
    Dense(Mlp),
    Moe(Box<Moe>),
}

impl Block {
    /// Layer `layer`, MTP layers counting on from the last.
    pub fn new(wiring: &mut Wiring, config: &ModelConfig, layer: usize, rotary: &Rotary) -> Self {
        let name = format!("model.layers.{layer}");
        let norms = &config.family.row().norms;
        let (attention, mlp) = (format!("{name}.self_attn"), format!("{name}.mlp"));
        Block {
            layer,
            attention_norm: wiring.weight(&format!("{name}.input_layernorm.weight")),
            attention: match config.attention {
                Attention::Mla { .. } => AttentionLayer::Mla(Mla::new(wiring, &attention, config, rotary)),
                Attention::Gqa { .. } => AttentionLayer::Gqa(Gqa::new(wiring, &attention, config, layer, rotary)),
                Attention::Compressed { .. } => AttentionLayer::Compressed(Box::new(CompressedAttention::new(
                    wiring, &attention, config, layer, rotary,
                ))),
            },
            ffn_norm: wiring.weight(&format!("{name}.{}", norms.before_ffn)),
            ffn: match &config.moe {
                Some(moe) if config.is_moe_layer(layer) => {
                    Ffn::Moe(Box::new(Moe::new(wiring, &mlp, moe, config.gating)))
                }
                _ => Ffn::Dense(Mlp::new(wiring, &mlp, config.gating)),
            },
            post_norms: norms.after.map(|part| part.map(|part| wiring.weight(&format!("{name}.{part}")))),
            connections: config.streams.map(|streams| {
                ["attn_hc", "ffn_hc"]
                    .map(|part| Connection::new(wiring, &format!("{name}.{part}"), streams, config.norm_eps))
            }),
            eps: config.norm_eps,
            name,
        }
    }

    /// The up-projection of the latent, if there is one, and the widths of its parts of a head: keys and values.
    pub fn up_projection(&self) -> Option<(Weight, usize, usize)> {
        match &self.attention {
            AttentionLayer::Mla(attention) => Some(attention.up_projection()),
            AttentionLayer::Gqa(_) | AttentionLayer::Compressed(_) => None,
        }
    }

    /// `[T, D]` to `[T, D]`; keeps only h if the pass is to compute this layer again.
    pub fn run(self: &Arc<Self>, g: &mut Graph, h: Var) -> Var {
        if g.recording().is_none() || !g.context.execution.recompute.includes(self.layer) {
            return self.forward(g, h);
        }
        let block = self.clone();
        g.recomputed(h, move |g, h| block.forward(g, h))
    }

    /// Takes part in what the layer exchanges with other ranks, in their order, with no tokens: `[0, D]` to `[0, D]`.
    pub fn attend(self: &Arc<Self>, g: &mut Graph, h: Var) -> Var {
        let Ffn::Moe(moe) = &self.ffn else { return h };
        if g.recording().is_none() || !g.context.execution.recompute.includes(self.layer) {
            return moe.attend(g, h);
        }
        let block = self.clone();
        g.recomputed(h, move |g, h| match &block.ffn {
            Ffn::Moe(moe) => moe.attend(g, h),
            Ffn::Dense(_) => h,
        })
    }

    fn forward(&self, g: &mut Graph, h: Var) -> Var {
        g.enter_layer(self.layer);
        g.enter(&self.name);
        g.follow(self.attention_norm);
        let h = bring(g, h);
        let h = self.around(g, h, 0, self.attention_norm, |g, x| match &self.attention {
            AttentionLayer::Mla(attention) => attention.forward(g, x),
            AttentionLayer::Gqa(attention) => attention.forward(g, x),
            AttentionLayer::Compressed(attention) => attention.forward(g, x),
        });
        self.around(g, h, 1, self.ffn_norm, |g, x| match &self.ffn {
            Ffn::Dense(mlp) => mlp.forward(g, x),
            Ffn::Moe(moe) => moe.forward(g, x),
        })
    }

    /// What joins attention (0) or the feed-forward layer (1) to the residual stream or streams.
    fn around(
        &self,
        g: &mut Graph,
        h: Var,
        which: usize,
        norm: Weight,
        layer: impl FnOnce(&mut Graph, &Var) -> Var,
    ) -> Var {
        let Some(connections) = &self.connections else {
            let x = rms_norm(g, &h, norm, self.eps);
            let y = layer(g, &x);
            let y = self.post_norm(g, which, y);
            return add(g, &h, y);
        };
        let (x, weights) = connections[which].read(g, &h);
        let x = rms_norm(g, &x, norm, self.eps);
        let y = layer(g, &x);
        connections[which].write(g, &h, y, &weights)
    }

    fn post_norm(&self, g: &mut Graph, which: usize, x: Var) -> Var {
        match self.post_norms[which] {
            Some(norm) => rms_norm(g, &x, norm, self.eps),
            None => x,
        }
    }
}
