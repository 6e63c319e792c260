//! One server: its process or its address, its tools, its calls.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rmcp::model::{
    CallToolRequestParams, ClientCapabilities, ClientConfig, Implementation, PaginatedRequestParams, Tool as Listed,
};
use rmcp::service::{ClientInitializeError, RunningService, ServiceError, serve_client};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{Peer, RoleClient};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};
use tokio::runtime::Runtime;

use super::http::{self, Http};
use super::{McpError, Place, Program, ServerSpec, Timeouts, said, text};
use crate::tool::{Definition, Effect, Outcome, Stop, Tool, shortened};

/// Tools of one server. Each costs the prompt some hundred tokens.
const TOOLS_MAX: usize = 128;
const PAGES_MAX: usize = 64;
/// Bytes of a tool's schema, and of its description.
const SCHEMA_BYTES_MAX: usize = 32 << 10;
const DESCRIPTION_BYTES_MAX: usize = 4 << 10;
/// Bytes of standard error that are kept.
const STDERR_BYTES: usize = 600;
/// Between two looks at whether the user wants a call to end.
const POLL: Duration = Duration::from_millis(50);
/// From the end of its standard input until a server is killed.
const LEAVE: Duration = Duration::from_millis(500);

/// A server that runs.
pub struct Started {
    pub name: String,
    pub tools: Vec<Box<dyn Tool>>,
    /// Tools that it has and that are left out, with the reason.
    pub left_out: Vec<String>,
}

/// Starts a server, or goes to it, and asks which tools it has. It ends with the last of them.
///
/// # Errors
/// [`McpError`], and nothing is left running.
pub fn start(spec: &ServerSpec, timeouts: Timeouts, stop: Stop) -> Result<Started, McpError> {
    let failed = |reason: String, stderr: String| McpError::Failed { server: spec.name.clone(), reason, stderr };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| failed(format!("has no thread: {error}"), String::new()))?;
    let mut process = match &spec.place {
        Place::Process(program) => Some(Process::spawn(&runtime, &spec.name, program)?),
        Place::Url { .. } => None,
    };
    let connect = async {
        let service = connect(spec, process.as_mut()).await.map_err(|error| format!("does not speak MCP: {error}"))?;
        let tools = list(&service).await?;
        Ok::<_, String>((service, tools))
    };
    let waited = runtime.block_on(within(connect, timeouts.start, stop));
    let late = |waited| match waited {
        Waited::Done(result) => result,
        Waited::Late => Err(format!("did not say within {} s which tools it has", timeouts.start.as_secs_f32())),
        Waited::Stopped => Err("was not waited for any longer".to_owned()),
    };
    let (service, tools) = match late(waited) {
        Ok(connected) => connected,
        Err(reason) => {
            return Err(failed(shortened(&reason, STDERR_BYTES), last_words(process.as_ref())));
        }
    };
    let name = spec.name.clone();
    let connection = Connection { name, runtime, service: Some(service), process, timeout: timeouts.call };
    Ok(connection.with_tools(tools))
}

type Service = RunningService<RoleClient, ClientConfig>;

async fn connect(spec: &ServerSpec, process: Option<&mut Process>) -> Result<Service, ClientInitializeError> {
    match (&spec.place, process) {
        (Place::Url { url, headers }, _) => {
            let config = http::config(url, headers.clone());
            serve_client(client(), StreamableHttpClientTransport::with_client(Http::new(), config)).await
        }
        (Place::Process(_), process) => {
            let child = &mut process.expect("it has been started").child;
            let pipes = child.stdout.take().zip(child.stdin.take()).expect("both are pipes");
            serve_client(client(), pipes).await
        }
    }
}

/// What a process wrote to its standard error before it failed.
fn last_words(process: Option<&Process>) -> String {
    process.map_or_else(String::new, |process| {
        std::thread::sleep(POLL); // it may still be on its way
        process.stderr()
    })
}

fn client() -> ClientConfig {
    ClientConfig::new(ClientCapabilities::default(), Implementation::new("wels", env!("CARGO_PKG_VERSION")))
}

/// All pages of the list of tools.
async fn list(peer: &Peer<RoleClient>) -> Result<Vec<Listed>, String> {
    let (mut tools, mut cursor) = (Vec::new(), None);
    for _ in 0..PAGES_MAX {
        let page = peer.list_tools(Some(PaginatedRequestParams::default().with_cursor(cursor))).await;
        let page = page.map_err(|error| format!("does not list its tools: {error}"))?;
        tools.extend(page.tools);
        if tools.len() > TOOLS_MAX {
            return Err(format!(
                "lists {} tools or more, and {TOOLS_MAX} are taken at most: a prompt would not hold them",
                tools.len()
            ));
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(tools);
        }
    }
    Err(format!("lists its tools on more than {PAGES_MAX} pages"))
}

enum Waited<T> {
    Done(T),
    Late,
    Stopped,
}

/// Waits no longer than allowed, and not once the user wants no more.
async fn within<T>(work: impl Future<Output = T>, timeout: Duration, stop: Stop<'_>) -> Waited<T> {
    let deadline = Instant::now() + timeout;
    let mut work = std::pin::pin!(work);
    loop {
        if let Ok(done) = tokio::time::timeout(POLL, &mut work).await {
            return Waited::Done(done);
        }
        if stop() {
            return Waited::Stopped;
        }
        if Instant::now() >= deadline {
            return Waited::Late;
        }
    }
}

/// A child process in a group of its own, so that Ctrl-C is not its business, and nothing of it is left.
struct Process {
    child: Child,
    stderr: Arc<Mutex<Vec<u8>>>,
}

impl Process {
    fn spawn(runtime: &Runtime, server: &str, program: &Program) -> Result<Process, McpError> {
        let mut command = Command::new(&program.command);
        command.args(&program.args).envs(&program.env).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(folder) = &program.folder {
            command.current_dir(folder);
        }
        #[cfg(unix)]
        command.process_group(0);
        let _entered = runtime.enter();
        let mut child = command.spawn().map_err(|source| McpError::Spawn {
            server: server.to_owned(),
            command: program.command.clone(),
            source,
        })?;
        let stderr = Arc::new(Mutex::new(Vec::new()));
        if let Some(pipe) = child.stderr.take() {
            runtime.spawn(keep_end(pipe, Arc::clone(&stderr)));
        }
        Ok(Process { child, stderr })
    }

    /// The end of what it wrote, in one line.
    fn stderr(&self) -> String {
        let bytes = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<&str>>().join(" ")
    }
}

async fn keep_end(mut pipe: ChildStderr, kept: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&buffer[..read]);
        let excess = kept.len().saturating_sub(STDERR_BYTES);
        kept.drain(..excess);
    }
}

impl Drop for Process {
    /// With all that it has started.
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(pid) = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)) {
            use rustix::process::{Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
            // It is not yet waited for, so that its number, and the group's, is still its own.
            let ended = || {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
                !matches!(waitid(WaitId::Pid(pid), options), Ok(None))
            };
            let deadline = Instant::now() + LEAVE;
            while !ended() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.start_kill();
    }
}

/// What the tools of a server share.
struct Connection {
    name: String,
    runtime: Runtime,
    /// Dropped first, which closes the server's standard input.
    service: Option<Service>,
    process: Option<Process>,
    timeout: Duration,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(mut service) = self.service.take() {
            let _ = self.runtime.block_on(service.close_with_timeout(LEAVE));
        }
    }
}

impl Connection {
    fn with_tools(self, listed: Vec<Listed>) -> Started {
        let (name, connection) = (self.name.clone(), Arc::new(self));
        let (mut tools, mut left_out): (Vec<Box<dyn Tool>>, _) = (Vec::new(), Vec::new());
        for tool in listed {
            match definition(&tool) {
                Ok(definition) => {
                    let (own, connection) = (tool.name.into_owned(), Arc::clone(&connection));
                    tools.push(Box::new(ServerTool { connection, own, definition }));
                }
                Err(reason) => left_out.push(format!("{}: {reason}", tool.name)),
            }
        }
        Started { name, tools, left_out }
    }

    fn call(&self, name: &str, arguments: &Value, stop: Stop) -> Outcome {
        let arguments = arguments.as_object().cloned().unwrap_or_default();
        let params = CallToolRequestParams::new(name.to_owned()).with_arguments(arguments);
        let Some(service) = &self.service else { return Outcome::failed("the server has ended") };
        // Dropping the call tells the server that nobody waits for it.
        match self.runtime.block_on(within(service.call_tool(params), self.timeout, stop)) {
            Waited::Done(Ok(result)) => text::outcome(result),
            Waited::Done(Err(error)) => Outcome::failed(self.why(&error)),
            Waited::Stopped => Outcome::failed("stopped by the user"),
            Waited::Late => Outcome::failed(format!(
                "the MCP server {} did not answer within {} s",
                self.name,
                self.timeout.as_secs_f32()
            )),
        }
    }

    fn why(&self, error: &ServiceError) -> String {
        let name = &self.name;
        match error {
            ServiceError::McpError(error) => format!("the MCP server {name} refused the call: {}", error.message),
            ServiceError::UnexpectedResponse => format!("the MCP server {name} answered what is no result of a call"),
            ServiceError::TransportClosed | ServiceError::TransportSend(_) | ServiceError::Cancelled { .. } => {
                let has_ended = if self.process.is_some() { "has ended" } else { "cannot be reached" };
                format!("the MCP server {name} {has_ended}{}", said(&last_words(self.process.as_ref())))
            }
            error => format!("the MCP server {name}: {error}"),
        }
    }
}

/// What the model is told of a server's tool.
fn definition(tool: &Listed) -> Result<Definition, String> {
    let mut schema = (*tool.input_schema).clone();
    if *schema.entry("type").or_insert("object".into()) != "object" {
        return Err("its arguments are no object".to_owned());
    }
    let parameters = Value::Object(schema);
    let bytes = parameters.to_string().len();
    if bytes > SCHEMA_BYTES_MAX {
        return Err(format!("its schema has {bytes} bytes, more than {SCHEMA_BYTES_MAX}"));
    }
    let description = tool.description.as_deref().or(tool.title.as_deref()).unwrap_or_default();
    let description = shortened(description, DESCRIPTION_BYTES_MAX);
    Ok(Definition { name: tool.name.to_string(), description, parameters })
}

struct ServerTool {
    connection: Arc<Connection>,
    /// As the server names it.
    own: String,
    definition: Definition,
}

impl Tool for ServerTool {
    fn definition(&self) -> Definition {
        self.definition.clone()
    }

    fn effect(&self) -> Effect {
        Effect::Acts
    }

    fn call(&mut self, arguments: &Value, stop: Stop) -> Outcome {
        self.connection.call(&self.own, arguments, stop)
    }
}
