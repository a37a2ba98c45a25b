//! Every format gives the same rows, whatever the file is named.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Date32Array, DictionaryArray, Float32Array, RecordBatch, StringArray,
};
use arrow::datatypes::Int32Type;
use parquet::arrow::ArrowWriter;

use super::*;

const LINES: &str = "{\"text\": \"one\", \"n\": 1}\n\n{\"text\": \"two\", \"n\": 2}\n";

fn write(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).expect("written");
    path
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).expect("compressed");
    encoder.finish().expect("compressed")
}

fn parquet_bytes(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).expect("a batch");
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("written");
    writer.close().expect("closed");
    bytes
}

/// The field `text` of every row.
fn texts(path: &Path) -> Result<Vec<FieldValue>, DataFileError> {
    let columns = Columns::Only(BTreeSet::from(["text".to_owned()]));
    let rows = DataFile::open(path)?.rows(columns)?;
    rows.map(|row| Ok(row?.field("text").expect("a text").clone()))
        .collect()
}

#[test]
fn every_format_gives_the_same_rows() {
    let folder = tempfile::tempdir().expect("a folder");
    let array = "[\n {\"text\": \"one\"},\n {\"text\": \"two\"}\n]";
    let pretty = "{\n \"text\": \"one\"\n}\n{\n \"text\": \"two\"\n}\n";
    let text_column: ArrayRef = Arc::new(StringArray::from(vec!["one", "two"]));
    let parquet = parquet_bytes(vec![("text", text_column)]);
    for (name, content) in [
        ("rows.jsonl", LINES.as_bytes().to_vec()),
        ("rows.json", LINES.as_bytes().to_vec()),
        ("rows.ndjson", LINES.replace('\n', "\r\n").into_bytes()),
        ("rows.txt", LINES.as_bytes().to_vec()),
        ("rows", LINES.as_bytes().to_vec()),
        ("mark.json", format!("\u{feff}{LINES}").into_bytes()),
        ("array.json", array.as_bytes().to_vec()),
        ("array.jsonl", array.as_bytes().to_vec()),
        ("array.txt", array.as_bytes().to_vec()),
        ("pretty.json", pretty.as_bytes().to_vec()),
        (
            "data.json",
            format!("{{\"version\": 1, \"data\": {array}}}").into_bytes(),
        ),
        (
            "data-line.json",
            b"{\"data\": [{\"text\": \"one\"}, {\"text\": \"two\"}]}".to_vec(),
        ),
        ("rows.csv", b"id,text\n1,one\n2,\"two\"\n".to_vec()),
        ("semicolon.csv", b"id;text\n1;one\n2;two\n".to_vec()),
        ("rows.tsv", b"id\ttext\n1\tone\n2\ttwo".to_vec()),
        ("rows.parquet", parquet.clone()),
        ("no-extension", parquet.clone()),
        ("rows.json.gz", gzip(LINES.as_bytes())),
        ("c4-train.00000-of-01024.json.gz", gzip(LINES.as_bytes())),
        ("misnamed.json", gzip(LINES.as_bytes())),
        ("plain.json.gz", LINES.as_bytes().to_vec()),
        (
            "two-members.jsonl.gz",
            [gzip(b"{\"text\": \"one\"}\n"), gzip(b"{\"text\": \"two\"}")].concat(),
        ),
        (
            "rows.jsonl.zst",
            zstd::encode_all(LINES.as_bytes(), 1).expect("compressed"),
        ),
        ("rows.csv.gz", gzip(b"text\none\ntwo\n")),
        ("rows.parquet.gz", gzip(&parquet)),
    ] {
        let path = write(folder.path(), name, &content);
        let expected = ["one", "two"].map(|text| FieldValue::Text(text.to_owned()));
        assert_eq!(texts(&path).expect(name), expected, "{name}");
    }
}

#[test]
fn text_is_text_only_if_it_looks_like_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let utf16: Vec<u8> = "\u{feff}hello"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for content in [
        "Anna is in the garden.",
        "[1] a list of references",
        "{a set} of braces",
        "{\"broken\": ",
        "name,text\n1,a",
        "\u{feff}with a mark",
    ] {
        let file = DataFile::open(&write(folder.path(), "t.txt", content.as_bytes()));
        let file = file.expect(content);
        assert_eq!(file.format(), DataFormat::Text, "{content}");
        assert_eq!(
            file.read_text().expect("text"),
            content.trim_start_matches('\u{feff}')
        );
    }
    let text = "a text\n".repeat(20_000);
    let compressed = write(folder.path(), "t.txt.gz", &gzip(text.as_bytes()));
    assert_eq!(
        DataFile::open(&compressed).and_then(|file| file.read_text()),
        Ok(text)
    );
    for (name, content, message, help) in [
        ("t.txt", &utf16[..], "is UTF-16 text", "iconv"),
        ("t.txt", b"a\0b", "its byte 1 is 0", "UTF-8 text"),
        (
            "t.txt",
            b"caf\xe9 au lait",
            "is not UTF-8 text from byte 3 on",
            "iconv",
        ),
        (
            "t.txt",
            b"PK\x03\x04....",
            "is compressed with zip",
            "decompress",
        ),
        (
            "t.txt",
            b"BZh91AY",
            "is compressed with bzip2",
            "decompress",
        ),
        ("t.arrow", b"ARROW1\0\0", "is an Arrow file", "JSON Lines"),
        (
            "t.parquet",
            b"hello",
            "is not a Parquet file, as its name says",
            "",
        ),
        ("t.json", b"hello", "is not JSON, as its name says", ".txt"),
        ("t.txt", b"", "is empty", ""),
    ] {
        let error = DataFile::open(&write(folder.path(), name, content)).expect_err(message);
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.help().contains(help), "{}", error.help());
    }
}

#[test]
fn columns_that_are_not_read_refuse_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let images: ArrayRef = Arc::new(BinaryArray::from(vec![&b"\xff"[..], b"\0"]));
    let dates: ArrayRef = Arc::new(Date32Array::from(vec![1, 2]));
    let labels: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::from_iter(["a", "b"]));
    let floats: ArrayRef = Arc::new(Float32Array::from(vec![0.1, 2.0]));
    let texts_column: ArrayRef = Arc::new(StringArray::from(vec![Some("one"), None]));
    let bytes = parquet_bytes(vec![
        ("image", images),
        ("date", dates),
        ("label", labels),
        ("score", floats),
        ("text", texts_column),
    ]);
    let path = write(folder.path(), "rows.parquet", &bytes);
    assert_eq!(
        texts(&path).expect("texts"),
        [FieldValue::Text("one".to_owned()), FieldValue::Null]
    );
    let file = DataFile::open(&path).expect("a file");
    let rows: Result<Vec<DataRow>, _> = file.rows(Columns::All).expect("rows").collect();
    let row = &rows.expect("rows")[0];
    assert_eq!(row.field("label"), Some(&FieldValue::Text("a".to_owned())));
    assert_eq!(
        row.field("score"),
        Some(&FieldValue::Float(f64::from(0.1_f32)))
    );
    assert_eq!(
        row.field("date").map(FieldValue::kind),
        Some("a date".to_owned())
    );
    // In JSON and CSV too.
    let deep = format!(
        "{{\"x\": {}1{}, \"text\": \"one\"}}",
        "[".repeat(110),
        "]".repeat(110)
    );
    for (name, content) in [
        ("deep.jsonl", deep.as_str()),
        ("wide.csv", "text,text2\none,\n"),
    ] {
        let path = write(folder.path(), name, content.as_bytes());
        assert_eq!(
            texts(&path).expect(name),
            [FieldValue::Text("one".to_owned())]
        );
    }
}

#[test]
fn damaged_files_are_named_with_their_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cut_gzip = gzip(LINES.repeat(10_000).as_bytes());
    cut_gzip.truncate(cut_gzip.len() / 2);
    for (name, content, message) in [
        (
            "a.jsonl",
            &b"{\"text\": \"a\"}\n{\"text\": \n"[..],
            "a.jsonl`, line 2: it is not valid JSON: EOF",
        ),
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n[1]\n",
            "line 2: it is a list, and a JSON object is expected",
        ),
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n3\n",
            "line 2: it is 3, and a JSON object is expected",
        ),
        (
            "a.json",
            b"[{\"text\": \"a\"}, \"b\"]",
            "a.json`, row 2: it is a text, and a JSON object",
        ),
        (
            "a.json",
            b"[{\"text\": \"a\"}",
            "a.json` is not valid JSON: EOF",
        ),
        (
            "a.csv",
            b"id,text\n1,a\n2,b,c\n",
            "a.csv`, line 3: it has 3 fields, and the first line names 2",
        ),
        ("a.jsonl.gz", &cut_gzip, "cannot read `"),
        ("a.parquet", b"PAR1 is not all of it", "cannot read `"),
    ] {
        let path = write(folder.path(), name, content);
        let error = texts(&path).expect_err(message).to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn only_regular_files_are_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join("link.txt");
    std::os::unix::fs::symlink("nowhere.txt", &link).expect("a link");
    let message = |path: &Path| DataFile::open(path).expect_err("no file").to_string();
    assert!(message(&link).ends_with("it is a link to `nowhere.txt`, which does not exist"));
    assert!(message(folder.path()).ends_with("is a folder, not a file"));
    assert_eq!(
        message(Path::new("/dev/zero")),
        "`/dev/zero` is a device, not a file"
    );
    let fifo = folder.path().join("fifo.jsonl");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    if made.is_ok_and(|status| status.success()) {
        assert!(message(&fifo).ends_with("is a FIFO, not a file"));
    }
}

#[test]
fn a_stem_has_no_extension_of_a_compression() {
    for (name, stem) in [
        ("a/rows.jsonl", "rows"),
        ("rows.v2.json.gz", "rows.v2"),
        ("rows.txt.zst", "rows"),
        ("rows.gz", "rows"),
        ("wiki.test.raw", "wiki.test"),
    ] {
        assert_eq!(file_stem(Path::new(name)), stem);
    }
}

#[test]
fn numbers_that_python_writes_refuse_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let line = "{\"text\": \"NaN\", \"score\": [NaN, -Infinity]}";
    for name in ["rows.jsonl", "rows.txt", "rows.json"] {
        let path = write(folder.path(), name, line.as_bytes());
        let file = DataFile::open(&path).expect(name);
        let rows: Result<Vec<DataRow>, _> = file.rows(Columns::All).expect(name).collect();
        let rows = rows.expect(name);
        assert_eq!(rows[0].field("text"), Some(&FieldValue::Text("NaN".into())));
        match rows[0].field("score") {
            Some(FieldValue::List(numbers)) => match numbers[..] {
                [FieldValue::Float(nan), FieldValue::Float(infinity)] => {
                    assert!(nan.is_nan() && infinity == f64::NEG_INFINITY, "{name}");
                }
                _ => panic!("{numbers:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_pointer_of_git_lfs_is_no_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n";
    for name in ["corpus.txt", "rows.jsonl", "rows.parquet"] {
        let error = DataFile::open(&write(folder.path(), name, pointer)).expect_err(name);
        assert!(error.to_string().contains("Git LFS"), "{error}");
        assert!(error.help().contains("git lfs pull"), "{}", error.help());
    }
}

#[test]
fn a_misspelt_file_is_suggested_and_an_empty_array_has_no_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = write(folder.path(), "stories.json", b"{\"data\": []}");
    let rows = DataFile::open(&path).expect("JSON").rows(Columns::All);
    assert_eq!(rows.expect("rows").count(), 0);
    let error = DataFile::open(&folder.path().join("storys.json")).expect_err("misspelt");
    assert!(error.to_string().ends_with("the file does not exist"));
    assert_eq!(error.help(), format!("did you mean `{}`?", path.display()));
}
