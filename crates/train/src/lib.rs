//! wels-train
