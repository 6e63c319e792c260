//! Servers within this process: honest ones, and those that are slow, gone, or talk nonsense.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::Message;
use wels_runs::recipe::TaskName;
use wels_tasks::played::Played;
use wels_tasks::task::{Prompt, Task};
use wels_tasks::{Environment, Observation, Split, Step};

use super::counterpart;
use crate::task::Programs;

const SECONDS: Duration = Duration::from_secs(20);

/// What a server does when it is asked.
enum Answer {
    Json(Value),
    Text(&'static str),
    Status(u16),
    Nothing,
    HangsUp,
}

/// A request of HTTP: its first line, and its body.
fn request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).ok()?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((first, String::from_utf8(body).ok()?))
}

fn respond(stream: &mut TcpStream, answer: Answer) {
    let (status, text) = match answer {
        Answer::Json(value) => (200, value.to_string()),
        Answer::Text(text) => (200, text.to_owned()),
        Answer::Status(status) => (status, "{\"detail\": \"no\"}".to_owned()),
        Answer::Nothing => return thread::sleep(Duration::from_secs(2)),
        Answer::HangsUp => return,
    };
    let length = text.len();
    let _ = write!(stream, "HTTP/1.1 {status} .\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}");
}

/// A server of programs' questions; gives its address.
fn serve(answers: impl Fn(&Value) -> Answer + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("env:http://{}/play", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let Some((_, body)) = request(&mut stream) else { continue };
            let question: Value = serde_json::from_str(&body).unwrap();
            respond(&mut stream, answers(&question));
        }
    });
    address
}

/// Guess the item's number: one observation, then the end.
fn guess(question: &Value) -> Value {
    let id = &question["id"];
    if question.get("hello").is_some() {
        return json!({"id": id, "items": 4, "stops": ["?"]});
    }
    if let Some(item) = question["reset"]["item"].as_u64() {
        return json!({"id": id, "prompt": format!("guess {item}")});
    }
    match question["step"].as_str() {
        Some("right") => json!({"id": id, "done": true, "reward": 1}),
        Some(_) => json!({"id": id, "observation": {"role": "user", "content": "no"}}),
        None => json!({"id": id, "reward": 0.25}),
    }
}

fn opened(name: &str, record: Option<&Path>, programs: Programs, timeout: Duration) -> anyhow::Result<Played> {
    let task = TaskName::parse(name, Path::new("/elsewhere"));
    let address = task.address().expect("an address");
    let counterpart = counterpart(address, timeout, record, programs)?;
    Ok(Played::over(name.to_owned(), counterpart, None, Split::Train)?)
}

/// What comes of an item's turns, the last one cut if it says so.
fn play(of: &Played, item: u64, turns: &[&str]) -> Result<Vec<String>, String> {
    let words = |error: wels_tasks::TaskError| error.to_string();
    let item = of.item(item).map_err(words)?;
    let mut episode = of.begin(&item, 7).map_err(words)?;
    let mut said = vec![match &item.prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Messages(messages) => messages[0].content.as_str().unwrap_or_default().to_owned(),
    }];
    for turn in turns {
        said.push(match *turn {
            "CUT" => format!("cut {}", episode.cut("").map_err(words)?.accuracy),
            turn => match episode.step(turn).map_err(words)? {
                Step::Observation(Observation::Text(text) | Observation::Message { text, .. }) => text,
                Step::Done(reward) => format!("{} {}", reward.accuracy, reward.grade.reason),
            },
        });
    }
    Ok(said)
}

#[test]
fn names_of_addresses_are_read_and_written() {
    for (text, url, open_env) in [
        ("env:http://h:1/p", "http://h:1/p", false),
        ("openenv:https://h.x", "https://h.x", true),
        ("chat:openenv:http://h:8=/q.jsonl", "http://h:8", true),
    ] {
        let name = TaskName::parse(text, Path::new("/f"));
        let address = name.address().unwrap();
        assert_eq!((address.url, address.open_env, name.plays), (url, open_env, true), "{text}");
        assert_eq!((name.to_string(), name.program()), (text.to_owned(), None));
    }
    assert_eq!(TaskName::parse("env:./p", Path::new("/f")).address(), None);
}

#[test]
fn an_environment_over_http_is_played_and_played_again_from_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("environment.jsonl");
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let name = serve(move |question| {
        counted.fetch_add(1, Ordering::Relaxed);
        Answer::Json(guess(question))
    });
    let live = opened(&name, Some(&record), Programs::Run, SECONDS).unwrap();
    assert_eq!((live.len(), live.stops()), (Some(4), vec!["?".to_owned()]));
    let first = play(&live, 2, &["wrong", "right"]).unwrap();
    assert_eq!(first, ["guess 2", "no", "1 right"]);
    let cut = play(&live, 3, &["wrong", "CUT"]).unwrap();
    assert_eq!(cut, ["guess 3", "no", "cut 0.25"]);
    let before = asked.load(Ordering::Relaxed);
    for programs in [Programs::Refuse, Programs::Run] {
        let again = opened(&name, Some(&record), programs, SECONDS).unwrap();
        assert_eq!(play(&again, 3, &["wrong", "CUT"]).unwrap(), cut);
        assert_eq!(play(&again, 2, &["wrong", "right"]).unwrap(), first);
    }
    assert_eq!(asked.load(Ordering::Relaxed), before, "the record was enough");
    let silent = opened(&name, Some(&record), Programs::Refuse, SECONDS).unwrap();
    let error = play(&silent, 2, &["other"]).unwrap_err();
    assert!(error.contains("its record has no answer"), "{error}");
}

/// What a server answers to a request.
type Answering = fn(&Value) -> Answer;

#[test]
fn servers_that_misbehave_are_described() {
    let cases: [(Answering, &str); 8] = [
        (|_| Answer::Nothing, "gave no answer within 0.5 s"),
        (|_| Answer::HangsUp, "gave no answer"),
        (|_| Answer::Status(500), "answered with status 500"),
        (|_| Answer::Text("hello"), "answered with `hello`"),
        (|_| Answer::Json(json!({"id": "7"})), "was asked \"5\""),
        (|it| Answer::Json(json!({"id": it["id"], "done": true, "reward": "much"})), "invalid type: string"),
        (|it| Answer::Json(json!({"id": it["id"], "done": true})), "without a reward"),
        (|it| Answer::Json(json!({"id": it["id"]})), "neither ended an episode"),
    ];
    for (misbehave, expected) in cases {
        let name = serve(move |question| match question.get("step") {
            Some(_) => misbehave(question),
            None => Answer::Json(guess(question)),
        });
        let played = opened(&name, None, Programs::Run, Duration::from_millis(500)).unwrap();
        let error = play(&played, 1, &["x"]).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(play(&played, 1, &["x"]).unwrap_err().contains("failed before"));
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = opened(&format!("env:http://{nobody}"), None, Programs::Run, SECONDS).err().unwrap().to_string();
    assert!(error.contains("gave no answer"), "{error}");
    assert!(opened("env:http://127.0.0.1:1", None, Programs::Refuse, SECONDS).is_err());
}

/// A server of OpenEnv with so many sessions. An episode of seed s ends when the sum of what was said reaches s.
fn open_env(sessions: usize, action: Value) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("openenv:http://{}", listener.local_addr().unwrap());
    let (open, heard) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let log = heard.clone();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (open, log, action) = (open.clone(), log.clone(), action.clone());
            thread::spawn(move || session(stream, &open, sessions, &log, &action));
        }
    });
    (address, heard)
}

fn session(mut stream: TcpStream, open: &AtomicUsize, sessions: usize, log: &Mutex<Vec<String>>, action: &Value) {
    let mut head = [0; 11];
    if stream.peek(&mut head).is_ok_and(|read| head[..read].starts_with(b"GET /schema")) {
        request(&mut stream);
        return respond(&mut stream, Answer::Json(json!({"action": action})));
    }
    let mut socket = tungstenite::accept(stream).unwrap();
    let full = open.fetch_add(1, Ordering::SeqCst) >= sessions;
    let (mut seed, mut sum) = (0, 0);
    while let Ok(Message::Text(text)) = socket.read() {
        let message: Value = serde_json::from_str(&text).unwrap();
        log.lock().unwrap().push(text.to_string());
        let error = |code: &str| json!({"type": "error", "data": {"message": "not so", "code": code}});
        let observed = |text: String, reward: Value, done: bool| json!({"type": "observation", "data": {"observation": {"text": text}, "reward": reward, "done": done}});
        let said = match (full, message["type"].as_str(), message["data"]["message"].as_str()) {
            (true, ..) => error("CAPACITY_REACHED"),
            (_, Some("reset"), _) => {
                (seed, sum) = (message["data"]["seed"].as_u64().unwrap(), 0);
                observed(format!("reach {seed}"), Value::Null, false)
            }
            (.., Some("boom")) => error("EXECUTION_ERROR"),
            (.., Some("text")) => observed("x".to_owned(), json!("much"), false),
            (.., Some("nonsense")) => json!([1]),
            (.., Some("long")) => observed("x".repeat(2 << 20), Value::Null, false),
            (.., Some("pings")) => {
                while socket.send(Message::Ping(tungstenite::Bytes::new())).is_ok() {
                    thread::sleep(Duration::from_millis(50));
                }
                break;
            }
            (.., Some(word)) => match word.parse::<u64>() {
                Err(_) => error("VALIDATION_ERROR"),
                Ok(more) => {
                    sum += more;
                    observed(format!("at {sum} of {seed}"), json!(sum == seed), sum >= seed)
                }
            },
            _ => error("VALIDATION_ERROR"),
        };
        if socket.send(Message::text(said.to_string())).is_err() || full {
            break;
        }
    }
    open.fetch_sub(1, Ordering::SeqCst);
}

fn one_text() -> Value {
    json!({"properties": {"metadata": {"type": "object"}, "message": {"type": "string"}}, "required": ["message"]})
}

#[test]
fn a_server_of_openenv_is_played() {
    let (name, _) = open_env(8, one_text());
    let played = opened(&name, None, Programs::Run, SECONDS).unwrap();
    assert_eq!(played.len(), None);
    assert_eq!(play(&played, 5, &["2", "3"]).unwrap(), ["reach 5", "at 2 of 5", "1 right"]);
    assert_eq!(play(&played, 5, &["9"]).unwrap(), ["reach 5", "0 wrong: at 9 of 5"]);
    assert_eq!(play(&played, 5, &["what", "5"]).unwrap(), ["reach 5", "error: not so", "1 right"]);
    assert_eq!(play(&played, 5, &["1", "CUT"]).unwrap(), ["reach 5", "at 1 of 5", "cut 0"]);
    assert_eq!(play(&played, 5, &["boom"]).unwrap(), ["reach 5", "0 wrong: the environment failed: not so"]);
    assert_eq!(play(&played, 5, &["5"]).unwrap(), ["reach 5", "1 right"], "others go on");
    for (word, expected) in [
        ("text", "a reward that is no number"),
        ("nonsense", "neither an observation"),
        ("long", "with more than 1048576 bytes"),
    ] {
        let played = opened(&name, None, Programs::Run, SECONDS).unwrap();
        let error = play(&played, 5, &[word]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_answer_has_its_time_whatever_else_a_server_says() {
    let (name, _) = open_env(8, one_text());
    let played = opened(&name, None, Programs::Run, Duration::from_millis(500)).unwrap();
    let begin = Instant::now();
    let error = play(&played, 5, &["pings"]).unwrap_err();
    assert!(error.contains("gave no answer within 0.5 s"), "{error}");
    assert!(begin.elapsed() < SECONDS, "{:?}", begin.elapsed());
}

/// Episodes that are open at the same time are the same whether each has a session or all share one.
#[test]
fn a_server_with_one_session_is_shared() {
    let interleaved = |sessions: usize| {
        let (name, heard) = open_env(sessions, one_text());
        let played = opened(&name, None, Programs::Run, SECONDS).unwrap();
        let items: Vec<_> = (4..7).map(|item| played.item(item).unwrap()).collect();
        let mut episodes: Vec<_> = items.iter().map(|item| played.begin(item, 1).unwrap()).collect();
        let mut said = Vec::new();
        for word in ["1", "2", "3"] {
            for episode in &mut episodes {
                said.push(format!("{:?}", episode.step(word).unwrap()));
            }
        }
        let heard = heard.lock().unwrap().len();
        (said, heard)
    };
    let (alone, few) = interleaved(8);
    let (shared, many) = interleaved(1);
    assert_eq!(shared, alone);
    assert!(many > few, "{many} and {few} messages");
    let (none, _) = open_env(0, one_text());
    let played = opened(&none, None, Programs::Run, SECONDS).unwrap();
    assert!(play(&played, 1, &[]).unwrap_err().contains("has no session free"));
}

#[test]
fn actions_of_several_fields_are_objects_that_the_model_writes() {
    let schema = json!({"properties": {"message": {"type": "string"}, "n": {"type": "integer"}},
                        "required": ["message", "n"]});
    let (name, heard) = open_env(8, schema);
    let played = opened(&name, None, Programs::Run, SECONDS).unwrap();
    let said = play(&played, 5, &["five", "[5]", r#" {"message": "5", "n": 1} "#]).unwrap();
    assert!(said[1].starts_with("error: an action is an object of JSON, and this is none"), "{said:?}");
    assert_eq!(said[2..], ["error: an action is an object of JSON", "1 right"]);
    assert!(heard.lock().unwrap().last().unwrap().contains(r#""data":{"message":"5","n":1}"#));
}
