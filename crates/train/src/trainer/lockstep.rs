//! What ranks that share the experts do together in a step besides gradients and weights: as many passes each, the
//! search for a loss that is not finite, whole weights.

use wels_comm::{Lost, tree};
use wels_model::expert_parallel::Sent;
use wels_model::model::{Batch, Teacher};
use wels_model::params::Params;

use super::{State, StepError, Trainer, pieces};

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

    /// What all ranks have sent since this was last asked.
    pub(super) fn count_sent(&self) -> Result<Option<Sent>, Lost> {
        let Some(share) = self.state.params.share() else { return Ok(None) };
        let Sent { dispatched, combined } = share.take_sent();
        let mine = [dispatched, combined].into_iter().flat_map(u64::to_le_bytes).collect();
        let all = self.comm.all_gather(mine)?;
        let sum = |at: usize| all.iter().map(|of| u64::from_le_bytes(of[at..at + 8].try_into().expect("eight bytes"))).sum();
        Ok(Some(Sent { dispatched: sum(0), combined: sum(8) }))
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

    /// Where ranks share the experts: bytes of rows that went from rank to rank for the last update, and before it
    /// since the one before, all ranks' together.
    pub fn sent(&self) -> Option<Sent> {
        self.sent
    }
}
