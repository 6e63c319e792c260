//! Numbers of the host as the bytes that are copied.

/// Numbers of which every pattern of bits is one, without gaps.
pub trait Word: sealed::Sealed + Copy + 'static {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! words {
    ($($type:ty),*) => { $(impl sealed::Sealed for $type {} impl Word for $type {})* };
}

words!(u8, i8, u16, u32, i32, u64, i64, f32);

/// Their bytes.
pub fn bytes<T: Word>(words: &[T]) -> &[u8] {
    // SAFETY: `Word`s have no gaps, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

/// Their bytes, to be written.
pub fn bytes_mut<T: Word>(words: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and whatever is written is numbers again.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}
