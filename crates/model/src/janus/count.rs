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

/// Operations of the parts that are no language model: two for each product in a matrix, a convolution or attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JanusFlops {
    /// A picture to codes.
    pub encode: u64,
    /// Codes to a picture.
    pub decode: u64,
    /// A picture to features: the tower and the aligner.
    pub see: u64,
    /// A code in and one out: the generation aligner and the head.
    pub code: u64,
}

/// Counts, forward.
pub fn flops(config: &JanusConfig) -> JanusFlops {
    let JanusConfig { vision, vq, .. } = config;
    let mut flops = JanusFlops::default();
    let patches = vision.tokens() as u64;
    let last = vq.multipliers.len() - 1;
    for tensor in image_tensors(config) {
        let of_matrix = tensor.shape.len() > 1 && !tensor.name.ends_with("embedding.weight");
        let elements = if of_matrix { tensor.shape.iter().product::<usize>() as u64 } else { 0 };
        match tensor.part {
            Part::Language => {}
            Part::Vision => flops.see += 2 * elements * patches,
            Part::Aligner => flops.see += 2 * elements * patches,
            Part::GenerationEmbeddings => {}
            Part::GenerationAligner | Part::GenerationHead => flops.code += 2 * elements,
            Part::Vq => {
                let pixels = ((vq.image_size() >> level(&tensor.name, last)) as u64).pow(2);
                let attends = tensor.name.ends_with("attn_1.q.weight") || tensor.name.contains(".attn.");
                let attention = match attends && tensor.name.ends_with(".q.weight") {
                    true => 4 * pixels * pixels * tensor.shape[0] as u64,
                    false => 0,
                };
                let total = 2 * elements * pixels + attention;
                let encodes = tensor.name.contains(".encoder.") || tensor.name.contains(".quant_conv");
                *(if encodes { &mut flops.encode } else { &mut flops.decode }) += total;
            }
        }
    }
    flops.see += 4 * patches * patches * (vision.hidden_size * vision.layers) as u64;
    // The codes that a latent is compared with.
    flops.encode += 2 * (vq.codes * vq.code_dim * vq.tokens()) as u64;
    flops
}

/// How often the side is halved where a tensor of the VQ tokenizer is used, of at most `last` times.
fn level(name: &str, last: usize) -> usize {
    let number = |behind: &str| {
        let (_, rest) = name.split_once(behind)?;
        rest.split('.').next()?.parse::<usize>().ok()
    };
    if let Some(down) = number(".down.") {
        return down + usize::from(name.contains(".downsample."));
    }
    if let Some(up) = number(".up.") {
        return last - up - usize::from(name.contains(".upsample."));
    }
    match name.contains(".encoder.conv_in") || name.contains(".decoder.conv_out") {
        true => 0,
        false => last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_used_where_the_picture_has_its_size() {
        for (name, at) in [
            ("model.vqmodel.encoder.conv_in.weight", 0),
            ("model.vqmodel.encoder.down.0.block.1.conv1.weight", 0),
            ("model.vqmodel.encoder.down.0.downsample.conv.weight", 1),
            ("model.vqmodel.encoder.mid.attn_1.q.weight", 2),
            ("model.vqmodel.decoder.up.0.block.0.conv1.weight", 2),
            ("model.vqmodel.decoder.up.0.upsample.conv.weight", 1),
            ("model.vqmodel.decoder.up.2.block.0.conv1.weight", 0),
            ("model.vqmodel.decoder.conv_out.weight", 0),
            ("model.vqmodel.post_quant_conv.weight", 2),
        ] {
            assert_eq!(level(name, 2), at, "{name}");
        }
    }
}
