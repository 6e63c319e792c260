//! The VQ tokenizer (VQGAN, arXiv 2012.09841; LlamaGen's VQ-16, arXiv 2406.06525): convolutions down to a grid of
//! latents, the nearest code of each, and convolutions up again.
//!
//! Its parameters are those of the file, but that a convolution's weight is `[outputs, height·width·inputs]` here and
//! `[outputs, inputs, height, width]` there.

use std::borrow::Cow;
use std::sync::Arc;

use super::config::VqConfig;
use super::layers::Source;
use super::names::{JanusTensor, vq_tensors};
use super::vq_layers::{Conv, Decoder, Encoder, Squares, Window};
use crate::names::{ParamKind, ParamSpec};
use crate::ops;
use crate::params::{Grads, Params, Weight, Wiring, fnv1a64};
use crate::tape::{Context, Execution, Graph, Sequences, Var};
use wels_device::host::random;
use wels_device::{Device, Tensor, WeightRef};

const NAME: &str = "model.vqmodel";

/// What is read of a tokenizer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum VqPart {
    Both,
    /// What makes pixels of codes.
    Decoder,
}

fn is_encoder(name: &str) -> bool {
    name.starts_with("model.vqmodel.encoder.") || name.starts_with("model.vqmodel.quant_conv.")
}

/// Layers without weights.
pub struct VqNetwork {
    config: VqConfig,
    encoder: Encoder,
    quant_conv: Conv,
    codes: Weight,
    post_quant_conv: Conv,
    decoder: Decoder,
    slots: Vec<usize>,
}

/// The tokenizer with its weights.
pub struct Vq {
    network: VqNetwork,
    params: Params,
    /// The squares of the lengths of the codes, as latents are compared with them.
    squares: Vec<f32>,
}

impl VqNetwork {
    /// Of a configuration.
    pub fn new(config: &VqConfig) -> VqNetwork {
        let mut wiring = Wiring::listed(specs(config));
        VqNetwork {
            encoder: Encoder::new(&mut wiring, config, &format!("{NAME}.encoder")),
            quant_conv: Conv::new(&mut wiring, &format!("{NAME}.quant_conv"), Window::Pixel),
            codes: wiring.weight(&format!("{NAME}.quantize.embedding.weight")),
            post_quant_conv: Conv::new(&mut wiring, &format!("{NAME}.post_quant_conv"), Window::Pixel),
            decoder: Decoder::new(&mut wiring, config, &format!("{NAME}.decoder")),
            slots: wiring.into_slots(),
            config: config.clone(),
        }
    }

    pub fn config(&self) -> &VqConfig {
        &self.config
    }

    /// The table of codes, `[codes, dim]`.
    pub fn codes(&self) -> Weight {
        self.codes
    }

    /// Gradients of all parameters.
    pub fn grads(&self, device: &Arc<dyn Device>) -> Grads {
        Grads::listed(device, specs(&self.config), &self.slots, None)
    }

    /// Before training: convolutions normal with the variance of PyTorch's own, 1/(3·inputs of an output), norms 1,
    /// biases 0, codes of length 1 in random directions. An element depends on the seed, its parameter's name and its
    /// index alone.
    pub fn init(&self, device: &Arc<dyn Device>, seed: u64) -> Params {
        let specs = specs(&self.config);
        let mut params = Params::listed(device, specs.clone());
        for (param, spec) in specs.iter().enumerate() {
            let mut values = vec![0.0; spec.len()];
            let key = random::Key { seed, stream: fnv1a64(&spec.name) };
            match spec.kind {
                ParamKind::Norm => values.fill(1.0),
                ParamKind::Bias => {}
                ParamKind::Embedding => {
                    random::fill_normal(&mut values, 1.0, key, 0);
                    values.chunks_exact_mut(spec.cols).for_each(to_unit);
                }
                _ => random::fill_normal(&mut values, (1.0 / (3.0 * spec.cols as f64)).sqrt(), key, 0),
            }
            params.set_values(param, &values);
        }
        params
    }

    /// Parameters of the values that `of` gives for each tensor of the file, in the file's order of elements.
    ///
    /// # Panics
    /// If they are not as many as its shape says.
    pub fn params(&self, device: &Arc<dyn Device>, of: impl Fn(&JanusTensor) -> Vec<f32>) -> Params {
        self.params_of(device, VqPart::Both, of)
    }

    /// [`VqNetwork::params`] with those of a part alone; others have no values.
    fn params_of(&self, device: &Arc<dyn Device>, part: VqPart, of: impl Fn(&JanusTensor) -> Vec<f32>) -> Params {
        let mut params = Params::unset_list(device, specs(&self.config));
        let is_left = |tensor: &JanusTensor| part == VqPart::Decoder && is_encoder(&tensor.name);
        for (param, tensor) in vq_tensors(&self.config).iter().enumerate().filter(|(_, tensor)| !is_left(tensor)) {
            let values = match window_of(&tensor.shape) {
                Some((inputs, places)) => turned(&of(tensor), inputs, places),
                None => of(tensor),
            };
            params.set_values(param, &values);
        }
        params
    }

    /// The tensors of the file, of parameters or of anything else of their shapes, such as gradients.
    pub fn to_file<'a>(&self, values: &'a [Tensor]) -> impl Iterator<Item = (JanusTensor, Cow<'a, [f32]>)> {
        vq_tensors(&self.config).into_iter().zip(values).map(|(tensor, values)| {
            let values = in_file(&tensor.shape, values);
            (tensor, values)
        })
    }

    /// What operations share, for [`Graph::training`].
    pub fn context<'a>(&self, params: &'a Params, execution: &'a Execution) -> Context<'a> {
        let sequences = Arc::new(Sequences::packed(&[0]));
        let (balance_coefficient, indexer_coefficient) = (0.0, 0.0);
        let (tokens, adapted) = (None, Arc::default());
        Context { params, execution, sequences, tokens, balance_coefficient, indexer_coefficient, adapted }
    }

    /// `[P·tokens, dim]`, what codes are looked for near, of pixels `[P·side², channels]`.
    pub fn latents(&self, g: &mut Graph, pixels: Var) -> Var {
        let side = self.config.image_size();
        let x = self.squares_of(pixels, side);
        let x = self.encoder.run(g, &x);
        self.quant_conv.run(g, &x).pixels
    }

    /// The pixels `[P·side², channels]`, around −1 to 1, of rows of the table `[P·tokens, dim]`.
    pub fn decoded(&self, g: &mut Graph, codes: Var) -> Var {
        let x = self.squares_of(codes, self.config.grid);
        let x = self.post_quant_conv.run(g, &x);
        self.decoder.run(g, &x).pixels
    }

    fn squares_of(&self, pixels: Var, side: usize) -> Squares {
        let pictures = pixels.rows() / (side * side);
        assert_eq!(pixels.rows(), pictures * side * side, "rows of whole pictures of {side} pixels a side");
        Squares { pixels, pictures, side }
    }
}

fn to_unit(row: &mut [f32]) {
    let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
    row.iter_mut().for_each(|x| *x /= length);
}

/// The parameters, in the order of the file's list.
fn specs(config: &VqConfig) -> Vec<ParamSpec> {
    let spec = |JanusTensor { name, shape, .. }: JanusTensor| {
        let (rows, cols) = if shape.len() == 1 { (1, shape[0]) } else { (shape[0], shape[1..].iter().product()) };
        let kind = match (&shape[..], name.ends_with("quantize.embedding.weight")) {
            (_, true) => ParamKind::Embedding,
            ([_], _) if name.ends_with(".bias") => ParamKind::Bias,
            ([_], _) => ParamKind::Norm,
            _ => ParamKind::Matrix,
        };
        ParamSpec { name, rows, cols, kind }
    };
    vq_tensors(config).into_iter().map(spec).collect()
}

/// `[outputs, to, from]` of `[outputs, from, to]`, which has `from` rows an output.
fn turned(values: &[f32], from: usize, to: usize) -> Vec<f32> {
    let output = |values: &[f32]| -> Vec<f32> {
        (0..to).flat_map(|i| values[i..].iter().step_by(to).copied().collect::<Vec<f32>>()).collect()
    };
    values.chunks_exact(from * to).flat_map(output).collect()
}

/// The values of a parameter in the order of the tensor of this shape in the file.
pub(super) fn in_file<'a>(shape: &[usize], values: &'a Tensor) -> Cow<'a, [f32]> {
    match window_of(shape) {
        Some((inputs, places)) => Cow::Owned(turned(&values.to_host(), places, inputs)),
        None => values.to_host(),
    }
}

/// Inputs and places of a convolution's weight.
fn window_of(shape: &[usize]) -> Option<(usize, usize)> {
    (shape.len() == 4).then(|| (shape[1], shape[2] * shape[3]))
}

impl Vq {
    /// From checked files.
    pub(super) fn read(source: &Source, config: &VqConfig, part: VqPart) -> Vq {
        let network = VqNetwork::new(config);
        let params = network.params_of(source.device, part, |tensor| source.files.values(&tensor.name));
        Vq::new(network, params)
    }

    /// A network with its weights.
    pub fn new(network: VqNetwork, params: Params) -> Vq {
        let codes = params.of(network.codes).to_host();
        let square = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>();
        let squares = codes.chunks_exact(network.config.code_dim).map(square).collect();
        drop(codes);
        Vq { network, params, squares }
    }

    /// What it was made of.
    pub fn into_parts(self) -> (VqNetwork, Params) {
        (self.network, self.params)
    }

    /// Its layers.
    pub fn network(&self) -> &VqNetwork {
        &self.network
    }

    /// Its weights.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The code of each place of pixels `[channels, side, side]`.
    pub fn encode(&self, execution: &Execution, pixels: &[f32]) -> Vec<u32> {
        let (latents, config) = (self.latents(execution, pixels), &self.network.config);
        let mut products = execution.pool.tensor(latents.rows(), config.codes);
        let codes = WeightRef::Plain(self.params.of(self.network.codes));
        execution.device().linear(execution.precision, &latents, &mut [(codes, &mut products)]);
        products.to_host().chunks_exact(config.codes).map(|products| self.nearest(products)).collect()
    }

    /// Of a latent z with these products with the codes e: the first with the least |z − e|², without |z|².
    fn nearest(&self, products: &[f32]) -> u32 {
        let distance = |i: usize| self.squares[i] - 2.0 * products[i];
        (1..products.len()).fold(0, |best, i| if distance(i) < distance(best) { i } else { best }) as u32
    }

    /// `[tokens, dim]`: what codes are looked for near.
    pub fn latents(&self, execution: &Execution, pixels: &[f32]) -> Tensor {
        let VqConfig { in_channels: channels, .. } = self.network.config;
        let rows = by_pixel(pixels, channels);
        let pixels = Tensor::of(execution.device(), rows.len() / channels, channels, &rows);
        let mut g = Graph::inference(self.network.context(&self.params, execution), None);
        let pixels = g.constant(pixels);
        self.network.latents(&mut g, pixels).into_value()
    }

    /// The pixels `[channels, side, side]` of the codes, around −1 to 1.
    pub fn decode(&self, execution: &Execution, codes: &[u32]) -> Vec<f32> {
        let mut g = Graph::inference(self.network.context(&self.params, execution), None);
        let table = g.constant(self.params.of(self.network.codes).clone());
        let table = ops::unit_rows(&mut g, &table);
        let latents = g.constant(ops::chosen(&g, &table, &codes.into()));
        let pixels = self.network.decoded(&mut g, latents);
        let (values, channels) = (pixels.to_host(), pixels.cols());
        (0..channels).flat_map(|channel| values[channel..].iter().step_by(channels).copied()).collect()
    }
}

/// `[side², channels]` of `[channels, side²]`.
fn by_pixel(pixels: &[f32], channels: usize) -> Vec<f32> {
    let size = pixels.len() / channels;
    (0..size).flat_map(|pixel| (0..channels).map(move |channel| pixels[channel * size + pixel])).collect()
}
