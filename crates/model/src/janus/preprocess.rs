//! From a picture of any size to what the tower sees, as the checkpoint's `preprocessor_config.json` says: the longer
//! side to the model's, the shorter one in proportion, the rest filled up to a square, values around 0
//! (`image_processing_janus.py` of `transformers` 5.23, with torchvision's resizing).

use serde_json::{Value, json};

use super::picture::Rgb;
use crate::config::{ConfigError, Note};
use crate::config_json::keys::{Keys, abbreviate};

/// Colours of a pixel.
const COLOURS: usize = 3;

/// How pictures become pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessing {
    /// Side of the square, in pixels.
    pub size: usize,
    /// The shorter side is no less.
    pub min_size: usize,
    pub filter: Filter,
    /// Factor on the bytes.
    pub rescale: f32,
    /// Of each colour, subtracted.
    pub mean: [f32; COLOURS],
    /// Of each colour, divided by.
    pub std: [f32; COLOURS],
}

/// The function that neighbours are weighted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// A triangle of one pixel to each side.
    Bilinear,
    /// Keys' cubic with a = −0.5, two pixels to each side.
    Bicubic,
}

impl Filter {
    fn radius(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Filter::Bilinear => (1.0 - x).max(0.0),
            Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Filter::Bicubic => 0.0,
        }
    }
}

impl Preprocessing {
    /// Reads a `preprocessor_config.json`.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key: one that is missing, out of range, or says what is not implemented.
    pub fn from_hf_json(text: &str) -> Result<(Preprocessing, Vec<Note>), ConfigError> {
        let json: Value = serde_json::from_str(text)?;
        let map = json.as_object().ok_or(ConfigError::NotAnObject { found: "something else" })?;
        let mut keys = Keys::new(map, "preprocessor: ");
        for key in ["do_resize", "do_rescale", "do_normalize", "do_pad"] {
            if !keys.flag(key, true)? {
                return Err(keys.unsupported(key, "the tower was trained on pictures so prepared"));
            }
        }
        let filter = match keys.integer("resample", Some(3), 0, 5)? {
            2 => Filter::Bilinear,
            3 => Filter::Bicubic,
            _ => return Err(keys.unsupported("resample", "2 (bilinear) and 3 (bicubic) are implemented")),
        };
        let size = read_size(&mut keys)?;
        let preprocessing = Preprocessing {
            size,
            min_size: keys.size("min_size", Some(size.min(14)), size)?,
            filter,
            rescale: keys.real("rescale_factor", Some(1.0 / 255.0), 1e-6, 1.0)? as f32,
            // OpenAI's CLIP.
            mean: read_colours(&mut keys, "image_mean", [0.481_454_66, 0.457_827_5, 0.408_210_73])?,
            std: read_colours(&mut keys, "image_std", [0.268_629_54, 0.261_302_6, 0.275_777_1])?,
        };
        if preprocessing.std.iter().any(|std| *std <= 0.0) {
            return Err(keys.unsupported("image_std", "values are divided by it"));
        }
        // What is filled up with follows from the mean, whatever the file says.
        keys.mark(&[
            "background_color",
            "do_convert_rgb",
            "image_processor_type",
            "processor_class",
            "image_seq_length",
        ]);
        keys.mark(&["data_format", "input_data_format", "return_tensors", "device", "model_input_names"]);
        let mut notes = Vec::new();
        for key in keys.unread().into_iter().filter(|key| !map[*key].is_null()) {
            let value = abbreviate(&map[key]);
            notes.push(Note(format!("preprocessor_config.json: unknown key `{key}` = {value} is ignored")));
        }
        Ok((preprocessing, notes))
    }

    /// What [`Preprocessing::hf_json`] says.
    pub fn to_unit(size: usize) -> Preprocessing {
        let half = [0.5; COLOURS];
        let rescale = (1.0 / 255.0) as f32;
        Preprocessing { size, min_size: size.min(14), filter: Filter::Bicubic, rescale, mean: half, std: half }
    }

    /// The `preprocessor_config.json` of a model that sees pictures of `size` pixels a side as values from −1 to 1.
    pub fn hf_json(size: usize) -> String {
        let half = [0.5; COLOURS];
        let json = json!({
            "image_processor_type": "JanusImageProcessor", "processor_class": "JanusProcessor",
            "do_resize": true, "size": {"height": size, "width": size}, "min_size": size.min(14), "resample": 3,
            "do_pad": true, "background_color": [127, 127, 127],
            "do_rescale": true, "rescale_factor": 1.0 / 255.0,
            "do_normalize": true, "image_mean": half, "image_std": half,
        });
        format!("{json:#}\n")
    }

    /// The pixels `[3, size, size]` of a picture.
    pub fn pixels(&self, picture: &Rgb) -> Vec<f32> {
        let (width, height) = self.resized(picture.width, picture.height);
        let bytes = resize(picture, width, height, self.filter);
        let (left, top) = ((self.size - width) / 2, (self.size - height) / 2);
        let mut pixels = Vec::with_capacity(COLOURS * self.size * self.size);
        for colour in 0..COLOURS {
            let filling = (f64::from(self.mean[colour]) * 255.0) as u8;
            for place in 0..self.size * self.size {
                let (row, column) = ((place / self.size).wrapping_sub(top), (place % self.size).wrapping_sub(left));
                let within = row < height && column < width;
                let byte = if within { bytes[(row * width + column) * COLOURS + colour] } else { filling };
                pixels.push((f32::from(byte) * self.rescale - self.mean[colour]) / self.std[colour]);
            }
        }
        pixels
    }

    /// Width and height with the longer one at full size.
    fn resized(&self, width: usize, height: usize) -> (usize, usize) {
        let delta = self.size as f64 / width.max(height) as f64;
        let side = |side: usize| ((side as f64 * delta).round_ties_even() as usize).clamp(self.min_size, self.size);
        (side(width), side(height))
    }
}

/// Both sides, which are equal.
fn read_size(keys: &mut Keys) -> Result<usize, ConfigError> {
    const KEY: &str = "size";
    let side = |value: &Value, name: &str| value[name].as_u64().filter(|side| (1..=4096).contains(side));
    match keys.get(KEY) {
        None | Some(Value::Null) => Ok(384),
        Some(value) => match (side(value, "height"), side(value, "width")) {
            (Some(height), Some(width)) if height == width => Ok(height as usize),
            _ => Err(keys.wrong_type(KEY, value, "equal `height` and `width` of 1 to 4096")),
        },
    }
}

fn read_colours(keys: &mut Keys, key: &'static str, default: [f32; COLOURS]) -> Result<[f32; COLOURS], ConfigError> {
    let number = |value: &Value| value.as_f64().filter(|x| (0.0..=1.0).contains(x)).map(|x| x as f32);
    match keys.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => {
            let numbers = value.as_array().map(|list| list.iter().map(number).collect::<Option<Vec<f32>>>());
            let colours = numbers.flatten().and_then(|list| list.try_into().ok());
            colours.ok_or_else(|| keys.wrong_type(key, value, "three numbers from 0 to 1"))
        }
    }
}

/// Where a resized line reads, and by which weights.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

/// Of each of `to` places in a line of `from`: the filter widened by the ratio where that is more than 1, its weights
/// made to add up to 1, as PyTorch's `interpolate(antialias=True)`.
fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    let ratio = from as f64 / to as f64;
    let widening = ratio.max(1.0);
    let support = filter.radius() * widening;
    let of_place = |place: usize| {
        let centre = ratio * (place as f64 + 0.5);
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights = (first..end).map(|i| filter.weight((i as f64 - centre + 0.5) / widening));
        let weights: Vec<f64> = weights.collect();
        let sum: f64 = weights.iter().sum();
        Taps { first, weights: weights.iter().map(|weight| (weight / sum) as f32).collect() }
    };
    (0..to).map(of_place).collect()
}

/// The bytes `[height, width, 3]`: first along the lines, then across them, rounded once.
fn resize(picture: &Rgb, width: usize, height: usize, filter: Filter) -> Vec<u8> {
    if (width, height) == (picture.width, picture.height) {
        return picture.bytes.clone();
    }
    let across = taps(picture.width, width, filter);
    let lines = picture.bytes.chunks_exact(picture.width * COLOURS);
    let along = |line: &[u8]| -> Vec<f32> {
        let value = |i: usize| {
            let Taps { first, weights } = &across[i / COLOURS];
            let bytes = line[first * COLOURS + i % COLOURS..].iter().step_by(COLOURS);
            weights.iter().zip(bytes).fold(0.0f32, |sum, (weight, byte)| f32::from(*byte).mul_add(*weight, sum))
        };
        (0..width * COLOURS).map(value).collect()
    };
    let lines: Vec<Vec<f32>> = lines.map(along).collect();
    let mut bytes = Vec::with_capacity(width * height * COLOURS);
    for Taps { first, weights } in taps(picture.height, height, filter) {
        bytes.extend((0..width * COLOURS).map(|i| {
            let lines = lines[first..].iter();
            let value = weights.iter().zip(lines).fold(0.0f32, |sum, (weight, line)| line[i].mul_add(*weight, sum));
            // Saturates; ties to even as in PyTorch.
            value.round_ties_even() as u8
        }));
    }
    bytes
}
