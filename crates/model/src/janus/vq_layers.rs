//! The convolutional network of the VQ tokenizer, written once on the operations of the tape. Pictures inside it are
//! `[P·side², channels]`, row by row of each square.

use super::config::{NORM_GROUPS, VqConfig};
use crate::ops::{self, Convolution, WholeAttention};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use wels_device::{Activation, GroupNorm, Step, Windows};

/// Square pictures of one size: `[P·side², channels]`.
#[derive(Clone)]
pub struct Squares {
    pub pixels: Var,
    /// P.
    pub pictures: usize,
    pub side: usize,
}

impl Squares {
    fn with(&self, pixels: Var) -> Squares {
        Squares { pixels, ..*self }
    }
}

/// Where a convolution's window lies.
#[derive(Clone, Copy)]
pub enum Window {
    /// On that pixel alone.
    Pixel,
    /// Three by three.
    From(Step),
}

/// Around each pixel.
pub const AROUND: Window = Window::From(Step::One);

/// A convolution with a bias.
pub struct Conv {
    w: Weight,
    b: Weight,
    window: Window,
}

impl Conv {
    /// Of the parameters `NAME.weight` and `NAME.bias`.
    pub fn new(wiring: &mut Wiring, name: &str, window: Window) -> Conv {
        let mut weight = |part: &str| wiring.weight(&format!("{name}.{part}"));
        Conv { w: weight("weight"), b: weight("bias"), window }
    }

    /// At half the side where the window halves it.
    pub fn run(&self, g: &mut Graph, x: &Squares) -> Squares {
        let Squares { pictures, side, .. } = *x;
        let windows = match self.window {
            Window::Pixel => None,
            Window::From(step) => Some(Windows { pictures, side, step }),
        };
        let pixels = ops::conv(g, &x.pixels, Convolution { w: self.w, b: self.b, windows });
        Squares { pixels, pictures, side: windows.map_or(side, |windows| windows.side_out()) }
    }
}

struct Norm {
    w: Weight,
    b: Weight,
}

impl Norm {
    fn new(wiring: &mut Wiring, name: &str) -> Norm {
        Norm { w: wiring.weight(&format!("{name}.weight")), b: wiring.weight(&format!("{name}.bias")) }
    }

    /// With the ε of `JanusVQVAEResnetBlock`.
    fn run(&self, g: &mut Graph, x: &Squares, activation: Activation) -> Squares {
        let of = GroupNorm { pictures: x.pictures, groups: NORM_GROUPS, eps: 1e-6, activation };
        x.with(ops::group_norm(g, &x.pixels, self.w, self.b, of))
    }
}

/// Norm, SiLU, convolution.
struct Normed {
    norm: Norm,
    conv: Conv,
}

impl Normed {
    fn new(wiring: &mut Wiring, norm: &str, conv: &str) -> Normed {
        Normed { norm: Norm::new(wiring, norm), conv: Conv::new(wiring, conv, AROUND) }
    }

    /// Of a large picture x takes as much memory as all else: it goes as soon as it is normalised.
    fn run(&self, g: &mut Graph, x: Squares) -> Squares {
        let normal = self.norm.run(g, &x, Activation::Silu);
        drop(x);
        self.conv.run(g, &normal)
    }
}

struct Residual {
    first: Normed,
    second: Normed,
    /// Where the widths differ.
    shortcut: Option<Conv>,
}

impl Residual {
    fn new(wiring: &mut Wiring, name: &str, widths: Widths) -> Residual {
        let mut normed = |i| Normed::new(wiring, &format!("{name}.norm{i}"), &format!("{name}.conv{i}"));
        let (first, second) = (normed(1), normed(2));
        let differ = widths.inputs != widths.outputs;
        let shortcut = differ.then(|| Conv::new(wiring, &format!("{name}.nin_shortcut"), Window::Pixel));
        Residual { first, second, shortcut }
    }

    fn run(&self, g: &mut Graph, x: Squares) -> Squares {
        let inner = self.first.run(g, x.clone());
        let inner = self.second.run(g, inner);
        let x = match &self.shortcut {
            Some(shortcut) => shortcut.run(g, &x),
            None => x,
        };
        x.with(ops::add(g, &x.pixels, inner.pixels))
    }
}

struct Attention {
    norm: Norm,
    qkv: [Conv; 3],
    projection: Conv,
}

impl Attention {
    fn new(wiring: &mut Wiring, name: &str) -> Attention {
        let norm = Norm::new(wiring, &format!("{name}.norm"));
        let mut conv = |part: &str| Conv::new(wiring, &format!("{name}.{part}"), Window::Pixel);
        Attention { norm, qkv: ["q", "k", "v"].map(&mut conv), projection: conv("proj_out") }
    }

    fn run(&self, g: &mut Graph, x: Squares) -> Squares {
        let normal = self.norm.run(g, &x, Activation::None);
        let qkv = self.qkv.each_ref().map(|conv| conv.run(g, &normal).pixels);
        let attended = ops::whole_attention(g, WholeAttention { qkv, heads: 1, rows: x.side * x.side });
        let attended = self.projection.run(g, &x.with(attended));
        x.with(ops::add(g, &x.pixels, attended.pixels))
    }
}

/// A residual block, and the attention after it at the lowest resolution.
struct Block {
    residual: Residual,
    attention: Option<Attention>,
}

impl Block {
    fn run(&self, g: &mut Graph, x: Squares) -> Squares {
        let x = self.residual.run(g, x);
        match &self.attention {
            Some(attention) => attention.run(g, x),
            None => x,
        }
    }
}

/// Channels that something begins and ends with.
#[derive(Clone, Copy)]
struct Widths {
    inputs: usize,
    outputs: usize,
}

fn blocks(wiring: &mut Wiring, name: &str, widths: Widths, count: usize, attention: bool) -> Vec<Block> {
    let inputs = |i| if i == 0 { widths.inputs } else { widths.outputs };
    let block = |i| Block {
        residual: Residual::new(wiring, &format!("{name}.block.{i}"), Widths { inputs: inputs(i), ..widths }),
        attention: attention.then(|| Attention::new(wiring, &format!("{name}.attn.{i}"))),
    };
    (0..count).map(block).collect()
}

struct Middle {
    first: Residual,
    attention: Attention,
    second: Residual,
}

impl Middle {
    fn new(wiring: &mut Wiring, name: &str, channels: usize) -> Middle {
        let widths = Widths { inputs: channels, outputs: channels };
        Middle {
            first: Residual::new(wiring, &format!("{name}.block_1"), widths),
            attention: Attention::new(wiring, &format!("{name}.attn_1")),
            second: Residual::new(wiring, &format!("{name}.block_2"), widths),
        }
    }

    fn run(&self, g: &mut Graph, x: Squares) -> Squares {
        let x = self.first.run(g, x);
        let x = self.attention.run(g, x);
        self.second.run(g, x)
    }
}

/// From pixels to the grid of latents.
pub struct Encoder {
    conv_in: Conv,
    /// The full resolution first; what halves the side stands at its end.
    levels: Vec<(Vec<Block>, Option<Conv>)>,
    middle: Middle,
    out: Normed,
}

impl Encoder {
    /// Of the parameters whose names begin with `name`.
    pub fn new(wiring: &mut Wiring, config: &VqConfig, name: &str) -> Encoder {
        let last = config.multipliers.len() - 1;
        let conv_in = Conv::new(wiring, &format!("{name}.conv_in"), AROUND);
        let mut channels = config.base_channels;
        let levels = (0..=last).map(|level| {
            let name = format!("{name}.down.{level}");
            let widths = Widths { inputs: channels, outputs: config.channels(level) };
            channels = widths.outputs;
            let blocks = blocks(wiring, &name, widths, config.res_blocks, level == last);
            let halve = || Conv::new(wiring, &format!("{name}.downsample.conv"), Window::From(Step::Two));
            (blocks, (level < last).then(halve))
        });
        let levels = levels.collect();
        let middle = Middle::new(wiring, &format!("{name}.mid"), channels);
        let out = Normed::new(wiring, &format!("{name}.norm_out"), &format!("{name}.conv_out"));
        Encoder { conv_in, levels, middle, out }
    }

    /// `[P·grid², latent channels]`.
    pub fn run(&self, g: &mut Graph, picture: &Squares) -> Squares {
        let mut x = self.conv_in.run(g, picture);
        for (blocks, halve) in &self.levels {
            x = blocks.iter().fold(x, |x, block| block.run(g, x));
            if let Some(halve) = halve {
                x = halve.run(g, &x);
            }
        }
        let x = self.middle.run(g, x);
        self.out.run(g, x)
    }
}

/// Pictures of so many numbers (16 MiB) are worth giving back the memory of the smaller ones before them.
const TRIM_LEN: usize = 1 << 22;

/// From the grid of codes to pixels.
pub struct Decoder {
    conv_in: Conv,
    middle: Middle,
    /// The lowest resolution first; what follows doubling the side stands at its end.
    levels: Vec<(Vec<Block>, Option<Conv>)>,
    out: Normed,
}

impl Decoder {
    /// Of the parameters whose names begin with `name`.
    pub fn new(wiring: &mut Wiring, config: &VqConfig, name: &str) -> Decoder {
        let last = config.multipliers.len() - 1;
        let mut channels = config.channels(last);
        let conv_in = Conv::new(wiring, &format!("{name}.conv_in"), AROUND);
        let middle = Middle::new(wiring, &format!("{name}.mid"), channels);
        let levels = (0..=last).rev().enumerate().map(|(up, level)| {
            let name = format!("{name}.up.{up}");
            let widths = Widths { inputs: channels, outputs: config.channels(level) };
            channels = widths.outputs;
            let blocks = blocks(wiring, &name, widths, config.res_blocks + 1, level == last);
            let conv = || Conv::new(wiring, &format!("{name}.upsample.conv"), AROUND);
            (blocks, (level > 0).then(conv))
        });
        let levels = levels.collect();
        let out = Normed::new(wiring, &format!("{name}.norm_out"), &format!("{name}.conv_out"));
        Decoder { conv_in, middle, levels, out }
    }

    /// `[P·side², channels of a pixel]`.
    pub fn run(&self, g: &mut Graph, codes: &Squares) -> Squares {
        let x = self.conv_in.run(g, codes);
        let mut x = self.middle.run(g, x);
        for (blocks, conv) in &self.levels {
            x = blocks.iter().fold(x, |x, block| block.run(g, x));
            if let Some(conv) = conv {
                let pixels = ops::double(g, &x.pixels, x.side);
                x = Squares { pixels, side: 2 * x.side, ..x };
                if x.pixels.rows() * x.pixels.cols() >= TRIM_LEN {
                    g.trim();
                }
                x = conv.run(g, &x);
            }
        }
        self.out.run(g, x)
    }
}
