//! Training and serving on named devices: hours, money, what fits, and what changes if an assumption does.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;
use wels_device::Device;
use wels_model::config::ModelConfig;
use wels_model::count;
use wels_pipeline::refusal::refuse;
use wels_pipeline::words::short;
use wels_runs::plan::devices::{Devices, ProductFormat};
use wels_runs::plan::prices::{Price, Prices};
use wels_runs::plan::serving::{self, ServingPlan, serving};
use wels_runs::plan::training::{self, TrainingPlan, training, usual_tokens};

use crate::device::DeviceKind;
use crate::output;

/// The assumptions, as the command line says them.
#[derive(clap::Args)]
pub struct Args {
    /// Tokens to train on; if left out, what a published model was trained on, or 20 an activated parameter
    #[arg(long, value_name = "TOKENS")]
    tokens: Option<f64>,
    /// The machine: h800 (if left out), h100, h200, a100, rtx4090, rtx3090, or one of --device-table; of a recipe cpu
    /// (if left out) or cuda: this machine's processor, or its GPU
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// How many train side by side; if left out, the fewest that hold the training
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    devices: Option<u64>,
    /// The fraction of the peak that is used; 0.4 if left out
    #[arg(long, value_name = "FRACTION")]
    utilisation: Option<f64>,
    /// Number format: f32, bf16 or fp8; if left out bf16, and on a cluster fp8 for DeepSeek's models where the device
    /// has it, else bf16, on processors f32
    #[arg(long, value_name = "FORMAT")]
    precision: Option<String>,
    /// A second plan beside the first with an assumption changed; may be given several times. Keys: price, utilisation,
    /// sequence_length, experts, experts_per_token, precision, device, devices, tokens, context, batch
    #[arg(long, value_name = "KEY=VALUE")]
    what_if: Vec<String>,
    /// Devices of your own (.toml), which replace built-in ones of the same name
    #[arg(long, value_name = "FILE")]
    device_table: Option<PathBuf>,
    /// API prices of your own (.toml), which replace built-in ones of the same model
    #[arg(long, value_name = "FILE")]
    price_table: Option<PathBuf>,
}

impl Args {
    /// The devices that are known.
    pub fn device_table(&self) -> Result<Devices> {
        Ok(Devices::with_file(self.device_table.as_deref())?)
    }

    /// The tokens to train `config` on, called `model`.
    pub fn tokens(&self, model: &str, config: &ModelConfig) -> Result<f64> {
        positive("tokens", self.tokens.unwrap_or_else(|| usual_tokens(model, config)))
    }

    /// The number format, if one was said.
    pub fn precision(&self) -> Result<Option<ProductFormat>> {
        self.precision.as_deref().map(precision).transpose()
    }

    /// What computes recipes here.
    ///
    /// # Errors
    /// For the name of another machine.
    pub fn this_device(&self) -> Result<Arc<dyn Device>> {
        match self.device.as_deref() {
            None | Some("cpu") => DeviceKind::Cpu.open(),
            Some("cuda") => DeviceKind::Cuda.open(),
            Some(other) => {
                let hint = "of a recipe --device is cpu or cuda: its rates are measured, not taken from a table";
                Err(refuse(format!("--device {other} is not of this machine"), hint))
            }
        }
    }

    /// The first assumption that was said and that a recipe makes itself.
    pub fn of_a_model(&self) -> Option<&'static str> {
        let said = [
            (self.tokens.is_some(), "--tokens"),
            (self.devices.is_some(), "--devices"),
            (self.utilisation.is_some(), "--utilisation"),
            (self.precision.is_some(), "--precision"),
            (!self.what_if.is_empty(), "--what-if"),
        ];
        said.into_iter().find_map(|(said, flag)| said.then_some(flag))
    }

    /// The prices that are known.
    pub fn price_table(&self) -> Result<Prices> {
        Ok(Prices::with_file(self.price_table.as_deref())?)
    }
}

/// Training and serving, as they are and as they would be.
#[derive(Serialize)]
pub struct Plans {
    training: TrainingPlan,
    serving: ServingPlan,
    /// With the assumptions of `--what-if`.
    what_if: Option<Changed>,
}

#[derive(Serialize)]
struct Changed {
    changes: Vec<String>,
    parameters: u64,
    parameters_activated: u64,
    training: TrainingPlan,
    serving: ServingPlan,
}

/// Everything that `--what-if` can change.
#[derive(Clone)]
struct WhatIf {
    config: ModelConfig,
    training: training::Assumptions,
    /// Whether the number of devices was said; otherwise it follows.
    devices_given: bool,
    serving: serving::Assumptions,
}

impl Plans {
    /// Plans for `config`, called `model`, with training sequences and caches of `context` tokens.
    pub fn of(model: &str, config: &ModelConfig, context: usize, args: &Args) -> Result<Plans> {
        let devices = args.device_table()?;
        let device = devices.get(args.device.as_deref().unwrap_or("h800"))?.clone();
        let precision = args.precision()?.unwrap_or(ProductFormat::Bf16);
        let prices = args.price_table()?;
        let utilisation = fraction(args.utilisation.unwrap_or(0.4))?;
        let basis = WhatIf {
            config: config.clone(),
            training: training::Assumptions {
                tokens: args.tokens(model, config)?,
                sequence_length: context,
                device: device.clone(),
                devices: args.devices.unwrap_or(1),
                utilisation,
                precision,
            },
            devices_given: args.devices.is_some(),
            serving: serving::Assumptions {
                device,
                devices: None,
                precision,
                context,
                prompt: context,
                batch: None,
                utilisation,
            },
        };
        let (training, serving) = basis.plans(prices.iter());
        let what_if = match args.what_if.is_empty() {
            true => None,
            false => {
                let mut changed = basis;
                for change in &args.what_if {
                    changed.change(change, &devices)?;
                }
                let (training, serving) = changed.plans(prices.iter());
                let params = count::params(&changed.config);
                Some(Changed {
                    changes: args.what_if.clone(),
                    parameters: params.total.0,
                    parameters_activated: params.activated.0,
                    training,
                    serving,
                })
            }
        };
        Ok(Plans { training, serving, what_if })
    }

    /// Writes them side by side.
    pub fn print(&self) -> std::io::Result<()> {
        let other = self.what_if.as_ref();
        let head = other.map_or(String::new(), |other| other.changes.join(", "));
        output::line(format!("{:<38} {:>20} {:>20}", "", "", head).trim_end())?;
        let rows = training_rows(&self.training).into_iter().chain(serving_rows(&self.serving));
        let others = other.map(|other| training_rows(&other.training).into_iter().chain(serving_rows(&other.serving)));
        let others: Vec<_> = others.map_or(Vec::new(), Iterator::collect);
        for (i, (name, value)) in rows.enumerate() {
            let other = others.get(i).map_or("", |(_, value)| value.as_str());
            output::line(format!("{name:<38} {value:>20} {other:>20}").trim_end())?;
        }
        for even in &self.serving.break_even {
            let name = format!("  {} at ${:.2} a million", even.model, even.usd_per_million);
            let own = format!("own {}", usd(even.own_usd_per_million));
            let verdict = match even.tokens_per_day {
                Some(tokens) => format!("cheaper from {} tokens a day on", short(tokens)),
                None => "never cheaper".to_string(),
            };
            output::line(&format!("{name:<38} {own:>20} {verdict}"))?;
        }
        Ok(())
    }
}

impl WhatIf {
    fn plans<'a>(&self, prices: impl Iterator<Item = &'a Price>) -> (TrainingPlan, ServingPlan) {
        let mut planned = training(&self.config, &self.training);
        if let (false, Some(fewest)) = (self.devices_given, planned.memory.fewest_devices) {
            planned = training(&self.config, &training::Assumptions { devices: fewest, ..self.training.clone() });
        }
        (planned, serving(&self.config, &self.serving, prices))
    }

    fn change(&mut self, change: &str, devices: &Devices) -> Result<()> {
        let Some((key, value)) = change.split_once('=') else {
            return Err(refuse(format!("--what-if {change} has no '='"), "write it as in --what-if price=1.5"));
        };
        let (key, value) = (key.trim(), value.trim());
        let number = || -> Result<f64> {
            let number = value.replace('_', "").parse::<f64>().ok().filter(|x| x.is_finite() && *x >= 0.0);
            number
                .ok_or_else(|| refuse(format!("--what-if {change}: {value} is not a number from 0"), "check the value"))
        };
        let whole = || -> Result<usize> {
            let whole = number()?;
            match whole.fract() == 0.0 && (1.0..=1e12).contains(&whole) {
                true => Ok(whole as usize),
                false => Err(refuse(format!("--what-if {change}: must be a whole number from 1"), "check the value")),
            }
        };
        match key {
            "price" => {
                let price = number()?;
                self.training.device.usd_per_hour = price;
                self.serving.device.usd_per_hour = price;
            }
            "utilisation" => {
                self.training.utilisation = fraction(number()?)?;
                self.serving.utilisation = self.training.utilisation;
            }
            "sequence_length" => {
                self.training.sequence_length = whole()?;
                self.serving.prompt = whole()?;
            }
            "context" => self.serving.context = whole()?,
            "batch" => self.serving.batch = Some(whole()? as u64),
            "tokens" => self.training.tokens = positive("tokens", number()?)?,
            "devices" => {
                self.training.devices = whole()? as u64;
                self.serving.devices = Some(whole()? as u64);
                self.devices_given = true;
            }
            "device" => {
                self.training.device = devices.get(value)?.clone();
                self.serving.device = self.training.device.clone();
            }
            "precision" => {
                self.training.precision = precision(value)?;
                self.serving.precision = self.training.precision;
            }
            "experts" | "experts_per_token" => self.change_experts(key, whole()?)?,
            _ => {
                let known = "price, utilisation, sequence_length, experts, experts_per_token, precision, device, \
                             devices, tokens, context, batch";
                return Err(refuse(format!("--what-if knows no key '{key}'"), format!("the keys are: {known}")));
            }
        }
        Ok(())
    }

    fn change_experts(&mut self, key: &str, value: usize) -> Result<()> {
        let Some(moe) = &mut self.config.moe else {
            return Err(refuse(format!("--what-if {key}: the model has no experts"), "leave it out for a dense model"));
        };
        match key {
            "experts" => moe.experts = value,
            _ => moe.top_k = value,
        }
        if moe.top_k > moe.experts || moe.experts > 1 << 20 {
            let message = format!("--what-if {key}: {} of {} experts cannot be chosen", moe.top_k, moe.experts);
            return Err(refuse(message, "choose at most as many as there are, and no more than 1048576"));
        }
        Ok(())
    }
}

fn precision(name: &str) -> Result<ProductFormat> {
    ProductFormat::of(name)
        .ok_or_else(|| refuse(format!("there is no precision '{name}'"), "the formats are f32, bf16, fp8"))
}

fn fraction(value: f64) -> Result<f64> {
    match value > 0.0 && value <= 1.0 {
        true => Ok(value),
        false => Err(refuse(format!("utilisation {value} is not above 0 and at most 1"), "40% is 0.4")),
    }
}

pub fn positive(what: &str, value: f64) -> Result<f64> {
    match value > 0.0 && value.is_finite() {
        true => Ok(value),
        false => Err(refuse(format!("{what} must be above 0, but is {value}"), "check the value")),
    }
}

fn training_rows(plan: &TrainingPlan) -> Vec<(String, String)> {
    let TrainingPlan { assumptions, memory, .. } = plan;
    let bytes = |bytes: f64| format!("{}B", short(bytes));
    let mut rows = vec![
        ("training".to_string(), format!("{} tokens", short(assumptions.tokens))),
        (
            "  on".to_string(),
            format!("{} × {} {}", assumptions.devices, assumptions.device.name, assumptions.precision.name()),
        ),
        ("  at".to_string(), format!("{:.1}% of peak", 100.0 * assumptions.utilisation)),
        (format!("  a token, sequences of {}", assumptions.sequence_length), giga(plan.flops_per_token.total)),
    ];
    for (name, flops) in plan.flops_per_token.parts().into_iter().filter(|(_, flops)| *flops > 0.0) {
        rows.push((format!("    {name}"), giga(flops)));
    }
    rows.extend([
        ("  operations".to_string(), format!("{:.2e} FLOP", plan.flops)),
        ("  device-hours".to_string(), count::Params(plan.device_hours.round() as u64).to_string()),
        ("  days".to_string(), format!("{:.1}", plan.days)),
        ("  money".to_string(), usd(plan.usd)),
        ("  memory: weights".to_string(), bytes(memory.working_weights + memory.master_weights)),
        ("    gradients".to_string(), bytes(memory.gradients)),
        ("    optimizer".to_string(), bytes(memory.optimizer)),
        ("    activations of a sequence".to_string(), bytes(memory.activations)),
        ("      recomputed".to_string(), bytes(memory.activations_recomputed)),
        ("    a device, at least".to_string(), bytes(memory.per_device)),
        (
            "  fits".to_string(),
            match (memory.fits, memory.fewest_devices) {
                (true, _) => "yes".into(),
                (false, Some(devices)) => format!("no: takes {devices}"),
                (false, None) => "no: shorter sequences".into(),
            },
        ),
    ]);
    rows
}

fn serving_rows(plan: &ServingPlan) -> Vec<(String, String)> {
    let bytes = |bytes: f64| format!("{}B", short(bytes));
    let rate = |rate: f64| format!("{} tok/s", short(rate));
    let context = plan.assumptions.context;
    vec![
        ("serving".into(), format!("{} × {}", plan.devices, plan.assumptions.device.name)),
        ("  weights".into(), bytes(plan.weights_bytes)),
        ("  cache of a token, bf16".into(), bytes(plan.cache_bytes_per_token)),
        (format!("  sequences of {context} that fit"), plan.sequences_that_fit.to_string()),
        (format!("  decoding {} together, bounded by", plan.batch), String::new()),
        ("    bandwidth".into(), rate(plan.decode_bound_by_bandwidth)),
        ("    arithmetic".into(), rate(plan.decode_bound_by_arithmetic)),
        ("  decoding, at the utilisation".into(), rate(plan.decode_tokens_per_second)),
        ("  one sequence alone, at most".into(), rate(plan.single_stream_bound)),
        ("  prefill, at the utilisation".into(), rate(plan.prefill_tokens_per_second)),
        ("  a million tokens out".into(), usd(plan.usd_per_million_out)),
        ("  a million tokens in".into(), usd(plan.usd_per_million_in)),
    ]
}

fn giga(flops: f64) -> String {
    format!("{:.3} GFLOP", flops / 1e9)
}

fn usd(usd: f64) -> String {
    match usd {
        usd if usd >= 1000.0 => format!("${}", count::Params(usd.round() as u64)),
        usd if usd >= 0.1 => format!("${usd:.2}"),
        usd => format!("${usd:.4}"),
    }
}
