//! A folder with a small corpus and a recipe of every kind of stage, and a host whose clock counts how often it is
//! asked.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;
use wels_pipeline::forecast::Rates;
use wels_pipeline::host::{Event, Host, Outcome};
use wels_pipeline::ranks::{Options, run_on_threads};
use wels_pipeline::task::Programs;
use wels_runs::hash::sha256_file;
use wels_runs::ledger::{Entry, Ledger};
use wels_runs::recipe::Recipe;
use wels_runs::rundir::RunDir;

/// Keeps what it is told.
#[derive(Default)]
pub struct Keeping {
    seconds: Cell<u64>,
    /// Last words of work that has ended.
    pub ended: Vec<String>,
    /// Continued prompts.
    pub samples: usize,
}

impl Host for Keeping {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Ended(words) = event {
            self.ended.push(words.to_string());
        }
    }

    fn result(&mut self, result: Outcome<'_>) -> io::Result<()> {
        self.samples += usize::from(matches!(result, Outcome::Sample { .. }));
        Ok(())
    }

    fn stop_asked(&self) -> bool {
        false
    }

    /// A second later each time.
    fn clock(&self) -> Duration {
        self.seconds.set(self.seconds.get() + 1);
        Duration::from_secs(self.seconds.get())
    }
}

/// A temporary folder with `text/` to learn from; runs go to `runs/`.
pub struct Lab(TempDir);

impl Lab {
    pub fn new() -> Lab {
        let lab = Lab(tempfile::tempdir().expect("a temporary folder"));
        fs::create_dir(lab.at("text")).unwrap();
        for file in 0..20_u32 {
            let words = (0..400).map(|i| ["river ", "deep ", "old ", "night\n"][((i * i + file) % 7 % 4) as usize]);
            fs::write(lab.at(&format!("text/{file:02}.txt")), words.collect::<String>() + &file.to_string()).unwrap();
        }
        lab
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// Does what is left of the run `name`, with this `[budget]`.
    pub fn run(&self, name: &str, budget: &str) -> (Result<()>, Keeping) {
        self.run_on(1, name, budget)
    }

    /// The same on so many ranks.
    pub fn run_on(&self, ranks: usize, name: &str, budget: &str) -> (Result<()>, Keeping) {
        self.run_recipe((ranks, 1), name, &RECIPE.replace("NAME", name).replace("BUDGET", budget))
    }

    /// The same of another recipe, of whose experts `sharing` ranks each have a part.
    pub fn run_recipe(&self, (ranks, sharing): (usize, usize), name: &str, text: &str) -> (Result<()>, Keeping) {
        let recipe = Recipe::parse(name, text, self.at("").as_path()).expect("a valid recipe");
        let run = RunDir::open_or_create(&self.at("runs"), &recipe).expect("a run");
        let mut host = Keeping::default();
        let (programs, rates) = (Programs::Refuse, Rates::Known);
        let options =
            Options { programs, rates, devices: vec![wels_cpu::testing::device(); ranks], expert_parallel: sharing };
        let done = run_on_threads(run, &options, &mut host);
        (done, host)
    }

    pub fn entries(&self, run: &str) -> Vec<Entry> {
        let ledger = self.at(&format!("runs/{run}/ledger.jsonl"));
        if ledger.exists() { Ledger::read(&ledger).expect("a ledger").0 } else { Vec::new() }
    }

    /// Steps that a stage's metrics have, or parts of its answers.
    pub fn progress(&self, run: &str, stage: &str) -> usize {
        let folder = self.at(&format!("runs/{run}/{stage}"));
        match fs::read_to_string(folder.join("metrics.jsonl")) {
            Ok(lines) => lines.lines().count(),
            Err(_) => parts(&folder) + parts(&folder.join("model-0")),
        }
    }

    /// Hash of a file of a run.
    pub fn hash(&self, run: &str, file: &str) -> String {
        let path = self.at(&format!("runs/{run}/{file}"));
        sha256_file(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).0
    }
}

fn parts(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("part-")).count()
}

const RECIPE: &str = r#"
[run]
name = "NAME"
seed = 7
usd_per_hour = 3600.0

[budget]
BUDGET

[tokenizer]
vocab_size = 400
training_bytes = 100_000
chat_template = "deepseek_v3"

[data]
sources = ["text"]
validation_fraction = 0.1
sequence_length = 32

[model]
model_type = "llama"
hidden_size = 16
num_hidden_layers = 1
intermediate_size = 32
num_attention_heads = 2
num_key_value_heads = 2
rms_norm_eps = 1e-6
max_position_embeddings = 128
rope_theta = 10000.0
tie_word_embeddings = true

[pretrain]
steps = 40
batch_tokens = 128
checkpoint_every = 100

[sample]
prompts = ["river", "deep", "old", "night", "river old", "deep night"]
tokens = 8

[[stage]]
name = "worked"
kind = "pretrain"
from = "pretrain"
data = "traces"
traces = 200
trace_direct = 1.0
batch_tokens = 256

[[stage]]
name = "tuned"
kind = "sft"
from = "worked"
data = "traces"
traces = 200
trace_direct = 1.0
batch_tokens = 256

[[stage]]
name = "reinforced"
kind = "rl"
from = "tuned"
steps = 16
prompts = 2
samples = 2
max_tokens = 8

[[stage]]
name = "drawn"
kind = "distil"
teacher = "reinforced"
from = "tuned"
data = "traces"
traces = 200
trace_direct = 1.0
batch_tokens = 256

[[stage]]
name = "corrected"
kind = "distil"
teacher = "reinforced"
from = "drawn"
answers = "own"
steps = 16
prompts = 4
max_tokens = 8

[[stage]]
name = "samples"
kind = "sample_and_filter"
from = "corrected"
prompts = 1700
samples = 1
max_tokens = 4

[[stage]]
name = "scores"
kind = "score"
models = ["corrected"]
items = 1700
max_tokens = 4
"#;
