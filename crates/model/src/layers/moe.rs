//! DeepSeekMoE: `y = shared(x) + Σ over the chosen experts of weight · expert(x)`, all of them SwiGLU.
//!
//! In gpt-oss router and experts have biases, and gates limits. The router's product is f32 whatever the precision of
//! the others (DeepSeek-V3 report, §3.3.1). No token is dropped. Experts may be over ranks: [`crate::expert_parallel`].
//! In DeepSeek-V4 a table says for each token id which experts its tokens go to in the first layers, with weights by
//! their scores. Source: DeepSeek-V3 report, eq. 12–16; DeepSeek-V2 report, §2.2; DeepSeek-V4 report, §2.1.

use super::mlp::Mlp;
use crate::config::{MoeConfig, Router as RouterConfig, SoftmaxMethod};
use crate::expert_parallel::ExpertShare;
use crate::ops::{
    Route, Slots, bias, bring, bring_f32, combine, expert_bias, expert_feed_forward, expert_gate_up,
    expert_swiglu_linear, from_holders, linear, route, route_by_table, spread, to_holders,
};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use std::sync::Arc;
use wels_device::{Dispatch, Gating, Precision, Router, Scoring};

pub(crate) struct Moe {
    router: Router,
    centroids: Weight,
    selection_bias: Option<Weight>,
    /// Which experts tokens go to, by their ids.
    table: Option<Weight>,
    gate: Weight,
    up: Weight,
    down: Weight,
    biases: Option<Biases>,
    gating: Gating,
    shared: Option<Mlp>,
}

struct Biases {
    router: Weight,
    gate: Weight,
    up: Weight,
    down: Weight,
}

impl Moe {
    pub fn new(wiring: &mut Wiring, name: &str, config: &MoeConfig, gating: Gating) -> Self {
        Moe {
            router: router(config),
            centroids: wiring.weight(&format!("{name}.gate.weight")),
            selection_bias: wiring.optional(&format!("{name}.gate.e_score_correction_bias")),
            table: wiring.optional(&format!("{name}.gate.tid2eid")),
            gate: wiring.weight(&format!("{name}.experts.gate_proj")),
            up: wiring.weight(&format!("{name}.experts.up_proj")),
            down: wiring.weight(&format!("{name}.experts.down_proj")),
            biases: config.biases.then(|| Biases {
                router: wiring.weight(&format!("{name}.gate.bias")),
                gate: wiring.weight(&format!("{name}.experts.gate_proj_bias")),
                up: wiring.weight(&format!("{name}.experts.up_proj_bias")),
                down: wiring.weight(&format!("{name}.experts.down_proj_bias")),
            }),
            gating,
            shared: (config.shared_experts > 0).then(|| Mlp::new(wiring, &format!("{name}.shared_experts"), gating)),
        }
    }

    /// `[T, D]` to `[T, D]`. Routed experts on another device choose and combine there.
    pub fn forward(&self, g: &mut Graph, x: &Var) -> Var {
        let mut logits = linear(g, Precision::F32, x, self.centroids);
        if let Some(biases) = &self.biases {
            logits = bias(g, logits, biases.router);
        }
        g.follow(self.gate);
        let (logits, of_experts, precision) = (bring_f32(g, logits), bring(g, x.clone()), g.precision());
        let Route { weights, dispatch } = match self.table {
            Some(table) => route_by_table(g, self.router, logits, table),
            None => route(g, self.router, logits, self.selection_bias),
        };
        let h = match g.context.params.share() {
            None => match self.at_once(g, &of_experts, &dispatch) {
                Some(h) => h,
                None => self.of_experts(g, precision, of_experts, &Slots::from(&dispatch)),
            },
            Some(share) => {
                let slots = spread(g, &of_experts, &dispatch);
                drop(of_experts);
                let loads = g.device().loads(&dispatch);
                self.of_ranks(g, precision, share, slots, loads)
            }
        };
        g.follow(self.centroids);
        let shared = self.shared.as_ref().map(|shared| shared.forward(g, x));
        g.follow(self.gate);
        let shared = shared.map(|shared| bring(g, shared));
        let y = combine(g, h, weights, shared, &dispatch);
        g.follow(self.centroids);
        bring(g, y)
    }

    /// [`Moe::of_experts`] as one operation, where the device has that.
    fn at_once(&self, g: &mut Graph, x: &Var, dispatch: &Arc<Dispatch>) -> Option<Var> {
        match self.biases {
            None => expert_feed_forward(g, self.gating, x, [self.gate, self.up, self.down], dispatch),
            Some(_) => None,
        }
    }

    /// What the experts make of `x`, `[S, D]`.
    fn of_experts(&self, g: &mut Graph, precision: Precision, x: Var, slots: &Slots) -> Var {
        let (mut gate, mut up) = expert_gate_up(g, precision, &x, [self.gate, self.up], slots.clone());
        drop(x);
        if let Some(biases) = &self.biases {
            gate = expert_bias(g, gate, biases.gate, slots.clone());
            up = expert_bias(g, up, biases.up, slots.clone());
        }
        let h = expert_swiglu_linear(g, precision, self.gating, (gate, up), self.down, slots.clone());
        match &self.biases {
            Some(biases) => expert_bias(g, h, biases.down, slots.clone()),
            None => h,
        }
    }

    /// What the ranks that hold the experts make of `x[S, D]`, `loads[E]` of each expert; and what this one's make of
    /// the other ranks' rows.
    fn of_ranks(&self, g: &mut Graph, precision: Precision, share: &ExpertShare, x: Var, loads: Vec<u32>) -> Var {
        let experts = loads.len();
        let (rows, exchanged) = to_holders(g, share, &x, loads);
        drop(x);
        let h = match exchanged.rows() {
            0 => rows,
            _ => {
                let slots = Slots::of_ranks(g.device(), experts, &exchanged.loads(), exchanged.loads_by_rank());
                self.of_experts(g, precision, rows, &slots)
            }
        };
        from_holders(g, &h, &exchanged)
    }

    /// Takes part in the exchange of the other ranks, with no tokens: `[0, D]` to `[0, D]`.
    pub fn attend(&self, g: &mut Graph, x: Var) -> Var {
        let (share, precision) = (g.context.params.share(), g.precision());
        let share = share.expect("experts over ranks");
        self.of_ranks(g, precision, share, x, vec![0; self.router.experts])
    }
}

fn router(config: &MoeConfig) -> Router {
    let (experts, top_k) = (config.experts, config.top_k);
    match config.router {
        RouterConfig::Sigmoid { groups, top_groups, normalize, scale } => {
            Router { scoring: Scoring::Sigmoid, experts, top_k, groups, top_groups, normalize, scale }
        }
        RouterConfig::SqrtSoftplus { scale, .. } => {
            let (groups, top_groups, normalize) = (1, 1, true);
            Router { scoring: Scoring::SqrtSoftplus, experts, top_k, groups, top_groups, normalize, scale }
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
