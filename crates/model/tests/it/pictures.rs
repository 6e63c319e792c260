//! Pictures in files, and what the tower sees of them.

use image::codecs::webp::WebPEncoder;
use image::{DynamicImage, ExtendedColorType, ImageFormat, RgbImage, RgbaImage};
use serde_json::{Value, json};
use std::io::Cursor;
use wels_model::janus::picture::{Rgb, decode, encode_png, from_pixels, png_texts};
use wels_model::janus::preprocess::{Filter, Preprocessing};

use crate::janus::uniform;

fn preprocessing(size: usize, resample: usize) -> Preprocessing {
    let json = json!({"size": {"height": size, "width": size}, "min_size": 2, "resample": resample,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "image_processor_type": "JanusImageProcessor"});
    let (preprocessing, notes) = Preprocessing::from_hf_json(&json.to_string()).expect("a configuration");
    assert!(notes.is_empty(), "{notes:?}");
    preprocessing
}

fn picture(width: usize, height: usize) -> Rgb {
    let bytes = uniform(&format!("{width}x{height}")).take(width * height * 3);
    Rgb { width, height, bytes: bytes.map(|x| ((x + 1.0) * 128.0) as u8).collect() }
}

/// A byte as the tower sees it with mean and deviation ½.
fn seen(byte: u8) -> f32 {
    (f32::from(byte) / 255.0 - 0.5) / 0.5
}

#[test]
fn resizing_is_that_of_torch() {
    let text = include_str!("../janus/resized.json");
    let cases: Vec<Value> = serde_json::from_str(text).expect("resized.json");
    assert_eq!(cases.len(), 8, "cases");
    for case in &cases {
        let number = |key: &str| case[key].as_u64().expect(key) as usize;
        let (width, height) = (number("to_width"), number("to_height"));
        let resample = if case["mode"] == "bicubic" { 3 } else { 2 };
        let expected = case["bytes"].as_array().expect("bytes").iter().map(|byte| byte.as_u64().expect("a byte") as u8);
        let expected: Vec<u8> = expected.collect();
        let pixels = preprocessing(12, resample).pixels(&picture(number("width"), number("height")));
        let (left, top) = ((12 - width) / 2, (12 - height) / 2);
        for (place, found) in pixels.iter().enumerate() {
            let (colour, row, column) = (place / 144, place / 12 % 12, place % 12);
            let within = (top..top + height).contains(&row) && (left..left + width).contains(&column);
            let at = |row: usize, column: usize| expected[((row - top) * width + column - left) * 3 + colour];
            let byte = if within { at(row, column) } else { 127 };
            // The chains of the sums differ, so a value between two bytes may become the other.
            let levels = (found - seen(byte)).abs() * 127.5;
            assert!(levels <= if within { 1.001 } else { 1e-4 }, "{case} at {row}, {column}: {levels} levels");
        }
    }
}

fn file(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).expect("a picture in memory");
    bytes.into_inner()
}

fn rgb(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(7 * x) as u8, (11 * y) as u8, 99]))
}

#[test]
fn lossless_files_have_their_pixels() {
    let picture = rgb(9, 5);
    let expected = Rgb { width: 9, height: 5, bytes: picture.as_raw().clone() };
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        assert!(decode(&file(&picture.clone().into(), format)).expect("a picture") == expected, "{format:?}");
    }
    let deep = DynamicImage::from(picture.clone()).into_rgb16();
    assert!(decode(&file(&deep.into(), ImageFormat::Png)).expect("16 bits") == expected);
    let clear = RgbaImage::from_fn(9, 5, |x, y| {
        let image::Rgb([r, g, b]) = *picture.get_pixel(x, y);
        image::Rgba([r, g, b, 10])
    });
    assert!(decode(&file(&clear.into(), ImageFormat::Png)).expect("transparent") == expected);
    let jpeg = decode(&file(&picture.into(), ImageFormat::Jpeg)).expect("a JPEG");
    assert_eq!((jpeg.width, jpeg.height, jpeg.bytes.len()), (9, 5, 135));
}

/// A PNG's header that says so many pixels, without any.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = file(&rgb(1, 1).into(), ImageFormat::Png);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = !bytes[12..29].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    });
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

#[test]
fn what_is_no_picture_of_a_sensible_size_is_refused() {
    let png = file(&rgb(40, 40).into(), ImageFormat::Png);
    let jpeg = file(&rgb(40, 40).into(), ImageFormat::Jpeg);
    let cases: [(&[u8], &str); 7] = [
        (b"", "neither PNG nor JPEG nor WebP"),
        (b"GIF89a", "neither PNG nor JPEG nor WebP"),
        (&png[..40], "cannot be decoded"),
        (&png[..png.len() - 40], "cannot be decoded"),
        (&jpeg[..30], "cannot be decoded"),
        (&bomb(1_000_000, 1), "1000000 × 1 pixels, more than"),
        (&bomb(16_000, 16_000), "16000 × 16000 pixels, more than"),
    ];
    for (bytes, expected) in cases {
        let error = decode(bytes).map(drop).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error} instead of {expected}");
    }
}

#[test]
fn animations_are_refused() {
    // An `acTL` chunk before the data makes a PNG an animation.
    let mut png = file(&rgb(2, 2).into(), ImageFormat::Png);
    let chunk = [0, 0, 0, 8, b'a', b'c', b'T', b'L', 0, 0, 0, 2, 0, 0, 0, 0, 0xf3, 0x8d, 0x93, 0x70];
    png.splice(33..33, chunk);
    let error = decode(&png).map(drop).expect_err("an animation").to_string();
    assert!(error.contains("animated"), "{error}");
}

#[test]
fn a_picture_is_turned_as_its_exif_says() {
    let picture = rgb(3, 2);
    let mut bytes = Vec::new();
    let mut encoder = WebPEncoder::new_lossless(&mut bytes);
    // One entry: orientation 6, to be turned to the right.
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    image::ImageEncoder::set_exif_metadata(&mut encoder, exif).expect("EXIF in WebP");
    encoder.encode(picture.as_raw(), 3, 2, ExtendedColorType::Rgb8).expect("a WebP");
    let turned = decode(&bytes).expect("a picture");
    assert_eq!((turned.width, turned.height), (2, 3));
    assert_eq!(turned.bytes[..3], picture.get_pixel(0, 1).0, "the lower left corner is the upper left one");
}

#[test]
fn preprocessing_that_is_not_implemented_is_refused_by_name() {
    for (key, value) in [
        ("do_pad", json!(false)),
        ("resample", json!(1)),
        ("size", json!({"height": 384, "width": 380})),
        ("size", json!(384)),
        ("min_size", json!(500)),
        ("image_mean", json!([0.5, 0.5])),
        ("image_std", json!([0.5, 0.5, 0.0])),
    ] {
        let error = Preprocessing::from_hf_json(&json!({key: value}).to_string()).expect_err(key).to_string();
        assert!(error.contains(key), "{error} does not name {key}");
    }
    let (defaults, _) = Preprocessing::from_hf_json("{}").expect("defaults");
    assert_eq!((defaults.size, defaults.min_size, defaults.filter), (384, 14, Filter::Bicubic));
}

#[test]
fn what_is_drawn_is_written_as_a_png_with_its_texts() {
    let pixels = [-1.5, -1.0, 0.0, 1.0, 0.999, -0.9, 0.5, 2.0, -0.25, 0.25, f32::NAN, 0.1];
    let picture = from_pixels(&pixels, 2);
    assert_eq!(picture.bytes, [0, 254, 95, 0, 12, 159, 127, 191, 0, 255, 255, 140]);
    let texts = [("Description", "ein roter Kreis\nüber 四"), ("Software", "wels")];
    let file = encode_png(&picture, &texts);
    assert!(decode(&file).expect("a picture") == picture);
    let found = png_texts(&file).expect("texts");
    assert_eq!(found, texts.map(|(keyword, text)| (keyword.to_owned(), text.to_owned())));
    assert_eq!(file, encode_png(&picture, &texts));
    let large = self::picture(64, 64);
    assert!(decode(&encode_png(&large, &[])).expect("a picture") == large);
    for cut in 0..file.len() - 12 {
        let _ = png_texts(&file[..cut]); // an error or not, but no panic
    }
    assert!(png_texts(b"GIF89a").is_err());
}
