//! A folder with a small corpus and recipe, and the program run in it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Steps of the small recipe.
pub const STEPS: u64 = 20;

/// A temporary folder with `text/` to learn from; runs go to `runs/`.
pub struct Lab {
    folder: TempDir,
}

/// What a finished program said.
#[derive(Debug)]
pub struct Said {
    pub stdout: String,
    pub stderr: String,
    pub code: Option<i32>,
}

impl Said {
    fn of(output: Output, lab: &Lab) -> Said {
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes).expect("UTF-8").replace(&lab.at("").display().to_string(), "LAB/")
        };
        Said { stdout: text(output.stdout), stderr: text(output.stderr), code: output.status.code() }
    }

    /// The lines of stderr from `error:` on.
    pub fn failure(&self) -> String {
        let from = self.stderr.find("error: ").unwrap_or_else(|| panic!("no error in {self:?}"));
        self.stderr[from..].to_string()
    }
}

impl Lab {
    pub fn new() -> Lab {
        let lab = Lab { folder: tempfile::tempdir().expect("a temporary folder") };
        fs::create_dir(lab.at("text")).unwrap();
        for file in 0..40 {
            fs::write(lab.at(&format!("text/{file:02}.txt")), text(file, 800)).unwrap();
        }
        lab
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Writes a recipe of a small mixture of experts with MTP; `changes` replaces pieces of its text.
    pub fn recipe(&self, name: &str, changes: &[(&str, &str)]) -> String {
        let mut text = RECIPE.replace("NAME", name);
        for (from, to) in changes {
            assert!(text.contains(from), "the recipe does not hold {from}");
            text = text.replace(from, to);
        }
        let file = format!("{name}.toml");
        fs::write(self.at(&file), text).unwrap();
        file
    }

    /// The program, to be run in this folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wels"));
        command.args(args).current_dir(self.folder.path()).env("NO_COLOR", "1").env_remove("WELS_ISA");
        command.env("XDG_STATE_HOME", self.at("state"));
        // No name of a model leads out of this machine.
        command.env("HF_HOME", self.at("hf")).env("HF_HUB_OFFLINE", "1").env_remove("HF_HUB_CACHE");
        command.env_remove("HF_TOKEN").env_remove("HF_ENDPOINT");
        command
    }

    /// Runs the program to its end.
    pub fn wels(&self, args: &[&str]) -> Said {
        Said::of(self.command(args).output().expect("the program starts"), self)
    }

    /// Runs the program with the models of a hub within reach.
    pub fn wels_with_hub(&self, endpoint: &str, args: &[&str]) -> Said {
        let mut command = self.command(args);
        command.env("HF_ENDPOINT", endpoint).env("HF_HUB_OFFLINE", "0");
        Said::of(command.output().expect("the program starts"), self)
    }

    /// Runs another command in this folder.
    pub fn shell(&self, script: &str) -> Said {
        let script = script.replace("WELS", env!("CARGO_BIN_EXE_wels"));
        let output = Command::new("sh").args(["-c", &script]).current_dir(self.folder.path()).output();
        Said::of(output.expect("a shell"), self)
    }

    /// Runs the program and expects it to succeed.
    pub fn done(&self, args: &[&str]) -> Said {
        let said = self.wels(args);
        assert_eq!(said.code, Some(0), "{said:?}");
        said
    }

    /// Starts the program.
    pub fn start(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
    }

    /// Runs it to its end with something to read.
    pub fn told(&self, args: &[&str], input: &str) -> Said {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        // A program that refuses what it was given reads nothing.
        let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
        self.end(child)
    }

    /// Waits for a program that was started.
    pub fn end(&self, child: Child) -> Said {
        Said::of(child.wait_with_output().expect("the program ends"), self)
    }

    /// Hash of the weights of the run's last step.
    pub fn weights(&self, run: &str) -> String {
        let path = self.at(&format!("runs/{run}/pretrain/step-{STEPS:06}/model.safetensors"));
        wels_runs::hash::sha256_file(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).0
    }

    /// The metrics of a run without what depends on the machine.
    pub fn metrics(&self, run: &str) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.at(&format!("runs/{run}/pretrain/metrics.jsonl"))).unwrap();
        let line = |line: &str| {
            let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
            let object = value.as_object_mut().unwrap();
            ["seconds", "tokens_per_second", "mfu"].iter().for_each(|key| assert!(object.remove(*key).is_some()));
            value
        };
        text.lines().map(line).collect()
    }

    /// How many lines the metrics have.
    pub fn steps_seen(&self, run: &str) -> usize {
        fs::read_to_string(self.at(&format!("runs/{run}/pretrain/metrics.jsonl")))
            .map_or(0, |text| text.lines().count())
    }
}

/// Waits until `holds`, for a minute at most; false if `child` ends before that.
pub fn wait_until(child: &mut Child, holds: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while !holds() {
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing happened for a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Whether a folder holds something that is being written.
pub fn is_writing(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(".unfinished"))
}

/// A generator of whole numbers, for texts and moments.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

fn text(seed: u64, words: usize) -> String {
    const WORDS: [&str; 16] = [
        "catfish",
        "river",
        "deep",
        "swims",
        "slowly",
        "under",
        "the",
        "old",
        "bridge",
        "and",
        "waits",
        "for",
        "night",
        "1987",
        "— ü",
        "fn main()",
    ];
    let mut numbers = Numbers(seed);
    let mut text = String::new();
    for i in 0..words {
        text.push_str(WORDS[numbers.below(WORDS.len() as u64) as usize]);
        text.push(if i % 11 == 10 { '\n' } else { ' ' });
    }
    text
}

const RECIPE: &str = r#"
[run]
name = "NAME"
seed = 7

[tokenizer]
vocab_size = 400
training_bytes = 100_000

[data]
sources = ["text"]
validation_fraction = 0.1
sequence_length = 32

[model]
model_type = "deepseek_v3"
hidden_size = 48
num_hidden_layers = 3
first_k_dense_replace = 1
intermediate_size = 96
n_routed_experts = 8
num_experts_per_tok = 2
n_shared_experts = 1
moe_intermediate_size = 32
n_group = 1
topk_group = 1
routed_scaling_factor = 1.0
num_attention_heads = 3
kv_lora_rank = 16
q_lora_rank = 24
qk_nope_head_dim = 16
qk_rope_head_dim = 8
v_head_dim = 16
max_position_embeddings = 64
rope_theta = 10000.0
initializer_range = 0.02
num_nextn_predict_layers = 1

[pretrain]
steps = 20
batch_tokens = 256
batch_tokens_start = 128
batch_ramp_tokens = 1000
micro_batch = 4
learning_rate = 3e-3
validate_every = 10
validate_sequences = 6
checkpoint_every = 5

[sample]
prompts = ["The river"]
tokens = 8
"#;
