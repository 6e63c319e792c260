//! `kill -9` at random moments in tokenizing, training and checkpoint writing: the final weights are those of the
//! uninterrupted run, and so are the metrics and the ledger's sums.

use std::time::Duration;

use wels_runs::ledger::{Ledger, Totals};

use crate::lab::{Lab, Numbers, STEPS, is_writing, wait_until};

const KILLS: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Tokenizing,
    Training,
    CheckpointWriting,
}

#[test]
fn killed_runs_end_like_the_uninterrupted_one() {
    let lab = Lab::new();
    lab.done(&["run", &lab.recipe("whole", &[])]);
    let mut numbers = Numbers(2026);
    let mut kills = 0;
    let mut run = 0;
    while kills < KILLS {
        let name = format!("killed-{run}");
        let recipe = lab.recipe(&name, &[("checkpoint_every = 5", "checkpoint_every = 2")]);
        // A run is killed at most this often, so that some runs are finished after few kills and some after many.
        let most = 1 + numbers.below(6) as usize;
        for kill in 0..most {
            let moment = match kill {
                0 if run % 2 == 0 => Moment::Tokenizing,
                n if n % 2 == 0 => Moment::Training,
                _ => Moment::CheckpointWriting,
            };
            if !kill_at(&lab, &name, &recipe, moment, &mut numbers) {
                break;
            }
            kills += 1;
        }
        lab.done(&["run", &format!("runs/{name}")]);
        assert_eq!(lab.weights(&name), lab.weights("whole"), "{name} after {kills} kills in all");
        assert_eq!(lab.metrics(&name), lab.metrics("whole"), "{name}");
        assert_eq!(work_in_ledger(&lab, &name), work_in_ledger(&lab, "whole"), "{name}");
        lab.done(&["verify", &format!("runs/{name}")]);
        run += 1;
    }
}

/// Starts the run and kills it at such a moment; false if it was over before.
fn kill_at(lab: &Lab, name: &str, recipe: &str, moment: Moment, numbers: &mut Numbers) -> bool {
    let mut child = lab.start(&["run", recipe]);
    let run = lab.at(&format!("runs/{name}"));
    let stage = run.join("pretrain");
    let steps = lab.steps_seen(name);
    let came = match moment {
        Moment::Tokenizing => wait_until(&mut child, || run.join("ledger.jsonl").exists()),
        Moment::Training => wait_until(&mut child, || lab.steps_seen(name) != steps),
        Moment::CheckpointWriting => wait_until(&mut child, || is_writing(&stage)),
    };
    std::thread::sleep(Duration::from_micros(numbers.below(20_000)));
    let over = child.try_wait().unwrap().is_some();
    child.kill().unwrap();
    child.wait().unwrap();
    came && !over
}

/// Tokens and operations that the checkpoints stand for: each token of the recipe is paid for once.
fn work_in_ledger(lab: &Lab, name: &str) -> (u64, f64) {
    let ledger = Ledger::open(&lab.at(&format!("runs/{name}/ledger.jsonl"))).unwrap();
    let checkpoints = ledger.entries().iter().filter(|entry| entry.event == "checkpoint");
    assert_eq!(checkpoints.clone().next_back().unwrap().step, STEPS);
    let totals = Totals::of(checkpoints);
    (totals.tokens, totals.flops)
}
