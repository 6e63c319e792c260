//! The tools that the command line gives a model.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use wels_agent::mcp::{self, ServerSpec, Timeouts};
use wels_agent::python::Python;
use wels_agent::{Agent, Toolbox, files};
use wels_pipeline::refusal::refuse;

/// What the command line says of tools.
#[derive(clap::Args)]
#[command(next_help_heading = "Tools")]
pub struct ToolArgs {
    /// Let the model list, read and search the files of a folder
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// With --files: write and edit them, too
    #[arg(long, requires = "files")]
    write: bool,
    /// Let the model run Python in a jail: no network, no files of yours, 10 s, 1 GiB
    #[arg(long)]
    python: bool,
    /// Take the tools of an MCP server, which is started or is at a URL; may be given several times
    #[arg(long, value_name = "COMMAND|URL")]
    mcp: Vec<String>,
    /// Take the servers of a file, {"mcpServers": {"NAME": {"command": …, "args": […]} or {"url": …}}}
    #[arg(long, value_name = "FILE")]
    mcp_config: Vec<PathBuf>,
    /// Do not ask before calls of this tool, or of `all`; may be given several times
    #[arg(long, value_name = "TOOL")]
    allow: Vec<String>,
    /// Seconds that a call of an MCP server may take, and its start
    #[arg(long, value_name = "S")]
    tool_timeout: Option<f64>,
    /// The first answer to each question has to call a tool: for models that do not by themselves
    #[arg(long)]
    pub must_call: bool,
}

impl ToolArgs {
    /// Whether any tool was asked for.
    pub fn wants_any(&self) -> bool {
        self.files.is_some() || self.python || !self.mcp.is_empty() || !self.mcp_config.is_empty()
    }

    /// Makes the tools ready. What cannot be had is said with `note`, and left out; what is wrong on the command line
    /// is an error.
    pub fn agent(&self, note: &mut dyn FnMut(&str)) -> Result<Agent> {
        let mut tools = Toolbox::default();
        if let Some(folder) = &self.files {
            let opened = files::tools(folder, self.write);
            tools.add("files", opened.with_context(|| format!("cannot open the folder {}", folder.display()))?);
        }
        if self.python {
            let program = std::env::current_exe().context("cannot find this program")?;
            match Python::new(program, Python::default_limits()) {
                Ok(python) => tools.add("wels", vec![Box::new(python)]),
                Err(error) => note(&format!("there is no tool python: {error}")),
            }
        }
        self.add_servers(&mut tools, note)?;
        Agent::new(tools, &self.allow).map_err(|unknown| {
            let hint = "--allow takes the name of a tool, or `all`; /tools lists them";
            refuse(format!("there is no tool {unknown} to allow"), hint)
        })
    }

    fn add_servers(&self, tools: &mut Toolbox, note: &mut dyn FnMut(&str)) -> Result<()> {
        let timeouts = self.timeouts()?;
        let mut specs = Vec::new();
        for line in &self.mcp {
            let hint = "--mcp \"npx -y @modelcontextprotocol/server-filesystem DIR\"";
            specs.push(ServerSpec::of_command(line).map_err(|error| refuse(error.to_string(), hint))?);
        }
        for file in &self.mcp_config {
            let hint = "{\"mcpServers\": {\"time\": {\"command\": \"uvx\", \"args\": [\"mcp-server-time\"]}}}";
            specs.extend(ServerSpec::of_file(file).map_err(|error| refuse(error.to_string(), hint))?);
        }
        for spec in &specs {
            match mcp::start(spec, timeouts, &|| false) {
                Ok(started) => {
                    for left_out in &started.left_out {
                        note(&format!("a tool of {} is left out: {left_out}", started.name));
                    }
                    tools.add(&started.name, started.tools);
                }
                Err(error) => note(&error.to_string()),
            }
        }
        Ok(())
    }

    fn timeouts(&self) -> Result<Timeouts> {
        let Some(seconds) = self.tool_timeout else { return Ok(Timeouts::default()) };
        let all = Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero());
        let all = all.ok_or_else(|| refuse(format!("--tool-timeout {seconds} is no time"), "give seconds, as 30"))?;
        Ok(Timeouts { start: all, call: all })
    }
}
