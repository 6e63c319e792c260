//! Many adapters on one model: chosen by name, the same bytes in any mix, loaded and unloaded while the server runs.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};
use wels_cpu::testing::device;
use wels_device::Tensor;
use wels_device::host::random::Key;
use wels_model::adapter::{Adapter, AdapterConfig, BaseName, Targets};
use wels_model::weights::open_dir;
use wels_pipeline::identity::{adapter_sha256, weights_sha256};
use wels_pipeline::model::Location;

use crate::serve::{Lab, send};

/// Writes an adapter that changes the lab's model, as its seed says.
fn write_adapter(lab: &Lab, to: &Path, rank: usize, seed: u64) {
    let base = lab.at("model");
    let config = open_dir(&base).unwrap().0;
    let adapter = AdapterConfig { rank, alpha: 16.0, rank_stabilised: false, targets: Targets::AllLinear };
    let new = Adapter::init(&device(), &config, adapter, seed).unwrap();
    let pairs = new.pairs().iter().cloned().map(|mut pair| {
        let key = Key { seed, stream: pair.param as u64 };
        let values: Vec<f32> = (0..pair.b.len() as u64).map(|i| 0.1 * key.normal_at(i) as f32).collect();
        pair.b = Tensor::of(&device(), pair.b.rows(), pair.b.cols(), &values);
        pair
    });
    let adapter = Adapter::new(new.config().clone(), pairs.collect());
    let sha256 = weights_sha256(&Location::Directory(base)).unwrap();
    let base = BaseName { name: Some("../../model".into()), revision: None, sha256: Some(sha256) };
    adapter.save(to, &config, &base).unwrap();
}

fn call(address: &str, method: &str, path: &str, key: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nAuthorization: Bearer {key}\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(reply.split("\r\n\r\n").nth(1).unwrap()).unwrap_or(Value::Null))
}

/// What a model says, with its log-probabilities: text and numbers as they came.
fn asked(address: &str, key: &str, model: &str, seed: u64) -> Value {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "a fish and another fish by the name"}],
        "max_tokens": 24, "seed": seed, "temperature": 1.0, "logprobs": true, "logit_bias": {"1": -100}});
    let mut reply = String::new();
    send(address, key, &body).unwrap().read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{model}: {reply}");
    let reply: Value = serde_json::from_str(reply.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(reply["model"], model);
    json!([reply["choices"], reply["system_fingerprint"]])
}

/// A lab with some adapters.
fn lab() -> Lab {
    let lab = Lab::new();
    for (name, rank, seed) in [("a", 4, 1), ("b", 2, 2), ("wide", 8, 3)] {
        write_adapter(&lab, &lab.at(&format!("adapters/{name}")), rank, seed);
    }
    lab
}

#[test]
fn adapters_are_served_by_name_and_say_the_same_in_any_company() {
    let lab = lab();
    let hash = |name: &str| adapter_sha256(&lab.at(&format!("adapters/{name}"))).unwrap();
    let named = |name: &str| format!("{name}={}", lab.at(&format!("adapters/{name}")).display());
    let (a, b) = (named("a"), named("b"));
    let server = lab.serve(&["--adapter", &a, "--adapter", &b]);
    let key = lab.wels(&["keys", "add", "ann"]).trim().to_owned();
    let address = &server.address;

    let (_, models) = call(address, "GET", "/v1/models", &key, &Value::Null);
    let listed: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!(listed, ["model", "a", "b"]);
    assert_eq!(models["data"][1]["adapter"], json!({"base": "model", "sha256": hash("a"), "rank": 4, "alpha": 16.0}));

    // Each by itself, then all at the same time, several times over, with the prefixes that are cached by then.
    let names = ["model", "a", "b"];
    let alone: Vec<Value> = (0..9).map(|i| asked(address, &key, names[i % 3], i as u64 / 3)).collect();
    assert!(alone[0][0] != alone[1][0] && alone[1][0] != alone[2][0] && alone[0][0] != alone[2][0], "{alone:?}");
    assert!(alone[1][1].as_str().unwrap().ends_with(&hash("a")), "{}", alone[1][1]);
    for _ in 0..3 {
        let together: Vec<Value> = thread::scope(|scope| {
            let ask = |i: usize| {
                let key = &key;
                scope.spawn(move || asked(address, key, names[i % 3], i as u64 / 3))
            };
            let clients: Vec<_> = (0..9).map(ask).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        assert_eq!(together, alone);
    }

    let usage = lab.wels(&["usage", "--by", "model"]);
    assert!(["a", "b"].iter().all(|name| usage.contains(&format!("{name}@{}", hash(name)))), "{usage}");
    drop(server);

    // A model by itself, without any adapter beside it, says what it said in their company.
    let server = lab.serve(&[]);
    assert_eq!(asked(&server.address, &key, "model", 0), alone[0]);
}

#[test]
fn operators_load_and_unload_adapters_while_the_server_runs() {
    let lab = lab();
    let (a, dir) = (format!("a={}", lab.at("adapters/a").display()), lab.at("adapters").display().to_string());
    let server = lab.serve(&["--adapter", &a, "--adapters-dir", &dir, "--max-adapter-rank", "4"]);
    let key = lab.wels(&["keys", "add", "ann"]).trim().to_owned();
    let admin = lab.wels(&["keys", "add", "operator", "--admin"]).trim().to_owned();
    let address = &server.address;
    let said = asked(address, &key, "a", 0)[0].clone();
    let add = |key: &str, name: &str, path: &str| {
        call(address, "POST", "/v1/adapters", key, &json!({"name": name, "path": path}))
    };
    let refused = |(status, reply): (u16, Value), expected: u16, text: &str| {
        let message = reply["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(status == expected && message.contains(text), "{status}: {reply}");
    };
    refused(add(&key, "c", "a"), 403, "--admin");
    refused(add(&admin, "a", "a"), 400, "There is a model `a` already");
    refused(add(&admin, "c", "../model"), 400, "there is no directory ../model among the adapters");
    refused(add(&admin, "c", lab.at("model").to_str().unwrap()), 400, "among the adapters");
    refused(add(&admin, "c", "nowhere"), 400, "there is no directory nowhere among the adapters");
    refused(add(&admin, "c", "wide"), 400, "is of rank 8, more than 4");
    refused(add(&admin, "c d", "a"), 400, "A name has 1 to 128");
    fs::create_dir(lab.at("adapters/empty")).unwrap();
    refused(add(&admin, "c", "empty"), 400, "there is no adapter_config.json");
    let other = call(address, "POST", "/v1/adapters", &admin, &json!({"name": "c", "path": "a", "model": "none"}));
    refused(other, 404, "`none` does not exist");
    let other = call(address, "POST", "/v1/adapters", &admin, &json!({"name": "c", "path": "a", "model": "a"}));
    refused(other, 400, "this is an adapter");

    assert_eq!(add(&admin, "c", "a").0, 201);
    let choices = asked(address, &key, "c", 0)[0].clone();
    assert_eq!(choices, said, "the same weights by another name");
    let (_, loaded) = call(address, "GET", "/v1/adapters", &admin, &Value::Null);
    assert_eq!(loaded["data"].as_array().unwrap().len(), 2);
    assert_eq!(call(address, "DELETE", "/v1/adapters/c", &admin, &Value::Null).0, 200);
    refused(call(address, "DELETE", "/v1/adapters/model", &admin, &Value::Null), 404, "`model` does not exist");
    refused(call(address, "DELETE", "/v1/adapters/a", &key, &Value::Null), 403, "--admin");
    let (_, loaded) = call(address, "GET", "/v1/adapters", &admin, &Value::Null);
    assert_eq!(loaded["data"].as_array().unwrap().len(), 1);
    let mut reply = String::new();
    let body = json!({"model": "c", "messages": [{"role": "user", "content": "a"}]});
    send(address, &key, &body).unwrap().read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 404"), "{reply}");
}
