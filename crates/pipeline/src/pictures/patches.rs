//! Patches of pictures in clusters: what the codes of a VQ tokenizer are to be for, where a recipe says so. A code then
//! depends on its own patch alone, and a model that draws has as little to learn as there is.
//!
//! Where pictures have no more patches than there are codes, each has a code of its own. Otherwise k-means: the first
//! centres by k-means++ (Arthur and Vassilvitskii 2007), then Lloyd's rounds, all sums in f64 and in a fixed order.

use std::collections::HashMap;

use wels_kernels::random::Key;

/// Patches that clusters are made of, at most: of more, every so manieth.
const DIFFERENT: usize = 20_000;
/// Lloyd's rounds, at most.
const ROUNDS: usize = 30;

/// A patch as bytes, pixel by pixel.
type Patch = Vec<u8>;

/// Which code a patch has.
pub(super) struct Clusters {
    known: HashMap<Patch, u32>,
    /// `[codes][numbers of a patch]`.
    centres: Vec<Vec<f64>>,
}

impl Clusters {
    /// Of the patches of pictures `[side², 3]` in bytes, `grid` on a side, which are as many as come.
    pub fn of(
        pictures: impl Iterator<Item = anyhow::Result<Vec<u8>>>,
        (side, grid): (usize, usize),
        codes: usize,
        key: Key,
    ) -> anyhow::Result<Clusters> {
        let mut counts: HashMap<Patch, u64> = HashMap::new();
        for picture in pictures {
            for patch in cut(&picture?, side, grid) {
                *counts.entry(patch).or_default() += 1;
            }
        }
        // The most frequent first, equal ones by their bytes.
        let mut patches: Vec<(Patch, u64)> = counts.into_iter().collect();
        patches.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        if patches.len() <= codes {
            let centres = patches.iter().map(|(patch, _)| numbers(patch)).collect();
            let known = patches.into_iter().map(|(patch, _)| patch).zip(0..).collect();
            return Ok(Clusters { known, centres });
        }
        let stride = patches.len().div_ceil(DIFFERENT);
        let points: Vec<(Vec<f64>, f64)> =
            patches.iter().step_by(stride).map(|(patch, count)| (numbers(patch), *count as f64)).collect();
        Ok(Clusters { known: HashMap::new(), centres: means(&points, codes, key) })
    }

    /// Where codes of `dim` numbers are as far apart as their patches: the pixels of the patch from −1 to 1, and a 1, so
    /// that brightness is a direction too. `None` where a code has not as many numbers.
    pub fn places(&self, dim: usize) -> Option<Vec<Vec<f32>>> {
        let place = |centre: &Vec<f64>| {
            let pixels = centre.iter().map(|x| (x / 127.5 - 1.0) as f32);
            let mut place: Vec<f32> = pixels.chain([1.0]).collect();
            place.resize(dim, 0.0);
            place
        };
        let longest = self.centres.iter().map(Vec::len).max().unwrap_or(0);
        (longest < dim).then(|| self.centres.iter().map(place).collect())
    }

    /// The code of each patch of a picture, row by row.
    pub fn codes(&self, picture: &[u8], side: usize, grid: usize) -> Vec<u32> {
        let code = |patch: Patch| match self.known.get(&patch) {
            Some(code) => *code,
            None => nearest(&self.centres, &numbers(&patch)).0 as u32,
        };
        cut(picture, side, grid).map(code).collect()
    }
}

fn numbers(patch: &[u8]) -> Vec<f64> {
    patch.iter().map(|byte| f64::from(*byte)).collect()
}

/// The patches of a picture, row by row.
fn cut(picture: &[u8], side: usize, grid: usize) -> impl Iterator<Item = Patch> + '_ {
    let patch = side / grid;
    (0..grid * grid).map(move |place| {
        let row = |y: usize| 3 * ((place / grid * patch + y) * side + place % grid * patch);
        (0..patch).flat_map(|y| &picture[row(y)..][..3 * patch]).copied().collect()
    })
}

/// The first of the nearest centres, and how far it is, squared.
fn nearest(centres: &[Vec<f64>], point: &[f64]) -> (usize, f64) {
    let mut best = (0, f64::INFINITY);
    for (i, centre) in centres.iter().enumerate() {
        let distance = centre.iter().zip(point).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        if distance < best.1 {
            best = (i, distance);
        }
    }
    best
}

/// Centres of weighted points, of which there are more.
fn means(points: &[(Vec<f64>, f64)], count: usize, key: Key) -> Vec<Vec<f64>> {
    let mut centres = vec![points[0].0.clone()];
    let mut distances: Vec<f64> = points.iter().map(|(point, _)| nearest(&centres, point).1).collect();
    while centres.len() < count {
        let all: f64 = points.iter().zip(&distances).map(|((_, weight), distance)| weight * distance).sum();
        let mut left = key.uniform_at(centres.len() as u64) * all;
        let at = points.iter().zip(&distances).position(|((_, weight), distance)| {
            left -= weight * distance;
            left < 0.0
        });
        let new = points[at.unwrap_or(points.len() - 1)].0.clone();
        for ((point, _), distance) in points.iter().zip(&mut distances) {
            *distance = distance.min(nearest(std::slice::from_ref(&new), point).1);
        }
        centres.push(new);
    }
    let mut of: Vec<usize> = vec![usize::MAX; points.len()];
    for _ in 0..ROUNDS {
        let now: Vec<usize> = points.iter().map(|(point, _)| nearest(&centres, point).0).collect();
        if now == of {
            break;
        }
        of = now;
        let mut sums = vec![(vec![0.0; points[0].0.len()], 0.0); centres.len()];
        for ((point, weight), centre) in points.iter().zip(&of) {
            let (sum, all) = &mut sums[*centre];
            sum.iter_mut().zip(point).for_each(|(sum, x)| *sum += weight * x);
            *all += weight;
        }
        for (centre, (sum, all)) in centres.iter_mut().zip(sums).filter(|(_, (_, all))| *all > 0.0) {
            *centre = sum.into_iter().map(|x| x / all).collect();
        }
    }
    centres
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { seed: 1, stream: 2 };

    /// A picture of 2 × 2 patches of 2 × 2 pixels of these bytes.
    fn picture(bytes: [u8; 4]) -> Vec<u8> {
        let pixel = |at: usize| [bytes[at / 4 / 2 * 2 + at % 4 / 2]; 3];
        (0..16).flat_map(pixel).collect()
    }

    #[test]
    fn few_patches_have_codes_of_their_own_by_frequency() {
        let pictures = [picture([9, 9, 9, 5]), picture([9, 7, 5, 9])];
        let clusters = Clusters::of(pictures.iter().cloned().map(Ok), (4, 2), 3, KEY).unwrap();
        assert_eq!(clusters.codes(&pictures[0], 4, 2), [0, 0, 0, 1]);
        assert_eq!(clusters.codes(&pictures[1], 4, 2), [0, 2, 1, 0]);
        let places = clusters.places(16).unwrap();
        assert_eq!((places[1][0], places[1][12], places[1][13]), (5.0 / 127.5 - 1.0, 1.0, 0.0));
        assert_eq!(clusters.places(12), None, "no room for them");
        // What was never seen has the code of what is nearest.
        assert_eq!(clusters.codes(&picture([200, 8, 0, 6]), 4, 2), [0, 0, 1, 1]);
    }

    #[test]
    fn more_patches_than_codes_are_clustered() {
        let near = |byte: u8| (0..4).map(move |d| picture([byte + d, byte + d, byte, byte]));
        let pictures: Vec<Vec<u8>> = [10, 100, 200].into_iter().flat_map(near).collect();
        let clusters = Clusters::of(pictures.iter().cloned().map(Ok), (4, 2), 3, KEY).unwrap();
        let codes: Vec<u32> = pictures.iter().map(|picture| clusters.codes(picture, 4, 2)[0]).collect();
        assert!(codes.chunks(4).all(|of_one| of_one.iter().all(|code| *code == of_one[0])), "{codes:?}");
        let mut different = codes.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different, [0, 1, 2]);
        let again = Clusters::of(pictures.into_iter().map(Ok), (4, 2), 3, KEY).unwrap();
        assert_eq!(again.centres, clusters.centres);
    }
}
