//! The tasks that recipes name.

use anyhow::Result;
use wels_tasks::countdown::{Countdown, Options, TraceOptions, Traces};
use wels_tasks::{Split, Style, Task};

use wels_runs::recipe::Supervised;

use crate::failure::refuse;

/// The task called `name`.
pub(super) fn task(name: &str, split: Split) -> Result<Box<dyn Task>> {
    match name {
        "countdown" => Ok(Box::new(countdown(split)?)),
        _ => Err(refuse(format!("there is no task '{name}'"), "known is: countdown")),
    }
}

fn countdown(split: Split) -> Result<Countdown> {
    Ok(Countdown::new(Options::default(), Style::Terse.into(), split)?)
}

/// Prompt and response of the first `count` worked puzzles of a stage; no held-out puzzle is among them.
pub(super) fn traces(section: &Supervised, seed: u64, count: u64) -> Result<Vec<(String, String)>> {
    let puzzles = countdown(Split::Train)?;
    let options = TraceOptions {
        tries: section.trace_tries,
        nearest_of: section.trace_nearest_of,
        slips: section.trace_slips,
        luck: section.trace_luck,
        direct: section.trace_direct,
        quit: section.trace_quit.clone(),
        seed,
        ..TraceOptions::default()
    };
    let traces = Traces::new(&puzzles, options)?;
    let pair = |index| traces.trace(index).map(|trace| (trace.prompt, trace.response));
    Ok((0..count).map(pair).collect::<Result<_, _>>()?)
}
