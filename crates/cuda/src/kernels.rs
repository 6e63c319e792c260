//! The kernels' texts, inside the program, and which kernel is in which.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::launch::signature::{self, Signature};

/// A file of kernels.
#[derive(Debug)]
pub struct Source {
    /// Its path from `kernels/` on.
    pub path: &'static str,
    /// CUDA C.
    pub text: &'static str,
    /// Since which compute capability, 10·major + minor, a card can run it.
    pub since: u32,
}

/// A kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Name and parameters.
    pub signature: Signature,
    /// The file that it is in.
    pub source: &'static Source,
}

/// What the files include.
pub const HEADERS: &[(&str, &str)] = &[
    ("prelude.cuh", include_str!("../kernels/prelude.cuh")),
    ("math.cuh", include_str!("../kernels/math.cuh")),
    ("sums.cuh", include_str!("../kernels/sums.cuh")),
    ("eight.cuh", include_str!("../kernels/eight.cuh")),
    ("attend.cuh", include_str!("../kernels/attend.cuh")),
    ("wgmma.cuh", include_str!("../kernels/wgmma.cuh")),
    ("products/blocks.cuh", include_str!("../kernels/products/blocks.cuh")),
    ("products/unpack.cuh", include_str!("../kernels/products/unpack.cuh")),
    ("products/tiles.cuh", include_str!("../kernels/products/tiles.cuh")),
    ("products/hopper.cuh", include_str!("../kernels/products/hopper.cuh")),
    ("products/packed.cuh", include_str!("../kernels/products/packed.cuh")),
    ("products/ampere.cuh", include_str!("../kernels/products/ampere.cuh")),
    ("attention/tile.cuh", include_str!("../kernels/attention/tile.cuh")),
    ("attention/pages.cuh", include_str!("../kernels/attention/pages.cuh")),
    ("attention/forward.cuh", include_str!("../kernels/attention/forward.cuh")),
    ("attention/backward.cuh", include_str!("../kernels/attention/backward.cuh")),
    ("attention/paged.cuh", include_str!("../kernels/attention/paged.cuh")),
    ("attention/latent.cuh", include_str!("../kernels/attention/latent.cuh")),
    ("attention/ampere.cuh", include_str!("../kernels/attention/ampere.cuh")),
];

macro_rules! sources {
    ($($path:literal since $since:literal),* $(,)?) => {
        /// All files of kernels.
        pub const SOURCES: &[Source] = &[
            $(Source { path: $path, text: include_str!(concat!("../kernels/", $path)), since: $since }),*
        ];
    };
}

sources! {
    "rows.cu" since 80,
    "rows_bf16.cu" since 80,
    "products/plain.cu" since 80,
    "products/quantised.cu" since 80,
    "products/dequantise.cu" since 80,
    "products/operands.cu" since 80,
    "products/ampere.cu" since 80,
    "products/runs.cu" since 80,
    "products/hopper.cu" since 90,
    "products/hopper_packed.cu" since 90,
    "products/packed/hopper_q8_0.cu" since 90,
    "products/packed/hopper_q4_0.cu" since 90,
    "products/packed/hopper_q4_1.cu" since 90,
    "products/packed/hopper_q5_0.cu" since 90,
    "products/packed/hopper_q5_1.cu" since 90,
    "products/packed/hopper_q2_k.cu" since 90,
    "products/packed/hopper_q3_k.cu" since 90,
    "products/packed/hopper_q4_k.cu" since 90,
    "products/packed/hopper_q5_k.cu" since 90,
    "products/packed/hopper_q6_k.cu" since 90,
    "products/packed/hopper_e4m3.cu" since 90,
    "experts.cu" since 80,
    "experts_bf16.cu" since 80,
    "head.cu" since 80,
    "attention/plain.cu" since 80,
    "attention/paged.cu" since 80,
    "attention/append.cu" since 80,
    "attention/sums.cu" since 80,
    "attention/ampere.cu" since 80,
    "attention/hopper_forward.cu" since 90,
    "attention/hopper_backward.cu" since 90,
    "attention/hopper_paged.cu" since 90,
    "attention/hopper_latent.cu" since 90,
}

/// The kernel of that name.
pub fn find(name: &str) -> Option<&'static Kernel> {
    static KERNELS: OnceLock<HashMap<String, Kernel>> = OnceLock::new();
    let all = || {
        let of = |source: &'static Source| {
            signature::parse(source.text).into_iter().map(move |signature| Kernel { signature, source })
        };
        SOURCES.iter().flat_map(of).map(|kernel| (kernel.signature.name.clone(), kernel)).collect()
    };
    KERNELS.get_or_init(all).get(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_file_has_kernels() {
        let mut names: Vec<String> = Vec::new();
        for source in SOURCES {
            let kernels = signature::parse(source.text);
            assert!(!kernels.is_empty(), "{} has no kernels", source.path);
            names.extend(kernels.into_iter().map(|kernel| kernel.name));
        }
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "kernels of one name");
    }
}
