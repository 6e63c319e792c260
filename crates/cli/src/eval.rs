//! `wels eval MODEL --bench mmlu,gsm8k=FILE … [--data DIR]`: benchmarks, with a receipt for each item.
//! `wels eval MODEL --task NAME`: a task of recipes, alone or in its environment.
//! `wels eval MODEL --probe PAIRS.jsonl`: what a model will not talk about.
//! `wels eval --compare A B`: whether two evaluations differ.
//! `wels eval --bench … --against CORPUS`: whether a corpus holds a benchmark's items.
//!
//! What is asked (`suite`, `probe`) is independent of who answers (`local`: the engine; `endpoint`: a server). Answers
//! are graded beside that, and `receipts` writes them in the order of the items, so that files do not depend on who was
//! done first.

mod answer;

mod suite;

mod local;

mod endpoint;

mod receipt;

mod receipts;

mod scores;

mod compare;

mod against;

mod probe;

mod task;

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use wels_pipeline::refusal::refuse;

use self::answer::{Answer, Answerer};
use self::endpoint::Endpoint;
use self::local::Local;
use self::receipts::Folder;
use self::scores::Scores;
use self::suite::{PromptStyle, Suite, chosen};
use crate::interrupt::Interrupt;
use crate::model::{AdapterArg, LoadArgs, default_name};
use crate::output;
use crate::progress::Progress;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// A run, a Hugging Face directory, a .gguf file, or a name: ORG/NAME, r1:1.5b; with
    /// --endpoint what it is called there
    #[arg(value_name = "MODEL", required_unless_present_any = ["compare", "against"])]
    model: Option<PathBuf>,
    #[command(flatten)]
    what: BenchmarkArgs,
    #[command(flatten)]
    task: task::TaskArgs,
    #[command(flatten)]
    how: AnswerArgs,
    /// Where receipts and scores go; `evals/` and the model's name if left out
    #[arg(long, value_name = "DIR", visible_alias = "output")]
    out: Option<PathBuf>,
    /// Go on with what is in the folder for receipts
    #[arg(long)]
    resume: bool,
    /// Requests that are answered at the same time
    #[arg(long, value_name = "N", default_value = "32", visible_alias = "max-running")]
    parallel: NonZeroUsize,
    /// Tokens of prompt and answer together; the model's own limit if left out
    #[arg(long, value_name = "TOKENS")]
    context: Option<NonZeroUsize>,
    /// Memory for keys and values, in MiB
    #[arg(long, value_name = "MIB", default_value = "1024")]
    cache_mib: NonZeroUsize,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    adapter: AdapterArg,
    /// Compare two folders of receipts, item by item
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["model", "bench"])]
    compare: Option<Vec<PathBuf>>,
    /// Look for the items in a corpus: files or folders of text, JSON Lines or Parquet
    #[arg(long, value_name = "CORPUS", num_args = 1.., conflicts_with = "model")]
    against: Vec<PathBuf>,
    /// Ask pairs of prompts that a fair model would treat alike, and show how the answers differ in refusing and length
    #[arg(long, value_name = "PAIRS.jsonl", conflicts_with = "bench")]
    probe: Option<PathBuf>,
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// Write one line of JSON
    #[arg(long)]
    json: bool,
}

/// A model elsewhere.
#[derive(clap::Args)]
pub struct EndpointArgs {
    /// Ask a server with OpenAI's API, such as http://127.0.0.1:8080/v1; MODEL is the model's name there
    #[arg(long = "endpoint", value_name = "URL")]
    url: Option<String>,
    /// The variable of the environment that holds the key
    #[arg(long, value_name = "NAME", default_value = "OPENAI_API_KEY")]
    key_env: String,
    /// Seconds that one answer may take
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    timeout: NonZeroU32,
    /// A model directory or .gguf file whose tokenizer counts the answers' tokens, instead of the endpoint
    #[arg(long, value_name = "MODEL")]
    tokenizer: Option<PathBuf>,
}

/// What is asked.
#[derive(clap::Args)]
pub struct BenchmarkArgs {
    /// mmlu, gpqa, math, gsm8k, aime, humaneval, mbpp, each found in --data by its usual name, or as NAME=FILE
    #[arg(long, value_name = "NAME[=FILE]", value_delimiter = ',')]
    bench: Vec<String>,
    /// The folder with the benchmarks' files; `hf://datasets/ORG/NAME[@REVISION]/PATH` for those of a published
    /// dataset, here and as FILE
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A file with examples to show before the questions of a benchmark; found in --data if left out
    #[arg(long, value_name = "NAME=FILE", value_delimiter = ',')]
    dev: Vec<String>,
    /// As many items of each benchmark, drawn by the seed; all if left out
    #[arg(long, value_name = "N")]
    items: Option<NonZeroUsize>,
    /// Examples before each question that is continued as text; if left out as many as is usual for the benchmark
    #[arg(long, value_name = "K")]
    shots: Option<usize>,
    /// For the choice of items, and for sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// How it is asked and answered.
#[derive(clap::Args)]
pub struct AnswerArgs {
    /// How questions are put; if left out `chat` where answers are written and the model has a template, else `plain`
    #[arg(long, value_enum)]
    prompt: Option<PromptStyle>,
    /// How a choice is read; if left out `likelihood`, from an endpoint `generation`
    #[arg(long, value_enum)]
    choice: Option<ChoiceBy>,
    /// Written answers to each question
    #[arg(long, value_name = "K", default_value = "1")]
    samples: NonZeroU32,
    /// 0 for the likeliest token each time
    #[arg(long, value_name = "T", default_value_t = 0.6)]
    temperature: f32,
    /// The fewest likeliest tokens with this probability together are drawn from
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// The most tokens of a written answer
    #[arg(long, value_name = "TOKENS", default_value = "2048")]
    max_tokens: NonZeroUsize,
}

/// How the answer to a multiple-choice question is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ChoiceBy {
    /// From the letter that the model would most probably go on with
    Likelihood,
    /// From what the model writes
    Generation,
}

/// Evaluates, compares, or looks for overlap.
pub fn eval(args: &Args) -> Result<()> {
    if let Some([first, second]) = args.compare.as_deref() {
        return compare::compare(first, second, args.json);
    }
    if let (Some(task), Some(model)) = (&args.task.task, &args.model) {
        return task::task(args, task, model);
    }
    let named = if args.probe.is_some() { Vec::new() } else { chosen(&args.what)? };
    if !args.against.is_empty() {
        return against::against(&named, &args.against, args.json);
    }
    let model = args.model.as_deref().expect("clap requires it");
    let mut answerer: Box<dyn Answerer> = match &args.endpoint.url {
        Some(url) => Box::new(Endpoint::new(args, url, model)?),
        None => Box::new(Local::open(args, model)?),
    };
    if let Some(pairs) = &args.probe {
        return probe::probe(args, pairs, answerer.as_mut());
    }
    let suites =
        named.iter().map(|named| Suite::read(named, args, answerer.as_ref())).collect::<Result<Vec<Suite>>>()?;
    let settings = settings(args, answerer.as_ref(), &suites);
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("evals").join(default_name(model)));
    let folder = Folder::open(&out, &settings, args.resume)?;
    let interrupt = Interrupt::listen()?;
    let begin = Instant::now();
    let mut scores = Scores::new(default_name(model));
    for suite in &suites {
        let receipts = ask(suite, answerer.as_mut(), &folder, &interrupt)?;
        scores.add(suite, &receipts);
    }
    folder.finish(&scores)?;
    let work = answerer.work(begin.elapsed());
    eprintln!("{:>9} {work}", "work");
    eprintln!("{:>9} {}", "receipts", out.display());
    match args.json {
        true => output::json(&scores)?,
        false => scores.print()?,
    }
    Ok(())
}

/// Everything that the receipts depend on.
fn settings(args: &Args, answerer: &dyn Answerer, suites: &[Suite]) -> Value {
    json!({
        "format": receipts::FORMAT,
        "wels": env!("CARGO_PKG_VERSION"),
        "model": answerer.identity(),
        "seed": args.what.seed,
        "benchmarks": suites.iter().map(|suite| suite.settings().clone()).collect::<Vec<Value>>(),
    })
}

/// Asks what is left of a suite. The receipts of all of it.
fn ask(
    suite: &Suite,
    answerer: &mut dyn Answerer,
    folder: &Folder,
    interrupt: &Interrupt,
) -> Result<Vec<receipt::Receipt>> {
    let (writer, begin) = folder.writer(suite)?;
    let writer = Mutex::new(writer);
    let progress =
        Mutex::new(Progress::new(suite.benchmark().name(), "answers", begin as u64, Some(suite.len() as u64)));
    let graders = wels_kernels::par::threads();
    let (sender, receiver) = mpsc::sync_channel::<(usize, Answer)>(256);
    let receiver = Mutex::new(receiver);
    let grade = || -> Result<()> {
        while let Some((number, answer)) = next(&receiver) {
            let receipt = suite.receipt(number, &answer)?;
            let mut writer = writer.lock().expect("a grader does not panic");
            writer.put(number, receipt, &answer)?;
            progress.lock().expect("a grader does not panic").at(writer.written() as u64, || writer.detail());
        }
        Ok(())
    };
    let answered = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..graders).map(|_| scope.spawn(grade)).collect();
        let gone = || anyhow!("grading ended early");
        let mut hand_over = |number, answer| sender.send((number, answer)).map_err(|_| gone());
        let answered = answerer.answer(suite, begin..suite.len(), &|| interrupt.asked(), &mut hand_over);
        drop(sender);
        let graded = threads.into_iter().map(|thread| thread.join().expect("a grader does not panic"));
        graded.collect::<Result<Vec<()>>>().and(answered)
    });
    let writer = writer.into_inner().expect("a grader does not panic");
    answered?;
    if writer.written() < suite.len() {
        let message = format!("interrupted after {} of {} answers of {}", writer.written(), suite.len(), suite.name());
        return Err(refuse(message, "go on with --resume"));
    }
    progress.into_inner().expect("a grader does not panic").finish(&writer.detail());
    writer.finish()
}

/// The next answer to grade, once there is one.
fn next(receiver: &Mutex<Receiver<(usize, Answer)>>) -> Option<(usize, Answer)> {
    receiver.lock().expect("receiving does not panic").recv().ok()
}

/// A benchmark that the command line names, and its files.
pub struct Named {
    name: String,
    benchmark: wels_tasks::benchmarks::Benchmark,
    file: PathBuf,
    /// With examples; `None` if there is none.
    dev: Option<PathBuf>,
}

/// Refuses a name that is there twice: its receipts would go to one file.
fn no_doubles(named: &[Named]) -> Result<()> {
    let mut seen = BTreeSet::new();
    match named.iter().find(|named| !seen.insert(&named.name)) {
        Some(double) => Err(refuse(format!("{} is named twice", double.name), "evaluate them one after the other")),
        None => Ok(()),
    }
}

/// The last part of a path, for receipts that are to be the same wherever the files are.
fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
