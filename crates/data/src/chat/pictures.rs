//! Pictures in the text of a Janus model: what stands around them, and what one is drawn after.

use serde_json::{Value, json};

use super::{ChatError, ChatTemplate, Message, RenderOptions};
use crate::tokenizer::Tokenizer;

/// Spelled as in the vocabulary of Janus.
const BEGIN: &str = "<begin_of_image>";
const END: &str = "<end_of_image>";
const PADS: [&str; 2] = ["<｜▁pad▁｜>", "<pad>"];

/// The tokens around pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureTokens {
    /// A picture follows.
    pub begin: u32,
    /// Behind a picture that is seen.
    pub end: u32,
    /// In the places of the words that guidance leaves out.
    pub pad: u32,
}

impl PictureTokens {
    /// Those of a vocabulary; `None` if it has none.
    pub fn of(tokenizer: &Tokenizer) -> Option<PictureTokens> {
        let pad = tokenizer.special().pad.or_else(|| PADS.iter().find_map(|pad| tokenizer.id(pad)));
        Some(PictureTokens { begin: tokenizer.id(BEGIN)?, end: tokenizer.id(END)?, pad: pad? })
    }

    /// What a picture of these words is drawn after: the words as a user's message, in Janus' form if the model has no
    /// template, and the beginning of a picture.
    ///
    /// # Errors
    /// The template refuses the words, or fails; or the tokenizer does.
    pub fn draw_prompt(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        words: &str,
    ) -> Result<Vec<u32>, ChatError> {
        let text = match template {
            None => format!("<|User|>: {words}\n\n<|Assistant|>:"),
            Some(template) => template.render_words(words)?,
        };
        let mut ids = tokenizer.encode(&text)?;
        let bos = tokenizer.special().bos.filter(|bos| tokenizer.adds_bos() && ids.first() != Some(bos));
        ids.splice(0..0, bos);
        ids.push(self.begin);
        Ok(ids)
    }
}

impl ChatTemplate {
    /// Whether it takes a message's content as a list of parts and nothing of it as a string, as Janus' own does.
    pub fn takes_parts(&self) -> bool {
        const WORDS: &str = "words that no template has";
        let rendered = |content| self.render(&[user(content)], &RenderOptions::default());
        !rendered(WORDS.into()).is_ok_and(|text| text.contains(WORDS))
            && rendered(parts(WORDS)).is_ok_and(|text| text.contains(WORDS))
    }

    fn render_words(&self, words: &str) -> Result<String, ChatError> {
        let content = if self.takes_parts() { parts(words) } else { words.into() };
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        self.render(&[user(content)], &options)
    }
}

fn user(content: Value) -> Message {
    Message { content, ..Message::new("user", "") }
}

fn parts(words: &str) -> Value {
    json!([{"type": "text", "text": words}])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::JANUS;
    use crate::tokenizer::{BpeTrainer, SpecialTokens};

    /// As `transformers`' conversion of Janus has it, for what the user says.
    const OF_PARTS: &str = "{%- for message in messages %}{{ '<|User|>: ' }}{%- for part in message['content'] %}\
        {%- if part['type'] == 'image' %}{{ '<image_placeholder>\\n' }}{%- elif part['type'] == 'text' %}\
        {{ part['text'] }}{%- endif %}{%- endfor %}{{ '\\n\\n' }}{%- endfor %}\
        {%- if add_generation_prompt %}{{ '<|Assistant|>:' }}{%- endif %}";
    const OF_STRINGS: &str = "{%- for message in messages %}{{ '<|User|>: ' + message['content'] + '\\n\\n' }}\
        {%- endfor %}{%- if add_generation_prompt %}{{ '<|Assistant|>:' }}{%- endif %}";

    fn tokenizer() -> Tokenizer {
        let mut trainer = BpeTrainer::new(300, SpecialTokens::default()).unwrap();
        trainer.feed(&["a red circle left of a blue square"; 8]);
        let mut json: Value = serde_json::from_str(trainer.train().unwrap().to_json()).unwrap();
        let added = json["added_tokens"].as_array_mut().unwrap();
        for (id, token) in (300..).zip([BEGIN, END]) {
            added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}));
        }
        Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap()
    }

    #[test]
    fn words_come_into_a_prompt_whatever_the_template_takes() {
        let tokenizer = tokenizer();
        let tokens = PictureTokens::of(&tokenizer).expect("tokens of pictures");
        assert_eq!((Some(tokens.begin), Some(tokens.end)), (tokenizer.id(BEGIN), tokenizer.id(END)));
        let words = "a red circle\n\n{{ messages }}";
        let without = tokens.draw_prompt(&tokenizer, None, words).unwrap();
        for (source, takes_parts) in [(OF_PARTS, true), (OF_STRINGS, false), (JANUS, false)] {
            let template = ChatTemplate::new(source, "", "").unwrap();
            assert_eq!(template.takes_parts(), takes_parts, "{source}");
            assert_eq!(tokens.draw_prompt(&tokenizer, Some(&template), words).unwrap(), without, "{source}");
        }
        assert_eq!(without.last(), Some(&tokens.begin));
        let text = tokenizer.decode(&without[..without.len() - 1]).unwrap();
        assert!(text.contains(words) && text.ends_with("<|Assistant|>:"), "{text}");
    }

    #[test]
    fn a_trained_vocabulary_can_have_the_tokens_of_janus() {
        let mut trainer = BpeTrainer::new(300, SpecialTokens::of_janus()).unwrap();
        trainer.feed(&["a red circle"; 8]);
        let mut tokenizer = trainer.train().unwrap();
        tokenizer.set_chat_template(Some(JANUS.into()));
        assert_eq!(tokenizer.id("<image_placeholder>"), Some(crate::tokenizer::JANUS_PLACE));
        let tokens = PictureTokens::of(&tokenizer).expect("tokens of pictures");
        assert_eq!(tokens.pad, 2);
        let config: Value = serde_json::from_str(&tokenizer.to_config_json(64)).unwrap();
        let of_pictures = json!({
            "image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>",
        });
        assert_eq!(config["extra_special_tokens"], of_pictures, "as JanusProcessor asks for them");
    }

    /// As `transformers`' own template renders it.
    #[test]
    fn janus_form_of_a_conversation() {
        let template = ChatTemplate::new(JANUS, "<s>", "</s>").unwrap();
        let seen = Message {
            content: json!([{"type": "image"}, {"type": "text", "text": " what is it "}]),
            ..Message::new("user", "")
        };
        let messages = [seen, Message::new("assistant", "a cat"), Message::new("user", "sure?")];
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        assert_eq!(
            template.render(&messages, &options).unwrap(),
            "<|User|>: <image_placeholder>\nwhat is it\n\n<|Assistant|>: a cat</s><|User|>: sure?\n\n<|Assistant|>:"
        );
    }

    #[test]
    fn a_vocabulary_of_text_has_no_tokens_of_pictures() {
        let mut trainer = BpeTrainer::new(300, SpecialTokens::default()).unwrap();
        trainer.feed(&["text"; 8]);
        assert_eq!(PictureTokens::of(&trainer.train().unwrap()), None);
    }
}
