//! Block formats against the values of the `gguf` package, products against plain loops, bit for bit.

use crate::{assert_same, everywhere, numbers};
use std::sync::Arc;
use wels_kernels::gemm::{self, Precision};
use wels_kernels::quant::blocks::{self, BlockType};
use wels_kernels::quant::{self, MemoryBudget, QuantMatrix};
use wels_kernels::random;
use wels_kernels::reference::quant as reference;

macro_rules! oracle {
    ($name:expr) => {
        include_bytes!(concat!("../oracle/blocks/", $name)).as_slice()
    };
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

macro_rules! stored {
    ($($block_type:ident $name:literal),*) => {
        [$((BlockType::$block_type, oracle!(concat!($name, ".blocks")), oracle!(concat!($name, ".values")))),*]
    };
}

/// Type, blocks and values of each file of the oracle.
const STORED: [(BlockType, &[u8], &[u8]); 22] = stored!(
    F16 "F16", Bf16 "BF16", Q8_0 "Q8_0", Q4_0 "Q4_0", Q4_1 "Q4_1", Q5_0 "Q5_0", Q5_1 "Q5_1",
    Q2K "Q2_K", Q3K "Q3_K", Q4K "Q4_K", Q5K "Q5_K", Q6K "Q6_K",
    Iq4Nl "IQ4_NL", Iq4Xs "IQ4_XS", Mxfp4 "MXFP4", Iq2Xxs "IQ2_XXS", Iq2Xs "IQ2_XS", Iq2S "IQ2_S",
    Iq3Xxs "IQ3_XXS", Iq3S "IQ3_S", Iq1S "IQ1_S", Iq1M "IQ1_M"
);

#[test]
fn blocks_decode_to_the_values_of_the_original() {
    for (block_type, bytes, values) in STORED {
        let expected = floats(values);
        let mut decoded = vec![f32::NAN; expected.len()];
        blocks::decode(block_type, bytes, &mut decoded);
        for (i, (got, expected)) in decoded.iter().zip(&expected).enumerate() {
            assert!(got.to_bits() == expected.to_bits(), "{} {i}: {got:e}, not {expected:e}", block_type.name());
        }
    }
}

#[test]
fn numbers_encode_to_the_blocks_of_the_original() {
    let source = floats(oracle!("source.values"));
    for (block_type, expected) in [
        (BlockType::Q8_0, oracle!("Q8_0.encoded")),
        (BlockType::Q4_0, oracle!("Q4_0.encoded")),
        (BlockType::Q4_1, oracle!("Q4_1.encoded")),
    ] {
        let mut encoded = vec![0; expected.len()];
        blocks::encode(block_type, &source, &mut encoded);
        let size = block_type.bytes();
        for (i, (got, expected)) in encoded.chunks(size).zip(expected.chunks(size)).enumerate() {
            assert_eq!(got, expected, "{} block {i}", block_type.name());
        }
    }
}

#[test]
fn wide_types_encode_and_decode_what_they_hold() {
    for (block_type, bytes, _) in STORED.iter().filter(|(block_type, ..)| !block_type.is_quantised()) {
        let (mut numbers, mut back) = (vec![0.0; bytes.len() / block_type.bytes()], vec![0; bytes.len()]);
        blocks::decode(*block_type, bytes, &mut numbers);
        blocks::encode(*block_type, &numbers, &mut back);
        assert_eq!(back, *bytes, "{}", block_type.name());
    }
    let source = floats(oracle!("source.values"));
    let (mut bytes, mut back) = (vec![0; 4 * source.len()], vec![0.0; source.len()]);
    blocks::encode(BlockType::F32, &source, &mut bytes);
    blocks::decode(BlockType::F32, &bytes, &mut back);
    assert_eq!((&bytes[..], back), (oracle!("source.values"), source));
}

#[test]
fn what_is_not_finite_is_not_hidden() {
    for block_type in [BlockType::Q8_0, BlockType::Q4_0, BlockType::Q4_1] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let mut x = vec![1.0; 64];
            x[40] = bad;
            let mut bytes = vec![0; block_type.row_bytes(64).expect("whole blocks")];
            blocks::encode(block_type, &x, &mut bytes);
            let mut back = vec![0.0; 64];
            blocks::decode(block_type, &bytes, &mut back);
            assert!(back[..32].iter().all(|x| x.is_finite()) && !back[40].is_finite(), "{} {bad}", block_type.name());
        }
    }
}

#[test]
fn rows_are_whole_blocks() {
    for block_type in BlockType::ALL {
        let len = block_type.len();
        assert_eq!(block_type.row_bytes(3 * len), Some(3 * block_type.bytes()));
        assert!(len == 1 || block_type.row_bytes(3 * len + 1).is_none());
        assert!(block_type.row_bytes(usize::MAX / 256 * 256).is_none() || block_type.bytes() < len);
    }
}

const QUANTISED: [BlockType; 20] = [
    BlockType::Q8_0,
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q2K,
    BlockType::Q3K,
    BlockType::Q4K,
    BlockType::Q5K,
    BlockType::Q6K,
    BlockType::Iq4Nl,
    BlockType::Iq4Xs,
    BlockType::Mxfp4,
    BlockType::Iq2Xxs,
    BlockType::Iq2Xs,
    BlockType::Iq2S,
    BlockType::Iq3Xxs,
    BlockType::Iq3S,
    BlockType::Iq1S,
    BlockType::Iq1M,
];

/// Blocks of any bits, with scales of ordinary size: `rows` rows of `columns` numbers.
pub fn any_blocks(block_type: BlockType, rows: usize, columns: usize) -> Vec<u8> {
    let size = block_type.bytes();
    let len = rows * block_type.row_bytes(columns).expect("whole blocks");
    let key = random::Key { seed: 11, stream: 1 };
    let mut bytes: Vec<u8> = (0..len as u64).map(|i| key.below_at(i, 256) as u8).collect();
    for (i, block) in bytes.chunks_exact_mut(size).enumerate() {
        for &at in scale_places(block_type) {
            let scale = (key.uniform_at((len + size * i + at) as u64) - 0.5) as f32 / 16.0;
            set_scale(block_type, scale, at, block);
        }
    }
    bytes
}

/// Writes a scale where a block has one, in its format.
fn set_scale(block_type: BlockType, scale: f32, at: usize, block: &mut [u8]) {
    let mut bits = [0; 2];
    blocks::encode(BlockType::F16, &[scale], &mut bits);
    match block_type {
        // A power of two, by its exponent.
        BlockType::Mxfp4 => block[at] = (scale.to_bits() >> 23) as u8,
        // The nibbles of an f16 as the upper ones of four words.
        BlockType::Iq1M => {
            let half = u16::from_le_bytes(bits);
            for i in 0..4 {
                block[49 + 2 * i] = block[49 + 2 * i] & 15 | (half >> (4 * i) << 4) as u8;
            }
        }
        _ => block[at..at + 2].copy_from_slice(&bits),
    }
}

/// Where a block has its f16.
fn scale_places(block_type: BlockType) -> &'static [usize] {
    match block_type {
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q2K => &[80, 82],
        BlockType::Q3K => &[108],
        BlockType::Q6K => &[208],
        BlockType::F32 => &[2], // as bf16 it has a few bits more
        _ => &[0],
    }
}

/// Numbers of several magnitudes, a block of zeros and one of tiny numbers among them.
fn any_rows(rows: usize, columns: usize) -> Vec<f32> {
    let mut x = numbers(3, rows * columns);
    for (i, x) in x.iter_mut().enumerate() {
        *x *= match i / 32 % 7 {
            0 => 0.0,
            1 => 1e-36,
            2 => 1e-30,
            power => 10f32.powi(power as i32 - 5),
        };
    }
    x
}

/// T, and N: edges of tiles and panels.
const SIZES: [(usize, usize); 6] = [(1, 1), (1, 50), (3, 16), (14, 33), (29, 17), (40, 64)];

#[test]
fn products_equal_the_reference() {
    for block_type in QUANTISED {
        for (t, n) in SIZES {
            for blocks in [1, 3] {
                let k = blocks * block_type.len();
                let (x, bytes) = (any_rows(t, k), any_blocks(block_type, n, k));
                let mut expected = vec![0.0; t * n];
                reference::linear(&x, block_type, &bytes, &mut expected, k, n);
                assert!(expected.iter().all(|y| y.is_finite()));
                let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new([&[7; 5], &bytes[..]].concat());
                everywhere(|isa| {
                    let packed = QuantMatrix::from_blocks(block_type, &bytes, n, k);
                    let mapped = |room: u64| {
                        let (owner, room) = (owner.clone(), Arc::new(MemoryBudget::new(room)));
                        QuantMatrix::mapped(block_type, owner, 5..5 + bytes.len(), n, k, &room)
                    };
                    for (what, w) in [("packed", packed), ("mapped", mapped(0)), ("mapped with room", mapped(1 << 30))]
                    {
                        let mut y = vec![f32::NAN; t * n];
                        quant::linear(&quant::quantise_rows(&x, k), &w, &mut y);
                        assert_same(&format!("{} {what} {t}×{k}×{n} {isa}", block_type.name()), &y, &expected);
                    }
                });
            }
        }
    }
}

/// AVX2 and NEON add products in 16 bits, which the greatest terms all but fill.
#[test]
fn the_greatest_terms_overflow_nothing() {
    for block_type in QUANTISED {
        // Bits that are all ones are the greatest terms, but of Q8_0, which has signs, and of MXFP4, whose is 7.
        for byte in [0xff, 0x7f, 0x77, 0x80, 0x00] {
            let (t, n, k) = (7, 17, 2 * block_type.len());
            let mut bytes = vec![byte; n * block_type.row_bytes(k).expect("whole blocks")];
            for block in bytes.chunks_exact_mut(block_type.bytes()) {
                for &at in scale_places(block_type) {
                    set_scale(block_type, 1.0, at, block);
                }
            }
            for x in [[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]] {
                let x: Vec<f32> = x.into_iter().cycle().take(t * k).collect();
                let mut expected = vec![0.0; t * n];
                reference::linear(&x, block_type, &bytes, &mut expected, k, n);
                everywhere(|isa| {
                    let w = QuantMatrix::from_blocks(block_type, &bytes, n, k);
                    let mut y = vec![f32::NAN; t * n];
                    quant::linear(&quant::quantise_rows(&x, k), &w, &mut y);
                    assert_same(&format!("{} of bytes {byte:x} {isa}", block_type.name()), &y, &expected);
                });
            }
        }
    }
}

#[test]
fn products_with_wide_weights_are_those_of_the_widened_weights() {
    for (block_type, bytes, _) in STORED.iter().filter(|(block_type, ..)| !block_type.is_quantised()) {
        let mut numbers = vec![0.0; bytes.len() / block_type.bytes()];
        blocks::decode(*block_type, bytes, &mut numbers);
        numbers.iter_mut().for_each(|x| *x = x.clamp(-4.0, 4.0));
        for block_type in [*block_type, BlockType::F32] {
            for (t, n) in SIZES.into_iter().chain([(2, 49), (4, 80), (8, 33), (100, 49)]) {
                for k in [1, 7, 80] {
                    let w: Vec<f32> = numbers.iter().copied().cycle().take(n * k).collect();
                    let mut bytes = vec![0; n * k * block_type.bytes()];
                    blocks::encode(block_type, &w, &mut bytes);
                    let x = any_rows(t, k);
                    let mut expected = vec![0.0; t * n];
                    gemm::linear(Precision::F32, &x, &w, &mut expected, k, n);
                    let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(bytes.clone());
                    everywhere(|isa| {
                        let packed = QuantMatrix::from_blocks(block_type, &bytes, n, k);
                        let mapped = |room: u64| {
                            let (owner, room) = (owner.clone(), Arc::new(MemoryBudget::new(room)));
                            QuantMatrix::mapped(block_type, owner, 0..bytes.len(), n, k, &room)
                        };
                        for (what, w) in
                            [("packed", packed), ("mapped", mapped(0)), ("mapped with room", mapped(1 << 30))]
                        {
                            let mut y = vec![f32::NAN; t * n];
                            quant::linear(&quant::quantise_rows(&x, k), &w, &mut y);
                            assert_same(&format!("{} {what} {t}×{k}×{n} {isa}", block_type.name()), &y, &expected);
                        }
                    });
                }
            }
        }
    }
}

/// With rows of x as they are, weights of every type multiply as the numbers that they stand for.
#[test]
fn products_with_whole_rows_are_those_of_the_decoded_weights() {
    for block_type in QUANTISED.into_iter().chain([BlockType::Bf16, BlockType::F16]) {
        for ((t, n), blocks) in SIZES.into_iter().chain([(100, 49)]).zip([1, 3].into_iter().cycle()) {
            let k = blocks * block_type.len().max(32);
            let (x, bytes) = (any_rows(t, k), any_blocks(block_type, n, k));
            let mut w = vec![0.0; n * k];
            blocks::decode(block_type, &bytes, &mut w);
            let mut expected = vec![0.0; t * n];
            gemm::linear(Precision::F32, &x, &w, &mut expected, k, n);
            let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(bytes.clone());
            let (slots, ends) = ((0..t as u32).rev().collect::<Vec<_>>(), [0, t as u32]);
            everywhere(|isa| {
                let room = Arc::new(MemoryBudget::new(0));
                let mapped = QuantMatrix::mapped(block_type, owner.clone(), 0..bytes.len(), n, k, &room);
                let packed = QuantMatrix::from_blocks(block_type, &bytes, n, k);
                let x = quant::whole_rows(&x, k);
                for (what, w) in [("packed", packed), ("mapped", mapped)] {
                    let what = format!("{} {what} {t}×{k}×{n} {isa}", block_type.name());
                    let mut y = vec![f32::NAN; t * n];
                    quant::linear(&x, &w, &mut y);
                    assert_same(&what, &y, &expected);
                    quant::grouped_linear(&x, Some(&slots), &ends, &[&w], &mut y);
                    y.chunks(n).rev().zip(expected.chunks(n)).for_each(|(y, expected)| assert_same(&what, y, expected));
                }
            });
        }
    }
}

/// Adapters of some rows add what their operations do one by one: to rows that are alone and to many, of several y and
/// of one, with ranks and widths that fill no vector.
#[test]
fn adapters_of_some_rows_add_what_their_operations_do() {
    let (t, k) = (71, 70);
    let widths = [48, 17, 130];
    let x = any_rows(t, k);
    let rows: [Vec<u32>; 4] = [vec![3], vec![70, 0, 9, 10, 11], (12..70).collect(), Vec::new()];
    // Of each adapter its rank, and the y that it adds to; the last rows have one that no other y has.
    let adapters = [(16, [true, true, true]), (5, [true, false, true]), (33, [false, true, true]), (1, [true; 3])];
    let matrix = |stream: usize, rows: usize, columns: usize| (numbers(stream as u64, rows * columns), rows, columns);
    let pack = |(values, rows, columns): &(Vec<f32>, usize, usize)| {
        QuantMatrix::quantise(values, *rows, *columns, BlockType::F32)
    };
    let pairs: Vec<Vec<_>> = (0..widths.len())
        .map(|y| {
            let pair = |(i, (rank, _)): (usize, &(usize, [bool; 3]))| {
                (matrix(100 * y + i, *rank, k), matrix(100 * y + 50 + i, widths[y], *rank))
            };
            adapters.iter().enumerate().map(pair).collect()
        })
        .collect();
    let scale = |i: usize| 0.3 + i as f32;
    let before: Vec<Vec<f32>> = (0..widths.len()).map(|y| numbers(900 + y as u64, t * widths[y])).collect();
    let mut expected = before.clone();
    for (y, expected) in expected.iter_mut().enumerate() {
        let n = widths[y];
        for (i, (rank, _)) in adapters.iter().enumerate().filter(|(_, (_, to))| to[y]) {
            let ((a, ..), (b, ..)) = &pairs[y][i];
            for row in rows[i].iter().map(|row| *row as usize) {
                let (mut h, mut more) = (vec![0.0; *rank], vec![0.0; n]);
                gemm::linear(Precision::F32, &x[row * k..][..k], a, &mut h, k, *rank);
                h.iter_mut().for_each(|h| *h *= scale(i));
                gemm::linear(Precision::F32, &h, b, &mut more, *rank, n);
                expected[row * n..][..n].iter_mut().zip(more).for_each(|(y, more)| *y += more);
            }
        }
    }
    everywhere(|isa| {
        let packed: Vec<Vec<_>> =
            pairs.iter().map(|pairs| pairs.iter().map(|(a, b)| (pack(a), pack(b))).collect()).collect();
        let mut ys = before.clone();
        let mut targets: Vec<_> = ys
            .iter_mut()
            .enumerate()
            .map(|(y, all)| {
                let of = |i: usize| {
                    let (a, b) = &packed[y][i];
                    quant::AdaptedRows { rows: &rows[i], a, b, scale: scale(i) }
                };
                (&mut all[..], (0..adapters.len()).filter(|i| adapters[*i].1[y]).map(of).collect())
            })
            .collect();
        quant::add_low_rank(&x, k, &mut targets);
        for (y, (got, expected)) in ys.iter().zip(&expected).enumerate() {
            assert_same(&format!("y {y} {isa}"), got, expected);
        }
    });
}

#[test]
fn products_at_once_and_by_experts_are_products() {
    let k = 512;
    let (tokens, n) = (23, 40);
    let x = any_rows(tokens, k);
    let quantised = quant::quantise_rows(&x, k);
    let types = [BlockType::Q4K, BlockType::Q6K, BlockType::Bf16, BlockType::Q4K, BlockType::Q8_0];
    let matrices: Vec<QuantMatrix> = (0..types.len())
        .map(|i| {
            let bytes = any_blocks(types[i], (i + 1) * n, k);
            let row_bytes = bytes.len() / ((i + 1) * n);
            QuantMatrix::from_blocks(types[i], &bytes[i * n * row_bytes..], n, k)
        })
        .collect();
    let mut alone = vec![vec![0.0; tokens * n]; matrices.len()];
    matrices.iter().zip(&mut alone).for_each(|(w, y)| quant::linear(&quantised, w, y));
    let offsets = [0, 5, 5, 18, 19, 40];
    let rows: Vec<u32> = (0..40).map(|s| (s * 7) % tokens as u32).collect();
    everywhere(|isa| {
        let mut together = vec![vec![f32::NAN; tokens * n]; matrices.len()];
        let mut products: Vec<_> = matrices.iter().zip(&mut together).map(|(w, y)| (w, &mut y[..])).collect();
        quant::linear_many(&quantised, &mut products);
        for (together, alone) in together.iter().zip(&alone) {
            assert_same(&format!("together {isa}"), together, alone);
        }
        let mut y = vec![f32::NAN; rows.len() * n];
        quant::grouped_linear(&quantised, Some(&rows), &offsets, &matrices, &mut y);
        for (e, bounds) in offsets.windows(2).enumerate() {
            for slot in bounds[0] as usize..bounds[1] as usize {
                let expected = &alone[e][rows[slot] as usize * n..][..n];
                assert_same(&format!("slot {slot} {isa}"), &y[slot * n..][..n], expected);
            }
        }
        let in_order = [0, 4, 9, 9, 20, tokens as u32];
        let mut y = vec![f32::NAN; tokens * n];
        quant::grouped_linear(&quantised, None, &in_order, &matrices.iter().collect::<Vec<_>>(), &mut y);
        for (e, bounds) in in_order.windows(2).enumerate() {
            let range = bounds[0] as usize * n..bounds[1] as usize * n;
            assert_same(&format!("expert {e} {isa}"), &y[range.clone()], &alone[e][range]);
        }
    });
}

#[test]
fn rows_are_what_blocks_decode_to() {
    for block_type in QUANTISED.into_iter().chain([BlockType::F32, BlockType::F16, BlockType::Bf16]) {
        let (n, k) = (37, 512);
        let bytes = any_blocks(block_type, n, k);
        let mut expected = vec![0.0; n * k];
        blocks::decode(block_type, &bytes, &mut expected);
        let packed = QuantMatrix::from_blocks(block_type, &bytes, n, k);
        let room = Arc::new(MemoryBudget::new(1 << 30));
        let mapped = QuantMatrix::mapped(block_type, Arc::new(bytes.clone()), 0..bytes.len(), n, k, &room);
        let ids: Vec<u32> = (0..n as u32).rev().collect();
        for w in [packed, mapped] {
            let mut rows = vec![f32::NAN; n * k];
            w.rows_of(&ids, &mut rows);
            for (row, &i) in rows.chunks(k).zip(&ids) {
                let expected = expected[i as usize * k..][..k].iter().map(|x| x.to_bits());
                assert!(row.iter().map(|x| x.to_bits()).eq(expected), "{} row {i}", block_type.name());
            }
            let row = bytes.len() / n * n.next_multiple_of(16);
            // Two bytes for one of a power of two; four or eight bits for codes of several numbers.
            let more = matches!(block_type, BlockType::Q2K | BlockType::Q3K) || block_type.name().starts_with("IQ");
            let most = if block_type == BlockType::Mxfp4 { 106 } else { 103 };
            assert!(w.bytes() <= row * most / 100 || more, "{} takes {} bytes", block_type.name(), w.bytes());
        }
    }
}

#[test]
fn matrices_are_packed_where_there_is_room() {
    let (block_type, n, k) = (BlockType::Q4_0, 40, 64);
    let bytes: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(any_blocks(block_type, n, k));
    let len = (*bytes).as_ref().len();
    let packed = QuantMatrix::from_blocks(block_type, (*bytes).as_ref(), n, k).bytes();
    // For two of them, and nearly a third.
    let room = Arc::new(MemoryBudget::new(3 * packed as u64 - 1));
    let experts: Vec<_> = (0..4).map(|_| QuantMatrix::mapped(block_type, bytes.clone(), 0..len, n, k, &room)).collect();
    let rows = any_rows(3, k);
    let x = quant::quantise_rows(&rows, k);
    let product = |offsets: &[u32]| {
        let mut y = vec![f32::NAN; 3 * n];
        quant::grouped_linear(&x, None, offsets, &experts, &mut y);
        y
    };
    let sizes = || experts.iter().map(QuantMatrix::bytes).collect::<Vec<_>>();
    assert_eq!(sizes(), [len; 4]);
    let before = product(&[0, 0, 3, 3, 3]);
    assert_eq!(sizes(), [len, packed, len, len], "only what was used");
    assert_same("all", &product(&[0, 1, 2, 3, 3]), &before);
    assert_eq!(sizes(), [packed, packed, len, len], "the third has no room");
    assert_same("again", &product(&[0, 0, 1, 1, 3]), &before);
    assert_eq!(sizes(), [packed, packed, len, len]);
}

#[test]
fn quantised_numbers_multiply_as_their_blocks_do() {
    for (block_type, bound) in [(BlockType::Q8_0, 0.02), (BlockType::Q4_0, 0.2), (BlockType::Q4_1, 0.2)] {
        for k in [32, 45, 100] {
            let (t, n) = (5, 20);
            let (x, values) = (numbers(1, t * k), numbers(2, n * k));
            let w = QuantMatrix::quantise(&values, n, k, block_type);
            let mut y = vec![f32::NAN; t * n];
            quant::linear(&quant::quantise_rows(&x, k), &w, &mut y);
            for (at, y) in y.iter().enumerate() {
                let mut row = vec![0.0; k];
                w.row(at % n, &mut row);
                let x = &x[at / n * k..][..k];
                let dot = |w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(x * w)).sum::<f64>();
                let (quantised, exact) = (dot(&row), dot(&values[at % n * k..][..k]));
                let scale = (k as f64).sqrt() / 3.0;
                assert!((f64::from(*y) - quantised).abs() < 0.02 * scale, "{} {y} {quantised}", block_type.name());
                assert!((f64::from(*y) - exact).abs() < 3.0 * bound * scale, "{} {y} {exact}", block_type.name());
            }
        }
    }
}

#[test]
fn rows_that_are_not_finite_stay_so_and_touch_no_other() {
    let (t, n, k) = (14, 20, 256);
    for block_type in QUANTISED {
        let w = QuantMatrix::from_blocks(block_type, &any_blocks(block_type, n, k), n, k);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = any_rows(t, k);
            x[5 * k + 100] = bad;
            everywhere(|isa| {
                let mut y = vec![0.0; t * n];
                quant::linear(&quant::quantise_rows(&x, k), &w, &mut y);
                for (at, y) in y.iter().enumerate() {
                    assert!(y.is_nan() == (at / n == 5), "{} {bad} {isa}: row {}", block_type.name(), at / n);
                }
            });
        }
    }
}

/// One product several times, for counting what it takes: `WELS_COUNT="FORMAT ROWS K N TIMES"`.
#[test]
#[ignore = "for scripts/arm/counts.py"]
fn a_product_to_be_counted() {
    let what = std::env::var("WELS_COUNT").expect("WELS_COUNT=\"FORMAT ROWS K N TIMES\"");
    let [name, numbers @ ..] = &what.split_whitespace().collect::<Vec<_>>()[..] else { panic!("a format") };
    let [t, k, n, times] = numbers.iter().map(|n| n.parse().expect("a number")).collect::<Vec<usize>>()[..] else {
        panic!("four numbers behind the format")
    };
    let block_type = BlockType::ALL.into_iter().find(|of| of.name() == *name).expect("a format");
    let w = QuantMatrix::from_blocks(block_type, &any_blocks(block_type, n, k), n, k);
    let (x, mut y) = (crate::numbers(1, t * k), vec![0.0; t * n]);
    wels_kernels::par::with_threads(1, || {
        for _ in 0..times {
            quant::linear(&quant::quantise_rows(&x, k), &w, &mut y);
        }
    });
    assert!(y.iter().all(|y| y.is_finite()));
}
