//! What is fetched, where it lies, and what is chosen.

use std::fs;

use wels_hub::{HubError, Settings};

use crate::server::{COMMIT, git_sha1, sha256};
use crate::{Lab, SNAPSHOT, noise};

#[test]
fn a_model_lies_as_python_lays_it() {
    let lab = Lab::new();
    assert_eq!(lab.pull("org/tiny").unwrap(), lab.at(SNAPSHOT));
    assert_eq!(lab.files(SNAPSHOT), ["README.md", "config.json", "model.safetensors"]);
    let weights = noise(2, 300_000);
    assert_eq!(fs::read(lab.at(SNAPSHOT).join("model.safetensors")).unwrap(), weights);
    let link = fs::read_link(lab.at(SNAPSHOT).join("model.safetensors")).unwrap();
    assert_eq!(link.display().to_string(), format!("../../blobs/{}", sha256(&weights)));
    let config = git_sha1(b"{\"model_type\": \"llama\"}");
    assert!(lab.files("models--org--tiny/blobs").contains(&config));
    assert_eq!(fs::read_to_string(lab.at("models--org--tiny/refs/main")).unwrap(), COMMIT);
    assert!(lab.files(".locks/models--org--tiny").contains(&format!("{config}.lock")));
    let stray: Vec<String> = lab
        .files("models--org--tiny")
        .into_iter()
        .filter(|name| name.starts_with('.') || name.contains("inc"))
        .collect();
    assert_eq!(stray, [""; 0]);
}

#[test]
fn what_is_in_the_cache_is_not_fetched_again() {
    let lab = Lab::new();
    lab.pull("org/tiny").unwrap();
    let first = lab.server.asked();
    assert!(first.iter().any(|asked| !asked.hub), "large files come from the other host: {first:?}");
    lab.pull("org/tiny").unwrap();
    let again: Vec<String> = lab.server.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(again, ["/api/models/org/tiny/revision/main?blobs=true"]);
    // Of a file that is gone from the folder only the head is asked, if its contents are there.
    fs::remove_file(lab.at(SNAPSHOT).join("model.safetensors")).unwrap();
    lab.pull(&format!("org/tiny@{COMMIT}")).unwrap();
    let asked = lab.server.asked();
    assert_eq!(asked.iter().map(|asked| asked.method.as_str()).collect::<Vec<_>>(), ["GET", "HEAD"], "{asked:?}");
    assert_eq!(lab.files(SNAPSHOT).len(), 3);
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let lab = Lab::new();
    lab.pull("org/tiny").unwrap();
    let asked = lab.server.asked();
    let token = Some("Bearer hf_secret".to_owned());
    assert!(asked.iter().filter(|asked| asked.hub).all(|asked| asked.token == token), "{asked:?}");
    let others: Vec<_> = asked.iter().filter(|asked| !asked.hub).collect();
    assert!(!others.is_empty() && others.iter().all(|asked| asked.token.is_none()), "{others:?}");
}

#[test]
fn a_gated_model_needs_the_right_token() {
    let lab = Lab::new();
    lab.server.gate("org/tiny", "hf_right");
    let error = lab.pull("org/tiny").unwrap_err();
    assert!(matches!(error, HubError::Gated { .. }), "{error:?}");
    let with = |token: &str| Settings { token: Some(token.into()), ..lab.settings() };
    lab.pull_with(with("hf_right"), "org/tiny").unwrap();
    let error = lab.pull_with(with("a\r\nb"), "org/tiny").unwrap_err();
    assert!(matches!(&error, HubError::Setting { problem } if !problem.contains("a\r")), "{error:?}");
}

#[test]
fn a_model_that_was_renamed_is_found() {
    let lab = Lab::new();
    lab.server.rename("org/old", "org/tiny");
    let path = lab.pull("org/old").unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), noise(2, 300_000));
}

#[test]
fn an_index_says_which_weights() {
    let lab = Lab::new();
    let index =
        br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    lab.server.put("org/parts", "config.json", b"{}");
    lab.server.put("org/parts", "model.safetensors.index.json", index);
    for (name, seed) in [("model-1.safetensors", 3), ("model-2.safetensors", 4), ("consolidated.safetensors", 5)] {
        lab.server.put("org/parts", name, &noise(seed, 10_000));
    }
    lab.server.put("org/parts", "onnx/config.json", b"{}");
    let path = lab.pull("org/parts").unwrap();
    let snapshot = format!("models--org--parts/snapshots/{COMMIT}");
    let expected = ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"];
    assert_eq!(lab.files(&snapshot), expected);
    assert_eq!(lab.offline("org/parts").unwrap(), path);
    // Without one of its parts it is not in the cache.
    fs::remove_file(path.join("model-2.safetensors")).unwrap();
    assert!(matches!(lab.offline("org/parts").unwrap_err(), HubError::NotCached { .. }));
}

fn with_quantisations() -> Lab {
    let lab = Lab::new();
    for (name, bytes) in [
        ("T-Q8_0.gguf", 8000),
        ("T-Q4_K_M.gguf", 5000),
        ("T-UD-Q4_K_M.gguf", 5100),
        ("T-IQ1_S.gguf", 1000),
        ("mmproj-T-Q8_0.gguf", 100),
        ("BF16/T-BF16-00001-of-00002.gguf", 9000),
        ("BF16/T-BF16-00002-of-00002.gguf", 9000),
        ("T-Q6_K-00001-of-00002.gguf", 10),
    ] {
        lab.server.put("org/t-GGUF", name, &noise(bytes, bytes as usize));
    }
    lab
}

#[test]
fn the_best_quantisation_that_fits_is_chosen() {
    for (memory, file, fits) in [
        (None, "T-Q8_0.gguf", true),
        (Some(16_000), "T-Q8_0.gguf", true),
        (Some(15_999), "T-Q4_K_M.gguf", true),
        (Some(9_999), "T-Q4_K_M.gguf", false),
    ] {
        let lab = with_quantisations();
        let path = lab.at(&format!("models--org--t-GGUF/snapshots/{COMMIT}")).join(file);
        let (pulled, events) = lab.events("org/t-GGUF", memory);
        assert_eq!(pulled.unwrap(), path, "{memory:?}");
        let chosen = events.iter().find(|event| event.starts_with("Chosen")).expect("a choice is told");
        assert!(chosen.ends_with(&format!("fits: {fits} }}")), "{chosen}");
        // It stays, whatever memory is left then.
        for memory in [None, Some(16_000), Some(1)] {
            assert_eq!(lab.events("org/t-GGUF", memory).0.unwrap(), path);
        }
        assert_eq!(lab.files(&format!("models--org--t-GGUF/snapshots/{COMMIT}")), [file]);
    }
}

#[test]
fn a_pick_overrules_the_choice() {
    let lab = with_quantisations();
    let snapshot = lab.at(&format!("models--org--t-GGUF/snapshots/{COMMIT}"));
    for (name, file) in [
        ("org/t-GGUF:q4_k_m", "T-Q4_K_M.gguf"),
        ("org/t-GGUF:ud-q4_k_m", "T-UD-Q4_K_M.gguf"),
        ("org/t-GGUF:T-IQ1_S.gguf", "T-IQ1_S.gguf"),
        ("org/t-GGUF:bf16", "BF16/T-BF16-00001-of-00002.gguf"),
        ("org/t-GGUF@main:BF16/T-BF16-00002-of-00002.gguf", "BF16/T-BF16-00001-of-00002.gguf"),
    ] {
        assert_eq!(lab.pull(name).unwrap(), snapshot.join(file), "{name}");
        assert_eq!(lab.offline(name).unwrap(), snapshot.join(file), "{name}");
    }
    let link = fs::read_link(snapshot.join("BF16/T-BF16-00002-of-00002.gguf")).unwrap();
    assert!(link.starts_with("../../../blobs"), "{link:?}");
    let error = lab.pull("org/t-GGUF:q5_k_m").unwrap_err();
    assert_eq!(error.to_string(), "org/t-GGUF has no GGUF file q5_k_m; there are Q8_0, IQ1_S, Q4_K_M, BF16, UD-Q4_K_M");
    let error = lab.pull("org/t-GGUF:T-Q6_K-00001-of-00002.gguf").unwrap_err();
    assert!(matches!(error, HubError::NoFile { .. }), "a part is missing: {error:?}");
}

#[test]
fn the_cache_works_without_a_network() {
    let lab = Lab::new();
    let missing = lab.offline("org/tiny").unwrap_err();
    assert!(matches!(missing, HubError::NotCached { .. }), "{missing:?}");
    assert_eq!(lab.server.asked().len(), 0);
    let path = lab.pull("org/tiny").unwrap();
    lab.server.asked();
    assert_eq!(lab.offline("org/tiny").unwrap(), path);
    assert_eq!(lab.offline(&format!("org/tiny@{COMMIT}")).unwrap(), path);
    assert!(matches!(lab.offline("org/tiny@v2").unwrap_err(), HubError::NotCached { .. }));
    assert_eq!(lab.server.asked().len(), 0);
    // Nobody listens on a port that has just been free.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = || Settings { endpoint: format!("http://{nobody}"), ..lab.settings() };
    assert_eq!(lab.pull_with(unreachable(), "org/tiny").unwrap(), path);
    let error = lab.pull_with(unreachable(), "org/other").unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
}
