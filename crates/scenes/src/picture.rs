//! Pictures as rows of pixels.

/// A picture, eight bits a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
    /// Row-major, red, green, blue: `3 · width · height` bytes.
    pub bytes: Vec<u8>,
}

impl Rgb {
    /// All of one colour.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Rgb {
        Rgb { width, height, bytes: colour.repeat(width * height) }
    }

    /// `x` from the left, `y` from the top.
    pub fn get(&self, x: usize, y: usize) -> [u8; 3] {
        let at = self.at(x, y);
        [self.bytes[at], self.bytes[at + 1], self.bytes[at + 2]]
    }

    /// `x` from the left, `y` from the top.
    pub fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        let at = self.at(x, y);
        self.bytes[at..at + 3].copy_from_slice(&colour);
    }

    fn at(&self, x: usize, y: usize) -> usize {
        assert!(x < self.width && y < self.height, "pixel {x}, {y} of {} × {}", self.width, self.height);
        3 * (y * self.width + x)
    }
}
