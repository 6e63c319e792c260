//! What a report is made from, read from a run's directory. What a stage has not written is left out.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufReader;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::pictures::{self, Drawn, Sheets};
use crate::account::{self, Comparison};
use crate::files;
use crate::ledger::{Entry, Ledger, Totals};
use crate::plan::{self, Pretraining, StagePlan};
use crate::receipt::{RECEIPT, Receipt};
use crate::recipe::{Recipe, Work};
use crate::rundir::{self, RunError};

/// Lines of metrics that are looked at, spread evenly.
const LINES: usize = 1500;

/// How a line of metrics with a validation is told.
const VALIDATION: &[u8] = b"\"validation\":{";
const WARNINGS: &[u8] = b"\"warnings\":[\"";

/// What a stage of kind `questions` says of them.
pub const QUESTIONS: &str = "questions.json";

/// Columns of the map of loads.
const COLUMNS: usize = 60;

/// Everything that a report shows.
#[derive(Debug)]
pub struct RunData {
    pub recipe: Recipe,
    /// What `[model]` and `[pretrain]` give, where the run pretrains.
    pub pretraining: Option<Pretraining>,
    /// All lines of the ledger.
    pub entries: Vec<Entry>,
    /// Plan and account of each stage that was planned.
    pub comparisons: Vec<Comparison>,
    /// The receipt, once there is a checkpoint.
    pub receipt: Option<Receipt>,
    /// Metrics of each stage that has some.
    pub stages: Vec<StageData>,
    /// Samples by stage.
    pub samples: Vec<(String, Vec<Sample>)>,
    /// Scores on benchmarks.
    pub scores: Vec<Score>,
    /// What stages of kind `score` found, in the order of the recipe.
    pub held_out: Vec<HeldOut>,
    /// What stages of kind `questions` made.
    pub questions: Vec<QuestionsMade>,
    /// What stages of pictures made along the way.
    pub sheets: Vec<Sheets>,
    /// What stages of kind `draw_score` found.
    pub drawn: Vec<Drawn>,
}

/// The metrics of a stage.
#[derive(Debug, Default)]
pub struct StageData {
    pub name: String,
    pub last_step: f64,
    /// Curves by key; numbers within an object have the key `object.key`.
    pub curves: BTreeMap<String, Vec<(f64, f64)>>,
    /// By layer: for each expert, its load over time as a ratio to the mean.
    pub loads: Vec<(u64, Vec<Vec<f64>>)>,
    /// What the doctor said, with the step.
    pub warnings: Vec<(f64, String)>,
}

/// Text that the model wrote.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Sample {
    pub prompt: String,
    pub text: String,
    pub thinking: Option<String>,
}

/// A score on a benchmark, with the interval that it lies in.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Score {
    pub bench: String,
    /// A percentage.
    pub score: f64,
    /// Lower end of the 95% interval.
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub items: Option<u64>,
}

/// A model's answers to held-out items.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct HeldOut {
    /// A stage, or a model elsewhere.
    pub model: String,
    /// Share of right answers.
    pub accuracy: f64,
    /// Of `accuracy`.
    pub standard_error: f64,
    pub answers: u64,
    /// How likely chance alone is to part it from the first model as far.
    pub p: Option<f64>,
    /// The task, by the recipe.
    #[serde(skip)]
    pub task: String,
}

/// What became of the questions that documents gave: the `questions.json` of a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuestionsMade {
    /// By its name in the recipe, which the line of its folder does not repeat.
    #[serde(skip)]
    pub stage: String,
    /// That were read.
    pub documents: u64,
    /// That were put to the model.
    pub asked: u64,
    /// Those that it answered wrong too often with the passage before it.
    pub wrong_with_passage: u64,
    /// Those that it answered right too often without; none of those held out.
    pub right_without_passage: u64,
    /// Those left out because they share a run of words with one that is held out.
    pub overlapping: u64,
    /// To be learnt.
    pub train: u64,
    pub held_out: u64,
    /// Words of such a run, in a sentence that long.
    pub run_words: u64,
    /// Held-out questions of which a run is among those to be learnt, counted at the end.
    pub held_out_in_train: u64,
    /// Held-out questions that are too short to be looked for.
    pub held_out_too_short: u64,
    /// Held-out questions whose sentence stands in the documents, from which it is to be known.
    pub held_out_in_documents: u64,
}

impl RunData {
    /// Reads the run at `path` without changing it.
    ///
    /// # Errors
    /// [`RunError`] if it is no run, or its recipe or ledger cannot be read.
    pub fn read(path: &Path) -> Result<RunData, RunError> {
        rundir::check_format(path)?;
        let recipe = Recipe::load(&path.join("recipe.toml"))?;
        let (entries, _) = Ledger::read(&path.join("ledger.jsonl"))?;
        let planned = planned_stages(path);
        let pretraining = recipe.pretrains().then(|| plan::pretraining(&recipe, plan::Activations::F32));
        let began = |stage: &&StagePlan| entries.iter().any(|entry| entry.stage == stage.stage);
        let comparisons = planned.iter().filter(began).map(|stage| account::compare(stage, &entries)).collect();
        let receipt = path.join(RECEIPT).exists().then(|| Receipt::read(&path.join(RECEIPT))).transpose()?;
        let mut stages = Vec::new();
        let mut samples = Vec::new();
        let mut sheets = Vec::new();
        for name in folders(path)? {
            let metrics = path.join(&name).join("metrics.jsonl");
            if metrics.is_file() {
                stages.push(StageData::read(&name, &metrics)?);
            }
            sheets.extend(pictures::sheets(&name, &path.join(&name)));
            if let Some(texts) = read_list(&path.join(&name).join("samples.json")) {
                samples.push((name, texts));
            }
        }
        let order = |name: &str| entries.iter().position(|entry| entry.stage == name).unwrap_or(usize::MAX);
        stages.sort_by_key(|stage| order(&stage.name));
        sheets.sort_by_key(|it: &Sheets| order(&it.stage));
        samples.sort_by_key(|(stage, _)| order(stage));
        let scores = read_list(&path.join("scores.json")).unwrap_or_default();
        let (mut held_out, mut drawn, mut questions) = (Vec::new(), Vec::new(), Vec::new());
        for stage in &recipe.stages {
            let file = path.join(&stage.name).join("scores.json");
            match &stage.work {
                Work::Score(section) => {
                    let found: Vec<HeldOut> = read_list(&file).unwrap_or_default();
                    let task = section.answering.task.to_string();
                    held_out.extend(found.into_iter().map(|score| HeldOut { task: task.clone(), ..score }));
                }
                Work::Questions(_) => {
                    let made: Option<QuestionsMade> = read_json(&path.join(&stage.name).join(QUESTIONS));
                    questions.extend(made.map(|made| QuestionsMade { stage: stage.name.clone(), ..made }));
                }
                Work::DrawScore(_) => drawn.extend(read_list::<Drawn>(&file).unwrap_or_default()),
                _ => {}
            }
        }
        Ok(RunData {
            recipe,
            pretraining,
            entries,
            comparisons,
            receipt,
            stages,
            samples,
            scores,
            held_out,
            questions,
            sheets,
            drawn,
        })
    }

    /// Sums over the whole run.
    pub fn totals(&self) -> Totals {
        Totals::of(self.entries.iter())
    }

    /// The last value of a curve of any stage, the last stage that has it first.
    pub fn last(&self, key: &str) -> Option<f64> {
        self.stages.iter().rev().find_map(|stage| stage.curves.get(key)?.last()).map(|(_, y)| *y)
    }
}

/// What runs are compared by. What a run does not have is none.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub name: String,
    /// Of the model that is pretrained.
    pub parameters: Option<u64>,
    /// Of them, used by one token.
    pub parameters_activated: Option<u64>,
    /// Learnt from or sampled, in all stages.
    pub tokens: u64,
    pub flops: f64,
    /// Nats a token, of the last step.
    pub loss: Option<f64>,
    /// Nats a token, of held-out text.
    pub validation_nll: Option<f64>,
    /// Of held-out text.
    pub bits_per_byte: Option<f64>,
    /// Mean, of the last step.
    pub reward: Option<f64>,
    /// Share of right answers in the last step.
    pub accuracy: Option<f64>,
    /// Share of held-out questions that the model scored last got right.
    pub held_out_accuracy: Option<f64>,
    /// By the clock, of all stages.
    pub seconds: f64,
    pub peak_rss_bytes: u64,
    pub cost_micro_usd: u64,
}

impl RunData {
    /// The run in figures.
    pub fn summary(&self) -> Summary {
        let totals = self.totals();
        Summary {
            name: self.recipe.run.name.clone(),
            parameters: self.pretraining.as_ref().map(|it| it.parameters),
            parameters_activated: self.pretraining.as_ref().map(|it| it.parameters_activated),
            tokens: totals.tokens,
            flops: totals.flops,
            loss: self.last("loss"),
            validation_nll: self.last("validation.nll"),
            bits_per_byte: self.last("validation.bits_per_byte"),
            reward: self.last("reward"),
            accuracy: self.last("accuracy"),
            held_out_accuracy: self.held_out.last().map(|score| score.accuracy),
            seconds: totals.seconds,
            peak_rss_bytes: totals.peak_rss_bytes,
            cost_micro_usd: totals.cost_micro_usd,
        }
    }
}

/// The stages as `plan.json` has them: with the rate that was measured when the run began.
fn planned_stages(run: &Path) -> Vec<StagePlan> {
    let plan: Option<Value> = files::read_text(&run.join("plan.json"), files::SMALL_BYTES_MAX)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok());
    plan.and_then(|plan| serde_json::from_value(plan["stages"].clone()).ok()).unwrap_or_default()
}

/// A list of a kind; `None` if the file is not there or holds something else.
fn read_list<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<Vec<T>> {
    read_json(path)
}

/// Something of a kind; `None` likewise.
fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_str(&files::read_text(path, files::SMALL_BYTES_MAX).ok()?).ok()
}

fn folders(run: &Path) -> Result<Vec<String>, RunError> {
    let entries = fs::read_dir(run).map_err(RunError::io("list", run))?;
    let folders = entries.flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

impl StageData {
    fn read(name: &str, path: &Path) -> Result<StageData, RunError> {
        let open = || files::open_regular(path).map(BufReader::new).map_err(RunError::io("read", path));
        let (mut lines, mut line, mut count) = (open()?, Vec::new(), 0usize);
        while files::read_line(&mut lines, &mut line).map_err(RunError::io("read", path))? {
            count += 1;
        }
        let stride = count.div_ceil(LINES).max(1);
        let column_lines = count.div_ceil(COLUMNS).max(1);
        let mut data = StageData { name: name.to_string(), ..StageData::default() };
        let mut sums: BTreeMap<u64, Vec<Vec<f64>>> = BTreeMap::new();
        lines = open()?;
        for index in 0..count {
            files::read_line(&mut lines, &mut line).map_err(RunError::io("read", path))?;
            // Validations and warnings are rare, so none of them is passed over.
            let has = |mark: &[u8]| line.windows(mark.len()).any(|part| part == mark);
            if index % stride != 0 && index + 1 != count && !has(VALIDATION) && !has(WARNINGS) {
                continue;
            }
            let Ok(Value::Object(line)) = serde_json::from_slice(&line) else { continue };
            let step = line.get("step").and_then(Value::as_f64).unwrap_or(index as f64 + 1.0);
            data.last_step = step;
            for (key, value) in &line {
                data.take(key, value, step);
            }
            add_loads(&mut sums, index / column_lines, line.get("experts"));
        }
        data.loads = sums.into_iter().map(|(layer, columns)| (layer, ratios(&columns))).collect();
        Ok(data)
    }

    fn take(&mut self, key: &str, value: &Value, step: f64) {
        match value {
            Value::Number(number) if key != "step" => {
                self.curves.entry(key.to_string()).or_default().push((step, number.as_f64().unwrap_or(f64::NAN)));
            }
            Value::Object(object) => {
                object.iter().filter(|(_, value)| value.is_number()).for_each(|(inner, value)| {
                    self.take(&format!("{key}.{inner}"), value, step);
                });
            }
            Value::Array(items) if key == "warnings" => {
                self.warnings.extend(items.iter().filter_map(Value::as_str).map(|words| (step, words.to_string())));
            }
            Value::Array(items) if key == "mtp_losses" => {
                (1..).zip(items).filter(|(_, value)| value.is_number()).for_each(|(depth, value)| {
                    self.take(&format!("mtp_loss.{depth}"), value, step);
                });
            }
            _ => {}
        }
    }
}

/// Adds one line's loads to its column, by layer.
fn add_loads(sums: &mut BTreeMap<u64, Vec<Vec<f64>>>, column: usize, experts: Option<&Value>) {
    for layer in experts.and_then(Value::as_array).into_iter().flatten() {
        let (Some(number), Some(load)) = (layer["layer"].as_u64(), layer["load"].as_array()) else { continue };
        let columns = sums.entry(number).or_default();
        columns.resize_with((column + 1).max(columns.len()), Vec::new);
        let sum = &mut columns[column];
        sum.resize(load.len().max(sum.len()), 0.0);
        sum.iter_mut().zip(load).for_each(|(sum, load)| *sum += load.as_f64().unwrap_or(0.0));
    }
}

/// `columns[time][expert]` → `[expert][time]`, each as a ratio to the column's mean.
fn ratios(columns: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let experts = columns.iter().map(Vec::len).max().unwrap_or(0);
    let ratio = |column: &Vec<f64>, expert: usize| {
        let mean = column.iter().sum::<f64>() / column.len().max(1) as f64;
        if mean > 0.0 { column.get(expert).copied().unwrap_or(0.0) / mean } else { 1.0 }
    };
    (0..experts).map(|expert| columns.iter().map(|column| ratio(column, expert)).collect()).collect()
}
