//! Which keys queries attend to, where a layer chooses some for each (see [`index`](super::index)).

use std::ops::Range;

use super::paged::PAGE;

/// Of each query the places of its keys in its sequence, ascending, with the scores that they were chosen by.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Where each query's begin; their number at the end.
    starts: Vec<usize>,
    keys: Vec<u32>,
    scores: Vec<f32>,
}

impl Chosen {
    /// `counts[T]` keys for each query, one query's after the other's.
    ///
    /// # Panics
    /// If there are more or fewer keys or scores than that.
    pub fn new(counts: impl IntoIterator<Item = usize>, keys: Vec<u32>, scores: Vec<f32>) -> Chosen {
        let mut starts = vec![0];
        for count in counts {
            starts.push(starts[starts.len() - 1] + count);
        }
        let total = starts[starts.len() - 1];
        assert!(
            (keys.len(), scores.len()) == (total, total),
            "{} keys, {} scores: not {total}",
            keys.len(),
            scores.len()
        );
        Chosen { starts, keys, scores }
    }

    /// T.
    pub fn queries(&self) -> usize {
        self.starts.len() - 1
    }

    /// Keys of all queries together.
    pub fn total(&self) -> usize {
        self.keys.len()
    }

    /// Where a query's keys lie among all.
    #[inline]
    pub fn range(&self, query: usize) -> Range<usize> {
        self.starts[query]..self.starts[query + 1]
    }

    /// A query's keys.
    #[inline]
    pub fn of(&self, query: usize) -> &[u32] {
        &self.keys[self.range(query)]
    }

    /// What they were chosen by.
    #[inline]
    pub fn scores(&self, query: usize) -> &[f32] {
        &self.scores[self.range(query)]
    }

    /// Those of some queries alone.
    pub fn part(&self, queries: Range<usize>) -> Chosen {
        let all = self.starts[queries.start]..self.starts[queries.end];
        let counts = queries.map(|query| self.range(query).len());
        Chosen::new(counts, self.keys[all.clone()].to_vec(), self.scores[all].to_vec())
    }

    /// Those of the first, then of the next.
    pub fn joined(parts: &[Chosen]) -> Chosen {
        let counts = parts.iter().flat_map(|part| (0..part.queries()).map(|query| part.of(query).len()));
        let keys = parts.iter().flat_map(|part| &part.keys).copied().collect();
        Chosen::new(counts, keys, parts.iter().flat_map(|part| &part.scores).copied().collect())
    }

    /// Checks what attention relies on: a query for each of `places`, where it stands in its sequence, with at least
    /// one key, ascending, none behind itself.
    pub(super) fn check(&self, places: impl Iterator<Item = usize>) {
        let mut queries = 0;
        for place in places {
            assert!(queries < self.queries(), "keys of {} queries alone", self.queries());
            let keys = self.of(queries);
            let ascending = keys.windows(2).all(|pair| pair[0] < pair[1]);
            let last = keys.last().map(|last| *last as usize);
            assert!(ascending && last.is_some_and(|last| last <= place), "keys {keys:?} of the query at {place}");
            queries += 1;
        }
        assert!(queries == self.queries(), "keys of {} queries for {queries}", self.queries());
    }

    /// Sets what a row has in the columns of keys that were not chosen, and behind them.
    #[inline]
    pub(super) fn keep(&self, query: usize, row: &mut [f32], other: f32) {
        let mut next = 0;
        for key in self.of(query) {
            row[next..*key as usize].fill(other);
            next = *key as usize + 1;
        }
        row[next..].fill(other);
    }

    /// The same of a row that has the keys of some pages alone, `which` of the sequence, ascending.
    #[inline]
    pub(super) fn keep_in_pages(&self, query: usize, which: &[u32], row: &mut [f32], other: f32) {
        let (mut next, mut page) = (0, 0);
        for key in self.of(query) {
            let (of_key, slot) = (key / PAGE as u32, *key as usize % PAGE);
            page += which[page..].iter().position(|page| *page == of_key).expect("a page for each chosen key");
            let column = PAGE * page + slot;
            row[next..column].fill(other);
            next = column + 1;
        }
        row[next..].fill(other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen() -> Chosen {
        Chosen::new([1, 2, 2], vec![0, 0, 1, 3, 40], vec![0.5, 1.0, 2.0, 3.0, 4.0])
    }

    #[test]
    fn what_is_not_chosen_is_set() {
        let chosen = chosen();
        let mut row = [7.0; 4];
        chosen.keep(1, &mut row, 0.0);
        assert_eq!(row, [7.0, 7.0, 0.0, 0.0]);
        let mut row = [7.0; 32];
        chosen.keep_in_pages(2, &[0, 2], &mut row, 0.0);
        let kept: Vec<usize> = (0..32).filter(|i| row[*i] == 7.0).collect();
        assert_eq!(kept, [3, 24]);
    }

    #[test]
    fn parts_are_those_of_their_queries() {
        let part = chosen().part(1..3);
        assert_eq!((part.queries(), part.total()), (2, 4));
        assert_eq!((part.of(1), part.scores(0)), (&[3, 40][..], &[1.0, 2.0][..]));
    }

    #[test]
    #[should_panic(expected = "of the query at 39")]
    fn no_key_stands_behind_its_query() {
        chosen().check([0, 1, 39].into_iter());
    }
}
