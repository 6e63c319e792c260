//! Which servers there are: command lines, and the JSON that other programs read.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use ureq::http::header::{HeaderName, HeaderValue};

/// A server, and how it is come by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSpec {
    pub name: String,
    pub place: Place,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A child process, spoken to over its standard streams.
    Process(Program),
    /// At an address that begins with `http://` or `https://`.
    Url {
        url: String,
        /// Sent with each request.
        headers: HashMap<HeaderName, HeaderValue>,
    },
}

/// How a server is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
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

/// Headers that say what is sent.
const RESERVED: [&str; 5] = ["accept", "content-type", "content-length", "host", "transfer-encoding"];

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
    headers: BTreeMap<String, String>,
    #[serde(default)]
    disabled: bool,
}

impl ServerSpec {
    /// Of an address, or of a command line, quoted as for a shell; nothing in it is expanded.
    ///
    /// # Errors
    /// An open quotation mark, or nothing.
    pub fn of_command(line: &str) -> Result<ServerSpec, ConfigError> {
        if is_url(line) {
            let place = Place::Url { url: line.to_owned(), headers: HashMap::new() };
            return Ok(ServerSpec { name: host_of(line).to_owned(), place });
        }
        let wrong = |reason| ConfigError::Command { line: line.to_owned(), reason };
        let mut words = shlex::split(line).ok_or_else(|| wrong("a quotation mark is open"))?.into_iter();
        let command = words.next().filter(|command| !command.is_empty()).ok_or_else(|| wrong("it is empty"))?;
        let args: Vec<String> = words.collect();
        let name = name_of(&command, &args);
        Ok(ServerSpec { name, place: Place::Process(Program { command, args, ..Program::default() }) })
    }

    /// All of a file: `{"mcpServers": {"NAME": {"command": "…", "args": […], "env": {…}}}}`, or with `"url": "…"` and
    /// `"headers": {…}`, in whose values `${NAME}` is that variable of the environment.
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
        let place = place(entry).map_err(|reason| format!("{name}: {reason}"))?;
        specs.push(ServerSpec { name, place });
    }
    Ok(specs)
}

fn place(entry: Entry) -> Result<Place, String> {
    match (entry.command, entry.url) {
        (Some(_), Some(_)) => Err("there are both `command` and `url`".to_owned()),
        (None, None) => Err("there is no `command` and no `url`".to_owned()),
        (Some(command), None) => {
            Ok(Place::Process(Program { command, args: entry.args, env: entry.env, folder: entry.cwd }))
        }
        (None, Some(url)) if !is_url(&url) => {
            Err(format!("`url` is {url}, which begins with neither http:// nor https://"))
        }
        (None, Some(url)) => {
            let headers = entry.headers.iter().map(|(name, value)| header(name, value));
            Ok(Place::Url { url, headers: headers.collect::<Result<_, String>>()? })
        }
    }
}

fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// The part of an address that names a server, without its port.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', '?', '#']).next().unwrap_or(rest).rsplit('@').next().unwrap_or(rest);
    host.rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(host, |(host, _)| host)
}

/// A header of the file, its variables replaced. What the transport says itself may not be in it.
fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let wrong = |reason: &str| format!("the header {name} {reason}");
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong("has no name of a header"))?;
    if RESERVED.contains(&parsed.as_str()) || parsed.as_str().starts_with("mcp-") {
        return Err(wrong("is the transport's own"));
    }
    let value = with_variables(value).map_err(|name| wrong(&format!("needs the variable {name}, which is not set")))?;
    let mut value = HeaderValue::from_str(&value).map_err(|_| wrong("has a value that no header can have"))?;
    value.set_sensitive(true);
    Ok((parsed, value))
}

/// `${NAME}` is replaced by the environment's variable; the error is the name of one that is not there.
fn with_variables(text: &str) -> Result<String, String> {
    let (mut whole, mut rest) = (String::new(), text);
    while let Some((before, (name, after))) =
        rest.split_once("${").and_then(|(before, more)| more.split_once('}').map(|found| (before, found)))
    {
        whole.push_str(before);
        whole.push_str(&std::env::var(name).map_err(|_| name.to_owned())?);
        rest = after;
    }
    Ok(whole + rest)
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

    fn program(spec: &ServerSpec) -> &Program {
        match &spec.place {
            Place::Process(program) => program,
            Place::Url { url, .. } => panic!("{url}"),
        }
    }

    #[test]
    fn command_lines_are_split_and_named() {
        let spec = ServerSpec::of_command("npx -y @modelcontextprotocol/server-filesystem '/a b'").unwrap();
        assert_eq!((spec.name.as_str(), program(&spec).command.as_str()), ("server-filesystem", "npx"));
        assert_eq!(program(&spec).args, ["-y", "@modelcontextprotocol/server-filesystem", "/a b"]);
        for (line, name) in [
            ("uvx mcp-server-time", "mcp-server-time"),
            ("python3 -m mcp_server_git", "mcp_server_git"),
            ("python3 tests/server.py --x", "server"),
            ("npx pkg@1.2", "pkg"),
            ("/opt/bin/things serve", "things"),
            ("https://mcp.example.org:8443/mcp?x=1", "mcp.example.org"),
            ("http://[::1]:80/mcp", "[::1]"),
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
        assert_eq!((specs[0].name.as_str(), program(&specs[0]).env["TZ"].as_str()), ("time", "UTC"));
        for (text, reason) in [
            ("{}", "there is no object `mcpServers` in it"),
            (r#"{"mcpServers": {"a": {}}}"#, "a: there is no `command` and no `url`"),
            (r#"{"mcpServers": {"a": {"url": "https://x", "command": "x"}}}"#, "a: there are both `command` and `url`"),
            (
                r#"{"mcpServers": {"a": {"url": "ftp://x"}}}"#,
                "a: `url` is ftp://x, which begins with neither http:// nor https://",
            ),
            (
                r#"{"mcpServers": {"a": {"url": "https://x", "headers": {"Mcp-Session-Id": "1"}}}}"#,
                "a: the header Mcp-Session-Id is the transport's own",
            ),
            (
                r#"{"mcpServers": {"a": {"url": "https://x", "headers": {"X-Key": "a ${NO_SUCH_VARIABLE_ANYWHERE}"}}}}"#,
                "a: the header X-Key needs the variable NO_SUCH_VARIABLE_ANYWHERE, which is not set",
            ),
            (
                r#"{"mcpServers": {"a": {"url": "https://x", "headers": {"X-Key": "a\n"}}}}"#,
                "a: the header X-Key has a value that no header can have",
            ),
        ] {
            assert_eq!(of_json(text).unwrap_err(), reason);
        }
        assert!(of_json(r#"{"mcpServers": {"a": {"command": 3}}}"#).unwrap_err().starts_with("a: invalid type"));
    }

    #[test]
    fn headers_of_servers_at_an_address_may_name_variables() {
        let path = std::env::var("PATH").unwrap();
        let text =
            r#"{"mcpServers": {"a": {"type": "http", "url": "http://x/mcp", "headers": {"X-Key": "<${PATH}> ${"}}}}"#;
        let Place::Url { url, headers } = &of_json(text).unwrap()[0].place else { panic!("a command") };
        assert_eq!(
            (url.as_str(), headers[&HeaderName::from_static("x-key")].to_str().unwrap()),
            ("http://x/mcp", &*format!("<{path}> ${{"))
        );
    }
}
