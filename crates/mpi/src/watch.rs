//! Signs of life, and farewells.
//!
//! ```text
//! BEAT     every second, to each rank
//! LEAVE    with how many operations this rank has done, the last ones that it takes part in
//! QUIT     nothing of this rank is under way any more; what comes to it is thrown away
//! ```
//! A rank finalizes MPI when it has quit and all others have.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ferrompi::{Communicator, Error, Request, Scope, Source, Tag};

use crate::job::Losses;

/// How long a rank may be silent.
pub const SILENCE: Duration = Duration::from_secs(15);

/// The pulse of a thread that has ended, or is ending the world.
pub(crate) const ENDED: u64 = u64::MAX;

const EVERY: Duration = Duration::from_secs(1);

/// A turn that came so late was kept from running: others may have spoken meanwhile.
const LATE: Duration = Duration::from_secs(2);

const BEAT: i32 = 1;
const LEAVE: i32 = 2;
const QUIT: i32 = 3;

static SIGN: [u8; 1] = [0];

/// What lives as long as MPI: its worlds, and the words that are under way.
pub(crate) struct Ground<'a> {
    pub world: Communicator,
    /// For operations.
    pub data: Communicator,
    /// For what stands above.
    pub control: Communicator,
    pub farewell: OnceCell<[u8; 8]>,
    pub pulse: &'a AtomicU64,
    pub losses: &'a Losses,
}

/// What is known of the other ranks.
pub(crate) struct Watch<'s, 'env> {
    pub rank: usize,
    pub world: usize,
    /// By rank, once they are known.
    pub hosts: Vec<String>,
    /// Operations done.
    pub done: u64,
    ground: &'s Ground<'s>,
    scope: &'s Scope<'s, 'env>,
    /// A sign of life that is under way, by rank.
    beats: Vec<Option<Request<'s>>>,
    farewells: Vec<Request<'s>>,
    heard: Vec<Instant>,
    /// Operations that a rank which has left had done.
    left: Vec<Option<u64>>,
    quit: Vec<bool>,
    last_turn: Instant,
    last_beat: Option<Instant>,
}

impl<'s, 'env> Watch<'s, 'env> {
    pub fn new(ground: &'s Ground<'s>, scope: &'s Scope<'s, 'env>) -> Watch<'s, 'env> {
        let world = ground.world.size() as usize;
        let now = Instant::now();
        Watch {
            rank: ground.world.rank() as usize,
            world,
            hosts: vec!["an unknown host".into(); world],
            done: 0,
            ground,
            scope,
            beats: (0..world).map(|_| None).collect(),
            farewells: Vec::new(),
            heard: vec![now; world],
            left: vec![None; world],
            quit: vec![false; world],
            last_turn: now,
            last_beat: None,
        }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.world).filter(move |other| *other != rank)
    }

    /// What MPI gave; if it failed, the end of all ranks. Nothing is left by an error: requests under way would be
    /// waited for.
    pub fn must<T>(&self, result: Result<T, Error>) -> T {
        result.unwrap_or_else(|error| self.end(&format!("MPI failed: {error}"), "the same command goes on"))
    }

    /// Hears and gives signs of life.
    pub fn turn(&mut self) {
        let now = Instant::now();
        let late = now - self.last_turn;
        if late > LATE {
            self.heard.iter_mut().for_each(|heard| *heard = (*heard + late).min(now));
        }
        self.last_turn = now;
        self.ground.pulse.fetch_add(1, Ordering::Relaxed);
        while let Some((message, status)) = self.must(self.ground.control.improbe::<u8>(Source::Any, Tag::Any)) {
            let mut words = [0; 8];
            self.must(message.mrecv(&mut words));
            let (Source::Rank(from), Tag::Value(tag)) = (status.source, status.tag) else { continue };
            let from = from as usize;
            self.heard[from] = now;
            match tag {
                LEAVE => self.left[from] = Some(u64::from_le_bytes(words)),
                QUIT => self.quit[from] = true,
                _ => {}
            }
        }
        if self.last_beat.is_none_or(|last| now - last >= EVERY) {
            self.last_beat = Some(now);
            for to in self.others() {
                self.beat(to);
            }
        }
        self.check_silence(now);
    }

    /// Sends a sign of life, unless the one before is still under way or the rank is through.
    fn beat(&mut self, to: usize) {
        if let Some(mut before) = self.beats[to].take()
            && self.must(before.test()).is_none()
        {
            self.beats[to] = Some(before);
        } else if !self.quit[to] {
            self.beats[to] = Some(self.must(self.ground.control.isend(self.scope, &SIGN, to as i32, BEAT)));
        }
    }

    /// Ends the world if a rank is gone. The first rank, whose words reach whoever started it, speaks first.
    fn check_silence(&self, now: Instant) {
        let told_after = self.ground.losses.told_after();
        let ends_after = || SILENCE + Duration::from_secs(if self.rank == 0 { 0 } else { 3 + self.rank.min(3) as u64 });
        let patience = told_after.unwrap_or_else(ends_after);
        let is_silent = |other: &usize| !self.quit[*other] && now - self.heard[*other] > patience;
        if told_after.is_some() {
            return self.others().filter(is_silent).for_each(|lost| self.ground.losses.tell(lost));
        }
        let silent: Vec<String> = self.others().filter(is_silent).map(|of| self.name(of)).collect();
        if silent.is_empty() {
            return;
        }
        let (have, of) = if silent.len() == 1 { ("has", "its process") } else { ("have", "their processes") };
        let message = format!(
            "{} {have} not been heard of for {} s by {}: {of} or the network between them is gone",
            silent.join(", "),
            patience.as_secs(),
            self.name(self.rank)
        );
        self.end(&message, "the same command goes on from the last checkpoint, with as many ranks as there are");
    }

    fn name(&self, rank: usize) -> String {
        format!("rank {rank} of {} on {}", self.world, self.hosts[rank])
    }

    /// Ends all ranks with a message.
    pub fn end(&self, message: &str, hint: &str) -> ! {
        eprintln!("error: {message}\nhint: {hint}");
        self.abort(2)
    }

    /// Ends all ranks.
    pub fn abort(&self, code: i32) -> ! {
        self.ground.pulse.store(ENDED, Ordering::Relaxed);
        // Where MPI does not come back from it, this process ends all the same.
        let _ = std::thread::Builder::new().spawn(move || {
            std::thread::sleep(Duration::from_secs(4));
            std::process::exit(code);
        });
        self.ground.world.abort(code)
    }

    /// Whether a rank takes no part in the operation that is under way.
    pub fn has_left(&self, rank: usize) -> bool {
        self.left[rank].is_some_and(|done| self.done >= done)
    }

    /// The first rank that takes part in nothing more, if this one neither does.
    pub fn given_up(&self) -> Option<usize> {
        self.ground.farewell.get()?;
        Some(self.others().find(|other| self.left[*other].is_some()).unwrap_or(self.rank))
    }

    /// Takes no part in the operation that is under way, nor in others.
    pub fn give_up(&mut self) {
        if self.ground.farewell.get().is_none() {
            let words = self.ground.farewell.get_or_init(|| self.done.to_le_bytes());
            self.bid(LEAVE, words);
        }
    }

    /// Has nothing under way any more.
    pub fn quit(&mut self) {
        self.quit[self.rank] = true;
        self.bid(QUIT, &SIGN);
    }

    fn bid(&mut self, tag: i32, words: &'s [u8]) {
        for to in self.others() {
            self.farewells.push(self.must(self.ground.control.isend(self.scope, words, to as i32, tag)));
        }
    }

    /// Throws away a message that another rank sends, for a rank that has given up; whether there was one. It waits
    /// inside MPI until all of it is there, without a sign of life, so a [turn](Watch::turn) comes before the next.
    pub fn drain(&self) -> bool {
        let Some((message, status)) = self.must(self.ground.data.improbe::<u8>(Source::Any, Tag::Any)) else {
            return false;
        };
        self.must(message.mrecv(&mut vec![0u8; status.count.unwrap_or(0).max(1)]));
        true
    }

    /// Whether all ranks have quit, and know it.
    pub fn is_over(&mut self) -> bool {
        let mut farewells = std::mem::take(&mut self.farewells);
        farewells.retain_mut(|farewell| self.must(farewell.test()).is_none());
        self.farewells = farewells;
        self.farewells.is_empty() && self.quit.iter().all(|quit| *quit)
    }
}
