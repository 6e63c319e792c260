//! `cargo xtask inlined`: whether vector instructions are calls in the release build of the kernels.
//!
//! A function that is `#[inline(always)]` gets a processor's instructions from who calls it, but a closure in it is a
//! function of its own: where the compiler does not inline that, it has no instructions, and each intrinsic in it is a
//! call. Nothing fails, and the kernel takes fifteen times as long; products with Q5_0 on AVX2 did.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Part of the symbol of any function in `core::arch`.
const ARCH: &[u8] = b"9core_arch";
/// How the names of intrinsics on vectors of 256 and 512 bits begin.
const VECTORS: [&str; 2] = ["_mm256_", "_mm512_"];
/// Part of the symbols of the kernels, which a file without symbols lacks.
const KERNELS: &[u8] = b"12wels_kernels";

/// Looks at the kernels' library in the release build under `root`, which has symbols where the program has none.
pub fn run(root: &Path) -> Result<()> {
    check(&newest_library(&root.join("target/release/deps"))?)
}

/// Fails if the file has a function for an intrinsic, or has no symbols.
pub fn check(file: &Path) -> Result<()> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    ensure!(find(&bytes, KERNELS).is_some(), "{} has no symbols of kernels", file.display());
    let calls = calls(&bytes);
    let names: Vec<&str> = calls.iter().map(String::as_str).collect();
    ensure!(
        calls.is_empty(),
        "{} calls intrinsics: {}\nhint: a closure in a kernel was not inlined; make it an `#[inline(always)]` function",
        file.display(),
        names.join(", ")
    );
    Ok(())
}

fn newest_library(folder: &Path) -> Result<PathBuf> {
    let mut libraries = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("libwels_kernels-") && name.ends_with(".rlib") {
            libraries.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    let newest = libraries.into_iter().max().context("the kernels are not built: `cargo build --release` does it")?;
    Ok(newest.1)
}

/// The symbols of intrinsics that are functions.
fn calls(bytes: &[u8]) -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    let mut from = 0;
    while let Some(at) = find(&bytes[from..], ARCH) {
        let at = from + at;
        let part_of_symbol = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.$".contains(byte);
        let begin = at - bytes[..at].iter().rev().take_while(|byte| part_of_symbol(byte)).count();
        let end = at + bytes[at..].iter().take_while(|byte| part_of_symbol(byte)).count();
        let symbol = String::from_utf8_lossy(&bytes[begin..end]).into_owned();
        if VECTORS.iter().any(|vector| symbol.contains(vector)) {
            calls.insert(symbol);
        }
        from = end;
    }
    calls
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intrinsics_are_found_and_other_symbols_are_not() {
        let symbols =
            b"\0_ZN4core9core_arch3x864avx217_mm256_slli_epi1617h27a95E\0_ZN4core9core_arch3x865xsave7_xgetbvE\0
            _ZN5other11_mm256_slliE\0core_arch/src/x86/avx2.rs\0";
        let calls: Vec<String> = calls(symbols).into_iter().collect();
        assert_eq!(calls, ["_ZN4core9core_arch3x864avx217_mm256_slli_epi1617h27a95E"]);
    }
}
