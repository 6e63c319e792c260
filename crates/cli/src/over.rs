//! A model over the processors of several ranks: what verbs that load one need of the others.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use wels_comm::Comm;
use wels_cpu::{Ranks, SMALL_BYTES, over_ranks};
use wels_device::Device;
use wels_model::placement::Placement;
use wels_pipeline::meeting::Silenced;
use wels_pipeline::refusal::refuse;
use wels_runs::machine;

use crate::model::Location;

/// Pieces of a file of weights that are compared, and bytes of each.
const PIECES: u64 = 64;
const PIECE_BYTES: u64 = 4 << 10;

/// One of the ranks, for as long as the process.
pub struct Over {
    pub device: Arc<dyn Device>,
    pub ranks: Arc<Ranks>,
    /// How many of them are on this machine.
    here: u64,
}

impl fmt::Debug for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device.in_words())
    }
}

impl Over {
    /// This one, of which `here` are on this machine.
    pub fn new(comm: Arc<dyn Comm>, here: usize) -> &'static Over {
        let (device, ranks) = over_ranks(comm, SMALL_BYTES);
        Box::leak(Box::new(Over { device, ranks, here: here as u64 }))
    }

    pub fn is_first(&self) -> bool {
        self.ranks.comm().rank() == 0
    }

    pub fn world(&self) -> usize {
        self.ranks.comm().world()
    }

    /// All of a model is on the ranks' processors.
    pub fn placement(&self) -> Placement {
        Placement::from(&self.device)
    }

    /// Bytes that the ranks may pack together, the same on all: half of what is left to the one that has the least.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn pack_bytes(&self) -> Result<u64> {
        let left = machine::available_memory_bytes().unwrap_or(u64::MAX) / self.here;
        let all = self.ranks.comm().all_gather(left.to_le_bytes().to_vec())?;
        let least = all.iter().map(|bytes| u64::from_le_bytes(bytes[..].try_into().expect("eight bytes"))).min();
        Ok((least.expect("at least one rank") / 2).saturating_mul(self.world() as u64))
    }

    /// Goes on if all ranks have found the same; `mine` is a print of it, or why there is none.
    ///
    /// # Errors
    /// On the first rank what went wrong, on whichever; on the others [`Silenced`]. If a rank is lost.
    pub fn agree(&self, mine: Result<String>) -> Result<()> {
        let comm = self.ranks.comm();
        let words = match &mine {
            Ok(print) => format!("+{print}"),
            Err(error) => format!("-{error:#}"),
        };
        let all = comm.all_gather(words.into_bytes())?;
        let all: Vec<_> = all.iter().map(|words| String::from_utf8_lossy(words)).collect();
        if all.iter().all(|words| *words == all[0] && words.starts_with('+')) {
            return Ok(());
        }
        if !self.is_first() {
            return Err(Silenced.into());
        }
        mine?;
        if let Some((rank, why)) =
            all.iter().enumerate().find_map(|(rank, words)| Some((rank, words.strip_prefix('-')?)))
        {
            anyhow::bail!("rank {rank} of {}: {why}", comm.world());
        }
        let other = all.iter().position(|words| *words != all[0]).expect("they are not all alike");
        let message = format!("ranks 0 and {other} have different models or options");
        Err(refuse(message, "all ranks are started with the same command, on the same files"))
    }
}

/// A print of the files of weights at a place: names, lengths and some of their bytes.
pub fn print_of(location: &Location) -> Result<String> {
    let mut print = Sha256::new();
    for path in files(location)? {
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let length = file.metadata()?.len();
        print.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        print.update(length.to_le_bytes());
        for piece in 0..PIECES {
            let mut bytes = vec![0; PIECE_BYTES.min(length) as usize];
            file.read_exact_at(&mut bytes, (length - bytes.len() as u64) * piece / (PIECES - 1))
                .with_context(|| format!("cannot read {}", path.display()))?;
            print.update(&bytes);
        }
    }
    Ok(print.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn files(location: &Location) -> Result<Vec<PathBuf>> {
    let folder = match location {
        Location::Gguf(path) => return Ok(vec![path.clone()]),
        Location::Directory(folder) => folder,
    };
    let is_of_model = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "safetensors")
            || path.file_name() == Some(Path::new("config.json").as_os_str())
    };
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let paths: Result<Vec<PathBuf>, std::io::Error> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths: Vec<PathBuf> = paths?.into_iter().filter(is_of_model).collect();
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use wels_comm::threads;

    #[test]
    fn ranks_agree_on_what_is_the_same() {
        let agree = |prints: [Result<&'static str, &'static str>; 3]| -> Vec<Option<anyhow::Error>> {
            thread::scope(|scope| {
                let ranks: Vec<_> = threads(3)
                    .into_iter()
                    .zip(prints)
                    .map(|(comm, print)| {
                        scope.spawn(move || {
                            let mine = print.map(str::to_owned).map_err(anyhow::Error::msg);
                            Over::new(Arc::new(comm), 1).agree(mine).err()
                        })
                    })
                    .collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
            })
        };
        assert!(agree([Ok("a"); 3]).iter().all(Option::is_none));
        for (prints, expected) in [
            ([Ok("a"), Ok("a"), Err("no such file")], "rank 2 of 3: no such file"),
            ([Err("no such file"), Ok("a"), Ok("a")], "no such file"),
            ([Ok("a"), Ok("b"), Ok("a")], "ranks 0 and 1 have different models or options"),
        ] {
            let errors: Vec<anyhow::Error> = agree(prints).into_iter().map(|error| error.unwrap()).collect();
            assert_eq!(errors[0].to_string(), expected);
            assert!(errors[1..].iter().all(|error| error.is::<Silenced>()));
        }
    }

    #[test]
    fn another_number_in_a_file_is_another_print() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let print = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            print_of(&Location::Gguf(path.clone())).unwrap()
        };
        let long = vec![7; 1 << 20];
        let first = print(&long);
        assert_eq!(print(&long), first);
        let mut other = long.clone();
        other[(1 << 20) - 1] = 8;
        assert_ne!(print(&other), first);
        assert_ne!(print(&long[1..]), first);
        assert_ne!(print(&[1]), print(&[2]));
    }
}
