//! Ranks of tiktoken against tiktoken: `scripts/oracle/make_tiktoken.py`.

use serde_json::{Value, json};
use std::path::Path;
use wels_data::Tokenizer;
use wels_data::tokenizer::{GgufVocabulary, TokenizerError};

const KIMI: (&[u8], &str) =
    (include_bytes!("../oracle/tiktoken/kimi.tiktoken"), include_str!("../oracle/tiktoken/kimi.json"));
const QWEN: (&[u8], &str) =
    (include_bytes!("../oracle/tiktoken/qwen.tiktoken"), include_str!("../oracle/tiktoken/qwen.json"));

/// As Kimi K2 is published, but for the number of ranks.
fn kimi_config(ranks: usize) -> Value {
    let token = |text: &str| json!({"content": text, "special": true});
    json!({
        "tokenizer_class": "TikTokenTokenizer",
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "added_tokens_decoder": {
            (ranks.to_string()): token("[BOS]"),
            ((ranks + 1).to_string()): token("[EOS]"),
            ((ranks + 2).to_string()): token("<|im_end|>"),
            ((ranks + 11).to_string()): {"content": "<|tool_calls_section_begin|>", "special": false},
        },
    })
}

fn write(dir: &Path, name: &str, ranks: &[u8], config: Option<&Value>) {
    std::fs::write(dir.join(name), ranks).unwrap();
    if let Some(config) = config {
        std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    }
}

fn load(name: &str, ranks: &[u8], config: Option<&Value>) -> Result<Tokenizer, TokenizerError> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), name, ranks, config);
    Tokenizer::load(dir.path())
}

fn count(ranks: &[u8]) -> usize {
    ranks.iter().filter(|byte| **byte == b'\n').count()
}

fn check(tokenizer: &Tokenizer, oracle: &str, decodes: impl Fn(&str) -> bool) {
    let oracle: Value = serde_json::from_str(oracle).unwrap();
    let cases = oracle["texts"].as_array().unwrap();
    assert!(cases.len() > 300);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokenizer.encode_ordinary(text).unwrap(), ids, "{text:?}");
        if decodes(text) {
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}

#[test]
fn ids_of_kimi_are_those_of_tiktoken() {
    let (ranks, oracle) = KIMI;
    let first = count(ranks);
    let tokenizer = load("tiktoken.model", ranks, Some(&kimi_config(first))).unwrap();
    check(&tokenizer, oracle, |_| true);
    let first = first as u32;
    assert_eq!((tokenizer.special().bos, tokenizer.special().eos), (Some(first), Some(first + 1)));
    assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), [first + 2]);
    assert_eq!(tokenizer.id(&format!("<|reserved_token_{}|>", first + 3)), Some(first + 3));
    assert_eq!(tokenizer.vocab_size(), first as usize + 256);
    assert_eq!(tokenizer.encode_ordinary("[EOS]").unwrap().iter().max().copied().filter(|id| *id >= first), None);
}

#[test]
fn ids_of_qwen_are_those_of_tiktoken() {
    let (ranks, oracle) = QWEN;
    let config = json!({"tokenizer_class": "QWenTokenizer"});
    let tokenizer = load("qwen.tiktoken", ranks, Some(&config)).unwrap();
    // Qwen's own class brings texts to form NFC before tiktoken sees them.
    let composed = |text: &str| !text.contains(['\u{301}', '\u{30a}', '\u{323}', '\u{212b}']);
    let oracle: Value = serde_json::from_str(oracle).unwrap();
    let cases = oracle["texts"].as_array().unwrap().iter();
    let cases: Vec<&Value> = cases.filter(|case| composed(case["text"].as_str().unwrap())).collect();
    check(&tokenizer, &json!({"texts": cases}).to_string(), |_| true);
    let first = count(ranks) as u32;
    assert_eq!(tokenizer.encode("<|im_start|><|extra_204|>").unwrap(), [first + 1, first + 207]);
    assert_eq!(tokenizer.encode("A\u{30a}").unwrap(), tokenizer.encode("\u{c5}").unwrap());
}

#[test]
fn an_expression_may_stand_in_the_configuration() {
    let (ranks, oracle) = QWEN;
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let tokenizer = load("any.tiktoken", ranks, Some(&json!({"pat_str": pattern}))).unwrap();
    check(&tokenizer, oracle, |_| true);
    assert_eq!(tokenizer.vocab_size(), count(ranks));
}

/// What is saved is a `tokenizer.json` with the same ids.
#[test]
fn saved_it_is_a_tokenizer_json() {
    let (ranks, oracle) = KIMI;
    let tokenizer = load("tiktoken.model", ranks, Some(&kimi_config(count(ranks)))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path(), 4096).unwrap();
    let again = Tokenizer::load(dir.path()).unwrap();
    check(&again, oracle, |_| true);
    assert_eq!(again.sha256(), tokenizer.sha256());
}

/// In GGUF it has the name that llama.cpp knows.
#[test]
fn kimi_goes_to_gguf_and_back() {
    let (ranks, oracle) = KIMI;
    let tokenizer = load("tiktoken.model", ranks, Some(&kimi_config(count(ranks)))).unwrap();
    let vocabulary = tokenizer.to_gguf(count(ranks) + 256).unwrap();
    assert_eq!(vocabulary.pre.as_deref(), Some("kimi-k2"));
    check(&Tokenizer::from_gguf(&vocabulary).unwrap(), oracle, |_| true);
    let without = GgufVocabulary { merges: vec![], ..vocabulary };
    let error = Tokenizer::from_gguf(&without).unwrap_err().to_string();
    assert!(error.contains("it has tokens of several bytes and no merges"), "{error}");
}

#[test]
fn damaged_ranks_are_refused() {
    let (ranks, _) = QWEN;
    let text = std::str::from_utf8(ranks).unwrap();
    let config = json!({"tokenizer_class": "QWenTokenizer"});
    let refused = |ranks: &str, config: Option<&Value>| match load("qwen.tiktoken", ranks.as_bytes(), config) {
        Err(error) => error.to_string(),
        Ok(tokenizer) => panic!("{tokenizer:?}"),
    };
    let without_first: String = text.split_inclusive('\n').skip(1).collect();
    for (damaged, said) in [
        (format!("{text}no-rank\n"), "it is not a token and its rank"),
        (format!("{text}!!! 900\n"), "the token is not base64"),
        (format!("{text}YQ== x\n"), "the rank is no id"),
        (format!("{text}YWJjZGVm 3\n"), "an earlier line has this rank"),
        (format!("{text}YWJjZGVmZ2g= 1000\n"), "a rank between others is missing"),
        (format!("{text} 900\n"), "the token is empty"),
        (format!("{text}YQ== 900\n"), "two ranks have one token"),
        (without_first, "a rank between others is missing"),
        ("YQ== 0\n".to_owned(), "there is no token for the byte 0x00"),
    ] {
        let found = refused(&damaged, Some(&config));
        assert!(found.contains(said), "{found} for {said}");
    }
    let found = refused(text, None);
    assert!(found.contains("no `pat_str`") && found.contains("TikTokenTokenizer, QWenTokenizer"), "{found}");
    let named = json!({"tokenizer_class": "QWenTokenizer", "added_tokens_decoder": {"5": {"content": "x"}}});
    let found = refused(text, Some(&named));
    assert!(found.contains("`5`"), "{found}");
}
