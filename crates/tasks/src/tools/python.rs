//! Python in the jail: nothing is kept from call to call.

use crate::jail::{Jail, Ran, RanEnd};
use crate::task::{Item, TaskError};
use crate::tooled::{Open, Tool};

/// Runs a program and says what it prints, and what its last line is worth.
pub struct Python {
    jail: Jail,
}

impl Python {
    /// In this jail.
    pub fn new(jail: Jail) -> Python {
        Python { jail }
    }
}

impl Tool for Python {
    fn about(&self) -> [&str; 2] {
        [
            "You can run Python programs; they have the standard library, and nothing is kept between two.",
            "print(2**10)",
        ]
    }

    fn open<'a>(&'a self, _: &'a Item, _: u64) -> Result<Box<dyn Open + 'a>, TaskError> {
        Ok(Box::new(Session { jail: &self.jail }))
    }

    fn is_slow(&self) -> bool {
        true
    }
}

struct Session<'a> {
    jail: &'a Jail,
}

impl Open for Session<'_> {
    fn call(&mut self, text: &str) -> Result<String, TaskError> {
        Ok(told(&self.jail.run(text, &|| false)?))
    }
}

/// What a model reads of a program's end. Of an error its last line: where it was raised is the model's own program.
fn told(ran: &Ran) -> String {
    let end = match ran.end {
        RanEnd::Done => None,
        RanEnd::Failed => {
            let last = ran.stderr.trim_end().lines().last().unwrap_or("the program failed");
            Some(format!("error: {last}"))
        }
        RanEnd::TimeLimit => Some("error: it took too long".to_owned()),
        RanEnd::OutputLimit => Some("error: it printed too much".to_owned()),
        RanEnd::Killed(signal) => Some(format!("error: ended by signal {signal}")),
        RanEnd::Stopped => Some("error: stopped".to_owned()),
    };
    let printed = ran.stdout.trim_end();
    match end {
        None if printed.is_empty() => "nothing printed".to_owned(),
        None => printed.to_owned(),
        Some(end) if printed.is_empty() => end,
        Some(end) => format!("{printed}\n{end}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_in_a_line() {
        let ran = |stdout: &str, stderr: &str, end| {
            told(&Ran { stdout: stdout.to_owned(), stderr: stderr.to_owned(), lost: 0, end })
        };
        assert_eq!(ran("1024\n", "", RanEnd::Done), "1024");
        assert_eq!(ran("", "", RanEnd::Done), "nothing printed");
        let trace =
            "Traceback (most recent call last):\n  File \"<answer>\", line 1\nZeroDivisionError: division by zero\n";
        assert_eq!(ran("7\n", trace, RanEnd::Failed), "7\nerror: ZeroDivisionError: division by zero");
        assert_eq!(ran("", "", RanEnd::TimeLimit), "error: it took too long");
    }
}
