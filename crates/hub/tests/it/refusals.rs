//! What is not fetched, and why.

use std::fs;

use wels_hub::HubError;

use crate::server::COMMIT;
use crate::{Lab, noise};

#[test]
fn names_out_of_their_folder_are_refused() {
    for name in [
        "../evil.json",
        "/etc/evil.json",
        "a/../../evil.json",
        "..\\evil.json",
        "C:\\evil.json",
        "a//b.json",
        "a/./b.json",
    ] {
        let lab = Lab::new();
        lab.server.put("org/tiny", name, b"{}");
        let error = lab.pull("org/tiny").unwrap_err();
        assert!(matches!(&error, HubError::UnsafePath { file, .. } if file == name), "{name}: {error:?}");
        assert_eq!(lab.files(""), [""; 0], "{name}");
    }
}

#[test]
fn an_index_cannot_name_what_is_not_listed_or_no_weights() {
    for (file, problem) in [
        ("../../../blobs/x.safetensors", "org/parts has no file ../../../blobs/x.safetensors"),
        (
            "pytorch_model.bin",
            "the index of org/parts cannot be read: it names \"pytorch_model.bin\", which is no safetensors file",
        ),
    ] {
        let lab = Lab::new();
        lab.server.put("org/parts", "config.json", b"{}");
        lab.server.put("org/parts", "pytorch_model.bin", &noise(1, 10));
        let index = format!("{{\"weight_map\": {{\"a\": \"{file}\"}}}}");
        lab.server.put("org/parts", "model.safetensors.index.json", index.as_bytes());
        assert_eq!(lab.pull("org/parts").unwrap_err().to_string(), problem);
        let names = lab.files(&format!("models--org--parts/snapshots/{COMMIT}"));
        assert_eq!(names, ["config.json", "model.safetensors.index.json"]);
    }
}

#[test]
fn pickles_are_never_fetched() {
    let lab = Lab::new();
    lab.server.put("org/old", "config.json", b"{}");
    for name in ["pytorch_model.bin", "sub/a.ckpt", "b.pt"] {
        lab.server.put("org/old", name, &noise(1, 5000));
    }
    let error = lab.pull("org/old").unwrap_err();
    let expected = "org/old has its weights only as pickles (b.pt, pytorch_model.bin, sub/a.ckpt), which can run any \
                    program when they are read";
    assert_eq!(error.to_string(), expected);
    lab.pull("org/tiny").unwrap();
    let asked = lab.server.asked();
    assert!(asked.iter().all(|asked| !asked.path.contains(".bin") && !asked.path.contains(".py")), "{asked:?}");
}

#[test]
fn what_is_not_there_is_named() {
    let lab = Lab::new();
    let failed = |name: &str| lab.pull(name).unwrap_err().to_string();
    assert_eq!(failed("org/none"), format!("{} has no model org/none, or it is private", lab.server.endpoint()));
    assert_eq!(failed("org/tiny@v2"), "org/tiny has no revision v2");
    assert_eq!(failed("org/tiny:x.gguf"), "org/tiny has no file x.gguf");
    assert!(matches!(lab.pull("org/tiny:q8_0").unwrap_err(), HubError::NoWeights { .. }));
    lab.server.put("org/text", "README.md", b"words");
    assert!(matches!(lab.pull("org/text").unwrap_err(), HubError::NoWeights { .. }));
    assert_eq!(lab.files(""), [""; 0]);
}

#[test]
fn a_cache_that_cannot_be_written_is_said() {
    let lab = Lab::new();
    fs::write(lab.at("models--org--tiny"), "a file").unwrap();
    let error = lab.pull("org/tiny").unwrap_err();
    assert!(matches!(error, HubError::Io { action: "make", .. }), "{error:?}");
}

#[test]
fn an_address_that_is_no_hub_is_said() {
    let lab = Lab::new();
    for endpoint in ["hub.example", "ftp://hub.example", "http//x", "file:///etc"] {
        let settings = wels_hub::Settings { endpoint: endpoint.into(), ..lab.settings() };
        let error = lab.pull_with(settings, "org/tiny").unwrap_err();
        assert!(matches!(error, HubError::Setting { .. }), "{endpoint}: {error:?}");
    }
}
