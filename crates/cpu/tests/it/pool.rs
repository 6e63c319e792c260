//! Tensors and the memory that is used again, on each device.

use std::sync::Arc;

use wels_cpu::naive::{Naive, POISON};
use wels_cpu::testing::{device, edit, host};
use wels_device::{Device, Dtype, Pool, Tensor};

fn devices() -> [Arc<dyn Device>; 2] {
    [wels_cpu::device(), Naive::new()]
}

fn tensor_of(pool: &Pool, values: &[f32]) -> Tensor {
    let mut tensor = pool.tensor(1, values.len());
    tensor.set(0, values);
    tensor
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Two buffers given back, and what the tensors hold that get them.
fn given_back(pool: &Pool) -> [Vec<u32>; 2] {
    let (mut a, mut b) = (pool.tensor(10, 100), pool.tensor(10, 100));
    a.fill(1.0);
    b.fill(2.0);
    drop(a);
    drop(b);
    let again = [pool.tensor(10, 100), pool.tensor(10, 100)];
    again.map(|tensor| bits(&host(&tensor)))
}

#[test]
fn buffers_come_back_last_in_first_out() {
    let pool = Pool::new(wels_cpu::device());
    assert!(given_back(&pool) == [2f32, 1f32].map(|value| vec![value.to_bits(); 1000]));
    let usage = pool.usage();
    assert_eq!((usage.live_bytes, usage.live_bytes_max, usage.held_bytes), (0, 2 * 4 * 1024, 2 * 4 * 1024));
    pool.trim();
    assert_eq!(pool.usage().held_bytes, 0);
}

#[test]
fn the_naive_device_poisons_what_comes_back() {
    let pool = Pool::new(Naive::new());
    assert!(given_back(&pool) == [vec![POISON; 1000], vec![POISON; 1000]]);
    assert_eq!(pool.usage().held_bytes, 2 * 4 * 1024, "and uses it again all the same");
}

#[test]
fn lengths_that_vary_share_buffers() {
    for device in devices() {
        let pool = Pool::new(device);
        for rows in [1000, 600, 900, 777, 501, 1000] {
            let tensors = [pool.tensor(rows, 64), pool.tensor(rows, 64)];
            assert!(tensors.iter().all(|tensor| tensor.len() == rows * 64 && host(tensor).len() == rows * 64));
            assert!(!tensors[0].shares_memory(&tensors[1]));
        }
        assert_eq!(pool.usage().held_bytes, 2 * 4 * 65536);
        drop(pool.tensor(100, 64)); // a tenth: one of its own
        assert!(pool.usage().held_bytes > 2 * 4 * 65536);
    }
}

#[test]
fn what_a_larger_buffer_held_before_is_not_the_tensors() {
    for device in devices() {
        let pool = Pool::new(device.clone());
        let mut large = pool.tensor(1000, 64);
        large.fill(f32::NAN);
        drop(large);
        let mut small = pool.tensor(600, 64);
        assert_eq!(pool.usage().held_bytes, 4 * 65536, "the large one's buffer");
        small.fill(3.0);
        assert!(host(&small)[..] == [3.0; 600 * 64]);
        assert!(device.is_finite(&small), "{device:?}");
    }
}

#[test]
fn a_shared_tensor_is_copied_before_it_is_changed() {
    for device in devices() {
        let pool = Pool::new(device);
        let a = tensor_of(&pool, &[1.0, 2.0, 3.0]);
        let mut b = a.clone();
        assert!(a.shares_memory(&b));
        b = b.into_unshared();
        assert!(!a.shares_memory(&b));
        edit(&mut b, |b| b[0] = 9.0);
        assert_eq!((&host(&a)[..], &host(&b)[..]), (&[1.0, 2.0, 3.0][..], &[9.0, 2.0, 3.0][..]));
        drop(b);
        // Nobody shares it any longer: it stays where it is. A copy would have taken memory.
        pool.trim();
        let held = pool.usage().held_bytes;
        let a = a.into_unshared();
        assert_eq!((&host(&a)[..], pool.usage().held_bytes), (&[1.0, 2.0, 3.0][..], held));
    }
}

#[test]
fn copies_of_what_belongs_to_no_pool_belong_to_none() {
    for device in devices() {
        let a = Tensor::of(&device, 1, 3, &[1.0, 2.0, 3.0]);
        let mut b = a.clone();
        b.make_unshared();
        assert!(!a.shares_memory(&b));
        b.fill(0.0);
        assert_eq!((&host(&a)[..], &host(&b)[..]), (&[1.0, 2.0, 3.0][..], &[0.0; 3][..]));
    }
}

#[test]
#[should_panic(expected = "a shared [1, 2] tensor is written to")]
fn writing_to_a_shared_tensor_is_a_bug() {
    let mut a = tensor_of(&Pool::new(device()), &[1.0, 2.0]);
    let _b = a.clone();
    a.set(0, &[0.0]);
}

#[test]
#[should_panic(expected = "a shared [1, 2] tensor is written to")]
fn filling_a_shared_tensor_is_a_bug() {
    let mut a = tensor_of(&Pool::new(device()), &[1.0, 2.0]);
    let _b = a.clone();
    a.fill(0.0);
}

#[test]
#[should_panic(expected = "2 + 2 elements of Tensor[1, 3]")]
fn writing_beyond_a_tensor_is_a_bug() {
    tensor_of(&Pool::new(device()), &[1.0, 2.0, 3.0]).set(2, &[0.0, 0.0]);
}

/// Values, and the nearest bf16 of each; of two equally near the even one.
const WIDE: [f32; 6] = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.0 - 1.0 / 255.0, 0.0, 3.0e38, -1e-40];
const ROUND: [f32; 6] = [1.0, 1.0 + 4.0 / 256.0, -1.0 - 2.0 / 256.0, 0.0, 3.0040553e38, -9.1835e-41];

/// The definition: the upper half, rounded.
fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

fn bf16(device: &Arc<dyn Device>, rows: usize, values: &[f32]) -> Tensor {
    let mut tensor = Tensor::new(device, Dtype::Bf16, rows, values.len() / rows);
    tensor.set(0, values);
    tensor
}

fn same(x: &Tensor, expected: &[f32]) {
    let values = x.to_host();
    assert!(bits(&values) == bits(expected), "{values:?} on {:?}, not {expected:?}", x.device());
}

#[test]
fn half_precision_tensors_round_what_is_written() {
    let expected = WIDE.map(rounded);
    for (rounded, about) in expected.iter().zip(ROUND) {
        assert!((rounded - about).abs() <= 1e-3 * about.abs(), "{rounded} is not {about}");
    }
    for device in devices() {
        let mut x = bf16(&device, 2, &WIDE);
        assert_eq!((x.dtype(), x.bytes(), x.len()), (Dtype::Bf16, 12, 6));
        same(&x, &expected);
        // What is read and written again stays.
        let read = x.to_host().into_owned();
        x.set(0, &read);
        same(&x, &expected);
        // A part.
        x.set(4, &[1.0 + 1.0 / 300.0]);
        same(&x, &[expected[0], expected[1], expected[2], expected[3], rounded(1.0 + 1.0 / 300.0), expected[5]]);
        x.fill(-1.0 - 1.0 / 255.0);
        same(&x, &[-1.0 - 2.0 / 256.0; 6]);
    }
}

#[test]
fn half_precision_tensors_copy_their_bits() {
    let expected = WIDE.map(rounded);
    for device in devices() {
        let x = bf16(&device, 3, &WIDE);
        let mut y = bf16(&device, 3, &[7.0; 6]);
        device.copy_rows(&x, 1, &mut y, 0, 2);
        same(&y, &[expected[2], expected[3], expected[4], expected[5], 7.0, 7.0]);
        let mut own = x.clone();
        own.make_unshared();
        assert!(!own.shares_memory(&x));
        assert_eq!(own.dtype(), Dtype::Bf16);
        same(&own, &expected);
        own.fill(2.0);
        same(&x, &expected);
        same(&own, &[2.0; 6]);
    }
}

#[test]
#[should_panic(expected = "a copy")]
fn a_copy_between_number_formats_is_a_bug() {
    let device = device();
    device.copy_rows(&bf16(&device, 1, &WIDE), 0, &mut Tensor::zeros(&device, 1, 6), 0, 1);
}

#[test]
fn numbers_that_are_not_finite_are_found_in_either_format() {
    for device in devices() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = Tensor::new(&device, dtype, 3, 50);
                x.fill(3.0);
                assert!(device.is_finite(&x));
                x.set(149, &[bad]);
                assert!(!device.is_finite(&x), "{device:?} {dtype:?} {bad}");
                let read = x.to_host()[149];
                assert!(read.is_nan() == bad.is_nan() && (read == bad || bad.is_nan()), "{read} for {bad}");
            }
        }
    }
}
