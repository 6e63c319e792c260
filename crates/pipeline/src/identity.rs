//! Which model it was: the names and hashes of its files, as receipts and pictures have them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wels_runs::hash::{sha256, sha256_file};

use crate::model::Location;

/// Files up to this size are hashed whole; of larger ones a sixteenth of it from either end.
const HASHED_WHOLE_BYTES: u64 = 1 << 30;

/// [`identity`] as one hash.
pub fn model_sha256(location: &Location) -> Result<String> {
    Ok(sha256(identity(location)?.to_string().as_bytes()))
}

/// Names and hashes of a model's files, as a list of JSON.
pub fn identity(location: &Location) -> Result<Value> {
    let mut files = match location {
        Location::Gguf(path) => vec![path.clone()],
        Location::Directory(folder) => {
            let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
            let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
            let matters = |file: &PathBuf| {
                file.extension().is_some_and(|extension| extension == "safetensors")
                    || ["config.json", "tokenizer.json"].contains(&file_name(file).as_str())
            };
            files.retain(matters);
            files
        }
    };
    files.sort();
    let described = |file: &PathBuf| {
        let (sha256, bytes) = hash(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(json!({"file": file_name(file), "bytes": bytes, "sha256": sha256}))
    };
    Ok(Value::Array(files.iter().map(described).collect::<Result<_>>()?))
}

fn hash(path: &Path) -> std::io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes <= HASHED_WHOLE_BYTES {
        return sha256_file(path);
    }
    let half = HASHED_WHOLE_BYTES / 16;
    let mut ends = Vec::new();
    file.by_ref().take(half).read_to_end(&mut ends)?;
    file.seek(SeekFrom::End(-(half as i64)))?;
    file.take(half).read_to_end(&mut ends)?;
    Ok((format!("ends {}", sha256(&ends)), bytes))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
