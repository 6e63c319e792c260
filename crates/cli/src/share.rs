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
    par::set_threads(threads).and_then(|()| wels_data::set_threads(threads)).map_err(anyhow::Error::msg)
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
    let free = (after.cores as f64 * idle as f64 / all as f64).round() as usize;
    free.clamp(1, cores)
}

/// What the cores that this program may use have done so far, in ticks of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Busy {
    cores: usize,
    all: u64,
    idle: u64,
}

impl Busy {
    fn now() -> Option<Busy> {
        Busy::of(&std::fs::read_to_string("/proc/stat").ok()?, &par::allowed_cores())
    }

    /// Of `/proc/stat`: a line `cpu` of all cores, then a line `cpu0`, `cpu1`, … of each. Those of the cores `allowed`
    /// count, and where none is named all. Fields are user, nice, system, idle, iowait, irq, softirq and steal; then
    /// guests, which are in user already.
    fn of(stat: &str, allowed: &[usize]) -> Option<Busy> {
        let mut busy = Busy { cores: 0, all: 0, idle: 0 };
        for line in stat.lines() {
            let mut fields = line.split_whitespace();
            let name = fields.next().unwrap_or_default();
            let Some(core) = name.strip_prefix("cpu").and_then(|core| core.parse::<usize>().ok()) else { continue };
            if allowed.is_empty() || allowed.contains(&core) {
                let ticks: Vec<u64> = fields.take(8).map(|field| field.parse().ok()).collect::<Option<_>>()?;
                busy.cores += 1;
                busy.all += ticks.iter().sum::<u64>();
                busy.idle += ticks.get(3)? + ticks.get(4)?;
            }
        }
        (busy.cores > 0).then_some(busy)
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
        let lines: String = (0..4).map(|core| format!("cpu{core} 25 0 10 200 15 0 0 0 90 0\n")).collect();
        let before = Busy::of(&format!("cpu  100 0 40 800 60 0 0 0 360 0\n{lines}intr 5\n"), &[]).unwrap();
        assert_eq!(before, Busy { cores: 4, all: 1000, idle: 860 });
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
        assert_eq!(Busy::of("intr 5\n", &[]), None);
    }

    #[test]
    fn only_cores_that_the_program_may_use_count() {
        let stat = "cpu  600 0 0 500 0 0 0 0 0 0\ncpu0 500 0 0 0 0 0 0 0 0 0\ncpu1 90 0 0 200 10 0 0 0 0 0\n\
            cpu10 10 0 0 280 10 0 0 0 0 0\nintr 5\n";
        for (allowed, expected) in [
            (&[0][..], Some(Busy { cores: 1, all: 500, idle: 0 })),
            (&[1, 10], Some(Busy { cores: 2, all: 600, idle: 500 })),
            (&[1, 2], Some(Busy { cores: 1, all: 300, idle: 210 })),
            (&[2], None),
            (&[], Some(Busy { cores: 3, all: 1100, idle: 500 })),
        ] {
            assert_eq!(Busy::of(stat, allowed), expected, "{allowed:?}");
        }
        // Two idle cores of a machine whose others are busy are both free.
        let after = Busy { cores: 2, all: 1600, idle: 1500 };
        assert_eq!(free(2, Busy::of(stat, &[1, 10]).unwrap(), after), 2);
    }
}
