//! Ctrl-C, and a second process on the same run.

use std::process::Command;

use crate::lab::{Lab, wait_until};

#[test]
fn ctrl_c_saves_and_the_same_command_goes_on() {
    let lab = Lab::new();
    let slow = ("checkpoint_every = 5", "checkpoint_every = 20");
    let recipe = lab.recipe("asked", &[slow]);
    let mut child = lab.start(&["run", &recipe]);
    assert!(wait_until(&mut child, || lab.steps_seen("asked") >= 3), "the run was over before the signal");
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    let said = lab.end(child);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(said.failure(), "error: interrupted; the run is saved\nhint: go on with: wels run runs/asked\n");
    let steps = lab.steps_seen("asked");
    assert!(lab.at(&format!("runs/asked/pretrain/step-{steps:06}/DONE")).is_file(), "no checkpoint of step {steps}");

    lab.done(&["run", &recipe]);
    lab.done(&["run", &lab.recipe("whole", &[slow])]);
    assert_eq!(lab.weights("asked"), lab.weights("whole"));
    assert_eq!(lab.metrics("asked"), lab.metrics("whole"));
}

#[test]
fn two_processes_do_not_share_a_run() {
    let lab = Lab::new();
    let recipe = lab.recipe("shared", &[("steps = 20", "steps = 2000")]);
    let mut first = lab.start(&["run", &recipe]);
    assert!(wait_until(&mut first, || lab.steps_seen("shared") >= 1));
    let said = lab.wels(&["run", &recipe]);
    let pid = first.id();
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(said.code, Some(1));
    let expected = format!(
        "error: another process ({pid}) is using the run runs/shared\nhint: wait for it, end it, or give the run another run.name\n"
    );
    assert_eq!(said.failure(), expected);
    let mut third = lab.start(&["run", &recipe]);
    let steps = lab.steps_seen("shared");
    assert!(wait_until(&mut third, || lab.steps_seen("shared") != steps), "the lock outlived its process");
    third.kill().unwrap();
    third.wait().unwrap();
}
