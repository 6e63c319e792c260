//! A model over the processors of several ranks: what verbs that load one need of the others.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use wels_comm::Comm;
use wels_cpu::{Ranks, SMALL_BYTES, over_ranks};
use wels_device::Device;
use wels_model::placement::Placement;
use wels_pipeline::meeting::Silenced;
use wels_pipeline::refusal::refuse;
use wels_runs::machine;

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
}
