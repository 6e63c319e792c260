//! The doctor of a stage that learns from given text or examples, with what it saw before an interruption.

use anyhow::Result;
use serde_json::Value;
use wels_runs::checkpoint::Checkpoint;
use wels_runs::rundir::RunDir;
use wels_train::doctor::{Learnt, LossDoctor};

use crate::reinforce::lines_of;
use crate::training::Position;

/// Of a stage that goes on behind a checkpoint: says what it would have said without the interruption.
pub(crate) fn of_losses(run: &RunDir, stage: &str, latest: Option<&Checkpoint>) -> Result<LossDoctor> {
    let mut doctor = LossDoctor::default();
    for line in lines_of(run, stage, Position::of(latest)?.step)? {
        doctor.look(recalled(&line));
    }
    Ok(doctor)
}

/// Warnings as lines for the terminal.
pub(crate) fn in_lines(warnings: &[String]) -> impl Iterator<Item = String> {
    warnings.iter().map(|warning| format!("warning: {warning}"))
}

fn recalled(line: &Value) -> Learnt {
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let load = |layer: &Value| {
        let tokens = list(&layer["load"]).iter().map(|tokens| tokens.as_u64().unwrap_or(0)).collect();
        (layer["layer"].as_u64().unwrap_or(0) as usize, tokens)
    };
    Learnt {
        loss: number(&line["loss"]),
        grad_norm: number(&line["grad_norm"]),
        loads: list(&line["experts"]).iter().map(load).collect(),
        held_out: line["validation"]["nll"].as_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_recalled_from_its_line() {
        let line = r#"{"step": 3, "loss": 2.5, "grad_norm": 0.75, "experts": [{"layer": 1, "load": [4, 0], "max_violation":
            1.0}, {"layer": 2, "load": [1, 3]}], "validation": {"nll": 2.75, "bits_per_byte": 1.0}}"#;
        let loads = vec![(1, vec![4, 0]), (2, vec![1, 3])];
        let expected = Learnt { loss: 2.5, grad_norm: 0.75, loads, held_out: Some(2.75) };
        assert_eq!(recalled(&serde_json::from_str(line).unwrap()), expected);
        let supervised = serde_json::json!({"loss": 1.5, "grad_norm": 2.0, "max_violation": 0.5});
        let expected = Learnt { loss: 1.5, grad_norm: 2.0, ..Learnt::default() };
        assert_eq!(recalled(&supervised), expected);
    }
}
