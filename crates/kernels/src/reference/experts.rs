//! Slots of experts and the weighted sum, as plain loops.

use super::dot;
use crate::experts::Dispatch;
use crate::gemm::Start;

/// Reference of [`Dispatch::new`]: (offsets, rows, slots).
pub fn dispatch(experts: &[u32], top_k: usize, expert_count: usize) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let (mut offsets, mut rows, mut slots) = (vec![0], vec![], vec![0; experts.len()]);
    for expert in 0..expert_count as u32 {
        for (choice, &chosen) in experts.iter().enumerate() {
            if chosen == expert {
                slots[choice] = rows.len() as u32;
                rows.push((choice / top_k) as u32);
            }
        }
        offsets.push(rows.len() as u32);
    }
    (offsets, rows, slots)
}

/// Reference of [`crate::experts::add_bias`].
pub fn add_bias(bias: &[f32], dispatch: &Dispatch, y: &mut [f32]) {
    let n = bias.len() / (dispatch.offsets().len() - 1);
    for (e, slots) in dispatch.offsets().windows(2).enumerate() {
        for slot in slots[0] as usize..slots[1] as usize {
            for i in 0..n {
                y[slot * n + i] += bias[e * n + i];
            }
        }
    }
}

/// Reference of [`crate::experts::bias_grad`].
pub fn bias_grad(dy: &[f32], dispatch: &Dispatch, dbias: &mut [f32], start: Start) {
    let n = dbias.len() / (dispatch.offsets().len() - 1);
    if start == Start::Zero {
        dbias.fill(0.0);
    }
    for (e, slots) in dispatch.offsets().windows(2).enumerate() {
        for slot in slots[0] as usize..slots[1] as usize {
            for i in 0..n {
                dbias[e * n + i] += dy[slot * n + i];
            }
        }
    }
}

/// Reference of [`crate::experts::combine`].
pub fn combine(h: &[f32], weights: &[f32], dispatch: &Dispatch, base: Option<&[f32]>, y: &mut [f32], d: usize) {
    for at in 0..y.len() {
        let (t, i) = (at / d, at % d);
        y[at] = base.map_or(0.0, |base| base[at]);
        for choice in t * dispatch.top_k()..(t + 1) * dispatch.top_k() {
            y[at] = h[dispatch.slots()[choice] as usize * d + i].mul_add(weights[choice], y[at]);
        }
    }
}

/// Reference of [`crate::experts::combine_backward`].
pub fn combine_backward(
    dy: &[f32],
    h: &[f32],
    weights: &[f32],
    dispatch: &Dispatch,
    dh: &mut [f32],
    dweights: &mut [f32],
    d: usize,
) {
    for (choice, &slot) in dispatch.slots().iter().enumerate() {
        let dy = &dy[choice / dispatch.top_k() * d..][..d];
        let slot = slot as usize * d;
        dweights[choice] = dot(dy, &h[slot..slot + d]);
        for i in 0..d {
            dh[slot + i] = dy[i] * weights[choice];
        }
    }
}

/// Reference of [`crate::experts::scatter_dx`].
pub fn scatter_dx(dslots: &[f32], dispatch: &Dispatch, dx: &mut [f32], start: Start, d: usize) {
    if start == Start::Zero {
        dx.fill(0.0);
    }
    for (choice, &slot) in dispatch.slots().iter().enumerate() {
        for i in 0..d {
            dx[choice / dispatch.top_k() * d + i] += dslots[slot as usize * d + i];
        }
    }
}
