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
