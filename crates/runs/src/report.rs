//! `report.html`: one page about a run that needs nothing but itself. Made from what lies in the run's directory, so
//! any stage that writes metrics, samples or scores is in it:
//!
//! ```text
//! STAGE/metrics.jsonl    a line a step: every number in it becomes a curve; `experts` becomes the map of loads
//! STAGE/samples.json     [{"prompt": …, "text": …, "thinking": …}], shown side by side, stage by stage
//! STAGE/pictures/*.png   shown in the order of their names
//! scores.json            [{"bench": …, "score": …, "low": …, "high": …, "items": …}], percentages
//! ```

pub mod chart;

mod data;

mod page;

mod pictures;

use std::path::Path;

pub use data::{QUESTIONS, QuestionsMade, RunData, Summary};
pub use page::{price_dots, rows};

use crate::error::RunError;
use crate::files;
use crate::plan::prices::Prices;

/// Its name in a run's directory.
pub const REPORT: &str = "report.html";

/// The folder of a stage with pictures of what it made along the way.
pub const PICTURES: &str = "pictures";
/// The same of one checkpoint, in its folder.
pub const SHEET: &str = "pictures.png";

/// Where a stage keeps the pictures of a checkpoint when that is removed.
pub fn sheet_name(step: u64) -> String {
    format!("{PICTURES}/{}.png", crate::checkpoint::directory_name(step))
}

/// Writes the report of the run at `path`.
///
/// # Errors
/// [`RunError`] if the run cannot be read or the report not be written.
pub fn write(path: &Path, prices: &Prices) -> Result<(), RunError> {
    let file = path.join(REPORT);
    files::write_atomically(&file, text(path, prices)?.as_bytes()).map_err(RunError::io("write", &file))
}

/// The report of the run at `path` as it is now, also while the run goes on.
///
/// # Errors
/// [`RunError`] if the run cannot be read.
pub fn text(path: &Path, prices: &Prices) -> Result<String, RunError> {
    Ok(page::of_run(&RunData::read(path)?, prices))
}

/// One page about several runs, side by side.
pub fn of_several(runs: &[RunData]) -> String {
    page::of_several(runs)
}
