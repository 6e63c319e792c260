//! What is said where there is no card.

use wels_cuda::{Cuda, Unavailable};

#[test]
fn a_machine_without_a_card_is_told_so_in_a_sentence() {
    let error = match Cuda::open() {
        Ok(device) => return eprintln!("SKIPPED: there is a card, {device:?}"),
        Err(error) => error,
    };
    let sentence = error.to_string();
    assert!(!sentence.contains('\n') && sentence.len() > 20, "{sentence}");
    if error == Unavailable::Driver {
        assert!(sentence.contains("libcuda.so.1"), "{sentence}");
    }
    println!("{sentence}");
}
