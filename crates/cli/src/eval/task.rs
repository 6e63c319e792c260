//! `wels eval MODEL --task NAME`: a task of recipes, held-out items, alone or in its environment. The model is held in
//! the numbers of training, as a stage of kind `score` holds it, and the receipts are those of benchmarks.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;
use wels_comm::Single;
use wels_data::chat::ChatTemplate;
use wels_data::random::Permutation;
use wels_device::Precision;
use wels_kernels::random::Key;
use wels_model::model::Model;
use wels_pipeline::identity::identity;
use wels_pipeline::refusal::refuse;
use wels_pipeline::task::{Programs, held_out};
use wels_runs::files::write_atomically;
use wels_runs::hash::sha256;
use wels_runs::recipe::{Answering, TaskName};
use wels_tasks::statistics::{Share, share};
use wels_tasks::{Item, Task};
use wels_train::rl::{Answered, Prompter, answer};
use wels_train::rollout::RolloutOptions;

use super::Args;
use super::answer::Work;
use super::receipt::Receipt;
use super::receipts::{self, Folder};
use crate::interrupt::Interrupt;
use crate::model::{OpenModel, check_context, default_name, load_params};
use crate::output;
use crate::progress::Progress;

/// Items that are asked at a time.
const PART: usize = 128;

/// Random numbers of the answers.
const STREAM: u64 = 0x7461_736b;

/// What is asked, where that is a task of recipes.
#[derive(clap::Args)]
pub struct TaskArgs {
    /// Grade held-out items of a task or environment of recipes, such as calculator, with answers drawn at
    /// --temperature alone: docs/environments.md
    #[arg(long, value_name = "TASK", conflicts_with_all = ["bench", "against", "compare", "probe", "url"])]
    pub task: Option<String>,
    /// In an environment the most turns of an answer
    #[arg(long, value_name = "N", default_value = "8")]
    max_turns: NonZeroUsize,
    /// In an environment the most tokens of a turn; as many as --max-tokens if left out
    #[arg(long, value_name = "TOKENS")]
    max_turn_tokens: Option<NonZeroUsize>,
    /// Seconds that a program of one's own has for each answer or step
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    checker_seconds: f64,
}

/// What is written.
#[derive(Serialize)]
struct TaskScores {
    model: String,
    task: String,
    items: usize,
    samples: u32,
    /// The mean over items of the share of samples that are right, with its 95% interval (Wilson).
    accuracy: Share,
    /// Mean of the rewards, which a program of one's own may give in parts.
    reward: f64,
    /// Answers that ran into a limit.
    cut: usize,
    /// Means of an answer.
    turns: f64,
    sampled_tokens: f64,
    observed_tokens: f64,
}

/// Grades the model on the task.
pub fn task(args: &Args, name: &str, path: &Path) -> Result<()> {
    let (how, what) = (&args.how, &args.task);
    if args.resume {
        return Err(refuse("--resume goes on with benchmarks, and --task is asked whole", "leave it out"));
    }
    let max_tokens = how.max_tokens.get();
    let answering = Answering {
        task: TaskName::parse(name, Path::new("")),
        checker_seconds: what.checker_seconds,
        samples: how.samples.get() as usize,
        max_tokens,
        max_turns: what.max_turns.get(),
        max_turn_tokens: what.max_turn_tokens.map_or(max_tokens, NonZeroUsize::get),
        running: args.parallel.get(),
    };
    // The name stands on the user's own command line.
    let task = held_out(&answering, Programs::Run)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("evals").join(default_name(path)));
    let begin = Instant::now();
    let examinee = Examinee::open(args, path, &answering)?;
    let file = name.replace(|c: char| !c.is_ascii_alphanumeric() && !"-_+".contains(c), "_");
    let settings = json!({
        "format": receipts::FORMAT,
        "wels": env!("CARGO_PKG_VERSION"),
        "model": {"files": identity(&args.adapter.locate(path)?)?},
        "seed": args.what.seed,
        "benchmarks": [{"name": file, "task": name, "items_drawn": args.what.items, "samples": how.samples,
            "temperature": how.temperature, "max_tokens": max_tokens, "max_turns": answering.max_turns,
            "max_turn_tokens": answering.max_turn_tokens}],
    });
    let _folder = Folder::open(&out, &settings, false)?;
    let answered = examinee.answer(&*task, args)?;
    let receipts: Vec<Receipt> = answered.iter().flat_map(|group| examinee.receipts(group)).collect();
    let lines = receipts.iter().map(|receipt| serde_json::to_string(receipt).expect("plain data") + "\n");
    write(&out.join(format!("{file}.jsonl")), &lines.collect::<String>())?;
    let scores = TaskScores::of(default_name(path), name, &answered);
    write(&out.join("scores.json"), &(serde_json::to_string_pretty(&scores).expect("plain data") + "\n"))?;
    eprintln!("{:>9} {}", "work", work(&answered, begin.elapsed()));
    eprintln!("{:>9} {}", "receipts", out.display());
    match args.json {
        true => output::json(&scores)?,
        false => scores.print()?,
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn work(answered: &[Answered], elapsed: Duration) -> Work {
    let all = || answered.iter().flat_map(|group| &group.answers);
    let sampled: usize = all().map(|it| it.answer.chosen()).sum();
    let observed: usize = all().map(|it| it.answer.tokens.len()).sum::<usize>() - sampled;
    let prompts: usize = answered.iter().map(|group| group.prompt.len()).sum();
    Work {
        prompt_tokens: (prompts + observed) as u64,
        generated_tokens: sampled as u64,
        seconds: elapsed.as_secs_f64(),
        ..Work::default()
    }
}

/// A model in the numbers of training.
struct Examinee {
    model: Arc<Model>,
    params: Arc<wels_model::params::Params>,
    tokenizer: wels_data::tokenizer::Tokenizer,
    template: Option<ChatTemplate>,
    options: RolloutOptions,
}

impl Examinee {
    fn open(args: &Args, path: &Path, of: &Answering) -> Result<Examinee> {
        let location = args.adapter.locate(path)?;
        let open = OpenModel::open(&location)?;
        let none = || refuse("the model has no tokenizer", "put its tokenizer.json beside the weights");
        let tokenizer = open.tokenizer.ok_or_else(none)?;
        let template = ChatTemplate::of(&tokenizer)?;
        let device = args.load.place.device.open()?;
        let params = load_params(&device, &location, &open.config)?;
        let positions = open.config.rope.max_positions;
        let context = args.context.map_or(positions, |asked| asked.get().min(positions));
        check_context(&open.config, context)?;
        let eos = open.config.eos_ids.iter().copied();
        let mut stop_tokens: Vec<u32> = eos.chain(tokenizer.special().eos).collect();
        stop_tokens.dedup();
        let options = RolloutOptions {
            samples: of.samples,
            max_tokens: of.max_tokens,
            turns: of.max_turns,
            turn_tokens: of.max_turn_tokens,
            temperature: args.how.temperature,
            stop_tokens,
            running: of.running,
            precision: Precision::F32,
        };
        let model = Arc::new(Model::new(open.config, context));
        Ok(Examinee { model, params: Arc::new(params), tokenizer, template, options })
    }

    /// The answers to the items that are asked for, in their order.
    fn answer(&self, task: &dyn Task, args: &Args) -> Result<Vec<Answered>> {
        let (asked, seed) = (args.what.items.map(NonZeroUsize::get), args.what.seed);
        let numbers: Vec<u64> = match (task.len(), asked) {
            (None, None) => return Err(refuse("the task has items without end", "say how many with --items")),
            (None, Some(items)) => (0..items as u64).collect(),
            (Some(len), asked) => {
                let order = Permutation::new(len, seed);
                let drawn = asked.map_or(len, |items| len.min(items as u64));
                let mut numbers: Vec<u64> = (0..drawn).map(|at| order.at(at)).collect();
                numbers.sort_unstable();
                numbers
            }
        };
        let prompter = Prompter { tokenizer: &self.tokenizer, template: self.template.as_ref() };
        let (key, interrupt) = (Key { seed, stream: STREAM }, Interrupt::listen()?);
        let mut progress = Progress::new("task", "items", 0, Some(numbers.len() as u64));
        let mut all: Vec<Answered> = Vec::new();
        for part in numbers.chunks(PART) {
            if interrupt.asked() {
                return Err(refuse("interrupted", "start again"));
            }
            let items = part.iter().map(|number| task.item(*number)).collect::<Result<Vec<Item>, _>>()?;
            let seed_of = |n: usize| key.u64_at(part[n]);
            let (model, params, options) = (&self.model, &self.params, &self.options);
            all.extend(answer(&Single, model, params, task, &prompter, items, seed_of, options, &mut |_, _| {})?);
            progress.at(all.len() as u64, || right_in_words(&all));
        }
        progress.finish(&right_in_words(&all));
        Ok(all)
    }

    fn receipts(&self, group: &Answered) -> Vec<Receipt> {
        let prompt_sha256 = sha256(serde_json::to_string(&group.prompt).expect("numbers").as_bytes());
        let receipt = |(sample, it): (usize, &wels_train::rl::Rewarded)| Receipt {
            item: group.item.id.clone(),
            sample: sample as u32,
            subject: None,
            prompt_sha256: prompt_sha256.clone(),
            // What an environment says is read as a prompt is.
            prompt_tokens: Some((group.prompt.len() + it.answer.tokens.len() - it.answer.chosen()) as u64),
            shots: 0,
            choices: Vec::new(),
            output: it.text.clone(),
            answer: it.reward.grade.answer.clone(),
            expected: None,
            correct: it.reward.grade.correct,
            verdict: it.reward.grade.reason.to_string(),
            generated_tokens: Some(it.answer.chosen() as u64),
            end: if it.answer.truncated { "length" } else { "stop" }.to_owned(),
        };
        group.answers.iter().enumerate().map(receipt).collect()
    }
}

/// The share of right answers to each item.
fn shares(answered: &[Answered]) -> impl Iterator<Item = f64> {
    answered.iter().map(|group| {
        let right = group.answers.iter().filter(|it| it.reward.grade.correct).count();
        right as f64 / group.answers.len().max(1) as f64
    })
}

fn right_in_words(answered: &[Answered]) -> String {
    format!("{:.1}% right", 100.0 * shares(answered).sum::<f64>() / answered.len().max(1) as f64)
}

impl TaskScores {
    fn of(model: String, task: &str, answered: &[Answered]) -> TaskScores {
        let all = || answered.iter().flat_map(|group| &group.answers);
        let n = all().count().max(1) as f64;
        let sampled = all().map(|it| it.answer.chosen()).sum::<usize>() as f64 / n;
        TaskScores {
            model,
            task: task.to_owned(),
            items: answered.len(),
            samples: answered.first().map_or(0, |group| group.answers.len() as u32),
            accuracy: share(shares(answered).sum(), answered.len()).expect("a task has items"),
            reward: all().map(|it| it.reward.accuracy).sum::<f64>() / n,
            cut: all().filter(|it| it.answer.truncated).count(),
            turns: all().map(|it| it.answer.given.len() + 1).sum::<usize>() as f64 / n,
            sampled_tokens: sampled,
            observed_tokens: all().map(|it| it.answer.tokens.len()).sum::<usize>() as f64 / n - sampled,
        }
    }

    fn print(&self) -> std::io::Result<()> {
        let TaskScores { task, items, accuracy: Share { value, low, high }, cut, turns, .. } = self;
        let [right, low, high] = [value, low, high].map(|share| format!("{:.1}%", share * 100.0));
        output::line(&format!("{task}: {right} of {items} items right, 95% interval {low} to {high}"))?;
        let (sampled, observed) = (self.sampled_tokens, self.observed_tokens);
        output::line(&format!(
            "  {turns:.1} turns an answer, {sampled:.1} tokens sampled and {observed:.1} read between turns, {cut} cut"
        ))
    }
}
