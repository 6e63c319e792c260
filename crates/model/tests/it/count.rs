//! Published counts, as exact integers. Nothing here allocates a model.

use wels_model::config::{Dtype, ModelConfig, Window};
use wels_model::count::{self, Bytes, CacheLayout, Checkpoint, Context, Flops, Params};
use wels_model::{names, presets};

fn preset(name: &str) -> ModelConfig {
    presets::preset(name).unwrap()
}

#[test]
fn parameters_of_every_preset() {
    // Name, total, activated with head, activated without head.
    let expected = [
        ("deepseek-v3", 671_026_419_200, 36_625_618_432, 35_698_939_392),
        ("deepseek-r1", 671_026_419_200, 36_625_618_432, 35_698_939_392),
        ("deepseek-v3.2", 671_877_944_064, 37_477_143_296, 36_550_464_256),
        ("deepseek-v2", 235_741_434_880, 20_851_512_320, 20_327_224_320),
        ("deepseek-v2-lite", 15_706_484_224, 2_451_435_008, 2_241_719_808),
        ("r1-distill-qwen-1.5b", 1_777_088_000, 1_543_714_304, 1_310_340_608),
        ("r1-distill-qwen-7b", 7_615_616_512, 7_070_619_136, 6_525_621_760),
        ("r1-distill-qwen-14b", 14_770_033_664, 13_991_465_984, 13_212_898_304),
        ("r1-distill-qwen-32b", 32_763_876_352, 31_985_308_672, 31_206_740_992),
        ("r1-distill-llama-8b", 8_030_261_248, 7_504_924_672, 6_979_588_096),
        ("r1-distill-llama-70b", 70_553_706_496, 69_503_033_344, 68_452_360_192),
        ("r1-0528-qwen3-8b", 8_190_735_360, 7_568_405_504, 6_946_075_648),
        ("kimi-k2", 1_026_408_232_448, 31_687_095_808, 30_512_690_688),
        ("qwen3-0.6b", 596_049_920, 596_049_920, 440_467_456),
        ("qwen3-1.7b", 1_720_574_976, 1_720_574_976, 1_409_410_048),
        ("qwen3-4b", 4_022_468_096, 4_022_468_096, 3_633_511_936),
        ("qwen3-8b", 8_190_735_360, 7_568_405_504, 6_946_075_648),
        ("qwen3-14b", 14_768_307_200, 13_990_394_880, 13_212_482_560),
        ("qwen3-32b", 32_762_123_264, 31_984_210_944, 31_206_298_624),
        ("qwen3-30b-a3b", 30_532_122_624, 3_041_867_776, 2_730_702_848),
        ("qwen3-235b-a22b", 235_093_634_560, 21_568_433_664, 20_946_103_808),
        ("glm-4.5-air", 106_852_251_264, 12_803_372_672, 12_182_615_680),
        ("glm-4.5", 352_797_829_024, 32_856_319_904, 32_080_373_664),
        ("gpt-oss-20b", 20_914_757_184, 3_608_307_264, 3_029_173_824),
        ("gpt-oss-120b", 116_829_156_672, 5_132_849_472, 4_553_716_032),
        ("mistral-7b-v0.1", 7_241_732_096, 7_110_660_096, 6_979_588_096),
        ("phi-3-mini-4k", 3_821_079_552, 3_722_578_944, 3_624_078_336),
        ("phi-4", 14_659_507_200, 14_145_704_960, 13_631_902_720),
        ("glm-4-9b-0414", 9_400_279_040, 8_779_522_048, 8_158_765_056),
        ("glm-4-32b-0414", 32_566_081_536, 31_634_946_048, 30_703_810_560),
        ("gemma-2-2b", 2_614_341_888, 2_614_341_888, 2_024_517_888),
        ("gemma-2-9b", 9_241_705_984, 9_241_705_984, 8_324_201_984),
        ("gemma-2-27b", 27_227_128_320, 27_227_128_320, 26_047_480_320),
        ("gemma-3-270m", 268_098_176, 268_098_176, 100_326_016),
        ("gemma-3-1b", 999_885_952, 999_885_952, 697_896_064),
        ("gemma-3-4b-text", 3_880_263_168, 3_880_263_168, 3_209_010_688),
        ("gemma-3-12b-text", 11_766_034_176, 11_766_034_176, 10_759_155_456),
        ("gemma-3-27b-text", 27_009_346_304, 27_009_346_304, 25_599_716_096),
        ("smollm2-135m", 134_515_008, 134_515_008, 106_203_456),
    ];
    assert_eq!(presets::names().collect::<Vec<_>>(), expected.map(|(name, ..)| name));
    for (name, total, activated, body) in expected {
        let counts = count::params(&preset(name));
        assert_eq!(counts.total, Params(total), "{name} total");
        assert_eq!(counts.activated, Params(activated), "{name} activated");
        assert_eq!(counts.activated_body, Params(body), "{name} without embedding and head");
    }
}

#[test]
fn other_conventions_of_the_published_tables() {
    for (name, with_embedding) in
        [("deepseek-v3", 37_552_297_472), ("deepseek-v2", 21_375_800_320), ("deepseek-v2-lite", 2_661_150_208)]
    {
        assert_eq!(count::params(&preset(name)).activated_with_embedding, Params(with_embedding), "{name}");
    }
    let v3 = count::params(&preset("deepseek-v3"));
    assert_eq!(v3.embedding, Params(926_679_040));
    assert_eq!(v3.routed_experts, Params(653_908_770_816));
    assert_eq!(count::params(&preset("deepseek-v2")).embedding, Params(524_288_000));
    let tied = ModelConfig { tied_head: true, ..preset("r1-distill-qwen-1.5b") };
    assert_eq!(count::params(&tied).total, Params(1_543_714_304));
    let smol = count::params(&preset("smollm2-135m"));
    assert_eq!(smol.activated_with_embedding, smol.total, "a tied table counts once");
}

#[test]
fn mtp_of_deepseek_v3() {
    let counts = count::params(&preset("deepseek-v3"));
    let mtp = counts.mtp.unwrap();
    assert_eq!(mtp.unique, Params(11_610_068_224));
    assert_eq!(mtp.with_embedding_and_head, Params(13_463_426_304));
    assert_eq!(mtp.activated_body, Params(688_100_608));
    assert_eq!(mtp.activated, Params(1_614_779_648));
    assert_eq!(mtp.activated_with_embedding, Params(2_541_458_688));
    assert_eq!(mtp.projection, Params(102_760_448));
    assert_eq!(counts.total + mtp.unique, Params(682_636_487_424));
    assert_eq!(counts.total + mtp.with_embedding_and_head, Params(684_489_845_504));
    // The figures in DeepSeek's README leave the projection out.
    assert_eq!(mtp.unique.0 - mtp.projection.0, 11_507_307_776);
    assert_eq!(mtp.activated.0 - mtp.projection.0, 1_512_019_200);
    assert_eq!(count::params(&preset("deepseek-v2")).mtp, None);
}

/// As the published files are counted on their pages: with the MTP layer, and in it an embedding and a head.
#[test]
fn files_of_glm_4_5() {
    for (name, unique, published) in
        [("glm-4.5-air", 2_375_059_584, 110_468_824_832), ("glm-4.5", 3_988_069_792, 358_337_791_296)]
    {
        let counts = count::params(&preset(name));
        let mtp = counts.mtp.unwrap();
        assert_eq!(mtp.unique, Params(unique), "{name}");
        assert_eq!(counts.total + mtp.with_embedding_and_head, Params(published), "{name}");
    }
}

/// Table 1 of the model card (arXiv 2508.10925): billions in all, and active without the embedding.
#[test]
fn parameters_of_gpt_oss() {
    for (name, total, active) in [("gpt-oss-20b", "20.91", "3.61"), ("gpt-oss-120b", "116.83", "5.13")] {
        let counts = count::params(&preset(name));
        let billions = |params: Params| format!("{:.2}", params.0 as f64 / 1e9);
        assert_eq!(
            (billions(counts.total), billions(counts.activated)),
            (total.to_owned(), active.to_owned()),
            "{name}"
        );
    }
}

#[test]
fn parts_of_a_layer() {
    // MLA, dense feed-forward, one routed expert, experts with shared ones and gate (without selection bias).
    let expected = [
        ("deepseek-v2-lite", 13_763_072, 67_239_936, 8_650_752, 571_080_704),
        ("deepseek-v2", 149_227_520, 188_743_680, 23_592_960, 3_822_878_720),
        ("deepseek-v3", 187_107_328, 396_361_728, 44_040_192, 11_320_164_352),
    ];
    for (name, attention, dense, expert, experts) in expected {
        let config = preset(name);
        let tensors = names::hf_tensors(&config);
        let sum = |part: &str| -> usize {
            let part = |tensor: &&names::HfTensor| tensor.name.starts_with(part) && !tensor.name.ends_with("_bias");
            tensors.iter().filter(part).map(|tensor| tensor.shape.iter().product::<usize>()).sum()
        };
        assert_eq!(sum("model.layers.0.self_attn."), attention, "{name} attention");
        assert_eq!(sum("model.layers.0.mlp."), dense, "{name} dense");
        assert_eq!(sum("model.layers.5.mlp.experts.7."), expert, "{name} expert");
        assert_eq!(sum("model.layers.5.mlp."), experts, "{name} experts");
    }
}

#[test]
fn checkpoint_of_deepseek_v3_as_published() {
    let counts = count::checkpoint(&preset("deepseek-v3"), Dtype::Fp8);
    let expected = Checkpoint {
        tensors: 91_991,
        fp8_elements: 680_571_043_840,
        half_elements: 3_918_786_560,
        f32_elements: 15_104,
        scales: 41_540_496,
        i64_elements: 0,
    };
    assert_eq!(counts, expected);
    assert_eq!(counts.bytes(), Bytes(688_574_839_360));
    let bf16 = count::checkpoint(&preset("deepseek-v3"), Dtype::Bf16);
    assert_eq!(bf16.bytes(), Bytes(2 * 684_489_845_504 + 2 * 15_104));
}

/// An indexer a layer, the MTP layer's too: its weights of heads and its norm are bf16, as published.
#[test]
fn checkpoint_of_deepseek_v3_2_as_published() {
    let config = preset("deepseek-v3.2");
    let of_layer = names::param_specs(&config).into_iter().filter(|spec| spec.name.starts_with("model.layers.60."));
    let shapes: Vec<_> = of_layer
        .filter(|spec| spec.is_of_indexer())
        .map(|spec| (spec.name.rsplit_once("indexer.").unwrap().1.to_owned(), spec.rows, spec.cols))
        .collect();
    let shape = |name: &str, rows, cols| (name.to_owned(), rows, cols);
    let expected = [
        shape("wq_b.weight", 8192, 1536),
        shape("wk.weight", 128, 7168),
        shape("k_norm.weight", 1, 128),
        shape("k_norm.bias", 1, 128),
        shape("weights_proj.weight", 64, 7168),
    ];
    assert_eq!(shapes, expected);
    assert_eq!(count::params(&config).mtp.unwrap().unique, Params(11_624_027_648));
    let expected = Checkpoint {
        tensors: 92_425,
        fp8_elements: 681_408_069_632,
        half_elements: 3_947_245_056,
        f32_elements: 15_104,
        scales: 41_591_584,
        i64_elements: 0,
    };
    assert_eq!(count::checkpoint(&config, Dtype::Fp8), expected);
    // Beyond 2048 keys attention costs no more; the indexer does, a 17th as much a key.
    let core = |keys| count::forward_flops(&config, Context::DecodeAbsorbed { keys }).attention_core.0;
    assert_eq!(core(4096) - core(2048), 61 * 2 * 2048 * 64 * 129);
    assert_eq!(core(2048), 2048 * (16_990_208 + 61 * 2 * 64 * 129));
}

#[test]
fn operations_of_deepseek_v3() {
    let config = preset("deepseek-v3");
    let causal = count::forward_flops(&config, Context::Causal { tokens: 4096 });
    let billions = |flops: Flops| (flops.0 as f64 / 1e6).round() / 1e3;
    assert_eq!(billions(causal.attention_linear), 22.827);
    assert_eq!(billions(causal.attention_core), 10.237);
    assert_eq!(billions(causal.dense_ffn), 2.378);
    assert_eq!(billions(causal.routed_experts), 40.869);
    assert_eq!(billions(causal.shared_experts), 5.109);
    assert_eq!(billions(causal.router), 0.213);
    assert_eq!(billions(causal.head), 1.853);
    assert_eq!(billions(causal.total()), 83.486);
    assert_eq!(causal.total().0 - causal.attention_core.0, 2 * 36_624_596_992);
    assert_eq!(billions(causal.training()), 260.649);
    assert_eq!(billions(causal.mtp * 3), 10.192);
    let full = count::forward_flops(&config, Context::NonCausal { tokens: 4096 });
    assert_eq!(billions(full.attention_core), 20.468);
    assert_eq!(billions(full.total()), 93.717);
    let core = |context| count::forward_flops(&config, context).attention_core;
    assert_eq!(core(Context::DecodeAbsorbed { keys: 1 }), Flops(16_990_208));
    assert_eq!(core(Context::DecodeExpanded { keys: 1 }), Flops(4_997_120));
    let decode = count::forward_flops(&config, Context::DecodeAbsorbed { keys: 4989 });
    assert_eq!((decode.total().0 as f64 / 1e8).round() / 10.0, 158.0);
}

#[test]
fn training_operations_of_other_models() {
    for (name, billions) in [("deepseek-v2", 155.311), ("deepseek-v2-lite", 16.407)] {
        let flops = count::forward_flops(&preset(name), Context::Causal { tokens: 4096 });
        assert_eq!((flops.training().0 as f64 / 1e6).round() / 1e3, billions, "{name}");
    }
    // With one key and no attention to speak of, two operations an activated weight.
    let smol = preset("smollm2-135m");
    let flops = count::forward_flops(&smol, Context::DecodeExpanded { keys: 1 });
    let norms = (2 * smol.layers + 1) * smol.hidden_size;
    assert_eq!(flops.total().0 - flops.attention_core.0, 2 * (134_515_008 - norms as u64));
}

/// Of a window so many keys are counted: with 8 tokens and 4 keys 1 + 2 + 3 + 4·5 in all.
#[test]
fn a_window_bounds_the_keys_that_are_counted() {
    let whole = ModelConfig { window: None, ..preset("mistral-7b-v0.1") };
    let layers = vec![true; 32];
    let narrow = ModelConfig { window: Some(Window { width: 4, layers }), ..whole.clone() };
    let core = |config: &ModelConfig, context| count::forward_flops(config, context).attention_core.0;
    let of_a_key = core(&whole, Context::DecodeExpanded { keys: 1 });
    assert_eq!(core(&whole, Context::Causal { tokens: 8 }) * 8, of_a_key * 36);
    assert_eq!(core(&narrow, Context::Causal { tokens: 8 }) * 8, of_a_key / 2 * (26 * 2 / 8) * 8);
    assert_eq!(core(&narrow, Context::Causal { tokens: 4 }), core(&whole, Context::Causal { tokens: 4 }));
    assert_eq!(core(&narrow, Context::DecodeExpanded { keys: 100 }), of_a_key * 4);
}

#[test]
fn cache_of_one_token() {
    let expected = [
        ("deepseek-v3", 70_272),
        ("deepseek-v2", 2 * 34_560),
        ("deepseek-v2-lite", 2 * 15_552),
        ("r1-distill-qwen-1.5b", 28_672),
        ("r1-distill-qwen-7b", 57_344),
        ("r1-distill-qwen-14b", 196_608),
        ("r1-distill-qwen-32b", 262_144),
        ("r1-distill-llama-8b", 131_072),
        ("r1-distill-llama-70b", 327_680),
        ("r1-0528-qwen3-8b", 147_456),
        ("kimi-k2", 70_272),
        ("glm-4.5-air", 188_416),
    ];
    for (name, bf16_bytes) in expected {
        assert_eq!(2 * count::cache_elements_per_token(&preset(name), CacheLayout::Latent), bf16_bytes, "{name}");
    }
    assert_eq!(count::cache_elements_per_token(&preset("deepseek-v3"), CacheLayout::Expanded), 2_498_560);
}

#[test]
fn memory_of_training() {
    let v3 = preset("deepseek-v3");
    let bytes = count::training_bytes(&v3);
    let biases = 59 * 256;
    assert_eq!(bytes.weights, Bytes(4 * 682_636_487_424));
    assert_eq!(bytes.gradients, Bytes(4 * (682_636_487_424 - biases)));
    assert_eq!(bytes.optimizer, Bytes(8 * (682_636_487_424 - biases)));
}

#[test]
fn tensors_cover_every_parameter_once() {
    for name in presets::names() {
        let config = preset(name);
        let specs = names::param_specs(&config);
        let mut next_row = vec![0; specs.len()];
        let (mut seen, mut numbers) = (std::collections::HashSet::new(), std::collections::HashMap::new());
        for tensor in names::hf_tensors(&config) {
            assert!(seen.insert((tensor.name.clone(), tensor.place.start)), "{name}: {} twice", tensor.name);
            if tensor.role == names::Role::Own {
                assert_eq!(tensor.first_row, next_row[tensor.param], "{name}: {}", tensor.name);
                next_row[tensor.param] += tensor.rows;
                assert_eq!(tensor.cols, specs[tensor.param].cols);
                numbers.entry(tensor.name).or_insert((tensor.shape.iter().product(), 0)).1 += tensor.rows * tensor.cols;
            }
        }
        assert!(numbers.values().all(|(of_file, of_rows): &(usize, usize)| of_file == of_rows), "{name}");
        assert_eq!(next_row, specs.iter().map(|spec| spec.rows).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn quantities_print_with_commas() {
    assert_eq!(Params(671_026_419_200).to_string(), "671,026,419,200");
    assert_eq!(Flops(999).to_string(), "999 FLOP");
    assert_eq!(Bytes(1_000).to_string(), "1,000 B");
}
