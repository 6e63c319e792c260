//! Routing: the experts of each token and their weights, from the router's logits.
//!
//! logits `[T, E]`, selection bias `[E]` (no gradient), weights `[T, K]`, and the [`Dispatch`] of tokens to slots.
//! Saved: scores `[T, E]` and the choices. Backward: through the chosen scores (choosing has no gradient), plus the
//! sequence-wise balance loss times its coefficient. Source: DeepSeek-V3 report, eq. 12–20; see `wels_kernels::router`.

use super::streams::compressed;
use crate::params::Weight;
use crate::tape::{Graph, Routing, Var};
use std::sync::Arc;
use wels_device::{Device, Dispatch, Router, Tensor};

/// Where the tokens of a layer go.
pub struct Route {
    /// `[T, K]`: the weight of each choice.
    pub weights: Var,
    /// The slot of each choice.
    pub dispatch: Arc<Dispatch>,
}

/// Routes by `logits[T, E]`; tells the graph how many tokens each expert gets.
pub fn route(g: &mut Graph, router: Router, logits: Var, bias: Option<Weight>) -> Route {
    let bias = bias.map(|bias| g.weight(bias));
    route_by(g, router, logits, |device, logits, scores, weights| device.route(&router, logits, bias, scores, weights))
}

/// [`route`] where `table[V, K]` says for each token id which experts its tokens go to.
///
/// # Panics
/// If the pass is not over tokens.
pub fn route_by_table(g: &mut Graph, router: Router, logits: Var, table: Weight) -> Route {
    let ids = g.context.tokens.clone().expect("the ids of the tokens, which say where they go");
    let table = g.weight(table);
    route_by(g, router, logits, |device, logits, scores, weights| {
        compressed(device).route_by_table(&router, logits, (table, &ids), scores, weights)
    })
}

fn route_by(
    g: &mut Graph,
    router: Router,
    logits: Var,
    choose: impl FnOnce(&dyn Device, &Tensor, &mut Tensor, &mut Tensor) -> Dispatch,
) -> Route {
    let (tokens, e, k) = (logits.rows(), router.experts, router.top_k);
    assert_eq!(logits.cols(), e, "route: logits are [{tokens}, {}] for {e} experts", logits.cols());
    let mut scores = g.tensor(tokens, e);
    let mut weights = g.tensor(tokens, k);
    let device = g.device();
    let dispatch = Arc::new(choose(device, &logits, &mut scores, &mut weights));

    let coefficient = g.context.balance_coefficient;
    let balance = (coefficient != 0.0)
        .then(|| Arc::new(device.balance(&router, &scores, &dispatch, &g.context.sequences.starts)));
    g.routings.push(Routing { layer: g.layer(), dispatch: dispatch.clone(), balance: balance.clone() });

    let d_logits = logits.gradient();
    let chosen = dispatch.clone();
    let weights = g.record("route", weights, move |back, d_weights| {
        let device = back.device();
        let d_scores = balance.map(|balance| {
            let starts = &back.context.sequences.starts;
            let mut d_scores = back.tensor(tokens, e);
            device.balance_backward(&router, &scores, starts, &balance, coefficient, &mut d_scores);
            d_scores
        });
        let mut d = back.tensor(tokens, e);
        device.route_backward(&router, &scores, &chosen, &d_weights, d_scores.as_ref(), &mut d);
        back.give(d_logits, d);
    });
    Route { weights, dispatch }
}
