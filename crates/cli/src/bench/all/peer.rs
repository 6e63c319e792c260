//! Other programs on the same machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use wels_kernels::par;

/// The program of this name in PATH.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A line of what `llama-bench -o json` prints.
#[derive(Deserialize)]
struct Line {
    avg_ts: f64,
}

/// Tokens a second of llama.cpp's prompts, and of its answers behind them.
pub fn llama_bench(program: &Path, model: &Path, prompt: u32, answer: u32, rounds: u64) -> Result<[f64; 2]> {
    let rate = |of_prompt: bool| -> Result<f64> {
        let (prompt_tokens, answer_tokens, depth) = if of_prompt { (prompt, 0, 0) } else { (0, answer, prompt) };
        let mut command = Command::new(program);
        command.arg("-m").arg(model).args(["-o", "json"]);
        for (option, number) in [
            ("-t", par::threads() as u64),
            ("-r", rounds),
            ("-p", prompt_tokens.into()),
            ("-n", answer_tokens.into()),
            ("-d", depth.into()),
        ] {
            command.arg(option).arg(number.to_string());
        }
        let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
        ensure!(
            output.status.success(),
            "{} failed ({}): {}",
            program.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        rate_of(&output.stdout).with_context(|| format!("{} says no rate", program.display()))
    };
    Ok([rate(true)?, rate(false)?])
}

fn rate_of(json: &[u8]) -> Result<f64> {
    let lines: Vec<Line> = serde_json::from_slice(json)?;
    lines.first().map(|line| line.avg_ts).context("it measured nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_and_its_absence_is_seen() {
        assert_eq!(rate_of(br#"[{"n_prompt": 128, "avg_ts": 41.5, "stddev_ts": 0.1}]"#).unwrap(), 41.5);
        assert!(rate_of(b"[]").is_err());
        assert!(rate_of(b"error: no such file").is_err());
    }
}
