//! What a Janus model learns: gradients against PyTorch, the same bits whatever computes them, and log-probabilities of
//! what was drawn.

use std::sync::Arc;

use crate::janus::{Oracle, difference, weight};
use wels_cpu::naive::Naive;
use wels_device::{Coefficient, Device};
use wels_kernels::par;
use wels_model::generate::Sampling;
use wels_model::janus::batch::{Input, JanusBatch, Target};
use wels_model::janus::config::JanusConfig;
use wels_model::janus::names;
use wels_model::janus::network::{self, CODE_HEAD, JanusLosses, JanusObjective, Network, Sight, Weighted};
use wels_model::janus::{DrawPrompt, draw_all, patches};
use wels_model::names::{ParamKind, ParamSpec};
use wels_model::params::Params;
use wels_model::tape::Execution;

const TOLERANCE: f32 = 1e-4;
const CONTEXT: usize = 96;

/// The name in the file of a parameter of the language model or beside it.
fn file_name(spec: &ParamSpec) -> String {
    let beside = ["model.aligner.", "model.generation_", "model.vision_model."]
        .iter()
        .any(|prefix| spec.name.starts_with(prefix));
    if beside { spec.name.clone() } else { names::file_name(&spec.name) }
}

/// The weights of `scripts/oracle/make_janus.py`.
pub fn params(device: &Arc<dyn Device>, config: &JanusConfig, sight: Sight) -> Params {
    let mut params = network::init(device, config, sight, 0);
    for (param, spec) in params.specs().to_vec().into_iter().enumerate() {
        let values = match spec.kind {
            _ if spec.name == CODE_HEAD => {
                let width = spec.cols - 1;
                let w = weight(&format!("{CODE_HEAD}.weight"), &[spec.rows, width]);
                let b = weight(&format!("{CODE_HEAD}.bias"), &[spec.rows]);
                w.chunks(width).zip(b).flat_map(|(row, b)| row.iter().copied().chain([b])).collect()
            }
            ParamKind::Norm | ParamKind::Bias => weight(&file_name(&spec), &[spec.cols]),
            _ => weight(&file_name(&spec), &[spec.rows, spec.cols]),
        };
        params.set_values(param, &values);
    }
    params
}

/// The three sequences of `learnt` in `make_janus.py`: text, a picture drawn after text, text about a picture seen.
pub fn batch(oracle: &Oracle, sight: Sight) -> JanusBatch {
    let (text, codes) = (oracle.ids("text"), oracle.ids("codes"));
    let seen = match sight {
        Sight::States => oracle.tensor("vision"),
        Sight::Patches => patches(&oracle.config.vision, &oracle.seen()),
    };
    let token = |ids: &[u32]| ids.iter().map(|id| Input::Token(*id)).collect::<Vec<_>>();
    let mut batch = JanusBatch { starts: vec![0], seen, ..JanusBatch::default() };
    let mut push = |inputs: Vec<Input>, learnt: Vec<Target>| {
        batch.targets.resize(batch.inputs.len() + inputs.len() - learnt.len(), Target::Nothing);
        batch.targets.extend(learnt);
        batch.inputs.extend(inputs);
        batch.starts.push(batch.inputs.len() as u32);
    };
    push(token(&text[..8]), text[1..9].iter().map(|id| Target::Token(*id)).collect());
    let drawn = codes[..codes.len() - 1].iter().map(|code| Input::Code(*code)).collect();
    push([token(&text[..5]), drawn].concat(), codes.iter().map(|code| Target::Code(*code)).collect());
    let seen = vec![Input::Seen; oracle.config.vision.tokens()];
    let learnt = text[3..9].iter().map(|id| Target::Token(*id)).collect();
    push([token(&text[..2]), seen, token(&text[2..8])].concat(), learnt);
    batch
}

/// What one step computes, in micro-batches of up to so many rows.
struct Step {
    specs: Vec<ParamSpec>,
    gradients: Vec<Vec<f32>>,
    losses: JanusLosses,
}

fn step(oracle: &Oracle, sight: Sight, device: Arc<dyn Device>, rows: usize) -> Step {
    let network = Network::new(oracle.config.clone(), sight, CONTEXT);
    let (params, execution) = (params(&device, &oracle.config, sight), Execution::new(device.clone()));
    let (batch, mut grads, mut losses) = (batch(oracle, sight), network.grads(&device), JanusLosses::default());
    let all = batch.target_counts();
    let coefficient = Coefficient::Uniform(1.0 / (all.text + all.codes) as f32);
    let objective = JanusObjective { text: coefficient, codes: coefficient, balance_coefficient: 0.0 };
    grads.begin();
    for sequences in batch.micro_batches(rows) {
        let micro = batch.cut(sequences);
        let logprobs = network.accumulate(&params, &mut grads, &execution, &micro, &objective, &mut losses);
        assert_eq!(logprobs, network.logprobs(&params, &execution, &micro), "a pass that does not record");
    }
    grads.finish();
    let gradients = grads.values().iter().map(|values| values.to_host().into_owned()).collect();
    Step { specs: params.specs().to_vec(), gradients, losses }
}

#[test]
fn gradients_are_those_of_pytorch() {
    let cases = Oracle::all().map(|oracle| (oracle, Sight::Patches)).into_iter();
    for (oracle, sight) in cases.chain([(Oracle::read("plain"), Sight::States)]) {
        let Step { specs, gradients, losses } = step(&oracle, sight, wels_cpu::device(), 1000);
        let found = (losses.text.main.sum + losses.codes.sum) / (losses.text.main.tokens + losses.codes.tokens) as f64;
        let expected = oracle.learnt("loss")[0];
        assert!((found as f32 - expected).abs() <= 1e-6 * expected, "loss {found}, expected {expected}");
        let mut compared = vec!["loss".to_owned()];
        let mut compare = |name: String, found: &[f32]| {
            // A bias of keys moves all of a row's scores alike, which softmax does not see: its gradient is 0.
            if name.starts_with("model.vision_model.") && name.ends_with("k_proj.bias") {
                assert!(found.iter().all(|x| x.abs() <= 1e-6), "{name}: {found:?}");
                compared.push(name);
                return;
            }
            let error = difference(found, &oracle.learnt(&name));
            eprintln!("{name}: {error:.1e}");
            assert!(error <= TOLERANCE, "{name}: {error:e} of the largest");
            compared.push(name);
        };
        for (spec, found) in specs.iter().zip(&gradients) {
            if spec.name == CODE_HEAD {
                let rows = || found.chunks(spec.cols).map(|row| row.split_last().expect("a bias"));
                compare(format!("{CODE_HEAD}.weight"), &rows().flat_map(|(_, w)| w.to_vec()).collect::<Vec<f32>>());
                compare(format!("{CODE_HEAD}.bias"), &rows().map(|(b, _)| *b).collect::<Vec<f32>>());
            } else {
                compare(file_name(spec), found);
            }
        }
        let mut expected = oracle.learnt_names();
        expected.retain(|name| sight == Sight::Patches || !name.starts_with("model.vision_model."));
        expected.sort();
        compared.sort();
        assert_eq!(compared, expected);
    }
}

#[test]
fn threads_devices_and_micro_batches_change_no_bit() {
    let oracle = Oracle::read("deep");
    let expected = step(&oracle, Sight::Patches, Naive::new(), 1000);
    for (threads, rows) in [(1, 1000), (2, 1), (3, 30)] {
        let found = par::with_threads(threads, || step(&oracle, Sight::Patches, wels_cpu::device(), rows));
        for ((spec, found), expected) in found.specs.iter().zip(&found.gradients).zip(&expected.gradients) {
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
            assert!(bits(found) == bits(expected), "{} with {threads} threads, {rows} rows", spec.name);
        }
        assert_eq!(found.losses, expected.losses, "{threads} threads, {rows} rows");
    }
}

#[test]
fn what_is_drawn_has_the_log_probabilities_that_training_computes() {
    let oracle = Oracle::read("plain");
    let device = wels_cpu::device();
    let network = Network::new(oracle.config.clone(), Sight::States, CONTEXT);
    let (params, execution) = (params(&device, &oracle.config, Sight::States), Execution::new(device));
    let text = oracle.ids("text");
    let sampling = |seed| Sampling::Random { temperature: 1.0, top_p: 1.0, seed };
    let painter = Weighted { network: &network, params: &params };
    let prompt = |tokens: usize| DrawPrompt { tokens: &text[..tokens], unconditional: &[], guidance: 1.0 };
    // Several after one text, whose pages they share, and one of which the text has a page for itself.
    let prompts = [(9, vec![1, 2, 3]), (3, vec![4]), (1, vec![5, 6])];
    let prompts = prompts.map(|(tokens, seeds)| (prompt(tokens), seeds.into_iter().map(sampling).collect::<Vec<_>>()));
    let drawn = draw_all(&painter, &execution, &prompts).expect("drawn");
    for ((prompt, samplings), drawn) in prompts.iter().zip(&drawn) {
        for (sampling, drawn) in samplings.iter().zip(drawn) {
            let alone = draw_all(&painter, &execution, &[(*prompt, vec![*sampling])]).expect("drawn");
            assert_eq!(&alone[0][0], drawn, "alone and beside others");
            let batch = drawn_batch(prompt.tokens, &drawn.codes);
            assert_eq!(network.logprobs(&params, &execution, &batch).codes, drawn.logprobs);
        }
    }
    let guided = |guidance| {
        let prompts = prompts
            .clone()
            .map(|(prompt, samplings)| (DrawPrompt { unconditional: &text[..2], guidance, ..prompt }, samplings));
        draw_all(&painter, &execution, &prompts).expect("drawn")
    };
    assert_ne!(guided(5.0)[0][0].codes, drawn[0][0].codes, "guidance changes what is drawn");
    let greedy = draw_all(&painter, &execution, &[(prompt(9), vec![Sampling::Greedy])]).expect("drawn");
    assert_eq!(greedy[0][0].codes, oracle.ids("greedy"), "as transformers");
}

/// A picture after a text, to learn from.
fn drawn_batch(text: &[u32], codes: &[u32]) -> JanusBatch {
    let inputs = text.iter().map(|id| Input::Token(*id)).chain(codes.iter().map(|code| Input::Code(*code)));
    let inputs: Vec<Input> = inputs.take(text.len() + codes.len() - 1).collect();
    let mut targets = vec![Target::Nothing; text.len() - 1];
    targets.extend(codes.iter().map(|code| Target::Code(*code)));
    JanusBatch { starts: vec![0, inputs.len() as u32], inputs, targets, seen: Vec::new() }
}
