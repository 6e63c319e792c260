//! Limits of keys, money, sizes and times.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wels_server::http::Settings;
use wels_server::ledger::Limits;

use crate::lab::{CONTEXT, Lab, Response, Setup, chat_body};

#[test]
fn too_many_requests_are_told_when_to_come_again() {
    let lab =
        Setup { limits: Limits { requests_per_minute: Some(2), ..Limits::default() }, ..Setup::default() }.start();
    for _ in 0..2 {
        assert_eq!(lab.chat(json!({"max_tokens": 2})).status, 200);
    }
    let refused = lab.chat(json!({"max_tokens": 2}));
    assert_eq!(refused.status, 429);
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
}

#[test]
fn an_empty_balance_is_a_402_and_nothing_is_reserved_for_good() {
    let budget = Some("0.0001".parse().unwrap());
    let lab = Setup { limits: Limits { budget, ..Limits::default() }, ..Setup::default() }.start();
    let dear = lab.chat(json!({"max_tokens": 200}));
    assert_eq!((dear.status, dear.json()["error"]["code"].as_str()), (402, Some("insufficient_balance")));
    let mut paid = 0;
    while lab.chat(json!({"max_tokens": 20})).status == 200 {
        paid += 1;
        assert!(paid < 20, "the budget does not end");
    }
    assert!(paid > 0);
    let entries = lab.settled();
    assert_eq!(entries.len(), paid);
    let balance = lab.get("/user/balance").json();
    let left: f64 = balance["balance_infos"][0]["total_balance"].as_str().unwrap().parse().unwrap();
    assert!((0.0..0.0001).contains(&left), "{balance}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let lab =
        Setup { settings: Settings { body_bytes_max: 20_000, ..Settings::default() }, ..Setup::default() }.start();
    let long = "fish ".repeat(CONTEXT);
    let refused = lab.chat(json!({"messages": [{"role": "user", "content": long}]}));
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (400, Some("context_length_exceeded")));
    // Who asks for more than the server gives gets what there is.
    let most = lab.chat(json!({"max_tokens": 32_000})).json();
    assert_eq!(most["usage"]["completion_tokens"], 256, "{most}");
    let huge = vec![b' '; 1 << 20];
    assert_eq!(lab.request("POST", "/v1/chat/completions", &lab.key, &huge).status, 413);
    assert_eq!(lab.chat(json!({"max_tokens": 2})).status, 200, "others are unharmed");
}

#[test]
fn slow_heads_and_bodies_are_given_up() {
    let timeout = Duration::from_millis(300);
    let settings = Settings { header_timeout: timeout, body_timeout: timeout, ..Settings::default() };
    let lab = Setup { settings, ..Setup::default() }.start();
    let mut head = lab.connect();
    head.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: ").unwrap();
    let mut rest = Vec::new();
    let _ = head.read_to_end(&mut rest); // ends, or the test's own timeout fails it
    let mut body = lab.connect();
    let text = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Content-Length: 100\r\n\r\n{{",
        lab.key
    );
    body.write_all(text.as_bytes()).unwrap();
    assert_eq!(Response::read(body).status, 408);
}

#[test]
fn connections_above_the_limit_get_an_answer() {
    let lab = Setup { settings: Settings { connections_max: 1, ..Settings::default() }, ..Setup::default() }.start();
    let mut first = lab.connect();
    first.write_all(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    let mut byte = [0];
    first.read_exact(&mut byte).unwrap(); // so it holds its place
    let refused = Response::read(lab.connect());
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.json()["error"]["code"], "overloaded");
    drop(first);
}

#[test]
fn a_client_that_leaves_pays_for_what_it_was_sent() {
    let lab = Setup::default().start();
    let body = chat_body(json!({"max_tokens": 256, "stream": true, "logit_bias": {}})).to_string();
    let mut stream = lab.send("POST", "/v1/chat/completions", &lab.key, body.as_bytes());
    let mut some = [0; 600];
    stream.read_exact(&mut some).unwrap();
    drop(stream);
    let entries = lab.settled();
    assert_eq!(entries.len(), 1);
    let sent = entries[0].tokens;
    assert!(sent.output > 0 && sent.output <= 256);
    assert!(sent.hit == 0 && sent.miss > 0, "nothing of its prompt was in the cache: {sent:?}");
    let metrics = lab.metrics();
    let counted = |kind: &str| -> f64 {
        let sample = format!("wels_tokens_total{{model_name=\"tiny\",kind=\"{kind}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&sample)).unwrap().parse().unwrap()
    };
    let kinds = ["cache_hit", "cache_miss", "output"];
    assert_eq!(kinds.map(counted), [sent.hit, sent.miss, sent.output].map(|count| count as f64));
}

#[test]
fn answers_under_way_are_counted_not_requests() {
    let lab = Setup { limits: Limits { concurrent: Some(4), ..Limits::default() }, ..Setup::default() }.start();
    let refused = lab.chat(json!({"n": 5, "max_tokens": 2}));
    assert_eq!((refused.status, refused.header("retry-after")), (429, None), "it never fits");
    let prompts = json!({"model": "tiny", "prompt": ["a", "b", "c"], "n": 2, "max_tokens": 2});
    assert_eq!(lab.post("/v1/completions", &prompts).status, 429);
    assert_eq!(lab.chat(json!({"n": 4, "max_tokens": 2})).status, 200);
}

#[test]
fn more_texts_than_a_key_may_have_at_once_are_embedded_in_parts() {
    let lab = Setup { limits: Limits { concurrent: Some(2), ..Limits::default() }, ..Setup::default() }.start();
    let embed = |input: Value| lab.post("/v1/embeddings", &json!({"model": "tiny", "input": input}));
    let texts = ["a fish", "another", "the name", "the name of the fish", "a"];
    let all = embed(json!(texts));
    assert_eq!(all.status, 200, "{}", all.body);
    for (at, text) in texts.iter().enumerate() {
        let alone = embed(json!(text)).json();
        assert_eq!(all.json()["data"][at]["embedding"], alone["data"][0]["embedding"], "{text}");
    }
    assert!(lab.settled().iter().all(|entry| entry.outcome.as_deref() == Some("done")));
}

#[test]
fn a_prompt_beyond_a_keys_limits_is_not_encoded() {
    let limits = Limits { tokens_per_minute: Some(100), ..Limits::default() };
    let lab = Setup { limits, ..Setup::default() }.start();
    let long = json!({"model": "tiny", "prompt": "fish ".repeat(700_000), "max_tokens": 1});
    let other = lab.ledger().add_key("other", &Limits::default(), 0).unwrap();
    std::thread::scope(|scope| {
        let attacks: Vec<_> = (0..8).map(|_| scope.spawn(|| lab.post("/v1/completions", &long))).collect();
        while !attacks.iter().all(|attack| attack.is_finished()) {
            served_soon(&lab, other.reveal());
        }
        for refused in attacks.into_iter().map(|attack| attack.join().unwrap()) {
            assert_eq!((refused.status, refused.header("retry-after")), (429, None), "{}", refused.body);
            assert!(refused.body.contains("100 tokens a minute"), "{}", refused.body);
        }
    });
    assert_eq!(lab.chat(json!({"max_tokens": 1})).status, 200);
    let entries = lab.ledger().entries().unwrap();
    let refused = entries.iter().filter(|entry| entry.outcome.as_deref() != Some("done"));
    assert!(refused.into_iter().all(|entry| entry.cost.0 == 0), "{entries:?}");

    let budget = Some("0.0001".parse().unwrap());
    let lab = Setup { limits: Limits { budget, ..Limits::default() }, ..Setup::default() }.start();
    let refused = lab.chat(json!({"messages": [{"role": "user", "content": "fish ".repeat(1000)}], "max_tokens": 1}));
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (402, Some("insufficient_balance")));
}

#[test]
fn a_key_beyond_its_limits_is_told_so_before_its_body_is_read() {
    let limits = Limits { requests_per_minute: Some(1), ..Limits::default() };
    let lab = Setup { limits, ..Setup::default() }.start();
    assert_eq!(lab.chat(json!({"max_tokens": 1})).status, 200);
    let begin = Instant::now();
    assert_eq!(Response::read(half_a_body(&lab, &lab.key)).status, 429);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

/// The most that an attack may make another client wait.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A client that does no harm gets its answer.
fn served_soon(lab: &Lab, key: &str) {
    let begin = Instant::now();
    let body = chat_body(json!({"max_tokens": 2})).to_string();
    assert_eq!(lab.request("POST", "/v1/chat/completions", key, body.as_bytes()).status, 200);
    assert!(begin.elapsed() < WAIT_MAX, "{:?}", begin.elapsed());
}

/// A request whose body does not arrive.
fn half_a_body(lab: &Lab, key: &str) -> std::net::TcpStream {
    half_a_body_to(lab, "/v1/chat/completions", key)
}

fn half_a_body_to(lab: &Lab, path: &str, key: &str) -> std::net::TcpStream {
    let mut stream = lab.connect();
    let text = format!(
        "POST {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
         Content-Length: 100\r\n\r\n{{"
    );
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

#[test]
fn nothing_is_read_of_an_adapters_body_without_an_operators_key_and_it_may_not_take_long() {
    let settings = Settings { body_timeout: Duration::from_millis(300), ..Settings::default() };
    let lab = Setup { settings, ..Setup::default() }.start();
    let operator = lab.ledger().add_admin_key("operator", &Limits::default(), 0).unwrap();
    let status = |key: &str| Response::read(half_a_body_to(&lab, "/v1/adapters", key)).status;
    assert_eq!([status("wrong"), status(&lab.key), status(operator.reveal())], [401, 403, 408]);
    let huge = vec![b' '; (1 << 16) + 1];
    assert_eq!(lab.request("POST", "/v1/adapters", operator.reveal(), &huge).status, 413);
}

#[test]
fn slow_bodies_of_one_key_do_not_delay_another() {
    let lab = Setup::default().start();
    let slow: Vec<_> = (0..64).map(|_| half_a_body(&lab, &lab.key)).collect();
    std::thread::sleep(Duration::from_millis(500));
    let other = lab.ledger().add_key("other", &Limits::default(), 0).unwrap();
    (0..4).for_each(|_| served_soon(&lab, other.reveal()));
    drop(slow);
}

#[test]
fn clients_that_never_read_do_not_keep_their_connections() {
    let timeout = Duration::from_millis(500);
    let settings = Settings { connections_max: 4, write_timeout: timeout, ..Settings::default() };
    let lab = Setup { settings, ..Setup::default() }.start();
    let deaf: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = lab.connect();
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            let requests = "GET /chat.js HTTP/1.1\r\nHost: t\r\n\r\n".repeat(4000);
            let _ = stream.write_all(requests.as_bytes()); // the server stops reading at some point
            stream
        })
        .collect();
    let begin = Instant::now();
    while lab.get("/health").status != 200 {
        assert!(begin.elapsed() < Duration::from_secs(30), "the connections are held for good");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(deaf);
}

#[test]
fn health_fails_while_the_ledger_cannot_be_written() {
    let lab = Setup::default().start();
    let other = rusqlite::Connection::open(lab.database()).unwrap();
    let wait = |status: u16| {
        let begin = Instant::now();
        while lab.get("/health").status != status {
            assert!(begin.elapsed() < Duration::from_secs(40), "never {status}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    wait(503);
    assert_eq!(lab.get("/health").json()["status"], "the ledger cannot be written");
    other.execute_batch("ROLLBACK").unwrap();
    wait(200);
}
