//! The VQ tokenizer (VQGAN, arXiv 2012.09841; LlamaGen's VQ-16, arXiv 2406.06525): convolutions down to a grid of
//! latents, the nearest code of each, and convolutions up again.

use super::config::VqConfig;
use super::layers::{Conv, Heads, Norm, Picture, Source, Window, add, attention, doubled};
use crate::tape::Execution;
use wels_device::{Activation, Tensor, WeightRef};

const NAME: &str = "model.vqmodel";

/// The tokenizer with its weights.
pub struct Vq {
    config: VqConfig,
    encoder: Encoder,
    quant_conv: Conv,
    /// `[codes, dim]`, as latents are compared with them.
    codes: Tensor,
    /// The squares of their lengths.
    squares: Vec<f32>,
    /// `[codes, dim]`, each of length 1, as they are decoded.
    unit_codes: Tensor,
    post_quant_conv: Conv,
    decoder: Decoder,
}

struct Encoder {
    conv_in: Conv,
    /// The full resolution first; what halves the side stands at its end.
    levels: Vec<(Vec<Block>, Option<Conv>)>,
    middle: Middle,
    norm_out: Norm,
    conv_out: Conv,
}

struct Decoder {
    conv_in: Conv,
    middle: Middle,
    /// The lowest resolution first; what follows doubling the side stands at its end.
    levels: Vec<(Vec<Block>, Option<Conv>)>,
    norm_out: Norm,
    conv_out: Conv,
}

/// A residual block, and the attention after it at the lowest resolution.
struct Block {
    residual: Residual,
    attention: Option<Attention>,
}

struct Residual {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    /// Where the widths differ.
    shortcut: Option<Conv>,
}

struct Attention {
    norm: Norm,
    qkv: [Conv; 3],
    projection: Conv,
}

struct Middle {
    first: Residual,
    attention: Attention,
    second: Residual,
}

impl Vq {
    /// From checked files.
    pub fn new(source: &Source, config: &VqConfig) -> Vq {
        let codes = source.files.values(&format!("{NAME}.quantize.embedding.weight"));
        let rows = || codes.chunks_exact(config.code_dim);
        let square = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>();
        // ε as in `torch.nn.functional.normalize`.
        let unit = |row: &[f32]| row.iter().map(|x| x / square(row).sqrt().max(1e-12)).collect::<Vec<f32>>();
        let table = |values: &[f32]| Tensor::of(source.device, config.codes, config.code_dim, values);
        Vq {
            encoder: Encoder::new(source, config),
            quant_conv: Conv::new(source, &format!("{NAME}.quant_conv"), config.latent_channels, Window::Pixel),
            codes: table(&codes),
            squares: rows().map(square).collect(),
            unit_codes: table(&rows().flat_map(unit).collect::<Vec<f32>>()),
            post_quant_conv: Conv::new(source, &format!("{NAME}.post_quant_conv"), config.code_dim, Window::Pixel),
            decoder: Decoder::new(source, config),
            config: config.clone(),
        }
    }

    /// The code of each place of pixels `[channels, side, side]`.
    pub fn encode(&self, execution: &Execution, pixels: &[f32]) -> Vec<u32> {
        let latents = self.latents(execution, pixels);
        let mut products = execution.pool.tensor(latents.rows(), self.config.codes);
        let codes = WeightRef::Plain(&self.codes);
        execution.device().linear(execution.precision, &latents, &mut [(codes, &mut products)]);
        products.to_host().chunks_exact(self.config.codes).map(|products| self.nearest(products)).collect()
    }

    /// Of a latent z with these products with the codes e: the first with the least |z − e|², without |z|².
    fn nearest(&self, products: &[f32]) -> u32 {
        let distance = |i: usize| self.squares[i] - 2.0 * products[i];
        (1..products.len()).fold(0, |best, i| if distance(i) < distance(best) { i } else { best }) as u32
    }

    /// `[tokens, dim]`: what codes are looked for near.
    pub fn latents(&self, execution: &Execution, pixels: &[f32]) -> Tensor {
        let VqConfig { in_channels: channels, .. } = self.config;
        let side = self.config.image_size();
        let size = side * side;
        let turned: Vec<f32> =
            (0..size).flat_map(|pixel| (0..channels).map(move |channel| pixels[channel * size + pixel])).collect();
        let pixels = Tensor::of(execution.device(), size, channels, &turned);
        let picture = self.encoder.run(execution, Picture { pixels, side });
        self.quant_conv.run(execution, &picture).pixels
    }

    /// The pixels `[channels, side, side]` of the codes, around −1 to 1.
    pub fn decode(&self, execution: &Execution, codes: &[u32]) -> Vec<f32> {
        let mut latents = execution.pool.tensor(codes.len(), self.config.code_dim);
        execution.device().gather(WeightRef::Plain(&self.unit_codes), &codes.into(), &mut latents);
        let picture = Picture { pixels: latents, side: self.config.grid };
        let picture = self.post_quant_conv.run(execution, &picture);
        let picture = self.decoder.run(execution, &picture);
        let (values, channels) = (picture.pixels.to_host(), picture.pixels.cols());
        (0..channels).flat_map(|channel| values[channel..].iter().step_by(channels).copied()).collect()
    }
}

impl Encoder {
    fn new(source: &Source, config: &VqConfig) -> Encoder {
        let name = format!("{NAME}.encoder");
        let last = config.multipliers.len() - 1;
        let mut channels = config.base_channels;
        let levels = (0..=last).map(|level| {
            let name = format!("{name}.down.{level}");
            let widths = Widths { inputs: channels, outputs: config.channels(level) };
            channels = widths.outputs;
            let blocks = blocks(source, &name, widths, config.res_blocks, level == last);
            let halve = || Conv::new(source, &format!("{name}.downsample.conv"), widths.outputs, Window::Halving);
            (blocks, (level < last).then(halve))
        });
        let levels = levels.collect();
        Encoder {
            conv_in: Conv::new(source, &format!("{name}.conv_in"), config.in_channels, Window::Around),
            levels,
            middle: Middle::new(source, &format!("{name}.mid"), channels),
            norm_out: Norm::new(source, &format!("{name}.norm_out")),
            conv_out: Conv::new(source, &format!("{name}.conv_out"), channels, Window::Around),
        }
    }

    fn run(&self, execution: &Execution, picture: Picture) -> Picture {
        let mut x = self.conv_in.run(execution, &picture);
        for (blocks, halve) in &self.levels {
            x = blocks.iter().fold(x, |x, block| block.run(execution, x));
            if let Some(halve) = halve {
                x = halve.run(execution, &x);
            }
        }
        let x = self.middle.run(execution, x);
        normed(execution, &self.norm_out, &self.conv_out, &x)
    }
}

impl Decoder {
    fn new(source: &Source, config: &VqConfig) -> Decoder {
        let name = format!("{NAME}.decoder");
        let last = config.multipliers.len() - 1;
        let widest = config.channels(last);
        let mut channels = widest;
        let levels = (0..=last).rev().enumerate().map(|(up, level)| {
            let name = format!("{name}.up.{up}");
            let widths = Widths { inputs: channels, outputs: config.channels(level) };
            channels = widths.outputs;
            let blocks = blocks(source, &name, widths, config.res_blocks + 1, level == last);
            let conv = || Conv::new(source, &format!("{name}.upsample.conv"), widths.outputs, Window::Around);
            (blocks, (level > 0).then(conv))
        });
        let levels = levels.collect();
        Decoder {
            conv_in: Conv::new(source, &format!("{name}.conv_in"), config.latent_channels, Window::Around),
            middle: Middle::new(source, &format!("{name}.mid"), widest),
            levels,
            norm_out: Norm::new(source, &format!("{name}.norm_out")),
            conv_out: Conv::new(source, &format!("{name}.conv_out"), channels, Window::Around),
        }
    }

    fn run(&self, execution: &Execution, picture: &Picture) -> Picture {
        let mut x = self.middle.run(execution, self.conv_in.run(execution, picture));
        for (blocks, conv) in &self.levels {
            x = blocks.iter().fold(x, |x, block| block.run(execution, x));
            if let Some(conv) = conv {
                x = conv.run(execution, &doubled(execution, &x));
            }
        }
        normed(execution, &self.norm_out, &self.conv_out, &x)
    }
}

/// Channels that a resolution begins and ends with.
#[derive(Clone, Copy)]
struct Widths {
    inputs: usize,
    outputs: usize,
}

fn blocks(source: &Source, name: &str, widths: Widths, count: usize, attention: bool) -> Vec<Block> {
    let Widths { inputs, outputs } = widths;
    let block = |i| Block {
        residual: Residual::new(source, &format!("{name}.block.{i}"), if i == 0 { inputs } else { outputs }, outputs),
        attention: attention.then(|| Attention::new(source, &format!("{name}.attn.{i}"), outputs)),
    };
    (0..count).map(block).collect()
}

impl Block {
    fn run(&self, execution: &Execution, x: Picture) -> Picture {
        let x = self.residual.run(execution, x);
        match &self.attention {
            Some(attention) => attention.run(execution, x),
            None => x,
        }
    }
}

impl Residual {
    fn new(source: &Source, name: &str, inputs: usize, outputs: usize) -> Residual {
        let shortcut = || Conv::new(source, &format!("{name}.nin_shortcut"), inputs, Window::Pixel);
        Residual {
            norm1: Norm::new(source, &format!("{name}.norm1")),
            conv1: Conv::new(source, &format!("{name}.conv1"), inputs, Window::Around),
            norm2: Norm::new(source, &format!("{name}.norm2")),
            conv2: Conv::new(source, &format!("{name}.conv2"), outputs, Window::Around),
            shortcut: (inputs != outputs).then(shortcut),
        }
    }

    fn run(&self, execution: &Execution, x: Picture) -> Picture {
        let inner = normed(execution, &self.norm1, &self.conv1, &x);
        let inner = normed(execution, &self.norm2, &self.conv2, &inner);
        let x = self.shortcut.as_ref().map(|shortcut| shortcut.run(execution, &x)).unwrap_or(x);
        Picture { pixels: add(execution, &x.pixels, inner.pixels), side: x.side }
    }
}

/// Norm, SiLU, convolution.
fn normed(execution: &Execution, norm: &Norm, conv: &Conv, x: &Picture) -> Picture {
    let pixels = norm.of_groups(execution, &x.pixels, Activation::Silu);
    conv.run(execution, &Picture { pixels, side: x.side })
}

impl Attention {
    fn new(source: &Source, name: &str, channels: usize) -> Attention {
        let conv = |part: &str| Conv::new(source, &format!("{name}.{part}"), channels, Window::Pixel);
        Attention {
            norm: Norm::new(source, &format!("{name}.norm")),
            qkv: ["q", "k", "v"].map(conv),
            projection: conv("proj_out"),
        }
    }

    fn run(&self, execution: &Execution, x: Picture) -> Picture {
        let normal = self.norm.of_groups(execution, &x.pixels, Activation::None);
        let normal = Picture { pixels: normal, side: x.side };
        let [q, k, v] = self.qkv.each_ref().map(|conv| conv.run(execution, &normal).pixels);
        let attended = attention(execution, Heads { q: &q, k: &k, v: &v, heads: 1 });
        let attended = self.projection.run(execution, &Picture { pixels: attended, side: x.side });
        Picture { pixels: add(execution, &x.pixels, attended.pixels), side: x.side }
    }
}

impl Middle {
    fn new(source: &Source, name: &str, channels: usize) -> Middle {
        Middle {
            first: Residual::new(source, &format!("{name}.block_1"), channels, channels),
            attention: Attention::new(source, &format!("{name}.attn_1"), channels),
            second: Residual::new(source, &format!("{name}.block_2"), channels, channels),
        }
    }

    fn run(&self, execution: &Execution, x: Picture) -> Picture {
        let x = self.first.run(execution, x);
        let x = self.attention.run(execution, x);
        self.second.run(execution, x)
    }
}
