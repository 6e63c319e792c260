//! Training, encoding, decoding, streaming, damaged files.

use std::collections::HashMap;
use std::sync::LazyLock;

use proptest::prelude::*;
use wels_data::Tokenizer;
use wels_data::tokenizer::{BpeTrainer, SpecialTokens, TokenizerError};

use crate::{babble, damage, small_tokenizer};

static SMALL: LazyLock<Tokenizer> = LazyLock::new(small_tokenizer);
static LONG_WAY: LazyLock<Tokenizer> = LazyLock::new(|| the_long_way(SMALL.to_json()));

fn train(texts: &[String], vocab_size: usize, threads: usize) -> Tokenizer {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut trainer = BpeTrainer::new(vocab_size, SpecialTokens::default()).unwrap();
        trainer.feed(texts);
        trainer.train().unwrap()
    })
}

#[test]
fn training_does_not_depend_on_threads_or_order() {
    let mut texts: Vec<String> = (0..40).map(|seed| babble(seed, 200)).collect();
    let expected = train(&texts, 500, 1).to_json().to_owned();
    for threads in [1, 2, 5] {
        assert_eq!(train(&texts, 500, threads).to_json(), expected, "{threads} threads");
        texts.rotate_left(7);
    }
}

/// The definition of byte-level BPE training, recounting everything at each step, on words split at spaces only.
fn naive_merges(words: &[&str], count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut words: Vec<Vec<u32>> = words.iter().map(|word| word.bytes().map(u32::from).collect()).collect();
    let mut spellings: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut merges = Vec::new();
    while spellings.len() < 256 + count {
        let mut counts: HashMap<(u32, u32), u64> = HashMap::new();
        words.iter().flat_map(|word| word.windows(2)).for_each(|p| *counts.entry((p[0], p[1])).or_default() += 1);
        let best = counts.into_iter().max_by_key(|&(pair, n)| (n, std::cmp::Reverse(pair)));
        let Some((pair, 2..)) = best else { break };
        let (left, right) = (spellings[pair.0 as usize].clone(), spellings[pair.1 as usize].clone());
        let merged = [left.clone(), right.clone()].concat();
        let symbol = spellings.iter().position(|known| *known == merged).unwrap_or_else(|| {
            spellings.push(merged);
            spellings.len() - 1
        }) as u32;
        for word in &mut words {
            let mut at = 0;
            while at + 1 < word.len() {
                if (word[at], word[at + 1]) == pair {
                    word.splice(at..at + 2, [symbol]);
                }
                at += 1;
            }
        }
        merges.push((left, right));
    }
    merges
}

#[test]
fn training_makes_the_merges_of_the_definition() {
    // Letters and single spaces: pre-tokenisation then makes each word with the space before it one piece.
    let text: String = babble(3, 800).chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').collect();
    let words: Vec<&str> = text.split_inclusive(' ').collect();
    let mut pieces: Vec<String> = Vec::new();
    for word in text.trim_end().split(' ') {
        pieces.push(if pieces.is_empty() { word.to_owned() } else { format!(" {word}") });
    }
    assert_eq!(words.len(), pieces.len());
    let expected = naive_merges(&pieces.iter().map(String::as_str).collect::<Vec<_>>(), 120);
    let tokenizer = train(&[text.trim_end().to_owned()], 10 + 256 + 120, 2);
    let json: serde_json::Value = serde_json::from_str(tokenizer.to_json()).unwrap();
    let spell = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().replace(' ', "Ġ");
    let expected: Vec<_> = expected.iter().map(|(l, r)| serde_json::json!([spell(l), spell(r)])).collect();
    assert_eq!(json["model"]["merges"].as_array().unwrap(), &expected);
}

#[test]
fn special_tokens_have_deepseeks_strings_and_places() {
    let ids = *SMALL.special();
    assert_eq!((ids.bos, ids.eos, ids.pad), (Some(0), Some(1), Some(2)));
    assert_eq!(SMALL.token(0).unwrap(), "<｜begin▁of▁sentence｜>");
    for id in [ids.think_begin, ids.think_end, ids.user, ids.assistant, ids.fim_begin, ids.fim_hole, ids.fim_end] {
        assert!(SMALL.is_special(id.unwrap()));
    }
    assert_eq!(SMALL.vocab_size(), 400);
}

#[test]
fn ordinary_encoding_does_not_see_special_tokens() {
    let text = "a<think>b</think><｜User｜><｜end▁of▁sentence｜>";
    let ids = SMALL.encode(text).unwrap();
    assert_eq!(ids.iter().filter(|&&id| SMALL.is_special(id)).count(), 4);
    let ordinary = SMALL.encode_ordinary(text).unwrap();
    assert_eq!(ordinary.iter().filter(|&&id| SMALL.is_special(id)).count(), 0);
    assert_eq!(SMALL.decode(&ids).unwrap(), text);
    assert_eq!(SMALL.decode(&ordinary).unwrap(), text);
    let with_bos = SMALL.encode_with_added("ka").unwrap();
    assert_eq!(with_bos[0], 0);
    assert_eq!(with_bos[1..], SMALL.encode("ka").unwrap());
}

/// The file with an added word that no byte-level splitting finds, so that the `tokenizers` crate does all the work.
fn the_long_way(json: &str) -> Tokenizer {
    let mut value: serde_json::Value = serde_json::from_str(json).unwrap();
    let id = value["model"]["vocab"].as_object().unwrap().len();
    let word = serde_json::json!({"id": id, "content": "\u{10fffe}\u{10fffe}", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": false});
    value["added_tokens"].as_array_mut().unwrap().push(word);
    Tokenizer::from_json(value.to_string().as_bytes(), None).unwrap()
}

#[test]
fn the_short_way_gives_the_ids_of_the_long_way() {
    let mut texts: Vec<String> = (0..50).map(|seed| babble(seed, 100)).collect();
    let source = concat!(include_str!("tokenizer.rs"), "  \n\n \t\r\n don't 12345 e\u{301} 中文かな ﬁ!!?\n\n x ");
    texts.extend(["", " ", source, "<｜User｜> <think>"].map(str::to_owned));
    let all = SMALL.encode_ordinary_all(&texts).unwrap();
    for (text, ids) in texts.iter().zip(all) {
        assert_eq!(ids, SMALL.encode_ordinary(text).unwrap());
        assert_eq!(ids, LONG_WAY.encode_ordinary(text).unwrap(), "{text:?}");
    }
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let whole = BpeTrainer::new(300, SpecialTokens::default()).unwrap().train().unwrap();
    whole.save(dir.path(), 64).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let path = dir.path().join(name);
        let kept = std::fs::read(&path).ok();
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let error = Tokenizer::load(dir.path()).map(|_| ()).unwrap_err();
        assert!(format!("{error:?}").contains("not a regular file"), "{name}: {error:?}");
        std::fs::remove_file(&path).unwrap();
        // Nobody writes to it: opening it would wait for ever.
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = Tokenizer::load(dir.path()).map(|_| ()).unwrap_err();
        assert!(format!("{error:?}").contains("not a regular file"), "{name}: {error:?}");
        std::fs::remove_file(&path).unwrap();
        kept.iter().for_each(|bytes| std::fs::write(&path, bytes).unwrap());
    }
}

#[test]
fn saved_tokenizers_load_equal() {
    let dir = tempfile::tempdir().unwrap();
    let mut tokenizer = small_tokenizer();
    tokenizer.set_chat_template(Some("{{ bos_token }}".to_owned()));
    tokenizer.save(dir.path(), 4096).unwrap();
    let loaded = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(loaded.to_json(), tokenizer.to_json());
    assert_eq!(loaded.special(), tokenizer.special());
    assert_eq!(loaded.chat_template(), tokenizer.chat_template());
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("tokenizer_config.json")).unwrap()).unwrap();
    assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(config["eos_token"], "<｜end▁of▁sentence｜>");
}

#[test]
fn truncation_and_padding_in_the_file_do_not_change_what_is_encoded() {
    let mut json: serde_json::Value = serde_json::from_str(SMALL.to_json()).unwrap();
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    let cut = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap();
    let text = babble(9, 50);
    assert_eq!(cut.encode(&text).unwrap(), SMALL.encode(&text).unwrap());
}

#[test]
fn unknown_ids_and_lying_files_are_errors() {
    assert!(matches!(SMALL.decode(&[400]), Err(TokenizerError::UnknownId { id: 400, vocab_size: 400 })));
    assert!(SMALL.stream().step(u32::MAX).is_err());
    let mut json: serde_json::Value = serde_json::from_str(SMALL.to_json()).unwrap();
    json["model"]["vocab"]["!"] = serde_json::json!(4_000_000_000u64);
    let error = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap_err();
    assert!(error.to_string().contains("token id 4000000000"), "{error}");
    let mut json: serde_json::Value = serde_json::from_str(SMALL.to_json()).unwrap();
    let template = json["post_processor"].to_string();
    let other = template.replacen("\"special_tokens\":{\"", "\"special_tokens\":{\"#", 1);
    assert_ne!(other, template);
    json["post_processor"] = serde_json::from_str(&other).unwrap();
    let error = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap_err();
    assert!(error.to_string().contains("contradict each other"), "{error}");
    assert!(Tokenizer::from_json(b"[]", None).is_err());
    assert!(Tokenizer::from_json(b"\xff", None).is_err());
    assert!(Tokenizer::from_json(SMALL.to_json().as_bytes(), Some(b"{\"bos_token\": 3}")).is_err());
    assert!(matches!(
        BpeTrainer::new(265, SpecialTokens::default()).err(),
        Some(TokenizerError::VocabularyTooSmall { vocab_size: 265, needed: 266 })
    ));
}

#[test]
fn numbers_are_single_tokens_if_asked_for() {
    let trainer = |digits| BpeTrainer::new(400, SpecialTokens::default()).unwrap().number_digits(digits);
    let mut numbers = trainer(2).unwrap();
    numbers.feed(&["a text without any number, a text without"]);
    let tokenizer = numbers.train().unwrap();
    for number in ["7", "07", "10", "42", "99"] {
        assert_eq!(tokenizer.encode(number).unwrap().len(), 1, "{number}");
    }
    assert_eq!(tokenizer.encode("123").unwrap().len(), 2);
    assert_eq!(tokenizer.decode(&tokenizer.encode("12*8=96").unwrap()).unwrap(), "12*8=96");
    assert!(matches!(trainer(3), Err(TokenizerError::VocabularyTooSmall { vocab_size: 400, needed: 1366 })));
}

#[test]
fn long_runs_of_spaces_encode() {
    for text in [" ".repeat(300_000), format!("{}x", " ".repeat(100_000)), "\n \n".repeat(50_000)] {
        assert_eq!(SMALL.decode(&SMALL.encode_ordinary(&text).unwrap()).unwrap(), text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoding_undoes_encoding(text in "\\PC*|(?s).*|[ a-z\\n\\t]{0,80}") {
        prop_assert_eq!(&SMALL.decode(&SMALL.encode(&text).unwrap()).unwrap(), &text);
        let ordinary = SMALL.encode_ordinary(&text).unwrap();
        prop_assert_eq!(&SMALL.decode(&ordinary).unwrap(), &text);
        let lengths = SMALL.byte_lengths();
        let bytes: u32 = ordinary.iter().map(|&id| lengths[id as usize]).sum();
        prop_assert_eq!(bytes as usize, text.len());
        prop_assert_eq!(ordinary, LONG_WAY.encode_ordinary(&text).unwrap());
    }

    #[test]
    fn streaming_gives_what_decoding_gives(ids in prop::collection::vec(0u32..400, 0..60)) {
        let mut stream = SMALL.stream();
        let mut text = String::new();
        for &id in &ids {
            text.push_str(&stream.step(id).unwrap());
        }
        text.push_str(&stream.finish());
        prop_assert_eq!(text, SMALL.decode(&ids).unwrap());
    }

    #[test]
    fn damaged_files_are_errors_or_tokenizers(
        keep in 0usize..40_000, changes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..4)
    ) {
        let json = damage(SMALL.to_json().as_bytes(), if changes.len() > 1 { usize::MAX } else { keep }, &changes);
        if let Ok(tokenizer) = Tokenizer::from_json(&json, None) {
            // What loads must also work.
            if let Ok(ids) = tokenizer.encode("kato mi, <think>") {
                let _ = tokenizer.decode(&ids);
            }
        }
    }
}
