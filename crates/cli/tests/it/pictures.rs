//! Runs of pictures: a VQ tokenizer, a Janus model that learns to see and to draw, reinforcement of its drawing, and
//! grades; `kill -9` at random moments of all of them, behind which the same command ends with the same bits; and what
//! becomes of the model in `wels draw`.

use std::fs;
use std::time::Duration;

use crate::lab::{Lab, Numbers, wait_until};
use crate::stages::{files, lines, metrics, stage, text, weights};

const KILLS: usize = 20;

/// Stages whose weights and metrics are compared.
const TRAINED: [&str; 5] = ["codes", "decoder", "adaptors", "joint", "drawn"];

const RECIPE: &str = r#"
[run]
name = "NAME"
seed = 5

[tokenizer]
vocab_size = 400
chat_template = "janus"

[data]
sources = []

[model]                         # the keys of a Hugging Face config.json
model_type = "janus"

[model.text_config]
hidden_size = 32
num_hidden_layers = 1
intermediate_size = 48
num_attention_heads = 4
num_key_value_heads = 4
rms_norm_eps = 1e-6
max_position_embeddings = 160
rope_theta = 36.0
tie_word_embeddings = false

[model.vision_config]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
image_size = 24
patch_size = 4
mlp_ratio = 1.0

[model.vq_config]
embed_dim = 4
num_embeddings = 32
latent_channels = 32
base_channels = 32
channel_multiplier = [1, 1, 1]
num_res_blocks = 1

[[stage]]
name = "codes"
kind = "vq"
pool = 64
steps = 9
batch = 4
micro_pictures = 3
checkpoint_every = 4

[[stage]]
name = "decoder"
kind = "vq"
from = "codes"
learns = "decoder"
pool = 32
steps = 5
batch = 4
checkpoint_every = 2

[[stage]]
name = "adaptors"
kind = "janus"
from = "decoder"
learns = "adaptors"
pool = 32
steps = 4
draws = 4
questions = 2
texts = 1
checkpoint_every = 2

[[stage]]
name = "joint"
kind = "janus"
from = "adaptors"
pool = 32
steps = 6
draws = 6
questions = 3
turns = 2
answers = "reasoned"
optimizer = "muon"
micro_rows = 150
checkpoint_every = 2

[[stage]]
name = "drawn"
kind = "draw_rl"
from = "joint"
steps = 4
prompts = 3
samples = 4
mini_batches = 2
kl = 0.01
checkpoint_every = 2

[[stage]]
name = "scores"
kind = "draw_score"
models = ["joint", "drawn"]
items = 3
questions = 12
guidance = 2.0
"#;

fn recipe(lab: &Lab, name: &str) -> String {
    let file = format!("{name}.toml");
    fs::write(lab.at(&file), RECIPE.replace("NAME", name)).unwrap();
    file
}

#[test]
fn killed_stages_of_pictures_end_like_the_uninterrupted_ones() {
    let lab = Lab::new();
    let whole = lab.done(&["run", &recipe(&lab, "whole")]);
    assert!(whole.stdout.contains("captions never seen") && whole.stdout.contains("codes used"), "{whole:?}");
    let rl = metrics(&lab, "whole", "drawn");
    assert!(rl.iter().all(|line| line["logprob_difference_max"] == 0.0), "{rl:?}");
    let html = text(&lab, "whole", "report.html");
    assert!(html.contains("Pictures of joint") && html.contains("Drawn and seen"), "the report shows no pictures");
    assert!(stage(&lab, "whole", "joint").join("pictures/step-000006.png").is_file());
    lab.done(&["verify", "runs/whole", "--segments", "5"]);
    let mut numbers = Numbers(41);
    let (mut kills, mut run) = (0, 0);
    while kills < KILLS {
        let name = format!("killed-{run}");
        let file = recipe(&lab, &name);
        for at in ["codes", "decoder", "adaptors", "joint", "joint", "drawn", "drawn", "scores"] {
            let mut child = lab.start(&["run", &file]);
            let seen = |lab: &Lab| lines(lab, &name, at) + files(lab, &name, at);
            let before = seen(&lab);
            let came = wait_until(&mut child, || seen(&lab) != before);
            std::thread::sleep(Duration::from_micros(numbers.below(30_000)));
            let over = child.try_wait().unwrap().is_some();
            child.kill().unwrap();
            child.wait().unwrap();
            kills += usize::from(came && !over);
        }
        lab.done(&["run", &format!("runs/{name}")]);
        for stage in TRAINED {
            assert_eq!(weights(&lab, &name, stage), weights(&lab, "whole", stage), "{stage} of {name}");
            assert_eq!(metrics(&lab, &name, stage), metrics(&lab, "whole", stage), "{stage} of {name}");
        }
        assert_eq!(text(&lab, &name, "scores/scores.json"), text(&lab, "whole", "scores/scores.json"), "{name}");
        run += 1;
    }
}

#[test]
fn a_run_of_pictures_draws_and_answers() {
    let lab = Lab::new();
    lab.done(&["run", &recipe(&lab, "whole")]);
    let drawn = |threads: &str, name: &str| {
        lab.done(&["draw", "runs/whole", "a red circle", "--cfg", "2", "-o", name, "--threads", threads]);
        fs::read(lab.at(name)).unwrap()
    };
    assert_eq!(drawn("1", "one.png"), drawn("2", "two.png"));
    // A picture that a run has made is one that its model can be asked about.
    let args = ["chat", "runs/whole", "--image", "one.png", "--temperature", "0", "--max-tokens", "4"];
    assert_eq!(lab.told(&args, "is there a red circle").code, Some(0));
    // Nor need pictures be of a world: a model goes on with some of one's own, which have captions.
    fs::create_dir(lab.at("mine")).unwrap();
    fs::copy(lab.at("one.png"), lab.at("mine/one.png")).unwrap();
    fs::write(lab.at("mine/captions.jsonl"), "{\"image\": \"one.png\", \"text\": \"my red cat\"}\n").unwrap();
    let own = "[run]\nname = \"own\"\n[tokenizer]\npath = \"runs/whole/tokenizer\"\n[data]\nsources = []\n\
        [model]\nconfig = \"runs/whole/drawn/step-000004/config.json\"\n\
        [[stage]]\nname = \"codes\"\nkind = \"vq\"\nfrom = \"runs/whole/drawn/step-000004\"\n\
        pictures = \"./mine\"\nsteps = 2\nbatch = 2\ncodes_of = \"patches\"\nshuffle = 0.5\n\
        [[stage]]\nname = \"tuned\"\nkind = \"janus\"\nfrom = \"runs/whole/drawn/step-000004\"\n\
        pictures = \"./mine\"\nsteps = 3\ndraws = 2\nquestions = 0\ntexts = 1\nlearns = \"language\"\n";
    fs::write(lab.at("own.toml"), own).unwrap();
    lab.done(&["run", "own.toml"]);
    assert_eq!(metrics(&lab, "own", "tuned").len(), 3);
    lab.done(&["verify", "runs/own", "--segments", "2"]);
    lab.done(&["draw", "runs/own", "my red cat", "--cfg", "1", "-o", "cat.png"]);
    let before = text(&lab, "whole", "receipt.json");
    lab.done(&["verify", "--receipt", "runs/whole/receipt.json", "--whole"]);
    assert_eq!(text(&lab, "whole", "receipt.json"), before);
}

#[test]
fn a_conversation_that_is_longer_than_the_context_is_refused() {
    let lab = Lab::new();
    let small = RECIPE.replace("max_position_embeddings = 160", "max_position_embeddings = 64");
    fs::write(lab.at("long.toml"), small.replace("NAME", "long")).unwrap();
    let said = lab.wels(&["run", "long.toml"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.failure().contains("and the model's context 64"), "{said:?}");
}

#[test]
fn what_a_run_of_pictures_cannot_do_is_said_before_it_begins() {
    let lab = Lab::new();
    let head = RECIPE.split_once("[[stage]]").unwrap().0;
    let codes = "[[stage]]\nname = \"a\"\nkind = \"vq\"\n";
    let janus = "[[stage]]\nname = \"a\"\nkind = \"janus\"\nfrom = \"nowhere\"\n";
    let heads = "num_attention_heads = 4\nnum_key";
    let cases = [
        (format!("{codes}pictures = \"grid-25\"\n"), "there is no world `grid-25`"),
        (format!("{codes}pictures = \"./none\"\n"), "none: "),
        (format!("{codes}gradient_shards = 2\n"), "must be 1 in stages of pictures"),
        (format!("{codes}steps = 0\n"), "must be 1 or more"),
        (format!("{codes}optimizer = \"muon\"\n"), "must be \"adamw\" in stages of kind vq"),
        (format!("{codes}weight_decay = 0.1\n"), "weight_decay must be 0"),
        (
            format!("{codes}learns = \"decoder\"\ncodes_of = \"patches\"\n"),
            "says nothing where the decoder alone learns",
        ),
        (format!("{codes}learns = \"decoder\"\nshuffle = 0.5\n"), "must be 0 where the decoder alone learns"),
        (janus.to_owned(), "nowhere is no model"),
        (janus.replace("from = \"nowhere\"\n", ""), "must name a stage of pictures before this one"),
        (format!("{janus}draws = 0\nquestions = 0\n"), "nothing would be learnt"),
        (format!("{janus}questions = 0\nturns = 2\n"), "turns says nothing where no questions are learnt"),
        (format!("{janus}questions = 0\nanswers = \"reasoned\"\n"), "answers says nothing where no questions"),
        (format!("{janus}pictures = \"./mine\"\n"), "pictures of one's own come without questions"),
        (
            "[[stage]]\nname = \"a\"\nkind = \"draw_rl\"\nfrom = \"b\"\npictures = \"./mine\"\n".into(),
            "must be a world",
        ),
        ("[[stage]]\nname = \"a\"\nkind = \"draw_score\"\n".into(), "names no model"),
        (String::new(), "names no source"),
    ];
    let write = |name: &str, text: &str| {
        let file = format!("{name}.toml");
        fs::write(lab.at(&file), text.replace("NAME", name)).unwrap();
        file
    };
    for (n, (stage, expected)) in cases.into_iter().enumerate() {
        let file = write(&format!("wrong-{n}"), &format!("{head}{stage}"));
        let said = lab.wels(&["run", &file]);
        assert_eq!(said.code, Some(1), "{expected}: {said:?}");
        assert!(said.failure().contains(expected), "{expected}: {said:?}");
    }
    for (model, expected) in [
        (head.replace(heads, "num_attention_heads = 5\nnum_key"), "num_attention_heads"),
        (head.replace("image_size = 24", "image_size = 26"), "a picture is cut into whole patches"),
        (
            head.split_once("[model]").unwrap().0.to_owned() + "[model]\npreset = \"smollm2-135m\"\n",
            "must name a Janus model",
        ),
    ] {
        let said = lab.wels(&["run", &write("model", &format!("{model}{codes}"))]);
        assert!(said.failure().contains(expected), "{expected}: {said:?}");
    }
    let alone = lab.wels(&["run", &write("alone", &head.replace("sources = []", ""))]);
    assert!(alone.failure().contains("a Janus model is learnt in stages"), "{alone:?}");
    let ranks = lab.wels(&["run", &recipe(&lab, "ranks"), "--ranks", "2"]);
    assert!(ranks.failure().contains("of pictures, which are learnt on one rank"), "{ranks:?}");
}
