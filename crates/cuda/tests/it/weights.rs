//! Packed weights in all number formats.

use std::sync::Arc;

use wels_device::host::blocks;
use wels_device::{BlockType, Device, Groups, Ids, Precision, Source, WeightRef};

use crate::lab::{Outputs, empty, empty_activation, numbers, same, same_rounded, tensor, values};

/// All number formats that a card keeps.
pub fn formats() -> impl Iterator<Item = BlockType> {
    BlockType::ALL.into_iter().filter(|format| !format.has_codebook()).chain([BlockType::E4m3])
}

/// Blocks of random bits, with scales that are finite, and numbers.
pub fn blocks_of(format: BlockType, rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = numbers(5, rows * format.row_bytes(cols).expect("whole blocks"))
        .iter()
        .map(|x| (x * 12345.0) as i32 as u8)
        .collect();
    for block in bytes.chunks_exact_mut(format.bytes()) {
        if format == BlockType::E4m3 {
            // A scale of moderate size; what is NaN becomes the greatest number.
            block[3] = block[3] & 0x80 | 0x3c;
            block[4..].iter_mut().filter(|bits| **bits & 0x7f == 0x7f).for_each(|bits| *bits ^= 1);
            continue;
        }
        let scales: &[usize] = match format {
            BlockType::Q2K => &[80, 82],
            BlockType::Q3K => &[108],
            BlockType::Q6K => &[208],
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
            BlockType::F32 => &[2],
            _ => &[0],
        };
        for at in scales {
            // An f16 (or the upper half of a number) of moderate size.
            block[at + 1] = block[at + 1] & 0x83 | 0x28;
        }
    }
    bytes
}

#[test]
fn every_format_of_a_file() {
    for format in formats() {
        same(format.name(), |device| {
            let (tokens, k, n) = (6, 512, 9);
            let bytes = blocks_of(format, n, k);
            let mut decoded = vec![0.0; n * k];
            blocks::decode(format, &bytes, &mut decoded);
            assert!(decoded.iter().all(|x| x.is_finite()), "{} decodes to what is not finite", format.name());
            let w = device.stack(vec![device.pack(Source::Blocks { block_type: format, bytes: &bytes }, n, k)]);
            let x = tensor(device, 1, tokens, k);
            let mut y = empty(device, tokens, n);
            device.linear(Precision::F32, &x, &mut [(WeightRef::Packed(&w), &mut y)]);
            let ids: Ids = vec![3, 0, 8, 3].into();
            let mut gathered = empty(device, 4, k);
            device.gather(WeightRef::Packed(&w), &ids, &mut gathered);
            let mut logp = empty(device, tokens, 1);
            device.head_loss(
                Precision::F32,
                &x,
                WeightRef::Packed(&w),
                Some(3.0),
                &[0, 1, 2, 8, 4, u32::MAX],
                &mut logp,
                None,
            );
            vec![
                ("y", values(&y)),
                ("rows", values(&gathered)),
                ("unpacked", device.unpack(&w)),
                ("logp", values(&logp)),
                ("bytes", vec![device.packed_bytes(&w) as f32]),
            ]
        });
    }
}

#[test]
fn rows_of_packed_tables_in_bf16() {
    for format in [BlockType::Q8_0, BlockType::Bf16, BlockType::F32] {
        same_rounded(format.name(), |device| {
            let bytes = blocks_of(format, 9, 96);
            let table = device.stack(vec![device.pack(Source::Blocks { block_type: format, bytes: &bytes }, 9, 96)]);
            let mut rows = empty_activation(device, 4, 96);
            device.gather(WeightRef::Packed(&table), &vec![3, 0, 8, 3].into(), &mut rows);
            vec![("rows", values(&rows))]
        });
    }
}

#[test]
fn experts_and_rows_that_are_not_whole_blocks() {
    for to in [BlockType::Q8_0, BlockType::Q4_0, BlockType::F16, BlockType::Bf16, BlockType::F32] {
        same(to.name(), |device| {
            let (tokens, k, n, experts, top_k) = (70, 45, 33, 5, 2);
            let pack = |expert| {
                let values = numbers(expert, n * k);
                device.pack(Source::Values { values: &values, to }, n, k)
            };
            let w = device.stack((0..experts as u64).map(pack).collect());
            let dispatch = crate::products::routed(device, tokens, experts, top_k);
            let (x, h) = (tensor(device, 1, tokens, k), tensor(device, 2, dispatch.slots(), k));
            let (mut y, mut z) = (empty(device, dispatch.slots(), n), empty(device, dispatch.slots(), n));
            let p = Precision::F32;
            device.grouped(p, &x, Groups::Tokens(&dispatch), &mut [(WeightRef::Packed(&w), &mut y)]);
            device.grouped(p, &h, Groups::Slots(&dispatch), &mut [(WeightRef::Packed(&w), &mut z)]);
            let mut equal = empty(device, tokens, n);
            let x = tensor(device, 3, tokens, k);
            device.grouped(p, &x, Groups::Equal(experts), &mut [(WeightRef::Packed(&w), &mut equal)]);
            vec![("of tokens", values(&y)), ("of slots", values(&z)), ("equal", values(&equal))]
        });
    }
}

/// A row of blocks whose scales are not finite, and activations that are not, give NaN and no other row.
#[test]
fn activations_that_are_not_finite() {
    same("NaN", |device| {
        let bytes = blocks_of(BlockType::Q8_0, 4, 64);
        let source = Source::Blocks { block_type: BlockType::Q8_0, bytes: &bytes };
        let w = device.stack(vec![device.pack(source, 4, 64)]);
        let mut x = tensor(device, 1, 3, 64);
        x.set(70, &[f32::INFINITY]);
        x.set(128, &[0.0; 64]);
        let mut y = empty(device, 3, 4);
        device.linear(Precision::F32, &x, &mut [(WeightRef::Packed(&w), &mut y)]);
        vec![("y", values(&y))]
    });
}

/// For the planted bugs.
pub fn fifth_bits(device: &Arc<dyn Device>) -> Outputs {
    let bytes = blocks_of(BlockType::Q5K, 4, 256);
    let w = device.stack(vec![device.pack(Source::Blocks { block_type: BlockType::Q5K, bytes: &bytes }, 4, 256)]);
    let (x, mut y) = (tensor(device, 1, 3, 256), empty(device, 3, 4));
    device.linear(Precision::F32, &x, &mut [(WeightRef::Packed(&w), &mut y)]);
    vec![("y", values(&y))]
}
