//! One operation: messages from rank to rank, until all that this rank waits for have come.
//!
//! ```text
//! first     length of the message (8 bytes), and as much of it as fits: most messages are whole with it
//! rest      what is left, in pieces of at most 64 MiB: a rank that throws one away waits for it inside MPI, without a
//!           sign of life, for 6 s at 100 Mbit/s
//! ```

use std::thread;
use std::time::{Duration, Instant};

use ferrompi::{Communicator, Request, Scope, scope};
use wels_comm::Lost;

use crate::job::{Outgoing, Route};
use crate::watch::Watch;

const FIRST: i32 = 1;
const REST: i32 = 2;

/// Bytes of a message that go with its length.
const INLINE: usize = 4088;

/// Bytes of a piece of what is left.
const PIECE: usize = 64 << 20;

/// The longest rests between two questions for what is under way: while other ranks may still compute, and while they
/// are there and large messages go, which MPI moves on only when it is asked.
const LONG_REST: Duration = Duration::from_millis(2);
const SHORT_REST: Duration = Duration::from_micros(100);

/// What is under way with another rank.
struct Pending<'s> {
    request: Request<'s>,
    with: usize,
    receives: bool,
    /// Of a message that has come, its bytes.
    count: Option<usize>,
}

impl Pending<'_> {
    fn is_under_way(&self) -> bool {
        self.count.is_none()
    }
}

/// Does the operation; what came, by rank, and nothing from ranks that send nothing to this one.
pub(crate) fn exchange(
    comm: &Communicator,
    watch: &mut Watch,
    route: Route,
    send: Outgoing,
) -> Result<Vec<Vec<u8>>, Lost> {
    let (rank, world) = (watch.rank, watch.world);
    let to: Vec<usize> = (0..world).filter(|&to| to != rank && route.sends(rank, to)).collect();
    let from: Vec<usize> = (0..world).filter(|&from| from != rank && route.sends(from, rank)).collect();
    let firsts: Vec<Vec<u8>> = to.iter().map(|&to| first_of(send.to(to))).collect();
    let mut heads = vec![vec![0u8; 8 + INLINE]; from.len()];
    let mut counts = Vec::new();
    in_scope(|scope| {
        let mut under_way = Vec::new();
        for (&with, head) in from.iter().zip(&mut heads) {
            under_way.push(Pending::receive(watch.must(comm.irecv(scope, head, with as i32, FIRST)), with));
        }
        for (&with, first) in to.iter().zip(&firsts) {
            under_way.push(Pending::send(watch.must(comm.isend(scope, first, with as i32, FIRST)), with));
        }
        wait(watch, &mut under_way, LONG_REST)?;
        counts = under_way.iter().take(from.len()).filter_map(|pending| pending.count).collect();
        Ok(())
    })?;
    let mut received: Vec<Vec<u8>> = vec![Vec::new(); world];
    for ((&with, head), count) in from.iter().zip(&heads).zip(counts) {
        let length = u64::from_le_bytes(head[..8].try_into().expect("eight bytes")) as usize;
        received[with] = Vec::with_capacity(length);
        received[with].extend_from_slice(&head[8..count]);
        received[with].resize(length, 0);
    }
    in_scope(|scope| {
        let mut under_way = Vec::new();
        for (with, message) in received.iter_mut().enumerate().filter(|(_, message)| message.len() > INLINE) {
            for piece in message[INLINE..].chunks_mut(PIECE) {
                under_way.push(Pending::receive(watch.must(comm.irecv(scope, piece, with as i32, REST)), with));
            }
        }
        for &with in to.iter().filter(|&&to| send.to(to).len() > INLINE) {
            for piece in send.to(with)[INLINE..].chunks(PIECE) {
                under_way.push(Pending::send(watch.must(comm.isend(scope, piece, with as i32, REST)), with));
            }
        }
        wait(watch, &mut under_way, SHORT_REST)
    })?;
    if route.sends(rank, rank) {
        received[rank] = send.into_own(rank);
    }
    Ok(received)
}

impl<'s> Pending<'s> {
    fn receive(request: Request<'s>, with: usize) -> Pending<'s> {
        Pending { request, with, receives: true, count: None }
    }

    fn send(request: Request<'s>, with: usize) -> Pending<'s> {
        Pending { request, with, receives: false, count: None }
    }
}

fn first_of(message: &[u8]) -> Vec<u8> {
    let mut first = (message.len() as u64).to_le_bytes().to_vec();
    first.extend_from_slice(&message[..message.len().min(INLINE)]);
    first
}

/// A scope whose body leaves no request under way.
fn in_scope<'env>(body: impl for<'s> FnOnce(&'s Scope<'s, 'env>) -> Result<(), Lost>) -> Result<(), Lost> {
    scope(|scope| Ok(body(scope))).expect("a scope whose requests are done")
}

/// Asks for what is under way until all is done. Of a rank that has left, what it has not sent is given up; what this
/// rank sends to it is taken there, so that nothing is left in MPI's hands.
fn wait(watch: &mut Watch, under_way: &mut [Pending], longest: Duration) -> Result<(), Lost> {
    let begin = Instant::now();
    let mut lost = None;
    let mut tries = 0u32;
    loop {
        let mut came = false;
        for pending in under_way.iter_mut().filter(|pending| pending.is_under_way()) {
            if let Some(status) = watch.must(pending.request.test()) {
                pending.count = Some(status.count.unwrap_or(0));
                came = true;
            }
        }
        if !under_way.iter().any(Pending::is_under_way) {
            return lost.map_or(Ok(()), |rank| Err(Lost { rank, world: watch.world }));
        }
        watch.turn();
        if lost.is_none() {
            let gone = |pending: &&Pending| pending.is_under_way() && pending.receives && watch.has_left(pending.with);
            lost = under_way.iter().find(gone).map(|pending| pending.with);
            if lost.is_some() {
                watch.give_up();
                for pending in under_way.iter_mut().filter(|pending| pending.is_under_way() && pending.receives) {
                    watch.must(pending.request.cancel());
                }
            }
        }
        came |= lost.is_some() && watch.drain();
        tries = if came { 0 } else { tries + 1 };
        rest(tries, begin.elapsed(), longest);
    }
}

/// Leaves the core to others, for longer the longer nothing comes.
fn rest(tries: u32, waited: Duration, longest: Duration) {
    match tries {
        0 => {}
        1..16 => thread::yield_now(),
        _ => thread::sleep((waited / 16).clamp(Duration::from_micros(20), longest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_begins_with_its_length() {
        assert_eq!(first_of(b"ab"), [2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']);
        let long = first_of(&vec![7; INLINE + 3]);
        assert_eq!((long.len(), &long[..8]), (8 + INLINE, &(INLINE as u64 + 3).to_le_bytes()[..]));
    }
}
