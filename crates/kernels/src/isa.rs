//! Which instruction set the kernels use. It changes the speed and never a bit of a result.
//!
//! The best set of this machine is chosen once; `WELS_ISA=plain|avx2|avx512|neon|dotprod|i8mm` forces another, for
//! tests and for finding out whether a difference comes from a kernel.

use std::sync::OnceLock;

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, whatever the compiler makes of it.
    Plain,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL.
    Avx512,
    /// 64-bit Arm with NEON.
    Neon,
    /// NEON with products of four bytes (FEAT_DotProd: from Cortex-A75, Neoverse N1, Apple's A11 on).
    Dotprod,
    /// These with products of small matrices of bytes (FEAT_I8MM: from Neoverse V1 and N2, Apple's M2 on).
    I8mm,
}

impl Isa {
    /// The name that `WELS_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Plain => "plain",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
            Isa::Dotprod => "dotprod",
            Isa::I8mm => "i8mm",
        }
    }

    /// Whether this machine can run it.
    pub fn available(self) -> bool {
        match self {
            Isa::Plain => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => Isa::Dotprod.available() && std::arch::is_aarch64_feature_detected!("i8mm"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// All sets, of any machine, the plain one first.
    pub const ALL: [Isa; 6] = [Isa::Plain, Isa::Avx2, Isa::Avx512, Isa::Neon, Isa::Dotprod, Isa::I8mm];

    /// All sets that this machine can run, the plain one first. What a test over these leaves out, [`missing`] says.
    pub fn all_available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.available())
    }
}

/// What kernels are written for and this machine cannot run: whole sets, then instructions that some kernels use beside
/// [`Isa::Avx512`] where they are there.
pub fn missing() -> Vec<&'static str> {
    let sets = Isa::ALL.into_iter().filter(|isa| !isa.available()).map(Isa::name);
    #[cfg(target_arch = "x86_64")]
    let beside = [
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("avx512fp16", is_x86_feature_detected!("avx512fp16")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let beside = ["avx512vnni", "avx512bf16", "avx512fp16"].map(|name| (name, false));
    sets.chain(beside.into_iter().filter(|(_, there)| !there).map(|(name, _)| name)).collect()
}

/// The set in use: the forced one, or the best of this machine.
///
/// # Panics
/// If `WELS_ISA` names no set or one that this machine cannot run; the program checks it at start with [`requested`].
pub fn active() -> Isa {
    static ACTIVE: OnceLock<Isa> = OnceLock::new();
    if let Some(forced) = forced::get() {
        return forced;
    }
    *ACTIVE.get_or_init(|| requested().unwrap_or_else(|message| panic!("{message}")))
}

/// What `WELS_ISA` asks for, or the best of this machine.
pub fn requested() -> Result<Isa, String> {
    let best = Isa::all_available().last().unwrap_or(Isa::Plain);
    let Ok(name) = std::env::var("WELS_ISA") else { return Ok(best) };
    let isa = Isa::ALL
        .into_iter()
        .find(|isa| isa.name() == name)
        .ok_or_else(|| format!("WELS_ISA is '{name}', which is none of {}", Isa::ALL.map(Isa::name).join(", ")))?;
    if isa.available() { Ok(isa) } else { Err(format!("WELS_ISA is '{name}', which this machine cannot run")) }
}

/// Runs `work` with another instruction set on this thread, for tests and benchmarks that compare sets.
pub fn with<R>(isa: Isa, work: impl FnOnce() -> R) -> R {
    assert!(isa.available(), "this machine cannot run {}", isa.name());
    forced::with(isa, work)
}

/// What [`with`] has chosen for this thread.
pub(crate) fn forced() -> Option<Isa> {
    forced::get()
}

mod forced {
    use super::Isa;
    use std::cell::Cell;

    thread_local!(static FORCED: Cell<Option<Isa>> = const { Cell::new(None) });

    pub fn get() -> Option<Isa> {
        FORCED.get()
    }

    pub fn with<R>(isa: Isa, work: impl FnOnce() -> R) -> R {
        struct Restore(Option<Isa>);
        impl Drop for Restore {
            fn drop(&mut self) {
                FORCED.set(self.0);
            }
        }
        let _restore = Restore(FORCED.replace(Some(isa)));
        work()
    }
}
