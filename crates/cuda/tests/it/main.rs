//! The device on the emulator, against the processor.
#![cfg(feature = "emulator")]

#[test]
fn three_kernels_run() {
    use std::sync::Arc;
    use wels_cuda::launch::{Buffer, Driver, Launch, emulator::Emulator};
    let driver: Arc<dyn Driver> = match Emulator::open(7) {
        Ok(driver) => driver,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let x: Vec<f32> = (0..3 * 37).map(|i| (i * 7919 % 1000) as f32 / 300.0 - 1.5).collect();
    let w: Vec<f32> = (0..37).map(|i| 1.0 + i as f32 / 999.0).collect();
    let (x, w) = (Buffer::of(&driver, &bytes(&x)).unwrap(), Buffer::of(&driver, &bytes(&w)).unwrap());
    let (mut y, mut rstd) = (Buffer::new(&driver, 3 * 37 * 4).unwrap(), Buffer::new(&driver, 3 * 4).unwrap());
    Launch::new(&driver, "rms_norm").over(3 * 16).read(&x).read(&w).float(1e-6).write(&mut y).write(&mut rstd).int(3).int(37).run();
    let mut out = vec![0; 12];
    rstd.copy_out(0, &mut out).unwrap();
    let rstd: Vec<f32> = out.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert!(rstd.iter().all(|r| *r > 0.5 && *r < 2.0), "{rstd:?}");
}
