//! The loop with a model that follows a script: what is called, asked for, told, and when it ends.

use std::cell::Cell;

use serde_json::{Value, json};
use wels_agent::{
    Agent, Call, Context, Definition, Effect, End, Event, Host, Limits, Model, ModelError, Outcome, Permission, Reply,
    ReplyEnd, Stop, Tool, Toolbox,
};
use wels_data::Message;

/// Gives its answers one after another, and writes down what it was given.
#[derive(Default)]
struct Script {
    answers: Vec<Reply>,
    given: Vec<(Vec<Message>, bool, Option<usize>)>,
    /// Bytes of all messages that it takes.
    bytes_max: Option<usize>,
}

fn says(text: &str) -> Reply {
    let content = text.to_owned();
    Reply { reasoning: String::new(), content, calls: Vec::new(), end: ReplyEnd::Stop, tokens: 10 }
}

fn calls(calls: &[(&str, Value)]) -> Reply {
    let call = |(name, arguments): &(&str, Value)| Call { name: name.to_string(), arguments: arguments.to_string() };
    Reply { calls: calls.iter().map(call).collect(), reasoning: "hm".to_owned(), ..says("") }
}

impl Model for Script {
    type Error = String;

    fn answer(&mut self, context: &Context, host: &mut dyn Host) -> Result<Reply, ModelError<String>> {
        let bytes: usize = context.messages.iter().map(|message| message.content.to_string().len()).sum();
        if self.bytes_max.is_some_and(|most| bytes > most) {
            return Err(ModelError::Full { context: self.bytes_max.unwrap() });
        }
        self.given.push((context.messages.to_vec(), context.must_call, context.tokens_max));
        if self.answers.is_empty() {
            return Err(ModelError::Other("the script has ended".to_owned()));
        }
        let reply = self.answers.remove(0);
        host.show(Event::Content(&reply.content));
        Ok(reply)
    }
}

/// Answers what it is asked with `answers`, and writes down what it is shown.
struct Person {
    answers: Vec<Permission>,
    asked: Vec<String>,
    shown: Vec<String>,
    /// Looks at `is_stopped` after which the user wants no more.
    patience: std::sync::atomic::AtomicUsize,
}

fn person(answers: &[Permission]) -> Person {
    Person { answers: answers.to_vec(), asked: Vec::new(), shown: Vec::new(), patience: usize::MAX.into() }
}

impl Host for Person {
    fn show(&mut self, event: Event) {
        self.shown.push(match event {
            Event::Called { name, outcome } => format!("{name}: {} {}", outcome.worked, outcome.text),
            Event::Calling { name, preview, .. } => format!("{name}? {preview}"),
            Event::Shortened(count) => format!("shortened {count}"),
            _ => return,
        });
    }

    fn permit(&mut self, name: &str) -> Permission {
        self.asked.push(name.to_owned());
        self.answers.remove(0)
    }

    fn is_stopped(&self) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        self.patience.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(1))).unwrap() == 0
    }
}

/// Says what it was given.
struct Echo(&'static str, Effect, Cell<usize>);

impl Tool for Echo {
    fn definition(&self) -> Definition {
        Definition { name: self.0.to_owned(), description: String::new(), parameters: json!({"type": "object"}) }
    }

    fn effect(&self) -> Effect {
        self.1
    }

    fn call(&mut self, arguments: &Value, _stop: Stop) -> Outcome {
        self.2.set(self.2.get() + 1);
        let text = arguments["x"].as_str().map_or_else(|| arguments.to_string(), str::to_owned);
        Outcome::done(format!("{} of {text}", self.2.get()))
    }
}

fn agent(allowed: &[&str]) -> Agent {
    let mut tools = Toolbox::default();
    let echo = |name, effect| Box::new(Echo(name, effect, Cell::new(0))) as Box<dyn Tool>;
    tools.add("test", vec![echo("look", Effect::Reads), echo("act", Effect::Acts)]);
    Agent::new(tools, &allowed.iter().map(|name| name.to_string()).collect::<Vec<_>>()).unwrap()
}

const LIMITS: Limits = Limits { turns: 8, tokens: None };

fn run(agent: &mut Agent, script: &mut Script, person: &mut Person, limits: Limits) -> (End, Vec<Message>) {
    let mut messages = vec![Message::new("user", "do it")];
    let end = agent.run(script, &mut messages, false, limits, person).unwrap();
    (end, messages)
}

fn results(messages: &[Message]) -> Vec<&str> {
    messages.iter().filter(|message| message.role == "tool").map(|message| message.content.as_str().unwrap()).collect()
}

#[test]
fn calls_are_made_in_order_until_an_answer_makes_none() {
    let once = || {
        let two = calls(&[("look", json!({"x": "a"})), ("act", json!({"x": "b"}))]);
        let mut script =
            Script { answers: vec![two, calls(&[("look", json!({}))]), says("done")], ..Script::default() };
        let mut person = person(&[Permission::Once]);
        let (end, messages) = run(&mut agent(&[]), &mut script, &mut person, LIMITS);
        assert_eq!((end, person.asked), (End::Answered, vec!["act".to_owned()]), "what reads is not asked for");
        assert_eq!(results(&messages), ["1 of a", "1 of b", "2 of {}"]);
        assert_eq!(messages.last().unwrap().content, "done");
        assert_eq!(messages[1].other["tool_calls"][1]["id"], messages[3].other["tool_call_id"]);
        assert_eq!(messages[1].other["reasoning_content"], "hm");
        assert_eq!(script.given.len(), 3);
        assert_eq!(script.given[1].0[..], messages[..4], "each answer is given all that was said and done before it");
        messages
    };
    assert_eq!(once(), once(), "the same answers and results give the same messages");
}

#[test]
fn always_is_for_one_tool_and_a_refusal_is_told_to_the_model() {
    let act = || calls(&[("act", json!({}))]);
    let mut script = Script { answers: vec![act(), act(), act(), says("")], ..Script::default() };
    let mut asked = person(&[Permission::Refused("the user said no".to_owned()), Permission::Always]);
    let (end, messages) = run(&mut agent(&[]), &mut script, &mut asked, LIMITS);
    assert_eq!((end, asked.asked.len()), (End::Answered, 2));
    assert_eq!(results(&messages), ["the user said no", "1 of {}", "2 of {}"]);
    for allowed in ["act", "all"] {
        let mut script = Script { answers: vec![act(), says("")], ..Script::default() };
        let mut nobody = person(&[]);
        assert_eq!(run(&mut agent(&[allowed]), &mut script, &mut nobody, LIMITS).0, End::Answered);
    }
    assert_eq!(Agent::new(Toolbox::default(), &["other".to_owned()]).err(), Some("other".to_owned()));
}

#[test]
fn who_quits_leaves_a_result_for_every_call() {
    let two = calls(&[("act", json!({})), ("look", json!({}))]);
    let mut script = Script { answers: vec![two.clone()], ..Script::default() };
    let (end, messages) = run(&mut agent(&[]), &mut script, &mut person(&[Permission::Quit]), LIMITS);
    assert_eq!(end, End::Stopped);
    assert_eq!(results(&messages), ["not called: the user stopped here"; 2]);

    let mut script = Script { answers: vec![two], ..Script::default() };
    let mut impatient = person(&[Permission::Once]);
    impatient.patience = 0.into();
    let (end, messages) = run(&mut agent(&[]), &mut script, &mut impatient, LIMITS);
    assert_eq!((end, results(&messages)[1]), (End::Stopped, "not called: the user stopped here"));
}

#[test]
fn turns_and_tokens_end_it() {
    let look = || calls(&[("look", json!({}))]);
    let mut script = Script { answers: (0..9).map(|_| look()).collect(), ..Script::default() };
    assert_eq!(run(&mut agent(&[]), &mut script, &mut person(&[]), LIMITS).0, End::Turns);
    assert_eq!(script.given.len(), 8);

    let limits = Limits { tokens: Some(25), ..LIMITS };
    let mut script = Script { answers: (0..9).map(|_| look()).collect(), ..Script::default() };
    assert_eq!(run(&mut agent(&[]), &mut script, &mut person(&[]), limits).0, End::Tokens);
    let left: Vec<Option<usize>> = script.given.iter().map(|given| given.2).collect();
    assert_eq!(left, [Some(25), Some(15), Some(5)], "each answer may have what is left");

    let cut =
        |tokens| Script { answers: vec![Reply { end: ReplyEnd::Length, tokens, ..says("so") }], ..Script::default() };
    assert_eq!(run(&mut agent(&[]), &mut cut(10), &mut person(&[]), limits).0, End::Cut);
    assert_eq!(run(&mut agent(&[]), &mut cut(25), &mut person(&[]), limits).0, End::Tokens);
}

#[test]
fn the_first_answer_alone_may_have_to_call() {
    let mut script = Script { answers: vec![calls(&[("look", json!({}))]), says("")], ..Script::default() };
    let mut messages = vec![Message::new("user", "do it")];
    agent(&[]).run(&mut script, &mut messages, true, LIMITS, &mut person(&[])).unwrap();
    assert_eq!(script.given.iter().map(|given| given.1).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_full_context_loses_old_results_first_and_then_says_so() {
    let long = |letter: &str| calls(&[("look", json!({"x": letter.repeat(3000)}))]);
    let mut script =
        Script { answers: vec![long("a"), long("b"), says("ok")], bytes_max: Some(4000), ..Script::default() };
    let mut shown = person(&[]);
    let (end, messages) = run(&mut agent(&[]), &mut script, &mut shown, LIMITS);
    assert_eq!(end, End::Answered);
    assert!(shown.shown.contains(&"shortened 1".to_owned()), "{:?}", shown.shown);
    let results = results(&messages);
    assert!(results[0].len() < 400 && results[0].contains("bytes left out"), "{}", results[0]);
    assert!(results[1].len() > 3000, "the newest result is whole");

    let mut script = Script { answers: vec![says("")], bytes_max: Some(100), ..Script::default() };
    let mut messages = vec![Message::new("user", &"x".repeat(200))];
    let full = agent(&[]).run(&mut script, &mut messages, false, LIMITS, &mut person(&[])).unwrap_err();
    assert!(matches!(full, ModelError::Full { context: 100 }), "{full}");
}

#[test]
fn what_is_no_call_is_told_to_the_model() {
    let broken = Reply { calls: vec![Call { name: "look".into(), arguments: "[1".into() }], ..says("") };
    let mut script = Script { answers: vec![broken, calls(&[("none", json!({}))]), says("")], ..Script::default() };
    let (_, messages) = run(&mut agent(&[]), &mut script, &mut person(&[]), LIMITS);
    assert_eq!(results(&messages), ["the arguments are no JSON object", "there is no tool none"]);
    let many = calls(&(0..40).map(|_| ("look", json!({}))).collect::<Vec<_>>());
    let mut script = Script { answers: vec![many, says("")], ..Script::default() };
    let (_, messages) = run(&mut agent(&[]), &mut script, &mut person(&[]), LIMITS);
    assert_eq!(results(&messages)[31..33], ["32 of {}", "not called: one answer may call 32 tools"]);
}
