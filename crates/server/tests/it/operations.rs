//! What the one who runs the server sees and sets: metrics, names of requests, who may call from where.

use std::collections::HashMap;

use serde_json::json;
use wels_server::http::{Cors, Settings};
use wels_server::ledger::Limits;

use crate::lab::{Lab, Response, Setup, chat_body};

/// The samples of a page of metrics by name and labels. Every metric must say what it is.
fn samples(page: &str) -> HashMap<String, f64> {
    let mut samples = HashMap::new();
    let (mut help, mut kind) = ("", "");
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').expect("a help text").0;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').unwrap();
            assert_eq!(name, help, "help and type stand together");
            kind = of;
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let parts = ["_bucket", "_sum", "_count"].map(|part| format!("{help}{part}"));
            assert!(name == help || (kind == "histogram" && parts.iter().any(|part| part == name)), "{line}");
            let plain = name.starts_with("process_") || name.starts_with("wels_connections");
            assert!(plain || sample.contains("model_name=\"tiny\""), "{line}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
        }
    }
    samples
}

#[test]
fn metrics_have_the_names_of_vllm_and_count_what_was_done() {
    let lab = Setup::default().start();
    let before = samples(&lab.metrics());
    assert_eq!(lab.chat(json!({"max_tokens": 5, "logit_bias": {"1": -100}})).status, 200);
    let embedding = json!({"model": "tiny", "input": ["a fish", "another"]});
    assert_eq!(lab.post("/v1/embeddings", &embedding).status, 200);
    assert_eq!(lab.chat(json!({"max_tokens": 0})).status, 400);
    lab.settled();
    let after = samples(&lab.metrics());
    let gained = |name: &str, labels: &str| {
        let sample = format!("{name}{{model_name=\"tiny\"{labels}}}");
        after.get(&sample).unwrap_or_else(|| panic!("there is no {sample}")) - before[&sample]
    };
    for (name, labels, expected) in [
        ("vllm:generation_tokens_total", "", 5.0),
        ("vllm:request_success_total", ",finished_reason=\"length\"", 1.0),
        ("vllm:request_success_total", ",finished_reason=\"stop\"", 1.0),
        ("vllm:request_success_total", ",finished_reason=\"error\"", 0.0),
        ("vllm:time_to_first_token_seconds_count", "", 1.0),
        ("vllm:time_to_first_token_seconds_bucket", ",le=\"+Inf\"", 1.0),
        ("vllm:inter_token_latency_seconds_count", "", 4.0),
        ("vllm:time_per_output_token_seconds_count", "", 4.0),
        ("vllm:e2e_request_latency_seconds_count", "", 2.0),
        ("vllm:request_queue_time_seconds_count", "", 2.0),
        ("vllm:request_prefill_time_seconds_count", "", 1.0),
        ("vllm:request_generation_tokens_sum", "", 5.0),
        ("vllm:num_requests_running", "", 0.0),
        ("vllm:num_requests_waiting", "", 0.0),
        ("wels_requests_total", ",outcome=\"done\"", 2.0),
        ("wels_tokens_total", ",kind=\"output\"", 5.0),
    ] {
        assert_eq!(gained(name, labels), expected, "{name}{labels}");
    }
    assert!(gained("vllm:prompt_tokens_total", "") > 3.0);
    let whole = gained("vllm:e2e_request_latency_seconds_sum", "");
    let parts = ["queue", "prefill", "decode"].map(|part| gained(&format!("vllm:request_{part}_time_seconds_sum"), ""));
    assert!(parts.iter().all(|part| *part >= 0.0) && parts.iter().sum::<f64>() <= whole, "{parts:?} of {whole}");
    let usage = after["vllm:kv_cache_usage_perc{model_name=\"tiny\"}"];
    assert!((0.0..=1.0).contains(&usage), "{usage}");
    if cfg!(target_os = "linux") {
        assert!(after["process_resident_memory_bytes"] > 1e6 && after["process_open_fds"] > 3.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - after["process_start_time_seconds"]).abs() < 600.0);
        assert!(after["process_cpu_seconds_total"] >= before["process_cpu_seconds_total"]);
    }
}

/// Sends a request with headers of the test's own.
fn send(lab: &Lab, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    use std::io::Write;
    let mut stream = lab.connect();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    Response::read(stream)
}

#[test]
fn every_response_has_the_name_of_its_request() {
    let lab = Setup::default().start();
    let authorization = format!("Bearer {}", lab.key);
    let name = |asked: Option<&str>, path: &str, body: &str| {
        let mut headers = vec![("Host", "test"), ("Authorization", authorization.as_str())];
        headers.extend(asked.map(|asked| ("X-Request-Id", asked)));
        let response = send(&lab, "POST", path, &headers, body);
        (response.header("x-request-id").expect("a name").to_owned(), response)
    };
    let chat = "/v1/chat/completions";
    let body = chat_body(json!({"max_tokens": 2})).to_string();
    let (made, response) = name(None, chat, &body);
    assert_eq!((made.as_str(), made.starts_with("chatcmpl-")), (response.json()["id"].as_str().unwrap(), true));
    let (own, response) = name(Some("My_request.7-a"), chat, &body);
    assert_eq!(own, "my_request.7-a", "the test's client reads heads in small letters");
    assert_ne!(response.json()["id"], "My_request.7-a", "bills do not depend on what clients call their requests");
    let long = "a".repeat(128);
    assert_eq!(name(Some(&long), chat, "{}").0, long);
    for bad in ["", "a b", "a;b", "\"a\"", &format!("{long}a"), "ä"] {
        let (made, response) = name(Some(bad), chat, "{}");
        assert_eq!((response.status, made.starts_with("req-"), made.len()), (400, true, 36), "{bad:?}: {made}");
    }
    assert!(name(None, "/nowhere", "").0.starts_with("req-"));
    let (stream, response) = name(None, chat, &chat_body(json!({"max_tokens": 2, "stream": true})).to_string());
    assert_eq!(stream, response.events()[0]["id"].as_str().unwrap());
}

#[test]
fn a_limited_key_is_told_what_is_left() {
    let limits = Limits { requests_per_minute: Some(2), tokens_per_minute: Some(1000), ..Limits::default() };
    let lab = Setup { limits, ..Setup::default() }.start();
    let number = |response: &Response, name: &str| -> u64 {
        let value = response.header(&format!("x-ratelimit-{name}")).unwrap_or_else(|| panic!("{name}: {response:?}"));
        value.parse().unwrap()
    };
    let first = lab.chat(json!({"max_tokens": 10}));
    assert_eq!((number(&first, "limit-requests"), number(&first, "remaining-requests")), (2, 1));
    assert_eq!(number(&first, "limit-tokens"), 1000);
    let prompt = first.json()["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(number(&first, "remaining-tokens"), 1000 - prompt - 10, "the most that it can become");
    let resets = ["reset-requests", "reset-tokens"].map(|name| first.header(&format!("x-ratelimit-{name}")).unwrap());
    assert!(resets.iter().all(|reset| ["1m0s", "59s", "58s"].contains(reset)), "{resets:?}");
    lab.settled();
    let second = lab.chat(json!({"max_tokens": 10}));
    assert_eq!(number(&second, "remaining-requests"), 0);
    let refused = lab.chat(json!({"max_tokens": 10}));
    assert_eq!((refused.status, number(&refused, "remaining-requests")), (429, 0));
    let other = lab.ledger().add_key("other", &Limits::default(), 0).unwrap();
    let free = lab.request("POST", "/v1/chat/completions", other.reveal(), chat_body(json!({})).to_string().as_bytes());
    assert!(!free.head.contains("x-ratelimit"), "{}", free.head);
}

#[test]
fn a_server_without_keys_serves_its_own_machine_alone() {
    let settings = Settings { without_key: Some("test".to_owned()), ..Settings::default() };
    let lab = Setup { settings, ..Setup::default() }.start();
    let own = format!("http://{}", lab.address);
    let port = lab.address.port();
    let localhost = format!("localhost:{port}");
    let address = lab.address.to_string();
    let body = chat_body(json!({"max_tokens": 1})).to_string();
    let status = |headers: &[(&str, &str)]| send(&lab, "POST", "/v1/chat/completions", headers, &body).status;
    assert_eq!(status(&[("Host", &address)]), 200);
    assert_eq!(status(&[("Host", &localhost), ("Authorization", "Bearer whatever")]), 200);
    assert_eq!(status(&[("Host", &address), ("Origin", &own)]), 200, "the server's own page");
    let evil = format!("evil.example:{port}");
    assert_eq!(status(&[("Host", &evil)]), 403, "a name that was made to mean this address");
    assert_eq!(status(&[]), 403, "no name at all");
    for origin in ["https://evil.example", "null", "http://localhost:1"] {
        let refused = send(&lab, "POST", "/v1/chat/completions", &[("Host", &address), ("Origin", origin)], &body);
        assert_eq!((refused.status, refused.header("access-control-allow-origin")), (403, None), "{origin}");
    }
    assert_eq!(lab.settled().len(), 3);
    // A key that is known is who it says.
    let other = lab.ledger().add_key("other", &Limits::default(), 0).unwrap();
    let bearer = format!("Bearer {}", other.reveal());
    assert_eq!(status(&[("Host", &address), ("Authorization", &bearer)]), 200);
    let spent = |name: &str| lab.ledger().find_named(name).unwrap().unwrap().spent;
    while spent("other").0 == 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn pages_of_other_origins_call_where_they_may() {
    let origins = ["https://a.example".to_owned(), "http://localhost:3000".to_owned()];
    let cors = |cors: Cors| Setup { settings: Settings { cors, ..Settings::default() }, ..Setup::default() }.start();
    let some = cors(Cors::new(&origins).unwrap());
    let preflight = |lab: &Lab, origin: &str| {
        let headers = [
            ("Host", "test"),
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization,x-stainless-os"),
        ];
        send(lab, "OPTIONS", "/v1/chat/completions", &headers, "")
    };
    let allowed = |response: &Response| response.header("access-control-allow-origin").map(str::to_owned);
    for origin in &origins {
        let response = preflight(&some, origin);
        assert_eq!((response.status, allowed(&response).as_ref()), (204, Some(origin)));
        assert_eq!(response.header("access-control-allow-headers"), Some("authorization,x-stainless-os"));
        assert_eq!(response.header("access-control-allow-methods"), Some("get, post, delete"));
        assert!(response.header("access-control-allow-credentials").is_none());
        // An error can be read, too: a page that may not read it cannot say what is wrong.
        let response = send(&some, "GET", "/v1/models", &[("Host", "test"), ("Origin", origin)], "");
        assert_eq!((response.status, allowed(&response).as_ref()), (401, Some(origin)));
        assert_eq!(response.header("vary"), Some("origin"));
        assert!(response.header("access-control-expose-headers").unwrap().contains("x-request-id"));
    }
    // To unload an adapter.
    let headers = [("Host", "test"), ("Origin", origins[0].as_str()), ("Access-Control-Request-Method", "DELETE")];
    let response = send(&some, "OPTIONS", "/v1/adapters/a", &headers, "");
    assert_eq!((response.status, allowed(&response).as_ref()), (204, Some(&origins[0])));
    assert!(response.header("access-control-allow-methods").unwrap().split(", ").any(|method| method == "delete"));
    let other = preflight(&some, "https://b.example");
    assert_eq!((other.status, allowed(&other)), (405, None));
    assert_eq!(allowed(&preflight(&cors(Cors::Any), "https://b.example")).as_deref(), Some("*"));
    assert_eq!(allowed(&preflight(&cors(Cors::Own), "https://a.example")), None);
}
