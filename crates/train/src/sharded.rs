//! The optimizer over ranks (ZeRO-1): each owns a part of every parameter, for which it has the optimizer's state, adds
//! up the ranks' gradients and changes the weights.
//!
//! A part is whole chunks of [`SQUARES_CHUNK`] elements, so that the sums of squares behind the global norm are those
//! of one rank, chunk by chunk; of a matrix that Muon moves one rank owns all. The ranks' gradients are added by the
//! tree that adds up shards.
//!
//! Source: Rajbhandari et al. 2019, ZeRO, §5.1.

use std::borrow::Cow;
use std::ops::Range;

use wels_comm::tree::Counter;
use wels_comm::{Comm, Lost, from_bytes, to_bytes};
use wels_device::{Device, Link, SQUARES_CHUNK, Tensor};
use wels_model::params::{Grads, Params};

use crate::muon::Rule;

/// Bytes that a rank makes room for at a time where gradients go from device to device.
const AT_ONCE: usize = 256 << 20;

/// Which elements of each parameter a rank owns.
pub(crate) struct Owned {
    rank: usize,
    world: usize,
    /// One a parameter.
    splits: Vec<Split>,
}

/// How a parameter is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    /// So many elements, evenly; 0 of a parameter that has no gradient.
    Even(usize),
    /// So many elements, all of one rank: Muon needs whole matrices.
    Whole(usize, usize),
}

impl Split {
    /// The elements that belong to `rank`.
    fn part(self, rank: usize, world: usize) -> Range<usize> {
        match self {
            Split::Even(len) => {
                let chunks = len.div_ceil(SQUARES_CHUNK);
                let end = |rank: usize| (rank * chunks / world * SQUARES_CHUNK).min(len);
                end(rank)..end(rank + 1)
            }
            Split::Whole(len, owner) if rank == owner => 0..len,
            Split::Whole(..) => 0..0,
        }
    }
}

/// The splits of parameters: those that Muon moves go whole, the largest first, to the rank that has the least of them.
fn splits(params: &Params, rule: Rule, world: usize) -> Vec<Split> {
    let specs = params.specs();
    let len = |param: usize| if params.is_learnt(param) { specs[param].len() } else { 0 };
    let mut splits: Vec<Split> = (0..specs.len()).map(|param| Split::Even(len(param))).collect();
    let is_whole = |param: &usize| params.is_learnt(*param) && rule.is_muon(specs[*param].kind);
    let mut whole: Vec<usize> = (0..specs.len()).filter(is_whole).collect();
    whole.sort_by_key(|param| std::cmp::Reverse(specs[*param].len()));
    let mut taken = vec![0; world];
    for param in whole {
        let owner = (0..world).min_by_key(|rank| taken[*rank]).expect("a world has ranks");
        taken[owner] += specs[param].len();
        splits[param] = Split::Whole(specs[param].len(), owner);
    }
    splits
}

impl Owned {
    pub fn new(params: &Params, rule: Rule, rank: usize, world: usize) -> Self {
        Owned { rank, world, splits: splits(params, rule, world) }
    }

    /// The elements of parameter `param` that this rank owns.
    pub fn part(&self, param: usize) -> Range<usize> {
        self.splits[param].part(self.rank, self.world)
    }

    /// This rank's parts of whole tensors, one a parameter; of an empty one, nothing.
    pub fn parts_of(&self, whole: &[Tensor]) -> Vec<Tensor> {
        let cut = |(param, tensor): (usize, &Tensor)| {
            let range = if tensor.is_empty() { 0..0 } else { self.part(param) };
            Tensor::of(tensor.device(), 1, range.len(), &tensor.to_host()[range])
        };
        whole.iter().enumerate().map(cut).collect()
    }

    /// On rank 0 whole vectors from all ranks' parts, the inverse of [`Owned::parts_of`]; on the others none. `exists`:
    /// of which parameters there is something.
    pub fn whole<'a>(
        &self,
        comm: &dyn Comm,
        parts: &'a [Tensor],
        exists: &dyn Fn(usize) -> bool,
    ) -> Result<Vec<Cow<'a, [f32]>>, Lost> {
        if self.world == 1 {
            return Ok(parts.iter().map(Tensor::to_host).collect());
        }
        let mine: Vec<f32> = parts.iter().flat_map(|part| part.to_host().into_owned()).collect();
        let gathered: Vec<Vec<f32>> = comm.gather(to_bytes(&mine))?.iter().map(|of| from_bytes(of)).collect();
        if self.rank != 0 {
            return Ok(Vec::new());
        }
        let mut taken = vec![0; self.world];
        let join = |(param, split): (usize, &Split)| {
            let mut all = Vec::new();
            for (rank, from) in gathered.iter().enumerate().filter(|_| exists(param)) {
                let len = split.part(rank, self.world).len();
                all.extend_from_slice(&from[taken[rank]..taken[rank] + len]);
                taken[rank] += len;
            }
            Cow::Owned(all)
        };
        Ok(self.splits.iter().enumerate().map(join).collect())
    }

    /// The sum of all ranks' gradients, of this rank's part of each parameter. A single rank's are the gradients
    /// themselves.
    pub fn reduce(&self, comm: &dyn Comm, grads: &Grads) -> Result<Vec<Tensor>, Lost> {
        let own = grads.values();
        if self.world == 1 {
            return Ok(own.to_vec());
        }
        let device = own.first().map(|first| &**first.device());
        if let Some(link) = self.link(device) {
            return self.reduce_by(link, comm, own);
        }
        let host: Vec<Cow<[f32]>> = own.iter().map(Tensor::to_host).collect();
        let for_rank = |rank: usize| -> Vec<u8> {
            host.iter()
                .zip(&self.splits)
                .flat_map(|(values, split)| to_bytes(&values[split.part(rank, self.world)]))
                .collect()
        };
        let received = comm.all_to_all((0..self.world).map(for_rank).collect())?;
        drop(host);
        let mut sums = Counter::default();
        for bytes in received {
            let values = from_bytes(&bytes);
            let mut rest = &values[..];
            let mut take = |(param, tensor): (usize, &Tensor)| {
                let len = self.part(param).len();
                let (values, others) = rest.split_at(len);
                rest = others;
                Tensor::of(tensor.device(), 1, len, values)
            };
            let of_rank: Vec<Tensor> = own.iter().enumerate().map(&mut take).collect();
            sums.push(of_rank, |left: &mut Vec<Tensor>, right: Vec<Tensor>| {
                left.iter_mut().zip(&right).for_each(|(left, right)| right.device().add(right, left));
            });
        }
        Ok(sums.finish().expect("a world has ranks"))
    }

    /// How the ranks' devices hand each other numbers, where they can without the host.
    fn link<'a>(&self, device: Option<&'a dyn Device>) -> Option<&'a dyn Link> {
        let link = device?.link()?;
        ((link.rank(), link.world()) == (self.rank, self.world)).then_some(link)
    }

    fn parts(&self, param: usize) -> Vec<Range<usize>> {
        (0..self.world).map(|rank| self.splits[param].part(rank, self.world)).collect()
    }

    /// [`Owned::reduce`] from device to device, some parameters at a time. Memory for what comes is taken before all
    /// ranks have met, so that no rank is waited for that has none left.
    fn reduce_by(&self, link: &dyn Link, comm: &dyn Comm, own: &[Tensor]) -> Result<Vec<Tensor>, Lost> {
        let mut sums: Vec<Tensor> = Vec::with_capacity(own.len());
        while sums.len() < own.len() {
            let (mut received, mut bytes) = (Vec::new(), 0);
            for (param, tensor) in own.iter().enumerate().skip(sums.len()) {
                let part = || Tensor::new(tensor.device(), tensor.dtype(), 1, self.part(param).len());
                let parts: Vec<Tensor> = (0..self.world).map(|_| part()).collect();
                bytes += parts.iter().map(Tensor::bytes).sum::<usize>();
                received.push((param, parts));
                if bytes >= AT_ONCE {
                    break;
                }
            }
            comm.barrier()?;
            for (param, mut of_ranks) in received {
                link.scatter(&own[param], &self.parts(param), &mut of_ranks);
                let mut sum = Counter::default();
                of_ranks.into_iter().for_each(|next| sum.push(next, |left, right| right.device().add(&right, left)));
                sums.push(sum.finish().expect("a world has ranks"));
            }
        }
        Ok(sums)
    }

    /// The global norm: parameters in order, of each the chunks in order.
    pub fn norm(&self, comm: &dyn Comm, gradients: &[Tensor]) -> Result<f64, Lost> {
        let mine: Vec<Vec<f32>> = gradients.iter().map(|part| part.device().squares(part)).collect();
        let sum = |chunks: &mut dyn Iterator<Item = f32>| chunks.map(f64::from).sum::<f64>();
        if self.world == 1 {
            return Ok(mine.iter().map(|chunks| sum(&mut chunks.iter().copied())).sum::<f64>().sqrt());
        }
        let gathered = comm.all_gather(to_bytes(&mine.concat()))?;
        let mut of_ranks: Vec<_> = gathered.iter().map(|bytes| from_bytes(bytes).into_iter()).collect();
        let of_param = |split: &Split| {
            let mut chunks = of_ranks.iter_mut().enumerate().flat_map(|(rank, from)| {
                let count = split.part(rank, self.world).len().div_ceil(SQUARES_CHUNK);
                from.by_ref().take(count).collect::<Vec<_>>()
            });
            sum(&mut chunks)
        };
        Ok(self.splits.iter().map(of_param).sum::<f64>().sqrt())
    }

    /// The first parameter of which any rank's gradient is not finite.
    pub fn first_non_finite(&self, comm: &dyn Comm, gradients: &[Tensor]) -> Result<Option<usize>, Lost> {
        let mine = gradients.iter().position(|part| !part.device().is_finite(part)).unwrap_or(usize::MAX);
        let all = comm.all_gather(mine.to_le_bytes().to_vec())?;
        let all = all.iter().map(|bytes| usize::from_le_bytes(bytes[..].try_into().expect("a number of a rank's")));
        Ok(all.min().filter(|param| *param != usize::MAX))
    }

    /// Gives the others this rank's parts of the weights, of the parameters that are learnt, and takes theirs.
    pub fn exchange(&self, comm: &dyn Comm, params: &mut Params, learnt: &[bool]) -> Result<(), Lost> {
        if self.world == 1 {
            return Ok(());
        }
        let learnt = || learnt.iter().enumerate().filter(|(_, learnt)| **learnt).map(|(param, _)| param);
        let device = params.tensors().first().map(|first| first.device().clone());
        if let Some(link) = self.link(device.as_deref()) {
            comm.barrier()?;
            learnt().for_each(|param| link.gather(params.tensor_mut(param), &self.parts(param)));
            return Ok(());
        }
        let of_param = |param: usize| to_bytes(&params.tensors()[param].to_host()[self.part(param)]);
        let gathered = comm.all_gather(learnt().flat_map(of_param).collect())?;
        for (rank, bytes) in gathered.iter().enumerate().filter(|(rank, _)| *rank != self.rank) {
            let values = from_bytes(bytes);
            let mut taken = 0;
            for param in learnt() {
                let range = self.splits[param].part(rank, self.world);
                params.tensor_mut(param).set(range.start, &values[taken..taken + range.len()]);
                taken += range.len();
            }
        }
        Ok(())
    }
}
