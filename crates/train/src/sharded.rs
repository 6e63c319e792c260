//! The optimizer over ranks (ZeRO-1): each owns a part of every parameter, for which it has the optimizer's state, adds
//! up the ranks' gradients and changes the weights.
//!
//! A part is whole chunks of [`SQUARES_CHUNK`] elements, so that the sums of squares behind the global norm are those
//! of one rank, chunk by chunk; of a matrix that Muon moves one rank owns all. The ranks' gradients are added by the
//! tree that adds up shards.
//!
//! Experts over ranks ([`wels_model::expert_parallel`]): a rank owns parts of the experts that it holds, with the ranks
//! of the other groups that hold the same. Of a chunk that reaches over experts of several ranks each rank tells its
//! elements. A rank's gradients are of N ranks' shards each; it adds these up first, which are the next levels of the
//! tree.
//!
//! Source: Rajbhandari et al. 2019, ZeRO, §5.1.

use std::borrow::Cow;
use std::ops::Range;

use wels_comm::tree::Counter;
use wels_comm::{Comm, Lost, from_bytes, to_bytes};
use wels_device::{Device, Link, SQUARES_CHUNK, Tensor};
use wels_model::expert_parallel::{held_at, sum_over_ranks};
use wels_model::names::{ParamKind, ParamSpec};
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
struct Split {
    /// Elements; 0 of a parameter that has no gradient.
    len: usize,
    /// Where experts are over ranks.
    experts: Option<OverRanks>,
    /// Muon needs whole matrices: the rank that owns all of them; of experts over ranks, the group.
    whole: Option<usize>,
}

/// A parameter of so many experts, over groups of so many ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OverRanks {
    experts: usize,
    ranks: usize,
}

impl Split {
    /// The elements that `rank` holds.
    fn held(self, rank: usize) -> Range<usize> {
        match self.experts {
            Some(OverRanks { ranks, .. }) => held_at(rank % ranks, ranks, self.len),
            None => 0..self.len,
        }
    }

    /// The elements that belong to `rank`.
    fn part(self, rank: usize, world: usize) -> Range<usize> {
        // Those with the same elements, which divide them.
        let each = self.experts.map_or(1, |over| over.ranks);
        let (place, places, Range { start, end }) = (rank / each, world / each, self.held(rank));
        match self.whole {
            Some(owner) if place == owner => start..end,
            Some(_) => start..start,
            None => {
                let (first, last) = (start.div_ceil(SQUARES_CHUNK), self.last_chunk(end));
                let chunks = last.saturating_sub(first);
                let cut = |place: usize| match place {
                    0 => start,
                    place if place == places => end,
                    place => ((first + place * chunks / places) * SQUARES_CHUNK).clamp(start, end),
                };
                cut(place)..cut(place + 1)
            }
        }
    }

    /// How many chunks end at an element.
    fn last_chunk(self, end: usize) -> usize {
        if end == self.len { end.div_ceil(SQUARES_CHUNK) } else { end / SQUARES_CHUNK }
    }

    /// Where the part of `rank` lies in what it holds.
    fn here(self, rank: usize, world: usize) -> Range<usize> {
        let (part, start) = (self.part(rank, world), self.held(rank).start);
        part.start - start..part.end - start
    }

    /// Whether two ranks hold the same elements.
    fn is_shared(self, one: usize, other: usize) -> bool {
        self.experts.is_none_or(|over| one % over.ranks == other % over.ranks)
    }

    /// A rank's part as elements of a chunk that begins before it, whole chunks, and elements of one that ends behind
    /// it.
    fn chunks(self, part: Range<usize>) -> [Range<usize>; 3] {
        let first = part.start.next_multiple_of(SQUARES_CHUNK).min(part.end);
        let last = (self.last_chunk(part.end) * SQUARES_CHUNK).clamp(first, part.end);
        [part.start..first, first..last, last..part.end]
    }
}

/// The splits of parameters: those that Muon moves go whole, the largest first, to the rank that has the least of them.
fn splits(params: &Params, rule: Rule, world: usize) -> Vec<Split> {
    let (specs, share) = (params.specs(), params.share());
    let len = |param: usize| if params.is_learnt(param) { specs[param].len() } else { 0 };
    let experts = |spec: &ParamSpec| match spec.kind {
        ParamKind::Experts(experts) | ParamKind::ExpertBiases(experts) => {
            share.map(|share| OverRanks { experts, ranks: share.ranks() })
        }
        _ => None,
    };
    let split = |param: usize| Split { len: len(param), experts: experts(&specs[param]), whole: None };
    let mut splits: Vec<Split> = (0..specs.len()).map(split).collect();
    let is_whole = |param: &usize| params.is_learnt(*param) && rule.is_muon(specs[*param].kind);
    let mut whole: Vec<usize> = (0..specs.len()).filter(is_whole).collect();
    whole.sort_by_key(|param| std::cmp::Reverse(specs[*param].len()));
    let mut taken = vec![0; world];
    for param in whole {
        let each = splits[param].experts.map_or(1, |over| over.ranks);
        let load = |place: &usize| taken[place * each..(place + 1) * each].iter().sum::<usize>();
        let owner = (0..world / each).min_by_key(load).expect("a world has ranks");
        taken[owner * each..(owner + 1) * each].iter_mut().for_each(|taken| *taken += specs[param].len() / each);
        splits[param].whole = Some(owner);
    }
    splits
}

impl Owned {
    pub fn new(params: &Params, rule: Rule, rank: usize, world: usize) -> Self {
        Owned { rank, world, splits: splits(params, rule, world) }
    }

    /// Where what this rank owns of parameter `param` lies in what it holds of it.
    pub fn part(&self, param: usize) -> Range<usize> {
        self.splits[param].here(self.rank, self.world)
    }

    /// A parameter as this rank holds it.
    pub fn held(&self, param: usize, spec: &ParamSpec) -> ParamSpec {
        match (self.splits[param].experts, spec.kind) {
            (Some(OverRanks { ranks, .. }), ParamKind::Experts(experts)) => {
                ParamSpec { rows: spec.rows / ranks, kind: ParamKind::Experts(experts / ranks), ..spec.clone() }
            }
            _ => spec.clone(),
        }
    }

    /// This rank's parts of tensors, one a parameter; of an empty one, nothing.
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
            let mut all = vec![0.0; if exists(param) { split.len } else { 0 }];
            for (rank, from) in gathered.iter().enumerate().filter(|_| exists(param)) {
                let part = split.part(rank, self.world);
                let end = taken[rank] + part.len();
                all[part].copy_from_slice(&from[taken[rank]..end]);
                taken[rank] = end;
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
        let of_group = |(tensor, split): (&Tensor, &Split)| match split.experts {
            Some(OverRanks { experts, ranks }) if grads.summed().is_none() => {
                let new = |rows, cols| Tensor::new(tensor.device(), tensor.dtype(), rows, cols);
                sum_over_ranks(tensor, experts, ranks, &new)
            }
            _ => tensor.clone(),
        };
        let own: Vec<Tensor> = own.iter().zip(&self.splits).map(of_group).collect();
        let host: Vec<Cow<[f32]>> = own.iter().map(Tensor::to_host).collect();
        let received =
            comm.all_to_all((0..self.world).map(|rank| self.for_rank(rank, |param| &host[param][..])).collect())?;
        drop(host);
        let mut rest: Vec<&[u8]> = received.iter().map(|bytes| &bytes[..]).collect();
        let mut sum = |(split, tensor): (&Split, &Tensor)| {
            let len = split.part(self.rank, self.world).len();
            let mut sum = Counter::default();
            for (_, rest) in rest.iter_mut().enumerate().filter(|(rank, _)| split.is_shared(*rank, self.rank)) {
                let (values, others) = rest.split_at(4 * len);
                *rest = others;
                let of_rank = Tensor::of(tensor.device(), 1, len, &from_bytes(values));
                sum.push(of_rank, |left: &mut Tensor, right: Tensor| right.device().add(&right, left));
            }
            sum.finish().expect("a group has ranks")
        };
        Ok(self.splits.iter().zip(&own).map(&mut sum).collect())
    }

    /// What belongs to a rank of what this one holds too, parameter by parameter.
    fn for_rank<'a>(&self, rank: usize, values: impl Fn(usize) -> &'a [f32]) -> Vec<u8> {
        let shared = self.splits.iter().enumerate().filter(|(_, split)| split.is_shared(rank, self.rank));
        let part = |(param, split): (usize, &Split)| to_bytes(&values(param)[split.here(rank, self.world)]);
        shared.map(part).collect::<Vec<_>>().concat()
    }

    /// How the ranks' devices hand each other numbers, where they can without the host.
    fn link<'a>(&self, device: Option<&'a dyn Device>) -> Option<&'a dyn Link> {
        let link = device?.link().filter(|_| self.splits.iter().all(|split| split.experts.is_none()))?;
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
        let mine: Vec<f32> =
            gradients.iter().zip(&self.splits).flat_map(|(part, split)| self.squares(part, *split)).collect();
        let of_ranks = comm.all_gather(to_bytes(&mine))?;
        let of_ranks: Vec<Vec<f32>> = of_ranks.iter().map(|bytes| from_bytes(bytes)).collect();
        let mut rest: Vec<&[f32]> = of_ranks.iter().map(|all| &all[..]).collect();
        let of_param = |(split, part): (&Split, &Tensor)| {
            let of_chunk = |elements: &[f32]| {
                let elements = Tensor::of(part.device(), 1, elements.len(), elements);
                part.device().squares(&elements)[0]
            };
            self.chunks(*split, &mut rest, &of_chunk).into_iter().map(f64::from).sum::<f64>()
        };
        Ok(self.splits.iter().zip(gradients).map(of_param).sum::<f64>().sqrt())
    }

    /// What a rank tells of its part of a parameter: sums of squares of whole chunks, and the elements of others.
    fn squares(&self, part: &Tensor, split: Split) -> Vec<f32> {
        let range = split.part(self.rank, self.world);
        let [before, whole, behind] = split.chunks(range.clone());
        if before.is_empty() && behind.is_empty() {
            return part.device().squares(part);
        }
        let values = part.to_host();
        let of = |elements: Range<usize>| &values[elements.start - range.start..elements.end - range.start];
        let chunks = Tensor::of(part.device(), 1, whole.len(), of(whole.clone()));
        [of(before), &part.device().squares(&chunks), of(behind)].concat()
    }

    /// The sums of squares of a parameter's chunks, in order, from what each rank tells; that is taken away.
    fn chunks(&self, split: Split, rest: &mut [&[f32]], of_chunk: &dyn Fn(&[f32]) -> f32) -> Vec<f32> {
        let mut parts: Vec<(Range<usize>, usize)> = (0..self.world)
            .map(|rank| (split.part(rank, self.world), rank))
            .filter(|(part, _)| !part.is_empty())
            .collect();
        parts.sort_by_key(|(part, _)| part.start);
        let (mut sums, mut begun) = (Vec::new(), Vec::new());
        for (part, rank) in parts {
            let mut take = |count: usize| {
                let (taken, others) = rest[rank].split_at(count);
                rest[rank] = others;
                taken
            };
            let [before, whole, behind] = split.chunks(part);
            begun.extend_from_slice(take(before.len()));
            let ends = before.end.is_multiple_of(SQUARES_CHUNK) || before.end == split.len;
            if ends && !begun.is_empty() {
                sums.push(of_chunk(&begun));
                begun.clear();
            }
            sums.extend_from_slice(take(whole.len().div_ceil(SQUARES_CHUNK)));
            begun.extend_from_slice(take(behind.len()));
        }
        sums
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
        let learnt = learnt.iter().enumerate().filter(|(_, learnt)| **learnt).map(|(param, _)| param);
        let (experts, others): (Vec<usize>, Vec<usize>) =
            learnt.partition(|param| self.splits[*param].experts.is_some());
        let device = params.tensors().first().map(|first| first.device().clone());
        if let Some(link) = self.link(device.as_deref()) {
            comm.barrier()?;
            others.into_iter().for_each(|param| link.gather(params.tensor_mut(param), &self.parts(param)));
            return Ok(());
        }
        let mine = |chosen: &[usize]| -> Vec<u8> {
            let of_param = |param: &usize| to_bytes(&params.tensors()[*param].to_host()[self.part(*param)]);
            chosen.iter().map(of_param).collect::<Vec<_>>().concat()
        };
        let gathered = comm.all_gather(mine(&others))?;
        // Experts are those of the same place in each group.
        let Some(over) = experts.first().and_then(|param| self.splits[*param].experts) else {
            self.take(params, &others, &gathered);
            return Ok(());
        };
        let of_experts = if over.ranks < self.world { mine(&experts) } else { Vec::new() };
        self.take(params, &others, &gathered);
        if over.ranks == self.world {
            return Ok(());
        }
        let same = |rank: usize| rank % over.ranks == self.rank % over.ranks;
        let for_rank = |rank: usize| if same(rank) { of_experts.clone() } else { Vec::new() };
        let gathered = comm.all_to_all((0..self.world).map(for_rank).collect())?;
        self.take(params, &experts, &gathered);
        Ok(())
    }

    /// Takes over the other ranks' parts of some parameters that these share with this one.
    fn take(&self, params: &mut Params, chosen: &[usize], gathered: &[Vec<u8>]) {
        for (rank, bytes) in gathered.iter().enumerate().filter(|(rank, _)| *rank != self.rank) {
            let values = from_bytes(bytes);
            let mut taken = 0;
            for param in chosen.iter().filter(|param| self.splits[**param].is_shared(rank, self.rank)) {
                let range = self.splits[*param].here(rank, self.world);
                params.tensor_mut(*param).set(range.start, &values[taken..taken + range.len()]);
                taken += range.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_parameter_once_and_chunks_are_whole_again() {
        for (experts, of_expert) in [(8, 1000), (8, 4096), (8, 5000), (4, 16), (16, 20_000)] {
            for (world, ranks) in [(2, 2), (4, 2), (4, 4), (8, 2), (8, 4), (16, 4)] {
                let len = experts * of_expert;
                for whole in [None, Some(world / ranks - 1)] {
                    let split = Split { len, experts: Some(OverRanks { experts, ranks }), whole };
                    let mut covered = vec![0; len];
                    let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
                    let mut told = Vec::new();
                    for rank in 0..world {
                        let part = split.part(rank, world);
                        covered[part.clone()].iter_mut().for_each(|count| *count += 1);
                        let [before, whole, behind] = split.chunks(part);
                        let firsts = whole.step_by(SQUARES_CHUNK).map(|i| i as f32);
                        let all = values[before].iter().copied().chain(firsts).chain(values[behind].iter().copied());
                        told.push(all.collect::<Vec<f32>>());
                    }
                    assert!(covered.iter().all(|count| *count == 1), "{split:?} on {world} ranks");
                    // The first element stands for a chunk here.
                    let owned = Owned { rank: 0, world, splits: vec![split] };
                    let mut rest: Vec<&[f32]> = told.iter().map(|all| &all[..]).collect();
                    let chunks = owned.chunks(split, &mut rest, &|elements| {
                        assert!(elements.len() == SQUARES_CHUNK || elements.last() == values.last());
                        assert!(elements.windows(2).all(|pair| pair[1] == pair[0] + 1.0));
                        elements[0]
                    });
                    let expected: Vec<f32> = (0..len).step_by(SQUARES_CHUNK).map(|i| i as f32).collect();
                    assert_eq!(chunks, expected, "{split:?} on {world} ranks");
                    assert!(rest.iter().all(|rest| rest.is_empty()));
                }
            }
        }
    }
}
