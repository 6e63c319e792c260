//! Multi-token prediction at depth k: from the hidden state of position i and the token k places on, predict the token
//! k + 1 places on.
//!
//! ```text
//! h'_i^k = W_eh [norm_e(Emb(t_{i+k})) ; norm_h(h_i^{k−1})]      embedding first, as in the released weights
//! h^k    = norm(block(h'^k))                                    the norm is `shared_head.norm`
//! P^k    = softmax(head(h^k))                                   embedding and head are the main model's
//! ```
//! `h^{k−1}` is the state *after* a norm: the model's final one, or that of the depth before. The report's equations
//! show neither norm; this is how published checkpoints, all of depth 1, are run: vLLM (`deepseek_mtp.py`), SGLang
//! (`deepseek_nextn.py`) and `transformers` 5.23 (`generate(use_mtp=True)`, `MtpModel`) feed depth 1 with what the main
//! model's head reads. To further depths `transformers` and Megatron-LM (`multi_token_prediction.py`) hand on the
//! normed state, as here; vLLM the one before `shared_head.norm`. Source: DeepSeek-V3 report, eq. 21–25.

use super::Block;
use crate::config::ModelConfig;
use crate::ops::{beside, bring, embedding, linear, rms_norm};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use std::sync::Arc;
use wels_device::{IGNORE, Ids, Rotary};

pub(crate) struct Mtp {
    depth: usize,
    embed: Weight,
    embed_norm: Weight,
    hidden_norm: Weight,
    projection: Weight,
    pub block: Arc<Block>,
    norm: Weight,
    pub head: Weight,
    eps: f32,
}

impl Mtp {
    /// Depth `depth` ≥ 1; `head` is the name of the model's head matrix.
    pub fn new(wiring: &mut Wiring, config: &ModelConfig, depth: usize, head: &str, rotary: &Rotary) -> Self {
        let layer = config.layers + depth - 1;
        let name = format!("model.layers.{layer}");
        Mtp {
            depth,
            embed: wiring.weight("model.embed_tokens.weight"),
            embed_norm: wiring.weight(&format!("{name}.enorm.weight")),
            hidden_norm: wiring.weight(&format!("{name}.hnorm.weight")),
            projection: wiring.weight(&format!("{name}.eh_proj.weight")),
            block: Arc::new(Block::new(wiring, config, layer, rotary)),
            norm: wiring.weight(&format!("{name}.shared_head.norm.weight")),
            head: wiring.weight(head),
            eps: config.norm_eps,
        }
    }

    /// `h^{k−1}` `[T, D]` to `h^k` `[T, D]`, which the head reads and the next depth; `h^0` is what the main model's
    /// head reads.
    pub fn forward(&self, g: &mut Graph, h: &Var, tokens: &[u32]) -> Var {
        let ahead = tokens_ahead(tokens, &g.context.sequences.starts, self.depth, 0);
        self.run(g, h, &ahead.into())
    }

    /// As [`Mtp::forward`], from the tokens `depth` places on.
    pub fn run(&self, g: &mut Graph, h: &Var, ahead: &Ids) -> Var {
        g.enter(&format!("MTP depth {}", self.depth));
        g.follow(self.embed);
        let e = embedding(g, self.embed, ahead, None);
        g.follow(self.projection);
        let (e, precision) = (bring(g, e), g.precision());
        let e = rms_norm(g, &e, self.embed_norm, self.eps);
        let h = rms_norm(g, h, self.hidden_norm, self.eps);
        let x = beside(g, e, h);
        let x = linear(g, precision, &x, self.projection);
        let x = self.block.run(g, x);
        rms_norm(g, &x, self.norm, self.eps)
    }

    /// What depth k has to predict: the target k places on, none for the last k positions of a sequence.
    pub fn targets(&self, targets: &[u32], starts: &[u32]) -> Vec<u32> {
        tokens_ahead(targets, starts, self.depth, IGNORE)
    }
}

/// For each position the token `ahead` places on in its sequence, and `missing` where the sequence has ended. (As
/// inputs, such positions come after all that have a target, so what they read is seen by nothing that counts in the
/// loss. They do count in the layer's expert load: k of a sequence's tokens.)
fn tokens_ahead(tokens: &[u32], starts: &[u32], ahead: usize, missing: u32) -> Vec<u32> {
    let sequences = starts.windows(2).map(|ends| &tokens[ends[0] as usize..ends[1] as usize]);
    sequences
        .flat_map(|sequence| {
            let there = &sequence[ahead.min(sequence.len())..];
            there.iter().copied().chain(std::iter::repeat_n(missing, sequence.len() - there.len()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_ends_before_the_next_one_begins() {
        let tokens = [10, 11, 12, 20, 30, 31];
        assert_eq!(tokens_ahead(&tokens, &[0, 3, 4, 6], 1, IGNORE), [11, 12, IGNORE, IGNORE, 31, IGNORE]);
        assert_eq!(tokens_ahead(&tokens, &[0, 3, 4, 6], 2, 0), [12, 0, 0, 0, 0, 0]);
    }
}
