//! `wels launch AGENT -- …`: starts a coding agent that talks to a server of Wels, with its settings in the environment
//! or in its arguments. Nothing of the agent's own configuration is written to.

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
}

/// What is started.
struct Launch {
    program: &'static str,
    /// How to get it.
    install: &'static str,
    environment: Vec<(&'static str, String)>,
    /// Arguments of a first start, which sets up.
    before: Option<Vec<String>>,
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
    if let Some(before) = &launch.before {
        let status = run(&launch, before)?;
        if !status.success() {
            bail!("{} did not take its settings", launch.program);
        }
    }
    let status = run(&launch, &launch.arguments)?;
    drop(folder);
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => bail!("{} was ended by a signal", launch.program),
    }
}

fn run(launch: &Launch, arguments: &[String]) -> Result<ExitStatus> {
    let mut command = Command::new(launch.program);
    command.args(arguments).envs(launch.environment.iter().map(|(name, value)| (name, value)));
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
    for arguments in launch.before.iter().chain([&launch.arguments]) {
        output::line(&hidden(&format!("{} {}", launch.program, arguments.join(" "))))?;
    }
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
        AgentKind::Claude => claude(url, key, model),
        AgentKind::Opencode => opencode(&v1, key, model, context),
        AgentKind::Aider => Launch {
            program: "aider",
            install: "pip install aider-chat",
            environment: vec![("OPENAI_API_BASE", v1), ("OPENAI_API_KEY", key.to_owned())],
            before: None,
            arguments: vec!["--model".to_owned(), format!("openai/{model}")],
        },
        AgentKind::Cline => Launch {
            program: "cline",
            install: "npm install -g cline",
            environment: Vec::new(),
            before: Some(words(&[
                "auth",
                "--provider",
                "openai",
                "--apikey",
                key,
                "--modelid",
                model,
                "--baseurl",
                &v1,
                "--data-dir",
                folder,
            ])),
            arguments: words(&["--data-dir", folder, "--provider", "openai", "--model", model]),
        },
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
        before: None,
        arguments,
    }
}

/// All models that the agent would choose between are this one.
fn claude(url: &str, key: &str, model: &str) -> Launch {
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
    ];
    environment.extend(names.map(|name| (name, model.to_owned())));
    Launch {
        program: "claude",
        install: "npm install -g @anthropic-ai/claude-code",
        environment,
        before: None,
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
        before: None,
        arguments: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_agent_is_told_where_the_server_is() {
        for agent in [AgentKind::Codex, AgentKind::Claude, AgentKind::Opencode, AgentKind::Aider, AgentKind::Cline] {
            let launch = settings(agent, "http://host:1", "secret", "m", 4096, "/folder");
            let all = format!("{:?} {:?} {:?}", launch.environment, launch.before, launch.arguments);
            for part in ["http://host:1", "secret", "m"] {
                assert!(all.contains(part), "{agent:?}: {part}");
            }
        }
        let codex = settings(AgentKind::Codex, "http://host:1", "secret", "m", 4096, "/folder");
        assert!(!codex.arguments.concat().contains("secret"), "arguments can be read by everybody");
    }
}
