//! What ranks that share the experts do together in a step besides gradients and weights: as many passes each, the
//! search for a loss that is not finite, whole weights.

use std::borrow::Cow;

use wels_comm::{Lost, from_bytes, to_bytes, tree};
use wels_model::expert_parallel::{ExpertShare, Sent};
use wels_model::model::{Batch, Teacher};
use wels_model::params::Params;

use super::{State, StepError, Trainer, pieces};

/// What rank 0 asks for when it needs no more values.
const ALL_TOLD: u64 = u64::MAX;

impl Trainer {
    /// Micro-batches that this rank has in its shard `shard`, and the most that a rank has in the shard that it
    /// computes meanwhile.
    pub(super) fn passes_of_shard(&self, shard: usize, batch: &Batch, micro_rows: usize) -> (usize, usize) {
        let (shards, sequences) = (self.hyper.gradient_shards, batch.starts.len() - 1);
        let each = shards / self.comm.world();
        let passes = |shard| pieces(&batch.starts, tree::sequences_of(shard, shards, sequences), micro_rows).count();
        let all = (0..self.comm.world()).map(|rank| passes(rank * each + shard % each));
        (passes(shard), all.max().expect("a world has ranks"))
    }

    /// Where ranks share the experts: has their gradients added up over the ranks at once, if each has one shard and
    /// one micro-batch of it.
    pub(super) fn choose_sums(&mut self, batch: &Batch, micro_rows: usize) {
        let Some(ranks) = self.state.params.share().map(ExpertShare::ranks) else { return };
        let is_one_shard = self.hyper.gradient_shards == self.comm.world();
        let is_one_pass = is_one_shard && self.passes_of_shard(self.comm.rank(), batch, micro_rows).1 <= 1;
        self.grads.sum_over(ranks, is_one_pass);
    }

    /// Computes this rank's experts for others that have more micro-batches.
    pub(super) fn attend(&mut self, (own, most): (usize, usize)) {
        let mtp = self.hyper.mtp_lambda.at(self.state.step + 1) != 0.0;
        for _ in own..most {
            self.model.attend(&self.state.params, &mut self.grads, &self.execution, mtp);
        }
    }

    /// Where ranks share the experts: whether any has met a loss that is not finite, and where. All look together,
    /// since none can run the model alone.
    pub(super) fn find_failure(&self, failed: Option<Batch>, teacher: Option<Teacher>) -> Result<(), StepError> {
        let flags = self.comm.all_gather(vec![failed.is_some().into()])?;
        if flags.iter().all(|flag| *flag == [0]) {
            return Ok(());
        }
        let State { params, .. } = &self.state;
        let of_weights = params.first_non_finite().map(|name| format!("weight {name}"));
        let of_results = match &failed {
            Some(micro) => self.model.first_non_finite_result(params, &self.execution, micro),
            None => {
                self.model.attend_forward(params, &self.execution, true);
                None
            }
        };
        let own = failed.map(|micro| of_results.or_else(|| self.of_teacher(teacher, &micro)));
        let own = own.map(|place| place.unwrap_or_else(|| "the output head".into()));
        let places = [of_weights, own].map(Option::unwrap_or_default);
        for place in places {
            let places = self.comm.all_gather(place.into_bytes())?;
            if let Some(place) = places.iter().find(|place| !place.is_empty()) {
                let place = String::from_utf8_lossy(place).into_owned();
                return Err(StepError::NonFinite { what: "loss", step: self.state.step + 1, place });
            }
        }
        unreachable!("the rank that failed names a place")
    }

    /// Counts what all ranks have sent since this was last done.
    pub(super) fn count_sent(&mut self) -> Result<(), Lost> {
        let Some(share) = self.state.params.share() else { return Ok(()) };
        let Sent { dispatched, combined } = share.take_sent();
        let mine = [dispatched, combined].into_iter().flat_map(u64::to_le_bytes).collect();
        for of_rank in self.comm.all_gather(mine)? {
            let number = |at: usize| u64::from_le_bytes(of_rank[at..at + 8].try_into().expect("eight bytes"));
            self.sent.dispatched += number(0);
            self.sent.combined += number(8);
        }
        Ok(())
    }

    /// All weights, also where ranks share the experts: then all of them have to ask.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn whole_params(&self) -> Result<Params, Lost> {
        match self.state.params.whole() {
            Some(params) => Ok(params),
            // What no longer comes is asked for once more, for the reason.
            None => Err(self.comm.barrier().err().unwrap_or(Lost { rank: self.comm.rank(), world: self.comm.world() })),
        }
    }

    /// Where ranks share the experts: bytes of rows that went from rank to rank since this was last asked, up to the
    /// last update, all ranks' together.
    pub fn take_sent(&mut self) -> Option<Sent> {
        self.state.params.share()?;
        Some(std::mem::take(&mut self.sent))
    }

    /// On rank 0: all values of a parameter. The others [`join`](Trainer::join_in_whole_values) until the
    /// [`end`](Trainer::end_whole_values).
    ///
    /// # Errors
    /// [`Lost`].
    pub fn whole_values(&self, param: usize) -> Result<Cow<'_, [f32]>, Lost> {
        let params = &self.state.params;
        if params.rows_here(param).len() == params.specs()[param].rows {
            return Ok(params.tensors()[param].to_host());
        }
        self.comm.broadcast((param as u64).to_le_bytes().to_vec())?;
        let all = self.comm.gather(self.values_of_first_group(param))?;
        Ok(from_bytes(&all.concat()).into())
    }

    /// On rank 0: no more is asked for.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn end_whole_values(&self) -> Result<(), Lost> {
        match self.state.params.share() {
            Some(_) => self.comm.broadcast(ALL_TOLD.to_le_bytes().to_vec()).map(drop),
            None => Ok(()),
        }
    }

    /// On the others: gives rank 0 what it asks for.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn join_in_whole_values(&self) -> Result<(), Lost> {
        if self.state.params.share().is_none() {
            return Ok(());
        }
        loop {
            let asked = self.comm.broadcast(Vec::new())?;
            match u64::from_le_bytes(asked.try_into().expect("a number of rank 0's")) {
                ALL_TOLD => return Ok(()),
                param => drop(self.comm.gather(self.values_of_first_group(param as usize))?),
            }
        }
    }

    /// Groups hold the same values: those of the first are told.
    fn values_of_first_group(&self, param: usize) -> Vec<u8> {
        let params = &self.state.params;
        let is_first = params.share().is_some_and(|share| self.comm.rank() < share.ranks());
        if is_first { to_bytes(&params.tensors()[param].to_host()) } else { Vec::new() }
    }
}
