//! Learning of the VQ tokenizer: gradients against PyTorch, what may change no bit, and files.

use safetensors::SafeTensors;
use std::sync::Arc;
use wels_cpu::naive::Naive;
use wels_device::{Device, Tensor};
use wels_kernels::par;
use wels_model::janus::names::JanusTensor;
use wels_model::janus::{VqNetwork, VqObjective, VqSeen};
use wels_model::params::{Grads, Params};
use wels_model::tape::Execution;

use crate::janus::{Oracle, uniform, weight};

/// Largest difference of a gradient's digest, as a part of the gradient's largest number.
const TOLERANCE: f32 = 1e-4;

/// As `learned` of `scripts/oracle/make_janus.py`.
const OBJECTIVE: VqObjective = VqObjective { pictures: 2, l1: 0.3, l2: 1.0, commitment: 0.25 };

struct Case {
    network: VqNetwork,
    params: Params,
    /// `[2·side², channels]`.
    pixels: Vec<f32>,
    execution: Execution,
}

impl Case {
    fn new(oracle: &Oracle, device: Arc<dyn Device>) -> Case {
        let config = &oracle.config.vq;
        let network = VqNetwork::new(config);
        let params = network.params(&device, |tensor| initial(tensor, config.code_dim));
        let (channels, side) = (config.in_channels, config.image_size());
        let picture = |i: usize| {
            let planes = oracle.pixels(&format!("learned{i}"), channels, side);
            let pixel = |at: usize| (0..channels).map(move |channel| channel * side * side + at);
            (0..side * side).flat_map(pixel).map(|at| planes[at]).collect::<Vec<f32>>()
        };
        let pixels = [picture(0), picture(1)].concat();
        Case { network, params, pixels, execution: Execution::new(device) }
    }

    /// Gradients of all, `micro` pictures at a time.
    fn gradients(&self, micro: usize) -> (Grads, VqSeen) {
        let device = self.execution.device();
        let mut grads = self.network.grads(device);
        let mut seen = VqSeen::default();
        grads.begin();
        let channels = self.network.config().in_channels;
        for pixels in self.pixels.chunks(self.pixels.len() / 2 * micro) {
            let pixels = Tensor::of(device, pixels.len() / channels, channels, pixels);
            let (params, execution) = (&self.params, &self.execution);
            seen.add(self.network.accumulate(params, &mut grads, execution, &pixels, None, &OBJECTIVE));
        }
        grads.finish();
        (grads, seen)
    }
}

/// The oracle's weights, the codes at length 1.
fn initial(tensor: &JanusTensor, code_dim: usize) -> Vec<f32> {
    let mut values = weight(&tensor.name, &tensor.shape);
    if tensor.name.ends_with("quantize.embedding.weight") {
        for row in values.chunks_exact_mut(code_dim) {
            let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
    values
}

/// As `digest` of `scripts/oracle/make_janus.py`.
fn digest(name: &str, gradient: &[f32]) -> Vec<f32> {
    let (count, places) = (gradient.len(), gradient.len().min(48));
    let largest = gradient.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let elements = (0..places).map(|i| gradient[i * count / places]);
    let product = |vector: usize| {
        let values: Vec<f32> = uniform(&format!("{name}.{vector}")).take(count).map(|x| x as f32).collect();
        let dot = |a: &[f32]| values.iter().zip(a).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        (dot(gradient) / dot(&values).sqrt()) as f32
    };
    std::iter::once(largest).chain(elements).chain((0..4).map(product)).collect()
}

#[test]
fn gradients_are_those_of_pytorch() {
    for oracle in Oracle::all() {
        let case = Case::new(&oracle, wels_cpu::device());
        let (grads, _) = case.gradients(2);
        let expected = SafeTensors::deserialize(&oracle.gradients).expect("a safetensors file");
        let (mut worst, mut count, mut nothing) = (0.0f32, 0, 0);
        for (tensor, gradient) in case.network.to_file(grads.values()) {
            let data = expected.tensor(&tensor.name).unwrap_or_else(|error| panic!("{}: {error}", tensor.name));
            let expected: Vec<f32> =
                data.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let found = digest(&tensor.name, &gradient);
            assert_eq!(found.len(), expected.len(), "{} {}", oracle.name, tensor.name);
            // A bias that the norm behind it takes away, or the softmax, has no gradient but what rounding leaves.
            if expected[0] < 1e-12 {
                assert!(found[0] < 1e-6, "{} {}: {:e} for nothing", oracle.name, tensor.name, found[0]);
                nothing += 1;
                continue;
            }
            let largest = expected[0];
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let error = (found - expected).abs() / largest;
                let what = format!("{} {} [{i}]", oracle.name, tensor.name);
                assert!(error <= TOLERANCE, "{what}: {found:e} for {expected:e}, largest {largest:e}");
                worst = worst.max(error);
            }
            count += 1;
        }
        assert_eq!(count + nothing, expected.names().len(), "{}", oracle.name);
        assert!(count > 3 * nothing, "{}: {count} gradients, and {nothing} that are nothing", oracle.name);
        eprintln!("{}: gradients of {count} tensors, at most {worst:.1e} of the largest", oracle.name);
    }
}

#[test]
fn threads_devices_and_micro_batches_change_no_bit_of_a_gradient() {
    for oracle in Oracle::all() {
        let bits = |device: Arc<dyn Device>, micro: usize| {
            let (grads, seen) = Case::new(&oracle, device).gradients(micro);
            let host = |tensor: &Tensor| tensor.to_host().iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
            (grads.values().iter().map(host).collect::<Vec<_>>(), seen.codes)
        };
        let expected = bits(Naive::new(), 2);
        for (threads, micro) in [(1, 2), (2, 2), (3, 1)] {
            let found = par::with_threads(threads, || bits(wels_cpu::device(), micro));
            assert!(found == expected, "{}, {threads} threads, {micro} pictures at a time", oracle.name);
        }
    }
}

#[test]
fn the_decoder_alone_has_the_gradients_that_it_has_with_the_encoder() {
    let oracle = &Oracle::all()[0];
    let case = Case::new(oracle, wels_cpu::device());
    let (whole, seen) = case.gradients(2);
    let mut grads = case.network.grads(case.execution.device());
    grads.begin();
    let channels = case.network.config().in_channels;
    let pixels = Tensor::of(case.execution.device(), case.pixels.len() / channels, channels, &case.pixels);
    let (params, execution) = (&case.params, &case.execution);
    let alone = case.network.accumulate_decoder(params, &mut grads, execution, &pixels, &seen.codes, &OBJECTIVE);
    grads.finish();
    assert_eq!(alone.squared.to_bits(), seen.squared.to_bits());
    let specs = case.params.specs().iter();
    let mut zeros = 0;
    for ((spec, whole), alone) in specs.zip(whole.values()).zip(grads.values()) {
        let of_decoder = spec.name.contains(".decoder.") || spec.name.contains(".post_quant_conv.");
        zeros += usize::from(!of_decoder);
        let expected = if of_decoder { whole.to_host().into_owned() } else { vec![0.0; whole.len()] };
        assert_eq!(alone.to_host()[..], expected[..], "{}", spec.name);
    }
    assert!(zeros > 0, "parameters of the encoder");
}
