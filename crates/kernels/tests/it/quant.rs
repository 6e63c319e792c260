//! Block formats against the values of the `gguf` package, bit for bit.

use wels_kernels::quant::blocks::{self, BlockType};

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
const STORED: [(BlockType, &[u8], &[u8]); 12] = stored!(
    F16 "F16", Bf16 "BF16", Q8_0 "Q8_0", Q4_0 "Q4_0", Q4_1 "Q4_1", Q5_0 "Q5_0", Q5_1 "Q5_1",
    Q2K "Q2_K", Q3K "Q3_K", Q4K "Q4_K", Q5K "Q5_K", Q6K "Q6_K"
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
