//! `cargo xtask ci`: formatting, tidy checks, lints, documentation, the README's blocks, the tests.
//!
//! Everything is built in the release profile: lints, documentation and tests then share build scripts and
//! dependencies.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{inlined, readme, tidy};

/// The README's test command; `tidy` checks that the README and `.ci/run` say the same.
pub const TEST_COMMAND: &str = "cargo test --release";

/// Whether the last step is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tests {
    /// `cargo xtask ci`.
    Run,
    /// `cargo xtask ci --no-tests`.
    Skip,
}

type Step<'a> = (&'static str, Box<dyn Fn() -> Result<()> + 'a>);

/// Does the steps in their order; the first failure ends it.
pub fn run(root: &Path, tests: Tests) -> Result<()> {
    let command = |line: &'static str| Box::new(move || shell(root, line));
    let mut steps: Vec<Step> = vec![
        ("format", command("cargo fmt --all --check")),
        ("tidy", Box::new(|| tidy::run(root))),
        ("xtask", command("cargo test --quiet --package xtask")),
        ("lint", command("cargo clippy --release --workspace --all-targets -- --deny warnings")),
        ("document", Box::new(|| document(root))),
        // Tests switch features on that the program alone has not; what it is without them is checked, and built once.
        ("check", command("cargo check --release")),
        ("build", command("cargo test --release --no-run")),
        ("inlined", Box::new(|| inlined::run(root))),
        ("readme", Box::new(|| readme::run(root))),
        ("kernels", command("crates/cuda/fast/test.sh")),
    ];
    if tests == Tests::Run {
        steps.push(("test", command(TEST_COMMAND)));
    }
    let mut times = Vec::new();
    for (name, step) in steps {
        eprintln!("== {name}");
        let begin = Instant::now();
        step().with_context(|| format!("step `{name}` failed"))?;
        times.push((name, begin.elapsed()));
    }
    let total: Duration = times.iter().map(|(_, time)| *time).sum();
    let each: Vec<String> = times.iter().map(|(name, time)| format!("{name} {:.1} s", time.as_secs_f64())).collect();
    eprintln!("== passed in {:.1} s: {}", total.as_secs_f64(), each.join(", "));
    Ok(())
}

/// The API documentation; a broken link in it is an error.
fn document(root: &Path) -> Result<()> {
    let line = "cargo doc --quiet --release --no-deps";
    eprintln!("$ {line}");
    run_to_success(command(root, line).env("RUSTDOCFLAGS", "--deny warnings"), line)
}

fn shell(root: &Path, line: &str) -> Result<()> {
    eprintln!("$ {line}");
    run_to_success(&mut command(root, line), line)
}

/// Words are parted by spaces; nothing is quoted.
fn command(root: &Path, line: &str) -> Command {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words).current_dir(root);
    command
}

fn run_to_success(command: &mut Command, line: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    ensure!(status.success(), "`{line}` ended with {status}");
    Ok(())
}
