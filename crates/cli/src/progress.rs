//! Progress on stderr: a bar with rate and remaining time on a terminal, a plain line every few seconds otherwise.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Without a terminal, the time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The progress of one stage.
pub struct Progress {
    label: &'static str,
    unit: &'static str,
    total: Option<u64>,
    begin: u64,
    started: Instant,
    last_line: Instant,
    /// `None` without a terminal.
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins at `begin` of `total` units.
    pub fn new(label: &'static str, unit: &'static str, begin: u64, total: Option<u64>) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = match total {
                Some(_) => "{prefix:>9} [{bar:30}] {pos}/{len} {per_sec:>10} ETA {eta} {msg}",
                None => "{prefix:>9} {spinner} {pos} {per_sec:>10} {msg}",
            };
            let style = ProgressStyle::with_template(template).expect("a valid template").progress_chars("=> ");
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            bar.set_style(style);
            bar.set_prefix(label);
            bar.set_position(begin);
            bar.reset_eta();
            bar
        });
        Progress { label, unit, total, begin, started: Instant::now(), last_line: Instant::now(), bar }
    }

    /// Tells how far the stage is, and something about it.
    pub fn at(&mut self, done: u64, detail: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(detail());
            }
            None if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                eprintln!("{}", self.plain(done, &detail()));
            }
            None => {}
        }
    }

    /// Writes a line of its own.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Ends the progress with a last line.
    pub fn finish(self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{:>9} {text}", self.label);
    }

    fn plain(&self, done: u64, detail: &str) -> String {
        let Progress { label, unit, .. } = self;
        let rate = (done - self.begin) as f64 / self.started.elapsed().as_secs_f64();
        if done == self.begin {
            return format!("{label:>9} {done} {unit} so far, {detail}");
        }
        let Some(total) = self.total else { return format!("{label:>9} {done} {unit} {detail}") };
        let left = Duration::from_secs_f64(((total - done) as f64 / rate.max(1e-9)).min(1e9));
        format!("{label:>9} {done}/{total} {unit}, {rate:.2} {unit}/s, ETA {}, {detail}", HumanDuration(left))
    }
}
