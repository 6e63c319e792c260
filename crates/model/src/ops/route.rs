//! Routing: the experts of each token and their weights, from the router's logits.
//!
//! logits `[T, E]`, selection bias `[E]` (no gradient), weights `[T, K]`, and the [`Dispatch`] of tokens to slots.
//! Saved: scores `[T, E]` and the choices. Backward: through the chosen scores (choosing has no gradient), plus the
//! sequence-wise balance loss times its coefficient. Source: DeepSeek-V3 report, eq. 12–20; see `wels_kernels::router`.

use crate::params::Weight;
use crate::tape::{Graph, Routing, Var};
use std::sync::Arc;
use wels_kernels::experts::Dispatch;
use wels_kernels::router::{self, Router};

/// Where the tokens of a layer go.
pub struct Route {
    /// `[T, K]`: the weight of each choice.
    pub weights: Var,
    /// The slot of each choice.
    pub dispatch: Arc<Dispatch>,
}

/// Routes by `logits[T, E]`; tells the graph how many tokens each expert gets.
pub fn route(g: &mut Graph, router: Router, logits: Var, bias: Option<Weight>) -> Route {
    let (tokens, e, k) = (logits.rows(), router.experts, router.top_k);
    assert_eq!(logits.cols(), e, "route: logits are [{tokens}, {}] for {e} experts", logits.cols());
    let mut scores = g.tensor(tokens, e);
    let mut weights = g.tensor(tokens, k);
    let mut experts = vec![0; tokens * k];
    router::forward(&router, &logits, bias.map(|bias| g.weight(bias)), &mut scores, &mut experts, &mut weights);
    let dispatch = Arc::new(Dispatch::new(&experts, tokens, k, e));

    let coefficient = g.context.balance_coefficient;
    let balance =
        (coefficient != 0.0).then(|| router::balance(&router, &scores, &experts, &g.context.sequences.starts));
    g.routings.push(Routing {
        layer: g.layer(),
        load: dispatch.loads().collect(),
        balance: balance.as_ref().map_or_else(Vec::new, |balance| balance.losses.clone()),
    });

    let d_logits = logits.gradient();
    let weights = g.record("route", weights, move |back, d_weights| {
        let d_scores = balance.map(|balance| {
            let starts = &back.context.sequences.starts;
            let coefficients = vec![coefficient; starts.len() - 1];
            let mut d_scores = back.tensor(tokens, e);
            router::balance_backward(&router, &scores, starts, &balance, &coefficients, &mut d_scores);
            d_scores
        });
        let mut d = back.tensor(tokens, e);
        router::backward(&router, &scores, &experts, &d_weights, d_scores.as_deref(), &mut d);
        back.give(d_logits, d);
    });
    Route { weights, dispatch }
}
