//! `metrics.jsonl`: one JSON object a step. After a resume the lines behind the checkpoint are cut off, so the file is
//! that of an uninterrupted run, apart from times.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::FileRecord;
use crate::error::RunError;
use crate::files;
use crate::hash::Hasher;

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
        let file = files::open_append(path).map_err(RunError::io("open", path))?;
        let (mut lines, mut line, mut end) = (open(path)?, Vec::new(), 0);
        for expected in 1..=step {
            let damaged = |message: String| damaged(path, format!("the line of step {expected} {message}"));
            files::read_line(&mut lines, &mut line).map_err(RunError::io("read", path))?;
            let value: Value =
                serde_json::from_slice(&line).map_err(|error| damaged(format!("is not valid: {error}")))?;
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

fn open(path: &Path) -> Result<BufReader<File>, RunError> {
    Ok(BufReader::new(files::open_regular(path).map_err(RunError::io("read", path))?))
}

fn damaged(path: &Path, message: String) -> RunError {
    RunError::Damaged {
        path: path.to_path_buf(),
        message,
        hint: "the file was changed by something other than this program; restore it from a copy".into(),
    }
}

/// Length and hash of the lines of the first `step` steps.
///
/// # Errors
/// [`RunError::Damaged`] if there are fewer.
pub fn beginning(path: &Path, step: u64) -> Result<FileRecord, RunError> {
    let (mut lines, mut line, mut hasher, mut bytes) = (open(path)?, Vec::new(), Hasher::default(), 0);
    for _ in 0..step {
        files::read_line(&mut lines, &mut line).map_err(RunError::io("read", path))?;
        if !line.ends_with(b"\n") {
            return Err(damaged(path, format!("it has no line of step {step}")));
        }
        hasher.update(&line);
        bytes += line.len() as u64;
    }
    Ok(FileRecord { bytes, sha256: hasher.so_far() })
}

/// The lines of some steps, counted from 1, without their ends; fewer if the file has fewer.
///
/// # Errors
/// [`RunError::Io`] if it cannot be read, [`RunError::Damaged`] if it is no text.
pub fn lines(path: &Path, steps: RangeInclusive<u64>) -> Result<BTreeMap<u64, String>, RunError> {
    lines_where(path, *steps.end(), |step| steps.contains(&step))
}

/// The lines of those steps up to `last` that are `wanted`.
pub(crate) fn lines_where(
    path: &Path,
    last: u64,
    wanted: impl Fn(u64) -> bool,
) -> Result<BTreeMap<u64, String>, RunError> {
    let (mut file, mut line, mut lines) = (open(path)?, Vec::new(), BTreeMap::new());
    for step in 1..=last {
        if !files::read_line(&mut file, &mut line).map_err(RunError::io("read", path))? {
            break;
        }
        if wanted(step) {
            let text = std::str::from_utf8(&line).map_err(|error| damaged(path, error.to_string()))?;
            lines.insert(step, text.trim_end_matches('\n').to_string());
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::sha256;
    use serde_json::json;
    use std::fs;

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

    #[test]
    fn beginnings_and_lines_are_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, "a\nbc\ndef\ntorn").unwrap();
        assert_eq!(beginning(&path, 2).unwrap(), FileRecord { bytes: 5, sha256: sha256(b"a\nbc\n") });
        assert_eq!(beginning(&path, 0).unwrap(), FileRecord { bytes: 0, sha256: sha256(b"") });
        assert!(beginning(&path, 4).unwrap_err().to_string().contains("no line of step 4"));
        let text = |(step, line): (u64, &str)| (step, line.to_string());
        assert_eq!(lines(&path, 2..=3).unwrap(), [(2, "bc"), (3, "def")].map(text).into());
        assert_eq!(lines(&path, 4..=9).unwrap(), [(4, "torn")].map(text).into());
    }
}
