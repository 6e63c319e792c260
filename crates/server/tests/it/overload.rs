//! More than can be done; engines that stand still; the end of the server.

use std::io::Read;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use wels_engine::{
    Engine, Event, FinishReason, Finished, Options, Prepared, Request, RequestError, RequestId, Status, Usage,
};
use wels_server::http::Settings;
use wels_server::ledger::Limits;
use wels_server::worker::{Backend, Prepare};

use crate::lab::{Response, Setup, chat_body, tiny};

/// An engine that waits where a test wants it to.
struct Gated {
    engine: Engine,
    gate: Arc<Mutex<()>>,
    constraint_gate: Arc<Mutex<()>>,
    /// Of all requests that it was given.
    owners: Arc<Mutex<Vec<u64>>>,
}

impl Backend for Gated {
    fn preparer(&self) -> Prepare {
        let (preparer, gate) = (self.engine.preparer(), Arc::clone(&self.constraint_gate));
        Arc::new(move |request: Request| {
            drop(gate.lock());
            preparer.prepare(request)
        })
    }

    fn enqueue(&mut self, prepared: Prepared) -> Result<RequestId, RequestError> {
        self.owners.lock().unwrap().push(prepared.request().owner);
        self.engine.enqueue_prepared(prepared)
    }

    fn cancel(&mut self, id: RequestId) -> bool {
        self.engine.cancel(id)
    }

    fn step(&mut self) -> Vec<Event> {
        drop(self.gate.lock());
        self.engine.step()
    }

    fn is_idle(&self) -> bool {
        self.engine.is_idle()
    }

    fn status(&self) -> Status {
        self.engine.status()
    }
}

/// The gates: of the engine's steps, of compiling constraints.
fn gated(setup: Setup) -> (crate::lab::Lab, [Arc<Mutex<()>>; 2]) {
    let loaded = tiny();
    let [gate, constraint_gate] = [(); 2].map(|()| Arc::new(Mutex::new(())));
    let engine = Engine::new(loaded.clone(), setup.options.clone()).unwrap();
    let (owners, constraint) = (Arc::default(), Arc::clone(&constraint_gate));
    let backend = Gated { engine, gate: Arc::clone(&gate), constraint_gate: constraint, owners };
    (setup.start_with(backend, loaded.tokenizer.unwrap()), [gate, constraint_gate])
}

/// Owners share the engine's places; see the engine's own tests.
#[test]
fn a_key_is_the_owner_of_its_requests_with_and_without_constraints() {
    let (loaded, owners) = (tiny(), Arc::<Mutex<Vec<u64>>>::default());
    let engine = Engine::new(loaded.clone(), Options { cache_bytes: 4 << 20, ..Options::default() }).unwrap();
    let backend = Gated { engine, gate: Arc::default(), constraint_gate: Arc::default(), owners: Arc::clone(&owners) };
    let lab = Setup::default().start_with(backend, loaded.tokenizer.unwrap());
    let other = lab.ledger().add_key("other", &Limits::default(), 0).unwrap();
    let plain = chat_body(json!({"max_tokens": 2, "n": 2})).to_string();
    let constrained = chat_body(json!({"max_tokens": 2, "response_format": {"type": "json_object"}})).to_string();
    for (key, body) in [(&*lab.key, &plain), (other.reveal(), &plain), (&lab.key, &constrained)] {
        assert_eq!(lab.request("POST", "/v1/chat/completions", key, body.as_bytes()).status, 200);
    }
    let owners = owners.lock().unwrap().clone();
    assert!(owners[0] != owners[2], "{owners:?}");
    assert_eq!(owners, [0, 0, 2, 2, 0].map(|at| owners[at]));
}

#[test]
fn every_request_is_finished_or_refused_with_a_time_and_none_is_billed_twice() {
    let options = Options { max_running: 2, max_waiting: 4, cache_bytes: 4 << 20, ..Options::default() };
    let lab = Arc::new(Setup { options, ..Setup::default() }.start());
    let clients: Vec<_> = (0..40u64)
        .map(|client| {
            let lab = Arc::clone(&lab);
            thread::spawn(move || {
                let stream = client % 2 == 0;
                lab.chat(json!({"max_tokens": 40, "seed": client, "stream": stream}))
            })
        })
        .collect();
    let responses: Vec<Response> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let (done, refused): (Vec<_>, Vec<_>) = responses.iter().partition(|response| response.status == 200);
    assert_eq!(done.len() + refused.len(), 40);
    assert!(!done.is_empty() && !refused.is_empty(), "{} done, {} refused", done.len(), refused.len());
    for response in refused {
        assert_eq!(response.status, 503, "{response:?}");
        assert!(response.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    }
    let mut sent: Vec<u64> = done
        .iter()
        .map(|response| match response.head.contains("event-stream") {
            true => response.events().last().unwrap()["usage"]["completion_tokens"].as_u64().unwrap(),
            false => response.json()["usage"]["completion_tokens"].as_u64().unwrap(),
        })
        .collect();
    let settled = lab.settled();
    let charged = settled.iter().filter(|entry| entry.outcome.as_deref() == Some("done"));
    let mut charged: Vec<u64> = charged.map(|entry| entry.tokens.output).collect();
    sent.sort();
    charged.sort();
    assert_eq!(sent, charged);
    assert!(settled.iter().all(|entry| entry.outcome.as_deref() == Some("done") || entry.cost.0 == 0));
}

#[test]
fn an_engine_that_stands_still_shows() {
    let settings = Settings {
        stuck_after: Duration::from_millis(100),
        keep_alive: Duration::from_millis(50),
        ..Settings::default()
    };
    let options = Options { max_running: 1, cache_bytes: 4 << 20, ..Options::default() };
    let (lab, [gate, _]) = gated(Setup { settings, options, ..Setup::default() });
    let closed = gate.lock().unwrap();
    let body = chat_body(json!({"max_tokens": 4, "stream": true})).to_string();
    let first = lab.send("POST", "/v1/chat/completions", &lab.key, body.as_bytes());
    thread::sleep(Duration::from_millis(400));
    let health = lab.get("/health");
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("the engine does not move")));
    drop(closed);
    let first = Response::read(first);
    assert!(first.body.starts_with(": "), "signs of life while it waited: {}", first.body);
    assert_eq!(first.events().last().unwrap()["usage"]["completion_tokens"], 4);
    assert_eq!(lab.get("/health").status, 200);
}

#[test]
fn a_reader_that_stays_away_is_given_up() {
    let settings = Settings { write_timeout: Duration::from_millis(200), ..Settings::default() };
    let lab = Setup { settings, ..Setup::default() }.start();
    // Much more than the sockets' buffers hold: log-probabilities of 20 tokens with each of 16 · 256.
    let body = chat_body(json!({"max_tokens": 256, "n": 16, "stream": true, "logprobs": true, "top_logprobs": 20}));
    let mut stream = lab.send("POST", "/v1/chat/completions", &lab.key, body.to_string().as_bytes());
    let entries = lab.settled();
    let outcome = entries[0].outcome.as_deref();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    // Where buffers are large enough to take it all, there was nothing to give up.
    assert!(outcome == Some("slow_reader") || rest.ends_with(b"0\r\n\r\n"), "{outcome:?}, {} bytes", rest.len());
}

#[test]
fn the_end_waits_for_requests_under_way_and_takes_no_new_ones() {
    let (mut lab, [gate, _]) = gated(Setup::default());
    let closed = gate.lock().unwrap();
    let body = chat_body(json!({"max_tokens": 8, "stream": true})).to_string();
    let stream = lab.send("POST", "/v1/chat/completions", &lab.key, body.as_bytes());
    let begin = Instant::now();
    while lab.ledger().entries().unwrap().is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(20), "the request does not begin");
        thread::sleep(Duration::from_millis(5));
    }
    lab.shutdown.ask();
    drop(closed);
    assert_eq!(Response::read(stream).events().last().unwrap()["usage"]["completion_tokens"], 8);
    lab.join();
    assert!(std::net::TcpStream::connect(lab.address).is_err());
    assert_eq!(lab.settled()[0].tokens.output, 8);
}

#[test]
fn a_schema_that_takes_long_holds_up_nobody_else() {
    let (lab, [_, compiling]) = gated(Setup::default());
    let closed = compiling.lock().unwrap();
    let body = chat_body(json!({"max_tokens": 40, "response_format": {"type": "json_object"}})).to_string();
    let constrained = lab.send("POST", "/v1/chat/completions", &lab.key, body.as_bytes());
    let begin = Instant::now();
    while lab.ledger().entries().unwrap().is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(20), "the request does not begin");
        thread::sleep(Duration::from_millis(5));
    }
    // Its constraint is being compiled, and others are answered from beginning to end.
    for seed in 0..3 {
        let answered = lab.chat(json!({"max_tokens": 12, "stream": true, "seed": seed}));
        assert!(answered.events().last().unwrap()["usage"]["completion_tokens"].as_u64() > Some(0), "{answered:?}");
    }
    let open = lab.ledger().entries().unwrap().into_iter().filter(|entry| entry.outcome.is_none()).count();
    assert!(open >= 1, "the constrained request was answered without its constraint");
    drop(closed);
    let answered = Response::read(constrained);
    assert_eq!(answered.status, 200, "{answered:?}");
    let text = answered.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text.starts_with('{'), "{text}");
    assert_eq!(lab.settled().len(), 4);
}

#[test]
fn calls_that_may_be_made_do_not_wait_in_a_line_that_is_full() {
    let (lab, [_, compiling]) = gated(Setup::default());
    let closed = compiling.lock().unwrap();
    let body = chat_body(json!({"max_tokens": 4, "response_format": {"type": "json_object"}})).to_string();
    let streams: Vec<_> =
        (0..14).map(|_| lab.send("POST", "/v1/chat/completions", &lab.key, body.as_bytes())).collect();
    let begin = Instant::now();
    while lab.ledger().entries().unwrap().iter().filter(|entry| entry.outcome.is_some()).count() < 5 {
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", lab.ledger().entries());
        thread::sleep(Duration::from_millis(10));
    }
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    assert_eq!(lab.chat(json!({"max_tokens": 4, "tools": tools})).status, 200, "it goes without its grammar");
    assert_eq!(lab.chat(json!({"max_tokens": 4, "tools": tools, "tool_choice": "required"})).status, 429);
    drop(closed);
    streams.into_iter().for_each(|stream| drop(Response::read(stream)));
}

#[test]
fn schemas_of_one_key_wait_in_a_line_that_ends() {
    let (lab, [_, compiling]) = gated(Setup::default());
    let closed = compiling.lock().unwrap();
    let body = chat_body(json!({"max_tokens": 4, "response_format": {"type": "json_object"}})).to_string();
    let streams: Vec<_> =
        (0..14).map(|_| lab.send("POST", "/v1/chat/completions", &lab.key, body.as_bytes())).collect();
    // One is compiled, eight wait; the others are refused while the line stands still.
    let begin = Instant::now();
    let outcomes = |outcome: Option<&str>| {
        let entries = lab.ledger().entries().unwrap();
        entries.iter().filter(|entry| entry.outcome.as_deref() == outcome).count()
    };
    while outcomes(Some("refused")) < 5 || outcomes(None) > 9 {
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", lab.ledger().entries());
        thread::sleep(Duration::from_millis(10));
    }
    drop(closed);
    let responses: Vec<Response> = streams.into_iter().map(Response::read).collect();
    let refused: Vec<_> = responses.iter().filter(|response| response.status == 429).collect();
    assert_eq!((refused.len(), responses.iter().filter(|response| response.status == 200).count()), (5, 9));
    assert!(refused.iter().all(|response| response.header("retry-after").is_some()), "{refused:?}");
}

/// An engine that ends every answer for one reason.
struct Ending(Vec<RequestId>, FinishReason);

impl Backend for Ending {
    fn preparer(&self) -> Prepare {
        Arc::new(|request: Request| Prepared::plain(request).ok_or(RequestError::EmptyPrompt))
    }

    fn enqueue(&mut self, _: Prepared) -> Result<RequestId, RequestError> {
        self.0.push(RequestId(self.0.len() as u64));
        Ok(RequestId(self.0.len() as u64 - 1))
    }

    fn cancel(&mut self, _: RequestId) -> bool {
        false
    }

    fn step(&mut self) -> Vec<Event> {
        let end = |id| Event::Finished(Finished { id, reason: self.1, usage: Usage::default() });
        std::mem::take(&mut self.0).into_iter().map(end).collect()
    }

    fn is_idle(&self) -> bool {
        self.0.is_empty()
    }

    fn status(&self) -> Status {
        Status::default()
    }
}

#[test]
fn an_answer_that_cannot_go_on_says_whose_fault_it_is() {
    let cases = [(FinishReason::ConstraintTooHard, 400), (FinishReason::Cancelled, 503), (FinishReason::Error, 500)];
    for (reason, status) in cases {
        let lab = Setup::default().start_with(Ending(Vec::new(), reason), tiny().tokenizer.unwrap());
        let response = lab.chat(json!({"max_tokens": 4}));
        assert_eq!((response.status, response.header("retry-after").is_some()), (status, status == 503), "{reason:?}");
    }
}
