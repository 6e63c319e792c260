//! Panics of other crates' parsers, as errors.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs a call into a parser that may panic on damaged input; `None` if it did. The panic is not reported on stderr:
/// the caller has a better message. Panics elsewhere are reported as before.
pub(crate) fn catch<T>(call: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                report(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    QUIET.set(before);
    result.ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn panics_become_none() {
        assert_eq!(super::catch(|| 3), Some(3));
        assert_eq!(super::catch(|| -> u32 { panic!("not to be seen") }), None);
    }
}
