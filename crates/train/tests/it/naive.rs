//! Another device: nothing above it looks into memory, waits for what it does not need, or knows which one it is.

use std::process::Command;

use wels_cpu::testing::VARIABLE;

#[test]
fn everything_passes_on_the_naive_device() {
    let mut again = Command::new(std::env::current_exe().expect("this program"));
    again.args(["--skip", "naive_device", "--test-threads", "2", "-q"]).env(VARIABLE, "naive");
    let output = again.output().expect("this program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}
