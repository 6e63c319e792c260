//! Runs without a process around them: a host that a test holds, with a clock of its own.

mod budget;

mod cluster;

mod expert_parallel;

mod lab;
