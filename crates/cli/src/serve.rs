//! `wels serve MODEL… [--listen ADDR] [--db URL] …`: the HTTP API and the web chat. Started by `mpirun` or `srun`, each
//! process is a rank that has a part of the model (`ranks.rs`).

mod adapters;
mod models;

mod ranks;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use wels_pipeline::refusal::refuse;
use wels_server::http::{App, Cors, ImageHosts, Settings, Shutdown, Tls, serve as serve_http};
use wels_server::keys::Secret;
use wels_server::ledger::{Ledger, LedgerHandle, Limits};
use wels_server::money::PriceList;

use crate::over::Over;
use crate::{keys, output};
use models::{ModelArgs, Opening};

/// The key as which requests without one are served.
const LOCAL: &str = "local";

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    models: ModelArgs,
    /// Where to listen. Other machines reach it only at an address of theirs, such as 0.0.0.0:8080
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Serve requests without a key, as the key `local`. Only where nothing but this machine reaches the server
    #[arg(long, conflicts_with = "cors")]
    no_key: bool,
    /// An origin of web pages that may call, such as `https://app.example`, or `*`; can be given several times
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
    /// A host from which pictures are fetched that clients give the address of, such as `images.example`, or
    /// `*.images.example` for all below it; can be given several times. Never one in a private network
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    image_hosts: Vec<String>,
    /// Speak HTTPS, with the chain of certificates in this file (PEM). It is read again when it changes, and at SIGHUP
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    #[command(flatten)]
    db: keys::Db,
    /// A TOML file with prices, as docs/serving.md shows it; all is free without one
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Connections at once
    #[arg(long, value_name = "N", default_value = "1024")]
    max_connections: NonZeroUsize,
    /// Seconds that a step of the engine may take before /health fails
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    stuck_after: u64,
    /// Seconds for requests under way, after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    drain: u64,
    /// Ranks that have the model together, as threads of this process: to try what docs/serving-ranks.md says of
    /// processes on several machines. Changes no byte of an answer
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN)]
    ranks: NonZeroUsize,
    /// What is logged to stderr: error, warn, info (with a line for each request that has ended), debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: tracing::Level,
    /// In which form
    #[arg(long, value_enum, value_name = "FORM", default_value = "text")]
    log_format: LogFormat,
}

/// Forms of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// Serves until a signal ends it.
pub fn serve(args: &Args) -> Result<ExitCode> {
    ranks::serve(args)
}

/// Serves in this process; over several ranks as the first of them, whose others follow.
fn here(args: &Args, over: Option<&'static Over>) -> Result<()> {
    start_log(args.log, args.log_format);
    let prices = price_list(args.prices.as_deref())?;
    let settings = settings(args)?;
    // What can fail fast comes before the weights.
    let url = args.db.url()?;
    let (mut ledger, recovered) = Ledger::serve(&url, keys::now_unix_ms())?;
    if recovered > 0 {
        eprintln!("note: {recovered} requests of a server that ended early were settled");
    }
    let listener = std::net::TcpListener::bind(args.listen).map_err(|error| {
        let hint = "give another address with --listen; port 0 is any free one, and those below 1024 need privileges";
        refuse(format!("cannot listen on {}: {error}", args.listen), hint)
    })?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let Opening { models, loader, bases } = args.models.open(&prices, over)?;
    let source = args.models.adapters.source(bases)?;
    let adapters = args.models.adapters.load(&source)?;
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let greeted = greeted(&mut ledger, args.no_key)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1) // the cores belong to the kernels
        .max_blocking_threads(4)
        .enable_all()
        .build()?;
    let (ledger, ledger_thread) = LedgerHandle::start(ledger)?;
    let app = App::new(models, loader, ledger, settings);
    for (name, model, adapter) in adapters {
        let tariff = prices.of(std::slice::from_ref(&name)).clone();
        let cannot = |message| refuse(message, "give each adapter another name: --adapter NAME=DIR");
        app.serve_adapter(model, &name, adapter, tariff).map_err(cannot)?;
    }
    if args.models.adapters.loads_later() {
        app.load_adapters_from(Arc::new(source));
    }
    runtime.block_on(async {
        let shutdown = Shutdown::default();
        shutdown.on_signals()?;
        if let Some(over) = over {
            tokio::spawn(ranks::end_when_lost(over, shutdown.clone()));
        }
        let listener = tokio::net::TcpListener::from_std(listener)?;
        greet(scheme, address, &greeted)?;
        serve_http(listener, app, shutdown).await;
        anyhow::Ok(())
    })?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(ledger_thread); // everything is written; the thread ends with the process
    match over {
        Some(over) => ranks::end(over),
        None => Ok(()),
    }
}

fn start_log(level: tracing::Level, format: LogFormat) {
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_max_level(level);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// `first`, or with a number behind it if a revoked key has that name.
fn free_name(ledger: &mut Ledger) -> Result<String> {
    let keys = ledger.keys()?;
    let mut names = (1..).map(|n| if n == 1 { "first".to_owned() } else { format!("first {n}") });
    Ok(names.find(|name| keys.iter().all(|key| key.name != *name)).expect("numbers do not end"))
}

/// What the one who starts the server is told of keys.
enum Greeted {
    /// There are some.
    Keys,
    /// There was none, and this one was made.
    First(Secret),
    /// None is needed.
    NoKey,
}

fn greeted(ledger: &mut Ledger, no_key: bool) -> Result<Greeted> {
    let now = keys::now_unix_ms();
    if no_key {
        match ledger.find_named(LOCAL)? {
            None => drop(ledger.add_admin_key(LOCAL, &Limits::default(), now)?),
            Some(key) if key.revoked_unix_ms.is_some() => {
                let hint = "leave --no-key out, or give another ledger with --db";
                return Err(refuse(format!("the key `{LOCAL}`, as which --no-key serves, is revoked"), hint));
            }
            Some(_) => {}
        }
        return Ok(Greeted::NoKey);
    }
    if ledger.keys()?.iter().any(|key| key.revoked_unix_ms.is_none()) {
        return Ok(Greeted::Keys);
    }
    let name = free_name(ledger)?;
    Ok(Greeted::First(ledger.add_key(&name, &Limits::default(), now)?))
}

fn greet(scheme: &str, address: SocketAddr, greeted: &Greeted) -> std::io::Result<()> {
    let base = format!("{scheme}://{address}");
    output::line(&format!("API   {base}/v1"))?;
    match greeted {
        Greeted::First(key) => {
            let key = key.reveal();
            output::line(&format!("key   {key}   (shown this once; more with `wels keys add NAME`)"))?;
            output::line(&format!("chat  {base}/#key={key}"))
        }
        Greeted::Keys => output::line(&format!("chat  {base}/")),
        Greeted::NoKey => {
            output::line("key   none is needed, and any will do")?;
            output::line(&format!("chat  {base}/#key=none"))
        }
    }
}

fn settings(args: &Args) -> Result<Settings> {
    if args.no_key && !args.listen.ip().is_loopback() {
        let message = format!("without keys, everybody who reaches {} could use the server", args.listen);
        return Err(refuse(message, "listen at 127.0.0.1 or [::1], or leave --no-key out"));
    }
    let no_origin = |wrong| {
        let hint = "an origin is a scheme and a host, such as https://app.example or http://localhost:3000, or `*`";
        refuse(format!("`{wrong}` is no origin of web pages"), hint)
    };
    let no_host = |wrong| {
        let hint = "a host is a name such as images.example, *.images.example, or one with a port, images.example:8443";
        refuse(format!("`{wrong}` is no host that pictures could be fetched from"), hint)
    };
    let tls = match args.tls_cert.as_deref().zip(args.tls_key.as_deref()) {
        Some((certificate, key)) => Some(Tls::load(certificate, key)?),
        None => None,
    };
    Ok(Settings {
        tls,
        without_key: args.no_key.then(|| LOCAL.to_owned()),
        cors: Cors::new(&args.cors).map_err(no_origin)?,
        image_hosts: Arc::new(ImageHosts::new(&args.image_hosts).map_err(no_host)?),
        connections_max: args.max_connections.get(),
        stuck_after: Duration::from_secs(args.stuck_after),
        drain: Duration::from_secs(args.drain),
        ..Settings::default()
    })
}

fn price_list(file: Option<&Path>) -> Result<PriceList> {
    let Some(file) = file else { return Ok(PriceList::default()) };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let hint = "for example: peak = { hit = \"0.07\", miss = \"0.27\", output = \"1.10\" }";
    PriceList::from_toml(&text).map_err(|message| refuse(format!("{}: {message}", file.display()), hint))
}
