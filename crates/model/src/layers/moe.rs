//! DeepSeekMoE: `y = shared(x) + Σ over the chosen experts of weight · expert(x)`, all of them SwiGLU.
//!
//! The router's product is f32 whatever the precision of the others (DeepSeek-V3 report, §3.3.1). No token is dropped.
//! Source: DeepSeek-V3 report, eq. 12–16; DeepSeek-V2 report, §2.2.

use super::mlp::Mlp;
use crate::config::{MoeConfig, Router as RouterConfig, SoftmaxMethod};
use crate::ops::{Route, bring, bring_f32, combine, expert_gate_up, expert_swiglu_linear, linear, route};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use wels_device::{Precision, Router, Scoring};

pub(crate) struct Moe {
    router: Router,
    centroids: Weight,
    selection_bias: Option<Weight>,
    gate: Weight,
    up: Weight,
    down: Weight,
    shared: Option<Mlp>,
}

impl Moe {
    pub fn new(wiring: &mut Wiring, name: &str, config: &MoeConfig) -> Self {
        Moe {
            router: router(config),
            centroids: wiring.weight(&format!("{name}.gate.weight")),
            selection_bias: wiring.optional(&format!("{name}.gate.e_score_correction_bias")),
            gate: wiring.weight(&format!("{name}.experts.gate_proj")),
            up: wiring.weight(&format!("{name}.experts.up_proj")),
            down: wiring.weight(&format!("{name}.experts.down_proj")),
            shared: (config.shared_experts > 0).then(|| Mlp::new(wiring, &format!("{name}.shared_experts"))),
        }
    }

    /// `[T, D]` to `[T, D]`. Routed experts on another device choose and combine there.
    pub fn forward(&self, g: &mut Graph, x: &Var) -> Var {
        let logits = linear(g, Precision::F32, x, self.centroids);
        g.follow(self.gate);
        let (logits, of_experts, precision) = (bring_f32(g, logits), bring(g, x.clone()), g.precision());
        let Route { weights, dispatch } = route(g, self.router, logits, self.selection_bias);
        let (gate, up) = expert_gate_up(g, precision, &of_experts, [self.gate, self.up], &dispatch);
        drop(of_experts);
        let h = expert_swiglu_linear(g, precision, gate, up, self.down, &dispatch);
        g.follow(self.centroids);
        let shared = self.shared.as_ref().map(|shared| shared.forward(g, x));
        g.follow(self.gate);
        let shared = shared.map(|shared| bring(g, shared));
        let y = combine(g, h, weights, shared, &dispatch);
        g.follow(self.centroids);
        bring(g, y)
    }
}

fn router(config: &MoeConfig) -> Router {
    let (experts, top_k) = (config.experts, config.top_k);
    match config.router {
        RouterConfig::Sigmoid { groups, top_groups, normalize, scale } => {
            Router { scoring: Scoring::Sigmoid, experts, top_k, groups, top_groups, normalize, scale }
        }
        RouterConfig::Softmax { method, normalize, scale } => {
            let (groups, top_groups) = match method {
                SoftmaxMethod::Greedy => (1, 1),
                SoftmaxMethod::GroupLimited { groups, top_groups } => (groups, top_groups),
            };
            Router { scoring: Scoring::Softmax, experts, top_k, groups, top_groups, normalize, scale }
        }
    }
}
