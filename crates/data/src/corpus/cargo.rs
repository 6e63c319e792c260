//! The quickstart's corpus: Rust sources that `Cargo.lock` pins.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{CorpusError, Kind, Source, list_folder};

/// The crates whose sources make the corpus: in Wels's dependency graph on every platform, so their text, pinned by the
/// checksums in `Cargo.lock`, is the same everywhere.
pub const CARGO_CRATES: &[&str] = &[
    "aho-corasick",
    "anyhow",
    "clap_builder",
    "crossbeam-epoch",
    "flate2",
    "half",
    "hashbrown",
    "indexmap",
    "indicatif",
    "itertools",
    "memchr",
    "minijinja",
    "num-traits",
    "parquet",
    "rayon",
    "regex-automata",
    "regex-syntax",
    "serde_core",
    "serde_json",
    "syn",
    "thiserror",
    "tokenizers",
    "toml",
    "zlib-rs",
];

/// The `.rs` files of [`CARGO_CRATES`], named `crate-version/path`, sorted.
pub(super) fn sources(manifest_dir: &Path) -> Result<Vec<Source>, CorpusError> {
    let manifest = manifest_dir.join("Cargo.toml");
    let missing = |reason: String| CorpusError::CargoSources { manifest: manifest.clone(), reason };
    let folders = package_folders(&manifest).map_err(missing)?;
    let mut sources = Vec::new();
    for name in CARGO_CRATES {
        let (version, folder) = folders.get(*name).ok_or_else(|| missing(format!("`{name}` is no dependency")))?;
        let prefix = format!("{name}-{version}");
        let is_rust = |kind| kind == Some(Kind::Text);
        let mut found = list_folder(folder, &prefix, is_rust)?;
        found.retain(|source| source.name.ends_with(".rs"));
        if found.is_empty() {
            return Err(missing(format!("{} holds no .rs file", folder.display())));
        }
        sources.extend(found);
    }
    Ok(sources)
}

/// What `cargo metadata` says about the workspace, with exactly the versions in `Cargo.lock`.
fn metadata(manifest: &Path, extra: &[&str]) -> Result<Value, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "host-tuple", "--manifest-path"])
        .arg(manifest)
        .args(extra)
        .output()
        .map_err(|e| format!("cannot run {}: {e}", Path::new(&cargo).display()))?;
    if !output.status.success() {
        return Err(format!("`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| format!("`cargo metadata` wrote no JSON: {e}"))
}

/// Name → (version, folder).
type Folders = BTreeMap<String, (String, PathBuf)>;

/// The folder of every registry package; of several versions the newest.
///
/// `cargo metadata` insists on every package of the graph, also those that only tests need and no build has fetched
/// yet. So: offline first; then `Cargo.lock` and cargo's usual folder, for the few packages that are asked for; then
/// with the network.
fn package_folders(manifest: &Path) -> Result<Folders, String> {
    let offline = || Some(from_metadata(&metadata(manifest, &["--offline"]).ok()?));
    match offline().or_else(|| from_lock_file(manifest)) {
        Some(folders) => Ok(folders),
        None => metadata(manifest, &[]).map(|metadata| from_metadata(&metadata)),
    }
}

fn from_metadata(metadata: &Value) -> Folders {
    let mut folders = Folders::new();
    for package in metadata["packages"].as_array().into_iter().flatten().filter(|package| package["source"].is_string())
    {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let folder = Path::new(&text("manifest_path")).parent().unwrap_or(Path::new("")).to_owned();
        insert_newest(&mut folders, text("name"), text("version"), folder);
    }
    folders
}

/// From the pinned versions and `CARGO_HOME/registry/src/*/name-version`; `None` unless all of [`CARGO_CRATES`] are
/// there.
fn from_lock_file(manifest: &Path) -> Option<Folders> {
    let lock = manifest.ancestors().map(|dir| dir.join("Cargo.lock")).find_map(|lock| fs::read_to_string(lock).ok())?;
    let home =
        std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cargo")))?;
    let registries: Vec<PathBuf> =
        fs::read_dir(home.join("registry/src")).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let mut folders = Folders::new();
    for package in lock.split("[[package]]").skip(1) {
        let value = |key: &str| {
            package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = ")).map(|v| v.trim_matches('"'))
        };
        let (Some(name), Some(version)) = (value("name"), value("version")) else { continue };
        let in_registry =
            |registry: &PathBuf| Some(registry.join(format!("{name}-{version}"))).filter(|dir| dir.is_dir());
        if let Some(folder) = registries.iter().find_map(in_registry) {
            insert_newest(&mut folders, name.to_owned(), version.to_owned(), folder);
        }
    }
    CARGO_CRATES.iter().all(|name| folders.contains_key(*name)).then_some(folders)
}

fn insert_newest(folders: &mut Folders, name: String, version: String, folder: PathBuf) {
    let newer = |(known, _): &(String, PathBuf)| numbers(known) < numbers(&version);
    if folders.get(&name).is_none_or(newer) {
        folders.insert(name, (version, folder));
    }
}

/// The numbers of a version, to compare by.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}
