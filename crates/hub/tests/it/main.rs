//! Models by name against a hub inside the test: what is fetched, what an interruption costs, what is refused.

mod server;

mod fetching;

mod interruptions;

mod refusals;

mod named;

use std::path::{Path, PathBuf};
use std::time::Duration;

use server::Server;
use tempfile::TempDir;
use wels_hub::{Event, Hub, HubError, Name, Settings};

/// A hub with a model `org/tiny`, and a cache.
struct Lab {
    server: Server,
    cache: TempDir,
}

/// Where the model's folder is in the cache.
const SNAPSHOT: &str = "models--org--tiny/snapshots/0123456789abcdef0123456789abcdef01234567";

impl Lab {
    fn new() -> Lab {
        let server = Server::start();
        server.put("org/tiny", "config.json", b"{\"model_type\": \"llama\"}");
        server.put("org/tiny", "README.md", b"# Tiny\n");
        server.put("org/tiny", "modeling_tiny.py", b"raise SystemExit\n");
        server.put("org/tiny", "pytorch_model.bin", &noise(1, 5000));
        server.put("org/tiny", "model.safetensors", &noise(2, 300_000));
        Lab { server, cache: tempfile::tempdir().unwrap() }
    }

    fn settings(&self) -> Settings {
        Settings {
            endpoint: self.server.endpoint(),
            cache: self.cache.path().to_owned(),
            token: Some("hf_secret".into()),
            offline: false,
            wait: Duration::from_millis(1),
            silence: Duration::from_millis(500),
        }
    }

    fn pull_with(&self, settings: Settings, name: &str) -> Result<PathBuf, HubError> {
        let name = Name::parse(name).expect("a name");
        Hub::new(settings)?.pull(&name, Some(1 << 30), &mut |_| ())
    }

    fn pull(&self, name: &str) -> Result<PathBuf, HubError> {
        self.pull_with(self.settings(), name)
    }

    fn offline(&self, name: &str) -> Result<PathBuf, HubError> {
        self.pull_with(Settings { offline: true, ..self.settings() }, name)
    }

    /// What was said while the model was fetched.
    fn events(&self, name: &str, memory_bytes: Option<u64>) -> (Result<PathBuf, HubError>, Vec<String>) {
        let mut events = Vec::new();
        let mut tell = |event: Event| match event {
            Event::At { .. } => {}
            event => events.push(format!("{event:?}")),
        };
        let name = Name::parse(name).expect("a name");
        let path = Hub::new(self.settings()).and_then(|hub| hub.pull(&name, memory_bytes, &mut tell));
        (path, events)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.cache.path().join(path)
    }

    /// The paths below a folder of the cache, without folders.
    fn files(&self, folder: &str) -> Vec<String> {
        let mut files = Vec::new();
        walk(&self.at(folder), "", &mut files);
        files.sort();
        files
    }
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.file_type().unwrap().is_dir() {
            true => walk(&entry.path(), &format!("{name}/"), files),
            false => files.push(name),
        }
    }
}

/// Bytes that no two places share.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}
