//! Numbers, counted by size.

use std::sync::{Mutex, PoisonError};

/// Upper bounds, vLLM's: its dashboards ask for quantiles, and those of two servers compare when their bounds agree.
const BOUNDS: [&[f64]; 4] = [
    &[
        0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
        160.0, 640.0, 2560.0,
    ],
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0],
    &[
        0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
        1920.0, 7680.0,
    ],
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5],
];

/// By one of [`BOUNDS`].
pub(in crate::http) struct Histogram<const WHICH: usize>(Mutex<Counts>);

/// What was counted.
#[derive(Clone)]
pub(super) struct Counts {
    pub bounds: &'static [f64],
    /// For each bound, how many were no greater.
    pub buckets: Vec<u64>,
    pub count: u64,
    pub sum: f64,
}

impl<const WHICH: usize> Default for Histogram<WHICH> {
    fn default() -> Self {
        let bounds = BOUNDS[WHICH];
        Histogram(Mutex::new(Counts { bounds, buckets: vec![0; bounds.len()], count: 0, sum: 0.0 }))
    }
}

impl<const WHICH: usize> Histogram<WHICH> {
    /// Counts a number.
    pub fn add(&self, value: f64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = counts.bounds.partition_point(|bound| *bound < value);
        counts.buckets[first..].iter_mut().for_each(|bucket| *bucket += 1);
        counts.count += 1;
        counts.sum += value;
    }

    pub(super) fn counts(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
