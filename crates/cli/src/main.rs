//! `wels`: train, plan, measure, score and talk to models. One file a verb; this one reads the command line and reports
//! failures.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0 done; 1 for the user to mend, an interrupted run among
//! it; 2 a bug, or the machine; 130 a second Ctrl-C. `chat --agent` adds 3 and 4, and `launch` ends with its agent's.

#![forbid(unsafe_code)]

/// To stderr. Where nobody reads it any more the words are lost, and what is done goes on: std's macro of this name
/// would panic.
macro_rules! eprintln {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr().lock(), $($words)*);
    }};
}

mod run;

mod over;

#[cfg(feature = "mpi")]
mod ranks;

mod plan;

mod score;

mod eval;

mod chat;

mod draw;

mod convert;

mod verify;
mod watch;

mod report;

mod bench;

mod device;

mod placement;

mod model;

mod janus;

mod opened;

mod pull;

mod named;

mod serve;

mod keys;

mod launch;

mod usage;

mod failure;

mod output;

mod progress;

mod interrupt;

mod terminal;

mod share;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The open DeepSeek system in one program: trains, evaluates, plans and serves language models.
#[derive(Parser)]
#[command(name = "wels", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Threads that compute, or `auto`: as many as cores that nobody else keeps busy now. If left out as many as cores,
    /// or as the process's group may use. Changes no bit of a result.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<share::Threads>,
    /// Let other programs go first, the more the greater N is
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=19))]
    nice: Option<u8>,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a recipe, or go on with a run; without any verb, the quickstart
    Run(run::Args),
    /// Parameters, FLOPs, memory, time and cost of a model or a recipe, before anything starts
    Plan(plan::Args),
    /// Log-probabilities and perplexity of a text
    Score(score::Args),
    /// Run benchmarks, with a receipt for each item; compare two models
    Eval(eval::Args),
    /// Download a model from a Hugging Face hub
    Pull(pull::Args),
    /// Convert a model to a Hugging Face directory or a GGUF file
    Convert(convert::Args),
    /// Serve a model over HTTP: the APIs of OpenAI, DeepSeek and Anthropic, and a web chat
    Serve(serve::Args),
    /// Start a coding agent with a server of Wels behind it
    Launch(launch::Args),
    /// Create, list, limit and revoke API keys of the server
    Keys(keys::Args),
    /// Usage and cost by key, day or model
    Usage(usage::Args),
    /// Chat with a model in the terminal
    Chat(chat::Args),
    /// Generate images from a prompt
    Draw(draw::Args),
    /// Check a run's files, and compute some of its steps again, bit for bit
    Verify(verify::Args),
    /// Write a run's HTML report, or compare runs
    Report(report::Args),
    /// Benchmark this machine
    Bench(bench::Args),
}

fn main() -> ExitCode {
    // The jail starts this program again as its own first process.
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into()).collect();
    if arguments.first().is_some_and(|first| first == wels_tasks::jail::VERB) {
        wels_tasks::jail::main(&arguments[1..]);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print(); // a closed pipe is no reason to fail
            return if error.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    // The panic's own message has been printed when it arrives here.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dispatch(cli))) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => failure::report(&error),
        Err(_) => {
            eprintln!("hint: this is a bug in wels; please report the message above with the command that led to it");
            ExitCode::from(2)
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    wels_kernels::isa::requested().map_err(anyhow::Error::msg)?;
    share::take(cli.threads, cli.nice)?;
    match cli.verb.unwrap_or_else(|| Verb::Run(run::Args::quickstart())) {
        Verb::Run(args) => return run::run(&args),
        Verb::Plan(args) => plan::plan(&args),
        Verb::Score(args) => score::score(&args),
        Verb::Eval(args) => eval::eval(&args),
        Verb::Pull(args) => pull::pull(&args),
        Verb::Convert(args) => convert::convert(&args),
        Verb::Serve(args) => return serve::serve(&args),
        Verb::Launch(args) => launch::launch(&args),
        Verb::Keys(args) => keys::keys(&args),
        Verb::Usage(args) => usage::usage(&args),
        Verb::Chat(args) => return chat::chat(&args),
        Verb::Draw(args) => draw::draw(&args),
        Verb::Verify(args) => verify::verify(&args),
        Verb::Report(args) => report::report(&args),
        Verb::Bench(args) => bench::bench(&args),
    }?;
    Ok(ExitCode::SUCCESS)
}
