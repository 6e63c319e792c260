//! `cargo xtask sanitize`: the kernels' tests with LLVM's AddressSanitizer, which stops at the first access outside of
//! what was allocated or after it was freed, in plain loops and in vectors of every instruction set of the machine.
//!
//! The toolchain has the sanitizer's runtime, but its flag counts as unstable: `RUSTC_BOOTSTRAP` lets this one build
//! have it. What is built lies in a target folder of its own. Not seen: what runs over the end of a part of a buffer
//! that the kernels keep for their next calls (`scratch`), since the rest of that buffer is allocated too.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Runs the tests whose names contain `filter`.
pub fn run(root: &Path, filter: &str) -> Result<()> {
    let mut command = Command::new("cargo");
    command.current_dir(root).env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
    // Buffers of the kernels are given back at the end of the program by nobody.
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    command.args(["test", "--release", "--package", "wels-kernels", "--lib", "--tests", "--target", TARGET]);
    command.args(["--target-dir", "target/sanitize"]);
    if !filter.is_empty() {
        command.arg(filter);
    }
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the tests with the sanitizer ended with {status}");
    Ok(())
}
