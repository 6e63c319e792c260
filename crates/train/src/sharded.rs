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
use wels_comm::{Comm, Lost, Pending, from_bytes, to_bytes};
use wels_device::{Device, Link, SQUARES_CHUNK, Tensor};
use wels_model::expert_parallel::{held_at, sum_over_ranks};
use wels_model::names::{ParamKind, ParamSpec};
use wels_model::params::{Grads, Params};

use crate::muon::Rule;

/// Bytes that a rank makes room for at a time where gradients go from device to device.
const AT_ONCE: usize = 256 << 20;

/// Gradients of some parameters as this rank holds them: of the experts that its group shares, those of all ranks of
/// the group added up.
pub(crate) struct Message(Vec<(usize, Tensor)>);

/// A term of a sum over ranks, copied only where it is added to.
enum Term<'a> {
    Own(&'a [f32]),
    Received(&'a [u8]),
    Sum(Vec<f32>),
}

impl Term<'_> {
    fn into_values(self) -> Vec<f32> {
        match self {
            Term::Own(values) => values.to_vec(),
            Term::Received(bytes) => from_bytes(bytes),
            Term::Sum(values) => values,
        }
    }

    fn plus(self, right: &Term) -> Self {
        let mut sum = self.into_values();
        match right {
            Term::Own(values) => sum.iter_mut().zip(*values).for_each(|(sum, value)| *sum += value),
            Term::Sum(values) => sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
            Term::Received(bytes) => {
                let values =
                    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")));
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        }
        Term::Sum(sum)
    }
}

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

    /// What this rank tells the others of the gradients of some parameters.
    pub fn message(&self, params: &[usize], grads: &Grads) -> Message {
        let of_group = |&param: &usize| match (&grads.values()[param], self.splits[param].experts) {
            (tensor, Some(OverRanks { experts, ranks })) if grads.summed().is_none() => {
                let new = |rows, cols| Tensor::new(tensor.device(), tensor.dtype(), rows, cols);
                sum_over_ranks(tensor, experts, ranks, &new)
            }
            (tensor, _) => tensor.clone(),
        };
        Message(params.iter().map(|param| (*param, of_group(param))).collect())
    }

    /// To each rank what belongs to it of what this one holds too, parameter by parameter; to itself nothing.
    pub fn to_ranks(&self, message: &Message) -> Vec<Vec<u8>> {
        let values: Vec<(usize, Cow<[f32]>)> = message.0.iter().map(|(param, of)| (*param, of.to_host())).collect();
        let for_rank = |rank: usize| {
            let shared = values.iter().filter(|(param, _)| self.splits[*param].is_shared(rank, self.rank));
            let parts = shared.map(|(param, values)| &values[self.splits[*param].here(rank, self.world)]);
            if rank == self.rank { Vec::new() } else { concatenated(parts) }
        };
        (0..self.world).map(for_rank).collect()
    }

    /// Room for sums of this rank's parts.
    pub fn room(&self, grads: &Grads) -> Vec<Tensor> {
        let room = |(param, tensor): (usize, &Tensor)| Tensor::zeros(tensor.device(), 1, self.part(param).len());
        grads.values().iter().enumerate().map(room).collect()
    }

    /// Adds up what all ranks have told of this rank's parts of some parameters.
    pub fn add_up(&self, params: &[usize], received: &[Vec<u8>], own: &Message, sums: &mut [Tensor]) {
        let mut rest: Vec<&[u8]> = received.iter().map(|bytes| &bytes[..]).collect();
        for (param, (_, own)) in params.iter().zip(&own.0) {
            let (split, part) = (self.splits[*param], self.part(*param));
            let own = own.to_host();
            let mut sum = Counter::default();
            for (rank, rest) in rest.iter_mut().enumerate().filter(|(rank, _)| split.is_shared(*rank, self.rank)) {
                let of_rank = match rank == self.rank {
                    true => Term::Own(&own[part.clone()]),
                    false => {
                        let (values, others) = rest.split_at(4 * part.len());
                        *rest = others;
                        Term::Received(values)
                    }
                };
                sum.push(of_rank, |left, right| *left = std::mem::replace(left, Term::Own(&[])).plus(&right));
            }
            sums[*param].set(0, &sum.finish().expect("a group has ranks").into_values());
        }
    }

    /// How the ranks' devices hand each other numbers, where they can without the host.
    pub fn link<'a>(&self, device: Option<&'a dyn Device>) -> Option<&'a dyn Link> {
        let link = device?.link().filter(|_| self.splits.iter().all(|split| split.experts.is_none()))?;
        ((link.rank(), link.world()) == (self.rank, self.world)).then_some(link)
    }

    fn parts(&self, param: usize) -> Vec<Range<usize>> {
        (0..self.world).map(|rank| self.splits[param].part(rank, self.world)).collect()
    }

    /// The sums of all ranks' gradients from device to device, some parameters at a time. Memory for what comes is
    /// taken before all ranks have met, so that no rank is waited for that has none left.
    ///
    /// # Panics
    /// If there is no [link](Owned::link).
    pub fn reduce_by_link(&self, comm: &dyn Comm, own: &[Tensor]) -> Result<Vec<Tensor>, Lost> {
        let device = own.first().map(|first| &**first.device());
        let link = self.link(device).expect("devices that hand each other numbers");
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

    /// Begins to give the others this rank's parts of some weights.
    pub fn begin_exchange(&self, comm: &dyn Comm, params: &Params, chosen: &[usize]) -> Pending {
        let for_rank = |rank: usize| {
            let values = |param: &usize| params.tensors()[*param].to_host();
            let shared = chosen.iter().filter(|param| self.splits[**param].is_shared(rank, self.rank));
            let of_chosen: Vec<(Cow<[f32]>, Range<usize>)> =
                shared.map(|param| (values(param), self.part(*param))).collect();
            concatenated(of_chosen.iter().map(|(values, part)| &values[part.clone()]))
        };
        match chosen.iter().any(|param| self.splits[*param].experts.is_some()) {
            true => comm.begin((0..self.world).map(for_rank).collect()),
            false => comm.begin_all_gather(for_rank(self.rank)),
        }
    }

    /// Takes over the other ranks' parts of some weights that these share with this one.
    pub fn take(&self, params: &mut Params, chosen: &[usize], gathered: &[Vec<u8>]) {
        for (rank, bytes) in gathered.iter().enumerate().filter(|(rank, _)| *rank != self.rank) {
            let mut rest = &bytes[..];
            for param in chosen.iter().filter(|param| self.splits[**param].is_shared(rank, self.rank)) {
                let range = self.splits[*param].here(rank, self.world);
                let (values, others) = rest.split_at(4 * range.len());
                rest = others;
                params.tensor_mut(*param).set(range.start, &from_bytes(values));
            }
        }
    }

    /// Gives the others this rank's parts of weights and takes theirs, from device to device.
    ///
    /// # Panics
    /// If there is no [link](Owned::link).
    pub fn exchange_by_link(&self, comm: &dyn Comm, params: &mut Params, chosen: &[usize]) -> Result<(), Lost> {
        let device = params.tensors().first().map(|first| first.device().clone());
        let link = self.link(device.as_deref()).expect("devices that hand each other numbers");
        comm.barrier()?;
        chosen.iter().for_each(|param| link.gather(params.tensor_mut(*param), &self.parts(*param)));
        Ok(())
    }
}

/// Vectors one after the other, as bytes.
fn concatenated<'a>(parts: impl Iterator<Item = &'a [f32]> + Clone) -> Vec<u8> {
    let mut bytes = vec![0; 4 * parts.clone().map(<[f32]>::len).sum::<usize>()];
    let mut rest = &mut bytes[..];
    for part in parts {
        let (room, others) = rest.split_at_mut(4 * part.len());
        room.chunks_exact_mut(4).zip(part).for_each(|(room, value)| room.copy_from_slice(&value.to_le_bytes()));
        rest = others;
    }
    bytes
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
