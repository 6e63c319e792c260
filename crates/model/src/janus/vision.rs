//! The SigLIP tower (arXiv 2303.15343): patches, learned positions, layers in which every patch sees every other, and a
//! norm at the end; no class token, no pooling.

use super::config::VisionConfig;
use super::layers::{Heads, Linear, Norm, Source, add, attention, gelu};
use crate::tape::Execution;
use wels_device::Tensor;

/// The tower with its weights.
pub struct Vision {
    config: VisionConfig,
    patches: Linear,
    /// `[tokens, width]`.
    positions: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
}

struct Layer {
    norm1: Norm,
    /// Of queries, keys and values.
    qkv: [Linear; 3],
    projection: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

impl Vision {
    /// From checked files.
    pub fn new(source: &Source, config: &VisionConfig) -> Vision {
        const NAME: &str = "model.vision_model";
        let patch = config.channels * config.patch_size * config.patch_size;
        let positions = format!("{NAME}.embeddings.position_embedding.weight");
        let layer = |i| Layer::new(source, config, &format!("{NAME}.encoder.layers.{i}"));
        Vision {
            patches: Linear::new(source, &format!("{NAME}.embeddings.patch_embedding"), patch),
            positions: source.matrix(&positions, config.hidden_size),
            layers: (0..config.layers).map(layer).collect(),
            norm: Norm::new(source, &format!("{NAME}.post_layernorm")),
            config: config.clone(),
        }
    }

    /// `[tokens, width]` of the pixels `[channels, side, side]`.
    pub fn run(&self, execution: &Execution, pixels: &[f32]) -> Tensor {
        let config = &self.config;
        let (width, patches) = (config.channels * config.patch_size * config.patch_size, patches(config, pixels));
        let patches = Tensor::of(execution.device(), config.tokens(), width, &patches);
        let x = add(execution, &self.positions, self.patches.run(execution, &patches));
        let x = self.layers.iter().fold(x, |x, layer| layer.run(execution, &self.config, x));
        self.norm.of_rows(execution, &x, self.config.norm_eps)
    }
}

/// `[tokens, channels·patch²]` of pixels `[channels, side, side]`: each patch channel by channel, as the convolution's
/// weight lies in the file.
pub fn patches(config: &VisionConfig, pixels: &[f32]) -> Vec<f32> {
    let VisionConfig { channels, image_size: side, patch_size: patch, .. } = *config;
    let grid = config.grid();
    let mut values = Vec::with_capacity(pixels.len());
    for place in 0..grid * grid {
        let (top, left) = (place / grid * patch, place % grid * patch);
        for line in 0..channels * patch {
            let at = (line / patch * side + top + line % patch) * side + left;
            values.extend_from_slice(&pixels[at..at + patch]);
        }
    }
    values
}

impl Layer {
    fn new(source: &Source, config: &VisionConfig, name: &str) -> Layer {
        let d = config.hidden_size;
        let linear = |part: &str, inputs| Linear::new(source, &format!("{name}.{part}"), inputs);
        Layer {
            norm1: Norm::new(source, &format!("{name}.layer_norm1")),
            qkv: ["q", "k", "v"].map(|part| linear(&format!("self_attn.{part}_proj"), d)),
            projection: linear("self_attn.projection_layer", d),
            norm2: Norm::new(source, &format!("{name}.layer_norm2")),
            fc1: linear("mlp.fc1", d),
            fc2: linear("mlp.fc2", config.intermediate),
        }
    }

    fn run(&self, execution: &Execution, config: &VisionConfig, x: Tensor) -> Tensor {
        let normal = self.norm1.of_rows(execution, &x, config.norm_eps);
        let [q, k, v] = self.qkv.each_ref().map(|map| map.run(execution, &normal));
        let attended = attention(execution, Heads { q: &q, k: &k, v: &v, heads: config.heads });
        let x = add(execution, &x, self.projection.run(execution, &attended));
        let normal = self.norm2.of_rows(execution, &x, config.norm_eps);
        let inner = gelu(execution, &self.fc1.run(execution, &normal));
        add(execution, &x, self.fc2.run(execution, &inner))
    }
}
