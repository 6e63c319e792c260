//! `wels launch AGENT -- …`: starts a coding agent that talks to a server of Wels, with its settings in the environment
//! or in its arguments. Nothing of the agent's own configuration is written to: a file that one needs lies in a folder
//! that lasts as long as the agent.

use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use wels_pipeline::refusal::refuse;

use crate::output;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// The agent
    #[arg(value_enum, value_name = "AGENT")]
    agent: AgentKind,
    /// The server's address
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The server's key; `WELS_API_KEY` of the environment if left out
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// The model; the server's first if left out
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Show what would be started, without starting it. The key is not shown
    #[arg(long)]
    dry_run: bool,
    /// The agent's own arguments
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

/// Agents that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum AgentKind {
    /// OpenAI's, by Responses
    Codex,
    /// Anthropic's Claude Code, by Messages
    Claude,
    /// By chat completions
    Opencode,
    /// By chat completions
    Aider,
    /// By chat completions
    Cline,
    /// By chat completions
    Pi,
    /// Continue's `cn`, by chat completions
    Continue,
}

/// What is started.
struct Launch {
    program: &'static str,
    /// How to get it.
    install: &'static str,
    environment: Vec<(&'static str, String)>,
    /// Settings that the agent reads from a file: its path in the agent's folder, and what is in it.
    file: Option<(&'static str, Value)>,
    arguments: Vec<String>,
}

/// Starts the agent, and ends with its exit code.
pub fn launch(args: &Args) -> Result<()> {
    let url = args.url.trim_end_matches('/').trim_end_matches("/v1");
    let key = args.key.clone().or_else(|| std::env::var("WELS_API_KEY").ok()).unwrap_or_default();
    let known = models(url, &key)?;
    let model = match &args.model {
        Some(model) if known.iter().any(|(name, _)| name == model) => model.clone(),
        Some(model) => {
            let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
            return Err(refuse(format!("the server has no model `{model}`"), format!("it has {}", names.join(", "))));
        }
        None => known[0].0.clone(),
    };
    let context = known.iter().find(|(name, _)| *name == model).map_or(8192, |(_, context)| *context);
    let folder = tempfile::tempdir()?;
    let mut launch = settings(args.agent, url, &key, &model, context, &folder.path().display().to_string());
    launch.arguments.extend(args.arguments.iter().cloned());
    if args.dry_run {
        return show(&launch, &key);
    }
    if let Some((path, content)) = &launch.file {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a file in the folder"))?;
        std::fs::write(&path, content.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let status = run(&launch)?;
    drop(folder);
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => bail!("{} was ended by a signal", launch.program),
    }
}

fn run(launch: &Launch) -> Result<ExitStatus> {
    let mut command = Command::new(launch.program);
    command.args(&launch.arguments).envs(launch.environment.iter().map(|(name, value)| (name, value)));
    command.status().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            let hint = format!("install it: {}", launch.install);
            refuse(format!("there is no program `{}`", launch.program), hint)
        }
        _ => anyhow::Error::new(error).context(format!("cannot start {}", launch.program)),
    })
}

/// What would be started, without the key.
fn show(launch: &Launch, key: &str) -> Result<()> {
    let hidden = |value: &str| if key.is_empty() { value.to_owned() } else { value.replace(key, "…") };
    for (name, value) in &launch.environment {
        output::line(&format!("{name}={}", hidden(value)))?;
    }
    if let Some((path, content)) = &launch.file {
        output::line(&hidden(&format!("{path}: {content}")))?;
    }
    output::line(&hidden(&format!("{} {}", launch.program, launch.arguments.join(" "))))?;
    Ok(())
}

/// The server's models, at least one, each with its context in tokens.
fn models(url: &str, key: &str) -> Result<Vec<(String, u64)>> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .http_status_as_error(false)
        .build()
        .into();
    let hint = "start one: wels serve MODEL; its key is WELS_API_KEY or --key";
    let mut response = agent
        .get(format!("{url}/v1/models"))
        .header("Authorization", format!("Bearer {key}"))
        .call()
        .map_err(|error| refuse(format!("no server answers at {url}: {error}"), hint))?;
    if response.status() == 401 {
        return Err(refuse("the server does not know this key", hint));
    }
    let text = response.body_mut().read_to_string()?;
    let list: Value = serde_json::from_str(&text).with_context(|| format!("{url} is no server of models"))?;
    let entry =
        |model: &Value| Some((model["id"].as_str()?.to_owned(), model["context_length"].as_u64().unwrap_or(8192)));
    let models: Vec<_> = list["data"].as_array().into_iter().flatten().filter_map(entry).collect();
    if models.is_empty() {
        bail!("{url} names no models");
    }
    Ok(models)
}

/// `folder` is the agent's for as long as it runs.
fn settings(agent: AgentKind, url: &str, key: &str, model: &str, context: u64, folder: &str) -> Launch {
    let v1 = format!("{url}/v1");
    match agent {
        AgentKind::Codex => codex(&v1, key, model, context),
        AgentKind::Claude => claude(url, key, model, context),
        AgentKind::Opencode => opencode(&v1, key, model, context),
        AgentKind::Aider => aider(v1, key, model, context, folder),
        AgentKind::Cline => cline(&v1, key, model, folder),
        AgentKind::Pi => pi(&v1, key, model, context, folder),
        AgentKind::Continue => continue_(&v1, key, model, context, folder),
    }
}

/// What it knows of models comes from a file and not from the network.
fn aider(v1: String, key: &str, model: &str, context: u64, folder: &str) -> Launch {
    let name = format!("openai/{model}");
    let known = json!({&name: {
        "max_tokens": context / 4, "max_input_tokens": context, "max_output_tokens": context / 4, "mode": "chat",
        "litellm_provider": "openai", "input_cost_per_token": 0, "output_cost_per_token": 0,
    }});
    Launch {
        program: "aider",
        install: "pip install aider-chat",
        environment: vec![
            ("OPENAI_API_BASE", v1),
            ("OPENAI_API_KEY", key.to_owned()),
            ("LITELLM_LOCAL_MODEL_COST_MAP", "True".to_owned()),
        ],
        file: Some(("models.json", known)),
        arguments: words(&["--model", &name, "--model-metadata-file", &format!("{folder}/models.json")]),
    }
}

fn cline(v1: &str, key: &str, model: &str, folder: &str) -> Launch {
    let provider = "openai-compatible";
    let settings = json!({"provider": provider, "apiKey": key, "model": model, "baseUrl": v1});
    let entry = json!({"settings": settings, "updatedAt": "1970-01-01T00:00:00.000Z", "tokenSource": "manual"});
    let providers = json!({"version": 1, "lastUsedProvider": provider, "modes": {}, "providers": {provider: entry}});
    Launch {
        program: "cline",
        install: "npm install -g cline",
        environment: Vec::new(),
        file: Some(("settings/providers.json", providers)),
        arguments: words(&["--data-dir", folder, "--provider", provider, "--model", model]),
    }
}

fn pi(v1: &str, key: &str, model: &str, context: u64, folder: &str) -> Launch {
    let entry = json!({"id": model, "contextWindow": context, "maxTokens": context / 4});
    let provider = json!({"baseUrl": v1, "api": "openai-completions", "apiKey": key, "models": [entry]});
    Launch {
        program: "pi",
        install: "npm install -g @mariozechner/pi-coding-agent",
        environment: vec![("PI_CODING_AGENT_DIR", folder.to_owned())],
        file: Some(("models.json", json!({"providers": {"wels": provider}}))),
        arguments: words(&["--provider", "wels", "--model", model]),
    }
}

fn continue_(v1: &str, key: &str, model: &str, context: u64, folder: &str) -> Launch {
    let limits = json!({"contextLength": context, "maxTokens": context / 4});
    let entry = json!({
        "name": model, "provider": "openai", "model": model, "apiBase": v1, "apiKey": key,
        "roles": ["chat", "edit", "apply"], "capabilities": ["tool_use"], "defaultCompletionOptions": limits,
    });
    Launch {
        program: "cn",
        install: "npm install -g @continuedev/cli",
        environment: vec![("CONTINUE_TELEMETRY_ENABLED", "0".to_owned())],
        // JSON is YAML.
        file: Some(("config.yaml", json!({"name": "Wels", "version": "1.0.0", "schema": "v1", "models": [entry]}))),
        arguments: words(&["--config", &format!("{folder}/config.yaml")]),
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn codex(v1: &str, key: &str, model: &str, context: u64) -> Launch {
    let provider = format!("{{name=\"Wels\",base_url=\"{v1}\",env_key=\"WELS_API_KEY\",wire_api=\"responses\"}}");
    let settings = [
        "model_provider=\"wels\"".to_owned(),
        format!("model_providers.wels={provider}"),
        format!("model_context_window={context}"),
    ];
    let mut arguments = vec!["--model".to_owned(), model.to_owned()];
    arguments.extend(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
    Launch {
        program: "codex",
        install: "npm install -g @openai/codex",
        environment: vec![("WELS_API_KEY", key.to_owned())],
        file: None,
        arguments,
    }
}

/// All models that the agent would choose between are this one.
fn claude(url: &str, key: &str, model: &str, context: u64) -> Launch {
    let names = [
        "ANTHROPIC_MODEL",
        "ANTHROPIC_DEFAULT_OPUS_MODEL",
        "ANTHROPIC_DEFAULT_SONNET_MODEL",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL",
        "CLAUDE_CODE_SUBAGENT_MODEL",
    ];
    let mut environment = vec![
        ("ANTHROPIC_BASE_URL", url.to_owned()),
        ("ANTHROPIC_AUTH_TOKEN", key.to_owned()),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".to_owned()),
        ("CLAUDE_CODE_MAX_CONTEXT_TOKENS", context.to_string()),
    ];
    environment.extend(names.map(|name| (name, model.to_owned())));
    Launch {
        program: "claude",
        install: "npm install -g @anthropic-ai/claude-code",
        environment,
        file: None,
        arguments: Vec::new(),
    }
}

fn opencode(v1: &str, key: &str, model: &str, context: u64) -> Launch {
    let limit = json!({"context": context, "output": context / 4});
    let config = json!({
        "$schema": "https://opencode.ai/config.json",
        "model": format!("wels/{model}"), "small_model": format!("wels/{model}"),
        "provider": {"wels": {
            "npm": "@ai-sdk/openai-compatible", "name": "Wels",
            "options": {"baseURL": v1, "apiKey": key},
            "models": {model: {"name": model, "limit": limit}},
        }},
    });
    Launch {
        program: "opencode",
        install: "npm install -g opencode-ai",
        environment: vec![("OPENCODE_CONFIG_CONTENT", config.to_string())],
        file: None,
        arguments: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn each_agent_is_told_where_the_server_is() {
        for agent in AgentKind::value_variants() {
            let agent = *agent;
            let launch = settings(agent, "http://host:1", "secret", "m", 4096, "/folder");
            let all = format!("{:?} {:?} {:?}", launch.environment, launch.file, launch.arguments);
            for part in ["http://host:1", "secret", "m"] {
                assert!(all.contains(part), "{agent:?}: {part}");
            }
            assert!(!launch.arguments.concat().contains("secret"), "{agent:?}: arguments can be read by everybody");
        }
    }
}
