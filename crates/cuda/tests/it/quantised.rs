//! Activations in bf16 with weights that share scales: by few rows, by many, and by experts.

use std::sync::Arc;

use wels_device::host::blocks;
use wels_device::{BlockType, Device, Groups, Packed, Precision, Source, Tensor, WeightRef};

use crate::lab::{
    BF16_TOLERANCE, Outputs, activation, empty, empty_activation, generations, numbers, relative_error, rounded,
    rounds, same, tensor, values,
};
use crate::products::routed;
use crate::weights::blocks_of;

fn formats() -> impl Iterator<Item = BlockType> {
    crate::weights::formats().filter(|format| format.shares_scales())
}

/// Matrices `[n, k]` of blocks of random bits.
fn matrices(device: &Arc<dyn Device>, format: BlockType, count: usize, n: usize, k: usize) -> Packed {
    let bytes = blocks_of(format, count * n, k.next_multiple_of(format.len()));
    let pack = |bytes: &[u8]| device.pack(Source::Blocks { block_type: format, bytes }, n, k);
    device.stack(bytes.chunks_exact(bytes.len() / count).map(pack).collect())
}

/// `x · wᵀ` in f64 of what a file's blocks stand for.
fn plain(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32;
    x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| dot(x, w))).collect()
}

fn linear(device: &Arc<dyn Device>, x: &Tensor, w: &Packed, n: usize) -> Vec<f32> {
    let mut y = empty_activation(device, x.rows(), n);
    device.linear(Precision::Bf16, x, &mut [(WeightRef::Packed(w), &mut y)]);
    values(&y)
}

fn rows_of(device: &Arc<dyn Device>, x: &Tensor, first: usize, rows: usize) -> Tensor {
    let mut cut = empty_activation(device, rows, x.cols());
    device.copy_rows(x, first, &mut cut, 0, rows);
    cut
}

/// Weights, seen by rows of a one and zeros: of Q5_0 the file's numbers rounded once, of others as near to the greatest
/// of their block, of E4M3 as near as the nearest but for a 2^16th.
#[test]
fn weights_are_the_files_rounded() {
    let Some(device) = rounds().into_iter().next() else { return };
    for format in formats() {
        let (n, k) = (24, 256);
        let w = matrices(&device, format, 1, n, k);
        let expected = device.unpack(&w);
        let mut ones = vec![0.0; k * k];
        ones.iter_mut().step_by(k + 1).for_each(|one| *one = 1.0);
        let mut x = empty_activation(&device, k, k);
        x.set(0, &ones);
        let got = linear(&device, &x, &w, n);
        for (at, expected) in expected.chunks_exact(format.len()).enumerate() {
            let most = expected.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            for (i, expected) in expected.iter().enumerate() {
                let (row, column) = (at * format.len() / k, at * format.len() % k + i);
                let got = got[column * n + row];
                let off = (got - expected).abs();
                let fine = match format {
                    BlockType::Q5_0 => got == rounded(*expected),
                    BlockType::E4m3 => off <= expected.abs() * (1.0 / 256.0 + 1.0 / 65536.0),
                    _ => off <= most / 128.0,
                };
                assert!(fine, "{}: weight {row}, {column} is {got:e} and not {expected:e}", format.name());
            }
        }
    }
}

/// All formats on all cards, near to plain loops, and each row with the bits that it has in any batch.
#[test]
fn every_format_and_number_of_rows() {
    let again = [BlockType::Q4K, BlockType::E4m3];
    for devices in generations() {
        let mut first = None;
        for (round, device) in devices.iter().enumerate() {
            let mut all = Vec::new();
            for format in formats().filter(|format| round == 0 || again.contains(format)) {
                let (t, k, n) = (70, 1280, 72);
                let (x, w) = (activation(device, 1, t, k), matrices(device, format, 1, n, k));
                let y = linear(device, &x, &w, n);
                let error = relative_error(&plain(&values(&x), &device.unpack(&w), k), &y);
                assert!(error < BF16_TOLERANCE, "{} on {}: off by {error}", format.name(), device.in_words());
                for (at, rows) in [(0, 1), (13, 9), (69, 1), (3, 20), (5, 50)] {
                    let some = linear(device, &rows_of(device, &x, at, rows), &w, n);
                    assert_eq!(some, y[at * n..][..rows * n], "{}: {rows} of {t} rows", format.name());
                }
                if again.contains(&format) {
                    all.push(y);
                }
            }
            assert_eq!(&all, first.get_or_insert_with(|| all.clone()), "round {round}");
        }
    }
}

/// Logits in f32, of one segment and of several, and rows that are no whole blocks or pieces of 16 bytes.
#[test]
fn odd_shapes() {
    for device in generations().into_iter().filter_map(|devices| devices.into_iter().next()) {
        for (format, k, n) in [
            (BlockType::Q8_0, 96, 200),
            (BlockType::Q4_0, 544, 136),
            (BlockType::Q4_1, 40, 24),
            (BlockType::Q4_0, 45, 33),
            (BlockType::Q8_0, 520, 9),
        ] {
            let source = numbers(3, n * k);
            let w = device.stack(vec![device.pack(Source::Values { values: &source, to: format }, n, k)]);
            let unpacked = device.unpack(&w);
            for t in [1, 5, 66] {
                let (x, mut y) = (activation(&device, 1, t, k), empty(&device, t, n));
                device.linear(Precision::Bf16, &x, &mut [(WeightRef::Packed(&w), &mut y)]);
                let error = relative_error(&plain(&values(&x), &unpacked, k), &values(&y));
                assert!(error < BF16_TOLERANCE, "{} {t} {k} {n}: off by {error}", format.name());
            }
        }
    }
}

/// The same of E4M3, of which no values are made; in f32 with the processor's bits.
#[test]
fn odd_shapes_of_e4m3() {
    for (k, n) in [(40, 24), (45, 33), (136, 200), (520, 9), (648, 64), (1160, 17)] {
        for device in generations().into_iter().filter_map(|devices| devices.into_iter().next()) {
            let w = matrices(&device, BlockType::E4m3, 1, n, k);
            let unpacked = device.unpack(&w);
            for t in [1, 5, 66] {
                let (x, mut y) = (activation(&device, 1, t, k), empty(&device, t, n));
                device.linear(Precision::Bf16, &x, &mut [(WeightRef::Packed(&w), &mut y)]);
                let error = relative_error(&plain(&values(&x), &unpacked, k), &values(&y));
                assert!(error < BF16_TOLERANCE, "{t} {k} {n}: off by {error}");
            }
        }
        same(&format!("{n} of {k}"), |device| {
            let w = matrices(device, BlockType::E4m3, 3, n, k);
            let (x, mut y) = (tensor(device, 1, 6, k), empty(device, 6, n));
            device.grouped(Precision::F32, &x, Groups::Equal(3), &mut [(WeightRef::Packed(&w), &mut y)]);
            vec![("y", values(&y)), ("unpacked", device.unpack(&w))]
        });
    }
}

/// Matrices of which some are in f32, as those with numbers that E4M3 does not keep here.
#[test]
fn e4m3_beside_f32() {
    let Some(device) = rounds().into_iter().next() else { return };
    let (k, n) = (200, 40);
    let bytes = blocks_of(BlockType::E4m3, n, 256);
    let source = numbers(3, n * k);
    let w = device.stack(vec![
        device.pack(Source::Blocks { block_type: BlockType::E4m3, bytes: &bytes }, n, k),
        device.pack(Source::Values { values: &source, to: BlockType::F32 }, n, k),
    ]);
    let expected = [blocks::decode_rows(BlockType::E4m3, &bytes, k), source].concat();
    assert_eq!(device.unpack(&w), expected);
    let (x, mut y) = (activation(&device, 1, 6, k), empty(&device, 6, n));
    device.grouped(Precision::Bf16, &x, Groups::Equal(2), &mut [(WeightRef::Packed(&w), &mut y)]);
    let x = values(&x);
    let expected = x.chunks_exact(3 * k).zip(expected.chunks_exact(n * k)).flat_map(|(x, w)| plain(x, w, k));
    let error = relative_error(&expected.collect::<Vec<_>>(), &values(&y));
    assert!(error < BF16_TOLERANCE, "off by {error}");
}

/// A slot has the bits of its row alone with its expert's matrix, whether experts have few rows or many.
#[test]
fn experts() {
    let Some(device) = rounds().into_iter().nth(1) else { return };
    for (format, tokens, experts) in [
        (BlockType::Q4_0, 6, 5),
        (BlockType::Q4_0, 150, 2),
        (BlockType::Q5K, 40, 4),
        (BlockType::E4m3, 6, 9),
        (BlockType::E4m3, 150, 2),
    ] {
        let (k, n) = (768, 40);
        let w = matrices(&device, format, experts, n, k);
        let dispatch = routed(&device, tokens, experts, 2);
        let (slots, x) = (dispatch.slots(), activation(&device, 1, tokens, k));
        let mut y = empty_activation(&device, slots, n);
        device.grouped(Precision::Bf16, &x, Groups::Tokens(&dispatch), &mut [(WeightRef::Packed(&w), &mut y)]);
        let y = values(&y);
        let unpacked = device.unpack(&w);
        // Which row of which expert a slot is, is found among all.
        let bytes = blocks_of(format, experts * n, k);
        let alone: Vec<Vec<f32>> = bytes
            .chunks_exact(bytes.len() / experts)
            .map(|bytes| {
                let one = device.stack(vec![device.pack(Source::Blocks { block_type: format, bytes }, n, k)]);
                linear(&device, &x, &one, n)
            })
            .collect();
        for (slot, y) in y.chunks_exact(n).enumerate() {
            let found = alone.iter().any(|of_expert| of_expert.chunks_exact(n).any(|row| row == y));
            assert!(found, "{}: slot {slot} is no row of any expert", format.name());
        }
        let parts = activation(&device, 2, 3 * experts, k);
        let mut equal = empty_activation(&device, 3 * experts, n);
        device.grouped(Precision::Bf16, &parts, Groups::Equal(experts), &mut [(WeightRef::Packed(&w), &mut equal)]);
        let x = values(&parts);
        let expected = x.chunks_exact(3 * k).zip(unpacked.chunks_exact(n * k)).flat_map(|(x, w)| plain(x, w, k));
        let error = relative_error(&expected.collect::<Vec<_>>(), &values(&equal));
        assert!(error < BF16_TOLERANCE, "{}: parts off by {error}", format.name());
    }
}

/// Whoever reads blocks after they became tiles reads the same.
#[test]
fn blocks_after_tiles() {
    let Some(device) = rounds().into_iter().next() else { return };
    for format in formats() {
        let (n, k) = (40, 512);
        let bytes = blocks_of(format, n, k);
        let mut expected = vec![0.0; n * k];
        blocks::decode(format, &bytes, &mut expected);
        let w = matrices(&device, format, 1, n, k);
        linear(&device, &activation(&device, 1, 2, k), &w, n);
        assert_eq!(device.unpack(&w), expected, "{}", format.name());
        let mut rows = empty(&device, 2, k);
        device.gather(WeightRef::Packed(&w), &vec![39, 1].into(), &mut rows);
        assert_eq!(values(&rows), [&expected[39 * k..], &expected[k..2 * k]].concat(), "{}", format.name());
        let before = linear(&device, &activation(&device, 1, 2, k), &w, n);
        assert_eq!(linear(&device, &activation(&device, 1, 2, k), &w, n), before);
    }
}

/// For the planted bugs: by how much three rows alone differ from the same among many.
pub fn batches(device: &Arc<dyn Device>) -> Outputs {
    let (k, n) = (1088, 24);
    let (x, w) = (activation(device, 1, 65, k), matrices(device, BlockType::Q4_0, 1, n, k));
    let (all, few) = (linear(device, &x, &w, n), linear(device, &rows_of(device, &x, 4, 3), &w, n));
    vec![("difference", few.iter().zip(&all[4 * n..]).map(|(few, all)| few - all).collect())]
}
