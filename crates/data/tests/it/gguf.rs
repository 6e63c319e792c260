//! Vocabularies to GGUF and back.

use serde_json::Value;
use wels_data::Tokenizer;
use wels_data::tokenizer::{GgufVocabulary, TokenKind, TokenizerError};

/// The vocabularies of `tests/oracle`, and texts.
fn oracle() -> Vec<(String, Tokenizer, Vec<String>)> {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../oracle/tokenizers.json")).unwrap();
    let case = |case: &Value| {
        let config = br#"{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}"#;
        let tokenizer = Tokenizer::from_json(case["tokenizer"].as_str().unwrap().as_bytes(), Some(config)).unwrap();
        let texts = case["texts"].as_array().unwrap().iter().map(|text| text["text"].as_str().unwrap().to_owned());
        (case["name"].as_str().unwrap().to_owned(), tokenizer, texts.collect())
    };
    cases.iter().map(case).collect()
}

#[test]
fn what_is_written_reads_back_to_the_same_ids() {
    let names = [("deepseek_v3", "deepseek-v3"), ("qwen2", "qwen2"), ("llama3", "llama-bpe"), ("smollm2", "smollm")];
    let mut seen = 0;
    for (name, tokenizer, texts) in oracle() {
        let Some((_, pre)) = names.iter().find(|(family, _)| *family == name) else { continue };
        seen += 1;
        let vocabulary = tokenizer.to_gguf(tokenizer.vocab_size() + 3).unwrap();
        assert_eq!(vocabulary.pre.as_deref(), Some(*pre));
        assert_eq!(vocabulary.tokens.len(), tokenizer.vocab_size() + 3);
        assert_eq!(vocabulary.kinds.last(), Some(&TokenKind::Unused));
        assert_eq!((vocabulary.add_bos, vocabulary.add_eos), (Some(true), Some(false)));
        let again = Tokenizer::from_gguf(&vocabulary).unwrap();
        for text in texts {
            assert_eq!(again.encode(&text).unwrap(), tokenizer.encode(&text).unwrap(), "{name}: {text:?}");
            let (ours, theirs) = (again.encode_with_added(&text), tokenizer.encode_with_added(&text));
            assert_eq!(ours.unwrap(), theirs.unwrap(), "{name}: {text:?}");
            let ids = tokenizer.encode(&text).unwrap();
            assert_eq!(again.decode(&ids).unwrap(), tokenizer.decode(&ids).unwrap(), "{name}: {text:?}");
        }
    }
    assert_eq!(seen, names.len());
}

#[test]
fn published_files_spell_line_ends_in_two_ways() {
    let (_, tokenizer, _) = oracle().remove(0);
    let with_characters = tokenizer.to_json().replace(r"\\r\\n", r"\r\n");
    assert_ne!(with_characters, tokenizer.to_json());
    let other = Tokenizer::from_json(with_characters.as_bytes(), None).unwrap();
    assert_eq!(other.to_gguf(other.vocab_size()).unwrap().pre.as_deref(), Some("deepseek-v3"));
}

#[test]
fn vocabularies_without_a_form_in_gguf_are_refused() {
    let (_, tokenizer, _) = oracle().into_iter().find(|(name, ..)| name == "sentencepiece").unwrap();
    let error = tokenizer.to_gguf(1000).unwrap_err().to_string();
    assert!(error.contains("to GGUF: its way of cutting text into words has no name"), "{error}");
    let (_, tokenizer, _) = oracle().remove(0);
    let error = tokenizer.to_gguf(10).unwrap_err().to_string();
    assert!(error.contains("ids, and the model 10 rows"), "{error}");
}

#[test]
fn damaged_vocabularies_are_refused() {
    let good = oracle().remove(0).1.to_gguf(600).unwrap();
    let error = |change: &dyn Fn(&mut GgufVocabulary)| {
        let mut vocabulary = good.clone();
        change(&mut vocabulary);
        match Tokenizer::from_gguf(&vocabulary) {
            Err(error @ TokenizerError::Gguf { .. }) => error.to_string(),
            Err(other) => panic!("another kind of error: {other}"),
            Ok(_) => panic!("accepted"),
        }
    };
    assert!(error(&|v| v.pre = Some("viking".into())).contains("`tokenizer.ggml.pre` is `viking`, which is not known"));
    assert!(error(&|v| v.model = "llama".into()).contains("it has 600 tokens and the scores of 0"));
    assert!(error(&|v| v.model = "bert".into()).contains("`tokenizer.ggml.model` is `bert`"));
    assert!(error(&|v| v.tokens.clear()).contains("it has 0 tokens"));
    assert!(error(&|v| _ = v.kinds.pop()).contains("it has 600 tokens and the types of 599"));
    assert!(error(&|v| v.tokens[5] = v.tokens[4].clone()).contains("has the ids 4 and 5"));
    assert!(error(&|v| v.merges[0] = "a".into()).contains("the merge \"a\" is no pair of tokens"));
    assert!(error(&|v| v.merges[0] = "zzz yyy".into()).contains("needs \"zzz\", which is no token"));
    assert!(error(&|v| v.bos = Some(600)).contains("`bos_token_id` is 600, and there are 600 tokens"));
}

#[test]
fn every_known_cutting_makes_a_tokenizer() {
    let good = oracle().remove(0).1.to_gguf(600).unwrap();
    for pre in [
        "deepseek-v3",
        "deepseek-llm",
        "deepseek-coder",
        "qwen2",
        "llama-bpe",
        "gpt-4o",
        "kimi-k2",
        "smollm",
        "gpt-2",
        "default",
    ] {
        let tokenizer = Tokenizer::from_gguf(&GgufVocabulary { pre: Some(pre.into()), ..good.clone() }).unwrap();
        let text = "Grüße, мир! 12345 中文\r\n\tfn main() {}  don't";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text, "{pre}");
        assert_eq!(tokenizer.to_gguf(600).unwrap().pre.as_deref(), Some(pre));
    }
}
