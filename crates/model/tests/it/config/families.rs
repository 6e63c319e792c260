//! Qwen3, GLM-4.5, Kimi K2 and Mistral: keys of their own, and windows of attention.

use serde_json::{Value, json};
use wels_model::config::{Attention, Family, Gating, ModelConfig, RopeLayout, RopeScaling, Router, SoftmaxMethod};
use wels_model::presets;

use super::{edited, error, gqa, read, refused, without};

#[test]
fn qwen3_glm_and_kimi_are_resolved() {
    let qwen = presets::preset("qwen3-8b").unwrap();
    assert_eq!(
        (qwen.family, qwen.attention, qwen.rope.base),
        (Family::Qwen3, gqa(32, 8, 128, [false, false, true]), 1e6)
    );
    let moe = presets::preset("qwen3-30b-a3b").unwrap();
    assert_eq!(moe.attention, gqa(32, 4, 128, [false, false, true]));
    let router = Router::Softmax { method: SoftmaxMethod::Greedy, normalize: true, scale: 1.0 };
    let experts = moe.moe.unwrap();
    assert_eq!((experts.experts, experts.top_k, experts.shared_experts, experts.router), (128, 8, 0, router));
    let glm = presets::preset("glm-4.5").unwrap();
    let (heads, kv_heads, head_dim, rope_dim) = (96, 8, 128, 64);
    let attention = Attention::Gqa {
        heads,
        kv_heads,
        head_dim,
        rope_dim,
        qkv_bias: true,
        o_bias: false,
        qk_norm: true,
        sinks: false,
    };
    assert_eq!((glm.attention, glm.mtp_depth, glm.norm_eps), (attention, 1, 1e-5));
    let router = Router::Sigmoid { groups: 1, top_groups: 1, normalize: true, scale: 2.5 };
    assert_eq!(glm.moe.unwrap().router, router);
    let kimi = presets::preset("kimi-k2").unwrap();
    assert_eq!(kimi, read(&edited("kimi-k2", &[("model_type", json!("deepseek_v3"))])));
    assert_eq!((kimi.family, kimi.mtp_depth), (Family::DeepseekV3, 0));
}

#[test]
fn gpt_oss_is_resolved() {
    let (config, notes) = ModelConfig::from_hf_json(presets::json("gpt-oss-20b").unwrap()).unwrap();
    assert_eq!(notes, []);
    let (heads, kv_heads, head_dim) = (64, 8, 64);
    let attention = Attention::Gqa {
        heads,
        kv_heads,
        head_dim,
        rope_dim: head_dim,
        qkv_bias: true,
        o_bias: true,
        qk_norm: false,
        sinks: true,
    };
    assert_eq!(config.attention, attention);
    assert_eq!(config.gating, Gating::Clamped { alpha: 1.702, limit: 7.0 });
    assert_eq!((config.window(0), config.window(1), config.window(22)), (Some(128), None, Some(128)));
    let RopeScaling::Yarn { truncate, table_scale, .. } = config.rope.scaling else { panic!("{:?}", config.rope) };
    assert_eq!((truncate, table_scale as f32), (false, 1.346_573_6));
    assert_eq!(read(&without("gpt-oss-20b", "layer_types")), config, "every second layer slides");
    let all = vec!["full_attention"; 24];
    assert_eq!(read(&edited("gpt-oss-20b", &[("layer_types", json!(all))])).window, None);
    for (key, value) in [
        ("layer_types", json!(["linear_attention"])),
        ("quantization_config", json!({"quant_method": "gptq"})),
        ("norm_topk_prob", json!(false)),
        ("experts_per_token", json!(3)),
    ] {
        assert!(error(&edited("gpt-oss-20b", &[(key, value)])).contains(key), "{key}");
    }
    let json: Value = serde_json::from_str(&without("gpt-oss-20b", "rope_theta")).unwrap();
    assert!(ModelConfig::from_hf_json(&json.to_string()).is_err(), "the base is none that other families have");
    let mistral = error(&edited("mistral-7b-v0.1", &[("swiglu_limit", json!(7.0))]));
    assert!(mistral.starts_with("`swiglu_limit` is 7.0"), "{mistral}");
}

#[test]
fn glm4_and_phi3_are_resolved() {
    let read = |json: Value| ModelConfig::from_hf_json(&json.to_string());
    let (glm, _) = read(json!({"model_type": "glm4"})).unwrap();
    assert_eq!((glm.rope.layout, glm.attention.rope_dim(), glm.norm_eps), (RopeLayout::Interleaved, 64, 1.5625e-7));
    assert!(matches!(glm.attention, Attention::Gqa { qkv_bias: true, o_bias: false, kv_heads: 2, .. }));
    let (phi, _) = read(json!({"model_type": "phi3"})).unwrap();
    assert_eq!((phi.attention, phi.window, phi.eos_ids), (gqa(32, 32, 96, [false; 3]), None, vec![32000]));
    let (phi, _) = read(json!({"model_type": "phi3", "sliding_window": 2047, "partial_rotary_factor": 0.75})).unwrap();
    assert_eq!((phi.window(31), phi.attention.rope_dim()), (Some(2047), 72));
}

/// Of two lists, as long as half the rotary width.
#[test]
fn longrope_is_resolved() {
    let read = |json: Value| ModelConfig::from_hf_json(&json.to_string());
    let with = |name: &str, short: Vec<f64>| {
        let scaling = json!({"type": name, "short_factor": short, "long_factor": vec![4.0; 48]});
        let sizes = json!({"model_type": "phi3", "max_position_embeddings": 131072, "rope_scaling": scaling});
        read(sizes)
    };
    let (phi, notes) = with("longrope", vec![1.25; 48]).unwrap();
    let RopeScaling::Long { short, long, original_max_positions, table_scale } = &phi.rope.scaling else {
        panic!("{:?}", phi.rope)
    };
    assert_eq!((&short[..], &long[..], *original_max_positions), (&[1.25; 48][..], &[4.0; 48][..], 4096));
    assert_eq!((*table_scale as f32, notes), (1.190_238_1, vec![]), "√(1 + ln 32 / ln 4096)");
    assert_eq!(with("su", vec![1.25; 48]).unwrap().0, phi);
    let back = ModelConfig::from_hf_json(&phi.to_hf_json(wels_model::config::Dtype::F32)).unwrap().0;
    assert_eq!(back, phi);
    let error = with("longrope", vec![1.0; 40]).unwrap_err().to_string();
    assert!(error.starts_with("`rope_scaling.short_factor` is a list of 40"), "{error}");
    let error = with("longrope", vec![0.0; 48]).unwrap_err().to_string();
    assert!(error.contains("it is a list of numbers from 0.000001"), "{error}");
    let half = json!({"type": "longrope", "short_factor": [1.0]});
    let error = read(json!({"model_type": "phi3", "rope_scaling": half})).unwrap_err().to_string();
    assert!(error.contains("`rope_scaling.long_factor` is missing"), "{error}");
}

#[test]
fn gemma_is_resolved() {
    let gemma = presets::preset("gemma-2-27b").unwrap();
    assert_eq!((gemma.attention_cap, gemma.logit_cap, gemma.gating), (Some(50.0), Some(30.0), Gating::GeluTanh));
    assert_eq!((gemma.softmax_scale, gemma.tied_head), (1.0 / 12.0, true), "1/√144");
    assert_eq!((gemma.window(0), gemma.window(1), gemma.window(44)), (Some(4096), None, Some(4096)));
    // The published 9B has the width under two names.
    let twice = |again: u64| edited("gemma-2-27b", &[("sliding_window_size", json!(again))]);
    assert_eq!(read(&twice(4096)), gemma);
    assert!(error(&twice(2048)).starts_with("`sliding_window_size` is 2048"));
    let uncapped = edited("gemma-2-27b", &[("attn_logit_softcapping", Value::Null)]);
    assert_eq!((read(&uncapped).attention_cap, read(&uncapped).logit_cap), (None, Some(30.0)));
    assert_eq!(read(&without("gemma-2-27b", "attn_logit_softcapping")), gemma, "50 is the default");

    let (gemma, notes) = ModelConfig::from_hf_json(presets::json("gemma-3-4b-text").unwrap()).unwrap();
    assert_eq!(
        (notes, gemma.rope.base, gemma.rope.scaling.clone()),
        (vec![], 1e6, RopeScaling::Linear { factor: 8.0 })
    );
    let local = gemma.rope.local.clone().unwrap();
    assert_eq!((local.base, &local.layers[..6]), (1e4, &[true, true, true, true, true, false][..]));
    assert_eq!((gemma.window(4), gemma.window(5), gemma.attention_cap), (Some(1024), None, None));
    let mut json: Value = serde_json::from_str(&without("gemma-3-4b-text", "rope_local_base_freq")).unwrap();
    for key in ["rope_theta", "rope_scaling", "sliding_window_pattern"] {
        json.as_object_mut().unwrap().remove(key);
    }
    json["rope_parameters"] = json!({"full_attention": {"rope_type": "linear", "factor": 8.0}});
    assert_eq!(read(&json.to_string()), gemma, "as transformers 5 writes it, with the defaults of both bases");
    json["rope_parameters"]["sliding_attention"] = json!({"rope_type": "linear", "factor": 2.0});
    let said = error(&json.to_string());
    assert!(said.contains("sliding_attention") && said.contains("layers with a window rotate unscaled"), "{said}");

    // Layers with a window that holds the whole context still have their own base.
    let wide = read(&edited("gemma-3-1b", &[("sliding_window", json!(32768))]));
    assert_eq!((wide.window.clone(), wide.rope.local.as_ref().map(|local| local.base)), (None, Some(1e4)));
    assert_eq!(read(&wide.to_hf_json(wels_model::config::Dtype::F32)), wide);
    for (key, value, part) in [
        ("use_bidirectional_attention", json!(true), "an architecture that is not implemented"),
        ("hidden_activation", json!("silu"), "GELU in its tanh form"),
        ("query_pre_attn_scalar", json!(0), "expected 1 to"),
        ("final_logit_softcapping", json!(-1.0), "expected 0.001 to"),
    ] {
        let said = error(&edited("gemma-3-1b", &[(key, value)]));
        assert!(said.contains(key) && said.contains(part), "{said}");
    }
    let said = error(&edited("qwen3-0.6b", &[("final_logit_softcapping", json!(30.0))]));
    assert!(said.starts_with("`final_logit_softcapping` is 30.0"), "{said}");
}

/// Frequencies change beyond `max_position_embeddings` alone, where no text reaches.
#[test]
fn dynamic_scaling_changes_nothing_within_the_context() {
    let dynamic = json!({"type": "dynamic", "factor": 4.0});
    let (config, notes) = ModelConfig::from_hf_json(&edited("mistral-7b-v0.1", &[("rope_scaling", dynamic)])).unwrap();
    assert_eq!(config, presets::preset("mistral-7b-v0.1").unwrap());
    assert!(notes[0].0.starts_with("config.json: `rope_scaling.factor` = 4 has no effect"), "{notes:?}");
    let missing = error(&edited("mistral-7b-v0.1", &[("rope_scaling", json!({"type": "dynamic"}))]));
    assert!(missing.contains("`rope_scaling.factor` is missing"), "{missing}");
}

#[test]
fn the_factor_of_r1_0528_undoes_yarns_own() {
    let (config, notes) = ModelConfig::from_hf_json(presets::json("r1-0528-qwen3-8b").unwrap()).unwrap();
    let RopeScaling::Yarn { factor, table_scale, .. } = config.rope.scaling else { panic!("{:?}", config.rope) };
    assert_eq!((factor, table_scale as f32), (4.0, 1.0));
    let said = "config.json: `rope_scaling.attn_factor` = 0.8782488562869419 multiplies cos and sin";
    assert!(notes.len() == 1 && notes[0].0.starts_with(said), "{notes:?}");
    let both = json!({"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.5, "attention_factor": 1.0});
    assert!(
        error(&edited("r1-0528-qwen3-8b", &[("rope_scaling", both)])).starts_with("`rope_scaling.attn_factor` is 0.5")
    );
}

#[test]
fn numbers_of_the_newer_families_are_found_under_either_name() {
    let without_count = |preset, key| {
        let mut json: Value = serde_json::from_str(&without(preset, key)).unwrap();
        json["num_local_experts"] = json!(128);
        json.to_string()
    };
    assert_eq!(read(&without_count("qwen3-30b-a3b", "num_experts")), presets::preset("qwen3-30b-a3b").unwrap());
    assert!(error(&edited("qwen3-30b-a3b", &[("num_local_experts", json!(64))])).contains("two names of one number"));
    let glm = presets::preset("glm-4.5-air").unwrap();
    let mut json: Value = serde_json::from_str(&without("glm-4.5-air", "partial_rotary_factor")).unwrap();
    assert_eq!(read(&json.to_string()), glm, "a half is the default");
    json["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 1000000, "partial_rotary_factor": 0.25});
    assert_eq!(read(&json.to_string()).attention.rope_dim(), 32);
    json["partial_rotary_factor"] = json!(0.5);
    let said = "`rope_parameters.partial_rotary_factor` is 0.25, which contradicts `partial_rotary_factor` = 0.5";
    assert!(error(&json.to_string()).starts_with(said));
}

#[test]
fn windows_are_those_of_transformers() {
    let slides = |config: &ModelConfig| (0..config.layers).map(|layer| config.window(layer)).collect::<Vec<_>>();
    let mistral = presets::preset("mistral-7b-v0.1").unwrap();
    assert_eq!(slides(&mistral), [Some(4096); 32]);
    assert_eq!(read(&without("mistral-7b-v0.1", "sliding_window")), mistral, "it is the default");
    assert_eq!(read(&edited("mistral-7b-v0.1", &[("sliding_window", Value::Null)])).window, None);
    let on = ("use_sliding_window", json!(true));
    let width = ("sliding_window", json!(1024));
    for preset in ["r1-distill-qwen-7b", "qwen3-8b"] {
        let from_20 = read(&edited(preset, &[on.clone(), width.clone(), ("max_window_layers", json!(20))]));
        let expected: Vec<_> = (0..from_20.layers).map(|layer| (layer >= 20).then_some(1024)).collect();
        assert_eq!(slides(&from_20), expected, "{preset}");
        let word = |layer: usize| if layer >= 20 { "sliding_attention" } else { "full_attention" };
        let types: Vec<_> = (0..from_20.layers).map(word).collect();
        let named = ("layer_types", json!(types));
        assert_eq!(read(&edited(preset, &[on.clone(), width.clone(), named.clone()])), from_20, "{preset}");
        let few = ("layer_types", json!(["sliding_attention"]));
        assert!(error(&edited(preset, &[on.clone(), width.clone(), few])).contains("each layer has one type"));
        assert!(error(&edited(preset, &[width.clone(), named])).starts_with("`layer_types` is "), "{preset}: off");
        let none = read(&edited(preset, &[on.clone(), width.clone(), ("max_window_layers", json!(99))]));
        assert_eq!(none.window, None, "{preset}");
    }
    let moe = read(&edited("qwen3-30b-a3b", &[on, width]));
    assert_eq!(slides(&moe), [Some(1024); 48]);
}

#[test]
fn unsupported_arithmetic_of_qwen3_and_glm_is_refused() {
    refused(&[
        (
            "qwen3-30b-a3b",
            &[("mlp_only_layers", json!([0]))],
            "`mlp_only_layers` is [0], which is not supported: every layer has experts",
        ),
        (
            "qwen3-30b-a3b",
            &[("decoder_sparse_step", json!(2))],
            "`decoder_sparse_step` is 2, which is not supported: every layer after the dense ones has experts",
        ),
        (
            "qwen3-30b-a3b",
            &[("n_shared_experts", json!(1))],
            "`n_shared_experts` is 1, which is not supported: this family has routed experts in every layer, and no others",
        ),
        (
            "qwen3-30b-a3b",
            &[("routed_scaling_factor", json!(2.5))],
            "`routed_scaling_factor` is 2.5, which is not supported: qwen3_moe has no such key",
        ),
        (
            "mistral-7b-v0.1",
            &[("attention_bias", json!(true))],
            "`attention_bias` is true, which is not supported: this family has no biases",
        ),
        (
            "mistral-7b-v0.1",
            &[("layer_types", json!(["sliding_attention"]))],
            "`layer_types` is [\"sliding_attention\"], which is not supported: every layer has to have `full_attention`",
        ),
        (
            "glm-4.5-air",
            &[("scoring_func", json!("softmax"))],
            "`scoring_func` is \"softmax\", which is not supported: glm4_moe scores with `sigmoid`",
        ),
        (
            "glm-4.5-air",
            &[("partial_rotary_factor", json!(0.29))],
            "`partial_rotary_factor` is 37, which is not supported: rotary elements come in pairs",
        ),
        (
            "glm-4.5-air",
            &[("partial_rotary_factor", json!(0.0))],
            "`partial_rotary_factor` is 0.0, which is not supported: a part of each head rotates",
        ),
    ]);
}
