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
        "images/generations" => json!({"model": "janus", "prompt": "a"}),
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

/// The description of the API, with the parameters of each address that answers.
fn described(lab: &Lab) -> (Value, Map<String, Value>) {
    let api = lab.request("GET", "/openapi.json", "", b"").json();
    let resolved = |value: &Value| match value["$ref"].as_str() {
        Some(name) => api.pointer(name.strip_prefix('#').unwrap()).unwrap().clone(),
        None => value.clone(),
    };
    let mut addresses = Map::new();
    for (path, methods) in api["paths"].as_object().unwrap() {
        if !methods["post"].is_object() {
            continue;
        }
        let body = resolved(&methods["post"]["requestBody"]);
        let properties = body["content"]["application/json"]["schema"]["properties"].as_object().unwrap().clone();
        let properties: Map<_, _> = properties.into_iter().map(|(name, value)| (name, resolved(&value))).collect();
        addresses.insert(path.clone(), properties.into());
    }
    (api, addresses)
}

/// A value that a parameter takes by its description.
fn example(property: &Value) -> Value {
    let first = |key: &str| property[key].get(0).cloned();
    let own = |key: &str| Some(property[key].clone()).filter(|value| !value.is_null());
    let of_kind = || match property["type"].as_str() {
        Some("string") => json!("a"),
        Some(other) => panic!("no example of {other}: {property}"),
        None => json!({"any": 1}),
    };
    let example = first("examples").or_else(|| own("default")).or_else(|| first("enum")).or_else(|| own("minimum"));
    example.unwrap_or_else(of_kind)
}

#[test]
fn every_parameter_that_is_described_is_taken() {
    let lab = crate::images::lab(Setup::default());
    let (_, addresses) = described(&lab);
    assert!(addresses.len() >= 8, "{:?}", addresses.keys());
    // What only operators may ask for is tested with their keys, where it belongs.
    for (path, properties) in addresses.iter().filter(|(path, _)| *path != "/v1/adapters") {
        let address = path.trim_start_matches("/v1/").trim_start_matches("/beta/");
        for (name, property) in properties.as_object().unwrap() {
            let mut body = match address {
                "completions" => json!({"model": "tiny", "prompt": "a", "max_tokens": 1}),
                "messages/count_tokens" => least("messages"),
                other => least(other),
            };
            // What comes with another, or instead of one.
            match name.as_str() {
                "max_completion_tokens" => drop(body.as_object_mut().unwrap().remove("max_tokens")),
                "top_logprobs" if address == "chat/completions" => body["logprobs"] = true.into(),
                "stream_options" => body["stream"] = true.into(),
                "tool_choice" => body["tools"] = example(&properties["tools"]),
                "parallel_tool_calls" => body["tools"] = example(&properties["tools"]),
                "function_call" => body["functions"] = json!([{"name": "f"}]),
                _ => {}
            }
            if (address, name.as_str()) != ("images/generations", "model") {
                body[name] = example(property);
            }
            let reply = lab.post(path, &body);
            assert_eq!(reply.status, 200, "{path}: {name}: {body}: {}", reply.body);
        }
    }
}

#[test]
fn every_parameter_that_is_taken_is_described() {
    let lab = Setup::default().start();
    let (_, addresses) = described(&lab);
    let lists: Map<String, Value> = serde_json::from_str(include_str!("fields.json")).unwrap();
    for (address, fields) in &lists {
        let described = addresses[&format!("/v1/{address}")].as_object().unwrap();
        for field in fields.as_array().unwrap().iter().filter_map(Value::as_str) {
            let taken = values().into_iter().skip(1).find(|value| {
                let mut body = least(address);
                body[field] = value.clone();
                lab.post(&format!("/v1/{address}"), &body).status == 200
            });
            // What is refused but for the value that asks for nothing is no parameter.
            let asks =
                taken.as_ref().is_some_and(|value| ![json!(false), json!([]), json!({}), json!("")].contains(value));
            assert!(!asks || described.contains_key(field), "{address}: {field} = {taken:?} is not described");
        }
    }
}

#[test]
fn every_address_is_described_and_the_page_has_all_of_them() {
    let lab = Setup::default().start();
    let (api, _) = described(&lab);
    let page = lab.request("GET", "/docs", "", b"");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    for (path, methods) in api["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|key| ["get", "post", "delete"].contains(&&***key)) {
            let method = method.to_uppercase();
            let address = path.replace("{model}", "tiny").replace("{name}", "tiny");
            let reply = lab.request(&method, &address, &lab.key, b"{}");
            assert!(![404, 405].contains(&reply.status), "{method} {path}: {}", reply.status);
            assert!(page.body.contains(&format!("<code>{method} {path}</code>")), "{method} {path}");
        }
    }
}
