//! Losses of a batch's shards and log-probabilities of its rows, over all ranks.

use wels_comm::tree::Counter;
use wels_comm::{Comm, Lost, from_bytes, to_bytes};
use wels_model::model::Losses;

use crate::trainer::StepError;

/// Joins the ranks' losses and log-probabilities, or has all ranks fail where one has.
///
/// # Errors
/// That of the first rank which has one, and [`Lost`].
pub(crate) fn agree(
    comm: &dyn Comm,
    step: u64,
    losses: Result<Losses, StepError>,
    logprobs: Vec<f32>,
) -> Result<(Losses, Vec<f32>), StepError> {
    if comm.world() == 1 {
        return Ok((losses?, logprobs));
    }
    let failure = losses.as_ref().err().map_or_else(String::new, |error| match error {
        StepError::NonFinite { place, .. } => place.clone(),
        StepError::Lost(_) => String::new(),
    });
    let failures = comm.all_gather(failure.into_bytes())?;
    if let Some(place) = failures.iter().find(|place| !place.is_empty()) {
        let place = String::from_utf8_lossy(place).into_owned();
        return Err(StepError::NonFinite { what: "loss", step, place });
    }
    let mut sum = losses?;
    let mut counter = Counter::default();
    for numbers in comm.all_gather(sum.numbers().iter().flat_map(|bits| bits.to_le_bytes()).collect())? {
        let numbers = numbers.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
        let mut of_rank = sum.clone();
        of_rank.set_numbers(numbers);
        counter.push(of_rank, |left, right| left.add(&right));
    }
    sum = counter.finish().expect("a world has ranks");
    Ok((sum, gather(comm, logprobs)?))
}

/// What the ranks have computed of neighbouring rows, in order.
pub(crate) fn gather(comm: &dyn Comm, mine: Vec<f32>) -> Result<Vec<f32>, Lost> {
    if comm.world() == 1 {
        return Ok(mine);
    }
    Ok(comm.all_gather(to_bytes(&mine))?.iter().flat_map(|bytes| from_bytes(bytes)).collect())
}
