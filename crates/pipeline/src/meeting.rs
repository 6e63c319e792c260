//! What ranks that are processes find out about each other before they work: whether they are the same program with the
//! same recipe, and whether they see one run directory.
//!
//! All ranks come to the same result; the first one tells it, and the others end without a word: [`Silenced`].

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use wels_comm::Comm;
use wels_runs::rundir::RANKS;

use crate::refusal::refuse;

/// Seconds by which clocks may differ: more is a clock that nobody sets.
const CLOCKS_SECONDS: u64 = 60;

/// How long a file may take to be seen by another machine; NFS remembers for some seconds what was not there.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// The end of a rank whose failure another one tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("another rank says why this one ends")]
pub struct Silenced;

/// What has to be the same on all ranks, and where each of them is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Name of the machine.
    pub host: String,
    /// Hash of the program's file.
    pub program: String,
    /// The recipe that the command line names, or the recipe of the run: the hash of its file.
    pub recipe: String,
    /// Threads that compute.
    pub threads: usize,
    /// How many ranks share the experts.
    pub expert_parallel: usize,
    /// Seconds since 1970.
    pub clock: u64,
}

/// Compares what the ranks have in common.
///
/// # Errors
/// On rank 0 a refusal that names a rank which differs from it, and where that is; on the others [`Silenced`].
pub fn introduce(comm: &dyn Comm, mine: &Introduction) -> Result<()> {
    comm.barrier()?;
    let all = comm.all_gather(serde_json::to_vec(mine).expect("plain data"))?;
    let all: Vec<Introduction> = all.iter().map(|it| serde_json::from_slice(it)).collect::<Result<_, _>>()?;
    match compare(&all) {
        Err(_) if comm.rank() != 0 => Err(Silenced.into()),
        result => result,
    }
}

fn compare(all: &[Introduction]) -> Result<()> {
    let first = &all[0];
    let threads = |it: &Introduction| it.threads.to_string();
    let sharing = |it: &Introduction| it.expert_parallel.to_string();
    let program = |it: &Introduction| it.program.clone();
    let recipe = |it: &Introduction| it.recipe.clone();
    type Rule<'a> = (&'a str, &'a dyn Fn(&Introduction) -> String, &'a str);
    let rules: [Rule; 4] = [
        ("another program", &program, "copy the same file of wels to all hosts"),
        ("another recipe", &recipe, "give all ranks the same file, best on a disk that all hosts share"),
        ("another number of threads", &threads, "give --threads N, or have the launcher give each rank as many cores"),
        ("another --expert-parallel", &sharing, "start all ranks with the same options"),
    ];
    for (differs, value, hint) in rules {
        if let Some((rank, other)) = all.iter().enumerate().find(|(_, it)| value(it) != value(first)) {
            let short = |it: &Introduction| value(it).chars().take(12).collect::<String>();
            let message = format!(
                "rank {rank} of {} on {} has {differs} than rank 0 on {}: {} and {}",
                all.len(),
                other.host,
                first.host,
                short(other),
                short(first)
            );
            return Err(refuse(message, hint));
        }
    }
    let late = |it: &Introduction| it.clock.abs_diff(first.clock) > CLOCKS_SECONDS;
    let Some((rank, other)) = all.iter().enumerate().find(|(_, it)| late(it)) else { return Ok(()) };
    let message = format!(
        "the clock of rank {rank} of {} on {} differs by {} s from that of rank 0 on {}",
        all.len(),
        other.host,
        other.clock.abs_diff(first.clock),
        first.host
    );
    Err(refuse(message, "set it, best by NTP"))
}

/// Where ranks work, and with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Absolute, as others may have been started elsewhere.
    pub run: PathBuf,
    /// The name of the device.
    pub device: String,
}

#[derive(Serialize, Deserialize)]
struct Told {
    place: Place,
    token: String,
}

/// On rank 0: tells the others the place, and hears whether they see the directory and can begin.
///
/// # Errors
/// A refusal that names a rank which cannot, and its machine.
pub fn lead(comm: &dyn Comm, place: Place, hosts: &[String]) -> Result<()> {
    let token = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
    let file = place.run.join(RANKS);
    fs::write(&file, &token).with_context(|| format!("cannot write {}", file.display()))?;
    let told = Told { place, token };
    comm.broadcast(serde_json::to_vec(&told).expect("plain data"))?;
    let answers = comm.all_gather(Vec::new());
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    match answers?.iter().enumerate().find(|(_, answer)| !answer.is_empty()) {
        None => Ok(()),
        Some((rank, answer)) => {
            let (message, hint) = serde_json::from_slice::<(String, String)>(answer)?;
            Err(refuse(format!("rank {rank} of {} on {}: {message}", comm.world(), hosts[rank]), hint))
        }
    }
}

/// On the others: where to work, once it is sure that this rank sees the same directory; `begin` is what else it needs.
///
/// # Errors
/// [`Silenced`] if any rank cannot begin.
pub fn attend<T>(comm: &dyn Comm, begin: impl FnOnce(&Place) -> Result<T>) -> Result<T> {
    let Ok(told) = comm.broadcast(Vec::new()) else { return Err(Silenced.into()) };
    let Told { place, token } = serde_json::from_slice(&told)?;
    let begun = match sees(&place.run, &token, SEEN_WITHIN) {
        true => begin(&place).map_err(|error| {
            let hint = error.downcast_ref::<crate::refusal::Refusal>().map(|refusal| refusal.hint().to_string());
            (format!("{error:#}"), hint.unwrap_or_else(|| "mend it there".into()))
        }),
        false => Err((
            format!("{} is not the directory that rank 0 works in", place.run.display()),
            "put the runs on a disk that all hosts share: --runs DIR".to_string(),
        )),
    };
    let answer = begun.as_ref().err().map_or(Vec::new(), |why| serde_json::to_vec(why).expect("plain data"));
    let Ok(answers) = comm.all_gather(answer) else { return Err(Silenced.into()) };
    match (begun, answers.iter().all(Vec::is_empty)) {
        (Ok(begun), true) => Ok(begun),
        _ => Err(Silenced.into()),
    }
}

fn sees(run: &Path, token: &str, within: Duration) -> bool {
    let begin = Instant::now();
    loop {
        if fs::read_to_string(run.join(RANKS)).is_ok_and(|found| found == token) {
            return true;
        }
        if begin.elapsed() > within {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &str) -> Introduction {
        let (program, recipe) = ("a".repeat(64), "b".repeat(64));
        Introduction { host: host.into(), program, recipe, threads: 2, expert_parallel: 1, clock: 1000 }
    }

    fn refused(change: impl FnOnce(&mut Introduction)) -> String {
        let mut all = [of("m0"), of("m1"), of("m2")];
        compare(&all).unwrap();
        change(&mut all[2]);
        compare(&all).unwrap_err().to_string()
    }

    #[test]
    fn a_rank_that_differs_is_named_with_its_host() {
        let expected = "rank 2 of 3 on m2 has another program than rank 0 on m0: cccccccccccc and aaaaaaaaaaaa";
        assert_eq!(refused(|it| it.program = "c".repeat(64)), expected);
        assert!(refused(|it| it.recipe = String::new()).contains("rank 2 of 3 on m2 has another recipe"));
        let expected = "rank 2 of 3 on m2 has another number of threads than rank 0 on m0: 1 and 2";
        assert_eq!(refused(|it| it.threads = 1), expected);
        let expected = "rank 2 of 3 on m2 has another --expert-parallel than rank 0 on m0: 2 and 1";
        assert_eq!(refused(|it| it.expert_parallel = 2), expected);
        let expected = "the clock of rank 2 of 3 on m2 differs by 100 s from that of rank 0 on m0";
        assert_eq!(refused(|it| it.clock = 900), expected);
    }

    #[test]
    fn a_directory_of_ones_own_is_not_the_shared_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(RANKS), "one").unwrap();
        assert!(sees(folder.path(), "one", Duration::ZERO));
        assert!(!sees(folder.path(), "another", Duration::ZERO));
        assert!(!sees(&folder.path().join("nowhere"), "one", Duration::ZERO));
    }

    #[test]
    fn what_keeps_a_rank_from_beginning_is_told_by_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place { run: folder.path().into(), device: "cpu".into() };
        let mut ranks = wels_comm::threads(3);
        let (third, second, first) = (ranks.pop().unwrap(), ranks.pop().unwrap(), ranks.pop().unwrap());
        thread::scope(|scope| {
            let second = scope.spawn(move || attend(&second, |place| Ok(place.device.clone())));
            let third =
                scope.spawn(move || attend(&third, |_| -> Result<String> { Err(refuse("no card", "buy one")) }));
            let hosts = ["m0", "m1", "m2"].map(String::from);
            let error = lead(&first, place, &hosts).unwrap_err();
            assert_eq!(error.to_string(), "rank 2 of 3 on m2: no card");
            for other in [second, third] {
                assert!(other.join().unwrap().unwrap_err().is::<Silenced>());
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
