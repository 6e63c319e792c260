//! Names of tasks in recipes: puzzles, files, programs, and environments behind an address.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::named::joined;

/// A task as recipes name it, `[STYLE:]NAME[+TOOL][=FILE]`. A name with a `/` is a program of one's own, which judges
/// answers, or behind `env:` plays episodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskName {
    /// How it is asked.
    pub style: Option<String>,
    /// Whether the program plays.
    pub plays: bool,
    /// What is asked, or who judges or plays.
    pub name: String,
    /// Where questions stand.
    pub file: Option<PathBuf>,
}

impl TaskName {
    /// Takes `text` apart; paths are relative to `folder`.
    pub fn parse(text: &str, folder: &Path) -> TaskName {
        let (style, rest) = match text.split_once(':') {
            Some((style, rest)) if !style.contains(['=', '/']) && style != PLAYS && style != OPEN_ENV => {
                (Some(style.to_string()), rest)
            }
            _ => (None, text),
        };
        let played = rest.strip_prefix(PLAYS).and_then(|rest| rest.strip_prefix(':'));
        let rest = played.unwrap_or(rest);
        let open_env = rest.strip_prefix(OPEN_ENV).is_some_and(|rest| rest.starts_with(':'));
        let plays = played.is_some() || open_env;
        let (name, file) =
            rest.split_once('=').map_or((rest, None), |(name, file)| (name, Some(joined(folder, file).into())));
        let path = name.contains('/') && !is_address(name);
        let name = if path { folder.join(name).display().to_string() } else { name.to_string() };
        TaskName { style, plays, name, file }
    }

    /// The program that judges the answers or plays, where there is one.
    pub fn program(&self) -> Option<&Path> {
        (self.name.contains('/') && !is_address(&self.name)).then(|| Path::new(&self.name))
    }

    /// Where an environment is that is asked over HTTP.
    pub fn address(&self) -> Option<TaskAddress<'_>> {
        let open_env = self.name.strip_prefix(OPEN_ENV).and_then(|rest| rest.strip_prefix(':'));
        let address = TaskAddress { url: open_env.unwrap_or(&self.name), open_env: open_env.is_some() };
        (self.plays && is_address(&self.name)).then_some(address)
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let style = self.style.iter().map(|style| format!("{style}:"));
        let says_so = self.address().is_some_and(|address| address.open_env);
        let plays = if self.plays && !says_so { format!("{PLAYS}:") } else { String::new() };
        let file = self.file.iter().map(|file| format!("={}", file.display()));
        write!(f, "{}{plays}{}{}", style.collect::<String>(), self.name, file.collect::<String>())
    }
}

impl Serialize for TaskName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Before the name of a program that plays.
const PLAYS: &str = "env";

/// Before the address of a server that speaks OpenEnv's protocol.
const OPEN_ENV: &str = "openenv";

/// Where an environment is that is asked over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskAddress<'a> {
    /// Of `http` or `https`.
    pub url: &'a str,
    /// Whether it speaks OpenEnv's protocol, and not that of programs.
    pub open_env: bool,
}

fn is_address(name: &str) -> bool {
    let name = name.strip_prefix(OPEN_ENV).and_then(|rest| rest.strip_prefix(':')).unwrap_or(name);
    name.starts_with("http://") || name.starts_with("https://")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tasks_are_taken_apart() {
        for (text, written) in [
            ("countdown", "countdown"),
            ("short:arithmetic", "short:arithmetic"),
            ("gsm8k=a:b.jsonl", "gsm8k=/data/a:b.jsonl"),
            ("chat:number=x=y.jsonl", "chat:number=/data/x=y.jsonl"),
            ("./judge.py=q.jsonl", "/data/./judge.py=/data/q.jsonl"),
            ("r1-zero:/bin/judge=/q.jsonl", "r1-zero:/bin/judge=/q.jsonl"),
            ("env:./play.py", "env:/data/./play.py"),
            ("chat:env:./play.py=q.jsonl", "chat:env:/data/./play.py=/data/q.jsonl"),
            ("gsm8k+python=a.jsonl", "gsm8k+python=/data/a.jsonl"),
        ] {
            let name = TaskName::parse(text, Path::new("/data"));
            assert_eq!(name.to_string(), written);
            assert_eq!(TaskName::parse(written, Path::new("/elsewhere")), name);
            assert_eq!(name.program().is_some(), text.contains('/'));
            assert_eq!(name.plays, text.contains("env:"));
        }
    }
}
