//! Short names for DeepSeek's models. The table is a convenience: repositories belong to others and may be moved.

/// A model by a short name.
#[derive(Debug)]
pub struct ShortName {
    /// As it is typed.
    pub name: &'static str,
    /// The repository of its makers.
    pub safetensors: &'static str,
    /// A repository with GGUF files, if one is known.
    pub gguf: Option<&'static str>,
}

const fn of(name: &'static str, safetensors: &'static str, gguf: Option<&'static str>) -> ShortName {
    ShortName { name, safetensors, gguf }
}

/// All of them.
pub const SHORT_NAMES: [ShortName; 16] = [
    of("r1:1.5b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", Some("unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF")),
    of("r1:7b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", Some("unsloth/DeepSeek-R1-Distill-Qwen-7B-GGUF")),
    of("r1:8b", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", Some("unsloth/DeepSeek-R1-Distill-Llama-8B-GGUF")),
    of("r1:14b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", Some("unsloth/DeepSeek-R1-Distill-Qwen-14B-GGUF")),
    of("r1:32b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", Some("unsloth/DeepSeek-R1-Distill-Qwen-32B-GGUF")),
    of("r1:70b", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B", Some("unsloth/DeepSeek-R1-Distill-Llama-70B-GGUF")),
    of("r1", "deepseek-ai/DeepSeek-R1", Some("unsloth/DeepSeek-R1-GGUF")),
    of("r1:671b", "deepseek-ai/DeepSeek-R1", Some("unsloth/DeepSeek-R1-GGUF")),
    of("r1-zero", "deepseek-ai/DeepSeek-R1-Zero", Some("unsloth/DeepSeek-R1-Zero-GGUF")),
    of("r1-0528", "deepseek-ai/DeepSeek-R1-0528", Some("unsloth/DeepSeek-R1-0528-GGUF")),
    of("v3", "deepseek-ai/DeepSeek-V3", Some("unsloth/DeepSeek-V3-GGUF")),
    of("v3-0324", "deepseek-ai/DeepSeek-V3-0324", Some("unsloth/DeepSeek-V3-0324-GGUF")),
    of("v3.1", "deepseek-ai/DeepSeek-V3.1", Some("unsloth/DeepSeek-V3.1-GGUF")),
    of("v2-lite", "deepseek-ai/DeepSeek-V2-Lite-Chat", Some("mradermacher/DeepSeek-V2-Lite-Chat-GGUF")),
    of(
        "coder-v2-lite",
        "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct",
        Some("bartowski/DeepSeek-Coder-V2-Lite-Instruct-GGUF"),
    ),
    of("v2", "deepseek-ai/DeepSeek-V2-Chat", None),
];

/// The model of that name, whatever its letters' case.
pub fn find(name: &str) -> Option<&'static ShortName> {
    SHORT_NAMES.iter().find(|short| short.name.eq_ignore_ascii_case(name))
}
