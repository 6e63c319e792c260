//! Which model it was: the names and hashes of its files, as receipts, pictures and adapters have them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wels_model::adapter::{CONFIG_FILE, WEIGHTS_FILE};
use wels_runs::hash::{sha256, sha256_file};

use crate::location::Location;

/// Files up to this size are hashed whole; of larger ones a sixteenth of it from either end.
const HASHED_WHOLE_BYTES: u64 = 1 << 30;

/// [`identity`] as one hash.
///
/// # Errors
/// As there.
pub fn model_sha256(location: &Location) -> Result<String> {
    Ok(sha256(identity(location)?.to_string().as_bytes()))
}

/// Names and hashes of a model's files, as a list of JSON; of a model with an adapter, those of both.
///
/// # Errors
/// A file that cannot be read.
pub fn identity(location: &Location) -> Result<Value> {
    let files = match location {
        Location::Gguf(path) => vec![path.clone()],
        Location::Directory(folder) => files_of(folder, |file| {
            file.ends_with(".safetensors")
                || ["config.json", "generation_config.json", "tokenizer.json"].contains(&file)
        })?,
        Location::Adapted { base, adapter } => {
            let Value::Array(mut files) = identity(base)? else { unreachable!("a list") };
            let own = [CONFIG_FILE, WEIGHTS_FILE].map(|file| adapter.join(file));
            files.extend(own.iter().map(|file| described(file)).collect::<Result<Vec<_>>>()?);
            return Ok(Value::Array(files));
        }
    };
    Ok(Value::Array(files.iter().map(|file| described(file)).collect::<Result<_>>()?))
}

/// One hash of the weights alone, by which an adapter knows what it was trained on.
///
/// # Errors
/// A file that cannot be read.
pub fn weights_sha256(location: &Location) -> Result<String> {
    let files = match location {
        Location::Gguf(path) => vec![path.clone()],
        Location::Directory(folder) => {
            files_of(folder, |file| file.starts_with("model") && file.ends_with(".safetensors"))?
        }
        Location::Adapted { base, .. } => return weights_sha256(base),
    };
    let hashes = files.iter().map(|file| Ok(hash(file).with_context(|| cannot_read(file))?.0));
    Ok(sha256(hashes.collect::<Result<Vec<_>>>()?.join("\n").as_bytes()))
}

/// The hash of an adapter's numbers.
///
/// # Errors
/// Those of reading.
pub fn adapter_sha256(folder: &Path) -> Result<String> {
    let file = folder.join(WEIGHTS_FILE);
    Ok(sha256_file(&file).with_context(|| cannot_read(&file))?.0)
}

/// The files of a folder whose names `matter`, in their order.
fn files_of(folder: &Path, matter: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| cannot_read(folder))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    files.retain(|file| matter(&file_name(file)));
    files.sort();
    Ok(files)
}

fn described(file: &Path) -> Result<Value> {
    let (sha256, bytes) = hash(file).with_context(|| cannot_read(file))?;
    Ok(json!({"file": file_name(file), "bytes": bytes, "sha256": sha256}))
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
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
