//! Exact parameters of a Janus model by part.

use serde::Serialize;

use super::config::JanusConfig;
use super::names::{Part, image_tensors};
use crate::names::param_specs;

/// Parameters of each part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JanusParams {
    /// Embedding and head included.
    pub language_model: u64,
    pub vision_model: u64,
    pub aligner: u64,
    pub vqmodel: u64,
    pub generation_embeddings: u64,
    pub generation_aligner: u64,
    pub generation_head: u64,
}

impl JanusParams {
    /// Of all parts, the VQ tokenizer included.
    pub fn total(&self) -> u64 {
        self.without_vq() + self.vqmodel
    }

    /// Of what is trained as one model: the VQ tokenizer is trained before, and stays as it is.
    pub fn without_vq(&self) -> u64 {
        let understanding = self.language_model + self.vision_model + self.aligner;
        understanding + self.generation_embeddings + self.generation_aligner + self.generation_head
    }
}

/// Counts.
pub fn params(config: &JanusConfig) -> JanusParams {
    let language_model = param_specs(&config.text).iter().map(|spec| spec.len() as u64).sum();
    let mut counts = JanusParams { language_model, ..JanusParams::default() };
    for tensor in image_tensors(config) {
        let elements = tensor.shape.iter().product::<usize>() as u64;
        *match tensor.part {
            Part::Language => &mut counts.language_model,
            Part::Vision => &mut counts.vision_model,
            Part::Aligner => &mut counts.aligner,
            Part::Vq => &mut counts.vqmodel,
            Part::GenerationEmbeddings => &mut counts.generation_embeddings,
            Part::GenerationAligner => &mut counts.generation_aligner,
            Part::GenerationHead => &mut counts.generation_head,
        } += elements;
    }
    counts
}
