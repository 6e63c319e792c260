//! A model → a GGUF file, as llama.cpp's converter would write it.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use wels_device::BlockType;
use wels_device::host::blocks;

use super::config::{gemma_query_scalar, tables};
use super::metadata::Kind;
use super::names::{self, Expected, Place, place};
use super::{GgufError, rope, types};
use crate::config::{
    Attention, ConfigError, Dtype, Family, Gating, ModelConfig, MoeConfig, RopeLayout, RopeScaling, Router, Window,
};
use crate::config_json::query_scalar;
use crate::family::NormWeights;
use crate::names::{ParamKind, ParamSpec, param_specs};

const ALIGNMENT: usize = 32;

/// Numbers that are encoded at once.
const PIECE: usize = 1 << 20;

/// A value of the metadata to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    Unsigned(u32),
    Single(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i32>),
}

/// A tensor to be written.
struct Entry {
    expected: Expected,
    kind: BlockType,
    content: Content,
}

enum Content {
    /// A parameter of [`param_specs`].
    Param(usize),
    /// The query or key rows of a parameter, reordered for the rotation of neighbours.
    Interleaved {
        param: usize,
        head_dim: usize,
    },
    /// A norm's weight w, which is 1 + w there.
    OneMore(usize),
    /// The rows of several parameters.
    Rows(Vec<usize>),
    /// Of `kv_b_proj`, the keys of all heads, each transposed.
    Keys(usize),
    /// Of `kv_b_proj`, the values of all heads.
    Values(usize),
    Numbers(Vec<f32>),
}

impl Entry {
    fn elements(&self) -> usize {
        self.expected.dims.iter().product::<u64>() as usize
    }

    fn bytes(&self) -> usize {
        self.elements() / self.kind.len() * self.kind.bytes()
    }
}

/// Writes `path`: under a temporary name, synced, renamed. Layers for multi-token prediction are left out.
///
/// Linear maps and the embedding are stored as `kind`, of the 4-bit types the embedding and the head as Q8_0; rows that
/// are no whole blocks as F16; everything small (norms, biases, routers) as F32. `more` are further keys: the
/// tokenizer's, the model's name. `values(param)` gives a whole parameter of [`param_specs`]; `progress` is told the
/// bytes written and the bytes in all.
///
/// # Errors
/// [`GgufError::Occupied`] if there is a file already, [`GgufError::Config`] for what has no form in GGUF,
/// [`GgufError::Io`]. Nothing is left under the final name then.
///
/// # Panics
/// If `kind` cannot be encoded, or `values(param)` has not the length that the configuration gives it.
pub fn save<'a>(
    path: &Path,
    config: &ModelConfig,
    kind: BlockType,
    more: &[(String, Item)],
    values: &dyn Fn(usize) -> Cow<'a, [f32]>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), GgufError> {
    assert!(kind.can_encode(), "{} is only decoded", kind.name());
    if path.symlink_metadata().is_ok() {
        return Err(GgufError::Occupied { path: path.to_owned() });
    }
    let refuse = |source| GgufError::Config { path: path.to_owned(), source: Box::new(source) };
    let architecture = config.family.row().gguf.ok_or_else(|| {
        let (key, value) = ("model_type".to_owned(), config.family.model_type().to_owned());
        let why = "models of this family have no GGUF files here yet: convert to safetensors";
        refuse(ConfigError::Unsupported { key, value, why })
    })?;
    let mut keys = general_keys(architecture, kind);
    keys.extend(model_keys(config, architecture).map_err(refuse)?);
    keys.extend(more.iter().cloned());
    let entries = entries(config, kind);
    let header = header(&keys, &entries);
    let total = entries.iter().fold(header.len(), |end, entry| end.next_multiple_of(ALIGNMENT) + entry.bytes()) as u64;
    let temporary = temporary_name(path);
    let result = (|| {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        out.write_all(&header)?;
        let mut done = header.len();
        for entry in &entries {
            let start = done.next_multiple_of(ALIGNMENT);
            out.write_all(&[0; ALIGNMENT][..start - done])?;
            write_entry(&mut out, entry, config, values)?;
            done = start + entry.bytes();
            progress(done as u64, total);
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&temporary, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    })();
    result.map_err(|source| {
        // The first failure is the one to report; a full disk is given back what this attempt took.
        let _ = std::fs::remove_file(&temporary);
        GgufError::Io { action: "write", path: path.to_owned(), source }
    })
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".unfinished");
    PathBuf::from(name)
}

fn general_keys(architecture: &str, kind: BlockType) -> Vec<(String, Item)> {
    // llama.cpp's `LLAMA_FTYPE_*`.
    let file_type = match kind {
        BlockType::F32 => 0,
        BlockType::F16 => 1,
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q8_0 => 7,
        BlockType::Bf16 => 32,
        other => unreachable!("{} is not encoded", other.name()),
    };
    let mut keys = vec![
        ("general.architecture".to_owned(), Item::Text(architecture.to_owned())),
        ("general.type".to_owned(), Item::Text("model".to_owned())),
        ("general.file_type".to_owned(), Item::Unsigned(file_type)),
    ];
    if kind.is_quantised() {
        keys.push(("general.quantization_version".to_owned(), Item::Unsigned(2)));
    }
    keys
}

/// The architecture's keys: those of `config.json` renamed, and what GGUF says differently.
fn model_keys(config: &ModelConfig, architecture: &str) -> Result<Vec<(String, Item)>, ConfigError> {
    let windowed = matches!(config.family, Family::GptOss | Family::Gemma2 | Family::Gemma3);
    if let Some(window) = config.window.as_ref().filter(|_| !windowed) {
        let (key, value) = ("sliding_window".to_owned(), window.width.to_string());
        let why = "llama.cpp attends to the whole context in models of this architecture";
        return Err(ConfigError::Unsupported { key, value, why });
    }
    let alternates =
        |window: &Window| window.layers.iter().enumerate().all(|(layer, slides)| *slides == (layer % 2 == 0));
    if config.family == Family::GptOss && !config.window.as_ref().is_some_and(alternates) {
        let (key, value) = ("layer_types".to_owned(), format!("{:?}", config.window));
        let why = "llama.cpp attends over the window in every second layer, from the first on";
        return Err(ConfigError::Unsupported { key, value, why });
    }
    check_gemma(config)?;
    if !matches!(config.gating, Gating::Silu | Gating::GeluTanh | Gating::Clamped { alpha: 1.702, limit: 7.0 }) {
        let (key, value) = ("swiglu_limit".to_owned(), format!("{:?}", config.gating));
        let why = "llama.cpp has limits of 7 and a factor of 1.702 alone";
        return Err(ConfigError::Unsupported { key, value, why });
    }
    if matches!(config.moe, Some(MoeConfig { router: Router::Softmax { normalize: false, .. }, .. }))
        && config.family == Family::Qwen3Moe
    {
        let (key, value) = ("norm_topk_prob".to_owned(), "false".to_owned());
        let why = "llama.cpp divides the weights of a token's experts by their sum";
        return Err(ConfigError::Unsupported { key, value, why });
    }
    let json: Json = serde_json::from_str(&config.to_hf_json(Dtype::F32)).expect("it has just been written");
    let mut keys = Vec::new();
    let mut put = |key: &str, item: Item| keys.push((format!("{architecture}.{key}"), item));
    for (key, name, _) in tables(config.family).into_iter().flatten() {
        let real = REAL.contains(key);
        match &json[*name] {
            Json::Number(number) if real => put(key, Item::Single(number.as_f64().unwrap_or(0.0) as f32)),
            Json::Number(number) => put(key, Item::Unsigned(number.as_u64().unwrap_or(0) as u32)),
            Json::Bool(true) => put(key, Item::Bool(true)),
            _ => {}
        }
    }
    if config.family == Family::Gemma2 && config.window.is_none() {
        put("attention.sliding_window", Item::Unsigned(config.rope.max_positions as u32));
    }
    put("vocab_size", Item::Unsigned(config.vocab_size as u32));
    let mut size = |key: &str, size: usize| put(key, Item::Unsigned(size as u32));
    match config.attention {
        Attention::Compressed { .. } => unreachable!("a family without a name in GGUF"),
        Attention::Gqa { head_dim, rope_dim, .. } => {
            size("attention.value_length", head_dim);
            size("rope.dimension_count", rope_dim);
        }
        Attention::Mla { q_lora_rank, kv_lora_rank, nope_dim, rope_dim, v_dim, .. } => {
            if let Some(rank) = q_lora_rank {
                size("attention.q_lora_rank", rank);
            }
            // The plain widths are those of the absorbed form, in which all heads share one key.
            size("attention.head_count_kv", 1);
            size("attention.key_length", kv_lora_rank + rope_dim);
            size("attention.value_length", kv_lora_rank);
            size("attention.key_length_mla", nope_dim + rope_dim);
            size("attention.value_length_mla", v_dim);
        }
    }
    match config.moe.as_ref().map(|moe| &moe.router) {
        Some(Router::Sigmoid { .. }) => size("expert_gating_func", 2),
        Some(Router::Softmax { .. }) if config.family == Family::DeepseekV2 => size("expert_gating_func", 1),
        _ => {}
    }
    scaling_keys(config, &mut put)?;
    Ok(keys)
}

/// Keys that are not whole numbers.
const REAL: &[&str] = &[
    "attention.layer_norm_rms_epsilon",
    "attn_logit_softcapping",
    "expert_weights_scale",
    "final_logit_softcapping",
    "rope.freq_base",
    "rope.freq_base_swa",
];

/// Refuses what llama.cpp's Gemma has otherwise, whatever a file says.
fn check_gemma(config: &ModelConfig) -> Result<(), ConfigError> {
    let full = match config.family {
        Family::Gemma2 => 2,
        Family::Gemma3 => 6,
        _ => return Ok(()),
    };
    let refuse = |key: &str, value: String, why| Err(ConfigError::Unsupported { key: key.to_owned(), value, why });
    let sliding = config.sliding_layers();
    if sliding.contains(&true) && sliding.iter().enumerate().any(|(layer, slides)| *slides != ((layer + 1) % full != 0))
    {
        let why = "llama.cpp attends over the window in all but every second (gemma2) or sixth (gemma3) layer";
        return refuse("layer_types", format!("{sliding:?}"), why);
    }
    if config.attention_cap.is_some() != (config.family == Family::Gemma2) {
        let why = "llama.cpp caps the scores of gemma2, and of gemma3 does not";
        return refuse("attn_logit_softcapping", format!("{:?}", config.attention_cap), why);
    }
    if config.family == Family::Gemma2 && config.logit_cap.is_none() {
        return refuse("final_logit_softcapping", "null".to_owned(), "llama.cpp caps the logits of gemma2");
    }
    let (heads, head_dim) = (config.attention.heads() as u64, config.attention.qk_dim() as u64);
    let (layers, hidden) = (config.layers as u64, config.hidden_size as u64);
    let scalar = query_scalar(config);
    if scalar != gemma_query_scalar(config.family, layers, (hidden, heads), head_dim) {
        let why = "llama.cpp has the width of a head, in 27B models hidden_size by heads";
        return refuse("query_pre_attn_scalar", scalar.to_string(), why);
    }
    Ok(())
}

fn scaling_keys(config: &ModelConfig, put: &mut dyn FnMut(&str, Item)) -> Result<(), ConfigError> {
    let unsupported = |key: &str, value: String, why| Err(ConfigError::Unsupported { key: key.to_owned(), value, why });
    let deepseek = config.family.is_deepseek();
    if deepseek && config.rope.layout != RopeLayout::Interleaved {
        return unsupported("rope_interleave", "false".to_owned(), "GGUF has deepseek2 with interleaved rotation only");
    }
    match &config.rope.scaling {
        RopeScaling::None => put("rope.scaling.type", Item::Text("none".to_owned())),
        RopeScaling::Linear { factor } => {
            put("rope.scaling.type", Item::Text("linear".to_owned()));
            put("rope.scaling.factor", Item::Single(*factor as f32));
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_positions,
            truncate,
            mscale,
            mscale_all_dim,
            table_scale,
        } => {
            let usual = crate::config_json::yarn_table_scale(*factor, *mscale, *mscale_all_dim);
            let told = if deepseek { mscale.is_some() && mscale == mscale_all_dim } else { mscale_all_dim.is_none() };
            if *truncate == (config.family == Family::GptOss) || !told {
                let value = format!("{:?}", config.rope.scaling);
                let why =
                    "GGUF has YaRN with mscale equal to mscale_all_dim only, and `truncate` false in gpt-oss alone";
                return unsupported("rope_scaling", value, why);
            }
            put("rope.scaling.type", Item::Text("yarn".to_owned()));
            put("rope.scaling.factor", Item::Single(*factor as f32));
            put("rope.scaling.original_context_length", Item::Unsigned(*original_max_positions as u32));
            put("rope.scaling.yarn_beta_fast", Item::Single(*beta_fast as f32));
            put("rope.scaling.yarn_beta_slow", Item::Single(*beta_slow as f32));
            if *table_scale != usual {
                put("rope.scaling.attn_factor", Item::Single((table_scale / usual) as f32));
            }
            if let Some(mscale) = mscale_all_dim {
                put("rope.scaling.yarn_log_multiplier", Item::Single((0.1 * mscale) as f32));
            }
        }
        RopeScaling::Long { original_max_positions, table_scale, .. } if config.family == Family::Phi3 => {
            put("rope.scaling.original_context_length", Item::Unsigned(*original_max_positions as u32));
            put("rope.scaling.attn_factor", Item::Single(*table_scale as f32));
        }
        RopeScaling::Long { .. } => {
            let value = "longrope".to_owned();
            return unsupported("rope_scaling.type", value, "GGUF has it for phi3 only");
        }
        RopeScaling::Llama3 { .. } if deepseek => {
            let value = format!("{:?}", config.rope.scaling);
            return unsupported("rope_scaling", value, "GGUF has it for llama and qwen2 only");
        }
        // As divisors, in a tensor.
        RopeScaling::Llama3 { .. } => {}
    }
    Ok(())
}

fn entries(config: &ModelConfig, kind: BlockType) -> Vec<Entry> {
    let mut entries = Vec::new();
    let config = &ModelConfig { mtp_depth: 0, ..config.clone() };
    for (param, spec) in param_specs(config).iter().enumerate() {
        match place(config, spec, true) {
            Place::Whole(expected) => {
                let kind = stored_as(spec, expected.dims[0], kind);
                let one_more = spec.kind == ParamKind::Norm && config.family.row().norm_weights == NormWeights::OneMore;
                let content = match interleaved(config, spec) {
                    _ if one_more => Content::OneMore(param),
                    Some(head_dim) => Content::Interleaved { param, head_dim },
                    None => Content::Param(param),
                };
                entries.push(Entry { expected, kind, content });
            }
            Place::Rows(expected, 0) => {
                let kind = stored_as(spec, expected.dims[0], kind);
                entries.push(Entry { expected, kind, content: Content::Rows(vec![param]) });
            }
            // A tensor's parameters follow each other.
            Place::Rows(..) => match entries.last_mut().map(|entry| &mut entry.content) {
                Some(Content::Rows(params)) => params.push(param),
                _ => unreachable!("{} begins a tensor that it is in the midst of", spec.name),
            },
            Place::Split { k_b, v_b } => {
                for (expected, content) in [(k_b, Content::Keys(param)), (v_b, Content::Values(param))] {
                    entries.push(Entry { kind: stored_as(spec, expected.dims[0], kind), expected, content });
                }
            }
        }
    }
    if let RopeScaling::Long { short, long, .. } = &config.rope.scaling {
        for (name, list) in names::ROPE_FACTORS.into_iter().zip([short, long]) {
            let expected = Expected { name: name.to_owned(), dims: vec![list.len() as u64] };
            let numbers = list.iter().map(|divisor| *divisor as f32).collect();
            entries.push(Entry { expected, kind: BlockType::F32, content: Content::Numbers(numbers) });
        }
    }
    if let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } =
        config.rope.scaling
    {
        let dim = config.attention.rope_dim();
        let numbers =
            rope::divisors(dim, config.rope.base, factor, low_freq_factor, high_freq_factor, original_max_positions);
        let expected = Expected { name: names::ROPE_FREQS.to_owned(), dims: vec![dim as u64 / 2] };
        entries.push(Entry { expected, kind: BlockType::F32, content: Content::Numbers(numbers) });
    }
    entries
}

fn stored_as(spec: &ParamSpec, cols: u64, kind: BlockType) -> BlockType {
    let four_bits = matches!(kind, BlockType::Q4_0 | BlockType::Q4_1);
    let kind = match spec.kind {
        ParamKind::Norm
        | ParamKind::Bias
        | ParamKind::Router
        | ParamKind::RouterBias
        | ParamKind::ExpertBiases(_)
        | ParamKind::PlaceBias
        | ParamKind::Table => BlockType::F32,
        ParamKind::Embedding | ParamKind::Head if four_bits => BlockType::Q8_0,
        _ => kind,
    };
    if cols.is_multiple_of(kind.len() as u64) { kind } else { BlockType::F16 }
}

/// The width of a head, if the rows (or the bias) of this parameter have to be reordered.
fn interleaved(config: &ModelConfig, spec: &ParamSpec) -> Option<usize> {
    let Attention::Gqa { head_dim, .. } = config.attention else { return None };
    let rotates = spec.name.contains(".q_proj.") || spec.name.contains(".k_proj.");
    let reorder =
        matches!(config.family, Family::Llama | Family::Mistral) && config.rope.layout == RopeLayout::HalfSplit;
    (reorder && rotates).then_some(head_dim)
}

/// The header, up to where the first tensor begins or a little before.
fn header(keys: &[(String, Item)], entries: &[Entry]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, item) in keys {
        put_text(&mut out, key);
        put_item(&mut out, item);
    }
    let mut offset = 0;
    for entry in entries {
        put_text(&mut out, &entry.expected.name);
        out.extend((entry.expected.dims.len() as u32).to_le_bytes());
        entry.expected.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(types::id(entry.kind).to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset = (offset + entry.bytes()).next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_item(out: &mut Vec<u8>, item: &Item) {
    let kind = |out: &mut Vec<u8>, kind: Kind| out.extend(kind.id().to_le_bytes());
    let list = |out: &mut Vec<u8>, of: Kind, count: usize| {
        out.extend(Kind::Array.id().to_le_bytes());
        out.extend(of.id().to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    };
    match item {
        Item::Unsigned(number) => {
            kind(out, Kind::U32);
            out.extend(number.to_le_bytes());
        }
        Item::Single(number) => {
            kind(out, Kind::F32);
            out.extend(number.to_le_bytes());
        }
        Item::Bool(flag) => {
            kind(out, Kind::Bool);
            out.push(u8::from(*flag));
        }
        Item::Text(text) => {
            kind(out, Kind::String);
            put_text(out, text);
        }
        Item::Texts(texts) => {
            list(out, Kind::String, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Item::Integers(numbers) => {
            list(out, Kind::I32, numbers.len());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
    }
}

fn write_entry<'a>(
    out: &mut dyn Write,
    entry: &Entry,
    config: &ModelConfig,
    values: &dyn Fn(usize) -> Cow<'a, [f32]>,
) -> io::Result<()> {
    let (kind, cols) = (entry.kind, entry.expected.dims[0] as usize);
    let whole = |param: usize| {
        let numbers = values(param);
        assert_eq!(numbers.len(), entry.elements(), "values of {}", entry.expected.name);
        numbers
    };
    match &entry.content {
        Content::Param(param) => encode(out, kind, cols, &whole(*param)),
        Content::OneMore(param) => {
            let sums: Vec<f32> = whole(*param).iter().map(|w| 1.0 + w).collect();
            encode(out, kind, cols, &sums)
        }
        Content::Numbers(numbers) => encode(out, kind, cols, numbers),
        Content::Rows(params) => params.iter().try_for_each(|param| encode(out, kind, cols, &values(*param))),
        Content::Interleaved { param, head_dim } => {
            let numbers = whole(*param);
            let cols = if entry.expected.dims.len() == 1 { 1 } else { cols };
            encode(out, kind, cols, &interleave_rows(&numbers, *head_dim, cols))
        }
        Content::Keys(param) | Content::Values(param) => {
            let Attention::Mla { kv_lora_rank: rank, nope_dim: nope, v_dim: v, .. } = config.attention else {
                unreachable!("only MLA has kv_b_proj")
            };
            let keys = matches!(entry.content, Content::Keys(_));
            let mut transposed = vec![0.0; nope * rank];
            for head in values(*param).chunks_exact((nope + v) * rank) {
                let (k, v) = head.split_at(nope * rank);
                if !keys {
                    encode(out, kind, cols, v)?;
                    continue;
                }
                for (i, row) in k.chunks_exact(rank).enumerate() {
                    transposed[i..].iter_mut().step_by(nope).zip(row).for_each(|(to, from)| *to = *from);
                }
                encode(out, kind, cols, &transposed)?;
            }
            Ok(())
        }
    }
}

fn encode(out: &mut dyn Write, kind: BlockType, cols: usize, numbers: &[f32]) -> io::Result<()> {
    let at_once = (PIECE / cols).max(1) * cols;
    // A bias is one row, of which `cols` may be a part: pieces are whole blocks all the same.
    let at_once = at_once.next_multiple_of(kind.len());
    let mut bytes = Vec::new();
    for numbers in numbers.chunks(at_once) {
        bytes.resize(numbers.len() / kind.len() * kind.bytes(), 0);
        blocks::encode(kind, numbers, &mut bytes);
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Rows i and i + n/2 of each head of n rows → rows 2i and 2i + 1: from the order of [`RopeLayout::HalfSplit`] to that
/// of [`RopeLayout::Interleaved`].
pub fn interleave_rows(values: &[f32], head_dim: usize, cols: usize) -> Vec<f32> {
    reorder(values, head_dim, cols, |row| (row / 2) + (row % 2) * (head_dim / 2))
}

/// The inverse of [`interleave_rows`].
pub fn split_rows<T: Copy>(values: &[T], head_dim: usize, cols: usize) -> Vec<T> {
    let half = head_dim / 2;
    reorder(values, head_dim, cols, |row| 2 * (row % half) + row / half)
}

/// Row r of each head of the result is row `source(r)` of that head of `values`.
fn reorder<T: Copy>(values: &[T], head_dim: usize, cols: usize, source: impl Fn(usize) -> usize) -> Vec<T> {
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * cols) {
        for row in 0..head_dim {
            out.extend_from_slice(&head[source(row) * cols..][..cols]);
        }
    }
    out
}
