//! Which servers there are: command lines, and the JSON that other programs read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

/// How a server is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerSpec {
    pub name: String,
    pub command: String,
    pub args: Vec<String>,
    /// Besides what this process has.
    pub env: BTreeMap<String, String>,
    pub folder: Option<String>,
}

/// Why it is not known how to start one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("`{line}` is no command: {reason}")]
    Command { line: String, reason: &'static str },
    #[error("{file} is not as `mcpServers` is written: {reason}")]
    File { file: String, reason: String },
    #[error("cannot read {file}: {source}")]
    Io { file: String, source: std::io::Error },
}

/// Programs that start another one, named by their first argument that is no option.
const LAUNCHERS: [&str; 10] = ["npx", "uvx", "pipx", "bunx", "node", "deno", "bun", "python", "python3", "uv"];

#[derive(Deserialize)]
struct Entry {
    command: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    cwd: Option<String>,
    url: Option<String>,
    #[serde(default)]
    disabled: bool,
}

impl ServerSpec {
    /// Of a command line, quoted as for a shell; nothing in it is expanded.
    ///
    /// # Errors
    /// An open quotation mark, or nothing.
    pub fn of_command(line: &str) -> Result<ServerSpec, ConfigError> {
        let wrong = |reason| ConfigError::Command { line: line.to_owned(), reason };
        let mut words = shlex::split(line).ok_or_else(|| wrong("a quotation mark is open"))?.into_iter();
        let command = words.next().filter(|command| !command.is_empty()).ok_or_else(|| wrong("it is empty"))?;
        let args: Vec<String> = words.collect();
        let name = name_of(&command, &args);
        Ok(ServerSpec { name, command, args, ..ServerSpec::default() })
    }

    /// All of a file: `{"mcpServers": {"NAME": {"command": "…", "args": […], "env": {…}}}}`.
    ///
    /// # Errors
    /// What is wrong, by the server's name.
    pub fn of_file(path: &Path) -> Result<Vec<ServerSpec>, ConfigError> {
        let file = path.display().to_string();
        let io = |source| ConfigError::Io { file: file.clone(), source };
        let text = std::fs::read_to_string(path).map_err(io)?;
        of_json(&text).map_err(|reason| ConfigError::File { file, reason })
    }
}

fn of_json(text: &str) -> Result<Vec<ServerSpec>, String> {
    let mut whole: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let Some(Value::Object(servers)) = whole.remove("mcpServers") else {
        return Err("there is no object `mcpServers` in it".to_owned());
    };
    let mut specs = Vec::new();
    for (name, entry) in servers {
        let entry: Entry = serde_json::from_value(entry).map_err(|error| format!("{name}: {error}"))?;
        if entry.disabled {
            continue;
        }
        let Some(command) = entry.command else {
            return Err(match entry.url {
                Some(_) => format!("{name}: servers at a `url` are not spoken to, only those with a `command`"),
                None => format!("{name}: there is no `command`"),
            });
        };
        specs.push(ServerSpec { name, command, args: entry.args, env: entry.env, folder: entry.cwd });
    }
    Ok(specs)
}

/// What a server is called that has no name: its program, or what a launcher starts.
fn name_of(command: &str, args: &[String]) -> String {
    let stem = |text: &str| {
        let last = text.trim_end_matches('/').rsplit('/').next().unwrap_or(text);
        let last = last.split_once('@').filter(|(name, _)| !name.is_empty()).map_or(last, |(name, _)| name);
        last.trim_end_matches(".py").trim_end_matches(".js").to_owned()
    };
    let program = stem(command);
    let started = args.iter().find(|arg| !arg.starts_with('-') && *arg != "run" && *arg != "-m");
    match started {
        Some(started) if LAUNCHERS.contains(&program.as_str()) => stem(started),
        _ => program,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_split_and_named() {
        let spec = ServerSpec::of_command("npx -y @modelcontextprotocol/server-filesystem '/a b'").unwrap();
        assert_eq!((spec.name.as_str(), spec.command.as_str()), ("server-filesystem", "npx"));
        assert_eq!(spec.args, ["-y", "@modelcontextprotocol/server-filesystem", "/a b"]);
        for (line, name) in [
            ("uvx mcp-server-time", "mcp-server-time"),
            ("python3 -m mcp_server_git", "mcp_server_git"),
            ("python3 tests/server.py --x", "server"),
            ("npx pkg@1.2", "pkg"),
            ("/opt/bin/things serve", "things"),
        ] {
            assert_eq!(ServerSpec::of_command(line).unwrap().name, name, "{line}");
        }
        let wrong = |line| ServerSpec::of_command(line).unwrap_err().to_string();
        assert_eq!(wrong("a 'b"), "`a 'b` is no command: a quotation mark is open");
        assert_eq!(wrong(" "), "` ` is no command: it is empty");
    }

    #[test]
    fn the_file_of_other_programs_is_read() {
        let text = r#"{"mcpServers": {
            "time": {"command": "uvx", "args": ["mcp-server-time"], "env": {"TZ": "UTC"}, "type": "stdio"},
            "off": {"command": "x", "disabled": true}}, "other": 1}"#;
        let specs = of_json(text).unwrap();
        assert_eq!(specs.len(), 1);
        assert_eq!((specs[0].name.as_str(), specs[0].env["TZ"].as_str()), ("time", "UTC"));
        for (text, reason) in [
            ("{}", "there is no object `mcpServers` in it"),
            (r#"{"mcpServers": {"a": {}}}"#, "a: there is no `command`"),
            (
                r#"{"mcpServers": {"a": {"url": "https://x"}}}"#,
                "a: servers at a `url` are not spoken to, only those with a `command`",
            ),
        ] {
            assert_eq!(of_json(text).unwrap_err(), reason);
        }
        assert!(of_json(r#"{"mcpServers": {"a": {"command": 3}}}"#).unwrap_err().starts_with("a: invalid type"));
    }
}
