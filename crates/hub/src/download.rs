//! One file, from the hub into the cache: goes on behind what is there, as often as it takes while something comes, and
//! gets its name once its hash is right.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::cache::{Repository, make_parent};
use crate::client::{Client, Fault, Hash, Head, header};
use crate::error::HubError;
use crate::select::Entry;
use crate::{Event, Watch};

/// Tries in a row over which nothing comes.
const TRIES: u32 = 5;
/// The longest that a server can make us wait between two tries.
const WAIT_MAX: Duration = Duration::from_secs(60);
const BUFFER_BYTES: usize = 1 << 18;

/// Where the file is, once it is in the cache.
///
/// # Errors
/// [`HubError`].
pub fn fetch(
    client: &Client,
    repository: &Repository,
    id: &str,
    commit: &str,
    entry: &Entry,
    watch: Watch,
) -> Result<PathBuf, HubError> {
    let link = repository.snapshot(commit).join(&entry.name);
    if is_whole(&link, entry.bytes) {
        return Ok(link);
    }
    let url = client.address(id, commit, &entry.name);
    let names = [id, commit, &entry.name];
    let head = trying(client, &url, watch, |_| client.head(&url, id, commit, &entry.name))?;
    if let Some(before) = entry.hash.as_ref().filter(|hash| !hash.eq_ignore_ascii_case(head.hash.digits())) {
        let now = head.hash.digits().to_owned();
        return Err(HubError::Changed { url, before: before.clone(), now });
    }
    let hash = head.hash.digits();
    let _lock = repository.lock(hash, || watch(Event::Waiting { file: &entry.name }))?;
    let blob = repository.blob(hash);
    if !is_whole(&blob, Some(head.bytes)) {
        make_parent(&blob)?;
        let mut part = Part::open(&blob, &head)?;
        watch(Event::Begin { file: &entry.name, done: part.len, bytes: head.bytes });
        trying(client, &url, watch, |watch| part.go_on(client, &url, names, watch))?;
        part.finish(&url, &blob)?;
        watch(Event::Done { file: &entry.name, bytes: head.bytes });
    }
    repository.link(commit, &entry.name, hash)
}

/// Whether a file is there, with all of its bytes where their number is known.
pub fn is_whole(path: &Path, bytes: Option<u64>) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && bytes.is_none_or(|bytes| bytes == found.len()))
}

/// Tries until it works, at most [`TRIES`] times in a row over which nothing comes.
fn trying<T>(
    client: &Client,
    url: &str,
    watch: Watch,
    mut attempt: impl FnMut(Watch) -> Result<T, Fault>,
) -> Result<T, HubError> {
    let mut failed = 0;
    loop {
        let (reason, wait) = match attempt(watch) {
            Ok(value) => return Ok(value),
            Err(Fault::Lasting(error)) => return Err(error),
            Err(Fault::CutOff { reason }) => {
                failed = 0;
                (reason, client.wait)
            }
            Err(Fault::Passing { reason, after }) => {
                failed += 1;
                (reason, after.unwrap_or(client.wait * (1 << failed)))
            }
        };
        if failed == TRIES {
            return Err(HubError::Unreachable { url: url.to_owned(), reason });
        }
        watch(Event::Again { reason: &reason });
        std::thread::sleep(wait.min(WAIT_MAX));
    }
}

/// A file's beginning, and the hash of it.
struct Part {
    path: PathBuf,
    file: File,
    len: u64,
    /// The longest that it has been: only more than that is progress, where a server has less than it says.
    len_max: u64,
    head: Head,
    hasher: Hasher,
}

enum Hasher {
    Sha256(Sha256),
    Sha1(Sha1),
}

impl Hasher {
    /// As git does, a header with the length comes before contents that are hashed by SHA-1.
    fn new(head: &Head) -> Hasher {
        match head.hash {
            Hash::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Hash::GitSha1(_) => Hasher::Sha1(Sha1::new_with_prefix(format!("blob {}\0", head.bytes))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha1(hasher) => hasher.update(bytes),
        }
    }

    fn digits(self) -> String {
        let bytes = match self {
            Hasher::Sha256(hasher) => hasher.finalize().to_vec(),
            Hasher::Sha1(hasher) => hasher.finalize().to_vec(),
        };
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Part {
    /// What there is of a file, read once for its hash.
    fn open(blob: &Path, head: &Head) -> Result<Part, HubError> {
        let path = PathBuf::from(format!("{}.incomplete", blob.display()));
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(HubError::io("write", &path))?;
        let (mut hasher, mut len, mut buffer) = (Hasher::new(head), 0, vec![0; BUFFER_BYTES]);
        loop {
            let n = file.read(&mut buffer).map_err(HubError::io("read", &path))?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            len += n as u64;
        }
        let head = Head { hash: head.hash.clone(), bytes: head.bytes };
        let mut part = Part { path, file, len, len_max: len, head, hasher };
        if part.len > part.head.bytes {
            part.begin_anew()?;
        }
        Ok(part)
    }

    fn begin_anew(&mut self) -> Result<(), HubError> {
        let begin = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        begin.map_err(HubError::io("write", &self.path))?;
        self.len = 0;
        self.hasher = Hasher::new(&self.head);
        Ok(())
    }

    /// One connection. Ends well only with the whole file.
    fn go_on(&mut self, client: &Client, url: &str, names: [&str; 3], watch: Watch) -> Result<(), Fault> {
        if self.len == self.head.bytes {
            return Ok(());
        }
        let response = client.contents(url, self.len, names)?;
        let range = header(response.headers(), "content-range").unwrap_or_default();
        let is_behind = response.status() == 206 && range.starts_with(&format!("bytes {}-", self.len));
        if !is_behind && self.len > 0 {
            self.begin_anew().map_err(Fault::Lasting)?;
        }
        if !is_behind && response.status() != 200 {
            return Err(Fault::Passing { reason: format!("it gives no bytes from {} on", self.len), after: None });
        }
        match self.copy(&mut response.into_body().into_reader(), watch)? {
            None => Ok(()),
            Some(reason) if self.len > self.len_max => {
                self.len_max = self.len;
                Err(Fault::CutOff { reason })
            }
            Some(reason) => Err(Fault::Passing { reason, after: None }),
        }
    }

    /// Appends what comes, up to the file's length. Why it ended before that.
    fn copy(&mut self, from: &mut dyn Read, watch: Watch) -> Result<Option<String>, Fault> {
        let mut buffer = vec![0; BUFFER_BYTES];
        while self.len < self.head.bytes {
            let left = usize::try_from(self.head.bytes - self.len).unwrap_or(usize::MAX).min(BUFFER_BYTES);
            let n = match from.read(&mut buffer[..left]) {
                Ok(0) => return Ok(Some("the connection ended early".into())),
                Ok(n) => n,
                Err(error) => return Ok(Some(error.to_string())),
            };
            self.append(&buffer[..n]).map_err(|error| Fault::Lasting(HubError::io("write", &self.path)(error)))?;
            watch(Event::At { done: self.len });
        }
        Ok(None)
    }

    /// Writes as much as there is room for. What was written is in the hash.
    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                written => written?,
            };
            self.hasher.update(&bytes[..n]);
            self.len += n as u64;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Gives the whole file its name if it is what it should be, and removes it if not.
    fn finish(self, url: &str, blob: &Path) -> Result<(), HubError> {
        let (found, expected) = (self.hasher.digits(), self.head.hash.digits());
        if found != expected {
            fs::remove_file(&self.path).map_err(HubError::io("remove", &self.path))?;
            return Err(HubError::WrongHash { url: url.to_owned(), expected: expected.to_owned(), found });
        }
        self.file.sync_all().map_err(HubError::io("write", &self.path))?;
        fs::rename(&self.path, blob).map_err(HubError::io("write", blob))
    }
}
