//! Python that a model wrote, in the jail of the tasks.

use std::path::PathBuf;

use serde_json::{Value, json};
use wels_tasks::jail::{Jail, JailError, Limits, Ran, RanEnd};

use crate::tool::{Definition, Effect, Outcome, Stop, Tool, object};

/// Bytes of a program.
const CODE_BYTES_MAX: usize = 256 << 10;

/// Runs one program a call; nothing is kept from call to call.
pub struct Python {
    jail: Jail,
    limits: Limits,
}

impl Python {
    /// `program`: the executable that makes the jail, see [`Jail::new`].
    ///
    /// # Errors
    /// The jail's, where the system lacks a means for it.
    pub fn new(program: PathBuf, limits: Limits) -> Result<Python, JailError> {
        Ok(Python { jail: Jail::new(program, "python3", limits)?, limits })
    }

    /// What a program is ended by.
    pub fn default_limits() -> Limits {
        Limits { output_bytes: 256 << 10, ..Limits::default() }
    }
}

impl Tool for Python {
    fn definition(&self) -> Definition {
        let Limits { cpu_s, memory_bytes, .. } = self.limits;
        let description = format!(
            "Run a Python program and read what it prints. Standard library alone, no network, no files but an empty \
             folder; nothing is kept between calls. At most {cpu_s} s and {} MiB.",
            memory_bytes >> 20
        );
        let parameters = object(json!({"code": {"type": "string", "description": "the whole program"}}), &[]);
        Definition { name: "python".to_owned(), description, parameters }
    }

    fn effect(&self) -> Effect {
        Effect::Acts
    }

    fn preview(&self, arguments: &Value) -> String {
        arguments["code"].as_str().unwrap_or_default().trim_end().to_owned()
    }

    fn call(&mut self, arguments: &Value, stop: Stop) -> Outcome {
        let code = arguments["code"].as_str().unwrap_or_default();
        if code.len() > CODE_BYTES_MAX {
            return Outcome::failed(format!("{} bytes of code are more than {CODE_BYTES_MAX}", code.len()));
        }
        match self.jail.run(code, &|| stop()) {
            Ok(ran) => self.told(&ran),
            Err(error) => Outcome::failed(error.to_string()),
        }
    }
}

impl Python {
    fn told(&self, ran: &Ran) -> Outcome {
        let Limits { cpu_s, wall_s, output_bytes, .. } = self.limits;
        let end = match ran.end {
            RanEnd::Done => None,
            RanEnd::Failed => Some("the program failed: exit code 1".to_owned()),
            RanEnd::TimeLimit => {
                Some(format!("ended after its time: {cpu_s} s of the processor, {wall_s} s by the clock"))
            }
            RanEnd::OutputLimit => Some(format!("ended: it wrote more than {output_bytes} bytes")),
            RanEnd::Killed(signal) => Some(format!("ended by signal {signal}")),
            RanEnd::Stopped => Some("stopped by the user".to_owned()),
        };
        let mut parts = Vec::new();
        if ran.lost > 0 {
            parts.push(format!("[{} bytes before this left out]", ran.lost));
        }
        if !ran.stdout.is_empty() {
            parts.push(ran.stdout.trim_end().to_owned());
        }
        if !ran.stderr.is_empty() {
            parts.push(format!("[stderr]\n{}", ran.stderr.trim_end()));
        }
        let worked = end.is_none();
        parts.extend(end.map(|end| format!("[{end}]")));
        let text = if parts.is_empty() { "[it printed nothing]".to_owned() } else { parts.join("\n") };
        Outcome { text, worked }
    }
}
