//! Pictures of one's own: what is read, and what is refused by file and entry.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use wels_scenes::captioned::{Captioned, open};

/// All samples, or the error at which they end.
fn read(path: &Path) -> Result<Vec<Captioned>, String> {
    open(path).and_then(|captions| captions.collect()).map_err(|error| error.to_string())
}

fn sample(image: &[u8], caption: &str, name: &str) -> Captioned {
    Captioned { image: image.to_vec(), caption: caption.to_owned(), name: name.to_owned() }
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

#[test]
fn json_lines_beside_pictures() {
    let lines = b"{\"image\": \"cats/1.png\", \"text\": \" a cat \", \"id\": 3}\n\n{\"image\": \"./2.JPG\", \"caption\": \"a dog\"}\n";
    let folder = folder(&[("cats/1.png", b"one"), ("2.JPG", b"two"), ("list.jsonl", lines), (".hidden.png", b"x")]);
    let expected = [sample(b"one", "a cat", "cats/1.png"), sample(b"two", "a dog", "./2.JPG")];
    assert_eq!(read(folder.path()).unwrap(), expected);
    assert_eq!(read(&folder.path().join("list.jsonl")).unwrap(), expected);
}

#[test]
fn lines_and_pictures_that_do_not_fit_are_named() {
    let cases: [(&str, &str); 9] = [
        (r#"{"image": "b.png", "text": "x"}"#, "list.jsonl, line 1: the picture `b.png` cannot be read"),
        (r#"{"image": "../a.png", "text": "x"}"#, "line 1: the path `../a.png` is not one below the folder"),
        (r#"{"image": "/etc/passwd", "text": "x"}"#, "line 1: the path `/etc/passwd` is not one below"),
        (r#"{"image": "out.png", "text": "x"}"#, "`out.png` is a link that leads out of the folder"),
        (r#"{"image": "sub", "text": "x"}"#, "`sub` is no file"),
        (r#"{"image": "a.png", "text": " "}"#, "line 1: the caption is empty"),
        (r#"{"image": "a.png", "label": "x"}"#, "there is no `text` or `caption`, only `image`, `label`"),
        (r#"{"image": 7, "text": "x"}"#, "line 1: `image` is no text"),
        (r#"{"image": "a.png", "text": "x""#, "line 1: column"),
    ];
    for (line, expected) in cases {
        let folder = folder(&[("a.png", b"a"), ("sub/c.txt", b"c"), ("list.jsonl", line.as_bytes())]);
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("out.png")).unwrap();
        let error = read(&folder.path().join("list.jsonl")).unwrap_err();
        assert!(error.contains(expected), "{error} and not {expected}");
    }
}

#[test]
fn pictures_without_captions_are_named() {
    let line = b"{\"image\": \"a.png\", \"text\": \"x\"}";
    let folder = folder(&[("a.png", b"a"), ("sub/b.webp", b"b"), ("c.jpeg", b"c"), ("list.jsonl", line)]);
    let error = read(folder.path()).unwrap_err();
    assert!(error.contains("c.jpeg: the picture has no caption (2 such in the folder)"), "{error}");
    let error = read(&folder.path().join("sub")).unwrap_err();
    assert!(error.contains("no .jsonl, .parquet or .tar in the folder"), "{error}");
    assert!(read(&folder.path().join("a.png")).unwrap_err().contains("none of .jsonl, .parquet, .tar"));
    assert!(read(&folder.path().join("none.tar")).unwrap_err().contains("cannot read"));
}

/// A Parquet file of byte columns; a null where there is `None`.
fn parquet_file(path: &Path, schema: &str, columns: &[Vec<Option<&[u8]>>], level: i16) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(WriterProperties::builder().build())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for column in columns {
        let mut into = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = column.iter().flatten().map(|value| ByteArray::from(value.to_vec())).collect();
        let levels: Vec<i16> = column.iter().map(|value| if value.is_some() { level } else { 0 }).collect();
        into.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        into.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

const FLAT: &str = "message m { optional binary image; optional binary text (UTF8); }";

#[test]
fn parquet_with_bytes_or_groups() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    parquet_file(&path, FLAT, &[vec![Some(b"one"), Some(b"two")], vec![Some(b"a cat"), Some(b"a dog")]], 1);
    assert_eq!(read(&path).unwrap(), [sample(b"one", "a cat", "row 1"), sample(b"two", "a dog", "row 2")]);
    let path = folder.path().join("b.parquet");
    let grouped = "message m { required group image { optional binary bytes; optional binary path (UTF8); }
                   optional binary caption (UTF8); }";
    parquet_file(&path, grouped, &[vec![Some(b"three")], vec![Some(b"3.png")], vec![Some(b"a cow")]], 1);
    assert_eq!(read(&path).unwrap(), [sample(b"three", "a cow", "3.png")]);
    assert_eq!(read(folder.path()).unwrap().len(), 3);
}

#[test]
fn parquet_that_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let error_of = |schema: &str, columns: &[Vec<Option<&[u8]>>]| {
        parquet_file(&path, schema, columns, 1);
        read(&path).unwrap_err()
    };
    let error = error_of("message m { optional binary picture; optional binary text; }", &[vec![], vec![]]);
    assert!(error.contains("a.parquet: there is no column `image` or `image.bytes`, only picture, text"), "{error}");
    let error = error_of("message m { optional binary image; optional binary label; }", &[vec![], vec![]]);
    assert!(error.contains("there is no column `text` or `caption`, only image, label"), "{error}");
    let error = error_of(FLAT, &[vec![Some(b"a"), None], vec![Some(b"x"), Some(b"y")]]);
    assert!(error.contains("a.parquet, row 2: a caption without a picture"), "{error}");
    let error = error_of(FLAT, &[vec![Some(b"a")], vec![None]]);
    assert!(error.contains("row 1: a picture without a caption"), "{error}");
    let error = error_of(FLAT, &[vec![Some(b"a")], vec![Some(b"\xff")]]);
    assert!(error.contains("row 1: the caption is not UTF-8"), "{error}");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    assert!(read(&path).unwrap_err().contains("does not end in `PAR1`"));
}

/// An entry of a tar file: name, kind, content.
type Entry<'a> = (&'a str, u8, &'a [u8]);

/// A header with its content, filled up to whole blocks.
fn entry((name, kind, content): Entry<'_>) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[156] = kind;
    header[257..263].copy_from_slice(b"ustar\0");
    sealed(header, content)
}

/// With the header's checksum.
fn sealed(mut header: [u8; 512], content: &[u8]) -> Vec<u8> {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.iter().flat_map(|one| entry(*one)).collect();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn read_tar(bytes: &[u8]) -> Result<Vec<Captioned>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard.tar");
    fs::write(&path, bytes).unwrap();
    read(&path)
}

#[test]
fn tar_files_by_stem() {
    let long = format!("{}/0003.png", "d".repeat(120));
    let pax = format!("{} path={long}\n", long.len() + 10);
    assert_eq!(pax.len(), long.len() + 10);
    let bytes = archive(&[
        ("a", b'5', b""),
        ("a/0001.jpg", b'0', b"one"),
        ("a/0001.cls", b'0', b"7"),
        ("a/0001.txt", b'0', b"a cat\n"),
        ("a/0002.json", b'0', b"{\"text\": \"a dog\", \"id\": 4}"),
        ("a/0002.PNG", b'0', &[7; 700]),
        ("pax", b'x', pax.as_bytes()),
        ("short.png", b'0', b"three"),
        ("././@LongLink", b'L', long.replace("png", "txt\0").as_bytes()),
        ("short.txt", b'0', b"a cow"),
        ("0004.txt", b'0', b"a hen"),
        ("0004.json", b'0', b"{\"width\": 4}"),
        ("0004.webp", b'\0', b"four"),
        ("index.json", b'0', b"{\"shards\": 1}"),
    ]);
    let expected = [
        sample(b"one", "a cat", "a/0001"),
        sample(&[7; 700], "a dog", "a/0002"),
        sample(b"three", "a cow", &long[..long.len() - 4]),
        sample(b"four", "a hen", "0004"),
    ];
    assert_eq!(read_tar(&bytes).unwrap(), expected);
}

#[test]
fn tar_files_that_do_not_fit_are_named() {
    let (picture, text): (Entry, Entry) = (("1.png", b'0', b"one"), ("1.txt", b'0', b"a cat"));
    let cases: [(&[Entry], &str); 13] = [
        (&[picture], "shard.tar, 1: a picture without a caption"),
        (&[text, ("2.png", b'0', b"two")], "shard.tar, 1: a caption without a picture"),
        (&[picture, text, ("1.jpg", b'0', b"one")], "1.jpg: the sample `1` has two such entries"),
        (&[picture, ("1.json", b'0', b"{\"label\": 3}")], "there is no `text` or `caption`, only `label`"),
        (&[picture, ("1.txt", b'0', b" \n")], "1: the caption is empty"),
        (&[picture, ("1.txt", b'0', b"\xff\xfe")], "1.txt: it is not UTF-8"),
        (&[("1.png", b'0', b""), text], "1: the picture is empty"),
        (&[("/etc/1.png", b'0', b"one")], "/etc/1.png: its path is absolute or leads out"),
        (&[("a/../../1.png", b'0', b"one")], "a/../../1.png: its path is absolute or leads out"),
        (&[("c:\\1.png", b'0', b"one")], "its path is absolute or leads out"),
        (&[("1.png", b'2', b"")], "1.png: it is a link, which is not followed"),
        (&[("1.png", b'1', b"")], "1.png: it is a link, which is not followed"),
        (&[("1.png", b'3', b"")], "1.png: it is of a kind that is not read"),
    ];
    for (entries, expected) in cases {
        let error = read_tar(&archive(entries)).unwrap_err();
        assert!(error.contains(expected), "{error} and not {expected}");
    }
    let whole = archive(&[picture, text]);
    for length in 0..whole.len() - 512 {
        let error = read_tar(&whole[..length]).unwrap_err();
        assert!(error.contains("cut short"), "{length} bytes: {error}");
    }
    let mut damaged = whole;
    damaged[3] ^= 1;
    assert!(read_tar(&damaged).unwrap_err().contains("a header's checksum is wrong"));
}

/// What a header claims is compared with what is there before memory is taken.
#[test]
fn claims_of_a_header_take_no_memory() {
    for (name, size, expected) in [
        ("1.png", "77777777777", "more than 67108864"),
        ("1.png", "00377777777", "cut short"),
        ("1.txt", "00077777777", "more than 65536"),
        ("1.cls", "77777777777", "cut short"),
        ("1.png", "\u{1}\u{1}\u{1}\u{1}\u{1}\u{1}\u{1}\u{1}\u{1}\u{1}\u{1}", "no octal number"),
    ] {
        let mut header: [u8; 512] = entry((name, b'0', b""))[..512].try_into().unwrap();
        header[124..135].copy_from_slice(size.as_bytes());
        let error = read_tar(&sealed(header, b"")).unwrap_err();
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000), end in 0usize..3) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(["x.tar", "x.jsonl", "x.parquet"][end]);
        fs::write(&path, &bytes).unwrap();
        let samples = read(&path);
        prop_assert!(samples.is_err() || samples.unwrap().is_empty());
    }

    #[test]
    fn changed_archives_are_no_panic(changes in prop::collection::vec((0usize..6000, any::<u8>()), 1..8), seal: bool) {
        let pax = b"20 path=b/0002.txt\n\n";
        let mut bytes = archive(&[
            ("a/0001.jpg", b'0', &[1; 600]),
            ("a/0001.txt", b'0', b"a cat"),
            ("pax", b'x', &pax[..19]),
            ("b/0002.txt", b'0', b"a dog"),
            ("b/0002.png", b'0', b"two"),
        ]);
        for (at, byte) in &changes {
            let at = at % bytes.len();
            bytes[at] = *byte;
        }
        if seal {
            // Also behind a checksum that is right.
            for block in (0..bytes.len() / 512).map(|block| block * 512) {
                if bytes[block + 257..].starts_with(b"ustar\0") {
                    let header: [u8; 512] = bytes[block..block + 512].try_into().unwrap();
                    bytes[block..block + 512].copy_from_slice(&sealed(header, b""));
                }
            }
        }
        match read_tar(&bytes) {
            Ok(samples) => prop_assert!(samples.len() <= 4),
            Err(error) => prop_assert!(error.contains("shard.tar"), "{error}"),
        }
    }

    #[test]
    fn changed_lines_are_no_panic(line in "\\PC{0,80}", image in "[a-z./\\\\]{1,12}") {
        let lines = format!("{{\"image\": {image:?}, \"text\": {line:?}}}\n{line}\n");
        let folder = folder(&[("a.png", b"a"), ("list.jsonl", lines.as_bytes())]);
        match read(&folder.path().join("list.jsonl")) {
            Ok(samples) => prop_assert!(samples.iter().all(|sample| sample.image == b"a")),
            Err(error) => prop_assert!(error.contains("list.jsonl, line"), "{error}"),
        }
    }
}
