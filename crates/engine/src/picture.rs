//! Pictures in prompts.
//!
//! A picture takes a run of places in a prompt, and the model is given its features there instead of embeddings. In the
//! tokens of a sequence these places are ids beyond every vocabulary, made of a hash of the pixels: so the prefix cache
//! tells pictures apart as it does words, and nothing else has to know of them.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use wels_device::Tensor;
use wels_model::janus::Janus;
use wels_model::tape::Execution;

use crate::request::RequestError;

/// Ids from here on are no tokens.
const FIRST_ID: u32 = 1 << 31;
/// Pictures whose features are kept: those of a conversation come again with each question.
const REMEMBERED: usize = 16;

/// Hash of a picture's pixels, by keys that are drawn anew by each process: nobody can make two pictures with one hash.
type Key = [u64; 4];

fn hashers() -> &'static [RandomState; 4] {
    static HASHERS: OnceLock<[RandomState; 4]> = OnceLock::new();
    HASHERS.get_or_init(|| std::array::from_fn(|_| RandomState::new()))
}

/// A picture in a prompt.
#[derive(Clone)]
pub struct Picture {
    /// The first of its places in the prompt, in which any tokens may stand.
    pub at: usize,
    pixels: Arc<[f32]>,
    key: Key,
}

impl Picture {
    /// Of pixels `[channels, side, side]` as the model's tower wants them.
    pub fn new(at: usize, pixels: Vec<f32>) -> Picture {
        let bytes: Vec<u8> = pixels.iter().flat_map(|x| x.to_le_bytes()).collect();
        let key = hashers().each_ref().map(|hasher| {
            let mut hasher = hasher.build_hasher();
            hasher.write(&bytes);
            hasher.finish()
        });
        Picture { at, pixels: pixels.into(), key }
    }

    /// What stands in its places in the tokens of a sequence.
    pub(crate) fn ids(&self, places: usize) -> impl Iterator<Item = u32> {
        let key = self.key;
        (0..places).map(move |place| FIRST_ID | hashers()[0].hash_one((key, place)) as u32)
    }
}

impl PartialEq for Picture {
    fn eq(&self, other: &Picture) -> bool {
        (self.at, self.key) == (other.at, other.key)
    }
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Picture").field("at", &self.at).field("pixels", &self.pixels.len()).finish()
    }
}

/// Whether an id in a sequence stands for a place of a picture.
pub(crate) fn is_place(id: u32) -> bool {
    id >= FIRST_ID
}

/// Makes features of pictures, on any thread.
pub(crate) struct Seer {
    janus: Arc<Janus>,
    /// The latest first.
    recent: Mutex<VecDeque<(Key, Tensor)>>,
}

impl Seer {
    pub fn new(janus: Arc<Janus>) -> Seer {
        Seer { janus, recent: Mutex::default() }
    }

    /// `[places, D]`.
    pub fn features(&self, picture: &Picture) -> Result<Tensor, RequestError> {
        let known = self.recent().iter().find(|(key, _)| *key == picture.key).map(|(_, features)| features.clone());
        let features = match known {
            Some(features) => features,
            None => self.compute(picture)?,
        };
        let mut recent = self.recent();
        recent.retain(|(key, _)| *key != picture.key);
        recent.push_front((picture.key, features.clone()));
        recent.truncate(REMEMBERED);
        Ok(features)
    }

    fn compute(&self, picture: &Picture) -> Result<Tensor, RequestError> {
        let execution = Execution::new(self.janus.device().clone());
        let refused = |error: wels_model::janus::JanusError| refused(error.to_string());
        self.janus.image_features(&execution, &picture.pixels).map_err(refused)
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, VecDeque<(Key, Tensor)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether pictures stand in a prompt of so many tokens, one behind the other.
pub(crate) fn check(pictures: &[Picture], janus: Option<&Janus>, prompt: usize) -> Result<(), RequestError> {
    if pictures.is_empty() {
        return Ok(());
    }
    let Some(janus) = janus else { return Err(refused("the model sees no pictures".into())) };
    let places = janus.config().vision.tokens();
    let mut end = 0;
    for picture in pictures {
        if picture.at < end || picture.at + places > prompt {
            let reason = format!("a picture of {places} places at {}, behind {end} of {prompt} tokens", picture.at);
            return Err(refused(reason));
        }
        end = picture.at + places;
    }
    Ok(())
}

pub(crate) fn refused(reason: String) -> RequestError {
    RequestError::Parameter { name: "pictures", reason }
}
