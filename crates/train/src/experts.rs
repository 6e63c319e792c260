//! Experts over the ranks of a training: groups of neighbours have all of them together.

use std::sync::Arc;

use wels_comm::Comm;
use wels_model::expert_parallel::{Exchange, ExpertShare};

/// A group of neighbouring ranks. All ranks of the world exchange at the same time, each group among itself.
struct Group {
    comm: Arc<dyn Comm>,
    ranks: usize,
}

/// The experts that this rank holds where groups of `ranks` ranks share them; `None` if each rank has all.
///
/// # Panics
/// If groups of so many do not divide the world.
pub fn expert_share(comm: &Arc<dyn Comm>, ranks: usize) -> Option<ExpertShare> {
    assert!(ranks > 0 && comm.world().is_multiple_of(ranks), "groups of {ranks} of {} ranks", comm.world());
    (ranks > 1).then(|| ExpertShare::new(Arc::new(Group { comm: comm.clone(), ranks })))
}

impl Exchange for Group {
    fn place(&self) -> usize {
        self.comm.rank() % self.ranks
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn all_to_all(&self, send: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        let (first, world) = (self.comm.rank() - self.place(), self.comm.world());
        let mut to_all = vec![Vec::new(); world];
        to_all[first..first + self.ranks].iter_mut().zip(send).for_each(|(to, bytes)| *to = bytes);
        let mut received = self.comm.all_to_all(to_all).ok()?;
        Some(received.drain(first..first + self.ranks).collect())
    }
}
