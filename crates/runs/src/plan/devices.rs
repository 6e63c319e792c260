//! Machines that a plan can be for: peaks, memory, bandwidth, the price of an hour. Data, with date and source; users
//! add rows.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::PlanError;
use crate::recipe::Precision;

/// The rows that come with the program.
const BUILT_IN: &str = include_str!("../../data/devices.toml");

/// One device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Short name, as on the command line.
    pub name: String,
    pub title: String,
    /// Memory, 1e9 bytes.
    pub memory_gb: f64,
    /// Memory bandwidth, 1e9 bytes a second.
    pub bandwidth_gb_s: f64,
    /// Peak of f32 products, 1e12 operations a second.
    pub tflops_f32: f64,
    /// Peak of bf16 products, likewise.
    pub tflops_bf16: f64,
    /// Peak of FP8 products; `None` without units for them.
    pub tflops_fp8: Option<f64>,
    pub usd_per_hour: f64,
    /// Of the price.
    pub date: String,
    /// Of price and peaks.
    pub source: String,
}

/// The number format of weights and products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProductFormat {
    /// f32 throughout: weights, gradients, AdamW's two means.
    F32,
    /// Products in bf16, master weights, gradients and means in f32.
    Bf16,
    /// DeepSeek-V3's: products in FP8, master weights and gradients in f32, means in bf16.
    Fp8,
}

impl ProductFormat {
    /// By its name in recipes and on the command line.
    pub fn of(name: &str) -> Option<ProductFormat> {
        [("f32", ProductFormat::F32), ("bf16", ProductFormat::Bf16), ("fp8", ProductFormat::Fp8)]
            .into_iter()
            .find_map(|(known, precision)| (known == name).then_some(precision))
    }

    pub fn name(self) -> &'static str {
        match self {
            ProductFormat::F32 => "f32",
            ProductFormat::Bf16 => "bf16",
            ProductFormat::Fp8 => "fp8",
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            ProductFormat::F32 => 4,
            ProductFormat::Bf16 => 2,
            ProductFormat::Fp8 => 1,
        }
    }
}

impl From<Precision> for ProductFormat {
    fn from(precision: Precision) -> ProductFormat {
        match precision {
            Precision::F32 => ProductFormat::F32,
            Precision::Bf16 | Precision::F16 => ProductFormat::Bf16,
        }
    }
}

impl Device {
    /// Peak of products in a format, operations a second. Without FP8 units FP8 products run in bf16.
    pub fn peak_flops(&self, precision: ProductFormat) -> f64 {
        1e12 * match precision {
            ProductFormat::F32 => self.tflops_f32,
            ProductFormat::Bf16 => self.tflops_bf16,
            ProductFormat::Fp8 => self.tflops_fp8.unwrap_or(self.tflops_bf16),
        }
    }

    pub fn memory_bytes(&self) -> f64 {
        1e9 * self.memory_gb
    }

    /// Bandwidth in bytes a second.
    pub fn bandwidth(&self) -> f64 {
        1e9 * self.bandwidth_gb_s
    }

    fn check(&self) -> Result<(), String> {
        let fp8 = self.tflops_fp8.unwrap_or(1.0);
        let positive = [self.memory_gb, self.bandwidth_gb_s, self.tflops_f32, self.tflops_bf16, fp8];
        match positive.iter().all(|x| x.is_finite() && *x > 0.0)
            && self.usd_per_hour.is_finite()
            && self.usd_per_hour >= 0.0
        {
            true => Ok(()),
            false => {
                Err(format!("device {}: peaks, memory and bandwidth must be above 0, the price 0 or more", self.name))
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    device: Vec<Device>,
}

/// The devices that are known.
#[derive(Clone, Debug, PartialEq)]
pub struct Devices(Vec<Device>);

impl Devices {
    /// The built-in rows.
    pub fn built_in() -> Devices {
        Devices(read("devices.toml", BUILT_IN).expect("the built-in rows are valid, as a test shows"))
    }

    /// The built-in rows and those of a file, which replace rows of the same name.
    ///
    /// # Errors
    /// [`PlanError`] if the file cannot be read or a row is wrong.
    pub fn with_file(file: Option<&Path>) -> Result<Devices, PlanError> {
        let mut devices = Devices::built_in();
        if let Some(file) = file {
            let text = PlanError::read(file)?;
            read(&file.display().to_string(), &text)?.into_iter().for_each(|device| devices.add(device));
        }
        Ok(devices)
    }

    /// Adds a row, or replaces the one of the same name.
    pub fn add(&mut self, device: Device) {
        self.0.retain(|known| known.name != device.name);
        self.0.push(device);
    }

    /// The device of a name.
    ///
    /// # Errors
    /// [`PlanError::Unknown`] with the nearest name.
    pub fn get(&self, name: &str) -> Result<&Device, PlanError> {
        let found = self.0.iter().find(|device| device.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| PlanError::unknown("device", name, self.0.iter().map(|device| device.name.as_str())))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.0.iter()
    }
}

fn read(origin: &str, text: &str) -> Result<Vec<Device>, PlanError> {
    let file: File = PlanError::parse(origin, text)?;
    let wrong = |message| PlanError::Value { origin: origin.to_string(), message };
    file.device.iter().try_for_each(|device| device.check().map_err(wrong))?;
    Ok(file.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_file_replace_and_mistakes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        let row = BUILT_IN.split("\n\n").find(|part| part.contains("\"h100\"")).unwrap();
        std::fs::write(&file, row.replace("usd_per_hour = 3.0", "usd_per_hour = 1.0")).unwrap();
        let devices = Devices::with_file(Some(&file)).unwrap();
        assert_eq!(devices.get("H100").unwrap().usd_per_hour, 1.0);
        assert_eq!(devices.iter().count(), Devices::built_in().iter().count());
        for (from, to, message) in [
            ("memory_gb = 80", "memory_gb = -80", "device h100: peaks, memory and bandwidth must be above 0"),
            ("memory_gb", "memory", "unknown field `memory`"),
            ("usd_per_hour = 3.0", "usd_per_hour = nan", "the price 0 or more"),
        ] {
            std::fs::write(&file, row.replace(from, to)).unwrap();
            let error = Devices::with_file(Some(&file)).unwrap_err().to_string();
            assert!(error.contains("mine.toml") && error.contains(message), "{error}");
        }
        let error = devices.get("h80").unwrap_err();
        assert!(["h800", "h100"].iter().any(|near| error.hint().unwrap().contains(near)), "{error}");
    }
}
