//! Which combinations are held out: 15% of colours with shapes, of counts with these, of pairs of things.
//!
//! A kind of caption holds out one level of combination, and what lies below it has been seen: an unseen count is of a
//! thing that was seen in other numbers, an unseen pair is of things that were seen with others. A thing that is held
//! out is never drawn alone for a caption that names its colour, but several times, and beside others.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use wels_data::random::bits;

use crate::shape::{Colour, Shape, Thing};

/// Of each level, in percent.
const HELD_OUT_PERCENT: usize = 15;
/// The numbers of objects that captions count.
pub const COUNTS: [usize; 3] = [2, 3, 4];

/// What a scene is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Shows, says and asks nothing that is held out.
    Train,
    /// Made of what is held out.
    HeldOut,
}

/// The combinations of one split.
#[derive(Clone, Debug, Default)]
pub struct Combinations {
    /// What a caption names alone.
    pub things: Vec<Thing>,
    pub counts: Vec<(usize, Thing)>,
    /// The first one comes before the second in the order of things; captions have them in both orders.
    pub pairs: Vec<(Thing, Thing)>,
}

/// Combinations seen and held out of these shapes in all colours, by a fixed order that `key` chooses.
pub(crate) fn divide(shapes: &[Shape], key: u64) -> [Combinations; 2] {
    let things = all_things(shapes);
    let (seen, unseen) = divide_things(&things, shapes.len(), key);
    let counts = things.iter().flat_map(|&thing| COUNTS.map(|count| (count, thing))).collect();
    let pairs = things.iter().enumerate().flat_map(|(at, &a)| things[at + 1..].iter().map(move |&b| (a, b))).collect();
    let (seen_counts, unseen_counts) = divide_list(counts, key, 1);
    let (seen_pairs, unseen_pairs) = divide_list(pairs, key, 2);
    [
        Combinations { things: seen, counts: seen_counts, pairs: seen_pairs },
        Combinations { things: unseen, counts: unseen_counts, pairs: unseen_pairs },
    ]
}

fn all_things(shapes: &[Shape]) -> Vec<Thing> {
    let mut things: Vec<Thing> =
        shapes.iter().flat_map(|&shape| Colour::ALL.map(|colour| Thing { colour, shape })).collect();
    things.sort();
    things
}

/// No colour and no shape loses much more than another, so that each is seen with most of the others.
fn divide_things(things: &[Thing], shapes: usize, key: u64) -> (Vec<Thing>, Vec<Thing>) {
    let count = share(things.len());
    let (of_colour, of_shape) = (count.div_ceil(Colour::ALL.len()), count.div_ceil(shapes));
    let mut held: Vec<Thing> = Vec::new();
    for at in ranked(things.len(), key, 0) {
        let thing = things[at];
        let same_colour = held.iter().filter(|other| other.colour == thing.colour).count();
        let same_shape = held.iter().filter(|other| other.shape == thing.shape).count();
        if held.len() < count && same_colour < of_colour && same_shape < of_shape {
            held.push(thing);
        }
    }
    things.iter().partition(|thing| !held.contains(thing))
}

fn divide_list<T: Copy>(list: Vec<T>, key: u64, level: u64) -> (Vec<T>, Vec<T>) {
    let held: BTreeSet<usize> = ranked(list.len(), key, level).into_iter().take(share(list.len())).collect();
    let pick = |of_held: bool| {
        let chosen = list.iter().enumerate().filter(|(at, _)| held.contains(at) == of_held);
        chosen.map(|(_, item)| *item).collect()
    };
    (pick(false), pick(true))
}

/// 15% of `count`, to the nearest.
fn share(count: usize) -> usize {
    (count * HELD_OUT_PERCENT + 50) / 100
}

fn ranked(count: usize, key: u64, level: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|&at| bits(key, level, at as u64, 0));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_share_nothing_and_leave_every_colour_and_shape() {
        for shapes in [&Shape::PLAIN[..], &Shape::ALL] {
            let [seen, held] = divide(shapes, 3);
            assert_eq!(held.things.len(), share(6 * shapes.len()), "{:?}", held.things);
            assert!(held.things.iter().all(|thing| !seen.things.contains(thing)));
            assert!(held.counts.iter().all(|count| !seen.counts.contains(count)));
            assert!(held.pairs.iter().all(|pair| !seen.pairs.contains(pair)));
            assert_eq!(seen.counts.len() + held.counts.len(), 3 * 6 * shapes.len());
            for thing in seen.things.iter().chain(&held.things) {
                assert!(seen.counts.iter().any(|(_, other)| other == thing), "{thing:?}");
                assert!(seen.pairs.iter().any(|(a, b)| a == thing || b == thing), "{thing:?}");
            }
            for colour in Colour::ALL {
                assert!(seen.things.iter().filter(|thing| thing.colour == colour).count() * 3 >= shapes.len() * 2);
            }
        }
    }
}
