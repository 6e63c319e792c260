//! `wels eval`: receipts that are the same in every run and after kills, what is said of damaged files and of servers
//! that misbehave, comparison, overlap, the probe.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::lab::{Lab, Numbers, wait_until};
use crate::serve::write_model;

const ITEMS: usize = 60;

/// A lab with a model of random weights and benchmark files.
pub fn lab() -> Lab {
    let lab = Lab::new();
    write_model(&lab.at("model"));
    let header = "question,choice0,choice1,choice2,choice3,answer\n";
    let row = |part: usize, item: usize| {
        format!("What is {item} of part {part}?,a fish,the name,{item},another,{}\n", item % 4)
    };
    let table = |items: usize| -> String {
        let part = |part| format!("{header}{}\n", (0..items).map(|item| row(part, item)).collect::<String>());
        (0..3).map(part).collect()
    };
    fs::create_dir(lab.at("data")).unwrap();
    fs::write(lab.at("data/mmlu_test.csv"), table(ITEMS / 3)).unwrap();
    fs::write(lab.at("data/mmlu_dev.csv"), table(5)).unwrap();
    let gsm = |count: usize| -> String {
        (0..count)
            .map(|n| {
                json!({"question": format!("What is {n} + 1?"), "answer": format!("#### {}", n + 1)}).to_string() + "\n"
            })
            .collect()
    };
    fs::write(lab.at("data/gsm8k_test.jsonl"), gsm(20)).unwrap();
    lab
}

const EVAL: [&str; 14] = [
    "eval",
    "model",
    "--data",
    "data",
    "--bench",
    "mmlu,gsm8k",
    "--items",
    "50",
    "--samples",
    "3",
    "--max-tokens",
    "24",
    "--seed",
    "4",
];

fn eval<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    EVAL.iter().chain(&["--out", out]).chain(more).copied().collect()
}

/// What every run has to write alike.
fn files(lab: &Lab, out: &str) -> Vec<(&'static str, String)> {
    let read =
        |name| (name, fs::read_to_string(lab.at(out).join(name)).unwrap_or_else(|e| panic!("{out}/{name}: {e}")));
    ["eval.json", "mmlu.jsonl", "gsm8k.jsonl", "scores.json"].map(read).to_vec()
}

fn lines(lab: &Lab, file: &str) -> usize {
    fs::read_to_string(lab.at(file)).map_or(0, |text| text.lines().count())
}

fn scores(lab: &Lab, out: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(lab.at(out).join("scores.json")).unwrap()).unwrap()
}

#[test]
fn receipts_are_the_same_in_every_run_and_after_kills() {
    let lab = lab();
    lab.done(&eval("first", &[]));
    let first = files(&lab, "first");
    assert_eq!((lines(&lab, "first/mmlu.jsonl"), lines(&lab, "first/gsm8k.jsonl")), (50, 60));
    lab.done(&eval("second", &["--parallel", "3", "--threads", "1", "--cache-mib", "1"]));
    assert_eq!(files(&lab, "second"), first);

    let mut numbers = Numbers(5);
    let written = || lines(&lab, "killed/mmlu.jsonl") + lines(&lab, "killed/gsm8k.jsonl");
    let (mut kills, mut rounds) = (0, 0);
    while kills < 6 {
        rounds += 1;
        assert!(rounds <= 60, "{kills} kills in {rounds} rounds");
        if written() == 50 + 60 {
            fs::remove_dir_all(lab.at("killed")).unwrap(); // where the machine is busy, the kills came too late
        }
        let resume: &[&str] = if lab.at("killed").exists() { &["--resume"] } else { &[] };
        let mut child = lab.start(&eval("killed", resume));
        let until = written() + 1 + numbers.below(12) as usize;
        if wait_until(&mut child, || written() >= until) {
            kills += 1;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // What a crash may leave of a line.
    let torn = fs::OpenOptions::new().append(true).open(lab.at("killed/gsm8k.jsonl"));
    torn.or_else(|_| fs::File::create(lab.at("killed/gsm8k.jsonl"))).unwrap().write_all(b"{\"item\":\"").unwrap();
    let said = lab.done(&eval("killed", &["--resume"]));
    assert!(said.stderr.contains("of an unfinished line are dropped"), "{said:?}");
    assert_eq!(files(&lab, "killed"), first);
    let again = lab.done(&eval("killed", &["--resume"]));
    assert_eq!(files(&lab, "killed"), first, "{again:?}");
}

#[test]
fn receipts_and_scores_hold_together() {
    let lab = lab();
    lab.done(&eval("out", &["--json"]));
    let scores = scores(&lab, "out");
    let mmlu: Vec<Value> = fs::read_to_string(lab.at("out/mmlu.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut right = 0;
    for receipt in &mmlu {
        let choices: Vec<f64> = receipt["choices"].as_array().unwrap().iter().map(|c| c.as_f64().unwrap()).collect();
        let most = choices.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let letter = char::from(b'A' + choices.iter().position(|c| *c == most).unwrap() as u8).to_string();
        assert_eq!(receipt["answer"], letter);
        assert!(choices.iter().all(|c| *c < 0.0) && choices.iter().map(|c| c.exp()).sum::<f64>() < 1.0);
        assert_eq!(receipt["correct"], receipt["answer"] == receipt["expected"]);
        assert_eq!(receipt["shots"], 5);
        right += usize::from(receipt["correct"] == true);
    }
    let score = &scores["benchmarks"][0];
    assert_eq!((&score["name"], &score["items"]), (&json!("mmlu"), &json!(50)));
    assert_eq!(score["accuracy"]["value"], right as f64 / 50.0);
    assert_eq!(score["subjects"].as_array().unwrap().len(), 3);
    assert_eq!(scores["benchmarks"][1]["pass_at"].as_object().unwrap().keys().collect::<Vec<_>>(), ["2", "3"]);
    assert_eq!(scores["quality_index"]["value"], Value::Null);
    assert_eq!(scores["quality_index"]["missing"], json!(["gpqa", "math", "humaneval"]));
    // Examples of a part are computed once for its questions, though not for each of those begun at the same time.
    let seconds = fs::read_to_string(lab.at("out/mmlu.seconds.jsonl")).unwrap();
    let cached: u64 = seconds
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["cached_tokens"].as_u64().unwrap())
        .sum();
    let prompts: u64 = mmlu.iter().map(|receipt| receipt["prompt_tokens"].as_u64().unwrap()).sum();
    assert!(cached * 2 > prompts, "{cached} of {prompts} tokens were shared");
}

/// The same examples before each question but the one that is among them.
#[test]
fn examples_come_before_questions_and_never_show_the_answer() {
    let lab = lab();
    let args = ["eval", "model", "--data", "data", "--bench", "gsm8k", "--prompt", "plain", "--max-tokens", "4"];
    lab.done(&[&args[..], &["--shots", "2", "--dev", "gsm8k=data/gsm8k_test.jsonl", "--out", "out"]].concat());
    let text = fs::read_to_string(lab.at("out/gsm8k.jsonl")).unwrap();
    for (asked, line) in text.lines().enumerate() {
        let receipt: Value = serde_json::from_str(line).unwrap();
        let mut prompt: String = (0..20)
            .filter(|shown| *shown != asked)
            .take(2)
            .map(|n| format!("Question: What is {n} + 1?\nAnswer: #### {}\n\n", n + 1))
            .collect();
        prompt.push_str(&format!("Question: What is {asked} + 1?\nAnswer:"));
        assert_eq!(receipt["prompt_sha256"], wels_runs::hash::sha256(prompt.as_bytes()), "{asked}");
    }
}

/// The letters are of two tokens here, so the engine is asked twice; `wels score` takes the whole text in one pass.
#[test]
fn likelihoods_are_those_of_the_whole_text() {
    let lab = lab();
    let args = ["eval", "model", "--data", "data", "--bench", "mmlu", "--shots", "0", "--cache", "f32", "--out", "out"];
    lab.done(&args);
    let text = fs::read_to_string(lab.at("out/mmlu.jsonl")).unwrap();
    let receipt: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let prompt = "The following are multiple choice questions (with answers).\n\nWhat is 0 of part 0?\n\
                  A. a fish\nB. the name\nC. 0\nD. another\nAnswer:";
    let score = |text: &str| -> Vec<f64> {
        let said: Value =
            serde_json::from_str(&lab.done(&["score", "model", "--text", text, "--json"]).stdout).unwrap();
        said["logprobs"].as_array().unwrap()[1..].iter().map(|logprob| logprob.as_f64().unwrap()).collect()
    };
    let before = score(prompt).len();
    for (letter, expected) in ["A", "B", "C", "D"].iter().zip(receipt["choices"].as_array().unwrap()) {
        let whole = score(&format!("{prompt} {letter}"));
        assert_eq!(whole.len(), before + 2, "tokens of ` {letter}`");
        let sum: f64 = whole[before..].iter().sum();
        assert!((sum - expected.as_f64().unwrap()).abs() < 1e-5, "{letter}: {sum} and {expected}");
    }
}

#[test]
fn what_cannot_be_evaluated_is_said() {
    let lab = lab();
    lab.done(&eval("out", &[]));
    fs::write(lab.at("short.csv"), "question,choice0,choice1,answer\na,b,c,0\n").unwrap();
    fs::write(lab.at("latin.csv"), b"question,choice0,choice1,choice2,choice3,answer\na,b,\xff,d,e,1\n").unwrap();
    fs::write(lab.at("twice.jsonl"), "{\"id\": 1, \"problem\": \"a\", \"answer\": \"1\"}\n".repeat(2)).unwrap();
    fs::write(lab.at("empty.jsonl"), "").unwrap();
    let resumed = eval("out", &["--resume", "--shots", "2"]);
    let again = eval("out", &[]);
    let cases: &[(&[&str], &str)] = &[
        (&again, "error: out holds an evaluation already\nhint: go on with it by --resume"),
        (&resumed, "error: out/eval.json is of another evaluation: `benchmarks[0].shots` was 5 and is 2\n"),
        (&["eval", "model"], "error: there is nothing to evaluate\n"),
        (&["eval", "model", "--bench", "mmul"], "error: there is no benchmark 'mmul'\nhint: known are mmlu, gpqa,"),
        (&["eval", "model", "--bench", "gpqa/../x"], "error: there is no benchmark 'gpqa/../x'\n"),
        (&["eval", "model", "--bench", "mmlu"], "error: there is no file for mmlu\nhint: write --bench mmlu=FILE"),
        (&["eval", "model", "--bench", "aime", "--data", "data"], "error: data holds none of aime.jsonl"),
        (&["eval", "model", "--bench", "mmlu=short.csv"], "error: short.csv, line 2"),
        (&["eval", "model", "--bench", "mmlu=latin.csv"], "error: latin.csv, line 2, column 0: cell 3 is not UTF-8\n"),
        (
            &["eval", "model", "--bench", "math=twice.jsonl"],
            "error: twice.jsonl, line 2, column 0: the id `1` was there",
        ),
        (&["eval", "model", "--bench", "math=empty.jsonl"], "error: empty.jsonl has no questions\n"),
        (&["eval", "model", "--bench", "mmlu=short.csv,mmlu=latin.csv"], "error: mmlu is named twice\n"),
        (
            &["eval", "model", "--bench", "gsm8k=data/gsm8k_test.jsonl", "--shots", "3", "--prompt", "plain"],
            "error: there is no file with examples for gsm8k\n",
        ),
        (&["eval", "text", "--bench", "mmlu", "--data", "data"], "error: text is no model\n"),
        (&["eval", "--compare", "out", "data"], "error: cannot read data/eval.json"),
        (
            &["eval", "m", "--endpoint", "localhost", "--bench", "mmlu", "--data", "data"],
            "error: localhost is no address",
        ),
    ];
    for (args, expected) in cases {
        let said = lab.wels(args);
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{args:?}: {said:?}");
        assert!(said.failure().starts_with(expected), "{args:?}: {}", said.failure());
    }
}

#[test]
fn two_evaluations_are_compared_item_by_item() {
    let lab = lab();
    lab.done(&eval("a", &[]));
    // B is A with every third wrong answer made right.
    fs::create_dir(lab.at("b")).unwrap();
    for (name, text) in files(&lab, "a") {
        let mut wrong = 0;
        let better = text.lines().map(|line| {
            wrong += usize::from(line.contains("\"correct\":false"));
            let changed = line.replace("\"correct\":false", "\"correct\":true");
            if name == "mmlu.jsonl" && wrong % 3 == 1 { changed + "\n" } else { line.to_owned() + "\n" }
        });
        fs::write(lab.at("b").join(name), better.collect::<String>()).unwrap();
    }
    let said = lab.done(&["eval", "--compare", "a", "b", "--json"]);
    let compared: Value = serde_json::from_str(&said.stdout).unwrap();
    let mmlu = &compared["benchmarks"][0];
    let better = mmlu["difference"]["second_better"].as_u64().unwrap();
    assert!(better > 6 && mmlu["difference"]["first_better"] == 0, "{mmlu}");
    let p = mmlu["difference"]["p"].as_f64().unwrap();
    assert!((p - 2.0 * 0.5f64.powi(better as i32)).abs() < 1e-12, "{p}");
    assert_eq!((&mmlu["significant"], &compared["benchmarks"][1]["significant"]), (&json!(true), &json!(false)));
    let words = lab.done(&["eval", "--compare", "a", "b"]).stdout;
    assert!(words.contains("B is better") && words.contains("no significant difference"), "{words}");
}

#[test]
fn items_in_a_corpus_are_found() {
    let lab = lab();
    let long = "a train leaves the station at nine with forty two people and eleven of them get off";
    fs::write(
        lab.at("own.jsonl"),
        format!(
            "{}\n{}\n",
            json!({"question": format!("{long}?"), "answer": "#### 31"}),
            json!({"question": "What is 2 and 2?", "answer": "#### 4"})
        ),
    )
    .unwrap();
    fs::write(lab.at("text/41.txt"), format!("He wrote: {}.", long.to_uppercase())).unwrap();
    let args = ["eval", "--bench", "gsm8k=own.jsonl", "--against", "text", "--json"];
    let found: Value = serde_json::from_str(&lab.done(&args).stdout).unwrap();
    assert_eq!(found["documents"], 41);
    let row = &found["benchmarks"][0];
    assert_eq!((&row["items"], &row["too_short"]), (&json!(2), &json!(1)));
    assert_eq!(row["contaminated"].as_array().unwrap().len(), 1);
    assert_eq!(row["contaminated"][0]["item"], "0");
    assert_eq!(row["contaminated"][0]["document"], "text/41.txt, document 1");
    fs::remove_file(lab.at("text/41.txt")).unwrap();
    let found: Value = serde_json::from_str(&lab.done(&args).stdout).unwrap();
    assert_eq!(found["benchmarks"][0]["contaminated"], json!([]));
}

/// What a server says: status, more headers, body; `None` for a connection that is closed without a word.
pub type Reply = Option<(u16, &'static str, String)>;

/// A server that answers by a function of the number of the request, its path and its body. Its address.
pub fn server(reply: impl Fn(usize, &str, &Value) -> Reply + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1", listener.local_addr().unwrap());
    let (reply, count) = (Arc::new(reply), Arc::new(AtomicUsize::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (reply, number) = (reply.clone(), count.fetch_add(1, Ordering::SeqCst));
            std::thread::spawn(move || serve(stream.unwrap(), |path, body| reply(number, path, body)));
        }
    });
    address
}

fn serve(mut stream: TcpStream, reply: impl Fn(&str, &Value) -> Reply) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let path = first.split(' ').nth(1).unwrap_or_default();
    if let Some((status, headers, body)) = reply(path, &serde_json::from_slice(&body).unwrap()) {
        let head =
            format!("HTTP/1.1 {status} X\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        let _ = stream.write_all((head + &body).as_bytes());
    }
}

fn message(text: &str, completion_tokens: u64) -> Reply {
    let body = json!({
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": completion_tokens},
    });
    Some((200, "", body.to_string()))
}

/// The sum that a question asks for.
fn solved(body: &Value) -> String {
    let question = body["messages"][0]["content"].as_str().unwrap();
    let number: u64 = question.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    format!("It is \\boxed{{{}}}.", number + 1)
}

#[test]
fn a_server_that_refuses_breaks_off_and_miscounts_is_evaluated_all_the_same() {
    let lab = lab();
    let address = server(|number, path, body| {
        assert_eq!((path, &body["model"]), ("/v1/chat/completions", &json!("theirs")));
        match number % 4 {
            0 => Some((429, "retry-after: 0\r\n", "{\"error\": \"slower\"}".into())),
            1 => None,
            2 => message(&solved(body), 1_000_000),
            _ => message(&solved(body), 9),
        }
    });
    let args = |out: &'static str| {
        let fixed = ["--bench", "gsm8k", "--data", "data", "--max-tokens", "100", "--out", out, "--parallel", "3"];
        [&["eval", "theirs", "--endpoint", &address][..], &fixed]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let run = |args: Vec<String>| lab.done(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let said = run(args("there"));
    assert!(said.stderr.contains("cannot be right") && said.stderr.contains("were made again"), "{said:?}");
    let there = scores(&lab, "there");
    assert_eq!(there["benchmarks"][0]["accuracy"]["value"], 1.0);
    // Not all counts can be believed, so their sum is not given.
    assert_eq!(there["benchmarks"][0]["generated_tokens"], Value::Null);
    let counted = run([args("counted"), vec!["--tokenizer".into(), "model".into()]].concat());
    let tokens = scores(&lab, "counted")["benchmarks"][0]["generated_tokens"].as_u64();
    assert!(tokens.is_some_and(|tokens| (20..1000).contains(&tokens)), "{tokens:?} {counted:?}");
}

#[test]
fn a_server_that_never_answers_ends_with_what_it_said() {
    let lab = lab();
    let args = |address: &str, more: &[&str]| -> Vec<String> {
        let fixed = ["--bench", "gsm8k", "--data", "data", "--items", "1", "--timeout", "1", "--out"];
        let all = [&["eval", "m", "--endpoint", address], &fixed[..], more].concat();
        all.into_iter().map(str::to_owned).collect()
    };
    let wels = |args: Vec<String>| lab.wels(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let stalls = server(|_, _, _| {
        std::thread::sleep(std::time::Duration::from_secs(30));
        None
    });
    let said = wels(args(&stalls, &["a"]));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.failure().contains("gives no answer after 5 attempts"), "{said:?}");
    let denies = server(|_, _, _| Some((401, "", "{\"error\": {\"message\": \"wrong key\"}}".into())));
    let said = wels(args(&denies, &["b"]));
    assert!(said.failure().contains("status 401") && said.failure().contains("wrong key"), "{said:?}");
    assert!(said.failure().contains("--key-env"), "{said:?}");
}

#[test]
fn letters_are_read_from_an_endpoints_likeliest_tokens() {
    let lab = lab();
    let letters = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&letters);
    let address = server(move |_, path, body| {
        assert_eq!((path, &body["max_tokens"]), ("/v1/completions", &json!(1)));
        *seen.lock().unwrap() += 1;
        let top = json!({" A": -2.0, " B": -1.0, " C": -3.0, " D": -0.5});
        let choice = json!({"text": " D", "finish_reason": "length", "logprobs": {"top_logprobs": [top]}});
        Some((200, "", json!({"choices": [choice], "usage": {"prompt_tokens": 4, "completion_tokens": 1}}).to_string()))
    });
    let out = ["eval", "m", "--endpoint", &address, "--bench", "mmlu", "--data", "data", "--choice", "likelihood"];
    lab.done(&[&out[..], &["--out", "letters"]].concat());
    assert_eq!(*letters.lock().unwrap(), ITEMS);
    let text = fs::read_to_string(lab.at("letters/mmlu.jsonl")).unwrap();
    assert!(text.lines().all(|line| line.contains("\"choices\":[-2.0,-1.0,-3.0,-0.5],\"output\":\"D\"")), "{text}");
}

#[test]
fn evasions_are_shown_beside_answers() {
    let lab = lab();
    let address = server(|_, _, body| match body["messages"][0]["content"].as_str().unwrap() {
        text if text.contains("Ruritania") => message("I'm sorry, let's talk about something else.", 9),
        _ => message("It was founded long ago, and much is known of it.", 12),
    });
    let pairs: String = (0..8)
        .map(|n| json!({"id": format!("p{n}"), "a": format!("Who rules France {n}?"), "b": format!("Who rules Ruritania {n}?")}).to_string() + "\n")
        .collect();
    fs::write(lab.at("pairs.jsonl"), pairs).unwrap();
    let args = ["eval", "m", "--endpoint", &address, "--probe", "pairs.jsonl", "--out", "probe", "--json"];
    let probe: Value = serde_json::from_str(&lab.done(&args).stdout).unwrap();
    assert_eq!(
        (&probe["first_refused"], &probe["second_refused"], &probe["both_refused"]),
        (&json!(0), &json!(8), &json!(0))
    );
    assert!((probe["p"].as_f64().unwrap() - 2.0 / 256.0).abs() < 1e-12);
    assert_eq!(probe["results"][0]["treatments"][0]["words"], 11);
    let local = lab.done(&["eval", "model", "--probe", "pairs.jsonl", "--out", "local", "--max-tokens", "8"]);
    assert!(local.stdout.starts_with("8 pairs: "), "{local:?}");
    fs::write(lab.at("pairs.jsonl"), "{\"a\": \"x\"}\n").unwrap();
    let said = lab.wels(&["eval", "model", "--probe", "pairs.jsonl"]);
    assert!(said.failure().starts_with("error: pairs.jsonl, line 1, column 0: there is no `b`"), "{said:?}");
}
