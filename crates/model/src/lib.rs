//! wels-model
