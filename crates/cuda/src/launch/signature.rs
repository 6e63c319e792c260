//! Which kernels a file has, and what they take, read from its text; and for the emulator the C++ that calls them by
//! name. The build script has this file too.

/// What a kernel takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// As in the source.
    pub name: String,
    /// In order.
    pub parameters: Vec<Parameter>,
}

/// What an argument has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// `const T *`.
    Read,
    /// `T *`.
    Write,
    /// `int`.
    Int,
    /// `uint32_t`.
    Unsigned,
    /// `int64_t`.
    Long,
    /// `float`.
    Float,
    /// `TensorMap`.
    Map,
}

/// All kernels of a file: its functions that are `extern "C" __global__ void`.
///
/// # Panics
/// If a parameter's type is none of [`Parameter`]'s.
pub fn parse(text: &str) -> Vec<Signature> {
    let mut kernels = Vec::new();
    for part in text.split("extern \"C\" __global__ void").skip(1) {
        let part = part.trim_start();
        let part = match part.strip_prefix("__launch_bounds__(") {
            Some(rest) => rest.split_once(')').map_or("", |(_, rest)| rest).trim_start(),
            None => part,
        };
        let (name, rest) = part.split_once('(').unwrap_or_else(|| panic!("a kernel without parameters: {part:.60}"));
        let (list, _) = rest.split_once(')').unwrap_or_else(|| panic!("the parameters of {name} do not end"));
        let parameters = list.split(',').map(|parameter| kind(name, parameter)).collect();
        kernels.push(Signature { name: name.trim().to_string(), parameters });
    }
    kernels
}

fn kind(kernel: &str, parameter: &str) -> Parameter {
    let words: Vec<&str> = parameter.split([' ', '\n', '\t']).filter(|word| !word.is_empty()).collect();
    let has = |word: &str| words.contains(&word);
    match () {
        () if parameter.contains('*') && has("const") => Parameter::Read,
        () if parameter.contains('*') => Parameter::Write,
        () if has("TensorMap") => Parameter::Map,
        () if has("int") => Parameter::Int,
        () if has("uint32_t") => Parameter::Unsigned,
        () if has("int64_t") => Parameter::Long,
        () if has("float") => Parameter::Float,
        () => panic!("{kernel} takes `{}`", parameter.trim()),
    }
}

/// C++ around a file of kernels, whose helpers become its own: two files may have helpers of one name.
pub fn wrapper(path: &str, kernels: &[String]) -> String {
    let mut text = format!("#define WELS_EMU\n#include \"prelude.cuh\"\nnamespace {{\n#include \"{path}\"\n}}\n");
    for name in kernels {
        text += &format!("extern \"C\" const char *wels_emu_{name}{PARAMETERS} {{\n");
        text += &format!("  return emu::launch_kernel({name}, dims, smem, seed, args);\n}}\n");
    }
    text
}

/// C++ of the table in which the emulator looks for names.
pub fn table(kernels: &[String]) -> String {
    let mut text = String::from("#include <cstddef>\n#include <cstdint>\nextern \"C\" {\n");
    for name in kernels {
        text += &format!("const char *wels_emu_{name}{PARAMETERS};\n");
    }
    text += &format!("struct Named {{ const char *name; const char *(*kernel){PARAMETERS}; }};\n");
    text += "extern const Named wels_emu_kernels[];\nconst Named wels_emu_kernels[] = {\n";
    for name in kernels {
        text += &format!("  {{\"{name}\", wels_emu_{name}}},\n");
    }
    text + "  {nullptr, nullptr},\n};\n}\n"
}

const PARAMETERS: &str = "(const unsigned *dims, size_t smem, uint32_t seed, void **args)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_what_they_take_are_read_from_their_text() {
        let text = "__device__ float helper(float x);\n\
            extern \"C\" __global__ void first(const float *x, uint32_t *y,\n    int64_t n) {\n}\n\
            extern \"C\" __global__ void __launch_bounds__(256, 2) second(\n    const __grid_constant__ TensorMap m,\n    \
            int k, uint32_t u, float f) {}\n";
        use Parameter::*;
        let kernel =
            |name: &str, parameters: &[Parameter]| Signature { name: name.into(), parameters: parameters.into() };
        let expected = [kernel("first", &[Read, Write, Long]), kernel("second", &[Map, Int, Unsigned, Float])];
        assert_eq!(parse(text), expected);
    }

    #[test]
    #[should_panic(expected = "odd takes `double x`")]
    fn a_type_that_no_argument_has_is_refused() {
        parse("extern \"C\" __global__ void odd(double x) {}");
    }
}
