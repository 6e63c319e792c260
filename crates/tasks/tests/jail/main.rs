//! The jail: attempts to escape, each made three times with the same verdict; attempts to forge a verdict; what tests
//! may ask of answers; HumanEval's own solutions.
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
mod cases;

#[cfg(target_os = "linux")]
mod linux {
    use std::path::{Path, PathBuf};
    use std::process::ExitCode;
    use std::sync::{Arc, OnceLock};
    use std::thread;
    use std::time::Instant;

    use libtest_mimic::{Arguments, Failed, Trial};
    use wels_tasks::benchmarks::{Benchmark, Question, read};
    use wels_tasks::jail::{self, Jail, JailError, Limits, Verdict};
    use wels_tasks::{Item, Listed, Style, Task};

    use super::cases;

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
        let escapes = ESCAPES.iter().map(|(name, code, accepted)| test(name, move || escape(code, *accepted)));
        let forgeries = FORGERIES.iter().map(|(name, code)| test(name, move || forgery(code)));
        let cases = cases::CASES.iter().map(|case| test(case.name, move || judged(case)));
        let mut trials: Vec<Trial> = escapes.chain(forgeries).chain(cases).collect();
        trials.push(test("files_within_the_scratch_folder_work", scratch_works));
        trials.push(test("leaving_early_does_not_pass", leaving_early));
        trials.push(test("no_exit_code_is_the_jails", exit_codes));
        trials.push(test("threads_of_other_jails_do_not_count", many_threads));
        trials.push(test("inherited_descriptors_are_closed", inherited_descriptors));
        trials.push(test("a_missing_interpreter_is_refused", missing_interpreter));
        trials.push(test("a_jail_that_does_not_start_is_refused", not_started));
        trials.push(test("the_order_of_sets_is_the_same_in_every_run", the_same_hashes));
        match std::env::var_os("WELS_HUMANEVAL") {
            Some(path) => {
                let path = PathBuf::from(path);
                let again = path.clone();
                trials.push(Trial::test("humaneval", move || humaneval(&path)));
                trials.push(Trial::test("humaneval_speed", move || humaneval_speed(&again)));
            }
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

    fn test(name: &str, run: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
        Trial::test(name, run)
    }

    fn judge(answer: &str, before: &str, tests: &str) -> Verdict {
        let submission = jail::Submission { answer, before, entry: "f", tests };
        the_jail().expect("tried before the tests").judge(&submission).expect("the jail works")
    }

    /// How code ends that passes if its end is reached.
    fn run(code: &str) -> Verdict {
        judge(&format!("{code}\n\n\ndef f():\n    return 'reached'\n"), "", "assert f() == 'reached'")
    }

    /// Whether a verdict is what the attempt should end with.
    type Accepted = fn(&Verdict) -> bool;

    fn passed(verdict: &Verdict) -> bool {
        *verdict == Verdict::Passed
    }

    /// Attempts end in one of two ways: the program passes because it finds that it could do nothing (its assertions
    /// say so), or a limit ends it.
    const ESCAPES: &[(&str, &str, Accepted)] = &[
        ("network", include_str!("../escapes/network.py"), passed),
        ("fork_bomb", include_str!("../escapes/fork_bomb.py"), passed),
        ("thread_bomb", include_str!("../escapes/thread_bomb.py"), passed),
        ("memory", include_str!("../escapes/memory.py"), passed),
        ("disk", include_str!("../escapes/disk.py"), passed),
        ("many_files", include_str!("../escapes/many_files.py"), passed),
        ("signals_to_others", include_str!("../escapes/signals.py"), passed),
        ("proc", include_str!("../escapes/proc.py"), passed),
        ("symlinks", include_str!("../escapes/symlinks.py"), passed),
        ("files_outside", include_str!("../escapes/files_outside.py"), passed),
        ("privileges", include_str!("../escapes/privileges.py"), passed),
        ("namespaces_and_tracing", include_str!("../escapes/system_calls.py"), passed),
        ("endless_output", "while True: print('x' * 1000)", |v| *v == Verdict::OutputLimit),
        ("endless_errors", "import sys\nwhile True: sys.stderr.write('x' * 1000)", |v| *v == Verdict::OutputLimit),
        ("endless_loop", "while True: pass", |v| *v == Verdict::TimeLimit),
        ("hanging", "import time\ntime.sleep(1000)", |v| *v == Verdict::TimeLimit),
        ("hanging_without_signals", include_str!("../escapes/unkillable.py"), |v| *v == Verdict::TimeLimit),
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

    /// Answers that are wrong, and pass where the tests run in their process. Each was seen to do so.
    const FORGERIES: &[(&str, &str)] = &[
        ("forged_by_frame_locals", include_str!("../forgeries/frame_locals.py")),
        ("forged_by_the_frames_of_threads", include_str!("../forgeries/current_frames.py")),
        ("forged_by_scanning_memory", include_str!("../forgeries/memory_scan.py")),
        ("forged_by_line_jumps", include_str!("../forgeries/line_jumps.py")),
        ("forged_by_patched_builtins", include_str!("../forgeries/patched_builtins.py")),
        ("forged_by_patched_modules", include_str!("../forgeries/patched_modules.py")),
        ("forged_by_what_equals_anything", include_str!("../forgeries/always_equal.py")),
        ("forged_by_numbers_that_equal_anything", include_str!("../forgeries/always_equal_number.py")),
        ("forged_by_changed_constants", include_str!("../forgeries/changed_constants.py")),
        ("forged_by_the_expected_values", include_str!("../forgeries/expected_values.py")),
        ("forged_by_writing_what_the_judge_writes", include_str!("../forgeries/own_verdict.py")),
    ];

    const SQUARES: &str = "import math\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n    \
                           assert abs(candidate(3) - 9) < 1e-6\n    assert math.isclose(candidate(1.5), 2.25)\n\n\n\
                           check(f)\n";

    fn forgery(code: &str) -> Result<(), Failed> {
        let honest = judge("def f(x):\n    return x * x", "", SQUARES);
        check(honest == Verdict::Passed, honest)?;
        let forged = judge(code, "", SQUARES);
        check(matches!(forged, Verdict::Failed(_)), forged)
    }

    fn judged(case: &cases::Case) -> Result<(), Failed> {
        let verdict = judge(case.answer, case.before, case.tests);
        let expected = match case.message {
            None => Verdict::Passed,
            Some(message) => Verdict::Failed(message.to_owned()),
        };
        check(verdict == expected, verdict)
    }

    /// Whatever the code exits with, wherever: a verdict on the code, and no failure of the jail.
    fn exit_codes() -> Result<(), Failed> {
        for code in [0, 1, 100, 111, 200, 201, 255] {
            for answer in [format!("import os\nos._exit({code})"), format!("import os\ndef f(): os._exit({code})")] {
                let verdict = judge(&answer, "", "assert f() == 1");
                check(verdict == Verdict::Failed("it left before its end".to_owned()), verdict)?;
            }
        }
        // Nor can it take back that the jail was set up.
        let verdict = run("import os, sys\nos.write(2, b'x' * 100_000 + b'\\nno namespaces')\nos._exit(200)");
        check(verdict == Verdict::Failed("it left before its end".to_owned()), verdict)
    }

    /// Twelve jails at once, each with twenty threads at once, again and again: one has 64, all together 240.
    fn many_threads() -> Result<(), Failed> {
        let code = "import threading\nfor _ in range(20):\n    barrier = threading.Barrier(20)\n    \
                    threads = [threading.Thread(target=barrier.wait) for _ in range(20)]\n    \
                    [thread.start() for thread in threads]\n    [thread.join() for thread in threads]\n";
        let verdicts: Vec<Verdict> = thread::scope(|scope| {
            let runs: Vec<_> = (0..12).map(|_| scope.spawn(|| run(code))).collect();
            runs.into_iter().map(|run| run.join().expect("no panic")).collect()
        });
        verdicts.into_iter().try_for_each(|verdict| check(verdict == Verdict::Passed, verdict))
    }

    /// A folder that the caller has open, and that its children inherit: the code finds no way to it.
    fn inherited_descriptors() -> Result<(), Failed> {
        let folder = tempfile::tempdir()?;
        let leak = std::fs::File::open(folder.path())?;
        let leak = nix::unistd::dup(&leak)?; // without the flag that closes it
        let verdict = run("import os\nfor number in range(64):\n    try:\n        \
                           os.close(os.open('leaked', os.O_CREAT | os.O_WRONLY, dir_fd=number))\n    \
                           except OSError:\n        continue\n    assert False, number\n");
        drop(leak);
        check(verdict == Verdict::Passed && std::fs::read_dir(folder.path())?.next().is_none(), verdict)
    }

    fn not_started() -> Result<(), Failed> {
        match Jail::new("/bin/true".into(), "python3", limits()) {
            Err(JailError::Refused { .. }) => Ok(()),
            Err(error) => Err(error.to_string().into()),
            Ok(_) => Err("it was accepted".into()),
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

    /// How long the canonical solutions take, one after another and eight at a time. Fails if one does not pass.
    fn humaneval_speed(path: &Path) -> Result<(), Failed> {
        let questions = read(Benchmark::HumanEval, path)?;
        let items: Vec<_> = questions.iter().map(|q| Benchmark::HumanEval.item(q, &[], Style::Terse)).collect();
        let jail = Jail::new(std::env::current_exe()?, "python3", Limits { cpu_s: 20, ..Limits::default() })?;
        let (name, format) = ("humaneval".into(), Benchmark::HumanEval.format(Style::Terse));
        let task = Listed { name, items: items.clone(), format, language: None, jail: Some(Arc::new(jail)) };
        let pairs: Vec<_> = questions.iter().zip(&items).collect();
        let right = |part: &[(&Question, &Item)]| -> usize {
            part.iter().filter(|(q, item)| task.grade(item, &q.shown_answer).is_ok_and(|grade| grade.correct)).count()
        };
        for threads in [1, 8] {
            let begin = Instant::now();
            let passed: usize = thread::scope(|scope| {
                let parts = pairs.chunks(pairs.len().div_ceil(threads));
                let parts: Vec<_> = parts.map(|part| scope.spawn(|| right(part))).collect();
                parts.into_iter().map(|part| part.join().expect("no panic")).sum()
            });
            let each = begin.elapsed().as_secs_f64() * 1e3 / pairs.len() as f64;
            eprintln!("HumanEval: {passed} of {} pass, {threads} at a time: {each:.1} ms each", pairs.len());
            if passed != pairs.len() {
                return Err(format!("{passed} of {}", pairs.len()).into());
            }
        }
        Ok(())
    }
}
