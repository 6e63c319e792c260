//! SentencePiece's BPE against SentencePiece: `scripts/oracle/make_sentencepiece.py`.

use serde_json::Value;
use wels_data::Tokenizer;
use wels_data::tokenizer::{GgufVocabulary, TokenKind, TokenizerError};

const MODELS: [(&str, &[u8], &str); 2] = [
    (
        "prefix",
        include_bytes!("../oracle/sentencepiece/prefix.model"),
        include_str!("../oracle/sentencepiece/prefix.json"),
    ),
    (
        "no_prefix",
        include_bytes!("../oracle/sentencepiece/no_prefix.model"),
        include_str!("../oracle/sentencepiece/no_prefix.json"),
    ),
];

fn load(model: &[u8], config: Option<&str>) -> Result<Tokenizer, TokenizerError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.model"), model).unwrap();
    if let Some(config) = config {
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    }
    Tokenizer::load(dir.path())
}

/// As llama.cpp's converter writes it.
fn in_gguf(oracle: &Value, prefix: bool) -> GgufVocabulary {
    let list = |key: &str| oracle[key].as_array().unwrap().iter();
    let tokens: Vec<String> = list("pieces").map(|piece| piece.as_str().unwrap().to_owned()).collect();
    let kind = |token: &String| match &token[..] {
        "<unk>" => TokenKind::Unknown,
        "<s>" | "</s>" => TokenKind::Control,
        "<|user|>" => TokenKind::UserDefined,
        byte if byte.starts_with("<0x") => TokenKind::Byte,
        _ => TokenKind::Normal,
    };
    GgufVocabulary {
        model: "llama".into(),
        kinds: tokens.iter().map(kind).collect(),
        scores: list("scores").map(|score| score.as_f64().unwrap() as f32).collect(),
        add_space_prefix: (!prefix).then_some(false),
        bos: Some(1),
        eos: Some(2),
        tokens,
        ..GgufVocabulary::default()
    }
}

#[test]
fn ids_and_texts_are_those_of_sentencepiece() {
    for (name, model, oracle) in MODELS {
        let oracle: Value = serde_json::from_str(oracle).unwrap();
        let from_gguf = Tokenizer::from_gguf(&in_gguf(&oracle, name == "prefix")).unwrap();
        for (from, tokenizer) in [("a file", load(model, None).unwrap()), ("GGUF", from_gguf)] {
            assert_eq!((tokenizer.special().bos, tokenizer.special().eos), (Some(1), Some(2)), "{name} from {from}");
            for case in oracle["texts"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                let expected: Vec<u32> =
                    case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
                let ids = tokenizer.encode(text).unwrap();
                assert_eq!(ids, expected, "{name} from {from}: {text:?}");
                assert_eq!(tokenizer.decode(&ids).unwrap(), case["decoded"].as_str().unwrap(), "{name}: {text:?}");
                let added = tokenizer.encode_with_added(text).unwrap();
                assert_eq!((added[0], &added[1..]), (1, &expected[..]), "{name} from {from}: a BOS before {text:?}");
            }
            let marked = tokenizer.encode("<|user|>x").unwrap();
            let user = oracle["pieces"].as_array().unwrap().iter().position(|piece| piece == "<|user|>").unwrap();
            assert!(marked.contains(&(user as u32)), "{name} from {from}: {marked:?}");
        }
    }
}

#[test]
fn what_is_beside_a_model_names_the_special_tokens() {
    let config = r#"{"eos_token": "<|user|>", "chat_template": "{{ bos_token }}"}"#;
    let tokenizer = load(MODELS[0].1, Some(config)).unwrap();
    assert_eq!(tokenizer.special().eos, Some(3));
    assert_eq!(tokenizer.chat_template(), Some("{{ bos_token }}"));
}

#[test]
fn damaged_files_and_other_kinds_are_refused() {
    let refused = |model: &[u8]| match load(model, None) {
        Err(error @ TokenizerError::SentencePiece { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let model = MODELS[0].1;
    assert!(refused(&model[..model.len() - 3]).contains("no message of Protocol Buffers"));
    assert!(refused(&[0x0a, 0x02, 0x0a, 0x00]).contains("its model is not BPE"), "the default is Unigram");
    // A piece whose text is no UTF-8.
    assert!(refused(&[0x0a, 0x03, 0x0a, 0x01, 0xff]).contains("a piece that is no text"));
    for end in (0..model.len()).step_by(97) {
        _ = load(&model[..end], None);
    }
    let oracle: Value = serde_json::from_str(MODELS[0].2).unwrap();
    let vocabulary = GgufVocabulary { scores: vec![0.0], ..in_gguf(&oracle, true) };
    let error = Tokenizer::from_gguf(&vocabulary).unwrap_err().to_string();
    assert!(error.contains("it has 900 tokens and the scores of 1"), "{error}");
}
