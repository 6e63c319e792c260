//! Reading and writing `config.json`.

mod families;

use proptest::prelude::*;
use serde_json::{Value, json};
use wels_model::config::{Attention, Dtype, Family, ModelConfig, RopeLayout, RopeScaling, Router, SoftmaxMethod};
use wels_model::count::{self, Bytes, Context};
use wels_model::presets;

/// A preset's file with some keys replaced; `Value::Null` in a pair's second place writes a null.
fn edited(preset: &str, edits: &[(&str, Value)]) -> String {
    let mut json: Value = serde_json::from_str(presets::json(preset).unwrap()).unwrap();
    for (key, value) in edits {
        json[*key] = value.clone();
    }
    json.to_string()
}

fn without(preset: &str, key: &str) -> String {
    let mut json: Value = serde_json::from_str(presets::json(preset).unwrap()).unwrap();
    json.as_object_mut().unwrap().shift_remove(key).expect("the preset has the key");
    json.to_string()
}

fn gqa(heads: usize, kv_heads: usize, head_dim: usize, [qkv_bias, o_bias, qk_norm]: [bool; 3]) -> Attention {
    Attention::Gqa { heads, kv_heads, head_dim, rope_dim: head_dim, qkv_bias, o_bias, qk_norm, sinks: false }
}

fn read(text: &str) -> ModelConfig {
    ModelConfig::from_hf_json(text).unwrap().0
}

fn error(text: &str) -> String {
    ModelConfig::from_hf_json(text).map(|(config, _)| config).expect_err(text).to_string()
}

#[test]
fn deepseek_v3_is_resolved() {
    let (config, notes) = ModelConfig::from_hf_json(presets::json("deepseek-v3").unwrap()).unwrap();
    assert_eq!(config.family, Family::DeepseekV3);
    let Attention::Mla { heads, q_lora_rank, kv_lora_rank, nope_dim, rope_dim, v_dim } = config.attention else {
        panic!("{:?}", config.attention)
    };
    assert_eq!((heads, q_lora_rank, kv_lora_rank, nope_dim, rope_dim, v_dim), (128, Some(1536), 512, 128, 64, 128));
    let moe = config.moe.as_ref().unwrap();
    let router = Router::Sigmoid { groups: 8, top_groups: 4, normalize: true, scale: 2.5 };
    assert_eq!((moe.experts, moe.shared_experts, moe.top_k, moe.first_dense_layers), (256, 1, 8, 3));
    assert_eq!(moe.router, router);
    assert_eq!(config.rope.layout, RopeLayout::Interleaved);
    assert!(matches!(config.rope.scaling, RopeScaling::Yarn { table_scale: 1.0, .. }), "{:?}", config.rope.scaling);
    assert_eq!((config.mtp_depth, config.tied_head, config.bos_id), (1, false, Some(0)));
    assert_eq!(config.eos_ids, [1]);
    let notes: Vec<String> = notes.iter().map(ToString::to_string).collect();
    assert_eq!(notes, ["config.json: fp8 weights are converted when loaded; activations are not quantised"]);
}

#[test]
fn softmax_scales() {
    for (name, scale) in [("deepseek-v3", 0.1352337789f64), ("deepseek-v2-lite", 0.1147213867), ("smollm2-135m", 0.125)]
    {
        assert_eq!(presets::preset(name).unwrap().softmax_scale, scale as f32, "{name}");
    }
    // Without YaRN nothing is corrected; nor is it in grouped-query attention, where cos and sin are.
    let plain = read(&edited("deepseek-v3", &[("rope_scaling", Value::Null)]));
    assert_eq!(plain.softmax_scale, (1.0 / 192f64.sqrt()) as f32);
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    let qwen = read(&edited("r1-distill-qwen-7b", &[("rope_scaling", yarn)]));
    assert_eq!(qwen.softmax_scale, (1.0 / 128f64.sqrt()) as f32);
    let RopeScaling::Yarn { table_scale, beta_fast, beta_slow, truncate, .. } = qwen.rope.scaling else { panic!() };
    assert_eq!((table_scale, beta_fast, beta_slow, truncate), (0.1 * 4f64.ln() + 1.0, 32.0, 1.0, true));
}

#[test]
fn the_other_families_are_resolved() {
    let v2 = presets::preset("deepseek-v2").unwrap();
    let method = SoftmaxMethod::GroupLimited { groups: 8, top_groups: 3 };
    assert_eq!(v2.moe.unwrap().router, Router::Softmax { method, normalize: false, scale: 16.0 });
    let lite = presets::preset("deepseek-v2-lite").unwrap();
    assert_eq!(
        lite.moe.unwrap().router,
        Router::Softmax { method: SoftmaxMethod::Greedy, normalize: false, scale: 1.0 }
    );
    assert!(matches!(lite.attention, Attention::Mla { q_lora_rank: None, .. }));
    let qwen = presets::preset("r1-distill-qwen-7b").unwrap();
    let attention = gqa(28, 4, 128, [true, false, false]);
    assert_eq!((qwen.attention, qwen.rope.layout), (attention, RopeLayout::HalfSplit));
    let llama = presets::preset("r1-distill-llama-8b").unwrap();
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 };
    assert_eq!((llama.rope.base, llama.rope.scaling), (500_000.0, scaling));
    let biased = read(&edited("smollm2-135m", &[("attention_bias", json!(true))]));
    let attention = gqa(9, 3, 64, [true, true, false]);
    assert_eq!((biased.attention, biased.tied_head), (attention, true));
}

#[test]
fn what_is_written_reads_back_equal() {
    let mut configs: Vec<ModelConfig> = presets::names().map(|name| presets::preset(name).unwrap()).collect();
    let yarn = json!({"rope_type": "yarn", "factor": 4.5, "attention_factor": 1.25, "truncate": false});
    configs.push(read(&edited("smollm2-135m", &[("rope_scaling", yarn), ("head_dim", json!(32))])));
    configs.push(read(&edited("smollm2-135m", &[("rope_scaling", json!({"type": "linear", "factor": 2}))])));
    configs.push(read(&edited("smollm2-135m", &[("eos_token_id", json!([1, 2])), ("bos_token_id", Value::Null)])));
    configs.push(read(&edited("deepseek-v3", &[("rope_interleave", json!(false)), ("n_shared_experts", json!(0))])));
    let on = [("use_sliding_window", json!(true)), ("sliding_window", json!(64)), ("max_window_layers", json!(5))];
    configs.extend(["qwen3-8b", "qwen3-30b-a3b", "r1-distill-qwen-7b"].map(|preset| read(&edited(preset, &on))));
    for config in configs {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::Fp8] {
            assert_eq!(read(&config.to_hf_json(dtype)), config);
        }
    }
}

#[test]
fn a_written_file_is_complete() {
    let config = presets::preset("deepseek-v2-lite").unwrap();
    let json: Value = serde_json::from_str(&config.to_hf_json(Dtype::Bf16)).unwrap();
    assert_eq!(json["architectures"], json!(["DeepseekV2ForCausalLM"]));
    assert_eq!(json["q_lora_rank"], Value::Null);
    assert_eq!(json["rms_norm_eps"], json!(1e-6));
    assert_eq!(json["rope_theta"], json!(10000));
    assert_eq!(json["torch_dtype"], json!("bfloat16"));
    assert_eq!(json.get("quantization_config"), None);
    assert_eq!(json["rope_scaling"]["mscale_all_dim"], json!(0.707));
}

#[test]
fn three_ways_to_write_rope_agree() {
    let old = presets::preset("r1-distill-llama-8b").unwrap();
    let parameters = json!({
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "high_freq_factor": 4.0,
        "low_freq_factor": 1.0, "original_max_position_embeddings": 8192
    });
    let both = edited("r1-distill-llama-8b", &[("rope_parameters", parameters.clone())]);
    assert_eq!(read(&both), old);
    let mut new: Value = serde_json::from_str(&both).unwrap();
    new.as_object_mut().unwrap().retain(|key, _| key != "rope_scaling" && key != "rope_theta");
    assert_eq!(read(&new.to_string()), old);
    let mut other = parameters;
    other["factor"] = json!(16.0);
    assert_eq!(
        error(&edited("r1-distill-llama-8b", &[("rope_parameters", other)])),
        "`rope_scaling` is {\"factor\":8.0,\"high_freq_factor\":4.0,\"low_freq_factor\":1.0,\"…, which contradicts \
         `rope_parameters` = {\"rope_type\":\"llama3\",\"rope_theta\":500000.0,\"factor\":16.0,\"h…: they say the same thing twice"
    );
}

#[test]
fn missing_keys_take_the_defaults_of_transformers() {
    let v3 = read(
        r#"{"model_type": "deepseek_v3", "num_nextn_predict_layers": 1, "max_position_embeddings": 163840,
        "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096}}"#,
    );
    assert_eq!(v3, presets::preset("deepseek-v3").unwrap());
    let llama = read(r#"{"model_type": "llama"}"#);
    assert_eq!((llama.hidden_size, llama.layers, llama.vocab_size, llama.dense_intermediate), (4096, 32, 32000, 11008));
    assert_eq!((llama.bos_id, llama.eos_ids, llama.rope.base), (Some(1), vec![2], 10000.0));
    let qwen = read(r#"{"model_type": "qwen2"}"#);
    assert_eq!((qwen.dense_intermediate, qwen.bos_id, qwen.eos_ids), (22016, None, vec![]));
    assert_eq!(error(r#"{"model_type": "deepseek_v2"}"#), "the key `num_experts_per_tok` is missing");
    assert_eq!(read(&without("deepseek-v3", "num_nextn_predict_layers")).mtp_depth, 0);
}

#[test]
fn unknown_keys_are_noted_once() {
    let text = edited("smollm2-135m", &[("flux_capacity", json!(1.21)), ("attention_dropout", json!(0.1))]);
    let (_, notes) = ModelConfig::from_hf_json(&text).unwrap();
    let notes: Vec<String> = notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "config.json: `attention_dropout` = 0.1 is ignored (training uses no dropout)",
            "config.json: unknown key `flux_capacity` = 1.21 is ignored",
        ]
    );
    let noted = ["deepseek-v3", "deepseek-r1", "deepseek-v3.2", "kimi-k2", "r1-0528-qwen3-8b"];
    for name in presets::names().filter(|name| !noted.contains(name)) {
        let (_, notes) = ModelConfig::from_hf_json(presets::json(name).unwrap()).unwrap();
        assert_eq!(notes, [], "{name}");
    }
}

#[test]
fn files_that_are_no_configuration() {
    assert_eq!(error("{"), "config.json is not valid JSON: EOF while parsing an object at line 1 column 1");
    assert_eq!(error("[1]"), "config.json holds a list where an object was expected");
    assert_eq!(error("{}"), "the key `model_type` is missing");
    assert_eq!(error(r#"{"model_type": 3}"#), "`model_type` is 3, expected a string");
    assert_eq!(
        error(r#"{"model_type": "mamba"}"#),
        "model_type `mamba` is not supported (supported: deepseek_v3, kimi_k2, deepseek_v32, deepseek_v4, deepseek_v2, qwen3, qwen3_moe, qwen2, glm4_moe, gpt_oss, glm4, phi3, gemma2, gemma3_text, mistral, llama)"
    );
    assert!(error(&"[".repeat(100_000)).starts_with("config.json is not valid JSON: recursion limit exceeded"));
    assert_eq!(
        presets::preset("deepsek-v3").unwrap_err().to_string(),
        "there is no preset `deepsek-v3` (the nearest is `deepseek-v3`)"
    );
}

/// A preset, what is changed in it, and the whole message.
type Refusal<'a> = (&'a str, &'a [(&'a str, Value)], &'a str);

/// Every message names key and value.
fn refused(cases: &[Refusal]) {
    for (preset, edits, expected) in cases {
        assert_eq!(error(&edited(preset, edits)), *expected, "{preset} {edits:?}");
    }
}

#[test]
fn types_and_ranges_are_checked() {
    refused(&[
        ("smollm2-135m", &[("hidden_size", json!("576"))], "`hidden_size` is \"576\", expected a whole number"),
        ("smollm2-135m", &[("hidden_size", json!(576.0))], "`hidden_size` is 576.0, expected a whole number"),
        ("smollm2-135m", &[("hidden_size", json!(0))], "`hidden_size` is 0, expected 1 to 1048576"),
        ("smollm2-135m", &[("vocab_size", json!(-5))], "`vocab_size` is -5, expected 1 to 16777216"),
        (
            "smollm2-135m",
            &[("num_hidden_layers", json!(u64::MAX))],
            "`num_hidden_layers` is 18446744073709551615, expected 1 to 1024",
        ),
        ("smollm2-135m", &[("rms_norm_eps", json!(-1.0))], "`rms_norm_eps` is -1.0, expected 1e-30 to 1.0"),
        ("smollm2-135m", &[("tie_word_embeddings", json!(1))], "`tie_word_embeddings` is 1, expected true or false"),
        (
            "smollm2-135m",
            &[("eos_token_id", json!("</s>"))],
            "`eos_token_id` is \"</s>\", expected a token id or a list of them",
        ),
        ("smollm2-135m", &[("rope_scaling", json!([8]))], "`rope_scaling` is [8], expected an object"),
    ]);
}

#[test]
fn unsupported_arithmetic_is_refused() {
    refused(&[
        (
            "smollm2-135m",
            &[("hidden_act", json!("gelu"))],
            "`hidden_act` is \"gelu\", which is not supported: only SwiGLU with silu is implemented",
        ),
        (
            "smollm2-135m",
            &[("mlp_bias", json!(true))],
            "`mlp_bias` is true, which is not supported: it belongs to an architecture that is not implemented",
        ),
        (
            "smollm2-135m",
            &[("attn_logit_softcapping", json!(50.0))],
            "`attn_logit_softcapping` is 50.0, which is not supported: it belongs to an architecture that is not implemented",
        ),
        (
            "smollm2-135m",
            &[("partial_rotary_factor", json!(0.5))],
            "`partial_rotary_factor` is 0.5, which is not supported: it belongs to an architecture that is not implemented",
        ),
        (
            "smollm2-135m",
            &[("sliding_window", json!(4096))],
            "`sliding_window` is 4096, which is not supported: this family attends to the whole context",
        ),
        (
            "r1-distill-qwen-7b",
            &[("layer_types", json!(["sliding_attention"]))],
            "`layer_types` is [\"sliding_attention\"], which is not supported: layers have `full_attention`, or with `use_sliding_window` `sliding_attention`",
        ),
        (
            "r1-distill-qwen-7b",
            &[("attention_bias", json!(false))],
            "`attention_bias` is false, which is not supported: qwen2 has biases on query, key and value",
        ),
        (
            "deepseek-v3.2",
            &[("q_lora_rank", json!(null))],
            "`q_lora_rank` is null, which is not supported: an indexer's queries are made from the query latent",
        ),
        (
            "deepseek-v3.2",
            &[("layer_types", json!(["indexed_attention", "full_attention"]))],
            "`layer_types` is [\"indexed_attention\",\"full_attention\"], which is not supported: every layer has to have `indexed_attention`",
        ),
        (
            "deepseek-v3.2",
            &[("mlp_layer_types", json!(["sparse"]))],
            "`mlp_layer_types` is [\"sparse\"], which is not supported: the first layers are dense, as many as first_k_dense_replace says",
        ),
        (
            "deepseek-v3.2",
            &[("rope_interleave", json!(false))],
            "`rope_interleave` is false, which is not supported: only deepseek_v3 has a choice of layouts",
        ),
        (
            "r1-distill-qwen-7b",
            &[("num_nextn_predict_layers", json!(1))],
            "`num_nextn_predict_layers` is 1, which is not supported: only deepseek_v3, deepseek_v32 and glm4_moe have MTP layers",
        ),
    ]);
}

/// Keys of other architectures, values that change nothing, and values that change the arithmetic.
fn foreign_keys() -> Vec<(&'static str, Vec<Value>, Vec<Value>)> {
    let off = || vec![json!(null), json!(false), json!(0), json!([])];
    let one = || vec![json!(null), json!(1), json!(1.0)];
    let on = || vec![json!(null), json!(true)];
    vec![
        ("is_causal", on(), vec![json!(false), json!(0), json!("no")]),
        ("use_rope", on(), vec![json!(false)]),
        ("use_bidirectional_attention", off(), vec![json!(true), json!("all")]),
        ("attn_logit_softcapping", off(), vec![json!(50.0)]),
        ("final_logit_softcapping", off(), vec![json!(30.0)]),
        ("logit_softcap", off(), vec![json!(15)]),
        ("swiglu_limit", off(), vec![json!(7.0)]),
        ("clip_qkv", off(), vec![json!(8)]),
        ("use_qk_norm", off(), vec![json!(true)]),
        ("use_parallel_residual", off(), vec![json!(true)]),
        ("num_experts", off(), vec![json!(8)]),
        ("no_rope_layers", off(), vec![json!([1, 1, 0])]),
        ("embedding_scale", one(), vec![json!(12.0), json!(0), json!(true)]),
        ("embedding_multiplier", one(), vec![json!(12.0)]),
        ("scale_emb", one(), vec![json!(12)]),
        ("logit_scale", one(), vec![json!(0.0625)]),
        ("logits_scaling", one(), vec![json!(8.0)]),
        ("residual_multiplier", one(), vec![json!(0.22)]),
        ("partial_rotary_factor", one(), vec![json!(0.5)]),
        ("mlp_multipliers", vec![json!([1.0, 1.0])], vec![json!([1.0, 0.5])]),
        // The two of MiniCPM are neutral where their formulas give 1, which they do not at 1.
        ("scale_depth", vec![json!(null)], vec![json!(1.4), json!(1)]),
        ("dim_model_base", vec![json!(null)], vec![json!(256), json!(1)]),
        ("attention_multiplier", vec![json!(null)], vec![json!(0.015625), json!(1.0), json!(0)]),
        ("query_pre_attn_scalar", vec![json!(null)], vec![json!(224), json!(1)]),
        ("attention_chunk_size", vec![json!(null), json!(1 << 28)], vec![json!(1024), json!("all")]),
        ("window_size", vec![json!(false), json!(1 << 28)], vec![json!(512), json!(-1)]),
        ("norm_type", vec![json!(null), json!("rms_norm")], vec![json!("layer_norm")]),
        ("hidden_activation", vec![json!(null), json!("silu")], vec![json!("gelu_pytorch_tanh")]),
        ("position_embedding_type", vec![json!("rope")], vec![json!("alibi")]),
    ]
}

#[test]
fn keys_that_change_the_arithmetic_are_refused_in_every_family() {
    for preset in ["deepseek-v3", "deepseek-v2-lite", "r1-distill-qwen-7b", "r1-distill-llama-8b", "smollm2-135m"] {
        let plain = presets::preset(preset).unwrap();
        let head_dim = json!(plain.attention.qk_dim());
        let derived = [
            ("query_pre_attn_scalar", vec![head_dim], vec![]),
            ("attention_multiplier", vec![json!(plain.softmax_scale)], vec![]),
            ("rotary_dim", vec![json!(plain.attention.rope_dim())], vec![json!(plain.attention.rope_dim() - 2)]),
            ("dim_model_base", vec![json!(plain.hidden_size)], vec![]),
            ("scale_depth", vec![json!((plain.layers as f64).sqrt())], vec![]),
            ("attention_chunk_size", vec![json!(plain.rope.max_positions)], vec![json!(plain.rope.max_positions - 1)]),
        ];
        for (key, neutral, changing) in foreign_keys().into_iter().chain(derived) {
            for value in neutral {
                let (config, notes) = ModelConfig::from_hf_json(&edited(preset, &[(key, value.clone())])).unwrap();
                assert_eq!(config, plain, "{preset}: {key} = {value}");
                assert!(!notes.iter().any(|note| note.0.contains(key)), "{preset}: {key} = {value}: {notes:?}");
            }
            for value in changing {
                let said = error(&edited(preset, &[(key, value.clone())]));
                assert!(said.starts_with(&format!("`{key}` is ")), "{preset}: {key} = {value}: {said}");
            }
        }
    }
}

#[test]
fn windows_that_hold_the_whole_context_are_no_windows() {
    for preset in ["r1-distill-qwen-7b", "smollm2-135m", "deepseek-v3"] {
        let plain = presets::preset(preset).unwrap();
        let context = plain.rope.max_positions;
        let types = json!(vec!["sliding_attention"; plain.layers]);
        let with = |window: Value, types: Value| {
            let switch = ("use_sliding_window", json!(true));
            edited(
                preset,
                &[switch, ("max_window_layers", json!(0)), ("sliding_window", window), ("layer_types", types)],
            )
        };
        for window in [context, context + 1, 1 << 40] {
            assert_eq!(read(&with(json!(window), json!(null))), plain, "{preset} {window}");
            assert_eq!(read(&with(json!(window), types.clone())), plain, "{preset} {window}");
        }
        assert_eq!(read(&with(json!(null), json!(null))), plain, "{preset}");
        let narrow = [
            (json!(context - 1), json!(null), "sliding_window` is "),
            (json!(context - 1), types.clone(), "layer_types` is "),
        ];
        let wrong = [
            (json!(null), types.clone(), "layer_types` is "),
            (json!(0), types, "layer_types` is "),
            (json!(context), json!(["linear_attention"]), "layer_types` is "),
            (json!("wide"), json!(null), "sliding_window` is "),
        ];
        // Qwen2 has windows.
        let narrow = narrow.into_iter().filter(|_| plain.family != Family::Qwen2);
        for (window, types, key) in narrow.chain(wrong) {
            let said = error(&with(window.clone(), types));
            assert!(said.contains(key), "{preset} {window}: {said}");
        }
    }
}

#[test]
fn unsupported_arithmetic_of_deepseek_is_refused() {
    refused(&[
        (
            "deepseek-v3",
            &[("attention_bias", json!(true))],
            "`attention_bias` is true, which is not supported: MLA is implemented without biases, as all published models are",
        ),
        (
            "deepseek-v3",
            &[("topk_method", json!("greedy"))],
            "`topk_method` is \"greedy\", which is not supported: deepseek_v3 selects with `noaux_tc`",
        ),
        (
            "deepseek-v3",
            &[("scoring_func", json!("softmax"))],
            "`scoring_func` is \"softmax\", which is not supported: deepseek_v3 scores with `sigmoid`",
        ),
        (
            "deepseek-v3",
            &[("moe_layer_freq", json!(2))],
            "`moe_layer_freq` is 2, which is not supported: every layer after the dense ones has experts",
        ),
        (
            "deepseek-v3",
            &[("quantization_config", json!({"quant_method": "awq"}))],
            "`quantization_config.quant_method` is \"awq\", which is not supported: of quantised files, only fp8 e4m3 with weight blocks of 128x128 is read",
        ),
        (
            "deepseek-v3",
            &[("quantization_config", json!({"quant_method": "fp8", "weight_block_size": [64, 64]}))],
            "`quantization_config.weight_block_size` is [64,64], which is not supported: of quantised files, only fp8 e4m3 with weight blocks of 128x128 is read",
        ),
        (
            "deepseek-v2",
            &[("norm_topk_prob", json!(true))],
            "`norm_topk_prob` is true, which is not supported: published programs disagree about its meaning in deepseek_v2",
        ),
        (
            "deepseek-v2",
            &[("topk_method", json!("noaux_tc"))],
            "`topk_method` is \"noaux_tc\", which is not supported: deepseek_v2 has `greedy` and `group_limited_greedy`",
        ),
        (
            "deepseek-v2",
            &[("rope_interleave", json!(false))],
            "`rope_interleave` is false, which is not supported: only deepseek_v3 has a choice of layouts",
        ),
    ]);
}

#[test]
fn unsupported_rotary_embeddings_are_refused() {
    refused(&[
        (
            "smollm2-135m",
            &[("rope_scaling", json!({"type": "ntk", "factor": 2}))],
            "`rope_scaling.type` is \"ntk\", which is not supported: the rope types are default, dynamic, linear, yarn, llama3 and longrope",
        ),
        (
            "smollm2-135m",
            &[("rope_scaling", json!({"rope_type": "default", "mrope_section": [16]}))],
            "`rope_scaling.mrope_section` is [16], which is not supported: a key that is not known here may change the frequencies",
        ),
    ]);
}

#[test]
fn contradictions_are_refused() {
    refused(&[
        (
            "smollm2-135m",
            &[("num_attention_heads", json!(7)), ("num_key_value_heads", json!(7))],
            "`hidden_size` is 576, which contradicts `num_attention_heads` = 7: without head_dim, the hidden size is divided evenly over the heads",
        ),
        (
            "smollm2-135m",
            &[("num_key_value_heads", json!(2))],
            "`num_attention_heads` is 9, which contradicts `num_key_value_heads` = 2: query heads are shared out evenly over key-value heads",
        ),
        (
            "smollm2-135m",
            &[("head_dim", json!(65))],
            "`head_dim` is 65, which is not supported: rotary elements come in pairs",
        ),
        (
            "deepseek-v3",
            &[("num_key_value_heads", json!(8))],
            "`num_key_value_heads` is 8, which contradicts `num_attention_heads` = 128: in MLA every head has its own keys and values",
        ),
        (
            "deepseek-v3",
            &[("qk_head_dim", json!(128))],
            "`qk_head_dim` is 128, which contradicts `qk_rope_head_dim` = 64: it is the sum of qk_nope_head_dim and qk_rope_head_dim",
        ),
        (
            "deepseek-v3",
            &[("n_group", json!(7))],
            "`n_group` is 7, which contradicts `n_routed_experts` = 256: groups have equally many experts",
        ),
        (
            "deepseek-v3",
            &[("topk_group", json!(9))],
            "`topk_group` is 9, which contradicts `n_group` = 8: a token cannot use more groups than there are",
        ),
        (
            "deepseek-v3",
            &[("num_experts_per_tok", json!(200))],
            "`num_experts_per_tok` is 200, which contradicts `topk_group` = 4: the allowed groups hold fewer experts",
        ),
        (
            "deepseek-v3",
            &[("n_group", json!(256)), ("topk_group", json!(8))],
            "`n_group` is 256, which contradicts `n_routed_experts` = 256: a group is ranked by its two best experts",
        ),
        (
            "deepseek-v3",
            &[("first_k_dense_replace", json!(62))],
            "`first_k_dense_replace` is 62, which contradicts `num_hidden_layers` = 61: there are not that many layers to keep dense",
        ),
        (
            "deepseek-v3",
            &[("num_mtp_layers", json!(2))],
            "`num_mtp_layers` is 2, which contradicts `num_nextn_predict_layers` = 1: they are two names of one number",
        ),
        (
            "deepseek-v2-lite",
            &[("num_experts_per_tok", json!(65))],
            "`num_experts_per_tok` is 65, which contradicts `n_routed_experts` = 64: a token cannot use more experts than there are",
        ),
    ]);
}

#[test]
fn contradictions_in_rotary_embeddings_are_refused() {
    refused(&[
        (
            "smollm2-135m",
            &[("rope_scaling", json!({"type": "linear", "rope_type": "yarn", "factor": 2}))],
            "`rope_scaling.rope_type` is yarn, which contradicts `type` = linear: they are two names of one key",
        ),
        (
            "smollm2-135m",
            &[("rope_parameters", json!({"rope_theta": 10000.0}))],
            "`rope_parameters.rope_theta` is 10000, which contradicts `rope_theta` = 100000: they are the same number",
        ),
        ("smollm2-135m", &[("rope_scaling", json!({"type": "linear"}))], "the key `rope_scaling.factor` is missing"),
    ]);
}

#[test]
fn sizes_are_checked_together() {
    refused(&[
        (
            "smollm2-135m",
            &[("head_dim", json!(4096)), ("num_attention_heads", json!(16384)), ("num_key_value_heads", Value::Null)],
            "`num_attention_heads` is 16384, which contradicts `head width` = 4096: the heads together are wider than 4194304",
        ),
        (
            "deepseek-v3",
            &[("moe_intermediate_size", json!(4194304)), ("hidden_size", json!(1048576))],
            "the model would have 200066603642137344 parameters, more than the 70368744177664 supported",
        ),
    ]);
}

/// Any JSON value, biased to numbers at the edges.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u32..64).prop_map(|bits| Value::from(1u64 << bits)),
        (0u64..300).prop_map(Value::from),
        prop_oneof!["yarn", "linear", "llama3", "greedy", "group_limited_greedy", ".{0,9}"].prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(
                prop_oneof![
                    "type",
                    "rope_type",
                    "factor",
                    "mscale",
                    "mscale_all_dim",
                    "rope_theta",
                    "beta_fast",
                    "fmt"
                ],
                inner,
                0..4
            )
            .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        ..ProptestConfig::default()
    })]

    /// Whatever is done to a valid file: an error or a configuration that writes and reads back equal, and never a
    /// panic.
    #[test]
    fn changed_files_never_panic(
        preset in 0..11usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 1..4),
        drop in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let name = presets::names().nth(preset).unwrap();
        let mut json: Value = serde_json::from_str(presets::json(name).unwrap()).unwrap();
        let map = json.as_object_mut().unwrap();
        for (key, value) in edits {
            let key = map.keys().nth(key.index(map.len())).unwrap().clone();
            map.insert(key, value);
        }
        if let Some(key) = drop {
            let key = map.keys().nth(key.index(map.len())).unwrap().clone();
            map.shift_remove(&key);
        }
        if let Ok((config, _)) = ModelConfig::from_hf_json(&json.to_string()) {
            let (again, _) = ModelConfig::from_hf_json(&config.to_hf_json(Dtype::F32)).unwrap();
            prop_assert_eq!(&config, &again);
            // Whatever is accepted can be counted.
            let counts = count::params(&config);
            prop_assert!(counts.activated_body <= counts.total);
            prop_assert!(count::checkpoint(&config, Dtype::Fp8).bytes() > Bytes(0));
            count::forward_flops(&config, Context::DecodeAbsorbed { keys: usize::MAX }).training();
        }
    }

    /// Damaged text: cut, or with bytes replaced.
    #[test]
    fn damaged_text_never_panics(preset in 0..11usize, cut in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let name = presets::names().nth(preset).unwrap();
        let mut bytes = presets::json(name).unwrap().as_bytes().to_vec();
        let at = cut.index(bytes.len());
        let _ = ModelConfig::from_hf_json(&String::from_utf8_lossy(&bytes[..at]));
        bytes[at] = byte;
        let _ = ModelConfig::from_hf_json(&String::from_utf8_lossy(&bytes));
    }
}
