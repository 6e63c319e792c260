//! Pictures to learn from without a download: worlds of drawn scenes with captions and questions that are true by
//! construction, and a grader that finds the objects of a picture again.
//!
//! ```text
//! scene      (world, split, kind, seed, number) → caption, specification, picture
//! questions  scene × seed                       → questions and their answers
//! grade      specification × picture            → passes, or why not
//! geneval    published prompts × what a detector found, dpg: prompts × answers to questions
//! captioned  folders, JSONL, Parquet, tar of one's own → encoded pictures with captions
//! ```
//! Pictures are drawn by integers, without antialiasing: the same bytes on every machine. No caption of
//! training, and no picture for one, has a combination that its kind holds out ([`combinations`]).
//!
//! This crate knows no model and decodes no pictures, opens no connection and prints nothing.

#![forbid(unsafe_code)]

pub mod shape;

pub mod combinations;

pub mod world;

pub mod spec;

pub mod picture;

pub mod scene;

pub mod questions;

pub mod answers;

pub mod find;

pub mod grade;

pub mod geneval;

pub mod dpg;

pub mod program;

pub mod captioned;

pub mod read;

mod draw;

pub use combinations::Split;
pub use find::Object;
pub use grade::{Grade, grade};
pub use picture::Rgb;
pub use questions::Question;
pub use scene::{Scene, specs};
pub use spec::{Kind, Spec};
pub use world::World;
