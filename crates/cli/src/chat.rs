//! `wels chat MODEL`: talk to a model in the terminal, thinking shown apart from the answer.
//!
//! Without a terminal, stdin is one question (with `--lines` each line is one) and stdout gets the answers; thinking
//! and everything else goes to stderr.

mod session;
mod terminal;
mod thinking;

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use wels_engine::{Options, Sampling, Speculation};
use wels_pipeline::refusal::refuse;

use crate::model::{LoadArgs, OpenModel, locate};
use session::{Part, Session, Settings};

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// A run, a Hugging Face directory, or a .gguf file
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
    /// The most tokens of an answer
    #[arg(long, default_value_t = 4096, value_name = "N")]
    max_tokens: usize,
    /// The same question, settings and seed give the same answer
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The longest conversation in tokens; the model's own context, at most 32768, if left out
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    #[command(flatten)]
    load: LoadArgs,
    /// Show of the thinking only how long it is
    #[arg(long)]
    fold: bool,
    /// No speculative decoding. Changes no answer
    #[arg(long)]
    no_speculation: bool,
    /// Without a terminal: each line is a question, all in one conversation
    #[arg(long)]
    lines: bool,
}

/// The longest context unless told otherwise: its rotary table and its cache take memory.
const CONTEXT_MAX: usize = 32_768;

/// Talks.
pub fn chat(args: &Args) -> Result<()> {
    let session = open(args)?;
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        terminal::talk(session, args.fold)
    } else {
        plain(session, args.lines)
    }
}

fn open(args: &Args) -> Result<Session> {
    let open = OpenModel::open(&locate(&args.model)?)?;
    let longest = open.config.rope.max_positions;
    let context = args.context.unwrap_or(longest.min(CONTEXT_MAX));
    if !(2..=longest).contains(&context) {
        let message = format!("--context is {context}, and the model's own is {longest}");
        return Err(refuse(message, format!("give a number from 2 to {longest}")));
    }
    let speculation = if args.no_speculation { Speculation::Off } else { Speculation::Auto { max_draft: 6 } };
    let sampling =
        Sampling { temperature: args.temperature, top_p: args.top_p, seed: args.seed, ..Sampling::default() };
    let settings = Settings { sampling, max_tokens: args.max_tokens };
    let (model, params) = args.load.take(&open, context, Options::default().cache_bytes)?;
    let options = args.load.options(params.placement(), &open.config);
    let options = Options { speculation, max_running: 1, ..options };
    let mut session = Session::new(model, params, open.tokenizer, options, settings)?;
    session.set_system(args.system.clone());
    Ok(session)
}

/// Questions from stdin, answers to stdout.
fn plain(mut session: Session, lines: bool) -> Result<()> {
    let mut ask = |question: &str| -> Result<()> {
        let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr().lock());
        let answer = session.ask(question, &|| false, &mut |part| match part {
            Part::Thinking(text) => stderr.write_all(text.as_bytes()),
            Part::Answer(text) => stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()),
        })?;
        writeln!(stdout)?;
        writeln!(stderr, "[{answer}]")?;
        Ok(())
    };
    if lines {
        for line in std::io::stdin().lines() {
            let line = line.context("cannot read the questions from stdin")?;
            if !line.trim().is_empty() {
                ask(&line)?;
            }
        }
        return Ok(());
    }
    let mut question = String::new();
    std::io::stdin().read_to_string(&mut question).context("cannot read the question from stdin")?;
    match question.trim() {
        "" => Err(refuse("there is no question on stdin", "write one, or start `wels chat` in a terminal")),
        question => ask(question),
    }
}
