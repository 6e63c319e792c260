//! The tool `python` in the jail: what it says, and what ends it.
//!
//! This binary is also the jail's program, so it has its own `main`. Where there is no jail, it says so, and that the
//! tool is refused is what is tested.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("the jail exists on Linux only: nothing is tested");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::process::ExitCode;
    use std::time::{Duration, Instant};

    use libtest_mimic::{Arguments, Failed, Trial};
    use serde_json::json;
    use wels_agent::python::Python;
    use wels_agent::{Outcome, Tool};
    use wels_tasks::jail::{self, JailError, Limits};

    const LIMITS: Limits = Limits {
        cpu_s: 2,
        wall_s: 20,
        memory_bytes: 512 << 20,
        disk_bytes: 8 << 20,
        output_bytes: 64 << 10,
        threads: 16,
    };

    pub fn main() -> ExitCode {
        let arguments: Vec<String> = std::env::args().collect();
        if arguments.get(1).is_some_and(|verb| verb == jail::VERB) {
            jail::main(&arguments[2..]);
        }
        let options = Arguments::from_args();
        if let Err(JailError::Refused { reason }) = tool() {
            eprintln!("NOT TESTED: {reason}");
            return ExitCode::SUCCESS;
        }
        let told = TOLD.iter().map(|(name, code, worked, text)| {
            Trial::test(*name, move || check(&run(code), *worked, |said| said == *text, text))
        });
        let ended = ENDED.iter().map(|(name, code, part)| {
            Trial::test(*name, move || check(&run(code), false, |said| said.contains(part), part))
        });
        let mut trials: Vec<Trial> = told.chain(ended).collect();
        trials.push(Trial::test("a_program_is_stopped_at_once", stopped));
        trials.push(Trial::test("nothing_is_kept_between_calls", nothing_kept));
        libtest_mimic::run(&options, trials).exit_code()
    }

    fn tool() -> Result<Python, JailError> {
        Python::new(std::env::current_exe().expect("this program"), LIMITS)
    }

    fn run(code: &str) -> Outcome {
        tool().expect("there is a jail").call(&json!({"code": code}), &|| false)
    }

    fn check(outcome: &Outcome, worked: bool, is: impl Fn(&str) -> bool, expected: &str) -> Result<(), Failed> {
        match outcome.worked == worked && is(&outcome.text) {
            true => Ok(()),
            false => Err(format!("{outcome:?}, and not {worked} with {expected:?}").into()),
        }
    }

    /// Name, program, whether it works, and all that the model is told.
    const TOLD: [(&str, &str, bool, &str); 7] = [
        ("what_is_printed_is_told", "print('a')\nprint('é', end='')", true, "a\né"),
        ("the_last_line_is_worth_something", "x = 20\nx + 1", true, "21"),
        ("silence_is_told", "x = 1", true, "[it printed nothing]"),
        ("both_streams_are_told", "import sys\nprint('e', file=sys.stderr)\nprint('o')", true, "o\n[stderr]\ne"),
        (
            "a_failure_has_its_lines",
            "def f():\n    return 1 / 0\nf()",
            false,
            "[stderr]\nTraceback (most recent call last):\n  File \"program.py\", line 3, in <module>\n    f()\n  \
             File \"program.py\", line 2, in f\n    return 1 / 0\n           ~~^~~\nZeroDivisionError: division by zero\n\
             [the program failed: exit code 1]",
        ),
        ("an_exit_code_is_told", "print(1)\nraise SystemExit(5)", false, "1\n[the program failed: exit code 1]"),
        ("there_is_nothing_on_stdin", "import sys\nprint(repr(sys.stdin.read()))", true, "''"),
    ];

    /// Name, program, and a part of what the model is told.
    const ENDED: [(&str, &str, &str); 8] = [
        ("time_ends_it", "print('begun')\nwhile True: pass", "begun\n[ended after its time: 2 s of the processor"),
        ("output_ends_it", "while True: print('x' * 1000)", "[ended: it wrote more than 65536 bytes]"),
        ("memory_is_limited", "x = bytearray(1 << 30)", "MemoryError"),
        ("files_are_not_there", "open('/etc/passwd')", "No such file or directory"),
        ("the_disk_is_limited", "open('f', 'wb').write(bytes(9 << 20))\nprint('written')", "[the program failed"),
        ("there_is_no_network", "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", "[the program failed"),
        ("there_are_no_programs", "import subprocess\nsubprocess.run(['/bin/ls'])", "[the program failed"),
        ("a_syntax_error_is_told", "print(", "SyntaxError: '(' was never closed"),
    ];

    fn stopped() -> Result<(), Failed> {
        let begin = Instant::now();
        let mut tool = tool().expect("there is a jail");
        let ready = begin.elapsed();
        let stop = || begin.elapsed() > ready + Duration::from_millis(500);
        let outcome = tool.call(&json!({"code": "import time\ntime.sleep(60)"}), &stop);
        check(&outcome, false, |said| said == "[stopped by the user]", "stopped")?;
        match begin.elapsed() < ready + Duration::from_secs(15) {
            true => Ok(()),
            false => Err("it was not stopped at once".into()),
        }
    }

    fn nothing_kept() -> Result<(), Failed> {
        let mut tool = tool().expect("there is a jail");
        tool.call(&json!({"code": "open('kept', 'w').write('x')\nx = 1"}), &|| false);
        let outcome = tool.call(&json!({"code": "import os\nprint(os.listdir('.'), 'x' in globals())"}), &|| false);
        check(&outcome, true, |said| said == "[] False", "[] False")
    }
}
