//! One model over the processors of several ranks: each keeps its part of the packed weights, and the first one
//! computes all the rest.
//!
//! All ranks load the same model, each with its device of [`over_ranks`], and so pack the same parameters in the same
//! order. Then the ranks after the first [follow](Ranks::follow): the first, whose model runs, sends each what its part
//! of a product needs, computes its own part meanwhile, and puts the results in their places.
//!
//! **Same bits.** Matrices are cut by rows, parameters of several matrices between these ([`part`]): never along k. So
//! each element is the chain that it is on one rank, over the same numbers.
//!
//! **A rank that is lost** ends the operation under way, and all later ones, by a panic whose payload is [`Lost`].

mod part;
mod task;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use wels_comm::{Comm, Lost, from_bytes, to_bytes};
use wels_device::Device;

use crate::Cpu;
use part::Pieces;
pub use part::largest_share;
pub(crate) use part::{Kept, Part, Piece};
use task::Task;
pub(crate) use task::{FeedForward, Grouped};

/// Bytes of a parameter that is not worth a message: it stays with the first rank.
pub const SMALL_BYTES: usize = 64 << 10;

/// The ranks that a device is of, as one of them.
pub struct Ranks {
    comm: Arc<dyn Comm>,
    small_bytes: usize,
    /// The parts that this rank has, in the order in which they were packed; all ranks number them alike. A model that
    /// is gone has none.
    parts: Mutex<Vec<Weak<Part>>>,
    /// Held while ranks talk.
    turn: Mutex<()>,
    ended: AtomicBool,
    lost: OnceLock<Lost>,
}

/// The processor of one of some ranks, and what joins it with the others. Parameters of fewer than `small_bytes` stay
/// with the first rank.
pub fn over_ranks(comm: Arc<dyn Comm>, small_bytes: usize) -> (Arc<dyn Device>, Arc<Ranks>) {
    let ranks = Arc::new(Ranks {
        comm,
        small_bytes,
        parts: Mutex::default(),
        turn: Mutex::default(),
        ended: AtomicBool::new(false),
        lost: OnceLock::new(),
    });
    (Arc::new(Cpu { ranks: Some(ranks.clone()) }), ranks)
}

impl Ranks {
    /// What the ranks talk by.
    pub fn comm(&self) -> &Arc<dyn Comm> {
        &self.comm
    }

    /// The rank that is gone, if one is known to be.
    pub fn lost(&self) -> Option<Lost> {
        self.lost.get().copied().or_else(|| self.comm.lost())
    }

    /// Bytes of packed weights that this rank has.
    pub fn bytes(&self) -> usize {
        lock(&self.parts).iter().filter_map(Weak::upgrade).map(|part| part.bytes()).sum()
    }

    /// All parts of this rank's, which stay as long as this does when the model that they were packed for is dropped.
    pub fn hold(&self) -> impl Sized + use<> {
        lock(&self.parts).iter().filter_map(Weak::upgrade).collect::<Vec<_>>()
    }

    /// Computes, on a rank after the first, what the first one asks for, until that one [ends](Ranks::end). The model,
    /// or what was [held](Ranks::hold) of it, has to be there as long.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn follow(&self) -> Result<(), Lost> {
        loop {
            let message = self.comm.scatter(Vec::new())?;
            let results = match Task::read(&message) {
                Task::End => return Ok(()),
                task => task.run(|id| self.part(id)),
            };
            self.comm.gather(to_bytes(&results))?;
        }
    }

    /// Lets the others go. No operation with their parts comes after it.
    pub fn end(&self) {
        let _turn = lock(&self.turn);
        if self.comm.rank() == 0 && !self.ended.swap(true, Ordering::Relaxed) {
            // Where one is lost there is nobody to let go.
            let _ = self.comm.scatter(vec![Task::End.written(); self.comm.world()]);
        }
    }

    /// Which part this rank has of `count` matrices.
    pub(crate) fn keep(&self, rows: usize, bytes: usize, count: usize) -> Kept {
        let (rank, world) = (self.comm.rank(), self.comm.world());
        Kept::of(rank, world, rows, count, bytes < self.small_bytes)
    }

    /// Numbers a parameter that is in parts.
    pub(crate) fn register(&self, pieces: Pieces, rows: usize, count: usize) -> Arc<Part> {
        let mut parts = lock(&self.parts);
        let part = Arc::new(Part::new(parts.len() as u32, self.comm.world(), pieces, rows, count));
        parts.push(Arc::downgrade(&part));
        part
    }

    fn part(&self, id: u32) -> Arc<Part> {
        lock(&self.parts)[id as usize].upgrade().expect("the model that the first rank asks for")
    }

    /// What all ranks have of a parameter, by rank, as numbers; while they load, and all call it.
    pub(crate) fn gather_all(&self, own: &[f32]) -> Vec<Vec<f32>> {
        let _turn = lock(&self.turn);
        let gathered = self.comm.all_gather(to_bytes(own)).unwrap_or_else(|lost| self.fail(lost));
        gathered.iter().map(|bytes| from_bytes(bytes)).collect()
    }

    /// Has each rank do its task, this one's last, after `meanwhile`; what came of them, by rank.
    fn exchange(&self, tasks: Vec<Option<Task>>, parts: &[&Part], meanwhile: impl FnOnce()) -> Vec<Vec<f32>> {
        let _turn = lock(&self.turn);
        let asks = tasks[1..].iter().any(Option::is_some);
        if asks {
            if self.ended.load(Ordering::Relaxed) {
                self.fail(Lost { rank: 0, world: self.comm.world() });
            }
            let nothing = || Task::Nothing.written();
            let own = std::iter::once(Vec::new());
            let messages = own.chain(tasks[1..].iter().map(|task| task.as_ref().map_or_else(nothing, Task::written)));
            self.comm.scatter(messages.collect()).unwrap_or_else(|lost| self.fail(lost));
        }
        meanwhile();
        let mut results = vec![Vec::new(); self.comm.world()];
        if let Some(task) = &tasks[0] {
            let part = |id| *parts.iter().find(|part| part.id() == id).expect("a parameter of the task's");
            results[0] = task.run(part);
        }
        if asks {
            let gathered = self.comm.gather(Vec::new()).unwrap_or_else(|lost| self.fail(lost));
            for (result, bytes) in results.iter_mut().zip(&gathered).skip(1) {
                *result = from_bytes(bytes);
            }
        }
        results
    }

    fn fail(&self, lost: Lost) -> ! {
        let lost = *self.lost.get_or_init(|| lost);
        // Whoever catches it says what there is to say.
        resume_unwind(Box::new(lost))
    }

    /// `y[T, N] = x[T, K] · wᵀ` with several parameters of one matrix each; `meanwhile` is what else there is to do.
    pub(crate) fn linear(&self, x: &[f32], k: usize, products: &mut [(&Part, &mut [f32])], meanwhile: impl FnOnce()) {
        let parts: Vec<&Part> = products.iter().map(|(part, _)| *part).collect();
        let of = |rank: usize| {
            let ids: Vec<u32> =
                parts.iter().filter(|part| !part.rows_of(rank).is_empty()).map(|part| part.id()).collect();
            (!ids.is_empty()).then(|| Task::Linear { ids, k, x: x.into() })
        };
        let tasks = (0..self.comm.world()).map(of).collect();
        let results = self.exchange(tasks, &parts, meanwhile);
        for (rank, result) in results.iter().enumerate() {
            let mut rest = &result[..];
            for (part, y) in products.iter_mut() {
                let rows = part.rows_of(rank);
                let own = rest.split_off(..x.len() / k * rows.len()).expect("the results of all products");
                part::place(own, rows, y, part.rows());
            }
        }
    }

    /// The product of each matrix of stacked ones with its rows of x, with several parameters.
    pub(crate) fn grouped(&self, grouped: &Grouped, products: &mut [(&Part, &mut [f32])]) {
        let slots = grouped.slots();
        for (part, y) in products.iter_mut() {
            let of = |rank: usize| match part.is_cut_by_rows() {
                true => {
                    (!part.rows_of(rank).is_empty()).then(|| Task::Grouped { id: part.id(), of: grouped.borrowed() })
                }
                false => Some(grouped.of_matrices(part.matrices_of(rank)))
                    .filter(|own| own.slots() > 0)
                    .map(|of| Task::Grouped { id: part.id(), of }),
            };
            let results = self.exchange((0..self.comm.world()).map(of).collect(), &[part], || {});
            for (rank, result) in results.iter().enumerate().filter(|(_, result)| !result.is_empty()) {
                match part.is_cut_by_rows() {
                    true => part::place(result, part.rows_of(rank), y, part.rows()),
                    false => {
                        let first = grouped.offsets[part.matrices_of(rank).start] as usize * part.rows();
                        y[first..first + result.len()].copy_from_slice(result);
                    }
                }
            }
            debug_assert_eq!(y.len(), slots * part.rows());
        }
    }

    /// All that experts make of their rows of x, where each is whole on its rank; else `false`, and nothing is done.
    pub(crate) fn feed_forward(&self, of: &FeedForward<[&Part; 3]>, grouped: &Grouped, y: &mut [f32]) -> bool {
        let parts = of.weights;
        if parts.iter().any(|part| part.is_cut_by_rows()) {
            return false;
        }
        let ids = FeedForward { gating: of.gating, weights: parts.map(Part::id) };
        let task = |rank: usize| {
            let own = grouped.of_matrices(parts[0].matrices_of(rank));
            (own.slots() > 0).then_some(Task::FeedForward { ids, of: own })
        };
        let results = self.exchange((0..self.comm.world()).map(task).collect(), &parts, || {});
        for (rank, result) in results.iter().enumerate().filter(|(_, result)| !result.is_empty()) {
            let first = grouped.offsets[parts[0].matrices_of(rank).start] as usize * parts[2].rows();
            y[first..first + result.len()].copy_from_slice(result);
        }
        true
    }

    /// `y[t] = w[ids[t]]`.
    pub(crate) fn rows(&self, part: &Part, ids: &[u32], y: &mut [f32], width: usize) {
        let of = |rank: usize| {
            let rows = part.rows_of(rank);
            let own: Vec<u32> = ids.iter().filter(|id| rows.contains(&(**id as usize))).copied().collect();
            (!own.is_empty())
                .then(|| Task::Rows { id: part.id(), rows: own.iter().map(|id| id - rows.start as u32).collect() })
        };
        let results = self.exchange((0..self.comm.world()).map(of).collect(), &[part], || {});
        let mut rests: Vec<_> = results.iter().map(|result| result.chunks_exact(width)).collect();
        for (id, y) in ids.iter().zip(y.chunks_exact_mut(width)) {
            let rank = (0..rests.len()).find(|rank| part.rows_of(*rank).contains(&(*id as usize)));
            let rank = rank.unwrap_or_else(|| panic!("row {id} of {}", part.rows()));
            y.copy_from_slice(rests[rank].next().expect("all rows that were asked for"));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
