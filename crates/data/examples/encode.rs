//! `encode TOKENIZER FILE…`: for each file a line with the ids of its text, marks in it taken as marks, then a line
//! with those taken as plain text. What `scripts/oracle/check_tokenizers.py` compares with the original tokenizers.

use std::error::Error;
use std::io::{BufWriter, Write};
use std::path::Path;

use wels_data::Tokenizer;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let tokenizer = Tokenizer::load(Path::new(&arguments.next().ok_or("which tokenizer?")?))?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for file in arguments {
        let text = std::fs::read_to_string(&file)?;
        for ids in [tokenizer.encode(&text)?, tokenizer.encode_ordinary(&text)?] {
            let words: Vec<String> = ids.iter().map(u32::to_string).collect();
            writeln!(out, "{}", words.join(" "))?;
        }
    }
    Ok(out.flush()?)
}
