//! Equal to `transformers` and `tokenizers`: the files in `tests/oracle` are written by `scripts/oracle/make_text.py`.

use serde::Deserialize;
use serde_json::{Map, Value};
use wels_data::chat::RenderOptions;
use wels_data::{ChatTemplate, Message, Tokenizer};

#[derive(Deserialize)]
struct ChatCase {
    name: String,
    template: String,
    messages: Vec<Message>,
    tools: Vec<Value>,
    add_generation_prompt: bool,
    variables: Map<String, Value>,
    expected: String,
}

#[derive(Deserialize)]
struct TokenizerCase {
    name: String,
    tokenizer: String,
    texts: Vec<Encoded>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
    ids_with_added: Vec<u32>,
    decoded: String,
}

#[test]
fn templates_render_as_in_transformers() {
    let cases: Vec<ChatCase> = serde_json::from_str(include_str!("../oracle/chat.json")).unwrap();
    assert!(cases.len() > 30);
    let mut wrong = Vec::new();
    for case in cases {
        let template = ChatTemplate::new(&case.template, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>");
        let options = RenderOptions {
            add_generation_prompt: case.add_generation_prompt,
            tools: case.tools,
            variables: case.variables,
            now_unix_s: 0,
        };
        let rendered = template.and_then(|template| template.render(&case.messages, &options));
        if !matches!(&rendered, Ok(text) if *text == case.expected) {
            wrong.push(format!("{}\n  here:         {rendered:?}\n  transformers: {:?}", case.name, case.expected));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn ids_and_texts_are_those_of_tokenizers() {
    let cases: Vec<TokenizerCase> = serde_json::from_str(include_str!("../oracle/tokenizers.json")).unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let tokenizer = Tokenizer::from_json(case.tokenizer.as_bytes(), None).unwrap();
        for Encoded { text, ids, ids_with_added, decoded } in case.texts {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{}: {text:?}", case.name);
            assert_eq!(tokenizer.encode_with_added(&text).unwrap(), ids_with_added, "{}: {text:?}", case.name);
            assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{}: {text:?}", case.name);
            let mut stream = tokenizer.stream();
            let streamed: String = ids.iter().map(|&id| stream.step(id).unwrap()).collect();
            assert_eq!(streamed + &stream.finish(), decoded, "{}, streamed: {text:?}", case.name);
        }
    }
}
