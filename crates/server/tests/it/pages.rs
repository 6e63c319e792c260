//! The web chat's files, as far as they can be judged without a browser.

use std::collections::BTreeSet;

use crate::lab::{Lab, Response, Setup};

/// All that the page is made of, as its service worker is told.
fn files(lab: &Lab) -> Vec<String> {
    let worker = lab.request("GET", "/sw.js", "", b"").body;
    let list = worker.strip_prefix("const FILES = ").unwrap().split_once(";\n").unwrap().0;
    serde_json::from_str(list).unwrap()
}

fn get(lab: &Lab, path: &str) -> Response {
    lab.request("GET", path, "", b"")
}

#[test]
fn the_page_names_only_files_of_the_binary_and_allows_nothing_else() {
    let lab = Setup::default().start();
    let page = get(&lab, "/");
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert!(policy.contains("require-trusted-types-for 'script'"), "{policy}");
    let files = files(&lab);
    for path in files.iter().filter(|path| !path.ends_with(".png")) {
        let file = get(&lab, &format!("/{}", path.trim_start_matches("./")));
        assert_eq!(file.status, 200, "{path}");
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
        let mut words = vec!["outerHTML", "insertAdjacentHTML", "document.write", "eval(", "@import", "url("];
        if !path.starts_with("vendor/") {
            words.push("innerHTML"); // highlight.js has a function, not called here, that reads and sets it
        }
        for word in words {
            assert!(!file.body.contains(word), "{path} has {word}");
        }
    }
    // What pages and scripts name is there.
    let named: BTreeSet<String> = files
        .iter()
        .filter(|path| !path.ends_with(".png") && !path.starts_with("vendor/"))
        .flat_map(|path| names(&get(&lab, &format!("/{}", path.trim_start_matches("./"))).body))
        .collect();
    assert!(named.len() > 20, "{named:?}");
    for path in named {
        assert!(files.contains(&path), "{path} is not there");
    }
}

/// The files that a text names, by the ends of their names.
fn names(text: &str) -> Vec<String> {
    let words = text.split(['"', '\'', '`']).map(|word| word.trim_start_matches("./").split('#').next().unwrap());
    let ends = [".js", ".css", ".svg", ".png", ".webmanifest"];
    let file =
        |word: &&str| ends.iter().any(|end| word.ends_with(end)) && !word.contains([' ', '$']) && *word != "sw.js";
    words.filter(file).filter(|word| word.len() > 4).map(str::to_owned).collect()
}

#[test]
fn the_page_can_be_installed() {
    let lab = Setup::default().start();
    let manifest = get(&lab, "/manifest.webmanifest");
    assert_eq!(manifest.header("content-type"), Some("application/manifest+json"));
    let manifest = manifest.json();
    assert_eq!((&manifest["display"], &manifest["start_url"]), (&"standalone".into(), &"./".into()));
    let icons = manifest["icons"].as_array().unwrap();
    assert!(icons.iter().any(|icon| icon["purpose"] == "maskable"));
    for icon in icons.iter().filter(|icon| icon["type"] == "image/png") {
        let bytes = lab.bytes(&format!("/{}", icon["src"].as_str().unwrap()));
        let at = bytes.windows(4).position(|window| window == b"IHDR").unwrap() + 4;
        let side = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(icon["sizes"], format!("{side}x{side}"));
    }
}

#[test]
fn what_is_bundled_is_small_and_has_its_licences() {
    let lab = Setup::default().start();
    let bundle = get(&lab, "/vendor/renderers.js").body;
    assert!(bundle.len() < 400_000, "{} bytes", bundle.len());
    let licences = get(&lab, "/vendor/LICENCES.txt").body;
    for name in ["markdown-it 15.0.3", "temml 0.13.5", "highlight.js 11.12.0", "entities", "linkify-it"] {
        assert!(licences.contains(name), "{name}");
    }
}
