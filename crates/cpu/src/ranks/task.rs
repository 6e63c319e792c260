//! What the first rank asks of the others, and how it is written: words of 32 bits, little-endian.

use std::borrow::{Borrow, Cow};
use std::ops::Range;

use wels_comm::{from_bytes, to_bytes};
use wels_device::Gating;
use wels_kernels::quant::{self, QuantMatrix};
use wels_kernels::swiglu;

use super::part::Part;

/// Rows of x for the matrices of a parameter: matrix e has the slots `offsets[e]..offsets[e + 1]`.
pub(crate) struct Grouped<'a> {
    pub offsets: Cow<'a, [u32]>,
    /// The row of x of each slot, if x is not in their order.
    pub rows: Option<Cow<'a, [u32]>>,
    /// Width of x.
    pub k: usize,
    pub x: Cow<'a, [f32]>,
}

impl Grouped<'_> {
    pub fn slots(&self) -> usize {
        self.offsets.last().map_or(0, |last| (last - self.offsets[0]) as usize)
    }

    pub fn borrowed(&self) -> Grouped<'_> {
        let rows = self.rows.as_ref().map(|rows| Cow::Borrowed(&rows[..]));
        Grouped { offsets: (&*self.offsets).into(), rows, k: self.k, x: (&*self.x).into() }
    }

    /// What some of the matrices need of it.
    pub fn of_matrices(&self, matrices: Range<usize>) -> Grouped<'_> {
        let offsets = &self.offsets[matrices.start..=matrices.end];
        let slots = offsets[0] as usize..offsets[offsets.len() - 1] as usize;
        let from_zero = offsets.iter().map(|offset| offset - offsets[0]).collect();
        let Some(rows) = &self.rows else {
            let x = &self.x[slots.start * self.k..slots.end * self.k];
            return Grouped { offsets: from_zero, rows: None, k: self.k, x: x.into() };
        };
        // Each row that is needed goes once.
        let mut places = vec![u32::MAX; self.x.len() / self.k];
        let (mut x, mut count) = (Vec::new(), 0);
        let place = |row: &u32| {
            let at = *row as usize;
            if places[at] == u32::MAX {
                places[at] = count;
                count += 1;
                x.extend_from_slice(&self.x[at * self.k..(at + 1) * self.k]);
            }
            places[at]
        };
        let rows: Vec<u32> = rows[slots].iter().map(place).collect();
        Grouped { offsets: from_zero, rows: Some(rows.into()), k: self.k, x: x.into() }
    }

    /// `[slots, N]`.
    fn times(&self, x: &quant::Activations, matrices: &[QuantMatrix]) -> Vec<f32> {
        let n = matrices.first().map_or(0, QuantMatrix::rows);
        let mut y = vec![0.0; self.slots() * n];
        quant::grouped_linear(x, self.rows.as_deref(), &self.offsets, matrices, &mut y);
        y
    }
}

/// The parameters of gate, up and down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FeedForward<W> {
    pub gating: Gating,
    pub weights: W,
}

pub(super) enum Task<'a> {
    /// No part of what the others do.
    Nothing,
    /// The rank's rows of x times each of some matrices.
    Linear { ids: Vec<u32>, k: usize, x: Cow<'a, [f32]> },
    /// Rows times matrices of one parameter.
    Grouped { id: u32, of: Grouped<'a> },
    /// Rows through experts.
    FeedForward { ids: FeedForward<[u32; 3]>, of: Grouped<'a> },
    /// Rows of a matrix, counted from the rank's first.
    Rows { id: u32, rows: Vec<u32> },
    /// The last one, without an answer.
    End,
}

impl Task<'_> {
    pub fn run<P: Borrow<Part>>(&self, part: impl Fn(u32) -> P) -> Vec<f32> {
        match self {
            Task::Nothing | Task::End => Vec::new(),
            Task::Linear { ids, k, x } => {
                let parts: Vec<P> = ids.iter().map(|id| part(*id)).collect();
                let matrices: Vec<&QuantMatrix> =
                    parts.iter().map(|part| &Borrow::<Part>::borrow(part).pieces()[0]).collect();
                let rows = x.len() / k;
                let mut y = vec![0.0; rows * matrices.iter().map(|matrix| matrix.rows()).sum::<usize>()];
                let mut rest = &mut y[..];
                let mut products = Vec::with_capacity(matrices.len());
                for matrix in matrices {
                    let own = rest.split_off_mut(..rows * matrix.rows()).expect("room for all results");
                    products.push((matrix, own));
                }
                quant::linear_many(&quant::quantise_rows(x, *k), &mut products);
                y
            }
            Task::Grouped { id, of } => of.times(&quant::quantise_rows(&of.x, of.k), part(*id).borrow().pieces()),
            Task::FeedForward { ids: FeedForward { gating, weights }, of } => {
                let [gate, up, down] = weights.map(&part);
                let x = quant::quantise_rows(&of.x, of.k);
                let (mut gate, up) = (of.times(&x, gate.borrow().pieces()), of.times(&x, up.borrow().pieces()));
                let mut passed = vec![0.0; gate.len()];
                swiglu::forward(*gating, &gate, &up, &mut passed);
                std::mem::swap(&mut gate, &mut passed);
                let k = gate.len() / of.slots();
                let between = Grouped { offsets: (&*of.offsets).into(), rows: None, k, x: gate.into() };
                between.times(&quant::quantise_rows(&between.x, k), down.borrow().pieces())
            }
            Task::Rows { id, rows } => {
                let part = part(*id);
                let matrix = &part.borrow().pieces()[0];
                let mut y = vec![0.0; rows.len() * matrix.columns()];
                matrix.rows_of(rows, &mut y);
                y
            }
        }
    }

    pub fn written(&self) -> Vec<u8> {
        let mut to = Writer::default();
        match self {
            Task::End => to.word(0),
            Task::Nothing => to.word(1),
            Task::Linear { ids, k, x } => {
                to.word(2);
                to.words(ids);
                to.word(*k as u32);
                to.numbers(x);
            }
            Task::Grouped { id, of } => {
                to.word(3);
                to.word(*id);
                to.grouped(of);
            }
            Task::FeedForward { ids, of } => {
                to.word(4);
                to.words(&ids.weights);
                to.gating(ids.gating);
                to.grouped(of);
            }
            Task::Rows { id, rows } => {
                to.word(5);
                to.word(*id);
                to.words(rows);
            }
        }
        to.0
    }

    /// # Panics
    /// If it is not what [`Task::written`] has written.
    pub fn read(message: &[u8]) -> Task<'static> {
        let mut from = Reader(message);
        match from.word() {
            0 => Task::End,
            1 => Task::Nothing,
            2 => Task::Linear { ids: from.words(), k: from.word() as usize, x: from.numbers().into() },
            3 => Task::Grouped { id: from.word(), of: from.grouped() },
            4 => {
                let weights = from.words().try_into().expect("gate, up and down");
                Task::FeedForward { ids: FeedForward { gating: from.gating(), weights }, of: from.grouped() }
            }
            5 => Task::Rows { id: from.word(), rows: from.words() },
            other => panic!("no task is number {other}: the ranks are not of one program"),
        }
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn word(&mut self, word: u32) {
        self.0.extend_from_slice(&word.to_le_bytes());
    }

    fn words(&mut self, words: &[u32]) {
        self.word(words.len() as u32);
        words.iter().for_each(|word| self.word(*word));
    }

    fn numbers(&mut self, values: &[f32]) {
        self.word(values.len() as u32);
        self.0.extend_from_slice(&to_bytes(values));
    }

    fn gating(&mut self, gating: Gating) {
        match gating {
            Gating::Silu => self.word(0),
            Gating::GeluTanh => self.word(1),
            Gating::Clamped { limit, alpha } => {
                self.word(2);
                self.word(limit.to_bits());
                self.word(alpha.to_bits());
            }
            Gating::Limited { limit } => {
                self.word(3);
                self.word(limit.to_bits());
            }
        }
    }

    fn grouped(&mut self, of: &Grouped) {
        self.words(&of.offsets);
        self.words(&[u32::from(of.rows.is_some())]);
        self.words(of.rows.as_deref().unwrap_or_default());
        self.word(of.k as u32);
        self.numbers(&of.x);
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn word(&mut self) -> u32 {
        let word = self.0.split_off(..4).expect("a whole message");
        u32::from_le_bytes(word.try_into().expect("four bytes"))
    }

    fn words(&mut self) -> Vec<u32> {
        (0..self.word()).map(|_| self.word()).collect()
    }

    fn numbers(&mut self) -> Vec<f32> {
        let len = 4 * self.word() as usize;
        from_bytes(self.0.split_off(..len).expect("a whole message"))
    }

    fn gating(&mut self) -> Gating {
        match self.word() {
            0 => Gating::Silu,
            1 => Gating::GeluTanh,
            3 => Gating::Limited { limit: f32::from_bits(self.word()) },
            _ => Gating::Clamped { limit: f32::from_bits(self.word()), alpha: f32::from_bits(self.word()) },
        }
    }

    fn grouped(&mut self) -> Grouped<'static> {
        let offsets = self.words().into();
        let (named, rows) = (self.words() == [1], self.words());
        Grouped { offsets, rows: named.then(|| rows.into()), k: self.word() as usize, x: self.numbers().into() }
    }
}
