//! Runs the code of README and guide: blocks that open with `sh check` are executed, blocks that open with
//! `toml file=NAME` are files for them. A page's blocks run in their order, in one empty directory, with the release
//! build of `wels` first in `PATH`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The pages whose blocks are run. Each has some: a page whose fences are mistyped would pass otherwise.
const PAGES: [&str; 2] = ["README.md", "docs/guide.md"];

/// What a code block is for.
#[derive(Debug, PartialEq, Eq)]
enum Block {
    File { name: String, text: String },
    Script { line: usize, text: String },
}

/// Runs the blocks of [`PAGES`].
pub fn run(root: &Path) -> Result<()> {
    PAGES.iter().try_for_each(|page| run_page(root, page))
}

fn run_page(root: &Path, page: &str) -> Result<()> {
    let text = fs::read_to_string(root.join(page)).with_context(|| format!("cannot read {page}"))?;
    let directory = Scratch::new(root)?;
    let blocks = blocks(&text);
    ensure!(blocks.iter().any(|block| matches!(block, Block::Script { .. })), "{page} has no block `sh check`");
    for block in blocks {
        match block {
            Block::File { name, text } => fs::write(directory.0.join(&name), text)
                .with_context(|| format!("cannot write the file {name} of {page}"))?,
            Block::Script { line, text } => script(root, &directory.0, &format!("{page}:{line}"), &text)?,
        }
    }
    Ok(())
}

/// `place`: page and line, for messages.
fn script(root: &Path, directory: &Path, place: &str, text: &str) -> Result<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", text])
        .env("PATH", format!("{}:{path}", target(root).join("release").display()))
        .current_dir(directory)
        .output()
        .context("cannot start bash")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{place}: the block ended with {}:\n{text}{stderr}", output.status);
    eprintln!("{place}: runs");
    Ok(())
}

fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |directory| root.join(directory))
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = markdown.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else { continue };
        let mut text = String::new();
        for (_, line) in lines.by_ref().take_while(|(_, line)| *line != "```") {
            text += line;
            text.push('\n');
        }
        if kind == "sh check" {
            found.push(Block::Script { line: number + 1, text });
        } else if let Some(name) = kind.strip_prefix("toml file=") {
            found.push(Block::File { name: name.to_string(), text });
        }
    }
    found
}

/// A directory that goes away with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(root: &Path) -> Result<Scratch> {
        let path = target(root).join("readme-check");
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot empty {}", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // emptied by the next check at the latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_told_apart() {
        let text = "a\n```sh\nno\n```\n```toml file=r.toml\n[run]\n```\n```sh check\nwels plan r.toml\n```\n";
        let file = Block::File { name: "r.toml".into(), text: "[run]\n".into() };
        let script = Block::Script { line: 8, text: "wels plan r.toml\n".into() };
        assert_eq!(blocks(text), [file, script]);
    }
}
