//! Files → tensors.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{SafeTensorError, SafeTensors};
use serde_json::Value;
use wels_device::BlockType;
use wels_device::host::{blocks, convert};

use super::map::MappedFile;
use super::{Fp8Matrix, INDEX, Mismatch, SCALE_SUFFIX, SINGLE, WeightsError, fp8, mxfp4};
use crate::config::{Family, ModelConfig, Note};
use crate::config_json::keys::Keys;
use crate::names::{self, HfTensor, Role, published};

/// A `config.json` is a few kilobytes; an index has a line for each tensor.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_INDEX_BYTES: u64 = 1 << 28;

/// Ends the names of tables, which hold whole numbers.
const TABLE: &str = ".tid2eid";
const HEAD: &str = "lm_head.weight";
const TIED: &str = "tie_word_embeddings";

/// The mapped safetensors files of a directory, their headers read and checked against their sizes.
pub struct Files {
    dir: PathBuf,
    files: Vec<(PathBuf, Arc<MappedFile>)>,
    tensors: HashMap<String, Tensor>,
    /// Names that several files hold, with the files.
    repeated: Vec<String>,
}

/// Where a tensor lies.
struct Tensor {
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// Takes `(param, first_row, rows, values)`: `values` [rows, columns] are rows of parameter `param` of
/// [`names::param_specs`].
pub type Sink<'a> = dyn FnMut(usize, usize, usize, &[f32]) + 'a;

/// Reads `config.json`, maps the weights and checks that they fit each other.
///
/// A configuration that announces MTP layers of which the files hold nothing (`transformers` drops them when it saves)
/// is taken without them. One that does not say whether the head is tied is taken as tied if the files hold no head.
///
/// # Errors
/// Whatever is wrong with the configuration or the files; all missing, surplus and misshapen tensors in one message.
pub fn open_dir(dir: &Path) -> Result<(ModelConfig, Files, Vec<Note>), WeightsError> {
    let text = read_text(&dir.join("config.json"), MAX_CONFIG_BYTES)?;
    let in_dir = |source| WeightsError::Config { dir: dir.to_owned(), source: Box::new(source) };
    let (mut config, mut notes) = ModelConfig::from_hf_json(&text).map_err(in_dir)?;
    let files = Files::open(dir)?;
    let first_mtp = format!("model.layers.{}.", config.layers);
    if config.mtp_depth > 0 && !files.tensors.keys().any(|name| name.starts_with(&first_mtp)) {
        notes.push(Note(format!(
            "the files hold no MTP layer; {} announced in config.json is left out",
            config.mtp_depth
        )));
        config.mtp_depth = 0;
    }
    if !files.tensors.contains_key(HEAD) && !says_tied(&text) {
        notes.push(Note(format!("the files hold no {HEAD}, and config.json no `{TIED}`: the embedding is the head")));
        config.tied_head = true;
    }
    notes.extend(files.check(&config)?);
    add_ends(&mut config, dir)?;
    Ok((config, files, notes))
}

/// Adds the tokens that end an answer by the `generation_config.json` in `dir`, if there is one: of some published chat
/// models they stand there alone, such as `<|end|>` of Phi-3.
///
/// # Errors
/// [`WeightsError`] for a file that is not JSON, or whose ends are no tokens.
pub fn add_ends(config: &mut ModelConfig, dir: &Path) -> Result<(), WeightsError> {
    let path = dir.join("generation_config.json");
    if !path.is_file() {
        return Ok(());
    }
    let in_dir = |source| WeightsError::Config { dir: dir.to_owned(), source: Box::new(source) };
    let json: Value =
        serde_json::from_str(&read_text(&path, MAX_CONFIG_BYTES)?).map_err(|error| in_dir(error.into()))?;
    let Some(map) = json.as_object() else { return Ok(()) };
    let ids = Keys::new(map, "generation_config.json: ").token_ids("eos_token_id").map_err(in_dir)?;
    for id in ids.into_iter().flatten().filter(|id| (*id as usize) < config.vocab_size) {
        if !config.eos_ids.contains(&id) {
            config.eos_ids.push(id);
        }
    }
    Ok(())
}

/// Whether a valid `config.json` says if the head is tied; the default of every family is that it is not.
fn says_tied(config: &str) -> bool {
    serde_json::from_str::<Value>(config).is_ok_and(|json| !json[TIED].is_null())
}

/// Loads the weights in `dir` into wherever `sink` puts them.
///
/// Every row of every parameter comes exactly once, in
/// the order of the files. Nothing is handed out unless all of it fits.
///
/// # Errors
/// As [`open_dir`], from which this differs by taking the configuration as given.
pub fn load_dir(dir: &Path, config: &ModelConfig, sink: &mut Sink<'_>) -> Result<Vec<Note>, WeightsError> {
    Files::open(dir)?.load(config, sink)
}

impl Files {
    /// Maps the files in `dir` and reads their headers.
    ///
    /// # Errors
    /// No safetensors files, an unreadable or damaged one, an index that does not describe them.
    pub fn open(dir: &Path) -> Result<Files, WeightsError> {
        let index_path = dir.join(INDEX);
        let index = if index_path.exists() { Some(read_index(&index_path)?) } else { None };
        let names: BTreeSet<String> = match &index {
            Some(index) => index.values().cloned().collect(),
            None if dir.join(SINGLE).exists() => BTreeSet::from([SINGLE.to_owned()]),
            None => return Err(no_weights(dir)),
        };
        let mut all = Files { dir: dir.to_owned(), files: Vec::new(), tensors: HashMap::new(), repeated: Vec::new() };
        for name in names {
            all.add(dir.join(name))?;
        }
        all.repeated.sort();
        if let Some(index) = index {
            all.check_index(&index_path, &index)?;
        }
        if all.tensors.keys().any(|name| published::is_published(name)) {
            let renamed = |(name, tensor): (String, _)| (published::of_transformers(&name), tensor);
            all.tensors = all.tensors.into_iter().map(renamed).collect();
        }
        Ok(all)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), WeightsError> {
        let map = Arc::new(MappedFile::open(&path).map_err(WeightsError::io("read", &path))?);
        let file = self.files.len();
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| WeightsError::File { path: path.clone(), problem: problem(&error, map.len()) })?;
        let data = size_of::<u64>() + header;
        for (name, info) in metadata.tensors() {
            let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
            let tensor = Tensor { file, dtype: info.dtype, shape: info.shape.clone(), bytes };
            if let Some(earlier) = self.tensors.insert(name.clone(), tensor) {
                let files = [file_name(&self.files[earlier.file].0), file_name(&path)];
                self.repeated.push(format!("{name} (in {})", files.join(" and ")));
            }
        }
        self.files.push((path, map));
        Ok(())
    }

    fn check_index(&self, path: &Path, index: &BTreeMap<String, String>) -> Result<(), WeightsError> {
        let elsewhere = |(name, file): &(&String, &String)| {
            self.tensors.get(*name).is_none_or(|tensor| file_name(&self.files[tensor.file].0) != **file)
        };
        let wrong: Vec<_> = index.iter().filter(elsewhere).map(|(name, file)| format!("{name} in {file}")).collect();
        if wrong.is_empty() || !self.repeated.is_empty() {
            return Ok(());
        }
        let shown = wrong[..wrong.len().min(Mismatch::SHOWN)].join(", ");
        let problem = format!("{} tensors are not where it says: {shown}", wrong.len());
        Err(WeightsError::Index { path: path.to_owned(), problem })
    }

    /// Checks that the files hold exactly the tensors of `config`; returns what will be ignored.
    ///
    /// Ignored are tables that follow from the configuration (`rotary_emb.inv_freq`), the MTP layers' copies of
    /// embedding and head, MTP layers beyond the configuration's, and a head beside a tied embedding if it holds the
    /// same numbers.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] with everything that is missing, surplus or misshapen.
    pub fn check(&self, config: &ModelConfig) -> Result<Vec<Note>, WeightsError> {
        let expected = names::hf_tensors(config);
        let mut mismatch = Mismatch { repeated: self.repeated.clone(), ..Mismatch::default() };
        let mut surplus: BTreeSet<&str> = self.tensors.keys().map(String::as_str).collect();
        let mut copies = 0;
        for tensor in &expected {
            match (self.tensors.get(&tensor.name), tensor.role) {
                (Some(found), Role::Own) => {
                    self.check_tensor(tensor, found, &mut surplus, &mut mismatch);
                    let experts = config.moe.as_ref().map(|moe| moe.experts);
                    if let Some(experts) = experts.filter(|_| tensor.name.ends_with(TABLE) && mismatch.is_empty()) {
                        mismatch
                            .misshapen
                            .extend(self.bad_row(found, experts).map(|row| format!("{} {row}", tensor.name)));
                    }
                }
                (None, Role::Own) if self.is_mxfp4(tensor) => self.check_mxfp4(tensor, &mut surplus, &mut mismatch),
                // Of a tensor that several parameters share once.
                (None, Role::Own) if mismatch.missing.contains(&tensor.name) => {}
                (None, Role::Own) => mismatch.missing.push(tensor.name.clone()),
                (Some(_), Role::MtpCopy) => copies += 1,
                (None, Role::MtpCopy) => {}
            }
            surplus.remove(tensor.name.as_str());
        }
        let mut notes = Vec::new();
        if copies > 0 {
            notes.push(Note(format!("{copies} copies of embedding and head in MTP layers are ignored")));
        }
        self.ignore_known(config, &mut surplus, &mut mismatch, &mut notes);
        mismatch.surplus.extend(surplus.into_iter().map(str::to_owned));
        if mismatch.is_empty() {
            return Ok(notes);
        }
        Err(WeightsError::Mismatch { dir: self.dir.clone(), mismatch: Box::new(mismatch) })
    }

    /// Takes out those tensors that `rename` has another name for, as files of their own.
    pub(crate) fn split_off(&mut self, rename: impl Fn(&str) -> Option<String>) -> Files {
        let mut taken = HashMap::new();
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            match rename(&name) {
                Some(new) => taken.insert(new, tensor),
                None => self.tensors.insert(name, tensor),
            };
        }
        Files { dir: self.dir.clone(), files: self.files.clone(), tensors: taken, repeated: Vec::new() }
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Checks that the files hold exactly tensors of these names and shapes, in floating point of 16 to 64 bits.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] with everything that is missing, surplus or misshapen.
    pub(crate) fn check_list<'a>(
        &self,
        expected: impl Iterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<(), WeightsError> {
        let mut mismatch = Mismatch { repeated: self.repeated.clone(), ..Mismatch::default() };
        let mut surplus: BTreeSet<&str> = self.tensors.keys().map(String::as_str).collect();
        for (name, shape) in expected {
            surplus.remove(name);
            let Some(found) = self.tensors.get(name) else {
                mismatch.missing.push(name.to_owned());
                continue;
            };
            if found.shape != shape {
                mismatch.misshapen.push(format!("{name} {:?} instead of {shape:?}", found.shape));
            }
            if !is_float(found.dtype) {
                mismatch.unreadable.push(format!("{name} {:?}", found.dtype));
            }
        }
        mismatch.surplus.extend(surplus.into_iter().map(str::to_owned));
        if mismatch.is_empty() {
            return Ok(());
        }
        Err(WeightsError::Mismatch { dir: self.dir.clone(), mismatch: Box::new(mismatch) })
    }

    /// The numbers of a tensor that has passed [`Files::check_list`]; the memory of its pages is given back.
    pub(crate) fn values(&self, name: &str) -> Vec<f32> {
        let found = &self.tensors[name];
        let mut values = vec![0.0; found.shape.iter().product()];
        self.decode(found, 0..values.len(), &mut values);
        self.files[found.file].1.release(found.bytes.clone());
        values
    }

    fn check_tensor(&self, expected: &HfTensor, found: &Tensor, surplus: &mut BTreeSet<&str>, mismatch: &mut Mismatch) {
        let name = &expected.name;
        if found.shape != expected.shape {
            let problem = format!("{name} {:?} instead of {:?}", found.shape, expected.shape);
            push_once(&mut mismatch.misshapen, problem);
        }
        match found.dtype {
            safetensors::Dtype::I64 | safetensors::Dtype::I32 if expected.name.ends_with(TABLE) => {}
            dtype if is_float(dtype) => {}
            safetensors::Dtype::F8_E4M3 if expected.shape.len() == 2 && expected.is_whole() => {
                self.check_scales(expected, surplus, mismatch);
            }
            other => push_once(&mut mismatch.unreadable, format!("{name} {other:?}")),
        }
    }

    /// What is wrong with the first row of a table that names an expert twice, or one of more than there are.
    fn bad_row(&self, table: &Tensor, experts: usize) -> Option<String> {
        let mut values = vec![0.0; table.shape.iter().product()];
        self.decode(table, 0..values.len(), &mut values);
        let is_expert = |value: &f32| value.fract() == 0.0 && (0.0..experts as f32).contains(value);
        let is_bad = |row: &[f32]| !row.iter().all(is_expert) || (1..row.len()).any(|i| row[..i].contains(&row[i]));
        let (number, row) = values.chunks(*table.shape.last()?).enumerate().find(|(_, row)| is_bad(row))?;
        Some(format!("row {number} {row:?} instead of different experts below {experts}"))
    }

    /// Whether what would be a tensor of experts is there as blocks and scales.
    pub(crate) fn is_mxfp4(&self, tensor: &HfTensor) -> bool {
        !tensor.is_whole() && self.tensors.contains_key(&format!("{}{}", tensor.name, mxfp4::BLOCKS))
    }

    fn check_mxfp4(&self, expected: &HfTensor, surplus: &mut BTreeSet<&str>, mismatch: &mut Mismatch) {
        let names = [mxfp4::BLOCKS, mxfp4::SCALES].map(|suffix| format!("{}{suffix}", expected.name));
        let Some(shapes) = mxfp4::shapes(expected) else {
            return push_once(&mut mismatch.unreadable, format!("{} of rows that are no blocks of 32", names[0]));
        };
        for (name, shape) in names.iter().zip(shapes) {
            surplus.remove(name.as_str());
            match self.tensors.get(name) {
                None => push_once(&mut mismatch.missing, name.clone()),
                Some(found) if found.shape != shape => {
                    push_once(&mut mismatch.misshapen, format!("{name} {:?} instead of {shape:?}", found.shape));
                }
                Some(found) if found.dtype != safetensors::Dtype::U8 => {
                    push_once(&mut mismatch.unreadable, format!("{name} {:?}", found.dtype));
                }
                Some(_) => {}
            }
        }
    }

    /// Rows of experts as blocks of [`BlockType::Mxfp4`], where the files have them so.
    pub(crate) fn mxfp4(&self, tensor: &HfTensor) -> Option<Vec<u8>> {
        let of = |suffix| self.tensors.get(&format!("{}{suffix}", tensor.name)).map(|found| self.bytes(found));
        self.is_mxfp4(tensor).then_some(())?;
        Some(mxfp4::rows(tensor, of(mxfp4::BLOCKS)?, of(mxfp4::SCALES)?))
    }

    /// The tensor that holds a parameter's rows, or their blocks.
    fn found(&self, tensor: &HfTensor) -> &Tensor {
        let blocks = || &self.tensors[&format!("{}{}", tensor.name, mxfp4::BLOCKS)];
        self.tensors.get(&tensor.name).unwrap_or_else(blocks)
    }

    fn check_scales(&self, expected: &HfTensor, surplus: &mut BTreeSet<&str>, mismatch: &mut Mismatch) {
        let name = format!("{}{SCALE_SUFFIX}", expected.name);
        let shape = fp8::scale_shape(expected.shape[0], expected.shape[1]);
        match self.tensors.get(&name) {
            None => mismatch.missing.push(name.clone()),
            Some(scales) if scales.shape != shape => {
                mismatch.misshapen.push(format!("{name} {:?} instead of {shape:?}", scales.shape));
            }
            Some(scales) if !is_float(scales.dtype) => {
                mismatch.unreadable.push(format!("{name} {:?}", scales.dtype));
            }
            Some(_) => {}
        }
        surplus.remove(name.as_str());
    }

    /// Takes out of `surplus` what may be ignored.
    fn ignore_known(
        &self,
        config: &ModelConfig,
        surplus: &mut BTreeSet<&str>,
        mismatch: &mut Mismatch,
        notes: &mut Vec<Note>,
    ) {
        surplus.retain(|name| !name.ends_with("rotary_emb.inv_freq"));
        if config.family == Family::DeepseekV4 {
            let before = surplus.len();
            surplus.retain(|name| !name.starts_with("mtp."));
            if surplus.len() < before {
                let count = before - surplus.len();
                notes.push(Note(format!("{count} tensors of MTP layers are ignored")));
            }
        }
        let beyond = config.layers + config.mtp_depth;
        let before = surplus.len();
        let has_mtp = [Family::DeepseekV3, Family::DeepseekV32].contains(&config.family);
        surplus.retain(|name| !(has_mtp && layer_of(name).is_some_and(|i| i >= beyond)));
        if surplus.len() < before {
            let count = before - surplus.len();
            notes.push(Note(format!("{count} tensors of MTP layers from layer {beyond} on are ignored")));
        }
        let (head, embedding) = (HEAD, "model.embed_tokens.weight");
        if config.tied_head && surplus.remove(head) {
            let [a, b] = [head, embedding].map(|name| self.tensors.get(name));
            if let (Some(a), Some(b)) = (a, b)
                && (a.dtype != b.dtype || self.bytes(a) != self.bytes(b))
            {
                let problem = format!("{head} differs from {embedding}, although {TIED} is true");
                mismatch.contradicting.push(problem);
            }
        }
    }

    /// Hands out all tensors of `config`; see [`load_dir`].
    ///
    /// # Errors
    /// As [`Files::check`]; nothing has been handed out then.
    pub fn load(&self, config: &ModelConfig, sink: &mut Sink<'_>) -> Result<Vec<Note>, WeightsError> {
        let notes = self.check(config)?;
        let mut values = Vec::new();
        for tensor in self.in_order(config) {
            self.read(&tensor, &mut values);
            sink(tensor.param, tensor.first_row, tensor.rows, &values);
        }
        Ok(notes)
    }

    /// The tensors of a configuration that has passed [`Files::check`], in the order of the files.
    pub(crate) fn in_order(&self, config: &ModelConfig) -> Vec<HfTensor> {
        let mut tensors = names::hf_tensors(config);
        tensors.retain(|tensor| tensor.role == Role::Own);
        tensors.sort_by_key(|tensor| {
            let found = self.found(tensor);
            (found.file, found.bytes.start, tensor.place.start)
        });
        tensors
    }

    /// A tensor's numbers; the memory of its pages is given back.
    pub(crate) fn read(&self, tensor: &HfTensor, values: &mut Vec<f32>) {
        values.resize(tensor.rows * tensor.cols, 0.0);
        if let Some(bytes) = self.mxfp4(tensor) {
            return blocks::decode(BlockType::Mxfp4, &bytes, values);
        }
        let (found, span) = (self.found(tensor), tensor.span());
        if tensor.is_in_one_piece() {
            self.decode(found, span, values);
        } else {
            let mut among = vec![0.0; span.len()];
            self.decode(found, span, &mut among);
            tensor.take(&among, values);
        }
        if found.dtype == safetensors::Dtype::F8_E4M3 {
            fp8::apply_scales(values, &self.scales(tensor), tensor.shape[1]);
        }
        self.release(tensor);
    }

    /// Gives back the memory of the pages that a tensor's rows have to themselves.
    pub(crate) fn release(&self, tensor: &HfTensor) {
        let found = self.found(tensor);
        self.files[found.file].1.release(part(found, tensor.span()));
    }

    /// The scales of a tensor of 8-bit floating point.
    fn scales(&self, tensor: &HfTensor) -> Vec<f32> {
        let found = &self.tensors[&format!("{}{SCALE_SUFFIX}", tensor.name)];
        let mut scales = vec![0.0; found.shape.iter().product()];
        self.decode(found, 0..scales.len(), &mut scales);
        scales
    }

    /// Whether a tensor is of 8-bit floating point.
    pub(crate) fn is_fp8(&self, tensor: &HfTensor) -> bool {
        self.found(tensor).dtype == safetensors::Dtype::F8_E4M3
    }

    /// A tensor of 8-bit floating point of which no number is NaN.
    pub(crate) fn fp8(&self, tensor: &HfTensor) -> Option<Fp8Matrix<'_>> {
        let bytes = self.bytes(self.found(tensor));
        let finite = self.is_fp8(tensor) && bytes.iter().all(|bits| bits & 0x7f != 0x7f);
        finite.then(|| Fp8Matrix { bytes, scales: self.scales(tensor), cols: tensor.shape[1] })
    }

    /// A tensor's rows as they lie in its mapped file; none for what does not lie there row by row, for 8-bit floating
    /// point, whose scales lie elsewhere, and for f64, in which nothing is computed.
    pub(crate) fn mapped(&self, tensor: &HfTensor) -> Option<(BlockType, &Arc<MappedFile>, Range<usize>)> {
        let found = self.found(tensor);
        let kind = match found.dtype {
            _ if !tensor.is_in_one_piece() => return None,
            safetensors::Dtype::F32 => BlockType::F32,
            safetensors::Dtype::F16 => BlockType::F16,
            safetensors::Dtype::BF16 => BlockType::Bf16,
            _ => return None,
        };
        Some((kind, &self.files[found.file].1, part(found, tensor.span())))
    }

    fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.files[tensor.file].1[tensor.bytes.clone()]
    }

    /// Numbers of a tensor of a supported type. Files are little-endian and their tensors may lie at odd addresses.
    fn decode(&self, tensor: &Tensor, which: Range<usize>, values: &mut [f32]) {
        const PIECE: usize = 1 << 16;
        let bytes = &self.files[tensor.file].1[part(tensor, which)];
        let width = bytes.len() / values.len();
        let mut staged = vec![0u16; if width == 2 { PIECE.min(values.len()) } else { 0 }];
        for (bytes, values) in bytes.chunks(PIECE * width).zip(values.chunks_mut(PIECE)) {
            match tensor.dtype {
                safetensors::Dtype::F32 => {
                    let words = bytes.as_chunks::<4>().0;
                    values.iter_mut().zip(words).for_each(|(value, word)| *value = f32::from_le_bytes(*word));
                }
                // To the nearest f32, ties to even.
                safetensors::Dtype::F64 => {
                    let words = bytes.as_chunks::<8>().0;
                    values.iter_mut().zip(words).for_each(|(value, word)| *value = f64::from_le_bytes(*word) as f32);
                }
                safetensors::Dtype::BF16 => convert::from_bf16s(stage(bytes, &mut staged), values),
                safetensors::Dtype::F16 => convert::from_f16s(stage(bytes, &mut staged), values),
                safetensors::Dtype::F8_E4M3 => convert::from_e4m3s(bytes, values),
                safetensors::Dtype::I64 => {
                    let words = bytes.as_chunks::<8>().0;
                    values.iter_mut().zip(words).for_each(|(value, word)| *value = i64::from_le_bytes(*word) as f32);
                }
                safetensors::Dtype::I32 => {
                    let words = bytes.as_chunks::<4>().0;
                    values.iter_mut().zip(words).for_each(|(value, word)| *value = i32::from_le_bytes(*word) as f32);
                }
                other => unreachable!("{other:?} has passed the check"),
            }
        }
    }
}

/// Where some numbers of a tensor of a supported type lie in its file.
fn part(tensor: &Tensor, which: Range<usize>) -> Range<usize> {
    let width = tensor.bytes.len() / tensor.shape.iter().product::<usize>().max(1);
    tensor.bytes.start + which.start * width..tensor.bytes.start + which.end * width
}

fn push_once(list: &mut Vec<String>, problem: String) {
    if !list.contains(&problem) {
        list.push(problem);
    }
}

/// Whether it is read as it is, without scales.
fn is_float(dtype: safetensors::Dtype) -> bool {
    use safetensors::Dtype::{BF16, F16, F32, F64};
    matches!(dtype, F64 | F32 | F16 | BF16)
}

fn stage<'a>(bytes: &[u8], staged: &'a mut [u16]) -> &'a [u16] {
    let words = bytes.as_chunks::<2>().0;
    let staged = &mut staged[..words.len()];
    staged.iter_mut().zip(words).for_each(|(half, word)| *half = u16::from_le_bytes(*word));
    staged
}

/// The number in `model.layers.{i}.…`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn no_weights(dir: &Path) -> WeightsError {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(source) => return WeightsError::Io { action: "read", path: dir.to_owned(), source },
    };
    let is_pickle = |path: PathBuf| path.extension().is_some_and(|end| end == "bin" || end == "pt" || end == "pth");
    WeightsError::NoWeights { dir: dir.to_owned(), pickle: entries.flatten().any(|entry| is_pickle(entry.path())) }
}

pub(crate) fn read_text(path: &Path, max: u64) -> Result<String, WeightsError> {
    let metadata = std::fs::metadata(path).map_err(WeightsError::io("read", path))?;
    if !metadata.is_file() {
        // A pipe would wait for a writer, and a device has no end.
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
        return Err(WeightsError::Io { action: "read", path: path.to_owned(), source });
    }
    if metadata.len() > max {
        return Err(WeightsError::TooLarge { path: path.to_owned(), bytes: metadata.len(), max });
    }
    std::fs::read_to_string(path).map_err(WeightsError::io("read", path))
}

/// Tensor → file name, from `weight_map`.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let invalid = |problem: String| WeightsError::Index { path: path.to_owned(), problem };
    let text = read_text(path, MAX_INDEX_BYTES)?;
    let json: Value = serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    let Some(Value::Object(map)) = json.get("weight_map") else {
        return Err(invalid("it has no object `weight_map`".to_owned()));
    };
    if map.is_empty() {
        return Err(invalid("its `weight_map` is empty".to_owned()));
    }
    let mut files = BTreeMap::new();
    for (name, file) in map {
        // Only files in this directory: an index could otherwise name any file of the machine.
        let plain = file.as_str().filter(|file| {
            let mut parts = Path::new(file).components();
            matches!(parts.next(), Some(std::path::Component::Normal(_))) && parts.next().is_none()
        });
        let file = plain.ok_or_else(|| invalid(format!("`{name}` is in {file}, which is not a file name")))?;
        files.insert(name.clone(), file.to_owned());
    }
    Ok(files)
}

/// What is wrong with a file of `len` bytes, in words of the format.
fn problem(error: &SafeTensorError, len: usize) -> String {
    match error {
        SafeTensorError::HeaderTooSmall => format!("it has {len} bytes, less than the length of a header"),
        SafeTensorError::HeaderTooLarge => "its header claims more than 100 MB".to_owned(),
        SafeTensorError::InvalidHeaderLength => format!("its header claims more than the {len} bytes of the file"),
        SafeTensorError::MetadataIncompleteBuffer => {
            format!("its tensors do not add up to the {len} bytes of the file (truncated?)")
        }
        SafeTensorError::InvalidOffset(name) => {
            format!(
                "the data of `{name}` does not begin where the tensor before it ends (overlap, gap or repeated name)"
            )
        }
        SafeTensorError::TensorInvalidInfo => "a tensor's shape and type do not give its number of bytes".to_owned(),
        SafeTensorError::ValidationOverflow => "a tensor's shape overflows".to_owned(),
        other => other.to_string(),
    }
}
