//! What is said where there is no card.

use wels_cuda::{Cuda, Unavailable};
use wels_device::{Device, Precision};

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

#[test]
fn what_a_card_has_is_known_and_the_emulator_has_nothing() {
    if let Some(emulator) = crate::lab::emulator() {
        let device: std::sync::Arc<dyn Device> = Cuda::on(emulator);
        assert_eq!((device.peak_flops(Precision::Bf16), device.peak_bytes_per_second()), (None, None));
        assert_eq!((device.memory(), device.energy_joules()), (None, None));
    }
    let Ok(card) = Cuda::open() else { return eprintln!("SKIPPED: there is no card") };
    let (half, f32) = (card.peak_flops(Precision::Bf16), card.peak_flops(Precision::F32));
    assert!(half > f32 && f32 > Some(1e12), "{half:?} {f32:?}");
    assert!(card.peak_bytes_per_second() > Some(1e11));
    let memory = card.memory().expect("a card has memory");
    assert!(memory.free <= memory.total && memory.peak <= memory.total && memory.total > 1 << 30, "{memory:?}");
    let held = card.alloc(wels_device::Dtype::F32, 64 << 20);
    assert!(card.memory().expect("as before").peak >= 256 << 20);
    drop(held);
    println!("{half:?} {f32:?} {memory:?} {:?}", card.energy_joules());
}
