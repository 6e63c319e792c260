//! Building: split, duplicates, resuming, damage.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};

use wels_data::corpus::ReadOptions;
use wels_data::shards::{Dataset, Manifest, ShardError, ShardOptions, Split, build};
use wels_data::{Corpus, Tokenizer};

use crate::{babble, small_tokenizer, write_files};

/// A corpus of 300 documents, 20 of them twice, in JSONL and text files.
fn make_corpus(dir: &Path) -> Corpus {
    let mut lines = String::new();
    for seed in (0..200).chain(0..20) {
        lines.push_str(&serde_json::json!({"text": babble(seed, 60)}).to_string());
        lines.push('\n');
    }
    write_files(dir, &[("a.jsonl", lines.as_bytes())]);
    for seed in 200..300 {
        write_files(dir, &[(&format!("t/{seed}.txt"), babble(seed, 40).as_bytes())]);
    }
    Corpus::open(dir, ReadOptions::default()).unwrap()
}

fn options() -> ShardOptions {
    ShardOptions { validation_fraction: 0.1, shard_tokens: 2000 }
}

fn build_in(corpus: &Corpus, tokenizer: &Tokenizer, dir: &Path) -> Result<Manifest, ShardError> {
    build(corpus, tokenizer, dir, &options(), &mut |_| ControlFlow::Continue(()))
}

/// Name → bytes of every file.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    files.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// The texts of all documents of a split.
fn texts(dataset: &Dataset, tokenizer: &Tokenizer, split: Split) -> Vec<String> {
    let mut texts = Vec::new();
    for shard in dataset.shards(split) {
        for document in 0..shard.documents() {
            let mut ids = Vec::new();
            shard.copy_tokens(document, 0..shard.document_tokens(document), &mut ids);
            texts.push(tokenizer.decode(&ids).unwrap());
        }
    }
    texts
}

#[test]
fn every_distinct_document_is_in_one_split_in_order() {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (corpus, tokenizer) = (make_corpus(source.path()), small_tokenizer());
    let manifest = build_in(&corpus, &tokenizer, out.path()).unwrap();
    let dataset = Dataset::open(out.path()).unwrap();
    dataset.verify().unwrap();
    assert_eq!(manifest.duplicates, 20);
    assert_eq!(manifest.train.documents + manifest.validation.documents, 300);
    assert!((15..=45).contains(&manifest.validation.documents), "{}", manifest.validation.documents);
    assert!(manifest.train.shards.len() > 2);
    let mut rest: std::collections::VecDeque<_> = texts(&dataset, &tokenizer, Split::Validation).into();
    let mut train: std::collections::VecDeque<_> = texts(&dataset, &tokenizer, Split::Train).into();
    let mut bytes = 0;
    for seed in 0..300 {
        let text = babble(seed, if seed < 200 { 60 } else { 40 });
        bytes += text.len() as u64;
        let queue = if train.front() == Some(&text) { &mut train } else { &mut rest };
        assert_eq!(queue.pop_front(), Some(text));
    }
    assert_eq!(manifest.train.bytes + manifest.validation.bytes, bytes);
}

#[test]
fn the_split_of_a_document_stays_when_others_are_added() {
    let tokenizer = small_tokenizer();
    let held_out = |documents: u64| {
        let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for seed in 0..documents {
            write_files(source.path(), &[(&format!("{seed}.txt"), babble(seed, 30).as_bytes())]);
        }
        let corpus = Corpus::open(source.path(), ReadOptions::default()).unwrap();
        build_in(&corpus, &tokenizer, out.path()).unwrap();
        texts(&Dataset::open(out.path()).unwrap(), &tokenizer, Split::Validation)
    };
    let (few, many) = (held_out(100), held_out(200));
    assert!(few.iter().all(|text| many.contains(text)) && many.len() > few.len());
}

#[test]
fn files_do_not_depend_on_place_threads_or_interruptions() {
    let (source, other, out) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The last part of the folder's name is part of the files' names.
    let (a, b) = (source.path().join("corpus"), other.path().join("corpus"));
    let (corpus, tokenizer) = (make_corpus(&a), small_tokenizer());
    build_in(&corpus, &tokenizer, out.path()).unwrap();
    let expected = contents(out.path());

    let again = tempfile::tempdir().unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    pool.install(|| build_in(&make_corpus(&b), &tokenizer, again.path())).unwrap();
    assert_eq!(contents(again.path()), expected);

    // Interrupted: some shards are there, one of them damaged, a temporary file is left over.
    fs::remove_file(again.path().join("manifest.json")).unwrap();
    fs::remove_file(again.path().join("train-00002.tokens")).unwrap();
    let damaged = again.path().join("train-00001.tokens");
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[200] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    fs::write(again.path().join(".tmp-train-00002.tokens"), b"half").unwrap();
    build_in(&corpus, &tokenizer, again.path()).unwrap();
    assert_eq!(contents(again.path()), expected);

    // Complete: nothing is written.
    let modified = |name| fs::metadata(again.path().join(name)).unwrap().modified().unwrap();
    let before = modified("train-00000.tokens");
    build_in(&corpus, &tokenizer, again.path()).unwrap();
    assert_eq!(modified("train-00000.tokens"), before);
}

/// The child process of the test below: builds, unless it is killed before it is done.
#[test]
fn child_that_builds() {
    let (Some(source), Some(out)) = (std::env::var_os("WELS_TEST_CORPUS"), std::env::var_os("WELS_TEST_OUT")) else {
        return;
    };
    let corpus = Corpus::open(Path::new(&source), ReadOptions::default()).unwrap();
    let tokenizer = Tokenizer::load(&Path::new(&source).with_file_name("tokenizer.json")).unwrap();
    build_in(&corpus, &tokenizer, Path::new(&out)).unwrap();
}

#[test]
fn killed_at_any_moment_the_next_run_ends_with_the_same_bytes() {
    let (source, out, killed) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (folder, tokenizer) = (source.path().join("corpus"), small_tokenizer());
    tokenizer.save(source.path(), 64).unwrap();
    let corpus = make_corpus(&folder);
    build_in(&corpus, &tokenizer, out.path()).unwrap();
    let expected = contents(out.path());
    let spawn = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "shards::child_that_builds"])
            .env("WELS_TEST_CORPUS", &folder)
            .env("WELS_TEST_OUT", killed.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    // How long an undisturbed child takes; kills are spread over that.
    let start = std::time::Instant::now();
    assert!(spawn().wait().unwrap().success());
    let whole = start.elapsed();
    assert_eq!(contents(killed.path()), expected);
    let mut unfinished = 0;
    for round in 0..24u32 {
        if round % 3 == 0 {
            fs::read_dir(killed.path()).unwrap().for_each(|entry| fs::remove_file(entry.unwrap().path()).unwrap());
        }
        let mut child = spawn();
        std::thread::sleep(whole.mul_f64(f64::from((7 * round + 5) % 24) / 24.0));
        child.kill().unwrap();
        child.wait().unwrap();
        unfinished += u32::from(!killed.path().join("manifest.json").exists());
        if round % 3 == 2 {
            build_in(&corpus, &tokenizer, killed.path()).unwrap();
            assert_eq!(contents(killed.path()), expected, "round {round}");
        }
    }
    assert!(unfinished >= 3, "only {unfinished} of 24 builds were killed before they were done");
}

/// A limit on the size of files stands in for a full disk: writing fails midway.
#[cfg(unix)]
#[test]
fn when_the_disk_is_full_the_build_fails_cleanly_and_can_go_on() {
    let (source, out, full) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (folder, tokenizer) = (source.path().join("corpus"), small_tokenizer());
    tokenizer.save(source.path(), 64).unwrap();
    let corpus = make_corpus(&folder);
    build_in(&corpus, &tokenizer, out.path()).unwrap();
    // One or two kilobytes, depending on the shell's unit; a shard has four.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 2; exec \"$0\" --exact shards::child_that_builds"])
        .arg(std::env::current_exe().unwrap())
        .env("WELS_TEST_CORPUS", &folder)
        .env("WELS_TEST_OUT", full.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("action: \"write\""), "{said}");
    assert_eq!(contents(full.path()), BTreeMap::new(), "something half-written is left");
    build_in(&corpus, &tokenizer, full.path()).unwrap();
    assert_eq!(contents(full.path()), contents(out.path()));
}

#[test]
fn one_text_is_cut_so_that_some_is_held_out() {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_files(source.path(), &[("book.txt", babble(5, 20_000).as_bytes())]);
    let corpus = Corpus::open(source.path(), ReadOptions::default()).unwrap();
    let manifest = build_in(&corpus, &small_tokenizer(), out.path()).unwrap();
    let part = manifest.validation.bytes as f64 / (manifest.validation.bytes + manifest.train.bytes) as f64;
    assert!((0.02..0.3).contains(&part), "{part} of the text is held out");
    Dataset::open(out.path()).unwrap();
}

#[test]
fn too_little_text_is_an_error() {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for text in ["", "   \n", "x"] {
        write_files(source.path(), &[("a.txt", text.as_bytes())]);
        let corpus = Corpus::open(source.path(), ReadOptions::default()).unwrap();
        let error = build_in(&corpus, &small_tokenizer(), out.path()).unwrap_err();
        assert!(matches!(error, ShardError::EmptyCorpus { documents: 0 | 1 }), "{error}");
    }
    // Two words are enough.
    write_files(source.path(), &[("a.txt", b"one\ntwo\n")]);
    let corpus = Corpus::open(source.path(), ReadOptions::default()).unwrap();
    let manifest = build_in(&corpus, &small_tokenizer(), out.path()).unwrap();
    assert_eq!((manifest.train.documents, manifest.validation.documents), (1, 1));
}

#[test]
fn other_contents_damage_and_places_that_cannot_be_written_are_errors() {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (corpus, tokenizer) = (make_corpus(source.path()), small_tokenizer());
    build_in(&corpus, &tokenizer, out.path()).unwrap();
    let other = ShardOptions { validation_fraction: 0.2, ..options() };
    let error = build(&corpus, &tokenizer, out.path(), &other, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, ShardError::OtherContents { .. }), "{error}");

    let file = out.path().join("manifest.json");
    let error = build_in(&corpus, &tokenizer, &file).unwrap_err();
    assert!(matches!(error, ShardError::Io { action: "write", .. }) && error.hint().contains("writable"), "{error}");

    let shard = out.path().join("train-00000.tokens");
    let whole = fs::read(&shard).unwrap();
    let open = |bytes: &[u8]| {
        fs::write(&shard, bytes).unwrap();
        Dataset::open(out.path()).map(|dataset| dataset.verify())
    };
    assert!(matches!(open(&whole[..100]), Err(ShardError::Damaged { .. })));
    assert!(matches!(open(&whole[..whole.len() - 8]), Err(ShardError::Damaged { .. })));
    for at in [0, 8, 16, 24, whole.len() - 16] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x80;
        assert!(matches!(open(&bytes), Err(ShardError::Damaged { .. })), "byte {at}");
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(open(&bytes), Err(ShardError::Damaged { .. })), "number at {at}");
    }
    let mut bytes = whole.clone();
    bytes[300] ^= 1;
    assert!(matches!(open(&bytes), Ok(Err(ShardError::Damaged { .. }))));
    assert!(matches!(open(&whole), Ok(Ok(()))));
}
