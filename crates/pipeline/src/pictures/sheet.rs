//! Sheets: small pictures side by side, larger than they are, for people who look at a run.

use wels_model::janus::picture::{Rgb, encode_png};

/// Pictures are shown at least so many pixels wide.
const SIDE_LEAST: usize = 96;
/// Between pictures, in pixels.
const GAP: usize = 4;
const PAPER: u8 = 255;

/// A PNG of rows of pictures of one size, each `columns` long.
pub(super) fn sheet(pictures: &[Rgb], columns: usize) -> Vec<u8> {
    let side = pictures.first().map_or(1, |picture| picture.width.max(picture.height));
    let scale = SIDE_LEAST.div_ceil(side);
    let cell = side * scale + GAP;
    let (width, height) = (columns * cell + GAP, pictures.len().div_ceil(columns) * cell + GAP);
    let mut paper = Rgb { width, height, bytes: vec![PAPER; 3 * width * height] };
    for (n, picture) in pictures.iter().enumerate() {
        let (left, top) = (GAP + n % columns * cell, GAP + n / columns * cell);
        for (y, x) in (0..picture.height * scale).flat_map(|y| (0..picture.width * scale).map(move |x| (y, x))) {
            let from = 3 * (y / scale * picture.width + x / scale);
            let to = 3 * ((top + y) * width + left + x);
            paper.bytes[to..to + 3].copy_from_slice(&picture.bytes[from..from + 3]);
        }
    }
    encode_png(&paper, &[("Software", "wels")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use wels_model::janus::picture::decode;

    #[test]
    fn pictures_stand_in_rows_with_gaps() {
        let picture = |byte: u8| Rgb { width: 24, height: 24, bytes: vec![byte; 3 * 24 * 24] };
        let sheet = decode(&sheet(&[picture(1), picture(2), picture(3)], 2)).unwrap();
        assert_eq!((sheet.width, sheet.height), (2 * 100 + 4, 2 * 100 + 4));
        let at = |x: usize, y: usize| sheet.bytes[3 * (y * sheet.width + x)];
        assert_eq!([at(0, 0), at(4, 4), at(99, 99), at(102, 50), at(104, 99), at(4, 104)], [255, 1, 1, 255, 2, 3]);
        assert_eq!(at(104, 104), 255, "no fourth picture");
    }
}
