//! wels-runs
