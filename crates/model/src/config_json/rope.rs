//! The rotary part of a `config.json`: three generations of keys for the same few numbers.
//!
//! `rope_theta` beside `rope_scaling` (with `type`, later `rope_type`) is how nearly all published files say it;
//! `transformers` 5 writes one object `rope_parameters`. Both may be present if they agree.

use serde_json::{Map, Value};

use super::keys::{Keys, abbreviate};
use crate::config::{Attention, ConfigError, Family, LocalRope, Note, RopeConfig, RopeLayout, RopeScaling};

/// Keys that some rope type uses.
const KNOWN: &[&str] = &[
    "attention_factor",
    "attn_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "high_freq_factor",
    "long_factor",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "rope_theta",
    "short_factor",
    "truncate",
];

/// Part of a head that rotates.
const PARTIAL: &str = "partial_rotary_factor";

const DEFAULT_BASE: f64 = 10_000.0;
/// Of Gemma 3's layers without a window.
const GLOBAL_BASE: f64 = 1_000_000.0;
/// The context of Phi-3's first training where nothing says it.
const PHI3_ORIGINAL: usize = 4096;
const MAX_FACTOR: f64 = 1e6;
const MAX_BASE: f64 = 1e12;

/// What stands beside the object that says how frequencies are changed.
struct Outer {
    base: Option<f64>,
    /// What the base is where nothing says it.
    usual_base: f64,
    /// Part of a head that rotates.
    part: Option<f64>,
    max_positions: usize,
    /// The context of the first training.
    original: Option<usize>,
}

/// What an object says, with what stands beside it.
#[derive(PartialEq)]
struct Inner {
    base: f64,
    part: Option<f64>,
    scaling: RopeScaling,
}

/// Reads base and scaling, and the part of a head that rotates: `partial` is that of a file that does not say, of a
/// family whose files may.
pub fn read(
    keys: &mut Keys,
    max_positions: usize,
    layout: RopeLayout,
    partial: Option<f64>,
    family: Family,
) -> Result<(RopeConfig, f64), ConfigError> {
    let outer_part = match partial {
        Some(_) if keys.has(PARTIAL) => Some(keys.real(PARTIAL, None, 0.0, 1.0)?),
        Some(_) => None,
        None => Some(1.0),
    };
    let base = if keys.has("rope_theta") { Some(keys.real("rope_theta", None, 1.0, MAX_BASE)?) } else { None };
    keys.mark(&["rope_theta"]);
    let usual_base = if family == Family::Gemma3 { GLOBAL_BASE } else { DEFAULT_BASE };
    let original =
        keys.get("original_max_position_embeddings").and_then(Value::as_u64).map(|original| original as usize);
    let original = original.or((family == Family::Phi3).then_some(PHI3_ORIGINAL)).filter(|original| *original > 0);
    let outer = Outer { base, usual_base, part: outer_part, max_positions, original };
    let old = read_object(keys, "rope_scaling", "rope_scaling.", &outer)?;
    let new = match by_type(keys).filter(|_| family == Family::Gemma3) {
        Some(map) => {
            let mut inner = Keys::new(map, "rope_parameters.");
            let new = read_object(&mut inner, FULL, "rope_parameters.full_attention.", &outer)?;
            keys.notes.append(&mut inner.notes);
            new
        }
        None => read_object(keys, "rope_parameters", "rope_parameters.", &outer)?,
    };
    if let (Some(old), Some(new)) = (&old, &new)
        && old != new
    {
        let [old, new] = ["rope_scaling", "rope_parameters"].map(|key| keys.get(key).map_or(String::new(), abbreviate));
        return Err(keys.contradiction("rope_scaling", old, "rope_parameters", new, "they say the same thing twice"));
    }
    let Inner { base, part, scaling } =
        old.or(new).unwrap_or(Inner { base: base.unwrap_or(usual_base), part: outer_part, scaling: RopeScaling::None });
    let part = part.or(partial).unwrap_or(1.0);
    Ok((RopeConfig { base, scaling, layout, max_positions, local: None }, part))
}

/// The keys of layers without and with a window, in `rope_parameters` of Gemma 3.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// `rope_parameters`, if it has an object for each type of layer.
fn by_type<'a>(keys: &mut Keys<'a>) -> Option<&'a Map<String, Value>> {
    let map = keys.get("rope_parameters")?.as_object()?;
    [FULL, SLIDING].iter().any(|key| map.contains_key(*key)).then_some(map)
}

/// The rotation of layers with a window, which are `layers`, in Gemma 3.
pub fn read_local(keys: &mut Keys, layers: Vec<bool>) -> Result<Option<LocalRope>, ConfigError> {
    const KEY: &str = "rope_local_base_freq";
    let base = if keys.has(KEY) { Some(keys.real(KEY, None, 1.0, MAX_BASE)?) } else { None };
    keys.mark(&[KEY]);
    let mut inner_base = None;
    if let Some(map) = by_type(keys) {
        let mut inner = Keys::new(map, "rope_parameters.");
        let outer = Outer { base, usual_base: DEFAULT_BASE, part: Some(1.0), max_positions: 1, original: None };
        if let Some(found) = read_object(&mut inner, SLIDING, "rope_parameters.sliding_attention.", &outer)? {
            if found.scaling != RopeScaling::None {
                return Err(inner.unsupported(SLIDING, "layers with a window rotate unscaled"));
            }
            inner_base = Some(found.base);
        }
        if let Some(key) = inner.unread().into_iter().find(|key| *key != FULL) {
            return Err(inner.unsupported(key, "layers have `full_attention` or `sliding_attention`"));
        }
    }
    let base = inner_base.or(base).unwrap_or(DEFAULT_BASE);
    Ok(layers.contains(&true).then_some(LocalRope { base, layers }))
}

/// Base and scaling in DeepSeek-V4: those of layers with entries, and of the others, `sliding`, as local ones.
pub fn read_compressed(keys: &mut Keys, max_positions: usize, sliding: Vec<bool>) -> Result<RopeConfig, ConfigError> {
    const MAIN: &str = "main";
    const COMPRESS: &str = "compress";
    let theta = keys.real("rope_theta", Some(DEFAULT_BASE), 1.0, MAX_BASE)?;
    let of_entries = keys.real("compress_rope_theta", Some(160_000.0), 1.0, MAX_BASE)?;
    let part = if keys.has(PARTIAL) { Some(keys.real(PARTIAL, None, 0.0, 1.0)?) } else { None };
    let outer = |usual_base| Outer { base: None, usual_base, part, max_positions, original: None };
    let nested = keys.get("rope_parameters").and_then(Value::as_object).filter(|map| map.contains_key(COMPRESS));
    let (main, found, says) = match nested {
        Some(map) => {
            let mut inner = Keys::new(map, "rope_parameters.");
            let main = read_object(&mut inner, MAIN, "rope_parameters.main.", &outer(theta))?;
            let found = read_object(&mut inner, COMPRESS, "rope_parameters.compress.", &outer(of_entries))?;
            keys.notes.append(&mut inner.notes);
            (main, found, map.get(COMPRESS))
        }
        None => {
            let found = read_object(keys, "rope_scaling", "rope_scaling.", &outer(of_entries))?;
            let new = read_object(keys, "rope_parameters", "rope_parameters.", &outer(of_entries))?;
            let says = ["rope_scaling", "rope_parameters"].into_iter().find_map(|key| keys.get(key));
            // Whatever base it names: it is laid over that of the layers without entries.
            (None, found.or(new).map(|found| Inner { base: of_entries, ..found }), says)
        }
    };
    if main.as_ref().is_some_and(|main| main.scaling != RopeScaling::None) {
        return Err(keys.unsupported("rope_parameters", "layers without entries rotate unscaled"));
    }
    let (base, mut scaling) = found.map_or((of_entries, RopeScaling::None), |found| (found.base, found.scaling));
    if let RopeScaling::Yarn { table_scale, .. } = &mut scaling
        && says.is_none_or(|map| map.get("attention_factor").is_none_or(Value::is_null))
    {
        *table_scale = 1.0;
    }
    let base_of_others = main.map_or(theta, |main| main.base);
    let local = sliding.contains(&true).then_some(LocalRope { base: base_of_others, layers: sliding });
    Ok(RopeConfig { base, scaling, layout: RopeLayout::Interleaved, max_positions, local })
}

/// Factor on query·key: 1/√width, and in MLA times m² with m = 0.1·mscale_all_dim·ln(factor) + 1 whenever YaRN is on.
///
/// This is the convention of `transformers`; DeepSeek's reference code corrects only contexts beyond the original one.
pub fn softmax_scale(attention: &Attention, scaling: &RopeScaling) -> f32 {
    let scale = 1.0 / (attention.qk_dim() as f64).sqrt();
    let correction = match (attention, scaling) {
        (Attention::Mla { .. }, RopeScaling::Yarn { factor, mscale_all_dim: Some(mscale), .. }) => {
            yarn_mscale(*factor, *mscale)
        }
        _ => 1.0,
    };
    (scale * correction * correction) as f32
}

fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * libm::log(factor) + 1.0 }
}

/// What cos and sin are multiplied by when the file does not give `attention_factor`.
pub fn yarn_table_scale(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    match (mscale, mscale_all_dim) {
        (Some(mscale), Some(all)) => yarn_mscale(factor, mscale) / yarn_mscale(factor, all),
        _ => yarn_mscale(factor, 1.0),
    }
}

fn read_object(
    keys: &mut Keys,
    key: &'static str,
    parent: &'static str,
    outer: &Outer,
) -> Result<Option<Inner>, ConfigError> {
    let map = match keys.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(map)) if map.is_empty() => return Ok(None),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(keys.wrong_type(key, other, "an object")),
    };
    let mut inner = Keys::new(map, parent);
    let base = inner.real("rope_theta", Some(outer.base.unwrap_or(outer.usual_base)), 1.0, MAX_BASE)?;
    if let Some(outer) = outer.base.filter(|outer| *outer != base) {
        return Err(inner.contradiction("rope_theta", base, "rope_theta", outer, "they are the same number"));
    }
    let part = read_part(&mut inner, outer.part)?;
    let scaling = read_scaling(&mut inner, map, outer)?;
    keys.notes.append(&mut inner.notes);
    for key in inner.unread() {
        if !KNOWN.contains(&key) {
            return Err(inner.unsupported(key, "a key that is not known here may change the frequencies"));
        }
        let note = format!("config.json: `{}` has no effect with this rope type", inner.path(key));
        keys.notes.push(Note(note));
    }
    // An earlier place for the same number; `transformers` lets it win.
    if let (Some(outer), Some(original)) = (
        keys.get("original_max_position_embeddings").filter(|value| !value.is_null()),
        map.get("original_max_position_embeddings"),
    ) && outer != original
    {
        let key = inner.path("original_max_position_embeddings");
        let why = "they are the same number";
        return Err(keys.contradiction(&key, original, "original_max_position_embeddings", outer, why));
    }
    Ok(Some(Inner { base, part, scaling }))
}

/// The part of a head that rotates, where an object says it; `transformers` 5 does.
fn read_part(inner: &mut Keys, outer: Option<f64>) -> Result<Option<f64>, ConfigError> {
    if !inner.has(PARTIAL) {
        inner.mark(&[PARTIAL]);
        return Ok(outer);
    }
    let part = inner.real(PARTIAL, None, 0.0, 1.0)?;
    match outer.filter(|outer| *outer != part) {
        Some(1.0) => Err(inner.unsupported(PARTIAL, "all of a head's rotary part rotates")),
        Some(outer) => Err(inner.contradiction(PARTIAL, part, PARTIAL, outer, "they are the same number")),
        None => Ok(Some(part)),
    }
}

fn read_scaling(inner: &mut Keys, map: &Map<String, Value>, outer: &Outer) -> Result<RopeScaling, ConfigError> {
    let max_positions = outer.max_positions;
    let (new, old) = (inner.word("rope_type")?, inner.word("type")?);
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        return Err(inner.contradiction("rope_type", new, "type", old, "they are two names of one key"));
    }
    let scaling = match new.or(old).unwrap_or("default") {
        "default" => RopeScaling::None,
        "dynamic" => read_dynamic(inner)?,
        "linear" => RopeScaling::Linear { factor: inner.real("factor", None, 1e-3, MAX_FACTOR)? },
        "yarn" => read_yarn(inner, max_positions)?,
        "llama3" => read_llama3(inner, max_positions)?,
        "longrope" | "su" => read_long(inner, outer)?,
        _ => {
            let key = if new.is_some() { "rope_type" } else { "type" };
            return Err(
                inner.unsupported(key, "the rope types are default, dynamic, linear, yarn, llama3 and longrope")
            );
        }
    };
    let scaled = !matches!(scaling, RopeScaling::None | RopeScaling::Yarn { .. });
    if scaled && map.get("mscale_all_dim").is_some_and(|mscale| mscale.as_f64() != Some(0.0)) {
        return Err(inner.unsupported("mscale_all_dim", "the softmax scale is corrected with yarn only"));
    }
    Ok(scaling)
}

/// Frequencies change for texts beyond `max_position_embeddings`, and there are none.
fn read_dynamic(inner: &mut Keys) -> Result<RopeScaling, ConfigError> {
    let factor = inner.real("factor", None, 1.0, MAX_FACTOR)?;
    inner.mark(&["original_max_position_embeddings"]);
    let note = format!(
        "config.json: `{}` = {factor} has no effect: with `dynamic` frequencies change for texts beyond \
         `max_position_embeddings`, which are not read",
        inner.path("factor")
    );
    inner.notes.push(Note(note));
    Ok(RopeScaling::None)
}

fn read_yarn(inner: &mut Keys, max_positions: usize) -> Result<RopeScaling, ConfigError> {
    let factor = inner.real("factor", None, 1.0, MAX_FACTOR)?;
    let beta_fast = positive(inner.real("beta_fast", Some(32.0), 0.0, 1e6)?).unwrap_or(32.0);
    let beta_slow = positive(inner.real("beta_slow", Some(1.0), 0.0, 1e6)?).unwrap_or(1.0);
    if beta_fast < beta_slow {
        return Err(inner.contradiction("beta_fast", beta_fast, "beta_slow", beta_slow, "it has to be the larger one"));
    }
    let mscale = positive(inner.real("mscale", Some(0.0), 0.0, 1e3)?);
    let mscale_all_dim = positive(inner.real("mscale_all_dim", Some(0.0), 0.0, 1e3)?);
    let usual = yarn_table_scale(factor, mscale, mscale_all_dim);
    let table_scale = usual * read_attn_factor(inner)?;
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        original_max_positions: inner.size("original_max_position_embeddings", Some(max_positions), 1 << 28)?,
        truncate: inner.flag("truncate", true)?,
        mscale,
        mscale_all_dim,
        table_scale: inner.real("attention_factor", Some(table_scale), 1e-3, 1e3)?,
    })
}

/// What the usual correction of cos and sin is multiplied by: DeepSeek-R1-0528-Qwen3-8B has 1/(0.1·ln 4 + 1), for none.
///
/// vLLM and SGLang read it so; `transformers` and llama.cpp pass it over.
fn read_attn_factor(inner: &mut Keys) -> Result<f64, ConfigError> {
    if !inner.has("attn_factor") {
        inner.mark(&["attn_factor"]);
        return Ok(1.0);
    }
    let factor = inner.real("attn_factor", None, 1e-3, 1e3)?;
    if inner.has("attention_factor") {
        return Err(inner.unsupported("attn_factor", "`attention_factor` beside it says the same thing otherwise"));
    }
    let note = format!(
        "config.json: `{}` = {factor} multiplies cos and sin beside YaRN's own factor, as in vLLM and SGLang; \
         `transformers` and llama.cpp ignore it",
        inner.path("attn_factor")
    );
    inner.notes.push(Note(note));
    Ok(factor)
}

fn read_llama3(inner: &mut Keys, max_positions: usize) -> Result<RopeScaling, ConfigError> {
    let low_freq_factor = inner.real("low_freq_factor", None, 1e-3, 1e6)?;
    let high_freq_factor = inner.real("high_freq_factor", None, 1e-3, 1e6)?;
    if high_freq_factor <= low_freq_factor {
        let why = "it has to be the larger one";
        return Err(inner.contradiction("high_freq_factor", high_freq_factor, "low_freq_factor", low_freq_factor, why));
    }
    Ok(RopeScaling::Llama3 {
        factor: inner.real("factor", None, 1.0, MAX_FACTOR)?,
        low_freq_factor,
        high_freq_factor,
        original_max_positions: inner.size("original_max_position_embeddings", Some(max_positions), 1 << 28)?,
    })
}

fn read_long(inner: &mut Keys, outer: &Outer) -> Result<RopeScaling, ConfigError> {
    let (short, long) = (read_divisors(inner, "short_factor")?, read_divisors(inner, "long_factor")?);
    let original = outer.original.unwrap_or(outer.max_positions);
    let original_max_positions = inner.size("original_max_position_embeddings", Some(original), 1 << 28)?;
    let usual = outer.max_positions as f64 / original_max_positions as f64;
    let factor = inner.real("factor", Some(usual), 1e-6, MAX_FACTOR)?;
    let usual = long_table_scale(factor, original_max_positions);
    let table_scale = inner.real("attention_factor", Some(usual), 1e-3, 1e3)?;
    Ok(RopeScaling::Long { short, long, original_max_positions, table_scale })
}

/// What LongRoPE multiplies cos and sin with where a file does not say it.
pub fn long_table_scale(factor: f64, original_max_positions: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + libm::log(factor) / libm::log(original_max_positions as f64)).sqrt() }
}

fn read_divisors(inner: &mut Keys, key: &'static str) -> Result<Vec<f64>, ConfigError> {
    let list = match inner.get(key) {
        None | Some(Value::Null) => return Err(ConfigError::Missing { key: inner.path(key) }),
        Some(value) => value.as_array().map(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>()),
    };
    match list.flatten() {
        Some(list) if list.iter().all(|divisor| (1e-6..=MAX_FACTOR).contains(divisor)) => Ok(list),
        _ => Err(inner.unsupported(key, "it is a list of numbers from 0.000001 to 1000000")),
    }
}

/// Checks that LongRoPE's lists have a number for each pair of rotary elements.
pub fn check_divisors(keys: &Keys, scaling: &RopeScaling, rope_dim: usize) -> Result<(), ConfigError> {
    let RopeScaling::Long { short, long, .. } = scaling else { return Ok(()) };
    for (key, list) in [("rope_scaling.short_factor", short), ("rope_scaling.long_factor", long)] {
        if list.len() != rope_dim / 2 {
            let (value, why) = (format!("a list of {}", list.len()), "there is a number for each pair that rotates");
            return Err(keys.contradiction(key, value, "the rotary width", rope_dim, why));
        }
    }
    Ok(())
}

/// `transformers` treats a zero like an absent number in these places.
fn positive(number: f64) -> Option<f64> {
    (number > 0.0).then_some(number)
}
