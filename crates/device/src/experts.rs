//! Routing: which experts a token goes to.

use std::fmt;

use crate::{Gating, Ids, Memory, Router, Start, Tensor, WeightRef};

/// Where each choice of each token goes; the device has the tables.
pub struct Dispatch {
    /// T.
    pub tokens: usize,
    /// E.
    pub experts: usize,
    /// Experts of each token, K.
    pub top_k: usize,
    /// The device's tables.
    pub memory: Memory,
}

impl Dispatch {
    /// S = T·K.
    pub fn slots(&self) -> usize {
        self.tokens * self.top_k
    }
}

impl fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dispatch[{} tokens, {} of {} experts]", self.tokens, self.top_k, self.experts)
    }
}

/// The expert of each of some tokens that lie in the order of their experts, `loads[e]` of expert e.
pub fn experts_in_order(loads: &[u32]) -> Vec<u32> {
    (0..).zip(loads).flat_map(|(expert, load)| std::iter::repeat_n(expert, *load as usize)).collect()
}

/// What the sequence-wise balance loss keeps for its backward part; the device has the tables.
pub struct Balance {
    /// The device's tables.
    pub memory: Memory,
}

/// Routing, and what joins the experts' results.
pub trait Experts {
    /// Scores `[T, E]` and weights `[T, K]` of `logits[T, E]`, and where the tokens go. `bias[E]` steers the choice
    /// alone.
    fn route(
        &self,
        router: &Router,
        logits: &Tensor,
        bias: Option<&Tensor>,
        scores: &mut Tensor,
        weights: &mut Tensor,
    ) -> Dispatch;

    /// Backward of [`Experts::route`]: through the chosen scores, and through all of them by `dscores`.
    fn route_backward(
        &self,
        router: &Router,
        scores: &Tensor,
        dispatch: &Dispatch,
        dweights: &Tensor,
        dscores: Option<&Tensor>,
        dlogits: &mut Tensor,
    );

    /// The balance loss of each sequence.
    fn balance(&self, router: &Router, scores: &Tensor, dispatch: &Dispatch, starts: &Ids) -> Balance;

    /// `dscores` of the balance losses, each times `coefficient`.
    fn balance_backward(
        &self,
        router: &Router,
        scores: &Tensor,
        starts: &Ids,
        balance: &Balance,
        coefficient: f32,
        dscores: &mut Tensor,
    );

    /// The loss of each sequence without its coefficient, on the host; waits for the device.
    fn balance_losses(&self, balance: &Balance) -> Vec<f32>;

    /// Tokens of each expert, on the host; waits for the device.
    fn loads(&self, dispatch: &Dispatch) -> Vec<u32>;

    /// The token of each slot, on the host; waits for the device.
    fn tokens_of_slots(&self, dispatch: &Dispatch) -> Vec<u32>;

    /// Where tokens with one expert each go that lie in the order of their experts, `loads[e]` of expert e: slot s is
    /// that of token s.
    fn in_order(&self, loads: &[u32]) -> Dispatch;

    /// `y[s] += bias[e(s)]` of each slot's expert, `bias[E, N]` in f32.
    fn add_expert_bias(&self, bias: &Tensor, dispatch: &Dispatch, y: &mut Tensor);

    /// `dbias[e] = Σ dy[s]`, a chain over the expert's slots.
    fn expert_bias_backward(&self, dy: &Tensor, dispatch: &Dispatch, dbias: (&mut Tensor, Start));

    /// `y[S, D]`: all that the experts make of `x[T, D]`, by `weights` of gate, up and down, at once, on a device that
    /// gains by that. Others do nothing, and say so by `false`; then it is done by its parts, whose bits it has.
    fn feed_forward(
        &self,
        _x: &Tensor,
        _dispatch: &Dispatch,
        _gating: Gating,
        _weights: [WeightRef; 3],
        _y: &mut Tensor,
    ) -> bool {
        false
    }

    /// `y[t] = base[t] + Σ_k weights[t, k] · h[slot(t, k)]`, a chain in the order of the experts.
    fn combine(&self, h: &Tensor, weights: &Tensor, dispatch: &Dispatch, base: Option<&Tensor>, y: &mut Tensor);

    /// Backward of [`Experts::combine`] for `h[S, D]` and `weights[T, K]`.
    fn combine_backward(
        &self,
        dy: &Tensor,
        h: &Tensor,
        weights: &Tensor,
        dispatch: &Dispatch,
        dh: &mut Tensor,
        dweights: &mut Tensor,
    );

    /// `dx[t] = Σ_k dslots[slot(t, k)]`, a chain in the order of the experts.
    fn gather_slots(&self, dslots: &Tensor, dispatch: &Dispatch, dx: (&mut Tensor, Start));
}
