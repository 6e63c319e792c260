//! What a Janus model is, complete and consistent; the `read` module beside this one resolves `config.json` to it.

use crate::config::ModelConfig;

/// Groups of a group norm, whatever the configuration (`JanusVQVAEResnetBlock`).
pub const NORM_GROUPS: usize = 32;

/// A complete, consistent description of one Janus model.
#[derive(Clone, Debug, PartialEq)]
pub struct JanusConfig {
    /// The language model.
    pub text: ModelConfig,
    /// What sees.
    pub vision: VisionConfig,
    /// What turns pictures into codes and back.
    pub vq: VqConfig,
    /// The token in whose places the features of pictures stand.
    pub image_token_id: u32,
}

/// The SigLIP tower and the aligner behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Width of a patch's state.
    pub hidden_size: usize,
    pub layers: usize,
    pub heads: usize,
    /// Of a pixel.
    pub channels: usize,
    /// Side of a picture, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    pub norm_eps: f32,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// Linear maps of the aligner.
    pub aligner_layers: usize,
}

impl VisionConfig {
    /// Patches on a side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens of a picture.
    pub fn tokens(&self) -> usize {
        self.grid() * self.grid()
    }
}

/// The VQ tokenizer, and the aligner and the head of its codes.
#[derive(Clone, Debug, PartialEq)]
pub struct VqConfig {
    /// Width of a code.
    pub code_dim: usize,
    /// How many codes there are.
    pub codes: usize,
    /// Width between the convolutions and the codes.
    pub latent_channels: usize,
    /// Of a pixel that is encoded.
    pub in_channels: usize,
    /// Of a pixel that is decoded.
    pub out_channels: usize,
    /// Width at full resolution.
    pub base_channels: usize,
    /// Factor on it at each resolution, each half of the one before.
    pub multipliers: Vec<usize>,
    /// Residual blocks a resolution; the decoder has one more.
    pub res_blocks: usize,
    /// Codes on a side of a picture.
    pub grid: usize,
    /// Linear maps of the generation aligner.
    pub aligner_layers: usize,
    /// Width inside the generation head.
    pub head_width: usize,
}

impl VqConfig {
    /// Codes of a picture.
    pub fn tokens(&self) -> usize {
        self.grid * self.grid
    }

    /// Side of the picture that the codes decode to, in pixels.
    pub fn image_size(&self) -> usize {
        self.grid << (self.multipliers.len() - 1)
    }

    /// Channels at a resolution, the full one first.
    pub fn channels(&self, level: usize) -> usize {
        self.base_channels * self.multipliers[level]
    }
}
