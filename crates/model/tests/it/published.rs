//! What published directories have that ours have not: ends of answers in a file of their own, scales of half
//! precision, tables that may be wrong.

use std::fs;

use safetensors::tensor::Dtype as FileDtype;
use wels_model::config::Dtype;
use wels_model::names::{self, ParamKind};
use wels_model::weights;

use crate::weights::{ALL_BYTES, changed_dir, load, made_up, safetensors_of, save, tiny_configs, to_bytes};

/// As in the published Qwen3-FP8.
#[test]
fn fp8_scales_may_be_of_half_precision() {
    let config = &tiny_configs()[4];
    let loaded = [FileDtype::BF16, FileDtype::F32].map(|dtype| {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), config, Dtype::Fp8, ALL_BYTES, &made_up(config));
        let path = dir.path().join("model.safetensors");
        let mut tensors = safetensors_of(&path);
        for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.ends_with(".weight_scale_inv")) {
            // The upper half of an f32 is a bf16.
            let words = tensor.2.as_chunks::<4>().0.iter();
            tensor.2 = match dtype {
                FileDtype::BF16 => words.flat_map(|word| [word[2], word[3]]).collect(),
                _ => words.flat_map(|word| [0, 0, word[2], word[3]]).collect(),
            };
            tensor.0 = dtype;
        }
        fs::write(&path, to_bytes(&tensors)).unwrap();
        load(dir.path(), config).unwrap().0
    });
    assert_eq!(loaded[0], loaded[1]);
}

#[test]
fn a_table_of_experts_names_different_ones_that_there_are() {
    let config = crate::shapes::deepseek_v4();
    let mut params = made_up(&config);
    for (spec, values) in names::param_specs(&config).iter().zip(&mut params) {
        if spec.kind == ParamKind::Table {
            values.iter_mut().enumerate().for_each(|(i, value)| *value = ((i / spec.cols + i % spec.cols) % 8) as f32);
        }
    }
    let with_row = |row: [i64; 2]| {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &config, Dtype::F32, ALL_BYTES, &params);
        let path = dir.path().join("model.safetensors");
        let mut tensors = safetensors_of(&path);
        let table = tensors.iter_mut().find(|(name, _)| name.ends_with("tid2eid")).unwrap().1;
        table.2[16 * 3..16 * 4].copy_from_slice(&row.map(i64::to_le_bytes).concat());
        fs::write(&path, to_bytes(&tensors)).unwrap();
        load(dir.path(), &config).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(with_row([7, 0]), Ok(()));
    for row in [[8, 0], [-1, 0], [3, 3]] {
        let error = with_row(row).unwrap_err();
        assert!(error.contains("tid2eid row 3 [") && error.contains("different experts below 8"), "{error}");
    }
}

/// `<|end|>` of Phi-3 stands there alone.
#[test]
fn ends_of_answers_are_those_of_the_generation_config_too() {
    let dir = changed_dir(&tiny_configs()[4], |json, _| json["eos_token_id"] = 2.into());
    let ends = |text: &str| {
        fs::write(dir.path().join("generation_config.json"), text).unwrap();
        weights::open_dir(dir.path()).map(|(config, ..)| config.eos_ids).map_err(|error| error.to_string())
    };
    for (text, expected) in [
        (r#"{"eos_token_id": [7, 2, 3]}"#, vec![2, 7, 3]),
        (r#"{"eos_token_id": 5}"#, vec![2, 5]),
        (r#"{"eos_token_id": [2, 99]}"#, vec![2]), // beyond the vocabulary
        (r#"{"temperature": 0.6}"#, vec![2]),
    ] {
        assert_eq!(ends(text), Ok(expected), "{text}");
    }
    assert!(ends(r#"{"eos_token_id": "end"}"#).unwrap_err().contains("generation_config.json: eos_token_id"));
    assert!(ends("{").is_err());
}
