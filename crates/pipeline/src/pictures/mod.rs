//! Stages of pictures: a VQ tokenizer, a Janus model that learns to see and to draw, reinforcement of its drawing by a
//! grader, and grades of what models draw and say.

pub(crate) mod data;

pub(crate) mod codes;

pub(crate) mod learn;

pub(crate) mod reinforce;

pub(crate) mod score;

mod drawer;

mod patches;

mod prompts;

mod sheet;

mod state;

use std::fs;
use std::path::Path;

use anyhow::Result;
use wels_runs::checkpoint::Checkpoint;
use wels_runs::files;
use wels_runs::recipe::Recipe;
use wels_runs::report::{PICTURES, SHEET, sheet_name};
use wels_runs::rundir::RunError;

use crate::rank::Rank;
use crate::refusal::refuse;

/// Fails before anything is done if a recipe's stages of pictures cannot be done here.
pub(crate) fn check(rank: &Rank, recipe: &Recipe) -> Result<()> {
    let of_pictures = |stage: &&wels_runs::recipe::StageSection| stage.work.is_of_pictures();
    let Some(stage) = recipe.stages.iter().find(of_pictures) else { return Ok(()) };
    if rank.device.images().is_none() {
        let (stage, device) = (&stage.name, rank.device.name());
        let message = format!("the stage {stage} is of pictures, and {device} has no operations for these");
        return Err(refuse(message, "leave --device out: they are computed on the processor"));
    }
    data::check(recipe)
}

/// Keeps the pictures of a checkpoint beside it, where they stay when older checkpoints are removed.
pub(crate) fn keep_sheet(stage: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let sheet = checkpoint.path.join(SHEET);
    if !sheet.is_file() {
        return Ok(());
    }
    let (folder, path) = (stage.join(PICTURES), stage.join(sheet_name(checkpoint.step)));
    fs::create_dir_all(&folder).map_err(RunError::io("create", &folder))?;
    let bytes = fs::read(&sheet).map_err(RunError::io("read", &sheet))?;
    Ok(files::write_atomically(&path, &bytes).map_err(RunError::io("write", &path))?)
}
