//! Experts over ranks: a rank holds some of the routed experts of every layer, and tokens go to the ranks that hold
//! theirs.
//!
//! ```text
//! groups      of N consecutive ranks; the one at place g of its group holds experts [g·E/N, (g+1)·E/N)
//! forward     each rank sends the rows of its slots, which are in the order of experts, then tokens, to their holders;
//!             a holder computes its experts over the rows of all ranks of the group, and sends the results back
//! backward    the same way with gradients
//! ```
//! A holder has the rows of an expert in the order of ranks, then tokens. A row's results do not depend on the rows
//! beside it. A weight gradient is a chain over the rows of one rank, since these are of one shard of the batch; so a
//! holder keeps one for each rank of its group, `[E/N, N, rows, cols]`, which is as large as that of all experts, and
//! whoever adds up shards adds these up too. Where each rank has one micro-batch in a step, none of these chains goes
//! on, and they are added up at once: [`Grads::sum_over`](crate::params::Grads::sum_over).
//!
//! All ranks do the same exchanges in the same order. One that has no tokens left takes part by
//! [`Model::attend`](crate::model::Model::attend).
//!
//! Source: Lepikhin et al. 2020, GShard, §3.1; DeepSeek-V3 report, §3.2.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::names::{ParamKind, ParamSpec};
use wels_device::Tensor;

/// How the ranks of a group reach each other.
pub trait Exchange: Send + Sync {
    /// This rank's place in its group, from 0.
    fn place(&self) -> usize;

    /// N: how many ranks the group has.
    fn ranks(&self) -> usize;

    /// Sends `send[p]` to the rank at place p; what they sent to this one, by place. `None` once a rank is lost: the
    /// pass then goes on with zeros, and whoever began it learns of the loss by the next thing that it asks of the
    /// others.
    fn all_to_all(&self, send: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>>;
}

/// Bytes of rows that this rank has sent to others, since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// To the holders of experts: states forward, gradients of results backward.
    pub dispatched: u64,
    /// From holders back: results forward, gradients of states backward.
    pub combined: u64,
}

/// Which of the routed experts a rank holds.
#[derive(Clone)]
pub struct ExpertShare {
    exchange: Arc<dyn Exchange>,
    sent: Arc<[AtomicU64; 2]>,
}

impl ExpertShare {
    /// That of the place that `exchange` has in its group.
    pub fn new(exchange: Arc<dyn Exchange>) -> Self {
        ExpertShare { exchange, sent: Arc::default() }
    }

    /// This rank's place in its group.
    pub fn place(&self) -> usize {
        self.exchange.place()
    }

    /// N: how many ranks have all experts together.
    pub fn ranks(&self) -> usize {
        self.exchange.ranks()
    }

    /// Of `experts` those that this rank holds.
    ///
    /// # Panics
    /// If the ranks do not divide them.
    pub fn held(&self, experts: usize) -> Range<usize> {
        held_at(self.place(), self.ranks(), experts)
    }

    /// The rows of a parameter that this rank holds: all, unless it is of experts.
    pub fn rows(&self, spec: &ParamSpec) -> Range<usize> {
        match is_of_experts(spec.kind) {
            true => held_at(self.place(), self.ranks(), spec.rows),
            false => 0..spec.rows,
        }
    }

    /// What was sent since this was last asked.
    pub fn take_sent(&self) -> Sent {
        let [dispatched, combined] = [0, 1].map(|way| self.sent[way].swap(0, Ordering::Relaxed));
        Sent { dispatched, combined }
    }

    /// [`Exchange::all_to_all`].
    pub(crate) fn all_to_all(&self, send: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        self.exchange.all_to_all(send)
    }

    /// Counts bytes of rows that go to other ranks.
    pub(crate) fn count(&self, way: Way, bytes: u64) {
        self.sent[way as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    /// What every rank of the group gives, by place.
    pub fn all_gather(&self, mine: Vec<u8>) -> Option<Vec<Vec<u8>>> {
        self.exchange.all_to_all(vec![mine; self.ranks()])
    }
}

/// Which way rows go.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    ToHolders,
    Back,
}

/// Whether a parameter is one of the routed experts', which ranks may share.
pub fn is_of_experts(kind: ParamKind) -> bool {
    matches!(kind, ParamKind::Experts(_) | ParamKind::ExpertBiases(_))
}

/// Of `count` experts, or rows of experts, those of the rank at place `place` of `ranks`.
///
/// # Panics
/// If the ranks do not divide them.
pub fn held_at(place: usize, ranks: usize, count: usize) -> Range<usize> {
    assert!(count.is_multiple_of(ranks), "{count} experts or rows of them on {ranks} ranks");
    let each = count / ranks;
    place * each..(place + 1) * each
}

/// Of gradients of a rank's experts, of the shards of each of the N ranks of its group, `[E/N, N, rows, cols]`, the
/// sums `[E/N, rows, cols]` by the tree that adds up shards. `tensor` gives memory.
pub fn sum_over_ranks(
    gradients: &Tensor,
    experts: usize,
    ranks: usize,
    tensor: &dyn Fn(usize, usize) -> Tensor,
) -> Tensor {
    assert!(ranks.is_power_of_two() && experts.is_multiple_of(ranks), "{experts} experts on {ranks} ranks");
    let (device, rows, cols) = (gradients.device(), gradients.rows() / experts, gradients.cols());
    let of_rank = |rank: usize| {
        let mut of_rank = tensor(experts / ranks * rows, cols);
        for expert in 0..experts / ranks {
            device.copy_rows(gradients, (expert * ranks + rank) * rows, &mut of_rank, expert * rows, rows);
        }
        of_rank
    };
    sum(0..ranks, &of_rank)
}

fn sum(ranks: Range<usize>, of_rank: &dyn Fn(usize) -> Tensor) -> Tensor {
    if ranks.len() == 1 {
        return of_rank(ranks.start);
    }
    let middle = ranks.start + ranks.len() / 2;
    let mut left = sum(ranks.start..middle, of_rank);
    let right = sum(middle..ranks.end, of_rank);
    left.device().clone().add(&right, &mut left);
    left
}

impl fmt::Debug for ExpertShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "experts of place {} of {}", self.place(), self.ranks())
    }
}
