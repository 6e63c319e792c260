//! Recipes as they are written, and as they are not.

use super::*;

const TINY: &str = "[model]\nmodel_type = \"llama\"\nhidden_size = 16\nnum_hidden_layers = 2\n\
    intermediate_size = 32\nnum_attention_heads = 2\nnum_key_value_heads = 2\nrms_norm_eps = 1e-5\n\
    max_position_embeddings = 256\nrope_theta = 10000.0\ntie_word_embeddings = false\n";

fn parse(text: &str) -> Result<Recipe, RecipeError> {
    Recipe::parse("r.toml", text, Path::new("/data"))
}

/// The error and hint of `head` before the tiny model's section.
fn error(head: &str) -> String {
    let error = parse(&format!("{head}\n{TINY}")).unwrap_err();
    format!("{error}\n{}", error.hint().unwrap_or_default())
}

#[test]
fn shipped_recipes_resolve_and_come_back_the_same() {
    for (name, text) in [
        ("quickstart", QUICKSTART),
        ("moe-28m", include_str!("../../../../recipes/moe-28m.toml")),
        ("dense-7m", include_str!("../../../../recipes/dense-7m.toml")),
        ("dense-500m", include_str!("../../../../bench/gpu/dense-500m.toml")),
        ("moe-2b", include_str!("../../../../bench/gpu/moe-2b.toml")),
        ("dense-7b", include_str!("../../../../bench/gpu/dense-7b.toml")),
        ("r1-zero", include_str!("../../../../recipes/r1-zero.toml")),
        ("r1", include_str!("../../../../recipes/r1.toml")),
        ("distill", include_str!("../../../../recipes/distill.toml")),
        ("finetune", include_str!("../../../../recipes/finetune.toml")),
        ("vertical", include_str!("../../../../recipes/vertical.toml")),
        ("janus", include_str!("../../../../recipes/janus.toml")),
        ("janus-fine", include_str!("../../../../recipes/janus-fine.toml")),
    ] {
        let recipe = parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let saved = recipe.to_toml();
        let again = parse(&saved).unwrap_or_else(|error| panic!("{name}: {error}\n{saved}"));
        assert_eq!(recipe, again);
        assert_eq!(again.to_toml(), saved);
        assert_eq!(again.changes_since(&recipe), Vec::<String>::new());
    }
}

#[test]
fn messages_name_place_and_nearest_key() {
    let cases = [
        (
            "[pretrain]\nlearnig_rate = 1",
            "r.toml:2:1: unknown key 'learnig_rate' in [pretrain]\ndid you mean 'learning_rate'?",
        ),
        ("[pretrian]", "r.toml:1:2: unknown section 'pretrian'\ndid you mean 'pretrain'?"),
        ("[run]\nseed = -1", "r.toml:2:8: run.seed must be a whole number from 0, but is a whole number\n"),
        ("[run]\n  name = 5", "r.toml:2:10: run.name must be a text in quotes, but is a whole number\n"),
        ("[pretrain]\nbeta1 = 1", "r.toml:2:9: pretrain.beta1 must be at least 0 and below 1, but is 1\n"),
        (
            "[pretrain]\nbatch_tokens = 300",
            "r.toml:2:16: pretrain.batch_tokens must be a multiple of data.sequence_length = 256, but is 300\n",
        ),
        ("[pretrain]\nsteps = 1\ntokens = 5", "r.toml:3:10: pretrain.tokens and pretrain.steps exclude each other\n"),
        (
            "[tokenizer]\npath = \"t\"\nchat_template = \"deepseek_v3\"",
            "r.toml:3:17: tokenizer.chat_template is of a tokenizer that is trained; that of tokenizer.path is taken as \
             it is\n",
        ),
        (
            "[[stage]]\nname = \"rl\"\nkind = \"rl\"\noverlong = \"penalty\"\noverlong_buffer = 0",
            "r.toml:5:19: stage.overlong_buffer must be 1 or more for a penalty, which grows within it\n",
        ),
        (
            "[pretrain]\nprecision = \"f8\"",
            "r.toml:2:13: pretrain.precision must be one of \"f32\", \"bf16\", \"f16\", but is \"f8\"\n",
        ),
        (
            "[pretrain]\nrecompute_layers = [2]",
            "r.toml:2:20: pretrain.recompute_layers names layer 2 of a model with 2\n",
        ),
        (
            "[pretrain]\ngradient_shards = 6",
            "r.toml:2:19: pretrain.gradient_shards must be a power of two, but is 6; 4 and 8 work\n",
        ),
        (
            "[pretrain]\ngradient_shards = 0",
            "r.toml:2:19: pretrain.gradient_shards must be a power of two, but is 0; 1 and 2 work\n",
        ),
        (
            "[pretrain]\nbatch_tokens = 1536\nbatch_tokens_start = 768\ngradient_shards = 4",
            "r.toml:4:19: pretrain.gradient_shards is 4, but a batch may have no more than 3 sequences; at most 2 works\n",
        ),
        (
            "[[stage]]\nname = \"rl\"\nkind = \"rl\"\nprompts = 4\nsamples = 4\nmini_batches = 3\ngradient_shards = 8",
            "r.toml:7:19: stage.gradient_shards is 8, but a batch may have no more than 5 sequences; at most 4 works\n",
        ),
        ("[budget]\nusd = 5", "r.toml:2:7: budget.usd limits money, and run.usd_per_hour sets no price of an hour\n"),
        ("[data]\nsources = []", "r.toml:2:11: data.sources names no source\n"),
        ("[run\nseed = 1", "r.toml:1:5: unclosed table, expected `]`\n"),
        ("run = 3", "r.toml:1:7: recipe.run must be a section, but is a whole number\n"),
    ];
    for (head, expected) in cases {
        assert_eq!(error(head), expected, "{head}");
    }
}

#[test]
fn model_keys_are_checked_too() {
    let text = TINY.replace("num_key_value_heads", "num_key_value_haeds");
    let message = parse(&text).unwrap_err();
    assert!(message.to_string().contains("r.toml:7:1: unknown key 'num_key_value_haeds' in [model]"), "{message}");
    assert_eq!(message.hint().unwrap(), "did you mean 'num_key_value_heads'?");
    let message = parse(&TINY.replace("hidden_size = 16", "hidden_size = \"a\"")).unwrap_err().to_string();
    assert!(message.starts_with("r.toml:3:1: [model] "), "{message}");
}

#[test]
fn changed_keys_are_listed_and_free_ones_are_not() {
    let begun = parse(&format!("[run]\nseed = 1\n[pretrain]\nmicro_batch = 1\n{TINY}")).unwrap();
    let changed = parse(&format!("[run]\nseed = 2\n[pretrain]\nmicro_batch = 4\n{TINY}")).unwrap();
    assert_eq!(changed.changes_since(&begun), ["run.seed: 1 → 2"]);
    let shards = parse(&format!("[run]\nseed = 1\n[pretrain]\nbatch_tokens = 512\ngradient_shards = 2\n{TINY}"));
    let one = parse(&format!("[run]\nseed = 1\n[pretrain]\nbatch_tokens = 512\n{TINY}")).unwrap();
    assert_eq!(shards.unwrap().changes_since(&one), ["pretrain.gradient_shards: 1 → 2"]);
}

#[test]
fn tokens_give_steps_through_the_ramp() {
    let text =
        "[pretrain]\ntokens = 100_000\nbatch_tokens = 2048\nbatch_tokens_start = 512\nbatch_ramp_tokens = 20_000\n";
    let recipe = parse(&format!("{text}{TINY}")).unwrap();
    let total = recipe.pretrain.total_tokens(recipe.data.sequence_length);
    assert!((100_000..102_048).contains(&total), "{total}");
    assert_eq!(recipe.pretrain.batch_tokens_after(0, 256), 512);
    assert_eq!(recipe.pretrain.batch_tokens_after(10_000, 256), 1280);
    assert_eq!(recipe.pretrain.batch_tokens_after(20_000, 256), 2048);
}

#[test]
fn any_text_is_read_without_a_panic() {
    let lines: Vec<&str> = "[model]|[data]|[run]|a = 1|seed = 9223372036854775807|steps = 1e9|tokens = 1|\
                            sequence_length = 9223372036854775807|batch_tokens = 1|\
                            batch_ramp_tokens = 9223372036854775807|x = [|hidden_size = 0|\
                            model_type = \"llama\"|[pretrain]|vocab_size = 300|[tokenizer]|é = \"ü\""
        .split('|')
        .collect();
    proptest::proptest!(|(picks in proptest::collection::vec(0..lines.len(), 0..12))| {
        let text: Vec<_> = picks.iter().map(|i| lines[*i]).collect();
        let _ = parse(&text.join("\n"));
    });
}
