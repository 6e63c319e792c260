//! The jail: one attempt to escape a test, each tried three times with the same verdict; HumanEval's own solutions.
//!
//! This binary is also the jail's program, so it has its own `main`. HumanEval is read from the file that
//! `WELS_HUMANEVAL` names; without it that test says so and does not run.

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
    use std::path::{Path, PathBuf};
    use std::process::ExitCode;
    use std::sync::{Arc, OnceLock};
    use std::thread;

    use libtest_mimic::{Arguments, Failed, Trial};
    use wels_tasks::benchmarks::{Benchmark, Question, read};
    use wels_tasks::jail::{self, Jail, JailError, Limits, Verdict};
    use wels_tasks::{Item, Listed, Style, Task};

    pub fn main() -> ExitCode {
        let arguments: Vec<String> = std::env::args().collect();
        if arguments.get(1).is_some_and(|verb| verb == jail::VERB) {
            jail::main(&arguments[2..]);
        }
        let options = Arguments::from_args();
        if let Err(JailError::Refused { reason }) = the_jail() {
            eprintln!("NOT TESTED: {reason}");
            return ExitCode::SUCCESS;
        }
        let mut trials: Vec<Trial> =
            ESCAPES.iter().map(|(name, code, accepted)| Trial::test(*name, move || escape(code, *accepted))).collect();
        trials.push(Trial::test("files_within_the_scratch_folder_work", scratch_works));
        trials.push(Trial::test("leaving_early_does_not_pass", leaving_early));
        trials.push(Trial::test("a_missing_interpreter_is_refused", missing_interpreter));
        trials.push(Trial::test("the_order_of_sets_is_the_same_in_every_run", the_same_hashes));
        match std::env::var_os("WELS_HUMANEVAL") {
            Some(path) => trials.push(Trial::test("humaneval", move || humaneval(Path::new(&path)))),
            None => eprintln!("NOT TESTED: HumanEval's solutions; WELS_HUMANEVAL names no HumanEval.jsonl.gz"),
        }
        libtest_mimic::run(&options, trials).exit_code()
    }

    fn limits() -> Limits {
        Limits { cpu_s: 2, wall_s: 6, memory_bytes: 256 << 20, disk_bytes: 8 << 20, ..Limits::default() }
    }

    fn the_jail() -> Result<&'static Jail, &'static JailError> {
        static JAIL: OnceLock<Result<Jail, JailError>> = OnceLock::new();
        let make = || Jail::new(std::env::current_exe().unwrap(), "python3", limits());
        JAIL.get_or_init(make).as_ref()
    }

    fn run(code: &str) -> Verdict {
        the_jail().expect("tried before the tests").run(code).expect("the jail works")
    }

    /// Whether a verdict is what the attempt should end with.
    type Accepted = fn(&Verdict) -> bool;

    fn passed(verdict: &Verdict) -> bool {
        *verdict == Verdict::Passed
    }

    /// Attempts end in one of two ways: the program passes because it finds that it could do nothing (its assertions
    /// say so), or a limit ends it.
    const ESCAPES: &[(&str, &str, Accepted)] = &[
        ("network", include_str!("escapes/network.py"), passed),
        ("fork_bomb", include_str!("escapes/fork_bomb.py"), passed),
        ("thread_bomb", include_str!("escapes/thread_bomb.py"), passed),
        ("memory", include_str!("escapes/memory.py"), passed),
        ("disk", include_str!("escapes/disk.py"), passed),
        ("many_files", include_str!("escapes/many_files.py"), passed),
        ("signals_to_others", include_str!("escapes/signals.py"), passed),
        ("proc", include_str!("escapes/proc.py"), passed),
        ("symlinks", include_str!("escapes/symlinks.py"), passed),
        ("files_outside", include_str!("escapes/files_outside.py"), passed),
        ("privileges", include_str!("escapes/privileges.py"), passed),
        ("namespaces_and_tracing", include_str!("escapes/system_calls.py"), passed),
        ("endless_output", "while True: print('x' * 1000)", |v| *v == Verdict::OutputLimit),
        ("endless_errors", "import sys\nwhile True: sys.stderr.write('x' * 1000)", |v| *v == Verdict::OutputLimit),
        ("endless_loop", "while True: pass", |v| *v == Verdict::TimeLimit),
        ("hanging", "import time\ntime.sleep(1000)", |v| *v == Verdict::TimeLimit),
        ("hanging_without_signals", include_str!("escapes/unkillable.py"), |v| *v == Verdict::TimeLimit),
        ("crash", "import ctypes\nctypes.string_at(0)", |v| *v == Verdict::Killed(11)),
    ];

    fn escape(code: &str, accepted: Accepted) -> Result<(), Failed> {
        let verdicts: Vec<Verdict> = (0..3).map(|_| run(code)).collect();
        if verdicts.iter().all(accepted) && verdicts.iter().all(|verdict| *verdict == verdicts[0]) {
            Ok(())
        } else {
            Err(format!("{verdicts:?}").into())
        }
    }

    fn check(holds: bool, verdict: Verdict) -> Result<(), Failed> {
        if holds { Ok(()) } else { Err(format!("{verdict:?}").into()) }
    }

    fn scratch_works() -> Result<(), Failed> {
        let verdict = run("open('a', 'w').write('b')\nassert open('a').read() == 'b'\n\
             import os, threading\nassert os.listdir('.') == ['a']\n\
             t = threading.Thread(target=lambda: None); t.start(); t.join()");
        check(verdict == Verdict::Passed, verdict)
    }

    fn the_same_hashes() -> Result<(), Failed> {
        let order = || run("raise ValueError(list({'one', 'two', 'three', 'four', 'five', 'six', 'seven'}))");
        let first = order();
        assert!(matches!(&first, Verdict::Failed(message) if message.contains("'seven'")), "{first:?}");
        (0..4).for_each(|_| assert_eq!(order(), first));
        Ok(())
    }

    fn leaving_early() -> Result<(), Failed> {
        for code in
            ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit", "quit = exit = None; 1 / 0"]
        {
            let verdict = run(code);
            check(matches!(verdict, Verdict::Failed(_)), verdict)?;
        }
        let verdict = run("assert 1 == 2, 'no'");
        check(verdict == Verdict::Failed("AssertionError: no".to_owned()), verdict)
    }

    fn missing_interpreter() -> Result<(), Failed> {
        let program: PathBuf = std::env::current_exe().unwrap();
        match Jail::new(program, "no-such-python", limits()) {
            Err(JailError::Refused { reason }) if reason.contains("no-such-python") => Ok(()),
            Err(error) => Err(error.to_string().into()),
            Ok(_) => Err("it was accepted".into()),
        }
    }

    /// Every canonical solution passes; each of five ways to be wrong fails.
    fn humaneval(path: &Path) -> Result<(), Failed> {
        let questions = read(Benchmark::HumanEval, path)?;
        let items: Vec<_> = questions.iter().map(|q| Benchmark::HumanEval.item(q, &[], Style::Terse)).collect();
        let jail =
            Jail::new(std::env::current_exe()?, "python3", Limits { cpu_s: 20, wall_s: 120, ..Limits::default() })?;
        let short =
            Jail::new(std::env::current_exe()?, "python3", Limits { cpu_s: 1, wall_s: 2, ..Limits::default() })?;
        let format = Benchmark::HumanEval.format(Style::Terse);
        let task = |jail| Listed {
            name: "humaneval".into(),
            items: items.clone(),
            format,
            language: None,
            jail: Some(Arc::new(jail)),
        };
        let (task, hasty) = (task(jail), task(short));
        let pairs: Vec<_> = questions.iter().zip(&items).collect();
        // Most of the time goes into waiting for what hangs.
        let failures: Vec<String> = thread::scope(|scope| {
            let parts = pairs.chunks(pairs.len().div_ceil(8));
            let parts: Vec<_> = parts.map(|part| scope.spawn(|| failures_among(part, &task, &hasty))).collect();
            parts.into_iter().flat_map(|part| part.join().expect("no panic")).collect()
        });
        eprintln!("HumanEval: {} problems, {} failures", items.len(), failures.len());
        if failures.is_empty() && items.len() == 164 { Ok(()) } else { Err(failures.join("\n").into()) }
    }

    fn failures_among(part: &[(&Question, &Item)], task: &Listed, hasty: &Listed) -> Vec<String> {
        let wrong = ["    return None\n", "    raise ValueError\n", "    import os; os._exit(0)\n", "    return (\n"];
        let hanging = "    import time; time.sleep(1000)\n";
        let mut failures = Vec::new();
        for (question, item) in part {
            let cases = wrong.iter().map(|body| (task, *body, false));
            let right = (task, question.shown_answer.as_str(), true);
            for (task, body, expected) in cases.chain([right, (hasty, hanging, false)]) {
                match task.grade(item, body) {
                    Ok(grade) if grade.correct == expected => {}
                    Ok(grade) => failures.push(format!("{}: {} with {body}", item.id, grade.reason)),
                    Err(error) => failures.push(format!("{}: {error}", item.id)),
                }
            }
        }
        failures
    }
}
