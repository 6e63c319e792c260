//! A hub for tests: the answers of huggingface.co to what is asked of it, over plain HTTP on this machine, and what can
//! go wrong with them. Large files lie on a second host, as there.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit that every model is at until [`Server::move_on`].
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The commit behind that.
pub const NEXT: &str = "89abcdef0123456789abcdef0123456789abcdef";
/// From so many bytes on a file is a large one.
pub const LARGE_BYTES: usize = 4096;

/// What a connection does with the bodies of files.
#[derive(Clone, Debug, Default)]
pub enum Manner {
    #[default]
    Well,
    /// Ends bodies after these numbers of bytes, one after the other, then goes well.
    Cut(Vec<usize>),
    /// Sends that many bytes and then nothing, once.
    Silent(usize),
    /// Sends other bytes than it says.
    Wrong,
    /// Sends whole files whatever range is asked for, and the first of these many bytes of the first.
    NoRanges(usize),
    /// Asks to come again, so often.
    Busy(usize),
    /// Has only so many bytes of a large file, whatever its head says.
    Short(usize),
    /// Holds each body back for so long.
    Slow(Duration),
}

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Whether it came to the hub itself, not to the host of large files.
    pub hub: bool,
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

#[derive(Default)]
struct State {
    /// Models by id, files by name.
    models: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Ids of models that want this token for their files.
    gated: BTreeMap<String, String>,
    /// Old ids, and what they are called now.
    renamed: BTreeMap<String, String>,
    /// Whether `main` is [`NEXT`] now; [`COMMIT`] keeps the files that it had.
    moved: bool,
    /// What [`COMMIT`] had when `main` moved on.
    before: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    manner: Manner,
    asked: Vec<Asked>,
}

impl State {
    fn at(&self, revision: &str) -> &BTreeMap<String, BTreeMap<String, Vec<u8>>> {
        if self.moved && revision == COMMIT { &self.before } else { &self.models }
    }
}

/// A running hub. It ends with the process.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start() -> Server {
        let (hub, files) = (listener(), listener());
        let state = Arc::new(Mutex::new(State::default()));
        let server = Server { address: hub.local_addr().unwrap(), state };
        let host = files.local_addr().unwrap();
        for (listener, is_hub) in [(hub, true), (files, false)] {
            let server = server.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let server = server.clone();
                    // A client may go away at any time.
                    std::thread::spawn(move || _ = server.answer(&stream, is_hub, host));
                }
            });
        }
        server
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn put(&self, id: &str, name: &str, bytes: &[u8]) {
        self.state().models.entry(id.into()).or_default().insert(name.into(), bytes.to_vec());
    }

    /// From now on what is put belongs to the next commit.
    pub fn move_on(&self) {
        let mut state = self.state();
        state.before = state.models.clone();
        state.moved = true;
    }

    pub fn gate(&self, id: &str, token: &str) {
        self.state().gated.insert(id.into(), token.into());
    }

    pub fn rename(&self, old: &str, new: &str) {
        self.state().renamed.insert(old.into(), new.into());
    }

    pub fn behave(&self, manner: Manner) {
        self.state().manner = manner;
    }

    /// What was asked since the last time.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn answer(&self, stream: &TcpStream, hub: bool, files: SocketAddr) -> std::io::Result<()> {
        let asked = read_request(stream, hub)?;
        self.state().asked.push(asked.clone());
        let path = asked.path.split('?').next().unwrap_or_default().to_owned();
        if !hub {
            let (id, rest) = split(&path, "/cdn/", "/-/").expect("an address that this server gave");
            let (revision, name) = rest.split_once('/').expect("an address that this server gave");
            return self.send_file(stream, &asked, &self.file(&id, name, revision).expect("a file"), "");
        }
        let (id, revision) = match split(&path, "/api/", "/revision/") {
            Some((id, revision)) => (id.strip_prefix("models/").unwrap_or(&id).to_owned(), revision),
            None => return self.resolve(stream, &asked, &path, files),
        };
        let listing = self.listing(&id, &revision);
        match listing {
            None => respond(stream, "401 Unauthorized", "", b"{\"error\":\"Invalid username or password.\"}"),
            Some(_) if !["main", COMMIT, NEXT].contains(&&*revision) => {
                respond(stream, "404 Not Found", "X-Error-Code: RevisionNotFound\r\n", b"{}")
            }
            Some(text) => respond(stream, "200 OK", "Content-Type: application/json\r\n", text.as_bytes()),
        }
    }

    fn resolve(&self, stream: &TcpStream, asked: &Asked, path: &str, files: SocketAddr) -> std::io::Result<()> {
        let Some((id, rest)) = split(path, "/", "/resolve/") else {
            return respond(stream, "404 Not Found", "", b"");
        };
        let name = rest.split_once('/').filter(|(revision, _)| ["main", COMMIT, NEXT].contains(revision));
        let Some((revision, name)) = name.map(|(revision, name)| (revision.to_owned(), name.to_owned())) else {
            return respond(stream, "404 Not Found", "X-Error-Code: RevisionNotFound\r\n", b"");
        };
        let renamed = self.state().renamed.get(&id).cloned();
        if let Some(new) = renamed {
            let head = format!("Location: /{new}/resolve/{COMMIT}/{name}\r\n");
            return respond(stream, "307 Temporary Redirect", &head, b"");
        }
        let gate = self.state().gated.get(&id).cloned();
        if gate.is_some_and(|token| asked.token.as_deref() != Some(&format!("Bearer {token}"))) {
            return respond(stream, "401 Unauthorized", "X-Error-Code: GatedRepo\r\n", b"");
        }
        let Some(bytes) = self.file(&id, &name, &revision) else {
            return respond(stream, "404 Not Found", "X-Error-Code: EntryNotFound\r\n", b"");
        };
        if bytes.len() < LARGE_BYTES {
            let head = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{}\"\r\n", git_sha1(&bytes));
            return self.send_file(stream, asked, &bytes, &head);
        }
        let head = format!(
            "X-Repo-Commit: {COMMIT}\r\nX-Linked-Size: {}\r\nX-Linked-Etag: \"{}\"\r\nETag: \"of-the-redirect\"\r\n\
             Location: http://{files}/cdn/{id}/-/{revision}/{name}?signed\r\n",
            bytes.len(),
            sha256(&bytes),
        );
        respond(stream, "302 Found", &head, if asked.method == "HEAD" { b"" } else { b"Found. Redirecting" })
    }

    fn file(&self, id: &str, name: &str, revision: &str) -> Option<Vec<u8>> {
        self.state().at(revision).get(id)?.get(name).cloned()
    }

    fn listing(&self, id: &str, revision: &str) -> Option<String> {
        let state = self.state();
        let id = state.renamed.get(id).map_or(id, String::as_str);
        let files = state.at(revision).get(id)?.iter().map(|(name, bytes)| {
            let (name, len) = (serde_json::to_string(name).unwrap(), bytes.len());
            let lfs = match len < LARGE_BYTES {
                true => String::new(),
                false => format!(",\"lfs\":{{\"sha256\":\"{}\",\"size\":{len},\"pointerSize\":135}}", sha256(bytes)),
            };
            format!("{{\"rfilename\":{name},\"size\":{len},\"blobId\":\"{}\"{lfs}}}", git_sha1(bytes))
        });
        let files: Vec<String> = files.collect();
        let sha = if state.moved && revision != COMMIT { NEXT } else { COMMIT };
        Some(format!("{{\"id\":\"{id}\",\"sha\":\"{sha}\",\"siblings\":[{}]}}", files.join(",")))
    }

    /// A file's contents, in the manner of the time.
    fn send_file(&self, stream: &TcpStream, asked: &Asked, bytes: &[u8], head: &str) -> std::io::Result<()> {
        let is_head = asked.method == "HEAD";
        let from = asked.range.as_ref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let bytes = match self.state().manner {
            Manner::Short(there) if bytes.len() >= LARGE_BYTES => &bytes[..there],
            _ => bytes,
        };
        let (mut from, len) = (from.unwrap_or(0usize), bytes.len());
        let (mut bytes, mut end, mut silent) = (bytes.to_vec(), len, false);
        let mut state = self.state();
        match &mut state.manner {
            _ if is_head => {}
            Manner::Well | Manner::Short(_) => {}
            Manner::Cut(places) if places.is_empty() => {}
            Manner::Cut(places) => end = (from + places.remove(0)).min(len),
            Manner::Silent(after) => {
                (end, silent) = ((from + *after).min(len), true);
                state.manner = Manner::Well;
            }
            Manner::Wrong => bytes[len / 2] ^= 1,
            Manner::NoRanges(first) => {
                from = 0;
                end = std::mem::replace(first, len).min(len);
            }
            Manner::Busy(0) => {}
            Manner::Busy(times) => {
                *times -= 1;
                drop(state);
                return respond(stream, "503 Service Unavailable", "Retry-After: 0\r\n", b"later");
            }
            Manner::Slow(time) => {
                let time = *time;
                drop(state);
                std::thread::sleep(time);
                state = self.state();
            }
        }
        drop(state);
        let (status, range) = match from {
            0 => ("200 OK", String::new()),
            _ if from >= len => return respond(stream, "416 Range Not Satisfiable", "", b""),
            _ => ("206 Partial Content", format!("Content-Range: bytes {from}-{}/{len}\r\n", len - 1)),
        };
        let mut stream = stream;
        let length = len - from;
        write!(stream, "HTTP/1.1 {status}\r\n{head}{range}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
        if !is_head {
            stream.write_all(&bytes[from..end])?;
        }
        if silent {
            std::thread::sleep(Duration::from_secs(5));
        }
        stream.shutdown(Shutdown::Both)
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

fn read_request(stream: &TcpStream, hub: bool) -> std::io::Result<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut asked = Asked { hub, method, path, range: None, token: None };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.range = Some(value.to_owned()),
            "authorization" => asked.token = Some(value.to_owned()),
            _ => {}
        }
    }
    Ok(asked)
}

fn respond(mut stream: &TcpStream, status: &str, head: &str, body: &[u8]) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    stream.write_all(body)?;
    stream.shutdown(Shutdown::Both)
}

/// What stands between `begin` and the first `mark`, and behind that.
fn split(path: &str, begin: &str, mark: &str) -> Option<(String, String)> {
    let (id, rest) = path.strip_prefix(begin)?.split_once(mark)?;
    Some((id.to_owned(), rest.to_owned()))
}

/// The hash of a large file.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hash of a small file.
pub fn git_sha1(bytes: &[u8]) -> String {
    let digest = Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
