//! An environment server of OpenEnv (`openenv-core`): its messages over a WebSocket, one connection a session.
//!
//! ```text
//! GET /schema                                               what an action has
//! → {"type": "reset", "data": {"seed": 17}}                 item 17; of a file's record, its fields
//! → {"type": "step",  "data": {"message": "…"}}              the model's turn, as an action
//! ← {"type": "observation", "data": {"observation": {…}, "reward": 0.5, "done": false}}
//! ← {"type": "error", "data": {"message": "…", "code": "CAPACITY_REACHED"}}
//! ```
//! The reward of an episode is the sum of those of its steps. A server has as many sessions as it likes, often one. An
//! episode that finds none free takes the one that has waited longest, and what was played there is played again when
//! its turn comes: an episode is a function of its item and its turns.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};
use ureq::http::Uri;

use super::{ANSWER_BYTES_MAX, agent, body};
use wels_tasks::Counterpart;

/// Seeds of held-out items, apart from those that are learnt from.
const HELD_OUT: u64 = 1 << 30;

/// Sessions that are opened at most.
const SESSIONS_MAX: usize = 64;

pub(super) struct OpenEnv {
    url: String,
    timeout: Duration,
    first_seed: u64,
    action: Action,
    sessions: Vec<Session>,
    /// Sessions that the server has room for, as far as is known.
    room: usize,
    episodes: HashMap<String, Transcript>,
    clock: u64,
}

/// How a turn becomes an action.
enum Action {
    /// The value of this field.
    Field(String),
    /// The model writes the object itself.
    Whole,
}

struct Session {
    socket: WebSocket<MaybeTlsStream<Timed>>,
    /// Whose it is.
    episode: Option<String>,
    used: u64,
}

/// A connection that waits until a deadline in all, however much comes before.
struct Timed {
    stream: TcpStream,
    until: Instant,
}

/// An episode that is open.
struct Transcript {
    reset: Value,
    actions: Vec<Value>,
    reward: f64,
}

/// What a server says to a message.
enum Said {
    Observation { observation: Value, reward: Option<f64>, done: bool },
    Error { code: String, message: String },
}

impl OpenEnv {
    pub fn new(url: &str, timeout: Duration) -> OpenEnv {
        OpenEnv {
            url: url.trim_end_matches('/').to_owned(),
            timeout,
            first_seed: 0,
            action: Action::Whole,
            sessions: Vec::new(),
            room: SESSIONS_MAX,
            episodes: HashMap::new(),
            clock: 0,
        }
    }

    fn hello(&mut self, split: &Value) -> Result<Value, String> {
        self.first_seed = if *split == "held_out" { HELD_OUT } else { 0 };
        let schema = body(agent(self.timeout).get(format!("{}/schema", self.url)).call(), self.timeout)
            .map_err(|error| format!("asked for its schema, {error}"))?;
        self.action = Action::of(&schema["action"]);
        Ok(json!({}))
    }

    fn connect(&self) -> Result<Session, String> {
        let address = self.url.replacen("http", "ws", 1) + "/ws";
        let cannot = |error: String| format!("cannot be reached at {address}: {error}");
        let uri: Uri = address.parse().map_err(|error| cannot(format!("{error}")))?;
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("wss") { 443 } else { 80 });
        let named = host.trim_start_matches('[').trim_end_matches(']');
        let mut addresses = (named, port).to_socket_addrs().map_err(|error| cannot(error.to_string()))?;
        let place = addresses.next().ok_or_else(|| cannot("no such host".to_owned()))?;
        let until = Instant::now() + self.timeout;
        let stream = TcpStream::connect_timeout(&place, self.timeout).map_err(|error| cannot(error.to_string()))?;
        let stream = Timed { stream, until };
        let most = Some(ANSWER_BYTES_MAX as usize);
        let config = WebSocketConfig::default().max_message_size(most).max_frame_size(most);
        let opened = tungstenite::client_tls_with_config(address.as_str(), stream, Some(config), None);
        let (socket, _) = opened.map_err(|error| cannot(error.to_string()))?;
        Ok(Session { socket, episode: None, used: 0 })
    }

    /// The session of an episode: its own, as it is, or another one where it is begun again.
    fn session(&mut self, episode: &str, name: &str) -> Result<(usize, Option<Said>), String> {
        self.clock += 1;
        if let Some(own) = self.sessions.iter().position(|it| it.episode.as_deref() == Some(episode)) {
            self.sessions[own].used = self.clock;
            return Ok((own, None));
        }
        let free = self.sessions.iter().position(|it| it.episode.is_none());
        let mut at = free;
        if at.is_none() && self.sessions.len() < self.room {
            let session = self.connect()?;
            self.sessions.push(session);
            at = Some(self.sessions.len() - 1);
        }
        let oldest = |sessions: &[Session]| (0..sessions.len()).min_by_key(|it| sessions[*it].used);
        let mut at = at.or_else(|| oldest(&self.sessions)).ok_or("has no session free")?;
        let mut said = self.begin_again(at, episode, name)?;
        if let Said::Error { code, message } = &said
            && code == "CAPACITY_REACHED"
        {
            self.sessions.remove(at);
            self.room = self.sessions.len();
            at = oldest(&self.sessions).ok_or_else(|| format!("has no session free: {message}"))?;
            said = self.begin_again(at, episode, name)?;
        }
        Ok((at, Some(said)))
    }

    /// Plays an episode in a session up to where it stands; what was said last.
    fn begin_again(&mut self, at: usize, episode: &str, name: &str) -> Result<Said, String> {
        let Transcript { reset, actions, .. } = &self.episodes[episode];
        let messages = std::iter::once(json!({"type": "reset", "data": reset}))
            .chain(actions.iter().map(|action| json!({"type": "step", "data": action})));
        let (session, timeout) = (&mut self.sessions[at], self.timeout);
        (session.episode, session.used) = (Some(episode.to_owned()), self.clock);
        let mut said = None;
        for message in messages {
            said = Some(session.ask(&message, timeout, name)?);
        }
        Ok(said.expect("an episode has a beginning"))
    }

    fn reset(&mut self, episode: &str, reset: &Value, name: &str) -> Result<Value, String> {
        let data = match (&reset["record"], reset["item"].as_u64()) {
            (Value::Object(record), _) => Value::Object(record.clone()),
            (_, Some(item)) => json!({"seed": self.first_seed + item}),
            (record, None) => json!({"record": record}),
        };
        let has_record = reset.get("record").is_some();
        self.episodes.insert(episode.to_owned(), Transcript { reset: data, actions: Vec::new(), reward: 0.0 });
        match self.session(episode, name)?.1 {
            // The question is the file's.
            Some(Said::Observation { .. }) if has_record => Ok(json!({})),
            Some(Said::Observation { observation, .. }) => match text_of(&observation) {
                text if text.trim().is_empty() => Err(format!(
                    "began {name} with an observation without text; name a file of questions behind the address, =FILE"
                )),
                text => Ok(json!({"messages": [{"role": "user", "content": text}]})),
            },
            Some(Said::Error { code, message }) => Err(format!("could not begin {name}: {message} ({code})")),
            None => Err(format!("was asked to begin {name} twice")),
        }
    }

    fn step(&mut self, episode: &str, turn: &str, name: &str) -> Result<Value, String> {
        let action = match self.action.of_turn(turn) {
            Ok(action) => action,
            Err(problem) => return Ok(json!({"observation": {"role": "user", "content": problem}})),
        };
        let unknown = || format!("was asked about an episode of {name} that was not begun");
        let at = match self.episodes.contains_key(episode) {
            true => self.session(episode, name)?.0,
            false => return Err(unknown()),
        };
        let said = self.sessions[at].ask(&json!({"type": "step", "data": action}), self.timeout, name)?;
        let transcript = self.episodes.get_mut(episode).ok_or_else(unknown)?;
        match said {
            Said::Observation { observation, reward, done } => {
                transcript.actions.push(action);
                transcript.reward += reward.unwrap_or(0.0);
                let total = transcript.reward;
                if done {
                    self.forget(episode);
                    return Ok(json!({"done": true, "reward": total, "reason": text_of(&observation)}));
                }
                Ok(json!({"observation": {"role": "user", "content": text_of(&observation)}}))
            }
            Said::Error { code, message } if code == "VALIDATION_ERROR" => {
                let content = format!("error: {message}");
                Ok(json!({"observation": {"role": "user", "content": content}}))
            }
            Said::Error { code, message } if code == "EXECUTION_ERROR" => {
                let total = transcript.reward;
                self.sessions.remove(at); // whatever state it is in
                self.forget(episode);
                let reason = format!("the environment failed: {message}");
                Ok(json!({"done": true, "reward": total, "correct": false, "reason": reason}))
            }
            Said::Error { code, message } => Err(format!("answered {name} with an error: {message} ({code})")),
        }
    }

    fn forget(&mut self, episode: &str) -> f64 {
        self.sessions.iter_mut().filter(|it| it.episode.as_deref() == Some(episode)).for_each(|it| it.episode = None);
        self.episodes.remove(episode).map_or(0.0, |it| it.reward)
    }
}

impl Counterpart for OpenEnv {
    fn ask(&mut self, question: Value, name: &str) -> Result<Value, String> {
        if let Some(hello) = question.get("hello") {
            return self.hello(&hello["split"]);
        }
        let episode = question["episode"].as_str().unwrap_or_default();
        match (question.get("reset"), question["step"].as_str()) {
            (Some(reset), _) => self.reset(episode, reset, name),
            (None, Some(turn)) => self.step(episode, turn, name),
            (None, None) => Ok(json!({"reward": self.forget(episode)})),
        }
    }
}

impl Session {
    fn ask(&mut self, message: &Value, timeout: Duration, name: &str) -> Result<Said, String> {
        let failed = |error: tungstenite::Error| match error {
            tungstenite::Error::Io(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                format!("gave no answer within {} s to {name}", timeout.as_secs_f64())
            }
            tungstenite::Error::Capacity(_) => format!("answered {name} with more than {ANSWER_BYTES_MAX} bytes"),
            error => format!("is gone, asked about {name}: {error}"),
        };
        self.answers_until(Instant::now() + timeout);
        // One that is gone may have said why.
        let _ = self.socket.send(Message::text(message.to_string()));
        loop {
            match self.socket.read().map_err(failed)? {
                Message::Text(text) => return said(&text).map_err(|error| format!("answered {name} with {error}")),
                Message::Close(_) => return Err(format!("ended before it answered {name}")),
                Message::Binary(_) => return Err(format!("answered {name} with bytes that are no text")),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    fn answers_until(&mut self, until: Instant) {
        match self.socket.get_mut() {
            MaybeTlsStream::Plain(timed) => timed.until = until,
            MaybeTlsStream::Rustls(tls) => tls.sock.until = until,
            _ => unreachable!("a connection is plain or of rustls"),
        }
    }
}

impl Timed {
    /// What is left, for one call of the system.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(Some(left.max(Duration::from_millis(1))))
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A message of the server, or what it is instead.
fn said(text: &str) -> Result<Said, String> {
    let shown: String = text.chars().take(200).collect();
    let mut message: Value = serde_json::from_str(text).map_err(|error| format!("`{shown}`: {error}"))?;
    let mut data = message.get_mut("data").map(Value::take).unwrap_or_default();
    match message["type"].as_str() {
        Some("observation") if data.is_object() => {
            let reward = match &data["reward"] {
                Value::Null => None,
                Value::Bool(right) => Some(f64::from(u8::from(*right))),
                other => Some(other.as_f64().ok_or_else(|| format!("a reward that is no number: {other}"))?),
            };
            let done = match &data["done"] {
                Value::Null => false,
                other => other.as_bool().ok_or_else(|| format!("a `done` that is neither true nor false: {other}"))?,
            };
            Ok(Said::Observation { observation: data["observation"].take(), reward, done })
        }
        Some("error") => {
            let word = |key: &str| data[key].as_str().unwrap_or("without a word").to_owned();
            Ok(Said::Error { code: word("code"), message: word("message") })
        }
        _ => Err(format!("`{shown}`, which is neither an observation nor an error")),
    }
}

impl Action {
    /// By the JSON schema of actions: the only text that has to be there, or the only one that there is.
    fn of(schema: &Value) -> Action {
        let nothing = Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&nothing);
        let is_required =
            |name: &str| schema["required"].as_array().is_some_and(|required| required.iter().any(|key| key == name));
        let own: Vec<(&String, &Value)> = properties.iter().filter(|(name, _)| *name != "metadata").collect();
        let required: Vec<_> = own.iter().filter(|(name, _)| is_required(name)).copied().collect();
        match (&required[..], &own[..]) {
            ([(name, of)], _) | ([], [(name, of)]) if of["type"] == "string" => Action::Field((*name).clone()),
            _ => Action::Whole,
        }
    }

    /// A turn as an action, or what to tell the model.
    fn of_turn(&self, turn: &str) -> Result<Value, String> {
        let turn = turn.trim();
        match self {
            Action::Field(name) => Ok(json!({ name.as_str(): turn })),
            Action::Whole => match serde_json::from_str(turn) {
                Ok(Value::Object(action)) => Ok(Value::Object(action)),
                Ok(_) => Err("error: an action is an object of JSON".to_owned()),
                Err(error) => Err(format!("error: an action is an object of JSON, and this is none: {error}")),
            },
        }
    }
}

/// An observation as a text: itself, the only thing in it if that is a text, or its JSON.
fn text_of(observation: &Value) -> String {
    let Some(fields) = observation.as_object() else {
        return observation.as_str().map_or_else(|| observation.to_string(), str::to_owned);
    };
    let is_something = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    };
    let something: Vec<&Value> =
        fields.iter().filter(|(name, value)| *name != "metadata" && is_something(value)).map(|it| it.1).collect();
    match &something[..] {
        [] => String::new(),
        [Value::String(text)] => text.clone(),
        _ => observation.to_string(),
    }
}
