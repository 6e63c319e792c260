//! Ranks that are processes of `mpirun`: the bits of one process, of pretraining, worked examples and reinforcement; a
//! rank that is killed; what ranks may not differ in. Only with the feature `mpi`, and Open MPI.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wels_runs::ledger::Ledger;
use wels_runs::receipt::{RECEIPT, Receipt};

use crate::lab::{Lab, Numbers, Said, wait_until};
use crate::stages::{self, lines, metrics, text, weights};

/// How often a rank is killed; `WELS_KILLS` for another number.
fn kills() -> usize {
    std::env::var("WELS_KILLS").map_or(3, |number| number.parse().expect("a number of kills"))
}

/// Stages whose weights and metrics are compared.
const TRAINED: [&str; 4] = ["pretrain", "base", "reinforced", "student"];

/// `mpirun` of so many ranks, which come to their end within two minutes.
fn mpirun(lab: &Lab, ranks: usize, args: &[&str]) -> Command {
    let ranks = ranks.to_string();
    mpirun_of(lab, &[&["-np", &ranks, env!("CARGO_BIN_EXE_wels")], args].concat())
}

/// `mpirun` of parts of a world, which `:` divides.
fn mpirun_of(lab: &Lab, parts: &[&str]) -> Command {
    const OPTIONS: &str =
        "-k 5 120 mpirun --allow-run-as-root --oversubscribe --bind-to none --mca mpi_yield_when_idle 1";
    let mut command = Command::new("timeout");
    // The lab's own command says where and with what environment.
    let wels = lab.command(&[]);
    for (name, value) in wels.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.args(OPTIONS.split(' ')).args(parts).current_dir(lab.at("")).stdin(Stdio::null());
    command
}

fn said(lab: &Lab, mut command: Command) -> Said {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("timeout and mpirun start");
    lab.end(child)
}

fn done(lab: &Lab, ranks: usize, args: &[&str]) -> Said {
    let said = said(lab, mpirun(lab, ranks, args));
    assert_eq!(said.code, Some(0), "{said:?}");
    said
}

/// The lab's recipe with pretraining, reinforcement and worked examples.
fn recipe(lab: &Lab, name: &str) -> String {
    let file = stages::recipe(lab, name);
    let text = fs::read_to_string(lab.at(&file)).unwrap();
    let mut sections = text.split("\n[[stage]]\n");
    let mut kept = sections.next().expect("the lab's recipe").to_string();
    for stage in sections {
        if TRAINED.iter().any(|name| stage.starts_with(&format!("name = \"{name}\""))) {
            kept += "\n[[stage]]\n";
            kept += stage;
        }
    }
    fs::write(lab.at(&file), kept).unwrap();
    file
}

/// All that does not hang on times is the same.
fn assert_equal(lab: &Lab, name: &str, expected: &str) {
    for stage in TRAINED {
        assert_eq!(weights(lab, name, stage), weights(lab, expected, stage), "{stage} of {name}");
        assert_eq!(metrics(lab, name, stage), metrics(lab, expected, stage), "{stage} of {name}");
    }
    assert_eq!(text(lab, name, "sample/samples.json"), text(lab, expected, "sample/samples.json"), "{name}");
    let receipt = |run: &str| Receipt::read(&lab.at(&format!("runs/{run}/{RECEIPT}"))).unwrap();
    let (receipt, expected) = (receipt(name), receipt(expected));
    assert_eq!(receipt.inputs, expected.inputs, "{name}");
    // A checkpoint behind a kill may be written a second time.
    let hashes = |receipt: &Receipt| -> BTreeSet<String> {
        receipt.checkpoints.iter().map(|it| format!("{} {} {:?}", it.stage, it.step, it.files)).collect()
    };
    assert_eq!(hashes(&receipt), hashes(&expected), "{name}");
}

#[test]
fn processes_give_the_bits_of_one() {
    let lab = Lab::new();
    let alone = lab.done(&["run", &recipe(&lab, "alone"), "--ranks", "4"]);
    assert!(metrics(&lab, "alone", "reinforced").iter().any(|line| line["updates"].as_u64() > Some(0)));
    for ranks in [1, 2, 4, 8] {
        let name = format!("ranks-{ranks}");
        let said = done(&lab, ranks, &["run", &recipe(&lab, &name), "--watch=127.0.0.1:0"]);
        assert_equal(&lab, &name, "alone");
        // The first rank alone speaks, and serves the page.
        assert_eq!(said.stderr.matches("watch http://127.0.0.1:").count(), 1, "{said:?}");
        assert_eq!(said.stdout, alone.stdout);
        assert_eq!(said.stderr.matches("pretrain 20 steps done").count(), 1, "{said:?}");
        assert_eq!(said.stderr.contains(&format!("ranks {ranks}: {ranks} on ")), ranks > 1, "{said:?}");
        let ledger = Ledger::read(&lab.at(&format!("runs/{name}/ledger.jsonl"))).unwrap().0;
        assert!(ledger.iter().all(|entry| entry.ranks == ranks), "{ranks} ranks: {ledger:?}");
        // What was done goes on with another number of ranks, or none.
        lab.done(&["run", &format!("runs/{name}")]);
    }
}

#[test]
fn processes_that_share_experts_give_the_bits_of_one() {
    let lab = Lab::new();
    lab.done(&["run", &recipe(&lab, "alone")]);
    for (ranks, sharing) in [(2, 2), (4, 2), (4, 4)] {
        let (name, sharing) = (format!("over-{ranks}-{sharing}"), sharing.to_string());
        done(&lab, ranks, &["run", &recipe(&lab, &name), "--expert-parallel", &sharing]);
        assert_equal(&lab, &name, "alone");
        let ledger = Ledger::read(&lab.at(&format!("runs/{name}/ledger.jsonl"))).unwrap().0;
        let layout = |entry: &wels_runs::ledger::Entry| (entry.ranks, entry.expert_parallel.map(|n| n.to_string()));
        assert!(ledger.iter().all(|entry| layout(entry) == (ranks, Some(sharing.clone()))), "{ledger:?}");
    }
    // Without ranks there is nobody to share with.
    let said = said(&lab, mpirun(&lab, 1, &["run", &recipe(&lab, "r"), "--expert-parallel", "2"]));
    assert!(said.failure().contains("--expert-parallel 2 does not divide the 1 rank"), "{said:?}");
}

/// The processes that `parent` has started.
fn children(parent: u32) -> Vec<u32> {
    let parent_of = |id: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
    };
    let ids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| parent_of(*id) == Some(parent)).collect()
}

#[test]
fn a_killed_rank_ends_the_others_and_the_run_goes_on() {
    let lab = Lab::new();
    lab.done(&["run", &recipe(&lab, "whole")]);
    let mut numbers = Numbers(91);
    let (mut kills, mut run) = (0, 0);
    while kills < self::kills() {
        let name = format!("killed-{run}");
        let file = recipe(&lab, &name);
        for at in ["pretrain", "reinforced", "student"] {
            let ranks = [2, 4, 8][numbers.below(3) as usize];
            let sharing = ["1", "2"][numbers.below(2) as usize];
            let mut command = mpirun(&lab, ranks, &["run", &file, "--expert-parallel", sharing]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let before = lines(&lab, &name, at);
            let came = wait_until(&mut child, || lines(&lab, &name, at) != before);
            std::thread::sleep(Duration::from_micros(numbers.below(60_000)));
            let mpirun = children(child.id());
            let processes: Vec<u32> = mpirun.iter().flat_map(|id| children(*id)).collect();
            if !came || processes.len() != ranks {
                assert!(lab.end(child).code == Some(0), "the run ended otherwise than by a kill");
                continue;
            }
            let victim = processes[numbers.below(ranks as u64) as usize].to_string();
            let killed = Command::new("kill").args(["-9", &victim]).status().unwrap().success();
            let begin = Instant::now();
            let said = lab.end(child);
            let took = begin.elapsed();
            assert!(took < Duration::from_secs(30), "{took:?}: {said:?}");
            if said.code == Some(0) {
                continue;
            }
            // The launcher says it, with rank and host; nobody else adds to that.
            let messages = said.stderr.matches("exited on signal 9 (Killed)").count();
            assert!(killed && messages == 1 && !said.stderr.contains("error: "), "{said:?}");
            assert!(said.stderr.contains("mpirun noticed that process rank "), "{said:?}");
            kills += 1;
        }
        done(&lab, [1, 2, 4, 8][run % 4], &["run", &file]);
        assert_equal(&lab, &name, "whole");
        run += 1;
    }
}

#[test]
fn ranks_that_differ_start_nothing() {
    let lab = Lab::new();
    let wels = env!("CARGO_BIN_EXE_wels");
    let (one, two) = (recipe(&lab, "one"), recipe(&lab, "two"));
    let other = lab.at("other-wels").display().to_string();
    fs::copy(wels, &other).unwrap();
    let appended = [fs::read(wels).unwrap(), b"more".to_vec()].concat();
    fs::write(&other, appended).unwrap();
    let second: [(&[&str], &str); 5] = [
        (&[&other, "run", &one], " has another program than rank 0 on "),
        (&[wels, "run", &two], " has another recipe than rank 0 on "),
        (&[wels, "run", "nowhere.toml"], " has another recipe than rank 0 on "),
        (&[wels, "run", &one, "--threads", "3"], " has another number of threads than rank 0 on "),
        (&[wels, "run", &one, "--expert-parallel", "2"], " has another --expert-parallel than rank 0 on "),
    ];
    for (second, expected) in second {
        let parts = [&["-np", "1", wels, "run", &one, ":", "-np", "1"], second].concat();
        let said = said(&lab, mpirun_of(&lab, &parts));
        assert_ne!(said.code, Some(0), "{said:?}");
        let failure = said.failure();
        assert!(failure.contains("error: rank 0 of 2 on ") && failure.contains(": rank 1 of 2 on "), "{said:?}");
        assert!(failure.contains(expected) && failure.matches("error: ").count() == 1, "{said:?}");
        assert!(!lab.at("runs").exists());
    }
    let said = said(&lab, mpirun(&lab, 2, &["run", &one, "--ranks", "2"]));
    assert!(said.failure().contains("mpirun of Open MPI has started 2 ranks, and --ranks asks for others"), "{said:?}");
    assert_eq!(said.stderr.matches("error: ").count(), 1, "{said:?}");
}

#[test]
fn ranks_that_do_not_divide_the_shards_are_refused_once() {
    let lab = Lab::new();
    let said = said(&lab, mpirun(&lab, 3, &["run", &recipe(&lab, "r")]));
    assert_ne!(said.code, Some(0), "{said:?}");
    assert!(said.failure().contains("3 ranks do not divide the 8 gradient shards of the stage pretrain"), "{said:?}");
    assert_eq!(said.stderr.matches("error: ").count(), 1, "{said:?}");
}

#[test]
fn a_directory_that_is_not_shared_is_noticed() {
    let lab = Lab::new();
    let own_mounts = |script: &str| ["unshare", "-m", "sh", "-c", script].map(String::from);
    if !Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success()) {
        eprintln!("left out: this user cannot give a process mounts of its own");
        return;
    }
    fs::create_dir(lab.at("runs")).unwrap();
    let (wels, file) = (env!("CARGO_BIN_EXE_wels"), recipe(&lab, "r"));
    let second = own_mounts(&format!("mount -t tmpfs none runs && exec {wels} run {file}"));
    let second: Vec<&str> = second.iter().map(String::as_str).collect();
    let parts = [&["-np", "1", wels, "run", &file, ":", "-np", "1"], &second[..]].concat();
    let said = said(&lab, mpirun_of(&lab, &parts));
    assert_ne!(said.code, Some(0), "{said:?}");
    let expected =
        "runs/r is not the directory that rank 0 works in\nhint: put the runs on a disk that all hosts share";
    assert!(said.failure().contains(expected), "{said:?}");
    assert_eq!(said.stderr.matches("error: ").count(), 1, "{said:?}");
}

#[test]
fn a_failing_rank_says_so_with_its_host() {
    let lab = Lab::new();
    let file = recipe(&lab, "r");
    let path = lab.at(&file);
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("learning_rate = 3e-3", "learning_rate = 1e30"))
        .unwrap();
    let said = said(&lab, mpirun(&lab, 4, &["run", &file]));
    assert_ne!(said.code, Some(0), "{said:?}");
    let failure = said.failure();
    assert!(failure.starts_with("error: rank 0 of 4 on ") && failure.contains("is not a finite number"), "{failure}");
    assert!(failure.contains("\nhint: lower the stage's learning_rate"), "{failure}");
    assert_eq!(failure.matches("error: ").count(), 1, "{failure}");
}
