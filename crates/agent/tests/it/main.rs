//! The loop with a model that follows a script; files, and paths that try to leave them; servers that misbehave.

mod files;

mod mcp;

mod run;
