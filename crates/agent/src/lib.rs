//! A model that acts: tools, who allows their calls, and the loop from a task to its answer.
//!
//! ```text
//! run       messages × tools          → answers and calls, until an answer calls nothing
//! tool      what a tool is; toolbox   names, each told to the model once
//! files     one folder: list, read, search, write, edit
//! python    code in the jail
//! mcp       servers of the Model Context Protocol, as child processes
//! change    what an edit does, as lines for people
//! ```
//!
//! **Invariants.** Knows no model and no terminal: the first is a trait ([`Model`]), the second another ([`Host`]). No
//! call is made that the host has not allowed. Whatever a tool or a server does, its call ends with a text for the
//! model; no path of a file tool leads out of its folder.

#![forbid(unsafe_code)]

pub mod tool;

pub mod run;

pub mod files;

pub mod python;

pub mod mcp;

#[cfg(unix)]
mod change;

pub use run::{Agent, Call, Context, End, Event, Host, Limits, Model, ModelError, Permission, Reply, ReplyEnd};
pub use tool::{Definition, Effect, Outcome, Stop, Tool, Toolbox};
