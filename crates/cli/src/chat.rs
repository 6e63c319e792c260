//! `wels chat MODEL`: talk to a model in the terminal, thinking shown apart from the answer, with tools if it is given
//! some; `--agent TASK` lets it work by itself.
//!
//! Without a terminal, stdin is one question (with `--lines` each line is one) and stdout gets the answers; thinking
//! and everything else goes to stderr.
//!
//! Exit codes of `--agent`: 0 answered, 3 the turns are used up, 4 the tokens are, 130 interrupted.

mod answers;
mod keys;
mod markdown;
mod screen;
mod session;
mod task;
mod terminal;
mod tools;

use std::io::{IsTerminal, Read};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use wels_agent::Limits;
use wels_engine::{Options, Sampling, Speculation};
use wels_pipeline::refusal::refuse;

use crate::model::{AdapterArg, LoadArgs};
use crate::opened::Opened;
use answers::{Answers, Settings};
use session::Session;
use tools::ToolArgs;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// A run, a Hugging Face directory, a .gguf file, or a name: ORG/NAME, r1:1.5b
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// 0 for the likeliest token each time
    #[arg(long, default_value_t = 0.6, value_name = "T")]
    temperature: f32,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 0.95, value_name = "P")]
    top_p: f32,
    /// The most tokens of an answer, 4096 if left out; with --agent, of all answers together, 32768 if left out
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// The same question, settings and seed give the same answer
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The longest conversation in tokens; the model's own context, at most 32768, if left out
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    adapter: AdapterArg,
    /// Show of the thinking only how long it is
    #[arg(long)]
    fold: bool,
    /// No speculative decoding. Changes no answer
    #[arg(long)]
    no_speculation: bool,
    /// Without a terminal: each line is a question, all in one conversation
    #[arg(long)]
    lines: bool,
    /// Do a task without a person: answers and calls until an answer calls nothing
    #[arg(long, value_name = "TASK", conflicts_with = "lines")]
    agent: Option<String>,
    /// The most answers to one question or task
    #[arg(long, default_value_t = 32, value_name = "N")]
    max_turns: usize,
    /// With --agent: write each answer, call and result as a line of JSON
    #[arg(long, requires = "agent")]
    json: bool,
    /// A picture (PNG, JPEG or WebP) that the first question is about; can be given several times
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    #[command(flatten)]
    tools: ToolArgs,
}

/// Tokens of an answer, and of all answers to a task.
const ANSWER_TOKENS: usize = 4096;
const TASK_TOKENS: usize = 32_768;

/// The longest context unless told otherwise: its rotary table and its cache take memory.
const CONTEXT_MAX: usize = 32_768;
/// The KV cache of a conversation.
const CACHE_MIB: NonZeroUsize = NonZeroUsize::new(1024).expect("not 0");

/// Talks.
pub fn chat(args: &Args) -> Result<ExitCode> {
    let mut session = open(args)?;
    if let Some(task) = &args.agent {
        return match task.trim() {
            "" => Err(refuse("the task of --agent is empty", "say what is to be done")),
            task => task::run(session, task, args.json),
        };
    }
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        terminal::talk(session, args.fold)?;
    } else {
        if std::io::stdin().is_terminal() {
            eprintln!("note: stdout is no terminal; the question is what is written here, up to Ctrl-D");
        }
        plain(&mut session, args.lines)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn open(args: &Args) -> Result<Session> {
    let mut open = Opened::find(&args.adapter.locate(&args.model)?)?;
    let longest = open.longest();
    let context = args.context.unwrap_or(longest.min(CONTEXT_MAX));
    if !(2..=longest).contains(&context) {
        let message = format!("--context is {context}, and the model's own is {longest}");
        return Err(refuse(message, format!("give a number from 2 to {longest}")));
    }
    let served = open.served(context)?;
    if served.template.is_none() && args.tools.wants_any() {
        let hint = "tools need a model that was trained to talk";
        return Err(refuse("the model has no chat template, and cannot be told of tools", hint));
    }
    // Before the model is loaded: what is wrong here is known at once.
    let agent = args.tools.agent(&mut |note| eprintln!("note: {note}"))?;
    let speculation = if args.no_speculation { Speculation::Off } else { Speculation::Auto { max_draft: 6 } };
    let own = |options| Options { speculation, max_running: 1, ..options };
    let engine = open.engine(&args.load, &served.tokenizer, context, CACHE_MIB, own)?;
    let sampling =
        Sampling { temperature: args.temperature, top_p: args.top_p, seed: args.seed, ..Sampling::default() };
    let task_tokens = args.agent.as_ref().map(|_| args.max_tokens.unwrap_or(TASK_TOKENS));
    let max_tokens = task_tokens.or(args.max_tokens).unwrap_or(ANSWER_TOKENS);
    let limits = Limits { turns: args.max_turns.max(1), tokens: task_tokens };
    let mut session = Session::new(Answers::new(engine, served, Settings { sampling, max_tokens }), agent, limits);
    session.must_call = args.tools.must_call;
    session.set_system(args.system.clone());
    args.image.iter().try_for_each(|image| session.attach(image))?;
    Ok(session)
}

/// Questions from stdin, answers to stdout.
fn plain(session: &mut Session, lines: bool) -> Result<()> {
    if lines {
        for line in std::io::stdin().lines() {
            let line = line.context("cannot read the questions from stdin")?;
            if !line.trim().is_empty() {
                task::ask(session, &line)?;
            }
        }
        return Ok(());
    }
    let mut question = String::new();
    std::io::stdin().read_to_string(&mut question).context("cannot read the question from stdin")?;
    match question.trim() {
        "" => Err(refuse("there is no question on stdin", "write one, or start `wels chat` in a terminal")),
        question => task::ask(session, question),
    }
}
