//! A folder that no path leads out of.
//!
//! Paths are checked as texts first (relative, no `..`), and then opened from the folder's own descriptor: by `openat2`
//! with `RESOLVE_BENEATH` where the kernel has it, so that links within the folder work and none leads out, even one
//! that is put there meanwhile; elsewhere name by name, where links are refused altogether. Writing follows no link
//! anywhere, or one within the folder could lead into `.git`; it goes into a new file beside the old one, which then
//! takes its name, both by the descriptor of the folder that they are in.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{READ_BYTES_MAX, WRITE_BYTES_MAX};

/// The longest path, in bytes, and the most names in it.
const PATH_BYTES_MAX: usize = 1024;
const NAMES_MAX: usize = 64;

/// An open folder.
pub(super) struct Folder {
    root: OwnedFd,
    /// Whether the kernel has `openat2`.
    resolves: bool,
}

/// What is in a folder under a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub name: String,
    pub kind: EntryKind,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EntryKind {
    Folder,
    File,
    Link,
    Other,
}

/// Why a path is not opened; the message is for the model.
pub(super) type Refusal = String;

/// Whether links on the way are followed, where the kernel keeps them in the folder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Links {
    Followed,
    Refused,
}

const OPEN: OFlags = OFlags::CLOEXEC.union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

impl Folder {
    pub fn open(path: &Path) -> io::Result<Folder> {
        let root = fs::openat(CWD, path, OPEN | OFlags::DIRECTORY, Mode::empty())?;
        let resolves = resolve(&root, ".", OFlags::DIRECTORY, Links::Followed).is_ok();
        Ok(Folder { root, resolves })
    }

    /// The descriptor under a path that [`names`] has checked.
    fn descriptor(&self, names: &[&str], flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
        let path = if names.is_empty() { ".".to_owned() } else { names.join("/") };
        if self.resolves {
            return resolve(&self.root, &path, flags, links);
        }
        let Some((last, folders)) = names.split_last() else {
            return fs::openat(&self.root, ".", OPEN | flags, Mode::empty());
        };
        let mut at = self.root.try_clone().map_err(|_| Errno::MFILE)?;
        for name in folders {
            at = fs::openat(&at, *name, OPEN | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        }
        fs::openat(&at, *last, OPEN | flags | OFlags::NOFOLLOW, Mode::empty())
    }

    /// What is in a folder, by name.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, Refusal> {
        let names = names(path)?;
        let folder = self.descriptor(&names, OFlags::DIRECTORY, Links::Followed).map_err(|errno| why(path, errno))?;
        let read = || -> rustix::io::Result<Vec<Entry>> {
            let mut entries = Vec::new();
            for entry in fs::Dir::read_from(&folder)? {
                let entry = entry?;
                let Ok(name) = entry.file_name().to_str() else { continue };
                if name == "." || name == ".." {
                    continue;
                }
                let Ok(stat) = fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
                let kind = match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => EntryKind::Folder,
                    FileType::RegularFile => EntryKind::File,
                    FileType::Symlink => EntryKind::Link,
                    _ => EntryKind::Other,
                };
                entries.push(Entry { name: name.to_owned(), kind, bytes: stat.st_size.max(0) as u64 });
            }
            entries.sort();
            Ok(entries)
        };
        read().map_err(|errno| why(path, errno))
    }

    /// A file's text.
    pub fn read(&self, path: &str) -> Result<String, Refusal> {
        let names = names(path)?;
        let file = self.descriptor(&names, OFlags::RDONLY, Links::Followed).map_err(|errno| why(path, errno))?;
        let file = File::from(file);
        let about = file.metadata().map_err(|error| format!("{path}: {error}"))?;
        if !about.is_file() {
            return Err(format!("{path} is {}", if about.is_dir() { "a folder" } else { "no regular file" }));
        }
        let mut bytes = Vec::new();
        file.take(READ_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| format!("{path}: {error}"))?;
        if bytes.len() as u64 > READ_BYTES_MAX {
            return Err(format!("{path} has {} bytes, more than {READ_BYTES_MAX}", about.len()));
        }
        let binary = || format!("{path} is no text: it holds bytes that are not UTF-8, or zeros");
        let text = String::from_utf8(bytes).map_err(|_| binary())?;
        if text.contains('\0') { Err(binary()) } else { Ok(text) }
    }

    /// Whether there is a file, or something else, under a path.
    pub fn exists(&self, path: &str) -> Result<bool, Refusal> {
        let names = names(path)?;
        let Some((last, folders)) = names.split_last() else { return Ok(true) };
        let folder = match self.descriptor(folders, OFlags::DIRECTORY, Links::Followed) {
            Err(Errno::NOENT) => return Ok(false),
            folder => folder.map_err(|errno| why(path, errno))?,
        };
        Ok(fs::statat(&folder, *last, AtFlags::SYMLINK_NOFOLLOW).is_ok())
    }

    /// Replaces a file whole, or makes it, with the folders that lead to it.
    pub fn write(&self, path: &str, text: &str) -> Result<(), Refusal> {
        if text.len() > WRITE_BYTES_MAX {
            return Err(format!("{} bytes are more than the {WRITE_BYTES_MAX} of a file that is written", text.len()));
        }
        let names = names(path)?;
        let Some((last, folders)) = names.split_last() else { return Err("the path is empty".to_owned()) };
        if names.iter().any(|name| name.eq_ignore_ascii_case(".git")) {
            return Err(format!("{path} is Git's own: its hooks and settings run programs, and are not written"));
        }
        let folder = self.make_folders(folders).map_err(|errno| why(path, errno))?;
        let mode = match fs::statat(&folder, *last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                Mode::from_raw_mode(stat.st_mode) & Mode::from_bits_truncate(0o777)
            }
            Ok(_) => return Err(format!("{path} is no regular file, and is not replaced")),
            Err(Errno::NOENT) => Mode::from_bits_truncate(0o644),
            Err(errno) => return Err(why(path, errno)),
        };
        replace(&folder, last, mode, text.as_bytes()).map_err(|error| format!("{path}: {error}"))
    }

    /// The folder under these names, made where it is missing; none of them is a link.
    fn make_folders(&self, names: &[&str]) -> Result<OwnedFd, Errno> {
        let open = |names: &[&str]| self.descriptor(names, OFlags::DIRECTORY, Links::Refused);
        for count in 1..=names.len() {
            match open(&names[..count]) {
                Err(Errno::NOENT) => {
                    let parent = open(&names[..count - 1])?;
                    match fs::mkdirat(&parent, names[count - 1], Mode::from_bits_truncate(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                Err(errno) => return Err(errno),
                Ok(_) => {}
            }
        }
        open(names)
    }
}

/// A new file with these bytes takes the name; the old one is there until then.
fn replace(folder: &OwnedFd, name: &str, mode: Mode, bytes: &[u8]) -> io::Result<()> {
    let new = format!(".{:.40}.{}.new", name.replace('/', "_"), std::process::id());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = match fs::openat(folder, &new, flags, Mode::from_bits_truncate(0o600)) {
        // Left by a process of this number that was killed.
        Err(Errno::EXIST) => {
            fs::unlinkat(folder, &new, AtFlags::empty())?;
            File::from(fs::openat(folder, &new, flags, Mode::from_bits_truncate(0o600))?)
        }
        file => File::from(file?),
    };
    let written = file
        .write_all(bytes)
        .and_then(|()| Ok(fs::fchmod(&file, mode)?))
        .and_then(|()| file.sync_all())
        .and_then(|()| Ok(fs::renameat(folder, &new, folder, name)?));
    if written.is_err() {
        let _ = fs::unlinkat(folder, &new, AtFlags::empty());
    }
    written
}

/// By `openat2`, which no link and no `..` leads out of.
#[cfg(target_os = "linux")]
fn resolve(root: &OwnedFd, path: &str, flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
    use rustix::fs::ResolveFlags;
    let mut beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    beneath.set(ResolveFlags::NO_SYMLINKS, links == Links::Refused);
    // EAGAIN: something was renamed meanwhile, and the kernel cannot be sure.
    for _ in 0..16 {
        match fs::openat2(root, path, OPEN | flags, Mode::empty(), beneath) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(not(target_os = "linux"))]
fn resolve(_root: &OwnedFd, _path: &str, _flags: OFlags, _links: Links) -> Result<OwnedFd, Errno> {
    Err(Errno::NOSYS)
}

/// The names of a path that leads downwards; none for the folder itself.
pub(super) fn names(path: &str) -> Result<Vec<&str>, Refusal> {
    if path.len() > PATH_BYTES_MAX {
        return Err(format!("a path of {} bytes is too long", path.len()));
    }
    if path.contains('\0') {
        return Err("a path holds no zero".to_owned());
    }
    if path.starts_with('/') {
        return Err(format!("{path} is absolute: paths begin in the folder, as src/main.rs"));
    }
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    if names.contains(&"..") {
        return Err(format!("{path} leads upwards: paths stay in the folder"));
    }
    if names.len() > NAMES_MAX {
        return Err(format!("{} folders are too many", names.len()));
    }
    Ok(names)
}

fn why(path: &str, errno: Errno) -> Refusal {
    let path = if path.is_empty() { "." } else { path };
    match errno {
        Errno::NOENT => format!("there is no {path}"),
        Errno::XDEV => format!("{path} leads out of the folder by a link, and is not opened"),
        Errno::LOOP => format!("{path} is a link that is not followed"),
        Errno::NOTDIR => format!("{path}: a part of it is no folder"),
        Errno::ACCESS | Errno::PERM => format!("{path} may not be opened"),
        errno => format!("{path}: {}", io::Error::from(errno)),
    }
}
