//! Everything but products and attention.

use std::ops::Range;

use wels_device::{
    AdamW, Balance, Direction, Dispatch, Experts, Gating, Head, HeadGradients, Ids, Optimizer, Precision, Rotary,
    RotaryColumns, Router, Rows, SQUARES_CHUNK, Start, TeacherHead, Tensor, WeightRef, experts_in_order,
};
use wels_kernels::distil::{Teacher, TokenLosses};
use wels_kernels::elementwise::Columns;
use wels_kernels::head::{Gradients, log_probabilities};
use wels_kernels::reference::{
    distil, elementwise, embedding, experts, gemm, head, norm, optim, rope, router, softcap, swiglu,
};
use wels_kernels::{experts as kernels, router as kinds};

use super::products::{numbers, single};
use super::{Naive, values, values_mut};

impl Rows for Naive {
    fn add(&self, x: &Tensor, y: &mut Tensor) {
        elementwise::add(values(x), values_mut(y));
    }

    fn scale(&self, y: &mut Tensor, factor: f32) {
        elementwise::scale(values_mut(y), factor);
    }

    fn soft_cap(&self, y: &mut Tensor, cap: f32) {
        softcap::forward(cap, values_mut(y));
    }

    fn add_bias(&self, bias: &Tensor, y: &mut Tensor) {
        elementwise::add_bias(values(bias), values_mut(y));
    }

    fn bias_backward(&self, dy: &Tensor, _sequences: &Ids, dbias: &mut Tensor, start: Start) {
        elementwise::bias_grad(values(dy), values_mut(dbias), start);
    }

    fn copy_columns(&self, x: &Tensor, from: usize, y: &mut Tensor, to: usize, width: usize) {
        assert_eq!(x.rows(), y.rows(), "rows of {x:?} and {y:?}");
        let (from, to) = (at(x, from), at(y, to));
        elementwise::copy_columns(values(x), from, values_mut(y), to, width, x.rows());
    }

    fn split_heads(&self, x: &Tensor, heads: usize, offset: usize, stride: usize, y: &mut Tensor) {
        let (tokens, width) = (x.rows(), y.cols());
        assert_eq!(y.rows(), heads * tokens, "{heads} heads of {x:?} in {y:?}");
        for (row, y) in values_mut(y).chunks_exact_mut(width).enumerate() {
            let (h, t) = (row / tokens, row % tokens);
            y.copy_from_slice(&values(x)[t * x.cols() + offset + h * stride..][..width]);
        }
    }

    fn join_heads(&self, x: &Tensor, heads: usize, y: &mut Tensor) {
        let (tokens, width) = (y.rows(), x.cols());
        assert_eq!((x.rows(), y.cols()), (heads * tokens, heads * width), "{heads} heads of {x:?} in {y:?}");
        for (place, y) in values_mut(y).chunks_exact_mut(width).enumerate() {
            let (t, h) = (place / heads, place % heads);
            y.copy_from_slice(&values(x)[(h * tokens + t) * width..][..width]);
        }
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32, y: &mut Tensor, rstd: &mut Tensor) {
        norm::rms_norm(values(x), values(w), eps, values_mut(y), values_mut(rstd), x.cols());
    }

    fn rms_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        w: &Tensor,
        rstd: &Tensor,
        _sequences: &Ids,
        (dx, dx_start): (&mut Tensor, Start),
        (dw, dw_start): (&mut Tensor, Start),
    ) {
        let (dx, dw) = (values_mut(dx), values_mut(dw));
        norm::rms_norm_backward(values(dy), values(x), values(w), values(rstd), dx, dx_start, dw, dw_start, x.cols());
    }

    fn rope(&self, x: &mut Tensor, positions: &Ids, rotary: &Rotary, at: RotaryColumns, direction: Direction) {
        let RotaryColumns { offset, head_stride, heads } = at;
        let stride = x.cols();
        let (x, table) = (values_mut(x), rotary.table());
        rope::apply(x, positions, table, rotary.layout, stride, offset, head_stride, heads, direction);
    }

    fn gated(&self, gating: Gating, gate: &Tensor, up: &Tensor, y: &mut Tensor) {
        swiglu::forward(gating, values(gate), values(up), values_mut(y));
    }

    fn gated_backward(&self, gating: Gating, dy: &Tensor, operands: [&Tensor; 2], gradients: [&mut Tensor; 2]) {
        let ([gate, up], [dgate, dup]) = (operands.map(values), gradients.map(values_mut));
        swiglu::backward(gating, values(dy), gate, up, dgate, dup);
    }

    fn gather(&self, table: WeightRef, ids: &Ids, y: &mut Tensor) {
        let d = y.cols();
        match table {
            WeightRef::Plain(table) => embedding::gather(values(table), ids, values_mut(y), d),
            WeightRef::Packed(table) => {
                let rows = values_mut(y).chunks_exact_mut(d).zip(&ids[..]);
                rows.for_each(|(y, id)| y.copy_from_slice(&single(table).row(*id as usize)));
            }
        }
    }

    fn gather_backward(&self, dy: &Tensor, ids: &Ids, dtable: &mut Tensor, start: Start) {
        embedding::gather_backward(values(dy), ids, values_mut(dtable), start, dy.cols());
    }
}

fn at(tensor: &Tensor, offset: usize) -> Columns {
    Columns { stride: tensor.cols(), offset }
}

struct Tables {
    chosen: Vec<u32>,
    dispatch: kernels::Dispatch,
}

fn all(dispatch: &Dispatch) -> &Tables {
    dispatch.memory.downcast_ref().expect("a dispatch of the naive device's")
}

pub(super) fn tables(dispatch: &Dispatch) -> &kernels::Dispatch {
    &all(dispatch).dispatch
}

fn balance_of(balance: &Balance) -> &kinds::Balance {
    balance.memory.downcast_ref().expect("a balance of the naive device's")
}

/// Where tokens go that have chosen these experts, `[T, K]`.
pub(super) fn dispatch(router: &Router, tokens: usize, chosen: Vec<u32>) -> Dispatch {
    let Router { experts, top_k, .. } = *router;
    let dispatch = kernels::Dispatch::new(&chosen, tokens, top_k, experts);
    Dispatch { tokens, experts, top_k, memory: Box::new(Tables { chosen, dispatch }) }
}

impl Experts for Naive {
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
        let (scores, weights) = (values_mut(scores), values_mut(weights));
        router::forward(router, values(logits), bias.map(values), scores, &mut chosen, weights);
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
        let (chosen, dscores) = (&all(dispatch).chosen, dscores.map(values));
        router::backward(router, values(scores), chosen, values(dweights), dscores, values_mut(dlogits));
    }

    fn balance(&self, router: &Router, scores: &Tensor, dispatch: &Dispatch, starts: &Ids) -> Balance {
        Balance { memory: Box::new(router::balance(router, values(scores), &all(dispatch).chosen, starts)) }
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
        router::balance_backward(router, values(scores), starts, balance, &coefficients, values_mut(dscores));
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
        let dispatch = kernels::Dispatch::new(&chosen, tokens, 1, experts);
        Dispatch { tokens, experts, top_k: 1, memory: Box::new(Tables { chosen, dispatch }) }
    }

    fn add_expert_bias(&self, bias: &Tensor, dispatch: &Dispatch, y: &mut Tensor) {
        experts::add_bias(values(bias), tables(dispatch), values_mut(y));
    }

    fn expert_bias_backward(&self, dy: &Tensor, dispatch: &Dispatch, (dbias, start): (&mut Tensor, Start)) {
        experts::bias_grad(values(dy), tables(dispatch), values_mut(dbias), start);
    }

    fn combine(&self, h: &Tensor, weights: &Tensor, dispatch: &Dispatch, base: Option<&Tensor>, y: &mut Tensor) {
        let (dispatch, base) = (tables(dispatch), base.map(values));
        experts::combine(values(h), values(weights), dispatch, base, values_mut(y), h.cols());
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
        let (dh, dweights, d) = (values_mut(dh), values_mut(dweights), h.cols());
        experts::combine_backward(values(dy), values(h), values(weights), tables(dispatch), dh, dweights, d);
    }

    fn gather_slots(&self, dslots: &Tensor, dispatch: &Dispatch, (dx, start): (&mut Tensor, Start)) {
        experts::scatter_dx(values(dslots), tables(dispatch), values_mut(dx), start, dslots.cols());
    }
}

impl Head for Naive {
    fn head_loss(
        &self,
        precision: Precision,
        x: &Tensor,
        w: WeightRef,
        cap: Option<f32>,
        targets: &[u32],
        logp: &mut Tensor,
        gradients: Option<HeadGradients>,
    ) {
        let (d, x, logp) = (x.cols(), values(x), values_mut(logp));
        let (w, v) = match w {
            WeightRef::Plain(plain) => (numbers(w), plain.rows()),
            WeightRef::Packed(packed) if packed.takes_whole_rows() => (numbers(w), packed.rows()),
            WeightRef::Packed(w) => {
                assert!(gradients.is_none(), "gradients of packed weights");
                let mut logits = vec![0.0; targets.len() * w.rows()];
                single(w).product(false, x, &mut logits);
                cap.into_iter().for_each(|cap| softcap::forward(cap, &mut logits));
                return log_probabilities(&mut logits, targets, w.rows(), logp);
            }
        };
        let Some(HeadGradients { dx, dw, coefficient, .. }) = gradients else {
            return head::loss(precision, x, &w, cap, targets, d, v, logp, None);
        };
        let gradients = Gradients { dx: values_mut(dx), dw: dw.map(|(dw, start)| (values_mut(dw), start)) };
        let coefficient = |row: usize, logp: f32| coefficient.at(row, logp);
        head::loss(precision, x, &w, cap, targets, d, v, logp, Some((gradients, &coefficient)));
    }

    fn distil_loss(
        &self,
        precision: Precision,
        x: &Tensor,
        w: &Tensor,
        cap: Option<f32>,
        targets: &[u32],
        teacher: &TeacherHead,
        [logp, divergence]: [&mut Tensor; 2],
        gradients: HeadGradients,
    ) {
        let (d, v, width) = (x.cols(), w.rows(), teacher.states.cols());
        let logits = |rows: Range<usize>, logits: &mut [f32]| {
            let x = &values(teacher.states)[rows.start * width..rows.end * width];
            match teacher.head {
                WeightRef::Plain(head) => gemm::linear(precision, x, values(head), logits, width, v),
                WeightRef::Packed(head) => single(head).product(head.takes_whole_rows(), x, logits),
            }
            teacher.cap.into_iter().for_each(|cap| softcap::forward(cap, logits));
        };
        let TeacherHead { divergence: way, temperature, cross_entropy, .. } = *teacher;
        let teacher = Teacher { logits: &logits, divergence: way, temperature, cross_entropy };
        let losses = TokenLosses { logp: values_mut(logp), divergence: values_mut(divergence) };
        let HeadGradients { dx, dw, coefficient, .. } = gradients;
        let gradients = Gradients { dx: values_mut(dx), dw: dw.map(|(dw, start)| (values_mut(dw), start)) };
        let coefficient = |row: usize, logp: f32| coefficient.at(row, logp);
        distil::loss(precision, values(x), values(w), cap, targets, &teacher, d, v, losses, gradients, &coefficient);
    }
}

impl Optimizer for Naive {
    fn adamw(
        &self,
        (params, first): (&mut Tensor, usize),
        grads: &Tensor,
        (m, v): (&mut Tensor, &mut Tensor),
        rule: &AdamW,
        scale: f32,
    ) {
        let params = &mut values_mut(params)[first..first + grads.len()];
        optim::adamw(params, values(grads), values_mut(m), values_mut(v), rule, scale);
    }

    fn blend(&self, alpha: f32, x: &Tensor, beta: f32, y: &mut Tensor) {
        optim::blend(alpha, values(x), beta, values_mut(y));
    }

    fn squares(&self, x: &Tensor) -> Vec<f32> {
        values(x).chunks(SQUARES_CHUNK).map(|chunk| optim::sum_of_squares(chunk) as f32).collect()
    }
}
