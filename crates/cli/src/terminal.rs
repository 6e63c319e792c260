//! The host of a run: events as lines and bars on stderr, results on stdout, Ctrl-C as the wish to stop.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use wels_pipeline::host::{DrawGraded, Event, Graded, Host, Outcome, Share};
use wels_pipeline::words::short;
use wels_runs::ledger::Totals;
use wels_runs::recipe::{DrawScore, Score};

use crate::interrupt::Interrupt;
use crate::output;
use crate::plan::{plan_in_lines, pretraining_in_one_line};
use crate::progress::Progress;

/// The terminal, or what stands in its place.
pub struct Terminal {
    /// `None` leaves signals as they are.
    interrupt: Option<Interrupt>,
    begun: Instant,
    progress: Option<Progress>,
}

impl Terminal {
    /// For work that nothing has to be saved of.
    pub fn new() -> Terminal {
        Terminal { interrupt: None, begun: Instant::now(), progress: None }
    }

    /// For work that Ctrl-C asks to save and leave.
    pub fn listening() -> Result<Terminal> {
        let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
        Ok(Terminal { interrupt: Some(interrupt), ..Terminal::new() })
    }
}

impl Host for Terminal {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Run(folder) => say("run", &folder.display().to_string()),
            Event::Plan { plan, device } => {
                let lines = pretraining_in_one_line(plan).into_iter().chain(plan_in_lines(plan, device));
                lines.for_each(|line| say("plan", &line));
            }
            Event::Measuring => say("plan", "a few steps of each stage are measured"),
            Event::Note(note) => eprintln!("note: {note}"),
            Event::Began { label, unit, done, total } => self.progress = Some(Progress::new(label, unit, done, total)),
            Event::Reached { done, words } => {
                if let Some(progress) = &mut self.progress {
                    progress.at(done, words);
                }
            }
            Event::Remark(remark) => match &self.progress {
                Some(progress) => progress.line(remark),
                None => eprintln!("{remark}"),
            },
            Event::Ended(words) => {
                if let Some(progress) = self.progress.take() {
                    progress.finish(words);
                }
            }
            Event::Examples { stage, count } => say("learn", &format!("{stage}: {count} examples")),
            Event::Account { stage, comparison } => {
                for (what, planned, actual) in comparison.rows() {
                    say("account", &format!("{stage}: {what} {actual}, planned {planned}"));
                }
                comparison.reasons.iter().for_each(|reason| say("", reason));
            }
            Event::Model(folder) => say("model", &format!("{} (a Hugging Face directory)", folder.display())),
            Event::Report(page) => say("report", &page.display().to_string()),
        }
    }

    /// Where nobody reads stdout any more the run goes on: what it writes is in its files too.
    fn result(&mut self, result: Outcome<'_>) -> io::Result<()> {
        let shown = match result {
            Outcome::Sample { prompt, text } => output::line(&format!("{prompt}{text}\n---")),
            Outcome::Scores { of, models, took, usd_per_hour } => {
                print_scores(of, models).and_then(|()| output::line("")).and_then(|()| print_cost(&took, usd_per_hour))
            }
            Outcome::Drawn { of, models } => print_drawn(of, models),
        };
        shown.or_else(|error| if output::is_closed(&error) { Ok(()) } else { Err(error) })
    }

    fn stop_asked(&self) -> bool {
        self.interrupt.as_ref().is_some_and(Interrupt::asked)
    }

    fn clock(&self) -> Duration {
        self.begun.elapsed()
    }
}

fn say(label: &str, words: &str) {
    eprintln!("{label:>9} {words}");
}

/// Percent of right pictures by kind of caption, then of right answers and of pictures that codes give back.
fn print_drawn(of: &DrawScore, models: &[DrawGraded]) -> io::Result<()> {
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let rule = match of.guidance {
        1.0 => format!("temperature {}", of.temperature),
        guidance => format!("temperature {}, guidance {guidance}", of.temperature),
    };
    let names: String = models.iter().map(|it| format!(" {:>12}", it.model)).collect();
    output::line(&format!("{:<36}{names}", format!("{}, {rule}", of.pictures)))?;
    let row = |name: &str, value: &dyn Fn(&DrawGraded) -> String| {
        output::line(&format!(
            "{name:<36}{}",
            models.iter().map(|it| format!(" {:>12}", value(it))).collect::<String>()
        ))
    };
    row("seen captions", &|it| percent(it.seen_share()))?;
    for kind in models.iter().flat_map(|it| it.seen.keys()).collect::<BTreeSet<_>>() {
        row(&format!("  {kind}"), &|it| it.seen.get(kind).map_or(String::new(), |share| percent(share.share())))?;
    }
    row("captions never seen", &|it| percent(it.unseen_share()))?;
    for kind in models.iter().flat_map(|it| it.unseen.keys()).collect::<BTreeSet<_>>() {
        row(&format!("  {kind}"), &|it| it.unseen.get(kind).map_or(String::new(), |share| percent(share.share())))?;
    }
    row("  p against the first", &|it| it.p.map_or(String::new(), |p| format!("{p:.2}").replace("0.00", "<0.01")))?;
    let counted = |share: Share| if share.of == 0 { String::new() } else { percent(share.share()) };
    row("questions about held-out pictures", &|it| counted(it.all_answers()))?;
    for sort in models.iter().flat_map(|it| it.answers.keys()).collect::<BTreeSet<_>>() {
        row(&format!("  {sort}"), &|it| it.answers.get(sort).map_or(String::new(), |share| counted(*share)))?;
    }
    row("reconstructions that are right", &|it| counted(it.reconstructed))?;
    row("  PSNR", &|it| format!("{:.1} dB", it.psnr))?;
    row("  codes used", &|it| format!("{} of {}", it.codes_used, it.codes))
}

fn print_scores(of: &Score, models: &[Graded]) -> io::Result<()> {
    let head = format!("{} held out, temperature {}", of.answering.task, of.temperature);
    output::line(&format!(
        "{head:<36} {:>10} {:>10} {:>16} {:>8} {:>8}",
        "parameters", "activated", "right", "tokens", "p"
    ))?;
    for it in models {
        let right = format!("{:.1}% ± {:.1}", 100.0 * it.accuracy, 100.0 * it.standard_error);
        let p = it.p.map_or(String::new(), |p| format!("{p:.2}").replace("0.00", "<0.01"));
        output::line(&format!(
            "{:<36} {:>10} {:>10} {right:>16} {:>8.1} {p:>8}",
            it.model, it.parameters, it.parameters_activated, it.length
        ))?;
    }
    if models.len() > 1 {
        let test =
            if of.answering.samples == 1 { "McNemar's test, exact" } else { "signs of the items' differences flipped" };
        output::line(&format!("p: of so great a difference from the first by chance ({test})"))?;
    }
    Ok(())
}

/// Time and money by stage, from the ledger.
fn print_cost(stages: &[(&str, Totals)], usd_per_hour: f64) -> io::Result<()> {
    output::line(&format!("{:<36} {:>10} {:>10} {:>16}", "cost", "seconds", "tokens", "dollars"))?;
    stages.iter().try_for_each(|(stage, Totals { seconds, tokens, .. })| {
        let usd = seconds / 3600.0 * usd_per_hour;
        output::line(&format!("{stage:<36} {seconds:>10.1} {:>10} {usd:>16.4}", short(*tokens as f64)))
    })
}
