//! `cargo xtask sanitize`: the kernels' tests under valgrind, which reports each access outside of what was allocated,
//! after it was freed, or to what was never written before a decision.
//!
//! It needs no build of its own, where a compiler's sanitizer needs flags that are not stable. valgrind knows AVX2 and
//! no AVX-512: plain loops and AVX2 are seen, and the tests say what is left out. Not seen either: what runs over the
//! end of a part of a buffer that the kernels keep for their next calls (`scratch`), since the rest of that buffer is
//! allocated too. All tests take long; `cargo xtask sanitize quant::` takes three minutes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Fair to threads that wait awake for each other, of which valgrind runs one at a time.
const RUNNER: &str = "valgrind --quiet --error-exitcode=9 --fair-sched=yes";

/// Runs the tests whose names contain `filter`.
pub fn run(root: &Path, filter: &str) -> Result<()> {
    let mut command = Command::new("cargo");
    command.current_dir(root).env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", RUNNER);
    command.args(["test", "--release", "--package", "wels-kernels", "--test", "it"]);
    if !filter.is_empty() {
        command.arg(filter);
    }
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the tests under valgrind ended with {status}");
    Ok(())
}
