//! The numbers by which files call block types.

use wels_device::BlockType;

/// ggml's types in the order of their numbers; messages name also those that are not read.
const NAMES: [&str; 42] = [
    "F32",
    "F16",
    "Q4_0",
    "Q4_1",
    "Q4_2",
    "Q4_3",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q8_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "Q8_K",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ3_XXS",
    "IQ1_S",
    "IQ4_NL",
    "IQ3_S",
    "IQ2_S",
    "IQ4_XS",
    "I8",
    "I16",
    "I32",
    "I64",
    "F64",
    "IQ1_M",
    "BF16",
    "Q4_0_4_4",
    "Q4_0_4_8",
    "Q4_0_8_8",
    "TQ1_0",
    "TQ2_0",
    "IQ4_NL_4_4",
    "IQ4_NL_4_8",
    "IQ4_NL_8_8",
    "MXFP4",
    "NVFP4",
    "Q1_0",
];

/// The type that files call `id`; `None` for those that are not read.
pub(super) fn from_id(id: u32) -> Option<BlockType> {
    let name = NAMES.get(id as usize)?;
    BlockType::ALL.into_iter().find(|kind| kind.name() == *name)
}

pub(super) fn id(kind: BlockType) -> u32 {
    NAMES.iter().position(|name| *name == kind.name()).expect("every type has a number") as u32
}

/// What to call the type `id` in a message.
pub(super) fn name_of(id: u32) -> String {
    NAMES.get(id as usize).map_or_else(|| format!("number {id}"), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_ggmls() {
        for kind in BlockType::ALL {
            assert_eq!(from_id(id(kind)), Some(kind));
        }
        let known = [BlockType::F32, BlockType::Q8_0, BlockType::Q2K, BlockType::Q6K, BlockType::Bf16];
        assert_eq!(known.map(id), [0, 8, 10, 14, 30]);
        assert_eq!((from_id(4), from_id(999)), (None, None));
        assert_eq!(name_of(999), "number 999");
    }
}
