//! Servers of the Model Context Protocol, good ones and others. They are Python; without `python3` these tests fail.

use std::collections::HashMap;
use std::io::BufRead;
use std::time::{Duration, Instant};

use serde_json::json;
use wels_agent::mcp::{ServerSpec, Started, Timeouts, start};
use wels_agent::{Effect, Outcome, Tool};

const TIMEOUTS: Timeouts = Timeouts { start: Duration::from_secs(60), call: Duration::from_secs(60) };

fn spec(how: &str) -> ServerSpec {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/server.py");
    ServerSpec::of_command(&format!("python3 '{script}' {how}")).unwrap()
}

fn started(how: &str) -> Started {
    start(&spec(how), TIMEOUTS, &|| false).unwrap_or_else(|error| panic!("{how}: {error}"))
}

fn refused(how: &str, timeouts: Timeouts) -> String {
    match start(&spec(how), timeouts, &|| false) {
        Ok(_) => panic!("{how} was started"),
        Err(error) => error.to_string(),
    }
}

/// A server at an address, which ends with the test.
struct Remote {
    process: std::process::Child,
    url: String,
}

impl Remote {
    fn start(how: &str) -> Remote {
        let mut command = std::process::Command::new("python3");
        command.args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/server.py"), how, "http"]);
        let mut process = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        std::io::BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Remote { process, url: format!("http://127.0.0.1:{}/mcp", port.trim()) }
    }

    fn tools(&self) -> HashMap<String, Box<dyn Tool>> {
        by_name(start(&ServerSpec::of_command(&self.url).unwrap(), TIMEOUTS, &|| false).unwrap())
    }

    fn refusal(&self) -> String {
        start(&ServerSpec::of_command(&self.url).unwrap(), TIMEOUTS, &|| false).err().expect("a refusal").to_string()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn by_name(started: Started) -> HashMap<String, Box<dyn Tool>> {
    started.tools.into_iter().map(|tool| (tool.definition().name, tool)).collect()
}

fn call(tools: &mut HashMap<String, Box<dyn Tool>>, name: &str) -> Outcome {
    tools.get_mut(name).unwrap().call(&json!({"x": "fish"}), &|| false)
}

#[test]
fn tools_are_listed_over_pages_and_called() {
    let server = started("good");
    assert_eq!(server.name, "server");
    assert_eq!(server.left_out.len(), 2, "{:?}", server.left_out);
    assert!(server.left_out[0].starts_with("huge: its schema has 400"), "{:?}", server.left_out);
    assert_eq!(server.left_out[1], "list: its arguments are no object");
    let mut tools = by_name(server);
    assert_eq!(tools.len(), 9);
    assert!(tools.values().all(|tool| tool.effect() == Effect::Acts));
    let definition = tools["echo"].definition();
    assert_eq!((definition.description.as_str(), &definition.parameters["required"]), ("does echo", &json!(["x"])));
    for (name, outcome) in [
        ("echo", Outcome::done("echo fish")),
        ("fail", Outcome::failed("it failed")),
        ("structured", Outcome::done("{\"n\":1}")),
        ("image", Outcome::done("[an image, image/png, 3 bytes, not shown]")),
        ("nonsense", Outcome::failed("the MCP server server answered what is no result of a call")),
        ("echo", Outcome::done("echo fish")),
    ] {
        assert_eq!(call(&mut tools, name), outcome, "{name}");
    }
}

#[test]
fn junk_between_messages_does_no_harm() {
    let mut tools = by_name(started("junk"));
    assert_eq!(call(&mut tools, "echo"), Outcome::done("echo fish"));
}

#[test]
fn a_server_that_dies_says_why_and_stays_dead() {
    let mut tools = by_name(started("good"));
    let died = call(&mut tools, "die");
    assert_eq!(died, Outcome::failed("the MCP server server has ended; it wrote: giving up the ghost"));
    assert_eq!(call(&mut tools, "echo"), died);
}

#[test]
fn a_call_that_hangs_ends_by_the_clock_or_by_the_user() {
    let timeouts = Timeouts { call: Duration::from_millis(300), ..TIMEOUTS };
    let mut tools = by_name(start(&spec("good"), timeouts, &|| false).unwrap());
    let begin = Instant::now();
    assert_eq!(call(&mut tools, "hang"), Outcome::failed("the MCP server server did not answer within 0.3 s"));
    let mut tools = by_name(started("good"));
    let stopped = tools.get_mut("hang").unwrap().call(&json!({"x": ""}), &|| true);
    assert_eq!(stopped, Outcome::failed("stopped by the user"));
    drop(tools); // kills it
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}

#[test]
fn servers_that_do_not_start_are_named_with_the_reason() {
    let short = Timeouts { start: Duration::from_millis(700), ..TIMEOUTS };
    let exits = refused("exit", TIMEOUTS);
    assert!(exits.starts_with("the MCP server server does not speak MCP: "), "{exits}");
    assert!(exits.ends_with("; it wrote: no configuration"), "{exits}");
    let silent = "the MCP server server did not say within 0.7 s which tools it has";
    assert_eq!(refused("silent", short), silent);
    assert!(refused("flood", short).starts_with(silent));
    let many = refused("many", TIMEOUTS);
    assert!(many.contains("lists 500 tools or more, and 128 are taken at most"), "{many}");
    assert!(refused("endless", TIMEOUTS).contains("on more than 64 pages"));
    assert!(refused("refuse", TIMEOUTS).contains("does not list its tools"));
    let none = ServerSpec::of_command("no-such-program-anywhere x").unwrap();
    let error = start(&none, TIMEOUTS, &|| false).err().unwrap().to_string();
    let expected = "the MCP server no-such-program-anywhere cannot be started: no-such-program-anywhere: ";
    assert!(error.starts_with(expected), "{error}");
    let cat = ServerSpec::of_command("cat").unwrap(); // says back what it is told
    let error = start(&cat, short, &|| false).err().unwrap().to_string();
    assert!(error.starts_with("the MCP server cat "), "{error}");
}

#[test]
fn servers_at_an_address_answer_whole_or_by_events() {
    for how in ["good", "events"] {
        let remote = Remote::start(how);
        let mut tools = remote.tools();
        assert_eq!(tools.len(), 9, "{how}");
        for (name, outcome) in [
            ("echo", Outcome::done("echo fish")),
            ("fail", Outcome::failed("it failed")),
            ("structured", Outcome::done("{\"n\":1}")),
        ] {
            assert_eq!(call(&mut tools, name), outcome, "{how}: {name}");
        }
        let begin = Instant::now();
        let stopped = tools.get_mut("hang").unwrap().call(&json!({"x": ""}), &|| true);
        assert_eq!(stopped, Outcome::failed("stopped by the user"));
        assert_eq!(call(&mut tools, "echo"), Outcome::done("echo fish"), "{how}, beside one that hangs");
        drop(tools);
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    }
}

#[test]
fn an_address_that_does_not_answer_as_it_should_is_named_with_the_reason() {
    for (how, reason) in [
        ("moved", "redirects are not followed"),
        ("page", "text/html"),
        ("down", "503"),
        ("locked", "it wants a key, which `headers` in --mcp-config may hold"),
        ("refuse", "no list today"),
    ] {
        let refusal = Remote::start(how).refusal();
        assert!(refusal.starts_with("the MCP server 127.0.0.1 ") && refusal.contains(reason), "{how}: {refusal}");
    }
    let gone = Remote::start("good").url.clone();
    let refusal = start(&ServerSpec::of_command(&gone).unwrap(), TIMEOUTS, &|| false).err().unwrap().to_string();
    assert!(refusal.contains("refused"), "{refusal}");
}

#[test]
fn an_address_with_a_key_is_told_it_and_one_that_goes_is_missed() {
    let remote = Remote::start("locked");
    let file = tempfile::NamedTempFile::new().unwrap();
    let servers = json!({"mcpServers": {"vault": {"url": remote.url, "headers": {"X-Key": "secret"}}}});
    std::fs::write(file.path(), servers.to_string()).unwrap();
    let spec = ServerSpec::of_file(file.path()).unwrap().remove(0);
    let mut tools = by_name(start(&spec, TIMEOUTS, &|| false).unwrap());
    assert_eq!(call(&mut tools, "echo"), Outcome::done("echo fish"));
    assert!(!format!("{spec:?}").contains("secret"), "{spec:?}");
    for name in ["die", "echo"] {
        let Outcome { text, worked } = call(&mut tools, name);
        assert!(!worked && text.starts_with("the MCP server vault "), "{text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_is_left_of_a_server_that_is_no_longer_wanted() {
    let line = "sh -c 'sleep 617 & exec python3 \"$0\" good' ".to_owned();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/server.py");
    let server = start(&ServerSpec::of_command(&format!("{line}'{script}'")).unwrap(), TIMEOUTS, &|| false).unwrap();
    let sleeps = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        lines.filter(|line| line.starts_with(b"sleep\x00617\0")).count()
    };
    assert_eq!(sleeps(), 1);
    drop(server);
    let deadline = Instant::now() + Duration::from_secs(10);
    while sleeps() > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(sleeps(), 0);
}
