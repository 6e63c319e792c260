//! wels-data
