//! Pictures in the forms that clients do not often send (`scripts/oracle/make_odd_pictures.py` writes them): seen for
//! what they are or refused in words, and, spoiled at random, never more than refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};
use wels_engine::image::{Rgb, decode};

use crate::images::{JANUS, lab};
use crate::lab::{Lab, Response, Setup};

macro_rules! pictures {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../data/pictures/", $name)) as &[u8])),*]
    };
}

/// With the same four quarters.
const SEEN: [(&str, &[u8]); 6] =
    pictures!["cmyk.jpg", "progressive.jpg", "sixteen.png", "palette.png", "lossless.webp", "turned.jpg"];
const ANIMATED: [(&str, &[u8]); 3] = pictures!["animated.png", "animated.webp", "animated.gif"];

fn ask(lab: &Lab, file: &[u8]) -> Response {
    let url = format!("data:;base64,{}", STANDARD.encode(file));
    let parts = json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]);
    let body = json!({"model": JANUS, "messages": [{"role": "user", "content": parts}], "max_tokens": 2,
        "temperature": 0, "logprobs": true});
    lab.post("/v1/chat/completions", &body)
}

/// How far the middles of a picture's quarters are from their colours.
fn error_of_quarters(picture: &Rgb) -> u8 {
    let quarters = [(8, 6, [255, 0, 0]), (24, 6, [0, 255, 0]), (8, 18, [0, 0, 255]), (24, 18, [255; 3])];
    let pixel = |x: usize, y: usize| &picture.bytes[3 * (y * picture.width + x)..][..3];
    let error = |(x, y, colour): (usize, usize, [u8; 3])| {
        pixel(x, y).iter().zip(colour).map(|(found, wanted)| found.abs_diff(wanted)).max().unwrap()
    };
    quarters.map(error).into_iter().max().unwrap()
}

#[test]
fn odd_pictures_are_seen_as_they_look() {
    for (name, file) in SEEN {
        let picture = decode(file).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((picture.width, picture.height), (32, 24), "{name}");
        assert!(error_of_quarters(&picture) <= 8, "{name}: {}", error_of_quarters(&picture));
    }
    let lab = lab(Setup::default());
    for (name, file) in SEEN {
        let response = ask(&lab, file);
        assert_eq!(response.status, 200, "{name}: {}", response.body);
    }
    // What was exact in its file is the same question.
    let answers: Vec<Value> = SEEN[2..5].iter().map(|(_, file)| ask(&lab, file).json()["choices"].clone()).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    for (name, file) in ANIMATED {
        let response = ask(&lab, file);
        let words = if name.ends_with("gif") { "neither PNG nor JPEG nor WebP" } else { "animated" };
        assert!(response.status == 400 && response.body.contains(words), "{name}: {}", response.body);
    }
}

fn spoiled() -> impl Strategy<Value = Vec<u8>> {
    let files: Vec<&[u8]> = SEEN.iter().chain(&ANIMATED).map(|(_, file)| *file).collect();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (prop::sample::select(files), changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(file, changes, end, cut)| {
            let mut file = file.to_vec();
            for (at, byte) in changes {
                let at = at.index(file.len());
                file[at] = byte;
            }
            if cut {
                file.truncate(end.index(file.len()));
            }
            file
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_spoiled_file_harms_the_decoders(file in spoiled()) {
        if let Ok(picture) = decode(&file) {
            prop_assert_eq!(picture.bytes.len(), 3 * picture.width * picture.height);
        }
    }

    #[test]
    fn no_random_file_harms_the_decoders(
        head in prop::sample::select(vec![&b"\x89PNG\r\n\x1a\n"[..], b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBPVP8 ", b""]),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = decode(&[head, &bytes].concat());
    }
}
