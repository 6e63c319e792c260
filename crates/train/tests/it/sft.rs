//! Conversations as examples: what is learnt is what the assistant says.

use wels_data::chat::{ChatTemplate, DEEPSEEK_R1, DEEPSEEK_V3, Message};
use wels_data::tokenizer::{BpeTrainer, SpecialTokens, Tokenizer};
use wels_train::sft;

fn tokenizer() -> Tokenizer {
    let mut trainer = BpeTrainer::new(300, SpecialTokens::default()).unwrap();
    trainer.feed(&["one plus one is two, two plus two is four"]);
    trainer.train().unwrap()
}

fn template(source: &str) -> ChatTemplate {
    let special = SpecialTokens::default();
    ChatTemplate::new(source, &special.bos, &special.eos).unwrap()
}

fn talk() -> Vec<Message> {
    let messages = [
        ("system", "be short"),
        ("user", "one plus one"),
        ("assistant", "<think>easy</think>two"),
        ("user", "two plus two"),
        ("assistant", "four"),
    ];
    messages.map(|(role, text)| Message::new(role, text)).to_vec()
}

/// The learnt tokens of an example, in pieces that belong together.
fn learnt(tokenizer: &Tokenizer, example: &wels_train::example::Example) -> Vec<String> {
    let pairs: Vec<(u32, bool)> = example.tokens.iter().copied().zip(example.learn.iter().copied()).collect();
    let pieces = pairs.chunk_by(|a, b| a.1 == b.1).filter(|piece| piece[0].1);
    pieces.map(|piece| tokenizer.decode(&piece.iter().map(|(token, _)| *token).collect::<Vec<_>>()).unwrap()).collect()
}

#[test]
fn the_assistant_alone_is_learnt() {
    let tokenizer = tokenizer();
    let eos = SpecialTokens::default().eos;
    let examples = sft::conversation(&tokenizer, &template(DEEPSEEK_V3), &talk()).unwrap();
    assert_eq!(examples.len(), 1);
    assert_eq!(learnt(&tokenizer, &examples[0]), [format!("<think>easy</think>two{eos}"), format!("four{eos}")]);
}

#[test]
fn a_template_that_rewrites_the_past_gives_an_example_an_answer() {
    let tokenizer = tokenizer();
    let eos = SpecialTokens::default().eos;
    let examples = sft::conversation(&tokenizer, &template(DEEPSEEK_R1), &talk()).unwrap();
    let learnt: Vec<_> = examples.iter().map(|example| learnt(&tokenizer, example)).collect();
    assert_eq!(learnt, [[format!("easy</think>two{eos}")], [format!("four{eos}")]]);
    let second = tokenizer.decode(&examples[1].tokens).unwrap();
    assert!(!second.contains("easy"), "past thinking is dropped: {second}");
    let single = sft::answer(&tokenizer, &template(DEEPSEEK_R1), "one plus one", "<think>easy</think>two").unwrap();
    assert_eq!(self::learnt(&tokenizer, &single), [format!("easy</think>two{eos}")]);
}
