//! A folder of documents, from reading them to scores on questions about them: what is made, that it goes on behind an
//! interruption with the same bits, and what is said of documents that give nothing.

use std::fs;

use serde_json::Value;

use crate::lab::{Lab, wait_until};
use crate::stages::{metrics, text, weights};

const MANUAL: &str = "# Widgets\n\nA widget is built by the call `build` of its factory, once all parts are there. It \
    holds up to 64 parts, of which the foundry in Vienna delivers the most. Its `limit` says how many of them are made \
    at the same time.\n\n## Orders\n\nAn order is opened by `open_order` and is closed within 30 days of that. Whoever \
    has the role `Clerk` may read all orders of the house. Orders of more than 500 widgets are signed by the office in \
    Graz before they go out.\n";

const PAGE: &str = "<html><head><title>Paint</title><script>var no = 'a sentence of the page that `nobody` reads at \
    all.';</script></head><body><h1>Paint</h1><p>Every widget gets 3 coats of paint, which takes most of a day.</p>\
    <p>The key <code>colour</code> of an order says which paint is taken for it.</p><p>A widget that is not painted \
    has the colour <code>bare</code> in all of the lists.</p></body></html>";

const MODEL: &str = r#"model_type = "llama"
hidden_size = 32
num_hidden_layers = 1
intermediate_size = 48
num_attention_heads = 2
num_key_value_heads = 2
rms_norm_eps = 1e-6
max_position_embeddings = 1024
rope_theta = 10000.0
tie_word_embeddings = true"#;

const RECIPE: &str = r#"
[run]
name = "NAME"
seed = 3

[tokenizer]
vocab_size = 340
chat_template = "deepseek_v3"

[data]
sources = ["documents/*"]
sequence_length = 32

[model]
MODEL

[[stage]]
name = "read"
kind = "pretrain"
data = "documents"
epochs = 3
batch_tokens = 128
gradient_shards = 2
learning_rate = 1e-3
checkpoint_every = 5

[stage.model]
MODEL

[[stage]]
name = "questions"
kind = "questions"
from = "read"
held_out = 0.4
right_with_passage = 0.0
right_without_passage = 0.9
samples = 2
max_tokens = 4

[[stage]]
name = "taught"
kind = "sft"
data = "questions"
from = "read"
batch_tokens = 512
gradient_shards = 2
checkpoint_every = 1

[stage.lora]
rank = 2

[[stage]]
name = "reinforced"
kind = "rl"
task = "questions"
from = "taught"
steps = 2
prompts = 2
samples = 2
max_tokens = 4
gradient_shards = 2
checkpoint_every = 1

[stage.lora]
rank = 2

[[stage]]
name = "scores"
kind = "score"
models = ["read", "taught", "reinforced"]
task = "questions"
temperature = 0.0
max_tokens = 4
"#;

const STAGES: [&str; 3] = ["read", "taught", "reinforced"];

fn lab() -> Lab {
    let lab = Lab::new();
    fs::create_dir(lab.at("documents")).unwrap();
    fs::write(lab.at("documents/manual.md"), MANUAL).unwrap();
    fs::write(lab.at("documents/paint.html"), PAGE).unwrap();
    fs::write(lab.at("documents/notes.txt"), "The door of the hall is locked at 18:30 by the porter of the house.\n")
        .unwrap();
    lab
}

/// Writes the recipe; `changes` replaces pieces of it.
fn recipe(lab: &Lab, name: &str, changes: &[(&str, &str)]) -> String {
    let mut text = RECIPE.replace("MODEL", MODEL).replace("NAME", name);
    for (from, to) in changes {
        assert!(text.contains(from), "the recipe does not hold {from}");
        text = text.replace(from, to);
    }
    fs::write(lab.at(&format!("{name}.toml")), text).unwrap();
    format!("{name}.toml")
}

fn lines(lab: &Lab, run: &str, file: &str) -> Vec<Value> {
    text(lab, run, file).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn documents_are_read_asked_about_learnt_and_scored() {
    let lab = lab();
    let file = recipe(&lab, "whole", &[]);
    let planned = lab.done(&["plan", &file]);
    for stage in ["read", "questions", "taught", "reinforced", "scores"] {
        let line = planned.stdout.lines().find(|line| line.contains(stage)).unwrap_or_else(|| panic!("{planned:?}"));
        assert!(line.contains("FLOP") || line.chars().any(|c| c.is_ascii_digit()), "{line}");
    }
    let whole = lab.done(&["run", &file]);
    assert!(whole.stdout.contains("questions held out"), "{whole:?}");

    let made: Value = serde_json::from_str(&text(&lab, "whole", "questions/questions.json")).unwrap();
    let (train, held_out) =
        (lines(&lab, "whole", "questions/train.jsonl"), lines(&lab, "whole", "questions/held_out.jsonl"));
    assert_eq!((&made["train"], &made["held_out"]), (&train.len().into(), &held_out.len().into()));
    assert_eq!(
        (&made["documents"], &made["held_out_in_train"], &made["wrong_with_passage"]),
        (&3.into(), &0.into(), &0.into())
    );
    assert_eq!(made["held_out_in_documents"], made["held_out"], "the sentences are of these documents");
    let asked = |of: &[Value]| -> Vec<String> {
        of.iter()
            .map(|it| it["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().into())
            .collect()
    };
    let all = [asked(&train), asked(&held_out)].concat().join("\n");
    assert!(
        all.contains("Orders: An order is opened by `")
            && all.contains("Paint: A widget that is not painted has the colour `"),
        "{all}"
    );
    assert!(!all.contains("nobody"), "a script is no text: {all}");
    for it in train.iter().chain(&held_out) {
        assert!(it["passage"].as_str().unwrap().contains(it["answer"].as_str().unwrap()), "{it}");
    }
    // All held-out questions are asked, of every model, and no other.
    let answers = lines(&lab, "whole", "scores/model-2/part-0000.jsonl");
    let ids = |of: &[Value], key: &str| of.iter().map(|it| it[key].as_str().unwrap().to_string()).collect::<Vec<_>>();
    assert_eq!(ids(&answers, "item"), ids(&held_out, "id"));
    assert!(metrics(&lab, "whole", "reinforced").iter().all(|line| line["logprob_difference_max"] == 0.0));
    let page = text(&lab, "whole", "report.html");
    assert!(page.contains("Questions of questions") && page.contains("share 13 words in a row"), "{page}");
    assert!(page.contains("p against the first"));
    let verified = lab.done(&["verify", "runs/whole"]);
    assert!(verified.stdout.contains("verified") || verified.stderr.contains("done again"), "{verified:?}");
}

#[test]
fn questions_are_the_same_on_two_ranks_and_behind_kills() {
    let lab = lab();
    lab.done(&["run", &recipe(&lab, "one", &[])]);
    let file = recipe(&lab, "two", &[]);
    for stage in ["read", "questions", "taught"] {
        let mut child = lab.start(&["run", &file, "--ranks", "2"]);
        let folder = lab.at(&format!("runs/two/{stage}"));
        let begun = wait_until(&mut child, || fs::read_dir(&folder).is_ok_and(|entries| entries.count() > 0));
        assert!(begun, "the run was over before {stage} was killed");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    lab.done(&["run", "runs/two", "--ranks", "2"]);
    for file in ["candidates.jsonl", "part-0000.jsonl", "train.jsonl", "held_out.jsonl", "questions.json"] {
        let file = format!("questions/{file}");
        assert_eq!(text(&lab, "one", &file), text(&lab, "two", &file), "{file}");
    }
    assert_eq!(text(&lab, "one", "scores/scores.json"), text(&lab, "two", "scores/scores.json"));
    assert_eq!(weights(&lab, "one", "read"), weights(&lab, "two", "read"));
    for stage in STAGES {
        assert_eq!(metrics(&lab, "one", stage), metrics(&lab, "two", stage), "{stage}");
    }
}

#[test]
fn what_gives_no_questions_is_refused_in_words() {
    let lab = lab();
    fs::create_dir(lab.at("empty")).unwrap();
    fs::create_dir(lab.at("short")).unwrap();
    fs::write(lab.at("short/a.md"), "# Nothing\n\nNothing here is long enough.\n").unwrap();
    fs::write(lab.at("short/b.pdf"), "%PDF-1.7\nno more").unwrap();
    let first = RECIPE.split("[[stage]]").next().unwrap();
    let asks = RECIPE[RECIPE.find("[[stage]]\nname = \"questions\"").unwrap()..].split("\n\n").next().unwrap();
    let reads = RECIPE[RECIPE.find("[[stage]]\nname = \"read\"").unwrap()..].split("\n\n[[stage]]").next().unwrap();
    let cases = [
        (&[("documents/*", "empty")][..], "holds no file that can be read"),
        (&[("documents/*", "documents/*.rst")], "no name fits LAB/documents/*.rst"),
        (&[("documents/*", "nowhere")], "cannot read LAB/nowhere"),
        (&[("documents/*", "short/*.md")], "1 documents of data.sources give no question"),
        (&[("documents/*", "short/b.pdf")], "LAB/short/b.pdf"),
        (&[("right_with_passage = 0.0", "right_with_passage = 1.0")], "none is left that is to be learnt: "),
        (&[("kind = \"questions\"", "kind = \"questions\"\ntask = \"countdown\"")], "task must be \"cloze\""),
        (&[("kind = \"pretrain\"", "kind = \"sft\"")], "are learnt by kind = \"pretrain\""),
    ];
    for (n, (changes, expected)) in cases.into_iter().enumerate() {
        let mut text = format!("{first}{reads}\n\n{asks}\n").replace("MODEL", MODEL).replace("NAME", &format!("w{n}"));
        text = text.replace("epochs = 3", "epochs = 1");
        for (from, to) in changes {
            assert!(text.contains(from), "the recipe does not hold {from}");
            text = text.replace(from, to);
        }
        fs::write(lab.at("wrong.toml"), text).unwrap();
        let said = lab.wels(&["run", "wrong.toml"]);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.failure().contains(expected), "{expected}: {said:?}");
        // What is said of a place in the recipe says what to do.
        let helps = ["hint: ", "wrong.toml:"].iter().any(|part| said.failure().contains(part));
        assert!(helps, "{said:?}");
    }
}
