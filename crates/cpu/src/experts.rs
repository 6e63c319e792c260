//! Routing, and what joins the experts' results.

use wels_device::{Balance, Dispatch, Experts, Gating, Ids, Router, Start, Tensor, WeightRef, experts_in_order};
use wels_kernels::{experts, router};

use crate::Cpu;
use crate::memory::{slice, slice_mut};
use crate::ranks::{FeedForward, Grouped};
use crate::weights::part_of;

struct Tables {
    /// `[T, K]`.
    chosen: Vec<u32>,
    dispatch: experts::Dispatch,
}

fn all(dispatch: &Dispatch) -> &Tables {
    dispatch.memory.downcast_ref().expect("a dispatch of the processor's")
}

pub(crate) fn tables(dispatch: &Dispatch) -> &experts::Dispatch {
    &all(dispatch).dispatch
}

/// Where tokens go that have chosen these experts, `[T, K]`.
pub(crate) fn dispatch(router: &Router, tokens: usize, chosen: Vec<u32>) -> Dispatch {
    let Router { experts, top_k, .. } = *router;
    let dispatch = experts::Dispatch::new(&chosen, tokens, top_k, experts);
    Dispatch { tokens, experts, top_k, memory: Box::new(Tables { chosen, dispatch }) }
}

fn balance_of(balance: &Balance) -> &router::Balance {
    balance.memory.downcast_ref().expect("a balance of the processor's")
}

impl Experts for Cpu {
    fn route(
        &self,
        router: &Router,
        logits: &Tensor,
        bias: Option<&Tensor>,
        scores: &mut Tensor,
        weights: &mut Tensor,
    ) -> Dispatch {
        let tokens = logits.rows();
        let mut chosen = vec![0; tokens * router.top_k];
        let (scores, weights) = (slice_mut(scores), slice_mut(weights));
        router::forward(router, slice(logits), bias.map(slice), scores, &mut chosen, weights);
        dispatch(router, tokens, chosen)
    }

    fn route_backward(
        &self,
        router: &Router,
        scores: &Tensor,
        dispatch: &Dispatch,
        dweights: &Tensor,
        dscores: Option<&Tensor>,
        dlogits: &mut Tensor,
    ) {
        let chosen = &all(dispatch).chosen;
        router::backward(router, slice(scores), chosen, slice(dweights), dscores.map(slice), slice_mut(dlogits));
    }

    fn balance(&self, router: &Router, scores: &Tensor, dispatch: &Dispatch, starts: &Ids) -> Balance {
        Balance { memory: Box::new(router::balance(router, slice(scores), &all(dispatch).chosen, starts)) }
    }

    fn balance_backward(
        &self,
        router: &Router,
        scores: &Tensor,
        starts: &Ids,
        balance: &Balance,
        coefficient: f32,
        dscores: &mut Tensor,
    ) {
        let coefficients = vec![coefficient; starts.len() - 1];
        let balance = balance_of(balance);
        router::balance_backward(router, slice(scores), starts, balance, &coefficients, slice_mut(dscores));
    }

    fn balance_losses(&self, balance: &Balance) -> Vec<f32> {
        balance_of(balance).losses.clone()
    }

    fn loads(&self, dispatch: &Dispatch) -> Vec<u32> {
        tables(dispatch).loads().collect()
    }

    fn tokens_of_slots(&self, dispatch: &Dispatch) -> Vec<u32> {
        tables(dispatch).rows().to_vec()
    }

    fn in_order(&self, loads: &[u32]) -> Dispatch {
        let chosen = experts_in_order(loads);
        let (tokens, experts) = (chosen.len(), loads.len());
        let dispatch = experts::Dispatch::new(&chosen, tokens, 1, experts);
        Dispatch { tokens, experts, top_k: 1, memory: Box::new(Tables { chosen, dispatch }) }
    }

    fn add_expert_bias(&self, bias: &Tensor, dispatch: &Dispatch, y: &mut Tensor) {
        experts::add_bias(slice(bias), tables(dispatch), slice_mut(y));
    }

    fn expert_bias_backward(&self, dy: &Tensor, dispatch: &Dispatch, (dbias, start): (&mut Tensor, Start)) {
        experts::bias_grad(slice(dy), tables(dispatch), slice_mut(dbias), start);
    }

    fn feed_forward(
        &self,
        x: &Tensor,
        dispatch: &Dispatch,
        gating: Gating,
        weights: [WeightRef; 3],
        y: &mut Tensor,
    ) -> bool {
        let Some(ranks) = &self.ranks else { return false };
        let [Some(gate), Some(up), Some(down)] = weights.map(part_of) else { return false };
        let (tables, weights) = (tables(dispatch), [gate, up, down]);
        let (offsets, rows) = (tables.offsets().into(), Some(tables.rows().into()));
        let grouped = Grouped { offsets, rows, k: x.cols(), x: slice(x).into() };
        ranks.feed_forward(&FeedForward { gating, weights }, &grouped, slice_mut(y))
    }

    fn combine(&self, h: &Tensor, weights: &Tensor, dispatch: &Dispatch, base: Option<&Tensor>, y: &mut Tensor) {
        experts::combine(slice(h), slice(weights), tables(dispatch), base.map(slice), slice_mut(y), h.cols());
    }

    fn combine_backward(
        &self,
        dy: &Tensor,
        h: &Tensor,
        weights: &Tensor,
        dispatch: &Dispatch,
        dh: &mut Tensor,
        dweights: &mut Tensor,
    ) {
        let (dh, dweights) = (slice_mut(dh), slice_mut(dweights));
        experts::combine_backward(slice(dy), slice(h), slice(weights), tables(dispatch), dh, dweights, h.cols());
    }

    fn gather_slots(&self, dslots: &Tensor, dispatch: &Dispatch, (dx, start): (&mut Tensor, Start)) {
        experts::scatter_dx(slice(dslots), tables(dispatch), slice_mut(dx), start, dslots.cols());
    }
}
