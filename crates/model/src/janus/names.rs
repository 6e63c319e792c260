//! Every tensor of a `janus` file, from which counts and loading follow. Those of the language model are the ones of
//! [`crate::names`] under another name.

use super::config::{JanusConfig, VisionConfig, VqConfig};
use crate::names::{Role, hf_tensors};

/// What a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The language model, its embedding and its head.
    Language,
    /// The SigLIP tower.
    Vision,
    /// From the tower's states to the language model's.
    Aligner,
    /// Encoder, code book and decoder.
    Vq,
    /// The codes as the language model is given them.
    GenerationEmbeddings,
    /// From these to the language model's states.
    GenerationAligner,
    /// From the language model's states to codes.
    GenerationHead,
}

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JanusTensor {
    pub name: String,
    /// As in the file; a convolution's is `[outputs, inputs, height, width]`.
    pub shape: Vec<usize>,
    pub part: Part,
}

/// The name, in a text model's file, of a tensor of the language model.
pub fn language_name(name: &str) -> Option<String> {
    match name.strip_prefix("model.language_model.") {
        Some(rest) => Some(format!("model.{rest}")),
        None => (name == "lm_head.weight").then(|| name.to_owned()),
    }
}

/// The name in the file of a tensor of the language model: the reverse of [`language_name`].
pub fn file_name(name: &str) -> String {
    match name.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None => name.to_owned(),
    }
}

/// All tensors, the language model's first.
pub fn tensors(config: &JanusConfig) -> Vec<JanusTensor> {
    let own = hf_tensors(&config.text).into_iter().filter(|tensor| tensor.role == Role::Own);
    let language =
        own.map(|tensor| JanusTensor { name: file_name(&tensor.name), shape: tensor.shape, part: Part::Language });
    let mut tensors: Vec<JanusTensor> = language.collect();
    tensors.extend(image_tensors(config));
    tensors
}

/// Those that a text model does not have.
pub fn image_tensors(config: &JanusConfig) -> Vec<JanusTensor> {
    let JanusConfig { text, vision, vq, .. } = config;
    let mut list = List { tensors: Vec::new(), part: Part::Vision };
    list.vision(vision);
    list.part = Part::Aligner;
    list.aligner("model.aligner", vision.hidden_size, text.hidden_size, vision.aligner_layers);
    list.tensors.extend(vq_tensors(vq));
    list.part = Part::GenerationEmbeddings;
    list.push("model.generation_embeddings.weight", &[vq.codes, vq.code_dim]);
    list.part = Part::GenerationAligner;
    list.aligner("model.generation_aligner", vq.code_dim, vq.head_width, vq.aligner_layers);
    list.part = Part::GenerationHead;
    list.linear("model.generation_head.proj_out", text.hidden_size, vq.head_width, true);
    list.linear("model.generation_head.vision_head", vq.head_width, vq.codes, true);
    list.tensors
}

/// Those of the VQ tokenizer.
pub fn vq_tensors(vq: &VqConfig) -> Vec<JanusTensor> {
    let mut list = List { tensors: Vec::new(), part: Part::Vq };
    list.encoder(vq);
    list.decoder(vq);
    list.push("model.vqmodel.quantize.embedding.weight", &[vq.codes, vq.code_dim]);
    list.conv("model.vqmodel.quant_conv", vq.latent_channels, vq.code_dim, 1);
    list.conv("model.vqmodel.post_quant_conv", vq.code_dim, vq.latent_channels, 1);
    list.tensors
}

struct List {
    tensors: Vec<JanusTensor>,
    part: Part,
}

impl List {
    fn push(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.tensors.push(JanusTensor { name: name.into(), shape: shape.to_vec(), part: self.part });
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize, bias: bool) {
        self.push(format!("{name}.weight"), &[outputs, inputs]);
        if bias {
            self.push(format!("{name}.bias"), &[outputs]);
        }
    }

    fn conv(&mut self, name: &str, inputs: usize, outputs: usize, side: usize) {
        self.push(format!("{name}.weight"), &[outputs, inputs, side, side]);
        self.push(format!("{name}.bias"), &[outputs]);
    }

    /// Of layers and of groups.
    fn norm(&mut self, name: &str, width: usize) {
        self.push(format!("{name}.weight"), &[width]);
        self.push(format!("{name}.bias"), &[width]);
    }

    fn aligner(&mut self, name: &str, inputs: usize, outputs: usize, layers: usize) {
        self.linear(&format!("{name}.fc1"), inputs, outputs, true);
        for layer in 0..layers - 1 {
            self.linear(&format!("{name}.hidden_layers.{layer}"), outputs, outputs, true);
        }
    }

    fn vision(&mut self, vision: &VisionConfig) {
        let d = vision.hidden_size;
        self.conv("model.vision_model.embeddings.patch_embedding", vision.channels, d, vision.patch_size);
        self.push("model.vision_model.embeddings.position_embedding.weight", &[vision.tokens(), d]);
        for layer in 0..vision.layers {
            let at = |name: &str| format!("model.vision_model.encoder.layers.{layer}.{name}");
            self.norm(&at("layer_norm1"), d);
            for name in ["q_proj", "k_proj", "v_proj"] {
                self.linear(&at(&format!("self_attn.{name}")), d, d, vision.qkv_bias);
            }
            self.linear(&at("self_attn.projection_layer"), d, d, true);
            self.norm(&at("layer_norm2"), d);
            self.linear(&at("mlp.fc1"), d, vision.intermediate, true);
            self.linear(&at("mlp.fc2"), vision.intermediate, d, true);
        }
        self.norm("model.vision_model.post_layernorm", d);
    }

    fn res_block(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.norm(&format!("{name}.norm1"), inputs);
        self.conv(&format!("{name}.conv1"), inputs, outputs, 3);
        self.norm(&format!("{name}.norm2"), outputs);
        self.conv(&format!("{name}.conv2"), outputs, outputs, 3);
        if inputs != outputs {
            self.conv(&format!("{name}.nin_shortcut"), inputs, outputs, 1);
        }
    }

    fn attention(&mut self, name: &str, channels: usize) {
        self.norm(&format!("{name}.norm"), channels);
        for part in ["q", "k", "v", "proj_out"] {
            self.conv(&format!("{name}.{part}"), channels, channels, 1);
        }
    }

    fn middle(&mut self, name: &str, channels: usize) {
        self.res_block(&format!("{name}.block_1"), channels, channels);
        self.attention(&format!("{name}.attn_1"), channels);
        self.res_block(&format!("{name}.block_2"), channels, channels);
    }

    fn encoder(&mut self, vq: &VqConfig) {
        const NAME: &str = "model.vqmodel.encoder";
        let last = vq.multipliers.len() - 1;
        self.conv(&format!("{NAME}.conv_in"), vq.in_channels, vq.base_channels, 3);
        let mut channels = vq.base_channels;
        for level in 0..=last {
            for block in 0..vq.res_blocks {
                self.res_block(&format!("{NAME}.down.{level}.block.{block}"), channels, vq.channels(level));
                channels = vq.channels(level);
                if level == last {
                    self.attention(&format!("{NAME}.down.{level}.attn.{block}"), channels);
                }
            }
            if level < last {
                self.conv(&format!("{NAME}.down.{level}.downsample.conv"), channels, channels, 3);
            }
        }
        self.middle(&format!("{NAME}.mid"), channels);
        self.norm(&format!("{NAME}.norm_out"), channels);
        self.conv(&format!("{NAME}.conv_out"), channels, vq.latent_channels, 3);
    }

    fn decoder(&mut self, vq: &VqConfig) {
        const NAME: &str = "model.vqmodel.decoder";
        let last = vq.multipliers.len() - 1;
        let mut channels = vq.channels(last);
        self.conv(&format!("{NAME}.conv_in"), vq.latent_channels, channels, 3);
        self.middle(&format!("{NAME}.mid"), channels);
        // Counted from the lowest resolution on.
        for (up, level) in (0..=last).rev().enumerate() {
            for block in 0..=vq.res_blocks {
                self.res_block(&format!("{NAME}.up.{up}.block.{block}"), channels, vq.channels(level));
                channels = vq.channels(level);
                if level == last {
                    self.attention(&format!("{NAME}.up.{up}.attn.{block}"), channels);
                }
            }
            if level > 0 {
                self.conv(&format!("{NAME}.up.{up}.upsample.conv"), channels, channels, 3);
            }
        }
        self.norm(&format!("{NAME}.norm_out"), channels);
        self.conv(&format!("{NAME}.conv_out"), channels, vq.out_channels, 3);
    }
}
