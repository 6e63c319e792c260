//! Results on fixed inputs, as sums of their bits that are committed: the same on every processor. The other tests
//! compare a processor with itself.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::numbers;
use crate::table::{self, Case, Size};
use wels_kernels::gemm::{self, Precision, Start};
use wels_kernels::quant::{self, BlockType, QuantMatrix};
use wels_kernels::{head, random, sample, softmax};

const COMMITTED: &str = include_str!("bits.txt");

/// A sum (FNV-1a, of 64 bits) for each kernel.
#[derive(Default)]
struct Sums(BTreeMap<String, u64>);

impl Sums {
    /// Adds results of a kernel. Which NaN is one is left out.
    fn add(&mut self, kernel: &str, results: &[f32]) {
        let sum = self.0.entry(kernel.to_owned()).or_insert(0xcbf2_9ce4_8422_2325);
        for x in results {
            let bits = if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
            for byte in bits.to_le_bytes() {
                *sum = (*sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
}

#[test]
fn results_are_the_committed_ones() {
    let mut sums = Sums::default();
    from_the_table(&mut sums);
    products(&mut sums);
    quantised(&mut sums);
    crate::attention::each(|case, results| sums.add(&format!("attention, {case}"), results));
    losses(&mut sums);
    let mut text = String::new();
    for (kernel, sum) in sums.0 {
        writeln!(text, "{sum:016x} {kernel}").expect("a string");
    }
    assert!(text == COMMITTED, "other bits than those of tests/it/bits.txt; here they are\n{text}");
}

fn from_the_table(sums: &mut Sums) {
    table::each(Size::Small, &mut |case: Case| {
        let mut outputs = case.outputs.clone();
        (case.kernel)(&case.inputs, &mut outputs);
        // Without sizes: what is the kernel's own.
        let words = case.name.split_whitespace().map(|word| word.trim_end_matches([',', ':']));
        let name: Vec<&str> = words.filter(|word| !word.contains(|c: char| c.is_ascii_digit())).collect();
        outputs.iter().for_each(|output| sums.add(&name.join(" "), output));
    });
}

fn products(sums: &mut Sums) {
    for p in [Precision::F32, Precision::Bf16, Precision::F16] {
        for (t, k, n) in [(1, 7, 40), (13, 31, 33), (29, 130, 17), (14, 1024, 40)] {
            let (x, w, dy) = (numbers(1, t * k), numbers(2, n * k), numbers(3, t * n));
            let (mut y, mut dx, mut dw) = (vec![0.0; t * n], vec![0.0; t * k], numbers(5, n * k));
            gemm::linear(p, &x, &w, &mut y, k, n);
            gemm::linear_dx(p, &dy, &w, &mut dx, k, n, Start::Zero);
            gemm::linear_dw(p, &dy, &x, &mut dw, k, n, Start::Continue);
            [y, dx, dw].iter().for_each(|results| sums.add(&format!("product in {p:?}"), results));
        }
    }
}

fn quantised(sums: &mut Sums) {
    for block_type in BlockType::ALL {
        for (t, n) in [(1, 50), (3, 16), (14, 33)] {
            let k = 2 * block_type.len().max(32);
            let bytes = match block_type.is_quantised() {
                true => crate::quant::any_blocks(block_type, n, k),
                false => {
                    let mut bytes = vec![0; n * k * block_type.bytes()];
                    quant::blocks::encode(block_type, &numbers(2, n * k), &mut bytes);
                    bytes
                }
            };
            let mut y = vec![0.0; t * n];
            let w = QuantMatrix::from_blocks(block_type, &bytes, n, k);
            quant::linear(&quant::quantise_rows(&numbers(1, t * k), k), &w, &mut y);
            sums.add(&format!("product with {}", block_type.name()), &y);
        }
    }
}

fn losses(sums: &mut Sums) {
    let (t, d, v) = (33, 24, 131);
    let (x, w) = (numbers(1, t * d), numbers(2, v * d));
    let targets: Vec<u32> = (0..t).map(|t| (t * 37 % v) as u32).collect();
    let (mut logp, mut dx, mut dw) = (vec![0.0; t], vec![0.0; t * d], vec![0.0; v * d]);
    let gradients = head::Gradients { dx: &mut dx, dw: Some((&mut dw, Start::Zero)) };
    head::loss(Precision::F32, &x, &w, None, &targets, d, v, &mut logp, Some((gradients, &|_, logp| 1.0 - logp)));
    [logp, dx, dw].iter().for_each(|results| sums.add("head", results));

    let logits = numbers(6, 5 * 1000);
    let mut probabilities = logits.clone();
    softmax::softmax(&mut probabilities, 9.0, 1000);
    sums.add("softmax", &probabilities);
    let mut weights = vec![0.0; logits.len()];
    let (max, sum) = sample::weights(&logits, 1.7, &mut weights);
    weights.extend([max, sum, sample::logprob(0.3, (max, sum))]);
    sums.add("weights that tokens are sampled by", &weights);
    let mut normal = vec![0.0; 5000];
    random::fill_normal(&mut normal, 0.02, random::Key { seed: 7, stream: 9 }, 3);
    sums.add("normal random numbers", &normal);
}
