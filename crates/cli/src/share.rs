//! `--threads` and `--nice`: how much of the machine the program takes. Neither changes a bit of a result.

use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;
use wels_kernels::par;
use wels_pipeline::refusal::refuse;

/// What `--threads` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// As many as there are cores that nobody else keeps busy now.
    Auto,
    Count(NonZeroUsize),
}

/// The most threads; more than any machine has cores.
const MOST: usize = 1024;

impl FromStr for Threads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Threads::Auto);
        }
        match text.parse::<NonZeroUsize>() {
            Ok(count) if count.get() <= MOST => Ok(Threads::Count(count)),
            _ => Err(format!("a number from 1 to {MOST}, or auto")),
        }
    }
}

/// Takes the share that the command line asks for; to be called before the first kernel and the first thread.
pub fn take(threads: Option<Threads>, nice: Option<u8>) -> Result<()> {
    if let Some(nice) = nice {
        be_nice(nice)?;
    }
    let threads = match threads {
        None => return Ok(()),
        Some(Threads::Count(threads)) => threads.get(),
        Some(Threads::Auto) => {
            let threads = free_cores();
            eprintln!("note: {threads} of {} cores are free, and used", par::cores());
            threads
        }
    };
    par::set_threads(threads).map_err(anyhow::Error::msg)
}

#[cfg(unix)]
fn be_nice(by: u8) -> Result<()> {
    match rustix::process::nice(by.into()) {
        Ok(_) => Ok(()),
        Err(error) => Err(refuse(
            format!("the system does not let this program be nicer by {by}: {error}"),
            "leave --nice out, or start the program with the system's own `nice`",
        )),
    }
}

#[cfg(not(unix))]
fn be_nice(_by: u8) -> Result<()> {
    Err(refuse(
        "--nice is for Unix alone",
        "start the program with a lower priority: `start /low wels ...`, or in the task manager",
    ))
}

/// Cores that this program may use and nobody keeps busy, at least one; all where the system does not tell.
fn free_cores() -> usize {
    let Some(before) = Busy::now() else { return par::cores() };
    std::thread::sleep(Duration::from_millis(250));
    match Busy::now() {
        Some(after) => free(par::cores(), before, after),
        None => par::cores(),
    }
}

fn free(cores: usize, before: Busy, after: Busy) -> usize {
    let (all, idle) = (after.all.saturating_sub(before.all), after.idle.saturating_sub(before.idle));
    if all == 0 {
        return cores;
    }
    let of_machine = (after.cores as f64 * idle as f64 / all as f64).round() as usize;
    of_machine.clamp(1, cores)
}

/// What all cores of the machine have done so far, in ticks of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Busy {
    cores: usize,
    all: u64,
    idle: u64,
}

impl Busy {
    fn now() -> Option<Busy> {
        Busy::of(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// Of `/proc/stat`: a line `cpu` of all cores, then a line `cpu0`, `cpu1`, … of each. Fields are user, nice,
    /// system, idle, iowait, irq, softirq and steal; then guests, which are in user already.
    fn of(stat: &str) -> Option<Busy> {
        let lines = stat.lines().filter(|line| line.starts_with("cpu"));
        let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        let ticks: Vec<u64> = fields.take(8).map(|field| field.parse().ok()).collect::<Option<_>>()?;
        let idle = ticks.get(3)? + ticks.get(4)?;
        Some(Busy { cores: lines.count() - 1, all: ticks.iter().sum(), idle })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_a_number_or_auto() {
        assert_eq!("auto".parse(), Ok(Threads::Auto));
        assert_eq!("3".parse(), Ok(Threads::Count(NonZeroUsize::new(3).unwrap())));
        for text in ["0", "-1", "1025", "all", ""] {
            assert_eq!(text.parse::<Threads>(), Err("a number from 1 to 1024, or auto".into()), "{text}");
        }
    }

    #[test]
    fn cores_that_others_keep_busy_are_not_free() {
        let before = "cpu  100 0 50 800 50 0 0 0 90 0\ncpu0 1 2 3\ncpu1 1 2 3\ncpu2 1 2 3\ncpu3 1 2 3\nintr 5\n";
        let before = Busy::of(before).unwrap();
        assert_eq!(before, Busy { cores: 4, all: 1000, idle: 850 });
        let after = |busy: u64, idle: u64| Busy { all: before.all + busy + idle, idle: before.idle + idle, ..before };
        for (busy, idle, cores, expected) in [
            (0, 100, 4, 4),
            (25, 75, 4, 3),
            (50, 50, 4, 2),
            (100, 0, 4, 1),
            (0, 100, 2, 2),
            (70, 30, 8, 1),
            (0, 0, 4, 4),
        ] {
            assert_eq!(free(cores, before, after(busy, idle)), expected, "{busy} busy, {idle} idle");
        }
        assert_eq!(Busy::of("intr 5\n"), None);
    }
}
