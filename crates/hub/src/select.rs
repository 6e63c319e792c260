//! Which files of a repository make a model.
//!
//! Fetched are safetensors, GGUF, JSON, Jinja, text and Markdown, whatever a repository or its index names. Pickles can
//! run any program when they are read and are never fetched; nor is code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::HubError;
use crate::name::{Pick, is_safe_path};

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its path in the repository.
    pub name: String,
    /// `None` where the hub does not say.
    pub bytes: Option<u64>,
    /// Its hash as hexadecimal digits, where the hub says it in its list of files.
    pub hash: Option<String>,
}

/// What is fetched.
#[derive(Debug)]
pub enum Choice<'a> {
    /// All parts of one GGUF model, in their order. `alone` if there was no other to choose.
    Gguf { quantisation: String, parts: Vec<&'a Entry>, fits: bool, alone: bool },
    /// A directory: text, and one file of weights or an index with others.
    Safetensors { text: Vec<&'a Entry>, index: Option<(&'a Entry, &'a [Entry])>, single: Option<&'a Entry> },
}

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Ends of names of what is read beside weights.
const TEXT_ENDS: [&str; 6] = [".json", ".jinja", ".txt", ".md", "tiktoken.model", ".tiktoken"];
/// Ends of names of weights that are pickles, for the message.
const PICKLE_ENDS: [&str; 5] = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];
/// Quantisations that are read, the best first. Those at the end are only taken where there is no other.
const QUANTISATIONS: [&str; 17] = [
    "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "q3_k_l", "q3_k_m",
    "q3_k_s", "q2_k", "bf16", "f16", "f32",
];

/// Chooses from a repository's files.
///
/// # Errors
/// [`HubError::UnsafePath`], [`HubError::NoFile`], [`HubError::NoQuantisation`], [`HubError::OnlyPickles`],
/// [`HubError::NoWeights`].
pub fn choose<'a>(
    id: &str,
    entries: &'a [Entry],
    pick: Option<&Pick>,
    memory_bytes: Option<u64>,
) -> Result<Choice<'a>, HubError> {
    refuse_unsafe(id, entries)?;
    let models = gguf_models(entries);
    match pick {
        Some(Pick::File(file)) => by_file(id, &models, file),
        Some(Pick::Quantisation(asked)) => by_quantisation(id, models, asked),
        None => match safetensors(entries) {
            Some(choice) => Ok(choice),
            None => best(models, memory_bytes).ok_or_else(|| no_weights(id, entries)),
        },
    }
}

/// Refuses a repository that names a file out of its folder.
///
/// # Errors
/// [`HubError::UnsafePath`].
pub fn refuse_unsafe(id: &str, entries: &[Entry]) -> Result<(), HubError> {
    match entries.iter().find(|entry| !is_safe_path(&entry.name)) {
        Some(entry) => Err(HubError::UnsafePath { id: id.to_owned(), file: entry.name.clone() }),
        None => Ok(()),
    }
}

fn safetensors(entries: &[Entry]) -> Option<Choice<'_>> {
    let find = |name: &str| entries.iter().find(|entry| entry.name == name);
    let (index, single) = (find(INDEX), find(SINGLE));
    find("config.json").filter(|_| index.is_some() || single.is_some())?;
    Some(Choice::Safetensors {
        text: entries.iter().filter(|entry| is_text(entry)).collect(),
        index: index.map(|index| (index, entries)),
        single: single.filter(|_| index.is_none()),
    })
}

/// Whether a file is text that is read beside weights.
pub fn is_text(entry: &Entry) -> bool {
    !entry.name.contains('/') && entry.name != INDEX && TEXT_ENDS.iter().any(|end| entry.name.ends_with(end))
}

/// The entries of the files that the index at `path` names.
///
/// # Errors
/// [`HubError::Index`]; [`HubError::NoFile`] if one is not in the repository.
pub fn shards<'a>(id: &str, path: &Path, entries: &'a [Entry]) -> Result<Vec<&'a Entry>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bad = |problem: String| HubError::Index { id: id.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(HubError::io("read", path))?;
    let index: Index = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    if let Some(other) = names.iter().find(|name| !name.ends_with(".safetensors")) {
        return Err(bad(format!("it names {other:?}, which is no safetensors file")));
    }
    let find = |name: &&str| {
        let none = || HubError::NoFile { id: id.to_owned(), file: (*name).to_owned() };
        entries.iter().find(|entry| entry.name == **name).ok_or_else(none)
    };
    names.iter().map(find).collect()
}

/// A GGUF model: its name without `.gguf` and without the number of a part, and all of its parts.
struct GgufModel<'a> {
    stem: String,
    parts: Vec<&'a Entry>,
}

impl GgufModel<'_> {
    fn bytes(&self) -> u64 {
        self.parts.iter().filter_map(|part| part.bytes).sum()
    }

    /// Whether its name ends in that quantisation.
    fn is(&self, quantisation: &str) -> bool {
        let stem = self.stem.to_ascii_lowercase();
        stem.strip_suffix(quantisation).is_some_and(|rest| rest.is_empty() || rest.ends_with(['-', '.', '_', '/']))
    }

    /// What follows the last `-`, `.` or `/` of its name; `UD-`, by which some publishers mark mixtures of their own,
    /// belongs to it.
    fn quantisation(&self) -> String {
        let last = self.stem.rsplit(['-', '.', '/']).next().unwrap_or_default();
        let before = self.stem.strip_suffix(last).unwrap_or_default();
        if before.ends_with("-UD-") { format!("UD-{last}") } else { last.to_owned() }
    }
}

/// All that are whole, shorter names first.
fn gguf_models(entries: &[Entry]) -> Vec<GgufModel<'_>> {
    let mut parts: BTreeMap<(&str, usize), BTreeMap<usize, &Entry>> = BTreeMap::new();
    for entry in entries {
        let Some(name) = entry.name.strip_suffix(".gguf") else { continue };
        let file = name.rsplit('/').next().unwrap_or(name);
        if !file.starts_with("mmproj") {
            let (stem, number, count) = part(name).unwrap_or((name, 1, 1));
            parts.entry((stem, count)).or_default().insert(number, entry);
        }
    }
    let whole = |(_, count): &(&str, usize), parts: &BTreeMap<usize, &Entry>| parts.keys().copied().eq(1..=*count);
    let mut models: Vec<GgufModel> = parts
        .into_iter()
        .filter(|(key, parts)| whole(key, parts))
        .map(|((stem, _), parts)| GgufModel { stem: stem.to_owned(), parts: parts.into_values().collect() })
        .collect();
    models.sort_by_key(|model| model.stem.len());
    models
}

/// `NAME-00002-of-00009` as NAME, 2, 9.
fn part(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let read = |digits: &str| (digits.len() == 5).then(|| digits.parse().ok()).flatten();
    Some((stem, read(number)?, read(count)?))
}

fn by_file<'a>(id: &str, models: &[GgufModel<'a>], file: &str) -> Result<Choice<'a>, HubError> {
    let model = models.iter().find(|model| model.parts.iter().any(|part| part.name == file));
    let none = || HubError::NoFile { id: id.to_owned(), file: file.to_owned() };
    model.map(|model| taken(model, true, true)).ok_or_else(none)
}

fn by_quantisation<'a>(id: &str, models: Vec<GgufModel<'a>>, asked: &str) -> Result<Choice<'a>, HubError> {
    match models.iter().find(|model| model.is(asked)) {
        Some(model) => Ok(taken(model, true, true)),
        None if models.is_empty() => Err(HubError::NoWeights { id: id.to_owned() }),
        None => Err(HubError::NoQuantisation {
            id: id.to_owned(),
            asked: asked.to_owned(),
            there: models.iter().map(GgufModel::quantisation).collect(),
        }),
    }
}

/// The best quantisation that takes at most half of the memory: the other half is for the cache and for others. If none
/// fits, the smallest: a GGUF file need not fit, at the pace of the disk.
fn best<'a>(models: Vec<GgufModel<'a>>, memory_bytes: Option<u64>) -> Option<Choice<'a>> {
    let known: Vec<&GgufModel> =
        QUANTISATIONS.iter().filter_map(|quantisation| models.iter().find(|model| model.is(quantisation))).collect();
    let fits = |model: &&&GgufModel| memory_bytes.is_none_or(|memory| model.bytes() <= memory / 2);
    let alone = models.len() == 1;
    if let Some(model) = known.iter().find(fits) {
        return Some(taken(model, true, alone));
    }
    let smallest = known.iter().min_by_key(|model| model.bytes()).copied();
    // A name that says nothing of quantisation is no choice, unless it is the only one.
    smallest.or(models.first().filter(|_| alone)).map(|model| taken(model, fits(&&model), alone))
}

fn taken<'a>(model: &GgufModel<'a>, fits: bool, alone: bool) -> Choice<'a> {
    Choice::Gguf { quantisation: model.quantisation(), parts: model.parts.clone(), fits, alone }
}

fn no_weights(id: &str, entries: &[Entry]) -> HubError {
    let is_pickle = |entry: &&Entry| PICKLE_ENDS.iter().any(|end| entry.name.ends_with(end));
    let files: Vec<String> = entries.iter().filter(is_pickle).map(|entry| entry.name.clone()).collect();
    match files.is_empty() || entries.iter().any(|entry| entry.name.ends_with(".gguf")) {
        true => HubError::NoWeights { id: id.to_owned() },
        false => HubError::OnlyPickles { id: id.to_owned(), files },
    }
}
