//! Rows of tokens to the ranks that hold their experts, and back: see [`crate::expert_parallel`].
//!
//! `spread`: `y[s] = x[token(s)]`. x `[T, D]`, y `[S, D]`. Backward: dx is the sum over a token's slots, a chain in
//! expert order.
//!
//! `to_holders`: x `[S, D]`, in the order of experts, then tokens, to y `[R, D]`: the rows of all ranks of the group
//! for the experts that this one holds, in the order of experts, then ranks, then tokens. `from_holders`: the inverse.
//! Each is the other's backward part. Saved: how many rows of each expert and rank there are.

use std::ops::Range;
use std::sync::Arc;

use crate::expert_parallel::{ExpertShare, Way};
use crate::tape::{Graph, Var};
use wels_device::{Dispatch, Ids, Tensor, WeightRef};

/// How many rows a layer exchanges.
pub struct Exchanged {
    share: ExpertShare,
    /// `[E]`: rows of this rank for each expert.
    own: Vec<u32>,
    /// `[E/N, N]`: rows for each expert that this rank holds, by the place of the rank that they are of.
    held: Vec<u32>,
}

impl Exchanged {
    /// R: rows that this rank computes.
    pub fn rows(&self) -> usize {
        total(&self.held)
    }

    /// `[E/N]`: rows of each expert that this rank holds.
    pub fn loads(&self) -> Vec<u32> {
        self.held.chunks_exact(self.share.ranks()).map(|of_ranks| of_ranks.iter().sum()).collect()
    }

    /// `[E/N, N]`: of these, those of each rank.
    pub fn loads_by_rank(&self) -> &[u32] {
        &self.held
    }

    /// Rows of this rank for the experts of a place.
    fn own_at(&self, place: usize) -> &[u32] {
        let each = self.own.len() / self.share.ranks();
        &self.own[place * each..][..each]
    }

    /// Rows of the rank at a place, for the experts that this one holds, in order.
    fn held_of(&self, place: usize) -> impl Iterator<Item = u32> + '_ {
        self.held.iter().skip(place).step_by(self.share.ranks()).copied()
    }

    /// Where the rows of each rank, of each expert, lie among those that this rank computes.
    fn pieces(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let places = (0..self.share.ranks()).cycle();
        places.zip(&self.held).scan(0, |from, (place, rows)| {
            let begin = std::mem::replace(from, *from + *rows as usize);
            Some((place, begin..*from))
        })
    }

    /// How many of `rows(place)` go to other ranks, in bytes, with `cols` numbers each.
    fn bytes_to_others(&self, cols: usize, rows: impl Fn(usize) -> usize) -> u64 {
        let others = (0..self.share.ranks()).filter(|place| *place != self.share.place());
        others.map(|place| (rows(place) * cols * 4) as u64).sum()
    }

    /// `[S, D]` to `[R, D]`.
    fn send_rows(&self, rows: &[f32], cols: usize) -> Vec<f32> {
        let mut rest = rows;
        let mut for_place = |place: usize| {
            let (rows, others) = rest.split_at(total(self.own_at(place)) * cols);
            rest = others;
            bytes(rows)
        };
        let send = (0..self.share.ranks()).map(&mut for_place).collect();
        self.count_to_holders(cols);
        match self.share.all_to_all(send) {
            Some(received) => self.in_order_of_experts(&received, 0, cols),
            None => vec![0.0; self.rows() * cols],
        }
    }

    fn count_to_holders(&self, cols: usize) {
        self.share.count(Way::ToHolders, self.bytes_to_others(cols, |place| total(self.own_at(place))));
    }

    /// What came from each rank behind `skipped` bytes, in the order of experts, then ranks, then tokens.
    fn in_order_of_experts(&self, received: &[Vec<u8>], skipped: usize, cols: usize) -> Vec<f32> {
        let mut taken = vec![skipped; received.len()];
        let mut rows = vec![0.0; self.rows() * cols];
        for (place, piece) in self.pieces() {
            let len = piece.len() * cols * 4;
            read(&received[place][taken[place]..][..len], &mut rows[piece.start * cols..piece.end * cols]);
            taken[place] += len;
        }
        rows
    }

    /// `[R, D]` to `[S, D]`.
    fn return_rows(&self, rows: &[f32], cols: usize) -> Vec<f32> {
        let of = |place: usize| self.held_of(place).sum::<u32>() as usize;
        let mut send: Vec<Vec<u8>> =
            (0..self.share.ranks()).map(|place| Vec::with_capacity(of(place) * cols * 4)).collect();
        for (place, piece) in self.pieces() {
            send[place].extend_from_slice(&bytes(&rows[piece.start * cols..piece.end * cols]));
        }
        self.share.count(Way::Back, self.bytes_to_others(cols, of));
        let mut rows = vec![0.0; total(&self.own) * cols];
        // Places hold experts in order, so what comes is in the order of experts.
        if let Some(received) = self.share.all_to_all(send) {
            read(&received.concat(), &mut rows);
        }
        rows
    }
}

fn total(counts: &[u32]) -> usize {
    counts.iter().map(|count| *count as usize).sum()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * 4];
    bytes.chunks_exact_mut(4).zip(values).for_each(|(bytes, value)| bytes.copy_from_slice(&value.to_le_bytes()));
    bytes
}

/// # Panics
/// If the bytes are not those of so many values: ranks disagree about what they exchange.
fn read(bytes: &[u8], values: &mut [f32]) {
    assert_eq!(bytes.len(), values.len() * 4, "bytes of {} numbers", values.len());
    let bytes = bytes.chunks_exact(4).map(|bytes| bytes.try_into().expect("four bytes"));
    values.iter_mut().zip(bytes).for_each(|(value, bytes)| *value = f32::from_le_bytes(bytes));
}

/// `y[S, D]` of `x[T, D]`: the row of each slot's token.
pub fn spread(g: &mut Graph, x: &Var, dispatch: &Arc<Dispatch>) -> Var {
    let tokens = Ids::from(g.device().tokens_of_slots(dispatch));
    let mut y = g.tensor_of(x.dtype(), dispatch.slots(), x.cols());
    g.device().gather(WeightRef::Plain(x), &tokens, &mut y);
    let (dx, dispatch) = (x.gradient(), dispatch.clone());
    g.record("spread", y, move |back, d_slots| {
        let device = back.device();
        back.accumulate(dx, |dx, start| device.gather_slots(&d_slots, &dispatch, (dx, start)));
    })
}

/// The rows `[R, D]` that this rank computes, of all ranks of its group; `loads[E]` are how many of `x[S, D]` go to
/// each expert.
pub fn to_holders(g: &mut Graph, share: &ExpertShare, x: &Var, loads: Vec<u32>) -> (Var, Arc<Exchanged>) {
    let (cols, ranks) = (x.cols(), share.ranks());
    let each = loads.len() / ranks;
    assert_eq!((loads.len() % ranks, total(&loads)), (0, x.rows()), "rows of {x:?} by experts");
    let values = x.to_host();
    let mut rest = &values[..];
    // What a holder has to know goes in front: how many rows there are of each of its experts.
    let for_holder = |loads: &[u32]| -> Vec<u8> {
        let (rows, others) = rest.split_at(total(loads) * cols);
        rest = others;
        let counts: Vec<u8> = loads.iter().flat_map(|rows| rows.to_le_bytes()).collect();
        [counts, bytes(rows)].concat()
    };
    let received = share.all_to_all(loads.chunks_exact(each).map(for_holder).collect());
    let received = received.unwrap_or_else(|| vec![vec![0; each * 4]; ranks]);
    let count =
        |expert: usize, from: &[u8]| u32::from_le_bytes(from[expert * 4..][..4].try_into().expect("four bytes"));
    let held = (0..each).flat_map(|expert| received.iter().map(move |from| count(expert, from))).collect();
    let exchanged = Arc::new(Exchanged { share: share.clone(), own: loads, held });
    exchanged.count_to_holders(cols);
    let rows = exchanged.in_order_of_experts(&received, each * 4, cols);
    let y = tensor(g.tensor(exchanged.rows(), cols), &rows);
    let (dx, by) = (x.gradient(), exchanged.clone());
    let y = g.record("to_holders", y, move |back, dy| {
        let rows = by.return_rows(&dy.to_host(), cols);
        let dx_rows = tensor(back.like(dx), &rows);
        back.give(dx, dx_rows);
    });
    (y, exchanged)
}

/// What the experts gave `[S, D]` for this rank's slots, of what all ranks of the group computed, of which `h[R, D]` is
/// this one's.
pub fn from_holders(g: &mut Graph, h: &Var, exchanged: &Arc<Exchanged>) -> Var {
    let cols = h.cols();
    let rows = exchanged.return_rows(&h.to_host(), cols);
    let y = tensor(g.tensor(total(&exchanged.own), cols), &rows);
    let (dh, by) = (h.gradient(), exchanged.clone());
    g.record("from_holders", y, move |back, dy| {
        let rows = by.send_rows(&dy.to_host(), cols);
        let dh_rows = tensor(back.like(dh), &rows);
        back.give(dh, dh_rows);
    })
}

fn tensor(mut tensor: Tensor, values: &[f32]) -> Tensor {
    tensor.set(0, values);
    tensor
}
