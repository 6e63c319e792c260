//! `wels serve` as a process: what it prints, keys and usage beside it, and that `kill -9` under load leaves a ledger
//! that says what clients were sent.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wels_data::chat::DEEPSEEK_V3;
use wels_data::tokenizer::{BpeTrainer, SpecialTokens};
use wels_model::config::{Attention, Dtype, Family, Gating, ModelConfig, RopeConfig, RopeLayout, RopeScaling};
use wels_model::params::Params;
use wels_model::weights;
use wels_server::ledger::Ledger;

use crate::lab::Numbers;

const KILLS: usize = 20;
const CLIENTS: u64 = 4;
/// Tokens of the one piece of a stream that may be on its way when the server dies: those of 16 events, and those of a
/// character that was not complete before.
pub const PIECE_TOKENS: u64 = 16 + 3;

/// Writes a model of random weights as a Hugging Face directory.
pub fn write_model(folder: &Path) {
    write_model_of_context(folder, 2048);
}

/// The same with another context.
pub fn write_model_of_context(folder: &Path, max_positions: usize) {
    write_model_of(folder, max_positions, 24, 2);
}

/// The same of another width and depth: a large one takes its time for a token.
pub fn write_model_of(folder: &Path, max_positions: usize, hidden_size: usize, layers: usize) {
    let mut trainer = BpeTrainer::new(300, SpecialTokens::default()).unwrap();
    trainer.feed(&["the name of the fish: a fish and another fish"; 8]);
    let mut tokenizer = trainer.train().unwrap();
    tokenizer.set_chat_template(Some(DEEPSEEK_V3.to_owned()));
    let attention = Attention::gqa(4, 2, 6);
    let config = ModelConfig {
        family: Family::Llama,
        hidden_size,
        layers,
        vocab_size: tokenizer.vocab_size(),
        norm_eps: 1e-6,
        rope: RopeConfig {
            base: 10000.0,
            scaling: RopeScaling::None,
            layout: RopeLayout::HalfSplit,
            max_positions,
            local: None,
        },
        indexer: None,
        streams: None,
        window: None,
        softmax_scale: 1.0 / (attention.qk_dim() as f32).sqrt(),
        attention_cap: None,
        logit_cap: None,
        attention,
        dense_intermediate: hidden_size * 5 / 3,
        gating: Gating::Silu,
        moe: None,
        mtp_depth: 0,
        tied_head: false,
        bos_id: None,
        eos_ids: vec![],
        pad_id: None,
        init_std: 0.2 * (24.0 / hidden_size as f32).sqrt(),
    };
    let params = Params::init(&wels_cpu::testing::device(), &config, 3);
    weights::save_dir(folder, &config, Dtype::F32, 1 << 30, &|param| params.tensors()[param].to_host()).unwrap();
    tokenizer.save(folder, config.rope.max_positions).unwrap();
}

pub struct Lab {
    folder: tempfile::TempDir,
}

/// A running `wels serve`.
pub struct Server {
    pub child: Child,
    pub address: String,
    greeting: String,
}

impl Lab {
    pub fn new() -> Lab {
        let lab = Lab { folder: tempfile::tempdir().unwrap() };
        write_model(&lab.at("model"));
        lab
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn db(&self) -> String {
        self.at("ledger.db").to_str().unwrap().to_owned()
    }

    /// Runs a command to its end; its stdout.
    pub fn wels(&self, args: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_wels")).args(args).args(["--db", &self.db()]).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn serve(&self, more: &[&str]) -> Server {
        self.serve_by(Command::new(env!("CARGO_BIN_EXE_wels")), more)
    }

    /// The same as the last words of another command.
    pub fn serve_by(&self, mut command: Command, more: &[&str]) -> Server {
        let mut child = command
            .arg("serve")
            .arg(self.at("model"))
            .args(["--listen", "127.0.0.1:0", "--db", &self.db(), "--cache-mib", "16"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(self.at("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut greeting = String::new();
        while !greeting.contains("chat") {
            let read = lines.read_line(&mut greeting).unwrap();
            assert!(read > 0, "the server does not start: {}", fs::read_to_string(self.at("stderr")).unwrap());
        }
        let address = greeting.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
        Server { child, address, greeting }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub fn send(&self, key: &str, body: &Value) -> TcpStream {
        send(&self.address, key, body).expect("a connection")
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }
}

pub fn send(address: &str, key: &str, body: &Value) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    Ok(stream)
}

/// A long stream with one log-probability a token, so that tokens can be counted by who reads it.
pub fn long_stream(seed: u64) -> Value {
    json!({"model": "model", "messages": [{"role": "user", "content": "a fish"}], "max_tokens": 1500, "seed": seed,
        "stream": true, "logprobs": true, "logit_bias": {"1": -100}})
}

/// Reads a stream for as long as it comes: the request's name, and the tokens that were sent.
pub fn count(mut stream: TcpStream) -> (String, u64) {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let id = text.split("x-request-id: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap_or_default();
    let events = text.split("data: ").skip(1).filter_map(|rest| rest.split_once("\n\n"));
    let tokens = events
        .filter_map(|(event, _)| serde_json::from_str::<Value>(&event.replace("\r\n", "")).ok())
        .map(|event| event["choices"][0]["logprobs"]["content"].as_array().map_or(0, |tokens| tokens.len() as u64))
        .sum();
    (id.to_owned(), tokens)
}

#[test]
fn keys_and_usage_beside_a_server() {
    let lab = Lab::new();
    let prices = lab.at("prices.toml");
    fs::write(&prices, "peak = { hit = \"1\", miss = \"1\", output = \"2\" }\n").unwrap();
    let mut server = lab.serve(&["--prices", prices.to_str().unwrap()]);
    let first = server.greeting.lines().find_map(|line| line.strip_prefix("key   ")).unwrap();
    let first = first.split(' ').next().unwrap().to_owned();
    assert!(server.greeting.contains(&format!("#key={first}")), "{}", server.greeting);
    let key = lab.wels(&["keys", "add", "ann", "--budget", "0.01", "--concurrent", "3"]).trim().to_owned();
    let body = json!({"model": "model", "messages": [{"role": "user", "content": "a fish"}], "max_tokens": 10,
        "logit_bias": {"1": -100}});
    let mut reply = String::new();
    server.send(&key, &body).read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(lab.wels(&["keys", "list"]).contains("3 at once, budget 0.01"));
    lab.wels(&["keys", "add", "prometheus", "--admin"]);
    let listed = lab.wels(&["keys", "list"]);
    let admins: Vec<&str> = listed.lines().filter(|line| line.ends_with("admin")).collect();
    assert!(admins.len() == 1 && admins[0].starts_with("prometheus"), "{listed}");
    let usage: Value = serde_json::from_str(lab.wels(&["usage", "--json"]).lines().next().unwrap()).unwrap();
    assert_eq!((usage["group"].as_str(), usage["output_tokens"].as_u64()), (Some("ann"), Some(10)), "{usage}");
    assert!(!lab.wels(&["keys", "list"]).contains(&key), "a secret is not shown again");
    lab.wels(&["keys", "revoke", "ann"]);
    let mut refused = String::new();
    server.send(&key, &body).read_to_string(&mut refused).unwrap();
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    server.signal("-TERM");
    assert!(server.child.wait().unwrap().success());
    assert!(!lab.serve(&[]).greeting.contains("key "), "a key is shown when there was none");
}

#[test]
fn the_log_has_a_line_for_each_request_and_nothing_that_a_client_sends() {
    let lab = Lab::new();
    let key = lab.wels(&["keys", "add", "ann"]).trim().to_owned();
    let mut server = lab.serve(&["--log-format", "json"]);
    let body = |more: Value| {
        let mut body = json!({"model": "model", "messages": [{"role": "user", "content": "a secret fish"}],
            "max_tokens": 10, "logit_bias": {"1": -100}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (key, body) in [
        (key.as_str(), body(json!({}))),
        (key.as_str(), body(json!({"stream": true}))),
        (key.as_str(), body(json!({"max_tokens": 0}))),
        ("wrong-key", body(json!({}))),
    ] {
        server.send(key, &body).read_to_string(&mut String::new()).unwrap();
    }
    server.signal("-TERM");
    assert!(server.child.wait().unwrap().success());
    let log = fs::read_to_string(lab.at("stderr")).unwrap();
    for sent in ["secret", "wrong", key.as_str()] {
        assert!(!log.contains(sent), "{sent} is in the log: {log}");
    }
    let lines = log.lines().filter(|line| line.starts_with('{'));
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let lines: Vec<_> = lines.iter().filter(|line| line["message"] == "a request has ended").collect();
    let said = |line: &Value| {
        let text = |name: &str| line[name].as_str().unwrap_or("none").to_owned();
        [text("key"), text("endpoint"), text("model"), text("outcome"), text("reason"), line["status"].to_string()]
    };
    let done = ["ann", "/v1/chat/completions", "model", "done", "length", "200"];
    let wrong = ["ann", "/v1/chat/completions", "none", "refused", "invalid_value", "400"];
    let unknown = ["none", "/v1/chat/completions", "none", "refused", "invalid_api_key", "401"];
    let expected = [done, done, wrong, unknown];
    assert_eq!(lines.iter().map(|line| said(line)).collect::<Vec<_>>(), expected.map(|line| line.map(str::to_owned)));
    for line in &lines[..2] {
        let number = |name: &str| line[name].as_u64().unwrap_or_else(|| panic!("{name} in {line}"));
        assert_eq!((number("output_tokens"), line["request"].as_str()), (10, line["account"].as_str()), "{line}");
        assert!(number("prompt_tokens") > 3 && number("first_token_ms") <= number("total_ms"), "{line}");
        assert!(number("queue_ms") <= number("first_token_ms") && number("cached_tokens") < number("prompt_tokens"));
    }
}

/// Runs `wels serve` with arguments that it refuses; what it says.
pub fn refused(lab: &Lab, more: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_wels"))
        .args(["serve", lab.at("model").to_str().unwrap(), "--db", &lab.db()])
        .args(more)
        .output()
        .unwrap();
    assert!(!output.status.success(), "{more:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn several_models_are_served_by_their_names() {
    let lab = Lab::new();
    let prices = lab.at("prices.toml");
    fs::write(&prices, "[models.second]\npeak = { hit = \"1\", miss = \"1\", output = \"2\" }\n").unwrap();
    let second = format!("second={}", lab.at("model").display());
    let prices = prices.to_str().unwrap();
    let mut server = lab.serve(&[&second, "--prices", prices, "--memory-mib", "20", "--unload-after", "60"]);
    let key = lab.wels(&["keys", "add", "ann", "--budget", "1"]).trim().to_owned();
    let mut texts = Vec::new();
    for name in ["model", "second", "model"] {
        let body = json!({"model": name, "messages": [{"role": "user", "content": "a fish"}], "max_tokens": 10,
            "logit_bias": {"1": -100}, "seed": 1});
        let mut reply = String::new();
        server.send(&key, &body).read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        let reply: Value = serde_json::from_str(reply.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        texts.push(reply["choices"][0]["message"]["content"].clone());
        assert_eq!(reply["usage"]["cost_exact"] != "0.00", name == "second", "{reply}");
    }
    assert_eq!(texts[0], texts[2], "loaded again it says the same");
    let usage = lab.wels(&["usage", "--by", "model"]);
    assert!(["model", "second"].iter().all(|name| usage.contains(name)), "{usage}");
    server.signal("-TERM");
    assert!(server.child.wait().unwrap().success());
    let log = fs::read_to_string(lab.at("stderr")).unwrap();
    assert_eq!(log.matches("a model is loaded").count(), 2, "one was unloaded for the other: {log}");

    let twice = lab.at("model").display().to_string();
    assert!(refused(&lab, &[&twice]).contains("two models are called `model`"));
    assert!(refused(&lab, &[&second, "--name", "x"]).contains("--name is of one model, and there are several"));
    assert!(refused(&lab, &["--prices", prices]).contains("there are prices of `second`, and no such model"));
    assert!(refused(&lab, &["third=/nowhere/to/be/found"]).contains("third"));
}

#[test]
fn systemd_understands_its_units() {
    let lab = Lab::new();
    let program = env!("CARGO_BIN_EXE_wels");
    for (name, unit) in [
        ("wels.service", include_str!("../../../../deploy/wels.service")),
        ("wels-ranks.service", include_str!("../../../../deploy/wels-ranks.service")),
    ] {
        assert!(unit.contains("/usr/local/bin/wels serve "));
        let file = lab.at(name);
        // There may be no mpirun.
        fs::write(&file, unit.replace("/usr/local/bin/wels", program).replace("/usr/bin/mpirun", program)).unwrap();
        match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success() && !said.contains(&format!("{name}:")), "{said}");
            }
            Err(_) => eprintln!("SKIPPED: there is no systemd-analyze"),
        }
    }
}

#[test]
fn a_wrong_pair_of_certificate_and_key_is_refused() {
    let lab = Lab::new();
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/tests/data/tls");
    let pair = |certificate: &str, key: &str| {
        let (certificate, key) = (format!("{data}/{certificate}"), format!("{data}/{key}"));
        refused(&lab, &["--listen", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key])
    };
    let said = pair("one.crt", "other.key");
    assert!(said.contains("error: the certificate in ") && said.contains("cannot be used together"), "{said}");
    assert!(pair("one.key", "one.key").contains("has no certificate in PEM"));
    assert!(pair("one.crt", "one.crt").contains("has no private key in PEM"));
    assert!(pair("none.crt", "one.key").contains("error: cannot read "));
    assert!(refused(&lab, &["--tls-cert", "file"]).contains("--tls-key <FILE>"));
}

#[test]
fn a_server_without_keys_is_for_loopback_alone() {
    let lab = Lab::new();
    let said = refused(&lab, &["--no-key", "--listen", "0.0.0.0:0"]);
    assert!(said.contains("error: without keys, everybody who reaches 0.0.0.0:0 could use the server"), "{said}");
    assert!(refused(&lab, &["--no-key", "--cors", "*"]).contains("cannot be used with"), "a page would need no key");
    assert!(refused(&lab, &["--cors", "a.example"]).contains("error: `a.example` is no origin of web pages"));
    let host = refused(&lab, &["--image-hosts", "a.example,https://b.example"]);
    assert!(host.contains("error: `https://b.example` is no host that pictures could be fetched from"), "{host}");
    let server = lab.serve(&["--no-key"]);
    assert!(!server.greeting.contains("wels-"), "no key is made for nobody: {}", server.greeting);
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let body = json!({"model": "model", "prompt": "a fish", "max_tokens": 2}).to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", server.address);
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(lab.wels(&["usage"]).contains("local"));
    drop(server);
    lab.wels(&["keys", "revoke", "local"]);
    assert!(refused(&lab, &["--no-key", "--listen", "127.0.0.1:0"]).contains("is revoked"));
}

#[test]
fn a_killed_server_leaves_a_ledger_that_says_what_was_sent() {
    let lab = Lab::new();
    let key = lab.wels(&["keys", "add", "all"]).trim().to_owned();
    let mut numbers = Numbers(9);
    let mut sent: HashMap<String, u64> = HashMap::new();
    for kill in 0..KILLS {
        let mut server = lab.serve(&[]);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (address, key) = (server.address.clone(), key.clone());
                thread::spawn(move || send(&address, &key, &long_stream(client)).map(count).unwrap_or_default())
            })
            .collect();
        thread::sleep(Duration::from_millis(20 + numbers.below(300)));
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        for client in clients {
            let (id, tokens) = client.join().unwrap();
            if !id.is_empty() {
                assert!(sent.insert(id, tokens).is_none(), "kill {kill}: two requests of one name");
            }
        }
    }
    assert!(sent.values().filter(|tokens| **tokens > 0).count() >= KILLS, "kills came before the first tokens");
    // The next server settles what the last one left.
    drop(lab.serve(&[]));
    let mut ledger = Ledger::open(&lab.db()).unwrap();
    let entries = ledger.entries().unwrap();
    for entry in &entries {
        assert!(entry.outcome.is_some(), "{entry:?} is open");
        let sent = sent.get(&entry.request).copied().unwrap_or(0);
        let charged = entry.tokens.output;
        assert!((sent..=sent + PIECE_TOKENS).contains(&charged), "charged {charged} tokens, sent {sent}: {entry:?}");
    }
    for id in sent.keys() {
        assert_eq!(entries.iter().filter(|entry| entry.request == *id).count(), 1, "{id} is not billed once");
    }
    let key = &ledger.keys().unwrap()[0];
    let charged: i64 = entries.iter().map(|entry| entry.cost.0).sum();
    assert_eq!((key.spent.0, key.reserved.0), (charged, 0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let lab = Lab::new();
    let key = lab.wels(&["keys", "add", "all"]).trim().to_owned();
    let mut server = lab.serve(&["--drain", "600"]);
    let mut stream = server.send(&key, &long_stream(1));
    stream.read_exact(&mut [0; 400]).unwrap();
    // A client that does not read keeps the first signal's patience.
    server.signal("-TERM");
    thread::sleep(Duration::from_millis(200));
    server.signal("-TERM");
    let begin = Instant::now();
    server.child.wait().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_cache_that_memory_does_not_hold_is_refused() {
    let lab = Lab::new();
    for mib in ["99999999", "18446744073709551615"] {
        let output = Command::new(env!("CARGO_BIN_EXE_wels"))
            .args(["serve", lab.at("model").to_str().unwrap(), "--listen", "127.0.0.1:0", "--db", &lab.db()])
            .args(["--cache-mib", mib])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("error: a cache of {mib} MiB is more than ")), "{said}");
        assert!(said.contains("hint: give a smaller --cache-mib") && output.status.code() == Some(1), "{said}");
    }
}

/// A URL with a password is nobody else's business: it need not stand in the arguments.
#[test]
fn the_ledger_is_named_by_a_file_or_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let (db, file) = (folder.path().join("ledger.db"), folder.path().join("url"));
    fs::write(&file, format!("{}\nwhat follows is not read\n", db.display())).unwrap();
    let wels = |args: &[&str], variable: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wels"));
        command.args(args).env("WELS_DB", variable).env("HOME", folder.path()).env_remove("XDG_DATA_HOME");
        command.output().unwrap()
    };
    let file = file.to_str().unwrap();
    assert!(wels(&["keys", "add", "ann", "--db-file", file], "").status.success());
    let listed = wels(&["keys", "list"], db.to_str().unwrap());
    assert!(String::from_utf8_lossy(&listed.stdout).contains("ann"), "{listed:?}");
    // Neither of them names the ledger of the user's data directory.
    let other = wels(&["keys", "list"], "");
    assert!(other.status.success() && !String::from_utf8_lossy(&other.stdout).contains("ann"), "{other:?}");
    fs::write(folder.path().join("empty"), "\n").unwrap();
    let empty = folder.path().join("empty");
    let empty = wels(&["keys", "list", "--db-file", empty.to_str().unwrap()], "");
    assert!(String::from_utf8_lossy(&empty.stderr).contains("has no URL in its first line"), "{empty:?}");
}
