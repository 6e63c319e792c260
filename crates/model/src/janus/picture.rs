//! Pictures in files: PNG, JPEG and WebP, looked at before memory is taken for them.

use std::io::Cursor;

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageResult, Limits};

/// Longest side of a picture that is read, in pixels.
pub const MAX_SIDE: u32 = 1 << 14;
/// Most pixels of one.
pub const MAX_PIXELS: u64 = 1 << 25;
/// Bytes that a decoder may take besides: four numbers of 16 bits for each pixel.
const MAX_BYTES: u64 = 8 * MAX_PIXELS;

/// A picture: `[height, width, 3]` bytes, and nothing else of its file.
#[derive(Clone, PartialEq, Eq)]
pub struct Rgb {
    pub width: usize,
    pub height: usize,
    pub bytes: Vec<u8>,
}

/// Why a picture cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// Some other format, or none.
    #[error("the picture is neither PNG nor JPEG nor WebP")]
    Format,
    /// APNG, or WebP with frames.
    #[error("the picture is animated; a single one is expected")]
    Animated,
    /// Known from its header.
    #[error("the picture has {width} × {height} pixels, more than {MAX_SIDE} on a side or {MAX_PIXELS} in all")]
    TooLarge { width: u32, height: u32 },
    /// Damaged or cut off.
    #[error("the picture cannot be decoded: {0}")]
    Damaged(#[source] ImageError),
}

/// The picture in the bytes of a file, turned as its EXIF says. Transparency is left out, as `transformers` does, and
/// numbers of 16 bits become bytes.
///
/// # Errors
/// Another format, an animation, too many pixels, or a damaged file.
pub fn decode(bytes: &[u8]) -> Result<Rgb, PictureError> {
    let input = Cursor::new(bytes);
    match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => {
            let decoder = PngDecoder::with_limits(input, limits()).map_err(PictureError::Damaged)?;
            still(decoder.is_apng().map_err(PictureError::Damaged)?)?;
            decoded(decoder)
        }
        Ok(ImageFormat::Jpeg) => decoded(JpegDecoder::new(input).map_err(PictureError::Damaged)?),
        Ok(ImageFormat::WebP) => {
            let decoder = WebPDecoder::new(input).map_err(PictureError::Damaged)?;
            still(decoder.has_animation())?;
            decoded(decoder)
        }
        _ => Err(PictureError::Format),
    }
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    limits
}

fn still(animated: bool) -> Result<(), PictureError> {
    if animated { Err(PictureError::Animated) } else { Ok(()) }
}

fn decoded(decoder: impl ImageDecoder) -> Result<Rgb, PictureError> {
    let (width, height) = decoder.dimensions();
    if width.max(height) > MAX_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(PictureError::TooLarge { width, height });
    }
    let picture = turned(decoder).map_err(PictureError::Damaged)?.into_rgb8();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Ok(Rgb { width, height, bytes: picture.into_raw() })
}

fn turned(mut decoder: impl ImageDecoder) -> ImageResult<DynamicImage> {
    decoder.set_limits(limits())?;
    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}
