//! The program from outside: what it writes, where, and with which exit code; what a kill at any moment leaves behind.

mod lab;

mod stages;

mod bits;
mod chat;

mod commands;

mod interruptions;

mod kills;

mod trouble;

mod serve;

mod eval;
mod verify;

mod account;
