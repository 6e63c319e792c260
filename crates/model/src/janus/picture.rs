//! Pictures in files: PNG, JPEG and WebP, looked at before memory is taken for them; PNG out.

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

/// Bytes of texts that are read of a PNG file.
const MAX_TEXT_BYTES: usize = 1 << 20;

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
    /// The texts beside a PNG's pixels cannot be read.
    #[error("the texts of the PNG cannot be read: {0}")]
    Texts(String),
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

/// A picture of pixels `[3, side, side]` from −1 to 1, what is beyond cut off, as bytes ⌊(x + 1)/2 · 255⌋: those of
/// Janus' own program.
///
/// # Panics
/// If the pixels are not as many.
pub fn from_pixels(pixels: &[f32], side: usize) -> Rgb {
    let plane = side * side;
    assert_eq!(pixels.len(), 3 * plane, "pixels of three colours");
    let byte = |x: f32| ((x + 1.0) / 2.0 * 255.0).clamp(0.0, 255.0) as u8;
    let bytes = (0..3 * plane).map(|i| byte(pixels[i % 3 * plane + i / 3])).collect();
    Rgb { width: side, height: side, bytes }
}

/// A PNG file with these texts (keyword, text) in it. The same picture and texts give the same bytes: of the encoder's
/// ways to compress this is the one that is its own; the others are those of a zlib that builds and machines choose.
///
/// # Panics
/// If a keyword is not one of PNG: 1 to 79 characters of Latin-1.
pub fn encode_png(picture: &Rgb, texts: &[(&str, &str)]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, picture.width as u32, picture.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    encoder.set_filter(png::Filter::Adaptive);
    for (keyword, text) in texts {
        encoder.add_itxt_chunk((*keyword).to_owned(), (*text).to_owned()).expect("a keyword of PNG");
    }
    let mut writer = encoder.write_header().expect("memory takes what is written");
    writer.write_image_data(&picture.bytes).expect("as many bytes as the header says");
    writer.finish().expect("memory takes what is written");
    file
}

/// A PNG file of a drawn picture that says how it was drawn: after which prompt, and by which settings, in JSON.
pub fn encode_drawn(picture: &Rgb, prompt: &str, settings: &str) -> Vec<u8> {
    encode_png(picture, &[("Description", prompt), ("Software", "wels"), ("wels", settings)])
}

/// The texts (keyword, text) in a PNG file that [`encode_png`] has written.
///
/// # Errors
/// No PNG file, or a damaged one.
pub fn png_texts(bytes: &[u8]) -> Result<Vec<(String, String)>, PictureError> {
    let damaged = |error: png::DecodingError| PictureError::Texts(error.to_string());
    let limits = png::Limits { bytes: MAX_TEXT_BYTES };
    let reader = png::Decoder::new_with_limits(Cursor::new(bytes), limits).read_info().map_err(damaged)?;
    let text = |chunk: &png::text_metadata::ITXtChunk| {
        let text = chunk.get_text().map_err(damaged)?;
        Ok((chunk.keyword.clone(), text))
    };
    reader.info().utf8_text.iter().map(text).collect()
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
