//! Tensors → files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use wels_device::host::convert;

use super::{INDEX, SCALE_SUFFIX, SINGLE, Stored, WeightsError, fp8, tensor_stored_as};
use crate::config::{Dtype, Family, ModelConfig, RopeLayout};
use crate::names::{self, HfTensor};

/// Size at which files are split when the caller has no wish: 5 GB, as the hub does.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// One entry of a file.
struct Entry {
    name: String,
    stored: Stored,
    shape: Vec<usize>,
    /// The rows of parameters that it holds.
    parts: Vec<HfTensor>,
    content: Content,
}

enum Content {
    Values,
    /// The E4M3 bytes of a matrix with `cols` columns, computed when written.
    Fp8 {
        cols: usize,
    },
    Fp8Scales {
        cols: usize,
    },
}

impl Entry {
    fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.stored.bytes() as u64
    }
}

/// Writes `config.json` and the weights into `dir`, which is made if need be.
///
/// `values(param)` gives a whole parameter of [`names::param_specs`], row-major, and is asked for it when it is
/// written. Files hold at most `shard_bytes` each
/// unless a single tensor is larger. Peak memory is one tensor in its format on disk.
///
/// # Errors
/// [`WeightsError::Occupied`] if `dir` already holds weights, [`WeightsError::Io`] otherwise. What has been written
/// under its final name is complete.
///
/// # Panics
/// If `values(param)` has not the length that the configuration gives it; if a `config.json` cannot say how the
/// configuration rotates.
pub fn save_dir<'a>(
    dir: &Path,
    config: &ModelConfig,
    dtype: Dtype,
    shard_bytes: u64,
    values: &dyn Fn(usize) -> Cow<'a, [f32]>,
) -> Result<(), WeightsError> {
    let rotated =
        matches!(config.family, Family::Llama | Family::Qwen2) && config.rope.layout == RopeLayout::Interleaved;
    assert!(!rotated, "rows of queries and keys in GGUF's order cannot be written to a directory");
    let entries = entries(config, dtype);
    write_dir(dir, entries, shard_bytes, values, &[("config.json", config.to_hf_json(dtype))])
}

/// Writes tensors, `(name, shape)`, in f32, and after them the files `(name, text)`, into `dir`, which is made if need
/// be. `values(i)` gives tensor i, row-major, and is asked for it when it is written.
///
/// # Errors
/// As [`save_dir`].
///
/// # Panics
/// If a tensor has not the values of its shape.
pub(crate) fn save_tensors<'a>(
    dir: &Path,
    tensors: Vec<(String, Vec<usize>)>,
    shard_bytes: u64,
    values: &dyn Fn(usize) -> Cow<'a, [f32]>,
    texts: &[(&str, String)],
) -> Result<(), WeightsError> {
    let lengths: Vec<usize> = tensors.iter().map(|(_, shape)| shape.iter().product()).collect();
    let values = |i: usize| {
        let values = values(i);
        assert_eq!(values.len(), lengths[i], "numbers of tensor {i}");
        values
    };
    let entry = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
        let parts = vec![HfTensor::own(name.clone(), shape.clone(), i)];
        Entry { name, stored: Stored::F32, shape, parts, content: Content::Values }
    };
    write_dir(dir, tensors.into_iter().enumerate().map(entry).collect(), shard_bytes, &values, texts)
}

fn write_dir<'a>(
    dir: &Path,
    entries: Vec<Entry>,
    shard_bytes: u64,
    values: &dyn Fn(usize) -> Cow<'a, [f32]>,
    texts: &[(&str, String)],
) -> Result<(), WeightsError> {
    std::fs::create_dir_all(dir).map_err(WeightsError::io("create", dir))?;
    refuse_occupied(dir)?;
    let shards = into_shards(entries, shard_bytes);
    let total_size: u64 = shards.iter().flatten().map(Entry::bytes).sum();
    let mut weight_map = Map::new();
    let count = shards.len();
    for (i, shard) in shards.into_iter().enumerate() {
        let file = if count == 1 { SINGLE.to_owned() } else { format!("model-{:05}-of-{count:05}.safetensors", i + 1) };
        weight_map.extend(shard.iter().map(|entry| (entry.name.clone(), json!(file))));
        write_synced(&dir.join(file), |out| write_shard(out, &shard, values))?;
    }
    if count > 1 {
        weight_map.sort_keys();
        let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
        write_synced(&dir.join(INDEX), |out| serde_json::to_writer_pretty(out, &index).map_err(io::Error::from))?;
    }
    for (name, text) in texts {
        write_synced(&dir.join(name), |out| out.write_all(text.as_bytes()))?;
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(WeightsError::io("sync", dir))
}

fn write_header(out: &mut dyn Write, header: Map<String, Value>) -> io::Result<()> {
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)
}

/// A second model in one directory would leave shards of which nobody knows whose they are.
fn refuse_occupied(dir: &Path) -> Result<(), WeightsError> {
    for entry in std::fs::read_dir(dir).map_err(WeightsError::io("read", dir))? {
        let file = entry.map_err(WeightsError::io("read", dir))?.file_name().to_string_lossy().into_owned();
        if file == INDEX || file.starts_with("model") && file.ends_with(".safetensors") {
            return Err(WeightsError::Occupied { dir: dir.to_owned(), file });
        }
    }
    Ok(())
}

fn entries(config: &ModelConfig, dtype: Dtype) -> Vec<Entry> {
    let specs = names::param_specs(config);
    let mut entries: Vec<Entry> = Vec::new();
    let mut shared: HashMap<String, usize> = HashMap::new();
    for tensor in names::hf_tensors(config) {
        let stored = tensor_stored_as(&tensor, &specs[tensor.param], dtype);
        let HfTensor { name, shape, .. } = tensor.clone();
        if stored == Stored::E4m3 {
            let scale_name = format!("{name}{SCALE_SUFFIX}");
            let scale_shape = fp8::scale_shape(shape[0], shape[1]).to_vec();
            let cols = shape[1];
            let (content, parts) = (Content::Fp8 { cols }, vec![tensor]);
            entries.push(Entry { name, stored, shape, parts: parts.clone(), content });
            let content = Content::Fp8Scales { cols };
            entries.push(Entry { name: scale_name, stored: Stored::F32, shape: scale_shape, parts, content });
        } else if let Some(&entry) = shared.get(&name) {
            entries[entry].parts.push(tensor);
        } else {
            if !tensor.is_whole() {
                shared.insert(name.clone(), entries.len());
            }
            entries.push(Entry { name, stored, shape, parts: vec![tensor], content: Content::Values });
        }
    }
    entries
}

/// Fills files up to `limit` bytes, in order. Within a file wide formats come first, so that every tensor is aligned.
fn into_shards(entries: Vec<Entry>, limit: u64) -> Vec<Vec<Entry>> {
    let mut shards: Vec<Vec<Entry>> = vec![Vec::new()];
    let mut filled = 0;
    for entry in entries {
        if filled > 0 && filled + entry.bytes() > limit {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += entry.bytes();
        shards.last_mut().expect("there is always a shard").push(entry);
    }
    for shard in &mut shards {
        shard.sort_by_key(|entry| std::cmp::Reverse(entry.stored.bytes()));
    }
    shards
}

fn write_shard<'a>(out: &mut dyn Write, entries: &[Entry], values: &dyn Fn(usize) -> Cow<'a, [f32]>) -> io::Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    for entry in entries {
        let end = offset + entry.bytes();
        let info = json!({ "dtype": entry.stored.name(), "shape": entry.shape, "data_offsets": [offset, end] });
        header.insert(entry.name.clone(), info);
        offset = end;
    }
    write_header(out, header)?;
    // Experts are entries of one parameter, which is fetched once for those that follow each other.
    let mut fetched: Option<(usize, Cow<[f32]>)> = None;
    let mut rows_of = |part: &HfTensor, take: &mut dyn FnMut(&[f32]) -> io::Result<()>| {
        let (_, all) = match fetched.take() {
            Some(last) if last.0 == part.param => fetched.insert(last),
            _ => fetched.insert((part.param, values(part.param))),
        };
        take(&all[part.first_row * part.cols..][..part.rows * part.cols])
    };
    for entry in entries {
        if entry.parts[0].is_whole() {
            rows_of(&entry.parts[0], &mut |rows| write_entry(out, entry, rows))?;
            continue;
        }
        let mut tensor = vec![0.0; entry.shape.iter().product()];
        for part in &entry.parts {
            rows_of(part, &mut |rows| {
                part.put(rows, &mut tensor);
                Ok(())
            })?;
        }
        write_entry(out, entry, &tensor)?;
    }
    Ok(())
}

fn write_entry(out: &mut dyn Write, entry: &Entry, values: &[f32]) -> io::Result<()> {
    match entry.content {
        Content::Values => write_values(out, values, entry.stored),
        Content::Fp8 { cols } => out.write_all(&fp8::quantize(values, &fp8::scales(values, cols), cols)),
        Content::Fp8Scales { cols } => write_values(out, &fp8::scales(values, cols), Stored::F32),
    }
}

fn write_values(out: &mut dyn Write, values: &[f32], stored: Stored) -> io::Result<()> {
    const PIECE: usize = 1 << 16;
    let mut halves = vec![0u16; PIECE];
    let mut bytes = Vec::with_capacity(4 * PIECE);
    for values in values.chunks(PIECE) {
        bytes.clear();
        let halves = &mut halves[..values.len()];
        match stored {
            Stored::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Stored::Bf16 => convert::to_bf16s(values, halves),
            Stored::F16 => convert::to_f16s(values, halves),
            Stored::I64 => bytes.extend(values.iter().flat_map(|value| (*value as i64).to_le_bytes())),
            Stored::E4m3 => unreachable!("quantised as a whole"),
        }
        if matches!(stored, Stored::Bf16 | Stored::F16) {
            bytes.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Writes a file under a temporary name, syncs it and gives it its name; removes it if that fails.
fn write_synced(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), WeightsError> {
    let temporary = temporary_name(path);
    let result = (|| {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        write(&mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    result.map_err(|source| {
        // The first failure is the one to report; a leftover temporary file does no harm.
        let _ = std::fs::remove_file(&temporary);
        WeightsError::Io { action: "write", path: path.to_owned(), source }
    })
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".unfinished");
    PathBuf::from(name)
}
