//! `cargo xtask (tidy | docs | readme | inlined [FILE] | sanitize [FILTER] | ci [--no-tests])`: what the repository
//! checks about itself.
//!
//! `tidy` reads the files and takes a second. `docs` writes the pages that are made from sources. `readme` runs the
//! README's code with the release build. `inlined` looks in the release build for instructions of processors that have
//! become calls. `sanitize` runs the kernels' tests with accesses to memory checked. `ci` is all of continuous
//! integration, cheapest first; `--no-tests` leaves out the last step, the tests, for a caller that runs them itself.

#![forbid(unsafe_code)]

mod ci;

mod inlined;

mod readme;

mod reference;

mod sanitize;

mod source;

mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    match dispatch(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["tidy"] => tidy::run(&root()),
        ["docs"] => docs(&root()),
        ["readme"] => readme::run(&root()),
        ["inlined"] => inlined::run(&root()),
        ["inlined", file] => inlined::check(Path::new(file)),
        ["sanitize"] => sanitize::run(&root(), ""),
        ["sanitize", filter] => sanitize::run(&root(), filter),
        ["ci"] => ci::run(&root(), ci::Tests::Run),
        ["ci", "--no-tests"] => ci::run(&root(), ci::Tests::Skip),
        _ => {
            bail!("usage: cargo xtask (tidy | docs | readme | inlined [FILE] | sanitize [FILTER] | ci [--no-tests])")
        }
    }
}

/// Writes the pages that are made from sources.
fn docs(root: &Path) -> Result<()> {
    let read = |path| std::fs::read_to_string(root.join(path)).context("cannot read the recipe's source");
    let sources = reference::SOURCES.iter().map(read).collect::<Result<Vec<String>>>()?;
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    std::fs::write(root.join(reference::PAGE), reference::page(&sources)).context("cannot write the page")
}

/// The repository's root: the directory above this package.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository").to_path_buf()
}
