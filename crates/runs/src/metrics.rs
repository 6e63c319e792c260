//! `metrics.jsonl`: one JSON object a step. After a resume the lines behind the checkpoint are cut off, so the file is
//! that of an uninterrupted run, apart from times.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::FileRecord;
use crate::hash::sha256;
use crate::rundir::RunError;

/// The open metrics file of a stage.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens `path` or starts it, and keeps the lines of steps up to `step`.
    ///
    /// # Errors
    /// [`RunError::Damaged`] if a line of these steps is missing or not JSON.
    pub fn open(path: &Path, step: u64) -> Result<Metrics, RunError> {
        let file = File::options().create(true).append(true).open(path).map_err(RunError::io("open", path))?;
        let text = fs::read(path).map_err(RunError::io("read", path))?;
        let mut end = 0;
        for expected in 1..=step {
            let damaged = |message: String| RunError::Damaged {
                path: path.to_path_buf(),
                message: format!("the line of step {expected} {message}"),
                hint: "the file was changed by something other than this program; restore it from a copy".into(),
            };
            let line = text[end..].split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
            let value: Value =
                serde_json::from_slice(line).map_err(|error| damaged(format!("is not valid: {error}")))?;
            if value["step"].as_u64() != Some(expected) {
                return Err(damaged("is missing".into()));
            }
            end += line.len();
        }
        file.set_len(end as u64).map_err(RunError::io("cut", path))?;
        Ok(Metrics { path: path.to_path_buf(), file })
    }

    /// Adds the line of a step.
    pub fn append(&mut self, line: &impl Serialize) -> Result<(), RunError> {
        let mut text = serde_json::to_string(line).expect("plain data");
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(RunError::io("append to", &self.path))
    }

    /// Makes the lines durable; to be called before the checkpoint that they lead to.
    pub fn sync(&mut self) -> Result<(), RunError> {
        self.file.sync_data().map_err(RunError::io("write", &self.path))
    }
}

/// Length and hash of the lines of the first `step` steps.
///
/// # Errors
/// [`RunError::Damaged`] if there are fewer.
pub fn beginning(path: &Path, step: u64) -> Result<FileRecord, RunError> {
    let text = fs::read(path).map_err(RunError::io("read", path))?;
    let mut ends = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let end = match step {
        0 => Some(0),
        _ => ends.nth(step as usize - 1),
    };
    let end = end.ok_or_else(|| RunError::Damaged {
        path: path.to_path_buf(),
        message: format!("it has no line of step {step}"),
        hint: "the file was changed by something other than this program; restore it from a copy".into(),
    })?;
    Ok(FileRecord { bytes: end as u64, sha256: sha256(&text[..end]) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_behind_the_checkpoint_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        for step in 1..=3 {
            metrics.append(&json!({"step": step, "loss": 1.5})).unwrap();
        }
        fs::write(&path, [fs::read(&path).unwrap(), b"{\"step\":4,\"lo".to_vec()].concat()).unwrap();
        Metrics::open(&path, 2).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1,\"loss\":1.5}\n{\"step\":2,\"loss\":1.5}\n");
        let error = Metrics::open(&path, 3).unwrap_err();
        assert!(error.to_string().contains("step 3"), "{error}");
    }
}
