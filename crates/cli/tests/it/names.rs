//! Models by name: `wels pull`, and names where a MODEL stands.

use std::fs;

use crate::hub::{COMMIT, Server};
use crate::lab::{Lab, Said};

/// A lab with `model`, and a hub with the same as `org/tiny`.
fn lab() -> (Lab, Server) {
    let (lab, server) = (crate::eval::lab(), Server::start());
    for entry in fs::read_dir(lab.at("model")).unwrap().flatten() {
        server.put("org/tiny", &entry.file_name().to_string_lossy(), &fs::read(entry.path()).unwrap());
    }
    (lab, server)
}

fn score(lab: &Lab, model: &str) -> String {
    lab.done(&["score", model, "--text", "the name of the fish", "--json"]).stdout
}

fn path_of(said: &Said) -> &str {
    assert_eq!(said.code, Some(0), "{said:?}");
    said.stdout.trim_end()
}

#[test]
fn a_model_that_was_pulled_works_offline_as_its_directory_does() {
    let (lab, server) = lab();
    let missing = lab.wels(&["score", "org/tiny", "--text", "a"]).failure();
    assert_eq!(
        missing,
        "error: there is no path org/tiny, and as the name of a model: org/tiny is not in the cache (revision main), or \
         not whole, and HF_HUB_OFFLINE is set\nhint: fetch it once with wels pull, without HF_HUB_OFFLINE\n"
    );
    let pulled = lab.wels_with_hub(&server.endpoint(), &["pull", "org/tiny"]);
    assert_eq!(path_of(&pulled), format!("LAB/hf/hub/models--org--tiny/snapshots/{COMMIT}"));
    assert!(pulled.stderr.contains("     pull model.safetensors, "), "{pulled:?}");
    server.asked();
    // The lab's commands are offline.
    let as_directory = score(&lab, "model");
    assert_eq!(score(&lab, "org/tiny"), as_directory);
    lab.done(&["eval", "org/tiny", "--data", "data", "--bench", "gsm8k", "--shots", "0", "--items", "1"]);
    assert!(lab.at("evals/tiny").is_dir(), "receipts lie below the model's name");
    assert_eq!(server.asked().len(), 0);
    // An existing path always wins.
    fs::create_dir_all(lab.at("org/tiny")).unwrap();
    let path = lab.wels(&["score", "org/tiny", "--text", "a"]).failure();
    assert!(path.starts_with("error: org/tiny is no model\n"), "{path}");
}

#[test]
fn a_gguf_file_is_chosen_or_named() {
    let (lab, server) = lab();
    for dtype in ["f32", "f16"] {
        let file = format!("T-{}.gguf", dtype.to_uppercase());
        lab.done(&["convert", "model", &file, "--dtype", dtype]);
        server.put("org/tiny-GGUF", &file, &fs::read(lab.at(&file)).unwrap());
    }
    let said =
        lab.wels_with_hub(&server.endpoint(), &["score", "org/tiny-GGUF", "--text", "the name of the fish", "--json"]);
    assert!(said.stderr.contains("     pull F16 of org/tiny-GGUF, 0 MB, which fits half of the memory"), "{said:?}");
    assert_eq!(said.stdout, score(&lab, "T-F16.gguf"));
    for name in ["org/tiny-GGUF:f32", "org/tiny-GGUF@main:T-F32.gguf"] {
        let pulled = lab.wels_with_hub(&server.endpoint(), &["pull", name]);
        assert!(path_of(&pulled).ends_with("/T-F32.gguf"), "{pulled:?}");
        assert_eq!(score(&lab, name), score(&lab, "T-F32.gguf"));
    }
}

#[test]
fn what_is_neither_path_nor_name_is_told_both() {
    let (lab, server) = lab();
    let failure = |args: &[&str]| lab.wels_with_hub(&server.endpoint(), args).failure();
    let neither = failure(&["score", "nothing", "--text", "a"]);
    let expected = "error: nothing is neither a path nor the name of a model\nhint: give a run, a directory with ";
    assert!(neither.starts_with(expected) && neither.contains(" or one of r1:1.5b, r1:7b, "), "{neither}");
    let unknown = format!(
        "error: there is no path runs/none, and as the name of a model: {} has no model runs/none, or it is private\n\
         hint: check the id; for a private model, set HF_TOKEN\n",
        server.endpoint()
    );
    assert_eq!(failure(&["chat", "runs/none"]), unknown);
    assert_eq!(failure(&["convert", "runs/none", "out"]), unknown);
    let unnamed = failure(&["pull", "../model"]);
    assert!(unnamed.starts_with("error: ../model is not the name of a model\nhint: give an id such as "), "{unnamed}");
    server.put("org/old", "pytorch_model.bin", b"pickled");
    let pickles = failure(&["serve", "org/old", "--db", "sqlite:l.db", "--listen", "127.0.0.1:0"]);
    assert!(pickles.contains(": org/old has its weights only as pickles (pytorch_model.bin), which "), "{pickles}");
}
