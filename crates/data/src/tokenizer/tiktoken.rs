//! Vocabularies of tiktoken: a file of lines, each with a token's bytes in base64 and its rank, which is its id.
//!
//! tiktoken cuts a text by a regular expression, takes a word that is a token as it is, and else joins, again and
//! again, the two neighbours whose bytes together have the lowest rank, of equals the leftmost. As a `tokenizer.json`
//! says it: all ways in which two tokens make a third, by the third's rank. Of several ways to make one token those of
//! lower ranks come first, as in `transformers` (`TikTokenConverter`).
//!
//! The expression is not in the file, and where it is depends on the model: the code beside it has it, which is not
//! run. So it goes by the class that `tokenizer_config.json` names, or by its key `pat_str`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::presplit::{KIMI, QWEN2, Splitting};
use super::{TOKEN_ID_MAX, Tokenizer, TokenizerError, bpe};

/// Kimi's name of the file; others have the extension `tiktoken`.
const FILE: &str = "tiktoken.model";

/// What a class of tokenizers has besides ranks.
struct Class {
    name: &'static str,
    expression: &'static str,
    /// Text is brought to Unicode's form NFC first.
    nfc: bool,
    /// The special tokens behind the ranks; the configuration's `added_tokens_decoder` may name others in their place.
    special: fn(first: u64) -> Vec<String>,
}

const CLASSES: [Class; 2] = [
    Class { name: "TikTokenTokenizer", expression: KIMI, nfc: false, special: kimi_special },
    Class { name: "QWenTokenizer", expression: QWEN2, nfc: true, special: |_| qwen_special() },
];

/// 256 reserved ones. (The published code names two more, for which its models have no rows.)
fn kimi_special(first: u64) -> Vec<String> {
    (first..first + 256).map(|id| format!("<|reserved_token_{id}|>")).collect()
}

fn qwen_special() -> Vec<String> {
    let named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned).into_iter();
    named.chain((0..205).map(|i| format!("<|extra_{i}|>"))).collect()
}

/// The ranks of a directory that has no `tokenizer.json`: `tiktoken.model`, or the only file that ends in `.tiktoken`.
pub(super) fn alone_in(dir: &Path) -> Option<PathBuf> {
    if dir.join("tokenizer.json").exists() {
        return None;
    }
    let named = dir.join(FILE);
    if named.is_file() {
        return Some(named);
    }
    let entries = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut found = entries.filter(|path| is_ranks(path) && path.is_file());
    found.next().filter(|_| found.next().is_none())
}

/// Whether a file is one of ranks, by its name.
pub(super) fn is_ranks(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == FILE) || path.extension().is_some_and(|end| end == "tiktoken")
}

/// A tokenizer from ranks, and the `tokenizer_config.json` beside them.
///
/// # Errors
/// [`TokenizerError::Tiktoken`]: damaged ranks, or no expression is known.
pub(super) fn load(bytes: &[u8], config: Option<&[u8]>) -> Result<Tokenizer, TokenizerError> {
    let ranks = parse(bytes)?;
    let said: Value = match config {
        Some(config) => serde_json::from_slice(config)
            .map_err(|error| TokenizerError::InvalidConfig { reason: error.to_string() })?,
        None => json!({}),
    };
    let class = said["tokenizer_class"].as_str().and_then(|name| CLASSES.iter().find(|class| class.name == name));
    let expression = said["pat_str"].as_str().or(class.map(|class| class.expression)).ok_or_else(|| {
        let known = CLASSES.map(|class| class.name).join(", ");
        let reason = format!("tokenizer_config.json has no `pat_str`, and no `tokenizer_class` that is known: {known}");
        TokenizerError::Tiktoken { reason }
    })?;
    let nfc = class.is_some_and(|class| class.nfc);
    let cutting = Splitting { expressions: vec![expression.to_owned()], nfc, whole_words: true };
    let special = special_tokens(&ranks, class, &said)?;
    Tokenizer::from_json(tokenizer_json(&ranks, &cutting, &special)?.to_string().as_bytes(), config)
}

/// Tokens by rank; no rank is missing.
fn parse(bytes: &[u8]) -> Result<Vec<Vec<u8>>, TokenizerError> {
    let mut ranks: HashMap<u64, Vec<u8>> = HashMap::new();
    for (i, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let bad = |why: &str| damaged(format!("line {}: {why}", i + 1));
        let (token, rank) = line
            .iter()
            .position(|byte| *byte == b' ')
            .map(|at| (&line[..at], &line[at + 1..]))
            .ok_or_else(|| bad("it is not a token and its rank"))?;
        let token = STANDARD.decode(token).map_err(|_| bad("the token is not base64"))?;
        let rank = std::str::from_utf8(rank).ok().and_then(|rank| rank.trim().parse().ok());
        let rank = rank.filter(|rank| *rank <= TOKEN_ID_MAX).ok_or_else(|| bad("the rank is no id"))?;
        if token.is_empty() {
            return Err(bad("the token is empty"));
        }
        if ranks.insert(rank, token).is_some() {
            return Err(bad("an earlier line has this rank"));
        }
    }
    let list: Option<Vec<_>> = (0..ranks.len() as u64).map(|rank| ranks.remove(&rank)).collect();
    let list = list.ok_or_else(|| damaged("a rank between others is missing".to_owned()))?;
    match (0..=255).find(|byte| !list.iter().any(|token| token[..] == [*byte])) {
        Some(byte) => Err(damaged(format!("there is no token for the byte {byte:#04x}"))),
        None => Ok(list),
    }
}

/// Ids and strings of special tokens, and whether decoding may skip them.
type Special = Vec<(u64, String, bool)>;

fn special_tokens(ranks: &[Vec<u8>], class: Option<&Class>, config: &Value) -> Result<Special, TokenizerError> {
    let first = ranks.len() as u64;
    let reserved = class.map_or_else(Vec::new, |class| (class.special)(first));
    let reserved = reserved.into_iter().map(|token| (token, true));
    let mut found: BTreeMap<u64, (String, bool)> = (first..).zip(reserved).collect();
    if let Some(named) = config["added_tokens_decoder"].as_object() {
        for (id, token) in named {
            let bad = || damaged(format!("`added_tokens_decoder` has no text for an id behind the ranks at `{id}`"));
            let id: u64 = id.parse().ok().filter(|id| (first..=TOKEN_ID_MAX).contains(id)).ok_or_else(bad)?;
            let text = token["content"].as_str().ok_or_else(bad)?.to_owned();
            found.insert(id, (text, token["special"].as_bool().unwrap_or(true)));
        }
    }
    let mut texts = HashSet::new();
    if let Some((text, _)) = found.values().find(|(text, _)| !texts.insert(text)) {
        return Err(damaged(format!("two special tokens are `{text}`")));
    }
    Ok(found.into_iter().map(|(id, (text, special))| (id, text, special)).collect())
}

fn tokenizer_json(ranks: &[Vec<u8>], cutting: &Splitting, special: &Special) -> Result<Value, TokenizerError> {
    let chars = bpe::char_of_byte();
    let spell = |bytes: &[u8]| bytes.iter().map(|&byte| chars[byte as usize]).collect::<String>();
    let vocab: Map<String, Value> = ranks.iter().enumerate().map(|(id, token)| (spell(token), json!(id))).collect();
    if vocab.len() < ranks.len() {
        return Err(damaged("two ranks have one token".to_owned()));
    }
    let added: Vec<Value> = special
        .iter()
        .map(|(id, token, special)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            })
        })
        .collect();
    let merges: Vec<[String; 2]> = merges(ranks).into_iter().map(|way| way.map(spell)).collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": if cutting.nfc { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": cutting.to_json(),
        "post_processor": null,
        "decoder": bpe::byte_level_step(),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": cutting.whole_words,
            "vocab": vocab,
            "merges": merges,
        },
    }))
}

/// All ways in which two tokens make a third, by the third's rank, then by theirs.
fn merges(ranks: &[Vec<u8>]) -> Vec<[&[u8]; 2]> {
    let rank_of: HashMap<&[u8], usize> = ranks.iter().enumerate().map(|(rank, token)| (&token[..], rank)).collect();
    let mut merges = Vec::with_capacity(ranks.len());
    for token in ranks {
        let halves = (1..token.len()).map(|at| token.split_at(at));
        let mut ways: Vec<_> =
            halves.filter_map(|(l, r)| Some(((*rank_of.get(l)?, *rank_of.get(r)?), [l, r]))).collect();
        ways.sort_by_key(|(ranks, _)| *ranks);
        merges.extend(ways.into_iter().map(|(_, way)| way));
    }
    merges
}

fn damaged(reason: String) -> TokenizerError {
    TokenizerError::Tiktoken { reason }
}
