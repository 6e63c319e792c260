//! Servers of the Model Context Protocol, good ones and others. They are Python; without `python3` these tests fail.

use std::collections::HashMap;
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
