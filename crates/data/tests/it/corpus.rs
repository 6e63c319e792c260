//! Readers: order, formats, what is skipped, damaged files.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use proptest::prelude::*;
use wels_data::Corpus;
use wels_data::corpus::{CARGO_CRATES, CorpusError, ReadOptions};

use crate::{damage, write_files};

fn read(path: &Path, options: ReadOptions) -> Result<Vec<String>, CorpusError> {
    Corpus::open(path, options)?.documents().collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn parquet_file(texts: &[Option<&str>], compression: parquet::basic::Compression) -> Vec<u8> {
    let schema = "message m { required int64 id; optional binary text (STRING); }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
    for group in texts.chunks(3) {
        let mut row_group = writer.next_row_group().unwrap();
        let mut ids = row_group.next_column().unwrap().unwrap();
        let numbers: Vec<i64> = (0..group.len() as i64).collect();
        ids.typed::<parquet::data_type::Int64Type>().write_batch(&numbers, None, None).unwrap();
        ids.close().unwrap();
        let mut column = row_group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = group.iter().flatten().map(|&text| ByteArray::from(text)).collect();
        let levels: Vec<i16> = group.iter().map(|text| i16::from(text.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        row_group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

#[test]
fn folders_are_read_in_the_order_of_names() {
    let dir = tempfile::tempdir().unwrap();
    let lines = b"{\"text\": \"four\"}\n\n{\"text\": \"five\", \"other\": [1]}\n";
    write_files(
        dir.path(),
        &[
            ("b/two.md", b"two"),
            ("a.txt", b"one"),
            ("b/three.rs", b"three"),
            ("c.jsonl", lines),
            ("d.jsonl.gz", &gzip(lines)),
            ("e.jsonl.zst", &zstd::encode_all(&lines[..], 3).unwrap()),
            ("picture.png", b"\x89PNG"),
            (".git/config.txt", b"hidden"),
            ("empty.txt", b" \n"),
            ("latin1.txt", b"caf\xe9"),
        ],
    );
    let corpus = Corpus::open(dir.path(), ReadOptions::default()).unwrap();
    let mut documents = corpus.documents();
    let texts: Vec<String> = documents.by_ref().map(Result::unwrap).collect();
    assert_eq!(texts, ["one", "three", "two", "four", "five", "four", "five", "four", "five"]);
    let skipped = documents.skipped();
    assert_eq!((skipped.invalid_utf8, skipped.empty, skipped.bad_records), (1, 1, 0));
}

#[test]
fn bad_lines_are_named_or_counted() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&[u8], &str); 4] = [
        (b"{\"text\": \"a\"}\n{\"text\": }\n", "line 2, column 10: expected value"),
        (b"{\"body\": \"a\"}\n", "line 1, column 0: the object has no `text`"),
        (b"{\"text\": 3}", "line 1, column 0: `text` is not a string"),
        (b"\n[1]\n", "line 2, column 0: the line is not a JSON object"),
    ];
    for (bytes, expected) in cases {
        write_files(dir.path(), &[("x.jsonl", bytes)]);
        let error = read(dir.path(), ReadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("x.jsonl") && error.contains(expected), "{error}");
        let corpus = Corpus::open(dir.path(), ReadOptions { skip_bad: true, ..ReadOptions::default() }).unwrap();
        let mut documents = corpus.documents();
        assert!(documents.by_ref().all(|document| document.is_ok()));
        assert_eq!(documents.skipped().bad_records, 1);
    }
    let body = ReadOptions { field: "body".to_owned(), ..ReadOptions::default() };
    write_files(dir.path(), &[("x.jsonl", b"{\"body\": \"a\"}\n")]);
    assert_eq!(read(dir.path(), body).unwrap(), ["a"]);
}

#[test]
fn parquet_columns_are_read_across_row_groups() {
    use parquet::basic::{Compression, ZstdLevel};
    let dir = tempfile::tempdir().unwrap();
    let texts = [Some("one"), None, Some("zwei"), Some("三"), Some("four"), None, Some("seven")];
    let zstd = Compression::ZSTD(ZstdLevel::try_new(3).unwrap());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd] {
        write_files(dir.path(), &[("x.parquet", &parquet_file(&texts, compression))]);
        let found = read(dir.path(), ReadOptions::default()).unwrap();
        assert_eq!(found, texts.iter().copied().flatten().collect::<Vec<_>>(), "{compression:?}");
    }
    let wrong = |field: &str| {
        let options = ReadOptions { field: field.to_owned(), ..ReadOptions::default() };
        read(dir.path(), options).unwrap_err().to_string()
    };
    assert!(wrong("body").contains("no column `body`, only id, text"), "{}", wrong("body"));
    assert!(wrong("id").contains("does not hold strings"), "{}", wrong("id"));
}

#[test]
fn parquet_footers_that_lie_about_their_size_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = parquet_file(&[Some("x")], parquet::basic::Compression::UNCOMPRESSED);
    let at = bytes.len() - 8;
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    write_files(dir.path(), &[("x.parquet", &bytes)]);
    let error = read(dir.path(), ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("claims a footer of 4294967295 bytes"), "{error}");
}

#[test]
fn long_texts_are_cut_at_line_ends() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..100).map(|i| format!("line {i} é\n")).collect();
    let json = serde_json::json!({"text": text}).to_string();
    write_files(dir.path(), &[("a.txt", text.as_bytes()), ("b.jsonl", json.as_bytes())]);
    let options = ReadOptions { document_bytes_max: 64, ..ReadOptions::default() };
    let pieces = read(dir.path(), options.clone()).unwrap();
    assert_eq!(pieces.concat(), format!("{text}{text}"));
    assert!(pieces.iter().all(|piece| piece.len() <= 64 && piece.ends_with('\n')));
    assert_eq!(pieces[..pieces.len() / 2], pieces[pieces.len() / 2..], "files and records are cut alike");
    // Without line ends: at characters.
    let text = "é日𝄞".repeat(50);
    write_files(dir.path(), &[("a.txt", text.as_bytes()), ("b.jsonl", b"")]);
    assert_eq!(read(dir.path(), ReadOptions { document_bytes_max: 16, ..options }).unwrap().concat(), text);
}

#[test]
fn what_is_not_there_is_an_error_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let error = read(dir.path(), ReadOptions::default()).unwrap_err();
    assert!(matches!(error, CorpusError::NoFiles { .. }) && !error.hint().is_empty());
    assert!(matches!(read(&dir.path().join("no"), ReadOptions::default()), Err(CorpusError::Io { .. })));
    fs::write(dir.path().join("x.png"), b"").unwrap();
    assert!(matches!(read(&dir.path().join("x.png"), ReadOptions::default()), Err(CorpusError::UnknownKind { .. })));
    let error = Corpus::cargo_sources(dir.path()).unwrap_err();
    assert!(matches!(error, CorpusError::CargoSources { .. }) && error.hint().contains("folder of text"), "{error}");
}

#[test]
fn the_quickstarts_corpus_is_there_and_sorted() {
    let corpus = Corpus::cargo_sources(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let names: Vec<&str> = corpus.sources().iter().map(|source| source.name.as_str()).collect();
    assert!(names.is_sorted() && CARGO_CRATES.is_sorted());
    assert!(names.iter().all(|name| name.ends_with(".rs")));
    let bytes: u64 = corpus.sources().iter().map(|source| fs::metadata(&source.path).unwrap().len()).sum();
    assert!((15_000_000..40_000_000).contains(&bytes), "{bytes} bytes");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_never_panic(
        keep in 0usize..1200,
        changes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..6),
        whole in any::<bool>()
    ) {
        let dir = tempfile::tempdir().unwrap();
        let lines = b"{\"text\": \"four \\u00e9\"}\n{\"text\": \"five\"}\n".repeat(20);
        let texts: Vec<Option<&str>> = (0..9).map(|i| (i % 4 != 0).then_some("some text here")).collect();
        let keep = if whole { usize::MAX } else { keep };
        for (name, bytes) in [
            ("x.jsonl", lines.clone()),
            ("x.jsonl.gz", gzip(&lines)),
            ("x.jsonl.zst", zstd::encode_all(&lines[..], 3).unwrap()),
            ("x.parquet", parquet_file(&texts, parquet::basic::Compression::SNAPPY)),
        ] {
            let path = dir.path().join(name);
            fs::write(&path, damage(&bytes, keep, &changes)).unwrap();
            for skip_bad in [false, true] {
                let _ = read(&path, ReadOptions { skip_bad, ..ReadOptions::default() });
            }
        }
    }
}

#[test]
fn html_is_read_as_what_it_shows() {
    let dir = tempfile::tempdir().unwrap();
    let page = b"<title>T</title><style>p { color: red }</style><h1>Head</h1><p>One &lt;b&gt; <i>two</i>.</p>";
    write_files(dir.path(), &[("a.html", page), ("b.HTM", b"<p>three"), ("c.html", b"caf\xe9")]);
    let corpus = Corpus::open(dir.path(), ReadOptions::default()).unwrap();
    let mut documents = corpus.documents();
    let mut found = Vec::new();
    while let Some(text) = documents.next() {
        found.push((documents.source().unwrap().name.rsplit('/').next().unwrap().to_owned(), text.unwrap()));
    }
    let expected = [("a.html", "T\n\n# Head\n\nOne <b> two."), ("b.HTM", "three")];
    assert_eq!(found, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    assert_eq!(documents.skipped().invalid_utf8, 1);
}

#[cfg(unix)]
#[test]
fn links_that_lead_out_of_a_folder_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path(), &[("docs/a.txt", b"one"), ("secret.txt", b"not for anybody")]);
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, dir.path().join(name)).unwrap();
    link("a.txt", "docs/b.txt");
    link("../secret.txt", "docs/c.txt");
    link("/etc/hostname", "docs/d.txt");
    link("nowhere.txt", "docs/e.txt");
    assert_eq!(read(&dir.path().join("docs"), ReadOptions::default()).unwrap(), ["one", "one"]);
    // A cache of a hub has what its names mean beside them.
    write_files(dir.path(), &[("hub/blobs/5f", b"two"), ("hub/snapshots/1a/x.md", b"three")]);
    link("../../blobs/5f", "hub/snapshots/1a/y.md");
    assert_eq!(read(&dir.path().join("hub/snapshots/1a"), ReadOptions::default()).unwrap(), ["three", "two"]);
}

/// A page with one line of text, as PDF has it.
fn pdf(text: &str, trailer: &str) -> Vec<u8> {
    let content = format!("BT /F1 12 Tf 50 700 Td ({text}) Tj ET");
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>"
            .to_owned(),
        format!("<< /Length {} >>\nstream\n{content}\nendstream", content.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".to_owned(),
    ];
    let mut file = String::from("%PDF-1.4\n");
    let mut places = Vec::new();
    for (number, object) in (1..).zip(&objects) {
        places.push(file.len());
        file += &format!("{number} 0 obj\n{object}\nendobj\n");
    }
    let table = file.len();
    file += &format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    places.iter().for_each(|at| file += &format!("{at:010} 00000 n \n"));
    file += &format!("trailer\n<< /Size {} /Root 1 0 R {trailer}>>\nstartxref\n{table}\n%%EOF\n", objects.len() + 1);
    file.into_bytes()
}

#[test]
fn pdf_is_read_or_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let encrypted = "/ID [<00> <00>] /Encrypt << /Filter /Standard /V 1 /R 2 /O (0123456789abcdef0123456789abcdef) /U \
                     (0123456789abcdef0123456789abcdef) /P -4 >> ";
    write_files(
        dir.path(),
        &[
            ("good.pdf", &pdf("The pump holds 40 litres.", "")),
            ("empty.pdf", &pdf(" ", "")),
            ("cut.pdf", &pdf("The pump holds 40 litres.", "")[..200]),
            ("locked.pdf", &pdf("The pump holds 40 litres.", encrypted)),
            ("none.pdf", b"no pdf"),
        ],
    );
    let of = |name: &str, options| read(&dir.path().join(name), options).map_err(|error| error.to_string());
    if cfg!(feature = "pdf") {
        assert_eq!(of("good.pdf", ReadOptions::default()), Ok(vec!["The pump holds 40 litres.".to_owned()]));
    }
    let refused = [
        ("empty.pdf", "has no text"),
        ("cut.pdf", "has no text"),
        ("locked.pdf", "is encrypted"),
        ("none.pdf", "is no PDF that can be read"),
    ];
    for (name, reason) in refused {
        let reason = if cfg!(feature = "pdf") { reason } else { "was built without a reader of PDF files" };
        let error = of(name, ReadOptions::default()).unwrap_err();
        assert!(error.contains(name) && error.contains(reason), "{error}");
        assert_eq!(of(name, ReadOptions { skip_bad: true, ..ReadOptions::default() }), Ok(Vec::new()), "{name}");
    }
}
