//! Causal attention over packed sequences: `out = softmax(scale · q · kᵀ) · v` for each head.
//!
//! Heads are read where the projections left them: q, keys and values are column ranges ([`Part`]) of variables, and
//! keys and values may lie in the same one, as MLA's do. A shared part (MLA's rotary key) belongs to every head's key,
//! after its own. out `[T, H·v]`. Saved: q, k, v, out, and for each token and head the maximum score and 1/Σ.
//! Backward: the weights are computed again block by block (Dao 2023, algorithm 2). Source: DeepSeek-V3 report, eq. 10.
//!
//! With sinks `[H]`, a query has one more score for each head, whose share of the weights goes to no value (gpt-oss);
//! their gradients are chains over the tokens.
//!
//! Where keys are chosen (`choose`), the others have no weight, and what chose them learns by the weights.
//!
//! With pages (`crate::paged`) keys and values are appended to them and the queries attend over all of them, to the
//! same bits.

use super::choose::Choice;
use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::{AttentionGradients, AttentionInputs, AttentionShape, ColumnHeads, ExpandedQuery, Tensor};

/// The heads that lie in the columns `offset + h·head_stride ..+ dim` of a variable.
#[derive(Clone)]
pub struct Part {
    /// Rows of all tokens.
    pub of: Var,
    /// First column of the first head.
    pub offset: usize,
    /// From one head to the next.
    pub head_stride: usize,
    /// Width of a head.
    pub dim: usize,
}

impl Part {
    fn heads(&self) -> ColumnHeads<'_> {
        let Part { ref of, offset, head_stride, dim } = *self;
        ColumnHeads { of, offset, head_stride, dim }
    }
}

/// Queries, keys and values of one attention.
pub struct Parts {
    /// Queries, as wide as a key with its shared part.
    pub q: Part,
    /// Each head's own part of the keys.
    pub k: Part,
    /// The part that all heads' keys share.
    pub k_shared: Option<Part>,
    /// Values.
    pub v: Part,
    /// `[H]`.
    pub sinks: Option<Weight>,
    /// The keys that queries attend to, if not to all.
    pub choice: Option<Choice>,
}

impl Parts {
    pub(super) fn inputs<'a>(&'a self, sinks: Option<&'a Tensor>) -> AttentionInputs<'a> {
        let Parts { q, k, k_shared, v, .. } = self;
        let k_shared = k_shared.as_ref().map(Part::heads);
        let chosen = self.choice.as_ref().map(|choice| &*choice.chosen);
        AttentionInputs { q: q.heads(), k: k.heads(), k_shared, v: v.heads(), sinks, chosen }
    }

    /// Whether keys and values lie in one variable.
    fn joint(&self) -> bool {
        self.k.of.shares_memory(&self.v.of)
    }
}

/// `out[T, H·v]`.
pub fn attention(g: &mut Graph, shape: AttentionShape, parts: Parts) -> Var {
    let (tokens, layer, device) = (parts.q.of.rows(), g.layer(), g.device());
    let mut out = g.tensor_of(parts.q.of.dtype(), tokens, shape.heads * parts.v.dim);
    let sinks = parts.sinks;
    let inputs = parts.inputs(sinks.map(|sinks| g.weight(sinks)));
    if let Some(paging) = g.paging() {
        let (pages, at, layout) = paging.expanded(layer);
        device.append(pages, at, layout, inputs);
        let AttentionInputs { q, sinks, chosen, .. } = inputs;
        device.attend(pages, at, layout, ExpandedQuery { shape, q, sinks, chosen }, &mut out);
        g.inspect("attention", &out);
        return g.variable(out);
    }
    let mut stats = g.tensor(tokens, shape.heads * 2);
    device.attention(shape, &g.context.sequences.starts, inputs, &mut out, &mut stats);
    let learning = parts.choice.as_ref().and_then(|choice| choice.learning(g, shape, &parts, &stats));
    let kept_out = Tensor::clone(&out);
    let out = g.record("attention", out, move |back, d_out| {
        let Parts { q, k, k_shared, v, .. } = &parts;
        let like = |part: &Part| back.like(part.of.gradient());
        let (mut dq, mut dk, mut d_shared) = (like(q), like(k), k_shared.as_ref().map(like));
        let mut dv = (!parts.joint()).then(|| like(v));
        let into = AttentionGradients { q: &mut dq, k: &mut dk, k_shared: d_shared.as_mut(), v: dv.as_mut() };
        let starts = &back.context.sequences.starts;
        back.device().attention_backward(shape, starts, parts.inputs(None), &kept_out, &stats, &d_out, into);
        if let Some(sinks) = sinks {
            let (device, sequences) = (back.device(), back.sequences());
            let mut terms = back.tensor(d_out.rows(), shape.heads);
            device.sink_terms(back.weight(sinks), &kept_out, &stats, &d_out, &mut terms);
            back.parameter(sinks, |d, start| device.bias_backward(&terms, &sequences.starts, d, start));
        }
        let gradients = [(Some(q), Some(dq)), (Some(k), Some(dk)), (k_shared.as_ref(), d_shared), (Some(v), dv)];
        for (part, gradient) in gradients {
            if let (Some(part), Some(gradient)) = (part, gradient) {
                back.give(part.of.gradient(), gradient);
            }
        }
    });
    match learning {
        Some(learning) => learning.record(g, out),
        None => out,
    }
}
