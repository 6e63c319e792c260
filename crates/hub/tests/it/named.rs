//! Files of datasets, and names that mean the same for ever.

use std::fs;

use wels_hub::{DataName, Event, Hub, HubError, Name, Settings};

use crate::server::{COMMIT, Manner, NEXT};
use crate::{Lab, noise};

const DATA: &str = "datasets--org--sums/snapshots/0123456789abcdef0123456789abcdef01234567";

/// A hub with a dataset as well.
fn lab() -> Lab {
    let lab = Lab::new();
    for (file, bytes) in [
        ("README.md", b"# Sums\n".to_vec()),
        ("sums.py", b"raise SystemExit\n".to_vec()),
        ("sums.pkl", noise(3, 50)),
        ("one/b.jsonl", b"{\"text\": \"b\"}\n".to_vec()),
        ("one/a.parquet", noise(4, 9000)),
        ("one/a.pickle", noise(5, 90)),
        ("two/c.csv", b"a,b\n".to_vec()),
    ] {
        lab.server.put("datasets/org/sums", file, &bytes);
    }
    lab
}

fn files_with(settings: Settings, path: &str) -> Result<Vec<String>, HubError> {
    let name = DataName::parse(&format!("hf://datasets/org/sums{path}")).expect("a name");
    let files = Hub::new(settings)?.files(&name, &mut |_| ())?;
    assert!(files.iter().all(|(_, path)| path.is_file()), "{files:?}");
    Ok(files.into_iter().map(|(name, _)| name.to_string()).collect())
}

fn at(commit: &str, files: &[&str]) -> Vec<String> {
    files.iter().map(|file| format!("hf://datasets/org/sums@{commit}/{file}")).collect()
}

#[test]
fn the_data_among_a_patterns_files_is_fetched_and_nothing_else() {
    let lab = lab();
    let found = files_with(lab.settings(), "/one/*").unwrap();
    assert_eq!(found, at(COMMIT, &["one/a.parquet", "one/b.jsonl"]));
    assert_eq!(lab.files(DATA), ["one/a.parquet", "one/b.jsonl"]);
    assert_eq!(fs::read(lab.at(&format!("{DATA}/one/a.parquet"))).unwrap(), noise(4, 9000));
    assert_eq!(fs::read_to_string(lab.at("datasets--org--sums/refs/main")).unwrap(), COMMIT);
    let asked = lab.server.asked();
    assert!(asked.iter().any(|it| it.path == "/api/datasets/org/sums/revision/main?blobs=true"), "{asked:?}");
    let address = format!("/datasets/org/sums/resolve/{COMMIT}/one/b.jsonl");
    assert!(asked.iter().any(|it| it.path == address && it.token.is_some()), "{asked:?}");
    // Without the hub, and with a commit without a question.
    let offline = || Settings { offline: true, ..lab.settings() };
    assert_eq!(files_with(offline(), "/one/*").unwrap(), found);
    assert_eq!(files_with(lab.settings(), &format!("@{COMMIT}/one/b.jsonl")).unwrap(), found[1..]);
    assert_eq!(lab.server.asked().len(), 0);
    assert_eq!(files_with(lab.settings(), "/**/*.csv").unwrap(), at(COMMIT, &["two/c.csv"]));
    let error = files_with(offline(), "/two/d.csv").unwrap_err();
    assert!(matches!(&error, HubError::NoFile { file, .. } if file == "two/d.csv"), "{error:?}");
}

#[test]
fn without_the_hub_a_pattern_means_all_of_its_files_or_nothing() {
    let lab = lab();
    let offline = |path: &str| files_with(Settings { offline: true, ..lab.settings() }, path);
    let found = files_with(lab.settings(), "/one/*").unwrap();
    assert_eq!(offline("/one/*").unwrap(), found);
    // Files that the hub has and the cache has not, and one that nobody has.
    for path in ["/**/*.csv", "/**", "/two/c.csv"] {
        let error = offline(path).unwrap_err();
        assert!(matches!(error, HubError::NotCached { .. }), "{path}: {error:?}");
    }
    let none = offline("/two/d.csv").unwrap_err();
    assert!(matches!(none, HubError::NoFile { .. }), "{none:?}");
    // Nobody listens on a port that has just been free.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable =
        |path: &str| files_with(Settings { endpoint: format!("http://{nobody}"), ..lab.settings() }, path);
    assert_eq!(unreachable("/one/*").unwrap(), found);
    let error = unreachable("/**").unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");

    fs::remove_file(lab.at(&format!("{DATA}/one/b.jsonl"))).unwrap();
    let part = offline("/one/*").unwrap_err();
    assert!(matches!(part, HubError::NotCached { .. }), "{part:?}");
    // As Python leaves the cache nothing says what a pattern means; a file's own name does.
    fs::remove_dir_all(lab.at("datasets--org--sums/lists")).unwrap();
    for path in ["/one/a*", "/one/b.jsonl", "/two/d.csv"] {
        let error = offline(path).unwrap_err();
        assert!(matches!(error, HubError::NotCached { .. }), "{path}: {error:?}");
    }
    assert_eq!(offline("/one/a.parquet").unwrap(), found[..1]);
}

#[test]
fn what_is_no_data_or_not_there_is_named() {
    let lab = lab();
    let error = |path: &str| files_with(lab.settings(), path).unwrap_err().to_string();
    for file in ["sums.py", "sums.pkl", "one/*.pickle"] {
        let expected =
            format!("datasets/org/sums has {file}, and that is neither JSON, JSON lines, CSV, Parquet nor text");
        assert_eq!(error(&format!("/{file}")), expected);
    }
    assert_eq!(error("/none.jsonl"), "datasets/org/sums has no file none.jsonl");
    assert_eq!(error("@v9/one/b.jsonl"), "datasets/org/sums has no revision v9");
    assert_eq!(lab.files(""), [""; 0]);
    let offline = files_with(Settings { offline: true, ..lab.settings() }, "/one/b.jsonl").unwrap_err();
    assert!(matches!(&offline, HubError::NotCached { .. }), "{offline:?}");
    assert_eq!(offline.hint().as_deref(), Some("give the same command once without HF_HUB_OFFLINE"));
    let name = DataName::parse("hf://datasets/org/none/a.csv").unwrap();
    let none = Hub::new(lab.settings()).unwrap().files(&name, &mut |_| ()).unwrap_err();
    assert_eq!(none.to_string(), format!("{} has no dataset org/none, or it is private", lab.server.endpoint()));
    lab.server.behave(Manner::Wrong);
    let wrong = files_with(lab.settings(), "/one/b.jsonl").unwrap_err();
    assert!(matches!(wrong, HubError::WrongHash { .. }), "{wrong:?}");
    lab.server.behave(Manner::Well);
    lab.server.put("datasets/org/sums", "../evil.csv", b"a");
    let unsafe_path = files_with(lab.settings(), "/two/c.csv").unwrap_err();
    assert!(matches!(unsafe_path, HubError::UnsafePath { .. }), "{unsafe_path:?}");
    assert_eq!(lab.files("datasets--org--sums/snapshots"), [""; 0]);
}

#[test]
fn a_pinned_name_stays_what_it_was_when_its_branch_moves_on() {
    let lab = lab();
    lab.server.put("org/tiny-GGUF", "T-Q8_0.gguf", &noise(6, 500));
    let hub = Hub::new(lab.settings()).unwrap();
    let pin = |text: &str| hub.pin(&Name::parse(text).unwrap(), Some(1 << 30), &mut |_: Event| ()).unwrap().to_string();
    let tiny = pin("org/tiny");
    assert_eq!(tiny, format!("hf://org/tiny@{COMMIT}"));
    // Which of several files was chosen depends on the memory that is left, so it is in the name.
    assert_eq!(pin("org/tiny-GGUF"), format!("hf://org/tiny-GGUF@{COMMIT}:T-Q8_0.gguf"));
    let data = files_with(lab.settings(), "/two/*").unwrap();
    lab.server.move_on();
    lab.server.put("org/tiny", "model.safetensors", &noise(7, 300_000));
    lab.server.put("datasets/org/sums", "two/c.csv", b"c,d\n");
    lab.server.asked();
    assert_eq!(pin(&tiny), tiny);
    assert_eq!(lab.server.asked().len(), 0, "a commit that is there is no question");
    assert_eq!(pin("org/tiny"), format!("hf://org/tiny@{NEXT}"));
    assert_eq!(files_with(lab.settings(), "/two/*").unwrap(), at(NEXT, &["two/c.csv"]));
    assert_eq!(data, at(COMMIT, &["two/c.csv"]));
    let old = hub.cached_file(&DataName::parse(&data[0]).unwrap()).unwrap();
    assert_eq!(fs::read(old).unwrap(), b"a,b\n");
    // A copy of the cache without the old commit has it fetched again.
    let other = Settings { cache: lab.at("other"), ..lab.settings() };
    assert_eq!(files_with(other, &format!("@{COMMIT}/two/c.csv")).unwrap(), data);
    let again = lab.at(&format!("other/{DATA}/two/c.csv"));
    assert_eq!(fs::read(again).unwrap(), b"a,b\n");
}

#[test]
fn a_configuration_comes_without_weights() {
    let lab = lab();
    let hub = Hub::new(lab.settings()).unwrap();
    let name = Name::parse("org/tiny").unwrap();
    let pinned = hub.pin_text(&name, false, &mut |_| ()).unwrap();
    assert_eq!(lab.files(crate::SNAPSHOT), ["config.json"]);
    assert_eq!(hub.cached_text(&pinned).unwrap(), lab.at(crate::SNAPSHOT));
    // That is no model, and no revision either.
    assert!(matches!(hub.cached(&pinned), Err(HubError::NotCached { .. })));
    assert!(!lab.at("models--org--tiny/refs").exists());
    lab.server.put("org/tiny", "tokenizer.json", b"{}");
    hub.pin_text(&name, true, &mut |_| ()).unwrap();
    assert_eq!(lab.files(crate::SNAPSHOT), ["README.md", "config.json", "tokenizer.json"]);
    lab.server.put("org/tiny-GGUF", "T-Q8_0.gguf", &noise(6, 500));
    let none = hub.pin_text(&Name::parse("org/tiny-GGUF").unwrap(), false, &mut |_| ()).unwrap_err();
    assert_eq!(none.to_string(), "org/tiny-GGUF has no file config.json");
}
