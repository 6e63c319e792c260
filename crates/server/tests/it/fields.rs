//! Every field of the official request schemas, as the clients of 2026-11 know them (`openai` 3.57.0, `anthropic`
//! 2.14.0; `scripts/clients/fields.py` writes the list): present, null, empty, extreme. It is taken, or a 400 names it.

use serde_json::{Map, Value, json};

use crate::lab::{Lab, Setup};

/// The least request to an address.
fn least(address: &str) -> Value {
    let messages = json!([{"role": "user", "content": "a"}]);
    match address {
        "responses" => json!({"model": "tiny", "input": "a", "max_output_tokens": 1}),
        "embeddings" => json!({"model": "tiny", "input": "a"}),
        _ => json!({"model": "tiny", "messages": messages, "max_tokens": 1}),
    }
}

/// What may stand in a field, from nothing to the absurd.
fn values() -> Vec<Value> {
    let deep = (0..60).fold(json!(1), |inner, _| json!([inner]));
    vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(-1),
        json!(0.5),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("auto"),
        json!("x".repeat(5000)),
        json!([]),
        json!([null]),
        json!(["a"]),
        json!([{}]),
        json!([{"type": "x"}]),
        json!({}),
        json!({"type": "x"}),
        json!({"a": {"b": [1, 2]}}),
        deep,
    ]
}

/// What is wrong with a reply, if anything is.
fn wrong(lab: &Lab, address: &str, field: &str, value: &Value) -> Option<String> {
    let mut body = least(address);
    body[field] = value.clone();
    let reply = lab.post(&format!("/v1/{address}"), &body);
    let error = &serde_json::from_str::<Value>(&reply.body).unwrap_or_default()["error"];
    let named = match address {
        "messages" => error["message"].as_str().is_some_and(|message| message.contains(field)),
        _ => error["param"].as_str().is_some_and(|param| param.split(['.', '[']).next() == Some(field)),
    };
    let fine = match reply.status {
        200 => true,
        404 => field == "model",
        // How long a prompt is, is a matter of all that stands in it.
        400 => named || error["code"] == "context_length_exceeded" || ["messages", "system"].contains(&field),
        _ => false,
    };
    (!fine).then(|| format!("{address}: {field} = {value:.60}: {} {:.200}", reply.status, reply.body))
}

#[test]
fn every_official_field_is_taken_or_named() {
    let lab = Setup::default().start();
    let lists: Map<String, Value> = serde_json::from_str(include_str!("fields.json")).unwrap();
    let mut wrongs = Vec::new();
    for (address, fields) in &lists {
        for field in fields.as_array().unwrap().iter().filter_map(Value::as_str) {
            wrongs.extend(values().iter().filter_map(|value| wrong(&lab, address, field, value)));
        }
    }
    assert!(wrongs.is_empty(), "{} wrong:\n{}", wrongs.len(), wrongs.join("\n"));
}

/// Which fields are known at all: one that a new version of a client brings is to be thought about.
#[test]
fn no_official_field_is_unknown() {
    let lab = Setup::default().start();
    let lists: Map<String, Value> = serde_json::from_str(include_str!("fields.json")).unwrap();
    for (address, fields) in &lists {
        for field in fields.as_array().unwrap().iter().filter_map(Value::as_str) {
            let mut body = least(address);
            body[field] = json!({"type": "x"});
            let reply = lab.post(&format!("/v1/{address}"), &body);
            let unknown = format!("`{field}` is not supported here");
            assert!(!reply.body.contains(&unknown), "{address}: {field}: {}", reply.body);
        }
    }
}
