//! The tools that environments have, and the tasks that are made for them.
//!
//! ```text
//! calculator     <tool>12*34</tool><result>408</result>              any expression, exactly
//! search         <tool>Mira</tool><result>Mira: friend Tavo, …</result>   the document that fits best
//! python         <tool>print(2**10)</tool><result>1024</result>      a program, in the jail
//! ```

pub mod calculator;

pub mod facts;

pub mod search;

pub mod python;

pub mod files;
