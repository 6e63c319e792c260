//! Ranks with emulated cards of their own, which hand each other gradients and weights without the host: the bits of
//! one rank, whatever their number, and of ranks whose numbers go by the host.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use wels_comm::{Comm, Pending, Single, Threads, threads};
use wels_cpu::testing::{emulator, emulators};
use wels_device::{Device, Precision, Tensor};
use wels_model::params::Params;
use wels_model::tape::Execution;
use wels_train::trainer::{Hyperparameters, State, StepError, Trainer};

use crate::trainer::{T, batch, config, hyper};

const SHARDS: usize = 8;
const STEPS: u64 = 3;

/// A rank among threads that counts the bytes which go to others.
struct Counting {
    rank: Threads,
    bytes: AtomicUsize,
}

impl Comm for Counting {
    fn rank(&self) -> usize {
        self.rank.rank()
    }

    fn world(&self) -> usize {
        self.rank.world()
    }

    fn begin(&self, send: Vec<Vec<u8>>) -> Pending {
        self.bytes.fetch_add(send.iter().map(Vec::len).sum(), Ordering::Relaxed);
        self.rank.begin(send)
    }
}

fn trainer(device: &Arc<dyn Device>, precision: Precision, comm: Arc<dyn Comm>) -> Trainer {
    let state = State::new(Params::init(device, &config(), 5), hyper().rule);
    let execution = Execution { precision, ..Execution::new(device.clone()) };
    let hyper = Hyperparameters { gradient_shards: SHARDS, ..hyper() };
    Trainer::new(config(), T, state, hyper, execution).with_comm(comm)
}

/// Losses, gradients' norms, and weights.
type Learnt = (Vec<[f64; 2]>, Vec<Vec<u32>>);

fn learn(device: &Arc<dyn Device>, precision: Precision, comm: Arc<dyn Comm>) -> Learnt {
    let mut trainer = trainer(device, precision, comm);
    let steps = (0..STEPS).map(|number| {
        let report = trainer.step(&batch(number), T).unwrap();
        [report.loss, report.grad_norm]
    });
    let steps = steps.collect();
    let bits = |tensor: &Tensor| tensor.to_host().iter().map(|x| x.to_bits()).collect();
    (steps, trainer.state.params.tensors().iter().map(bits).collect())
}

/// What all ranks have learnt, which is the same, and the most bytes that one of them gave to the host's threads.
fn learn_on(devices: &[Arc<dyn Device>], precision: Precision) -> (Learnt, usize) {
    let learnt = Mutex::new(Vec::new());
    let most = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (rank, device) in threads(devices.len()).into_iter().zip(devices) {
            let (learnt, most) = (&learnt, &most);
            scope.spawn(move || {
                let comm = Arc::new(Counting { rank, bytes: AtomicUsize::new(0) });
                let of_rank = learn(device, precision, comm.clone());
                most.fetch_max(comm.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
                learnt.lock().unwrap().push(of_rank);
            });
        }
    });
    let mut learnt = learnt.into_inner().unwrap();
    let last = learnt.pop().expect("a rank");
    assert!(learnt.iter().all(|of_rank| *of_rank == last), "{} ranks differ", devices.len());
    (last, most.into_inner())
}

#[test]
fn ranks_with_cards_of_their_own_have_the_bits_of_one() {
    for precision in [Precision::F32, Precision::Bf16] {
        let Some(card) = emulator(9) else { return };
        let one = learn(&card, precision, Arc::new(Single));
        let (by_host, through_host) = learn_on(&[card.clone(), card], precision);
        assert!(by_host == one, "{precision:?}, 2 ranks that share a card");
        for ranks in [2, 4, 8] {
            let cards = emulators(ranks).expect("as before");
            assert_eq!(cards.iter().filter(|card| card.link().is_some()).count(), ranks as usize);
            let (got, bytes) = learn_on(&cards, precision);
            assert!(got == one, "{precision:?}, {ranks} ranks: {:?} and not {:?}", got.0, one.0);
            assert!(10 * bytes < through_host, "{bytes} bytes by the host, and {through_host} without a link");
        }
    }
}

#[test]
fn a_rank_that_is_lost_ends_the_others() {
    let Some(cards) = emulators(2) else { return };
    let mut ranks = threads(2);
    let (second, first) = (ranks.pop().unwrap(), ranks.pop().unwrap());
    let error = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            trainer(&cards[1], Precision::F32, Arc::new(second)).step(&batch(0), T).unwrap();
            panic!("as planned");
        });
        let mut trainer = trainer(&cards[0], Precision::F32, Arc::new(first));
        trainer.step(&batch(0), T).unwrap();
        let error = trainer.step(&batch(1), T).unwrap_err();
        assert!(other.join().is_err());
        error
    });
    assert!(matches!(error, StepError::Lost(_)), "{error:?}");
}
