//! Worlds, captions, questions and the grader together; files that others wrote.

mod captioned;
mod exploits;
mod published;
mod scenes;
