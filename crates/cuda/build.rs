//! With the feature `emulator`: compiles the kernels for the processor, each file by itself, and a table of names.

#[path = "src/launch/signature.rs"]
#[allow(dead_code)]
mod signature;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(emulator)");
    println!("cargo::rerun-if-changed=kernels");
    #[cfg(feature = "emulator")]
    emulator::build();
}

#[cfg(feature = "emulator")]
mod emulator {
    use std::path::{Path, PathBuf};
    use std::{env, fs};

    use crate::signature;

    /// Leaves `cfg(emulator)` unset, with a warning, where it cannot be built.
    pub fn build() {
        if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64")
            || env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux")
        {
            println!("cargo::warning=the emulator of CUDA kernels is for x86-64 Linux: its tests are skipped");
            return;
        }
        let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
        let kernels = fs::canonicalize("kernels").expect("the kernels' directory");
        let mut build = cc::Build::new();
        build.cpp(true).std("c++20").include(&kernels).opt_level(2).warnings(false).debug(false);
        build.flag("-Wno-psabi").flag("-ffp-contract=off").flag("-fno-math-errno");
        if env::var("CARGO_CFG_TARGET_FEATURE").is_ok() && is_x86_64_v3() {
            build.flag("-march=x86-64-v3");
        }
        let mut names = Vec::new();
        for source in sources(&kernels) {
            let text = fs::read_to_string(&source).expect("a kernel file");
            let of_file: Vec<String> = signature::parse(&text).into_iter().map(|kernel| kernel.name).collect();
            let name = source.strip_prefix(&kernels).expect("inside").display().to_string().replace('/', "_");
            let wrapper = out.join(format!("{name}.cpp"));
            fs::write(&wrapper, signature::wrapper(&source.display().to_string(), &of_file))
                .expect("OUT_DIR can be written to");
            build.file(wrapper);
            names.extend(of_file);
        }
        let table = out.join("table.cpp");
        fs::write(&table, signature::table(&names)).expect("OUT_DIR can be written to");
        build.file(table).file(kernels.join("emulator.cpp"));
        match build.try_compile("wels_emulator") {
            Ok(()) => println!("cargo::rustc-cfg=emulator"),
            Err(error) if build.try_get_compiler().is_err() || !compiler_works(&build, &out) => {
                println!("cargo::warning=no C++ compiler, so tests of CUDA kernels are skipped: {error}");
            }
            Err(error) => panic!("the kernels do not compile for the emulator: {error}"),
        }
    }

    /// Fused multiply-adds in hardware make the emulator several times faster.
    fn is_x86_64_v3() -> bool {
        #[cfg(target_arch = "x86_64")]
        return std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    fn compiler_works(build: &cc::Build, out: &Path) -> bool {
        let (source, object) = (out.join("probe.cpp"), out.join("probe.o"));
        fs::write(&source, "#include <vector>\nint main() {}\n").expect("OUT_DIR can be written to");
        let Ok(compiler) = build.try_get_compiler() else { return false };
        let mut command = compiler.to_command();
        command.arg("-c").arg(source).arg("-o").arg(object);
        command.status().is_ok_and(|status| status.success())
    }

    fn sources(directory: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                found.extend(sources(&path));
            } else if path.extension().is_some_and(|extension| extension == "cu") {
                found.push(path);
            }
        }
        found.sort();
        found
    }
}
