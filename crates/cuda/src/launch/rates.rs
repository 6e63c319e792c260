//! What a card can do at most: its maker's figures where the name is known, else what its clocks and units come to.
//!
//! Products in 16 bits are those of dense tensor cores with sums in f32 and without sparsity, those in f32 the ordinary
//! cores', where a fused multiply-add is two operations.

/// The most a card does in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Operations of products in bf16 or f16.
    pub half_flops: f64,
    /// Operations in f32.
    pub f32_flops: f64,
    /// Bytes of its memory that are read or written.
    pub bytes: f64,
}

/// What the driver says of a card.
#[derive(Clone, Copy, Debug)]
pub struct Units<'a> {
    /// As the driver says it.
    pub name: &'a str,
    /// Major and minor version.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub processors: u32,
    /// Their greatest clock.
    pub clock_hz: f64,
    /// The memory's, which moves data twice in a cycle.
    pub memory_clock_hz: f64,
    /// Width of its bus.
    pub bus_bits: u32,
}

/// Words that a name has, and the figures of NVIDIA's data sheets, in 1e12 operations and 1e9 bytes: bf16, f32, memory.
/// The first row whose words are all there is taken.
const KNOWN: &[(&[&str], [f64; 3])] = &[
    (&["GH200"], [989.4, 66.9, 4000.0]),
    (&["H200", "NVL"], [835.5, 60.3, 4800.0]),
    (&["H200"], [989.4, 66.9, 4800.0]),
    (&["H100", "PCIe"], [756.0, 51.2, 2039.0]),
    (&["H100", "NVL"], [835.5, 60.3, 3938.0]),
    (&["H100"], [989.4, 66.9, 3352.0]),
    (&["H800", "PCIe"], [756.0, 51.2, 2039.0]),
    (&["H800"], [989.4, 66.9, 3352.0]),
    (&["H20"], [148.0, 44.0, 4000.0]),
    (&["A100", "SXM4", "80GB"], [312.0, 19.5, 2039.0]),
    (&["A100", "80GB"], [312.0, 19.5, 1935.0]),
    (&["A100"], [312.0, 19.5, 1555.0]),
    (&["A800", "SXM4", "80GB"], [312.0, 19.5, 2039.0]),
    (&["A800", "80GB"], [312.0, 19.5, 1935.0]),
    (&["A40"], [149.7, 37.4, 696.0]),
    (&["A30"], [165.0, 10.3, 933.0]),
    (&["A10"], [125.0, 31.2, 600.0]),
    (&["A6000"], [154.8, 38.7, 768.0]),
    (&["L40S"], [362.0, 91.6, 864.0]),
    (&["L40"], [181.0, 90.5, 864.0]),
    (&["L4"], [121.0, 30.3, 300.0]),
    (&["6000", "Ada"], [364.2, 91.1, 960.0]),
    (&["RTX", "4090"], [165.2, 82.6, 1008.0]),
    (&["RTX", "3090"], [71.0, 35.6, 936.0]),
];
/// Words of a name that make another card of it, or a part of one.
const OTHERS: &[&str] = &["Laptop", "D", "Ti", "SUPER", "MIG"];

impl Rates {
    /// Those of a card.
    pub fn of(card: &Units) -> Rates {
        let words: Vec<&str> = card.name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let has = |word: &&str| words.contains(word);
        let row = KNOWN.iter().find(|(name, _)| name.iter().all(has));
        match row.filter(|_| !OTHERS.iter().any(has)) {
            Some((_, [half, f32, bytes])) => {
                Rates { half_flops: half * 1e12, f32_flops: f32 * 1e12, bytes: bytes * 1e9 }
            }
            None => Rates::of_units(card),
        }
    }

    fn of_units(card: &Units) -> Rates {
        // Cards for games have tensor cores that add f32 at half the rate.
        let halved = if card.name.contains("GeForce") { 2.0 } else { 1.0 };
        let half = match card.capability.0 {
            8 if card.capability.1 == 0 => 2048.0,
            9 => 4096.0,
            10 | 11 => 8192.0,
            _ => 1024.0 / halved,
        };
        let f32 = if card.capability == (8, 0) { 128.0 } else { 256.0 };
        let cycles = f64::from(card.processors) * card.clock_hz;
        let bytes = 2.0 * card.memory_clock_hz * f64::from(card.bus_bits) / 8.0;
        Rates { half_flops: cycles * half, f32_flops: cycles * f32, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(name: &str, capability: (u32, u32), processors: u32, clocks_mhz: (f64, f64), bus_bits: u32) -> Units<'_> {
        let (clock_hz, memory_clock_hz) = (clocks_mhz.0 * 1e6, clocks_mhz.1 * 1e6);
        Units { name, capability, processors, clock_hz, memory_clock_hz, bus_bits }
    }

    #[test]
    fn names_as_drivers_say_them_are_known() {
        for (name, half, bytes) in [
            ("NVIDIA H200", 989.4e12, 4.8e12),
            ("NVIDIA H100 80GB HBM3", 989.4e12, 3.352e12),
            ("NVIDIA H100 PCIe", 756e12, 2.039e12),
            ("NVIDIA GH200 480GB", 989.4e12, 4e12),
            ("NVIDIA A100-SXM4-80GB", 312e12, 2.039e12),
            ("NVIDIA A100-PCIE-40GB", 312e12, 1.555e12),
            ("NVIDIA A10", 125e12, 6e11),
            ("NVIDIA L4", 121e12, 3e11),
            ("NVIDIA L40S", 362e12, 8.64e11),
            ("NVIDIA GeForce RTX 4090", 165.2e12, 1.008e12),
            ("NVIDIA GeForce RTX 3090", 71e12, 9.36e11),
        ] {
            let rates = Rates::of(&card(name, (0, 0), 0, (0.0, 0.0), 0));
            assert_eq!((rates.half_flops, rates.bytes), (half, bytes), "{name}");
        }
    }

    /// The sheets' figures are those of the units at the clock that the sheets have.
    #[test]
    fn units_come_to_what_the_sheets_say() {
        for card in [
            card("NVIDIA H100 80GB HBM3", (9, 0), 132, (1830.0, 2619.0), 5120),
            card("NVIDIA A100-SXM4-80GB", (8, 0), 108, (1410.0, 1593.0), 5120),
            card("NVIDIA GeForce RTX 4090", (8, 9), 128, (2520.0, 10501.0), 384),
            card("NVIDIA GeForce RTX 3090", (8, 6), 82, (1695.0, 9751.0), 384),
            card("NVIDIA RTX A6000", (8, 6), 84, (1800.0, 8001.0), 384),
            card("NVIDIA L40S", (8, 9), 142, (2520.0, 9001.0), 384),
        ] {
            let (sheet, units) = (Rates::of(&card), Rates::of_units(&card));
            let near = |sheet: f64, units: f64, most: f64| {
                assert!((units / sheet - 1.0).abs() < most, "{}: {sheet:e} and {units:e}", card.name);
            };
            near(sheet.half_flops, units.half_flops, 0.03);
            near(sheet.f32_flops, units.f32_flops, 0.1); // the H100's is at a higher clock than its bf16
            near(sheet.bytes, units.bytes, 0.03);
        }
    }

    #[test]
    fn another_card_of_a_known_name_is_not_taken_for_it() {
        for name in ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-80GB MIG 1g.10gb"] {
            let card = card(name, (8, 9), 14, (1000.0, 1000.0), 256);
            assert_eq!(Rates::of(&card), Rates::of_units(&card), "{name}");
        }
    }
}
