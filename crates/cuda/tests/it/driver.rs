//! What the emulator finds out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use wels_cuda::Cuda;
use wels_cuda::launch::{Buffer, Driver, Launch};
use wels_device::{Device, Precision};

use crate::lab::emulator;

fn message(work: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(work)).expect_err("it panics");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

fn driver() -> Option<Arc<dyn Driver>> {
    emulator().map(|it| it as Arc<dyn Driver>)
}

#[test]
fn arguments_are_held_against_the_kernel() {
    let Some(driver) = driver() else { return };
    let (x, mut y) = (Buffer::new(&driver, 64).unwrap(), Buffer::new(&driver, 64).unwrap());
    let wrong = message(|| Launch::new(&driver, "add").over(16).read(&x).write(&mut y).int(16).run());
    assert!(wrong.contains("arguments of add"), "{wrong}");
    let wrong = message(|| Launch::new(&driver, "no_such_kernel").run());
    assert!(wrong.contains("there is no kernel no_such_kernel"), "{wrong}");
}

#[test]
fn writing_behind_a_buffer_is_seen_when_it_is_given_back() {
    let Some(driver) = driver() else { return };
    let x = Buffer::new(&driver, 400).unwrap();
    let mut y = Buffer::new(&driver, 64).unwrap();
    Launch::new(&driver, "add").over(20).read(&x).write(&mut y).long(20).run();
    let wrong = message(move || drop(y));
    assert!(wrong.contains("outside of a buffer of 64 bytes"), "{wrong}");
}

#[test]
fn too_little_shared_memory_is_seen() {
    let Some(driver) = driver() else { return };
    let (mut logits, targets) = (Buffer::new(&driver, 4000).unwrap(), Buffer::of(&driver, &[0; 4]).unwrap());
    let mut logp = Buffer::new(&driver, 4).unwrap();
    let wrong = message(|| {
        let launch = Launch::new(&driver, "head_rows").shared(8200).write(&mut logits).read(&targets).write(&mut logp);
        launch.int(0).int(900).int(900).int(0).int(0).read_if(None).float(0.0).float(0.0).float(0.0).float(0.0).run();
    });
    assert!(wrong.contains("beyond its 8200 bytes of shared memory"), "{wrong}");
}

#[test]
fn there_is_no_figure_of_a_card_that_is_none() {
    let Some(driver) = driver() else { return };
    let device: Arc<dyn Device> = Cuda::on(driver);
    assert_eq!((device.peak_flops(Precision::Bf16), device.peak_bytes_per_second()), (None, None));
    assert_eq!((device.memory(), device.energy_joules()), (None, None));
}

#[test]
fn memory_is_poisoned() {
    let Some(driver) = driver() else { return };
    let mut bytes = [0; 8];
    Buffer::new(&driver, 8).unwrap().copy_out(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0xff; 8]);
}
