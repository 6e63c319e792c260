//! Coding agents: their conversations, recorded from the programs themselves while they did a task, are held again. The
//! model says what a script has for each step, in its own form of calls, and all else is the server's.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use wels_data::Tokenizer;
use wels_data::tokenizer::{BpeTrainer, SpecialTokens};
use wels_engine::{
    Constraint, Engine, Event, LoadedModel, Options, Prepared, Request, RequestError, RequestId, Status,
};
use wels_model::model::Model;
use wels_model::params::Params;
use wels_server::worker::{Backend, Prepare};

use crate::lab::{Lab, Response, Setup, tiny};

const QWEN: &str = include_str!("../../../../scripts/oracle/templates/qwen2.5-7b-instruct.jinja");
const CONTEXT: usize = 65536;
const VOCABULARY: usize = 2000;

/// What is known of an agent's conversation.
#[derive(Clone, Deserialize)]
struct Recording {
    /// What the model says to requests without tools, such as those for a title. None for agents that use no tools.
    aside: Option<String>,
    steps: Vec<Step>,
    requests: Vec<Recorded>,
}

/// What the model says next.
#[derive(Clone, Deserialize)]
struct Step {
    /// Stands in every prompt behind this step, and in none before it.
    mark: String,
    says: String,
}

/// One request of the agent's.
#[derive(Clone, Deserialize)]
struct Recorded {
    path: String,
    body: Value,
}

impl Recording {
    fn of(agent: &str) -> Recording {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/agents/{agent}.json"));
        serde_json::from_str(&fs::read_to_string(path).unwrap().replace("{folder}", "/task")).unwrap()
    }

    /// What the model says to a prompt.
    fn says(&self, prompt: &str) -> String {
        if let Some(aside) = self.aside.as_ref().filter(|_| !prompt.contains("<tools>")) {
            return aside.clone();
        }
        let next = self.steps.iter().find(|step| !prompt.contains(&step.mark));
        next.map_or_else(|| "There is nothing left to do.".to_owned(), |step| step.says.clone())
    }
}

/// An engine whose answers are held to a script.
struct Scripted {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    recording: Arc<Recording>,
}

impl Backend for Scripted {
    fn preparer(&self) -> Prepare {
        let (preparer, tokenizer) = (self.engine.preparer(), Arc::clone(&self.tokenizer));
        let recording = Arc::clone(&self.recording);
        Arc::new(move |request: Request| {
            let says = recording.says(&tokenizer.decode(&request.prompt).unwrap());
            let constraint = Some(Constraint::Lark(format!("start: {}", Value::from(says))));
            preparer.prepare(Request { constraint, constraint_may_fail: false, thinking: None, ..request })
        })
    }

    fn enqueue(&mut self, prepared: Prepared) -> Result<RequestId, RequestError> {
        // Requests that ask for no form come by without having been prepared.
        let request = self.preparer()(prepared.request().clone())?;
        self.engine.enqueue_prepared(request)
    }

    fn cancel(&mut self, id: RequestId) -> bool {
        self.engine.cancel(id)
    }

    fn step(&mut self) -> Vec<Event> {
        self.engine.step()
    }

    fn is_idle(&self) -> bool {
        self.engine.is_idle()
    }

    fn status(&self) -> Status {
        self.engine.status()
    }
}

/// A server with a model that says what a recording has.
fn start(recording: Recording) -> Lab {
    let mut trainer = BpeTrainer::new(VOCABULARY, SpecialTokens::default()).unwrap();
    trainer.feed(&[QWEN, include_str!("../../../../docs/serving.md"), include_str!("../../../../docs/guide.md")]);
    let tokenizer = Arc::new(trainer.train().unwrap());
    let mut config = tiny().model.config().clone();
    config.vocab_size = tokenizer.vocab_size();
    config.rope.max_positions = CONTEXT;
    let model = LoadedModel {
        model: Arc::new(Model::new(config.clone(), CONTEXT)),
        params: Arc::new(Params::init(&wels_cpu::testing::device(), &config, 3)),
        tokenizer: Some(Arc::clone(&tokenizer)),
        janus: None,
    };
    let options = Options { cache_bytes: 64 << 20, max_batch_tokens: 512, ..Options::default() };
    let engine = Engine::new(model, options).unwrap();
    let backend = Scripted { engine, tokenizer: Arc::clone(&tokenizer), recording: Arc::new(recording) };
    Setup { template: QWEN, context: CONTEXT, ..Setup::default() }.start_with(backend, tokenizer)
}

/// What a reply says: its text, and the calls of its tools with their arguments.
#[derive(Debug, Default, PartialEq)]
struct Said {
    text: String,
    calls: Vec<(String, Value)>,
}

/// A reply's tokens of prompt: all, and those that were in the prefix cache.
#[derive(Clone, Copy)]
struct Prompt {
    tokens: u64,
    cached: u64,
}

/// Reads a stream as a client of its API does.
fn read(path: &str, response: &Response) -> (Said, Option<Prompt>) {
    assert_eq!(response.status, 200, "{path}: {}", response.body);
    let data = response.body.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = data.filter_map(|data| serde_json::from_str(data).ok()).collect();
    match path.split('?').next().unwrap() {
        "/v1/responses" => read_responses(&events),
        "/v1/messages" => read_messages(&events),
        "/v1/chat/completions" if events.is_empty() => read_chat(&[response.json()], "message"),
        "/v1/chat/completions" => read_chat(&events, "delta"),
        _ => panic!("{path}"),
    }
}

fn parsed(arguments: &str) -> Value {
    serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {arguments}"))
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// `part`: where a choice has what it says.
fn read_chat(events: &[Value], part: &str) -> (Said, Option<Prompt>) {
    let (mut said, mut calls) = (Said::default(), Vec::<(String, String)>::new());
    for delta in events.iter().map(|event| &event["choices"][0][part]) {
        said.text += delta["content"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let (at, function) = (count(&call["index"]) as usize, &call["function"]);
            calls.resize(calls.len().max(at + 1), Default::default());
            calls[at].0 += function["name"].as_str().unwrap_or_default();
            calls[at].1 += function["arguments"].as_str().unwrap_or_default();
        }
    }
    said.calls = calls.into_iter().map(|(name, arguments)| (name, parsed(&arguments))).collect();
    // Streams have it where they are asked for it.
    let usage = events.last().and_then(|event| event["usage"].as_object());
    let cached = |usage: &Map<String, Value>| count(&usage["prompt_tokens_details"]["cached_tokens"]);
    (said, usage.map(|usage| Prompt { tokens: count(&usage["prompt_tokens"]), cached: cached(usage) }))
}

fn read_responses(events: &[Value]) -> (Said, Option<Prompt>) {
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!((kinds.first(), kinds.last()), (Some(&"response.created"), Some(&"response.completed")), "{kinds:?}");
    let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    let text = deltas.map(|event| event["delta"].as_str().unwrap()).collect();
    let response = &events.last().unwrap()["response"];
    let items = response["output"].as_array().unwrap().iter().filter(|item| item["type"] == "function_call");
    let call = |item: &Value| (item["name"].as_str().unwrap().to_owned(), parsed(item["arguments"].as_str().unwrap()));
    let usage = &response["usage"];
    let cached = count(&usage["input_tokens_details"]["cached_tokens"]);
    (Said { text, calls: items.map(call).collect() }, Some(Prompt { tokens: count(&usage["input_tokens"]), cached }))
}

fn read_messages(events: &[Value]) -> (Said, Option<Prompt>) {
    let (mut said, mut arguments) = (Said::default(), String::new());
    for event in events {
        match event["type"].as_str().unwrap() {
            "content_block_start" if event["content_block"]["type"] == "tool_use" => {
                arguments.clear();
                said.calls.push((event["content_block"]["name"].as_str().unwrap().to_owned(), Value::Null));
            }
            "content_block_delta" if event["delta"]["type"] == "text_delta" => {
                said.text += event["delta"]["text"].as_str().unwrap();
            }
            "content_block_delta" => arguments += event["delta"]["partial_json"].as_str().unwrap(),
            "content_block_stop" if !arguments.is_empty() => {
                said.calls.last_mut().unwrap().1 = parsed(&std::mem::take(&mut arguments));
            }
            _ => {}
        }
    }
    let usage = &events.iter().rev().find(|event| event["type"] == "message_delta").unwrap()["usage"];
    let cached = count(&usage["cache_read_input_tokens"]);
    (said, Some(Prompt { tokens: count(&usage["input_tokens"]) + cached, cached }))
}

/// What a step of a script is in any API.
fn expected(says: &str) -> Said {
    let (text, call) = says.split_once("<tool_call>").unwrap_or((says, ""));
    let call = call.trim_end().strip_suffix("</tool_call>").map(|call| parsed(call.trim()));
    let pair = |call: Value| (call["name"].as_str().unwrap().to_owned(), call["arguments"].clone());
    Said { text: text.trim_end().to_owned(), calls: call.map(pair).into_iter().collect() }
}

/// Holds a recorded conversation; how many of its requests were asides.
fn hold_again(agent: &str) -> usize {
    let recording = Recording::of(agent);
    let lab = start(recording.clone());
    let mut steps = recording.steps.iter();
    let (mut tools, mut before, mut asides) = (Value::Null, None::<Prompt>, 0);
    for request in &recording.requests {
        let mut body = request.body.clone();
        body["model"] = "tiny".into();
        if body["tools"] == "as before" {
            body["tools"] = tools.clone();
        }
        tools = body["tools"].clone();
        let (said, prompt) = read(&request.path, &lab.post(&request.path, &body));
        if recording.aside.is_some() && tools.as_array().is_none_or(Vec::is_empty) {
            assert_eq!(Some(&said.text), recording.aside.as_ref(), "{agent}");
            asides += 1;
            continue;
        }
        let step = steps.next().unwrap_or_else(|| panic!("{agent}: more requests than steps"));
        let said = Said { text: said.text.trim_end().to_owned(), ..said };
        assert_eq!(said, expected(&step.says), "{agent}");
        // All of the prompt before is a beginning of this one, in conversations with tools.
        if let Some((before, prompt)) = before.zip(prompt).filter(|_| tools.is_array()) {
            assert!(prompt.cached * 100 >= before.tokens * 95, "{agent}: {} of {}", prompt.cached, before.tokens);
        }
        before = prompt;
    }
    assert!(steps.next().is_none(), "{agent}: the conversation ended early");
    asides
}

#[test]
fn codex_does_its_task_again() {
    hold_again("codex");
}

#[test]
fn claude_code_does_its_task_again() {
    hold_again("claude");
}

#[test]
fn opencode_does_its_task_again() {
    assert_eq!(hold_again("opencode"), 1, "it asks for a title");
}

#[test]
fn aider_does_its_task_again() {
    hold_again("aider");
}

#[test]
fn cline_does_its_task_again() {
    hold_again("cline");
}

#[test]
fn pi_does_its_task_again() {
    hold_again("pi");
}

#[test]
fn continue_does_its_task_again() {
    hold_again("continue");
}

/// Serves a script to an agent, whose requests `scripts/clients/agents.py` records: not a test.
#[test]
#[ignore = "serves until it is stopped: see scripts/clients/agents.py"]
fn serve_a_script() {
    let script = std::env::var("WELS_SCRIPT").expect("the path of a script");
    let folder = std::env::var("WELS_FOLDER").expect("the folder of the task");
    let text = fs::read_to_string(script).unwrap().replace("{folder}", &folder);
    let mut script: Value = serde_json::from_str(&text).unwrap();
    script["requests"] = Value::Array(Vec::new());
    let lab = start(serde_json::from_value(script).unwrap());
    println!("{} {}", lab.address, lab.key);
    std::thread::sleep(std::time::Duration::from_secs(600));
}
