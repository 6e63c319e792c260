//! How GGUF files name the cutting of a text into words, `tokenizer.ggml.pre`, and what the names stand for.
//!
//! The expressions are those of the `tokenizer.json` from which the files were made, not llama.cpp's adaptations of
//! them; where llama.cpp has no original (`default`), its own. Source: llama.cpp's `src/llama-vocab.cpp` and the
//! tokenizers of the models that `conversion/base.py` names.

use serde_json::{Value, json};

use super::bpe;

/// What a name stands for.
pub(super) struct Splitting {
    /// Each keeps its matches, and the gaps between them, as pieces of their own, one expression within the pieces of
    /// the one before.
    pub expressions: Vec<String>,
    /// Text is brought to Unicode's form NFC first.
    pub nfc: bool,
    /// A word that is a token is one, whatever the merges say.
    pub whole_words: bool,
}

/// The cutting of GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const DIGIT: &str = r"\p{N}";

const CHINESE_AND_KOREAN: &str = "[一-龥\u{800}-一가-\u{d7ff}]+";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// o200k, of GPT-4o and gpt-oss.
const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Kimi's cutting (`tokenization_kimi.py`): that of o200k, with Chinese characters for themselves.
pub(super) const KIMI: &str = concat!(
    r"[\p{Han}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Alphabets with upper and lower case, in DeepSeek's first tokenizer.
const CASED: &[&str] = &[
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-\u{293}\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}",
    "\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}",
    "\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}",
    "\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}",
    "\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}",
    "\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}",
    "\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}",
    "\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}",
    "\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}",
    "\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}",
    "\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}",
    "\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}",
    "\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}",
];

/// Names by which files call a cutting, the one that is written first.
type Named = (&'static [&'static str], fn() -> Splitting);

const NAMES: [Named; 10] = [
    (&["deepseek-v3"], || plain(bpe::SPLITS.to_vec())),
    (&["deepseek-llm"], deepseek_llm),
    (&["deepseek-coder"], || plain(vec!["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CHINESE_AND_KOREAN, DIGIT])),
    (&["qwen2", "deepseek-r1-qwen", "megrez"], || Splitting { nfc: true, ..plain(vec![QWEN2]) }),
    (&["llama-bpe", "llama3", "llama-v3"], || Splitting { whole_words: true, ..plain(vec![LLAMA3]) }),
    (&["gpt-4o", "llama4"], || plain(vec![O200K])),
    (&["kimi-k2"], || Splitting { whole_words: true, ..plain(vec![KIMI]) }),
    (&["smollm", "starcoder", "refact", "command-r", "codeshell"], || plain(vec![DIGIT, GPT2])),
    (&["gpt-2", "phi-2", "olmo", "mpt"], || plain(vec![GPT2])),
    (&["default"], || plain(vec![r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"])),
];

fn plain(expressions: Vec<&str>) -> Splitting {
    let expressions = expressions.into_iter().map(str::to_owned).collect();
    Splitting { expressions, nfc: false, whole_words: false }
}

fn deepseek_llm() -> Splitting {
    let cased = format!(r"\s?[{}]+", CASED.concat());
    let marks = "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+";
    plain(vec!["[\r\n]", &cased, marks, r"\s+$", CHINESE_AND_KOREAN, DIGIT])
}

/// What `name` stands for, if it is known.
pub(super) fn named(name: &str) -> Option<Splitting> {
    NAMES.iter().find(|(names, _)| names.contains(&name)).map(|(_, splitting)| splitting())
}

/// All names, for a message.
pub(super) fn names() -> String {
    NAMES.iter().flat_map(|(names, _)| names.iter().copied()).collect::<Vec<_>>().join(", ")
}

impl Splitting {
    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub fn to_json(&self) -> Value {
        let mut steps: Vec<Value> = self.expressions.iter().map(|expression| bpe::split_step(expression)).collect();
        steps.push(bpe::byte_level_step());
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

/// The name of the cutting that a `tokenizer.json` describes, if there is one.
pub(super) fn name_of(file: &Value) -> Option<&'static str> {
    let expressions = expressions(&file["pre_tokenizer"])?;
    let nfc = match file["normalizer"]["type"].as_str() {
        None => false,
        Some("NFC") => true,
        Some("Sequence") if file["normalizer"]["normalizers"].as_array().is_some_and(Vec::is_empty) => false,
        Some(_) => return None,
    };
    let whole_words = file["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let same = |splitting: Splitting| {
        let cuts = splitting.expressions.iter().map(|e| spelled_out(e)).eq(expressions.iter().map(|e| spelled_out(e)));
        cuts && splitting.nfc == nfc && splitting.whole_words == whole_words
    };
    NAMES.iter().find(|(_, splitting)| same(splitting())).map(|(names, _)| names[0])
}

/// Some files have the characters of a line's end in an expression, some their names.
fn spelled_out(expression: &str) -> String {
    expression.replace('\r', r"\r").replace('\n', r"\n")
}

/// The expressions of a pre-tokenizer that only cuts and maps bytes.
fn expressions(step: &Value) -> Option<Vec<String>> {
    match step["type"].as_str()? {
        "Sequence" => {
            let steps = step["pretokenizers"].as_array()?;
            let (last, before) = steps.split_last()?;
            let mut found = Vec::new();
            for step in before {
                match step["type"].as_str()? {
                    "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
                        found.push(step["pattern"]["Regex"].as_str()?.to_owned());
                    }
                    "Digits" if step["individual_digits"] == true => found.push(DIGIT.to_owned()),
                    _ => return None,
                }
            }
            found.extend(expressions(last)?);
            Some(found)
        }
        "ByteLevel" if step["add_prefix_space"] == false => {
            let cuts = step["use_regex"].as_bool().unwrap_or(true);
            Some(if cuts { vec![GPT2.to_owned()] } else { Vec::new() })
        }
        _ => None,
    }
}
