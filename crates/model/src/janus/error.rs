//! What can go wrong with a Janus model.

use crate::weights::WeightsError;

/// Why a model cannot be opened, or cannot take what it is given.
#[derive(Debug, thiserror::Error)]
pub enum JanusError {
    /// The directory.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device computes text alone.
    #[error("the device {device} has no operations of images")]
    Device { device: String },
    /// More tokens than the model was opened for.
    #[error("{tokens} tokens, more than the context of {context}")]
    TooLong { tokens: usize, context: usize },
    /// Nothing to go on from.
    #[error("there are no tokens")]
    Empty,
    /// A token or a code that does not exist.
    #[error("{what} {id}, where there are {count}")]
    Id { what: &'static str, id: u32, count: usize },
    /// The numbers of a picture are not as many as its size says.
    #[error("{found} numbers of pixels, expected {expected}")]
    Pixels { found: usize, expected: usize },
    /// The codes are not those of one picture.
    #[error("{found} codes, expected {expected}")]
    Codes { found: usize, expected: usize },
    /// Pictures and their places are not as many.
    #[error("the text has {places} places for {features} features of pictures")]
    Places { places: usize, features: usize },
    /// Pictures that are drawn need more of the KV cache than is left.
    #[error("the pictures need {needed} pages of the KV cache, and {free} are free")]
    Pages { needed: usize, free: usize },
}

/// Fails on the first id that does not exist.
pub(super) fn check_ids(what: &'static str, ids: &[u32], count: usize) -> Result<(), JanusError> {
    match ids.iter().find(|id| **id as usize >= count) {
        Some(&id) => Err(JanusError::Id { what, id, count }),
        None => Ok(()),
    }
}
