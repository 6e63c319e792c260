//! `wels chat` with tools: a model of random weights is held to call a tool whose schema allows one call alone; all
//! else it says is noise.

use std::fs;

use serde_json::Value;

use crate::lab::{Lab, Said};
use crate::serve::write_model_of_context;

/// A lab with the model `m`, and an MCP server with the tool `echo` that takes `{"x": "fish"}` alone.
fn lab() -> Lab {
    let lab = Lab::new();
    write_model_of_context(&lab.at("m"), 8192);
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/tests/server.py");
    fs::copy(server, lab.at("server.py")).unwrap();
    lab
}

const ECHO: &str = "python3 server.py const";

fn task(lab: &Lab, options: &[&str]) -> Said {
    let args = ["chat", "m", "--agent", "catch a fish", "--temperature", "1", "--must-call"];
    lab.wels(&[&args, options].concat())
}

fn events(said: &Said) -> Vec<Value> {
    said.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{said:?}"))).collect()
}

fn of<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == kind).collect()
}

#[test]
fn a_task_ends_by_its_limits_with_a_code_that_says_which() {
    let lab = lab();
    let turns = task(&lab, &["--mcp", ECHO, "--allow", "echo", "--max-turns", "1", "--json"]);
    assert_eq!(turns.code, Some(3), "{turns:?}");
    let seen = events(&turns);
    assert_eq!(of(&seen, "call")[0]["arguments"], serde_json::json!({"x": "fish"}));
    assert_eq!(of(&seen, "result")[0]["text"], "echo fish");
    assert_eq!(of(&seen, "call").len(), of(&seen, "result").len());
    assert_eq!(seen.last().unwrap()["reason"], "turns");
    assert!(turns.stderr.contains("note: --max-turns 1 are used up, and the task is not done"), "{turns:?}");
    let again = task(&lab, &["--mcp", ECHO, "--allow", "all", "--max-turns", "1", "--json"]);
    assert_eq!(again.stdout, turns.stdout, "the same seed, tools and task give the same transcript");

    // Five tokens for the answer after the calls.
    let most = (of(&seen, "answer")[0]["tokens"].as_u64().unwrap() + 5).to_string();
    let tokens = task(&lab, &["--mcp", ECHO, "--allow", "echo", "--max-tokens", &most]);
    assert_eq!(tokens.code, Some(4), "{tokens:?}");
    assert!(tokens.stderr.contains("calls echo x: fish\n  echo fish\n"), "{tokens:?}");
    assert!(tokens.stderr.contains("note: the tokens of --max-tokens are used up"), "{tokens:?}");
}

#[test]
fn a_task_that_is_answered_ends_well() {
    let lab = lab();
    let answered = (0..20).map(|seed| {
        let seed = seed.to_string();
        task(&lab, &["--mcp", ECHO, "--allow", "echo", "--max-tokens", "3000", "--seed", &seed, "--json"])
    });
    let said = answered.into_iter().find(|said| said.code == Some(0)).expect("a random model ends within 3000 tokens");
    let seen = events(&said);
    let end = seen.last().unwrap();
    assert_eq!((&end["event"], &end["reason"]), (&"end".into(), &"answered".into()));
    let answers = of(&seen, "answer");
    assert_eq!(end["answer"], answers.last().unwrap()["content"]);
    assert_eq!(end["tokens"].as_u64(), answers.iter().map(|answer| answer["tokens"].as_u64()).sum());
}

#[test]
fn what_nobody_allowed_is_refused_and_the_model_told() {
    let lab = lab();
    let said = task(&lab, &["--mcp", ECHO, "--max-turns", "1", "--json"]);
    let seen = events(&said);
    let result = of(&seen, "result")[0];
    assert_eq!(result["worked"], false);
    assert!(result["text"].as_str().unwrap().starts_with("refused: nobody is here to allow it, and echo "), "{result}");
}

#[test]
fn servers_and_tools_that_cannot_be_had_are_named_and_the_chat_goes_on() {
    let lab = lab();
    fs::write(
        lab.at("servers.json"),
        r#"{"mcpServers": {"bad": {"command": "python3", "args": ["server.py", "exit"]},
        "good": {"command": "python3", "args": ["server.py", "junk"]}}}"#,
    )
    .unwrap();
    let line =
        "printf 'a fish' | NO_COLOR=1 WELS chat m --max-tokens 8 --mcp-config servers.json --mcp no-such-program";
    let said = lab.shell(line);
    assert_eq!(said.code, Some(0), "{said:?}");
    for named in [
        "note: the MCP server bad does not speak MCP: ",
        "it wrote: no configuration",
        "note: the MCP server no-such-program cannot be started",
        "note: a tool of good is left out: huge: its schema has",
        "[8 tokens, ",
    ] {
        assert!(said.stderr.contains(named), "{named}: {said:?}");
    }
    for (options, failure) in [
        (&["--allow", "fly"][..], "error: there is no tool fly to allow\n"),
        (&["--files", "nowhere"], "error: cannot open the folder nowhere: "),
        (&["--mcp-config", "none.json"], "error: cannot read none.json: "),
        (&["--mcp", "a 'b"], "error: `a 'b` is no command: a quotation mark is open\n"),
    ] {
        let said = task(&lab, options);
        assert!(said.code == Some(1) && said.failure().starts_with(failure), "{said:?}");
    }
}

/// What was said and answered before is not computed again, though the model's own text would be encoded otherwise.
#[test]
fn a_conversation_keeps_its_cache() {
    let lab = lab();
    let said = lab.shell(
        "printf 'the name of a fish\\nand of another\\nand one more\\n' | NO_COLOR=1 WELS chat m --lines --temperature 1 \
         --max-tokens 100",
    );
    assert_eq!(said.code, Some(0), "{said:?}");
    // [100 tokens, …; first after …, CACHED of PROMPT before it from the cache…
    let figures = |line: &str| -> Option<[usize; 3]> {
        let generated = line.strip_prefix('[')?.split(' ').next()?.parse().ok()?;
        let words: Vec<&str> = line.split(' ').collect();
        let of = words.iter().position(|word| *word == "of")?;
        Some([words[of - 1].parse().ok()?, words[of + 1].parse().ok()?, generated])
    };
    let turns: Vec<[usize; 3]> = said.stderr.lines().filter_map(figures).collect();
    assert_eq!(turns.len(), 3, "{said:?}");
    for pair in turns.windows(2) {
        let ([_, prompt, generated], [cached, _, _]) = (pair[0], pair[1]);
        // A page that is not full is not kept.
        assert!(cached + 32 > prompt + generated, "{turns:?}");
    }
}
