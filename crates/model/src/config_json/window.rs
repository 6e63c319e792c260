//! Attention over a sliding window in a `config.json`.
//!
//! A window that reaches over the whole context is none. `transformers` 5 names the kind of each layer in
//! `layer_types`; before, families had rules of their own, see `WindowKeys`.

use serde_json::Value;

use super::foreign::{WIDTH_AGAIN, covers};
use super::keys::Keys;
use crate::config::{ConfigError, Window};
use crate::family::WindowKeys;

/// The width where the key is absent, in families that have none of their own.
const DEFAULT: usize = 4096;

const MAX: usize = 1 << 28;

/// Which layers have a window, if any has.
pub fn read(
    keys: &mut Keys,
    described: WindowKeys,
    layers: usize,
    max_positions: usize,
) -> Result<Option<Window>, ConfigError> {
    if described == WindowKeys::Compressed {
        return Ok(None);
    }
    if matches!(described, WindowKeys::Every { .. }) {
        let (width, again) = (keys.get("sliding_window"), keys.get(WIDTH_AGAIN));
        if again.is_some_and(|again| !again.is_null() && Some(again) != width) {
            return Err(keys.unsupported(WIDTH_AGAIN, "it is not `sliding_window`"));
        }
    }
    let used = keys.flag("use_sliding_window", false)?;
    let first = keys.integer("max_window_layers", Some(28), 0, usize::MAX >> 1)?;
    let (width, full) = (read_width(keys, described, max_positions)?, every(keys, described)?);
    let named = used || matches!(described, WindowKeys::Every { .. });
    let types = read_types(keys, described, named.then_some(width).flatten(), layers, max_positions)?;
    let Some(width) = width else { return Ok(None) };
    let slide = match described {
        WindowKeys::None | WindowKeys::Indexed if used || !keys.has("use_sliding_window") => {
            return Err(keys.unsupported("sliding_window", "this family attends to the whole context"));
        }
        WindowKeys::All | WindowKeys::AllIfSaid => vec![true; layers],
        WindowKeys::SwitchedAll if used => vec![true; layers],
        WindowKeys::Switched if used => types.unwrap_or_else(|| (0..layers).map(|layer| layer >= first).collect()),
        WindowKeys::Every { .. } => types.unwrap_or_else(|| alternating(full, layers)),
        _ => return Ok(None),
    };
    Ok(slide.contains(&true).then_some(Window { width, layers: slide }))
}

/// Which layers have the window of a family in which not all have, whatever it holds.
pub fn sliding(keys: &mut Keys, described: WindowKeys, layers: usize) -> Result<Vec<bool>, ConfigError> {
    let full = every(keys, described)?;
    let named = keys.get("layer_types").and_then(Value::as_array).filter(|list| list.len() == layers);
    let named = named.map(|list| list.iter().map(|word| word.as_str() == Some("sliding_attention")).collect());
    Ok(named.unwrap_or_else(|| alternating(full, layers)))
}

/// Every how manieth layer has none.
fn every(keys: &mut Keys, described: WindowKeys) -> Result<usize, ConfigError> {
    match described {
        WindowKeys::Every { full, key: Some(key), .. } => keys.size(key, Some(full), MAX),
        WindowKeys::Every { full, .. } => Ok(full),
        _ => Ok(usize::MAX),
    }
}

fn alternating(full: usize, layers: usize) -> Vec<bool> {
    (0..layers).map(|layer| (layer + 1) % full != 0).collect()
}

/// The width, if it is less than the context.
fn read_width(keys: &mut Keys, described: WindowKeys, max_positions: usize) -> Result<Option<usize>, ConfigError> {
    let width = match keys.get("sliding_window") {
        None if matches!(described, WindowKeys::None | WindowKeys::Indexed | WindowKeys::AllIfSaid) => return Ok(None),
        None => match described {
            WindowKeys::Every { width, .. } => width,
            _ => DEFAULT,
        },
        Some(value) if covers(value, max_positions) => return Ok(None),
        Some(_) => keys.size("sliding_window", None, MAX)?,
    };
    Ok((width < max_positions).then_some(width))
}

/// Which layers slide by `layer_types`; `width` is that of layers that do.
fn read_types(
    keys: &mut Keys,
    described: WindowKeys,
    width: Option<usize>,
    layers: usize,
    max_positions: usize,
) -> Result<Option<Vec<bool>>, ConfigError> {
    let reaches = |width: Option<&Value>| width.and_then(Value::as_u64).is_some_and(|it| it >= max_positions as u64);
    let (window, chunk) = (keys.get("sliding_window"), keys.get("attention_chunk_size"));
    let Some(types) = keys.get("layer_types").filter(|types| !types.is_null()) else { return Ok(None) };
    let any = matches!(described, WindowKeys::Switched | WindowKeys::Every { .. });
    // A type without its width is none that can be judged.
    let slides = |word: &Value| match word.as_str() {
        Some("indexed_attention") => (described == WindowKeys::Indexed).then_some(false),
        Some("full_attention") => (described != WindowKeys::Indexed).then_some(false),
        Some("sliding_attention") if reaches(window) => Some(false),
        Some("sliding_attention") if any && width.is_some() => Some(true),
        Some("chunked_attention") if reaches(chunk) => Some(false),
        _ => None,
    };
    let slide: Option<Vec<bool>> = types.as_array().and_then(|list| list.iter().map(slides).collect());
    match slide {
        Some(slide) if slide.contains(&true) && slide.len() != layers => {
            Err(keys.contradiction("num_hidden_layers", layers, "layer_types", slide.len(), "each layer has one type"))
        }
        Some(slide) => Ok(Some(slide)),
        None if matches!(described, WindowKeys::Every { .. }) => {
            Err(keys.unsupported("layer_types", "layers have `full_attention` or `sliding_attention`"))
        }
        None if described == WindowKeys::Switched => {
            let why = "layers have `full_attention`, or with `use_sliding_window` `sliding_attention`";
            Err(keys.unsupported("layer_types", why))
        }
        None if described == WindowKeys::Indexed => {
            Err(keys.unsupported("layer_types", "every layer has to have `indexed_attention`"))
        }
        None => Err(keys.unsupported("layer_types", "every layer has to have `full_attention`")),
    }
}
