//! Devices for the ranks of a world: cards in turn, and what connects them.

use std::ops::Range;
use std::sync::Arc;

use wels_device::{Device, Dtype, Link, Tensor};

use crate::launch::card;
use crate::launch::transport::{Copies, Pieces, Transport};
use crate::launch::{Driver, nccl};
use crate::memory::{done, numbers, numbers_mut};
use crate::{Cuda, Unavailable};

/// A device for each rank.
pub struct Ranks {
    /// By rank.
    pub devices: Vec<Arc<dyn Device>>,
    /// What computes, and how gradients go from card to card, for people.
    pub in_words: String,
}

impl Cuda {
    /// A device for each of `count` ranks: card r mod cards for rank r. Where each has a card of its own they hand each
    /// other numbers by NCCL; ranks of one card, and cards without NCCL, by the host.
    ///
    /// # Errors
    /// As [`Cuda::open`], of any card.
    pub fn open_ranks(count: usize) -> Result<Ranks, Unavailable> {
        let cards = (0..card::count()?.min(count)).map(Cuda::open_card).collect::<Result<Vec<_>, _>>()?;
        if let [one] = &cards[..] {
            let in_words = format!("{count} ranks share {}", one.name());
            return Ok(Ranks { devices: vec![Cuda::on(one.clone()) as Arc<dyn Device>; count], in_words });
        }
        let linked = match cards.len() == count {
            true => nccl::between(&cards),
            false => Err("ranks that share a card cannot use NCCL".to_string()),
        };
        let drivers: Vec<Arc<dyn Driver>> = cards.iter().map(|card| card.clone() as Arc<dyn Driver>).collect();
        let (devices, how) = match linked {
            Ok(ranks) => {
                let version = nccl::version().unwrap_or_default();
                (Cuda::with(&drivers, ranks.into_iter()), format!("by NCCL {version}"))
            }
            Err(why) => (Cuda::unlinked(&drivers), format!("by the host, as {why}")),
        };
        let in_words = format!(
            "{count} ranks on {} cards, {}; gradients go from card to card {how}",
            cards.len(),
            cards[0].name()
        );
        let devices = (0..count).map(|rank| devices[rank % devices.len()].clone() as Arc<dyn Device>).collect();
        Ok(Ranks { devices, in_words })
    }

    /// A device on each of these drivers, which are ranks of one world and hand each other numbers by copies. For tests
    /// of all that is above a transport.
    pub fn linked(drivers: &[Arc<dyn Driver>]) -> Vec<Arc<Cuda>> {
        Cuda::with(drivers, Copies::between(drivers).into_iter())
    }

    fn unlinked(drivers: &[Arc<dyn Driver>]) -> Vec<Arc<Cuda>> {
        drivers.iter().enumerate().map(|(rank, driver)| Cuda::of(driver.clone(), others(drivers, rank), None)).collect()
    }

    fn with<T: Transport + 'static>(drivers: &[Arc<dyn Driver>], ranks: impl Iterator<Item = T>) -> Vec<Arc<Cuda>> {
        let device = |(rank, transport): (usize, T)| {
            Cuda::of(drivers[rank].clone(), others(drivers, rank), Some(Linked(Box::new(transport))))
        };
        ranks.enumerate().map(device).collect()
    }
}

/// Whose figures the first rank's device names beside its own: it speaks for all cards of a run.
fn others(drivers: &[Arc<dyn Driver>], rank: usize) -> Vec<Arc<dyn Driver>> {
    if rank == 0 { drivers[1..].to_vec() } else { Vec::new() }
}

/// A rank's way to the others.
pub(crate) struct Linked(Box<dyn Transport>);

/// First byte and bytes of elements of a tensor.
fn place(of: &Range<usize>, dtype: Dtype) -> (usize, usize) {
    (of.start * dtype.bytes(), of.len() * dtype.bytes())
}

impl Link for Linked {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn world(&self) -> usize {
        self.0.world()
    }

    fn scatter(&self, of: &Tensor, parts: &[Range<usize>], into: &mut [Tensor]) {
        let (rank, dtype) = (self.rank(), of.dtype());
        assert_eq!((parts.len(), into.len()), (self.world(), self.world()), "a part of each rank");
        let mut pieces = Pieces::default();
        for (other, (part, into)) in parts.iter().zip(into).enumerate() {
            assert_eq!((into.len(), into.dtype()), (parts[rank].len(), dtype), "{into:?} for a part of {of:?}");
            let ((from, bytes), (own, own_bytes)) = (place(part, dtype), place(&parts[rank], dtype));
            let (from_all, into) = (&numbers(of).buffer, &mut numbers_mut(into).buffer);
            if other == rank {
                done(into.copy_from(0, from_all, own, own_bytes));
            } else {
                pieces.send(from_all, from, bytes, other);
                pieces.receive(into, 0, own_bytes, other);
            }
        }
        done(self.0.exchange(pieces));
    }

    fn gather(&self, of: &mut Tensor, parts: &[Range<usize>]) {
        assert_eq!(parts.len(), self.world(), "a part of each rank");
        let dtype = of.dtype();
        let places: Vec<_> = parts.iter().map(|part| place(part, dtype)).collect();
        let mut pieces = Pieces::default();
        pieces.share(&mut numbers_mut(of).buffer, &places, self.rank());
        done(self.0.exchange(pieces));
    }
}
