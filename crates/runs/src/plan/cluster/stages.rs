//! What the stages of a pipeline compute, hold and send, counted from the list of parameters.

use wels_model::config::{Attention, ModelConfig};
use wels_model::count::{self, Context};
use wels_model::names::{self, ParamKind};
use wels_model::traffic::{Sent, Spread, Visits};

use super::schedule::StageTime;
use super::{Cluster, Layout, constants};
use crate::plan::devices::ProductFormat;
use crate::plan::widest_backward_per_token;

/// One decoder layer, or what stands before and behind them; counts of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Part {
    /// Operations of products, forward; backward has them once for the input and once for the weights.
    pub products: f64,
    /// Of these, shared experts'.
    pub shared: f64,
    /// Operations over the context, forward.
    pub core: f64,
    /// Operations of products that are computed again in the backward pass: up-projections of latent attention.
    pub again: f64,
    /// Parameters that every rank of a stage has.
    pub dense: f64,
    /// Of `dense`, what has no product: the embedding.
    pub embedding: f64,
    /// Of `dense`, embedding and head, which are never in FP8.
    pub tables: f64,
    /// Parameters of routed experts.
    pub experts: f64,
    /// Bytes kept for the backward pass.
    pub kept: f64,
    /// Layers with experts.
    pub exchanges: f64,
}

impl Part {
    fn add(&mut self, other: &Part) {
        let pairs = [
            (&mut self.products, other.products),
            (&mut self.shared, other.shared),
            (&mut self.core, other.core),
            (&mut self.again, other.again),
            (&mut self.dense, other.dense),
            (&mut self.embedding, other.embedding),
            (&mut self.tables, other.tables),
            (&mut self.experts, other.experts),
            (&mut self.kept, other.kept),
            (&mut self.exchanges, other.exchanges),
        ];
        pairs.into_iter().for_each(|(sum, more)| *sum += more);
    }
}

/// The layers, MTP's behind them, with the embedding at the first and the heads at the last of the model proper and at
/// MTP's.
pub fn parts(config: &ModelConfig, sequence: usize, format: ProductFormat) -> Vec<Part> {
    let layers = config.layers + config.mtp_depth;
    let mut parts = vec![Part::default(); layers];
    let flops = count::forward_flops(config, Context::Causal { tokens: sequence });
    let core = flops.attention_core.0 as f64 / config.layers as f64;
    let top_k = config.moe.as_ref().map_or(0, |moe| moe.top_k);
    for spec in names::param_specs(config) {
        let len = spec.len() as f64;
        let part = match (spec.kind, spec.layer()) {
            (_, Some(layer)) => &mut parts[layer],
            (ParamKind::Embedding, None) => &mut parts[0],
            (_, None) => &mut parts[config.layers - 1],
        };
        if matches!(spec.kind, ParamKind::Embedding | ParamKind::Head) {
            part.tables += len;
        }
        match spec.kind {
            ParamKind::Experts(experts) => {
                part.experts += len;
                part.products += 2.0 * len / experts as f64 * top_k as f64;
            }
            ParamKind::ExpertBiases(_) => part.experts += len,
            ParamKind::Embedding => (part.dense, part.embedding) = (part.dense + len, part.embedding + len),
            ParamKind::Matrix | ParamKind::Router => {
                part.dense += len;
                part.products += 2.0 * len;
                if spec.name.contains(".shared_experts.") {
                    part.shared += 2.0 * len;
                }
                let up = ["kv_b_proj.weight", "q_b_proj.weight"].iter().any(|up| spec.name.ends_with(up));
                if up && format == ProductFormat::Fp8 {
                    part.again += 2.0 * len;
                }
            }
            ParamKind::Norm
            | ParamKind::Bias
            | ParamKind::RouterBias
            | ParamKind::PlaceBias
            | ParamKind::Table
            | ParamKind::Head => part.dense += len,
        }
    }
    // MTP shares embedding and head: DualPipe has both ends of the pipeline on one rank (DeepSeek-V3 report, §2.2).
    let head = 2.0 * (config.vocab_size * config.hidden_size) as f64;
    for (layer, part) in parts.iter_mut().enumerate() {
        part.core = core;
        part.kept = kept(config, layer, format);
        part.exchanges = f64::from(u8::from(config.is_moe_layer(layer)));
        part.products += if layer + 1 >= config.layers { head } else { 0.0 };
    }
    parts
}

/// Bytes of a token that a layer keeps. In FP8 as DeepSeek-V3 (report §3.2.3, §3.3.3): both norms' inputs and latents
/// in bf16; norms and up-projections are computed again; attention's result in 12 bits (E5M6); inputs of experts, and
/// the halves of SwiGLU, in FP8. In other formats the same list in that format.
fn kept(config: &ModelConfig, layer: usize, format: ProductFormat) -> f64 {
    let wide = format.bytes().max(2) as f64;
    let (narrow, of_attention) = match format {
        ProductFormat::Fp8 => (1.0, 1.5),
        ProductFormat::Bf16 | ProductFormat::F32 => (wide, wide),
    };
    let d = config.hidden_size as f64;
    let attention = match config.attention {
        Attention::Mla { heads, q_lora_rank, kv_lora_rank, rope_dim, v_dim, .. } => {
            let latents = (q_lora_rank.unwrap_or(0) + kv_lora_rank + rope_dim) as f64;
            latents * wide + (heads * v_dim) as f64 * of_attention + 4.0 * heads as f64
        }
        Attention::Compressed { heads, q_lora_rank, head_dim, .. } => {
            let latents = (q_lora_rank + 4 * head_dim) as f64;
            latents * wide + (heads * head_dim) as f64 * of_attention + 4.0 * heads as f64
        }
        Attention::Gqa { heads, kv_heads, head_dim, .. } => {
            let heads_and_keys = ((heads + 2 * kv_heads) * head_dim) as f64;
            heads_and_keys * wide + (heads * head_dim) as f64 * of_attention + 4.0 * heads as f64
        }
    };
    let ffn = match &config.moe {
        Some(moe) if config.is_moe_layer(layer) => {
            let inputs = moe.top_k as f64 * d * narrow;
            let gates = (2 * (moe.top_k + moe.shared_experts) * moe.expert_intermediate) as f64 * narrow;
            inputs + gates + 4.0 * moe.experts as f64
        }
        _ => 2.0 * config.dense_intermediate as f64 * narrow,
    };
    2.0 * d * wide + attention + ffn
}

/// The stages, and what is the same in all.
pub struct Stages {
    pub stages: Vec<Part>,
    /// How many layers each has.
    pub layers: Vec<usize>,
    pub times: Vec<StageTime>,
    /// Where a token goes in a layer with experts.
    pub visits: Visits,
    /// Bytes of one token and layer: dispatch and combine.
    pub dispatch: Sent,
    pub combine: Sent,
    /// Seconds that a micro-batch takes from stage to stage.
    pub hop: f64,
    /// Bytes a token that the widest layer takes besides while it is computed.
    pub working: f64,
}

impl Stages {
    /// The stages of a layout that holds.
    pub fn of(
        config: &ModelConfig,
        cluster: &Cluster,
        layout: &Layout,
        sequence: usize,
        format: ProductFormat,
    ) -> Stages {
        let parts = parts(config, sequence, format);
        let tokens = (layout.micro_batch * sequence) as f64;
        let (visits, dispatch, combine) = exchange(config, cluster, layout, format);
        let time = |part: &Part| time(part, cluster, layout, format, tokens, dispatch, combine);
        let costs: Vec<f64> = parts.iter().map(|part| time(part).compute()).collect();
        let layers = balanced(&costs, layout.pipeline);
        let mut stages = Vec::new();
        let mut rest = &parts[..];
        for count in &layers {
            let (these, others) = rest.split_at(*count);
            rest = others;
            let mut stage = Part::default();
            these.iter().for_each(|part| stage.add(part));
            stages.push(stage);
        }
        let hidden_state = tokens * (config.hidden_size as u64 * format.bytes().max(2)) as f64;
        let between_nodes = layout.data >= cluster.devices_per_node as usize;
        let rate = if between_nodes { cluster.ib } else { cluster.nvlink };
        Stages {
            times: stages.iter().map(time).collect(),
            stages,
            layers,
            visits,
            dispatch,
            combine,
            hop: hidden_state / rate,
            working: widest_backward_per_token(config) as f64 * format.bytes().max(2) as f64,
        }
    }
}

/// Where tokens go, and the bytes of one token and layer.
fn exchange(config: &ModelConfig, cluster: &Cluster, layout: &Layout, format: ProductFormat) -> (Visits, Sent, Sent) {
    let Some(moe) = config.moe.as_ref().filter(|_| layout.experts > 1) else {
        return <_>::default();
    };
    let spread =
        Spread { experts: moe.experts, devices: layout.experts, devices_per_node: cluster.devices_per_node as usize };
    let visits = spread.expected(moe);
    let d = config.hidden_size as f64;
    // Dispatch in FP8 has a scale of four bytes for each 128 numbers; results come back in 16 bits.
    let (there, back) = match format {
        ProductFormat::Fp8 => (d * (1.0 + 4.0 / 128.0), 2.0 * d),
        ProductFormat::Bf16 => (2.0 * d, 2.0 * d),
        ProductFormat::F32 => (4.0 * d, 4.0 * d),
    };
    (visits, visits.sent(there), visits.sent(back))
}

fn time(
    part: &Part,
    cluster: &Cluster,
    layout: &Layout,
    format: ProductFormat,
    tokens: f64,
    dispatch: Sent,
    combine: Sent,
) -> StageTime {
    let rate = cluster.rate(format);
    let seconds = |flops: f64| tokens * flops / rate;
    // Gradients are added to in f32: read and written for every micro-batch.
    let gradients = part.dense - part.embedding + part.experts / layout.experts as f64;
    let adding = 8.0 * gradients / cluster.device.bandwidth();
    let over = |sent: Sent| {
        let inside = if sent.inside_nodes > 0.0 { sent.inside_nodes / cluster.nvlink } else { 0.0 };
        let between = if sent.between_nodes > 0.0 { sent.between_nodes / cluster.ib } else { 0.0 };
        part.exchanges * tokens * inside.max(between)
    };
    let exchange = over(dispatch) + over(combine);
    StageTime {
        forward: seconds(part.products + part.core),
        input_gradient: seconds(part.products + part.again + constants::CORE_BACKWARD * part.core),
        weight_gradient: seconds(part.products) + adding,
        exchange,
        exchange_back: exchange,
        hidden: over(dispatch).min(seconds(part.shared)),
    }
}

/// How many layers each of `stages` stages has, none fewer than one, so that the slowest takes the least time.
fn balanced(costs: &[f64], stages: usize) -> Vec<usize> {
    // The least limit that a walk from the front keeps within the stages, by bisection.
    let fill = |limit: f64| {
        let (mut counts, mut sum) = (vec![0usize], 0.0);
        for (layer, cost) in costs.iter().enumerate() {
            let left = costs.len() - layer;
            let needed = stages - counts.len();
            let last = counts.last_mut().expect("one at least");
            if *last > 0 && (sum + cost > limit || left <= needed) {
                counts.push(0);
                sum = 0.0;
            }
            *counts.last_mut().expect("one at least") += 1;
            sum += cost;
        }
        counts
    };
    let (mut low, mut high) = (costs.iter().fold(0.0, |a: f64, b| a.max(*b)), costs.iter().sum::<f64>());
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if fill(middle).len() <= stages { high = middle } else { low = middle }
    }
    fill(high * (1.0 + 1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wels_model::presets;

    #[test]
    fn parts_are_the_whole() {
        for name in ["deepseek-v3", "deepseek-v2", "deepseek-v2-lite", "smollm2-135m"] {
            let config = presets::preset(name).unwrap();
            let parts = parts(&config, 4096, ProductFormat::Fp8);
            let sum = |of: fn(&Part) -> f64| parts.iter().map(of).sum::<f64>();
            let params = count::params(&config);
            let table = params.embedding.0 as f64;
            let all = params.total.0 as f64 + params.mtp.map_or(0.0, |mtp| mtp.unique.0 as f64);
            assert_eq!(sum(|part| part.dense + part.experts), all, "{name}");
            assert_eq!(sum(|part| part.embedding), table);
            let flops = count::forward_flops(&config, Context::Causal { tokens: 4096 });
            let expected = (flops.total() + flops.mtp).0 as f64;
            let counted = sum(|part| part.products + part.core);
            assert!((counted / expected - 1.0).abs() < 1e-9, "{name}: {counted} {expected}");
        }
    }

    #[test]
    fn layers_are_spread_so_that_the_slowest_stage_is_fast() {
        assert_eq!(balanced(&[1.0; 61], 16), [vec![4; 15], vec![1]].concat());
        assert_eq!(balanced(&[1.0, 1.0, 4.0], 3), [1, 1, 1]);
        assert_eq!(balanced(&[4.0, 1.0, 1.0, 1.0], 2), [1, 3]);
        assert_eq!(balanced(&[1.0; 4], 4), [1; 4]);
        assert_eq!(balanced(&[9.0, 9.0, 0.1, 0.1], 4), [1; 4]);
    }
}
