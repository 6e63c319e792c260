//! `wels draw`: the same picture whatever is drawn beside it, what its file says, and what is refused.

use std::fs;

use serde_json::{Value, json};
use wels_data::tokenizer::{BpeTrainer, SpecialTokens, Tokenizer};
use wels_model::janus::picture::{decode, png_texts};

use crate::lab::Lab;

#[path = "../../../model/tests/janus/tiny.rs"]
pub mod tiny;

const BYTES: usize = 300;
/// Contents as parts, as `transformers`' conversion of Janus has them.
const TEMPLATE: &str = "{%- for message in messages %}{{ message['role'] + ': ' }}{%- for part in message['content'] %}\
    {%- if part['type'] == 'image' %}{{ '<image_placeholder>\\n' }}{%- elif part['type'] == 'text' %}\
    {{ part['text'] }}{%- endif %}{%- endfor %}{{ '\\n' }}{%- endfor %}\
    {%- if add_generation_prompt %}{{ 'assistant:' }}{%- endif %}";

/// A lab with a model that sees and draws.
pub fn lab() -> Lab {
    let lab = Lab::new();
    write_janus(&lab.at("janus"));
    lab
}

/// A Janus model with its tokenizer.
pub fn write_janus(folder: &std::path::Path) {
    let mut trainer = BpeTrainer::new(BYTES, SpecialTokens::default()).unwrap();
    trainer.feed(&["a red circle left of a blue square"; 8]);
    let mut json: Value = serde_json::from_str(trainer.train().unwrap().to_json()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    for (id, token) in (BYTES..).zip(["<begin_of_image>", "<end_of_image>", "<image_placeholder>"]) {
        added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}));
    }
    let mut tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap();
    tokenizer.set_chat_template(Some(TEMPLATE.to_owned()));
    tiny::write(folder, tokenizer.vocab_size(), tokenizer.id("<image_placeholder>").unwrap(), 128);
    tokenizer.save(folder, 128).unwrap();
}

fn bytes(lab: &Lab, file: &str) -> Vec<u8> {
    fs::read(lab.at(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn a_picture_is_the_same_alone_and_among_others() {
    let lab = lab();
    let said = lab.done(&["draw", "janus", "a red circle", "-n", "17", "--seed", "7", "-o", "all.png"]);
    let files: Vec<String> = (1..=17).map(|k| format!("all-{k}.png")).collect();
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), (&*(files.join("\n") + "\n"), ""));
    for (k, threads, at_once) in [(0u64, "1", "4"), (5, "3", "1"), (16, "2", "17")] {
        let seed = (7 + k).to_string();
        let alone = ["draw", "janus", "a red circle", "--seed", &seed, "-o", "one.png", "--force"];
        lab.done(&[&alone[..], &["--threads", threads, "--at-once", at_once]].concat());
        assert!(bytes(&lab, "one.png") == bytes(&lab, &files[k as usize]), "picture {k}");
    }
    lab.done(&["draw", "janus", "a red circle", "-n", "17", "--seed", "7", "-o", "again.png", "--at-once", "16"]);
    assert!((1..=17).all(|k| bytes(&lab, &format!("again-{k}.png")) == bytes(&lab, &format!("all-{k}.png"))));
    let first = decode(&bytes(&lab, "all-1.png")).expect("a picture");
    assert_eq!((first.width, first.height), (tiny::SIDE, tiny::SIDE));
    assert_ne!(first.bytes, decode(&bytes(&lab, "all-2.png")).expect("a picture").bytes);
}

#[test]
fn a_quantised_picture_is_the_same_alone_and_among_others_and_not_that_of_the_stored_weights() {
    let lab = lab();
    let draw = |more: &[&str]| {
        lab.done(&[&["draw", "janus", "a red circle", "--cfg", "2", "--force"], more].concat());
    };
    draw(&["--seed", "1", "-o", "stored.png"]);
    let stored = decode(&bytes(&lab, "stored.png")).expect("a picture").bytes;
    for quant in ["q8", "q4"] {
        draw(&["--quant", quant, "-n", "5", "-o", "all.png"]);
        for (k, threads, at_once) in [("0", "1", "4"), ("1", "3", "1"), ("4", "2", "5")] {
            draw(&["--quant", quant, "--seed", k, "-o", "one.png", "--threads", threads, "--at-once", at_once]);
            let file = format!("all-{}.png", k.parse::<usize>().unwrap() + 1);
            assert!(bytes(&lab, "one.png") == bytes(&lab, &file), "{quant}, picture {k}");
        }
        assert_ne!(decode(&bytes(&lab, "all-2.png")).expect("a picture").bytes, stored, "{quant} is the stored one");
    }
}

#[test]
fn a_file_says_how_its_picture_can_be_drawn_again() {
    let lab = lab();
    let drawn = ["draw", "janus", "ein Kreis, größer als ①", "--seed", "3", "--cfg", "2.5", "--temperature", "0.7"];
    let said = lab.done(&[&drawn[..], &["--json", "-n", "2", "-o", "a.png"]].concat());
    let lines: Vec<Value> = said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for (k, line) in lines.iter().enumerate() {
        let file = line["file"].as_str().unwrap();
        assert_eq!(file, format!("a-{}.png", k + 1));
        let texts = png_texts(&bytes(&lab, file)).unwrap();
        let text =
            |keyword: &str| &texts.iter().find(|(found, _)| found == keyword).unwrap_or_else(|| panic!("{keyword}")).1;
        assert_eq!((text("Description").as_str(), text("Software").as_str()), (drawn[2], "wels"));
        let settings: Value = serde_json::from_str(text("wels")).unwrap();
        for key in ["prompt", "seed", "cfg", "temperature", "quant", "cache", "model", "model_sha256"] {
            assert_eq!(settings[key], line[key], "{key}");
        }
        let hash = wels_runs::hash::sha256(&bytes(&lab, file));
        assert_eq!((&line["seed"], &line["sha256"]), (&json!(3 + k), &json!(hash)));
        let seed = settings["seed"].to_string();
        let again = ["draw", settings["model"].as_str().unwrap(), text("Description"), "--seed", &seed];
        let (cfg, temperature) = (settings["cfg"].to_string(), settings["temperature"].to_string());
        lab.done(&[&again[..], &["--cfg", &cfg, "--temperature", &temperature, "-o", "b.png", "--force"]].concat());
        assert!(bytes(&lab, "b.png") == bytes(&lab, file), "{file}");
    }
    let draw = |more: &[&str]| {
        lab.done(&[&["draw", "janus", "x", "--force", "-o", "c.png"], more].concat());
        decode(&bytes(&lab, "c.png")).expect("a picture").bytes
    };
    let plain = draw(&[]);
    for other in [&["--cfg", "1"][..], &["--temperature", "0"], &["--seed", "1"]] {
        assert_ne!(draw(other), plain, "{other:?}");
    }
}

#[test]
fn what_cannot_be_drawn_is_refused_before_the_model_is_opened() {
    let lab = lab();
    crate::serve::write_model(&lab.at("text-model"));
    fs::write(lab.at("out.png"), "mine").unwrap();
    fs::write(lab.at("o-2.png"), "mine").unwrap();
    let long = "a red circle ".repeat(100);
    let cases: &[(&[&str], &str)] = &[
        (
            &["text-model", "a circle", "-o", "x.png"],
            "error: text-model is a model of text, and draws no pictures\nhint: models with pictures are those \
             of transformers' janus form, as deepseek-community/Janus-Pro-1B\n",
        ),
        (&["none", "a circle", "-o", "x.png"], "error: none is "),
        (
            &["janus", "a circle"],
            "error: out.png already exists\nhint: choose another name with -o, or write over it with --force\n",
        ),
        (&["janus", "a circle", "-n", "3", "-o", "o.png"], "error: o-2.png already exists\n"),
        (
            &["janus", "a circle", "-o", "no/x.png"],
            "error: there is no folder no\nhint: make it, or choose another one\n",
        ),
        (&["janus", "a circle", "-o", "janus"], "error: janus is a folder\n"),
        (&["janus", " ", "-o", "x.png"], "error: the prompt is empty\nhint: say what is to be drawn\n"),
        (&["janus", "a", "-n", "0"], "error: invalid value '0' for '--number <N>': 0 is not in 1..=10000\n"),
        (&["janus", "a", "--cfg", "-1"], "error: "),
        (&["janus", "a", "--cfg", "nan"], "error: --cfg is NaN\nhint: give a number from 0 to 100\n"),
        (&["janus", "a", "--temperature", "101"], "error: --temperature is 101\n"),
        (&["janus", &long, "-o", "x.png"], "error: the prompt has "),
    ];
    for (args, expected) in cases {
        let said = lab.wels(&[&["draw"], *args].concat());
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{args:?}: {said:?}");
        assert!(said.failure().starts_with(expected), "{args:?}: {said:?}");
    }
    assert!(!lab.at("x.png").exists() && !lab.at("o-1.png").exists());
    assert_eq!((bytes(&lab, "out.png"), bytes(&lab, "o-2.png")), (b"mine".to_vec(), b"mine".to_vec()));
    fs::remove_file(lab.at("janus/tokenizer.json")).unwrap();
    let said = lab.wels(&["draw", "janus", "a", "-o", "x.png"]);
    assert!(said.failure().starts_with("error: the model has no tokenizer\n"), "{said:?}");
}

#[test]
fn a_full_disk_leaves_no_half_of_a_picture() {
    let lab = lab();
    // No file has a byte.
    let said = lab.shell("trap '' XFSZ; ulimit -f 0; exec WELS draw janus circle -o full.png");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.failure().starts_with("error: cannot write full.png: File too large"), "{said:?}");
    assert!(!lab.at("full.png").exists());
}

#[test]
fn a_question_can_be_about_pictures() {
    let lab = lab();
    crate::serve::write_model(&lab.at("text-model"));
    lab.done(&["draw", "janus", "a red circle", "-n", "2", "-o", "p.png"]);
    let ask = |model: &str, more: &[&str]| {
        let args = [&["chat", model, "--temperature", "0", "--max-tokens", "12"], more].concat();
        lab.told(&args, "What is it?")
    };
    let one = ask("janus", &["--image", "p-1.png"]);
    assert_eq!(one.code, Some(0), "{one:?}");
    let tokens = |said: &crate::lab::Said| {
        let before = said.stderr.split(" before it from the cache").next().unwrap();
        before.rsplit(' ').next().unwrap().parse::<usize>().unwrap_or_else(|_| panic!("{said:?}"))
    };
    let none = ask("janus", &[]);
    assert!(none.code == Some(0) && one.stdout != none.stdout, "{none:?} {one:?}");
    assert_eq!(tokens(&one), tokens(&none) + tiny::CODES + 3, "{one:?} {none:?}");
    assert_eq!(ask("janus", &["--image", "p-1.png", "--threads", "1"]).stdout, one.stdout);
    assert_ne!(ask("janus", &["--image", "p-2.png"]).stdout, one.stdout, "another picture, another answer");
    assert_eq!(ask("janus", &["--image", "p-1.png", "--image", "p-2.png"]).code, Some(0));
    fs::write(lab.at("bad.png"), &bytes(&lab, "p-1.png")[..60]).unwrap();
    fs::write(lab.at("text.txt"), "no picture").unwrap();
    for (model, image, expected) in [
        (
            "text-model",
            "p-1.png",
            "error: the model is a model of text, and sees no pictures\nhint: models with pictures are those of \
             transformers' janus form, as deepseek-community/Janus-Pro-1B\n",
        ),
        ("janus", "none.png", "error: cannot show none.png: No such file or directory"),
        ("janus", "bad.png", "error: cannot show bad.png: the picture cannot be decoded"),
        ("janus", "text.txt", "error: cannot show text.txt: the picture is neither PNG nor JPEG nor WebP"),
    ] {
        let said = ask(model, &["--image", image]);
        assert!(said.code == Some(1) && said.failure().starts_with(expected), "{image}: {said:?}");
    }
}
