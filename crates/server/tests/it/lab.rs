//! A server with a tiny model of random weights, and a client that reads bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use wels_data::chat::{DEEPSEEK_R1, DEEPSEEK_V3};
use wels_data::tokenizer::{BpeTrainer, SpecialTokens};
use wels_data::{ChatTemplate, Tokenizer};
use wels_engine::{Engine, LoadedModel, Options};
use wels_model::config::{Attention, Family, Gating, ModelConfig, RopeConfig, RopeLayout, RopeScaling};
use wels_model::model::Model;
use wels_model::params::Params;
use wels_server::http::{App, Settings, Shutdown, serve};
use wels_server::ledger::{Entry, Ledger, LedgerHandle, Limits};
use wels_server::loader::{Loadable, Loader, LoaderSettings};
use wels_server::money::PriceList;
use wels_server::prompt::ServedModel;
use wels_server::worker::{Backend, Worker};

use crate::images::{JANUS, served_pictures};

pub const CONTEXT: usize = 2048;
/// What the loader calls the model of a server with one.
const ONLY: &str = "tiny";
/// Of the weights.
const SEED: u64 = 3;

/// How a lab's server is set up.
pub struct Setup {
    pub names: &'static [&'static str],
    pub template: &'static str,
    /// Tokens of prompt and answer; an answer may have an eighth of them.
    pub context: usize,
    pub options: Options,
    pub settings: Settings,
    pub tariff: &'static str,
    pub limits: Limits,
}

impl Default for Setup {
    fn default() -> Setup {
        let tariff = "peak = { hit = \"0.07\", miss = \"0.27\", output = \"1.10\" }";
        let options = Options { cache_bytes: 16 << 20, ..Options::default() };
        let (settings, limits) = (Settings::default(), Limits::default());
        Setup { names: &["tiny"], template: DEEPSEEK_V3, context: CONTEXT, options, settings, tariff, limits }
    }
}

impl Setup {
    /// With a template whose answers begin by thinking.
    pub fn thinking() -> Setup {
        Setup { template: DEEPSEEK_R1, ..Setup::default() }
    }

    pub fn start(self) -> Lab {
        self.start_with_weights(SEED)
    }

    /// With weights of a seed.
    pub fn start_with_weights(self, seed: u64) -> Lab {
        let loaded = tiny_of(seed);
        let engine = Engine::new(loaded.clone(), self.options.clone()).unwrap();
        self.start_with(engine, loaded.tokenizer.unwrap())
    }

    pub fn start_with(self, backend: impl Backend, tokenizer: Arc<Tokenizer>) -> Lab {
        let loaded = Some(Worker::start(backend).unwrap());
        let load = Box::new(|| Err("it is loaded".to_owned()));
        let model = Loadable { name: ONLY.to_owned(), bytes: 0, loaded, load };
        self.start_loader(
            vec![(model, tokenizer)],
            LoaderSettings { memory_bytes: 0, unload_after: None, waiting_max: 64 },
        )
    }

    /// With these models.
    pub fn start_loader(self, models: Vec<(Loadable, Arc<Tokenizer>)>, settings: LoaderSettings) -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let url = folder.path().join("ledger.db").to_str().unwrap().to_owned();
        let (mut ledger, _) = Ledger::serve(&url, 0).unwrap();
        let key = ledger.add_key("test", &self.limits, 0).unwrap().reveal().to_owned();
        let prices = PriceList::from_toml(self.tariff).unwrap();
        let offer = |(model, tokenizer): (Loadable, Arc<Tokenizer>)| {
            let served = self.served(&model.name, tokenizer);
            let tariff = prices.of(&served.names).clone();
            ((served, tariff), model)
        };
        let (models, loadables): (Vec<_>, Vec<_>) = models.into_iter().map(offer).unzip();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (ledger, _) = LedgerHandle::start(ledger).unwrap();
        let app = App::new(models, Loader::start(loadables, settings).unwrap(), ledger, self.settings);
        let shutdown = Shutdown::default();
        let server = runtime.spawn(serve(listener, app, shutdown.clone()));
        Lab { address, key, url, shutdown, server: Some(server), runtime, _folder: folder }
    }

    fn served(&self, name: &str, tokenizer: Arc<Tokenizer>) -> ServedModel {
        let names = if name == ONLY { self.names } else { &[name] };
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let special = tokenizer.special();
        let template = ChatTemplate::new(self.template, &text(special.bos), &text(special.eos)).unwrap();
        let pictures = (name == JANUS).then(|| served_pictures(&tokenizer));
        ServedModel {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            stop_tokens: special.eos.into_iter().collect(),
            tokenizer,
            template: Some(template),
            template_source: self.template.to_owned(),
            pictures,
            context: self.context,
            output_tokens_max: self.context / 8,
            embedding_width: 24,
            fingerprint: "test".to_owned(),
            created_unix_s: 0,
            adapter: None,
        }
    }
}

/// A running server. Dropping it ends it.
pub struct Lab {
    pub address: SocketAddr,
    pub key: String,
    url: String,
    pub shutdown: Shutdown,
    server: Option<tokio::task::JoinHandle<()>>,
    runtime: tokio::runtime::Runtime,
    _folder: TempDir,
}

impl Lab {
    /// The ledger's file.
    pub fn database(&self) -> &str {
        &self.url
    }

    pub fn ledger(&self) -> Ledger {
        Ledger::open(&self.url).unwrap()
    }

    /// The metrics, as a new key reads them that may.
    pub fn metrics(&self) -> String {
        let name = format!("metrics {}", self.ledger().keys().unwrap().len());
        let key = self.ledger().add_admin_key(&name, &Limits::default(), 1).unwrap();
        let response = self.request("GET", "/metrics", key.reveal(), b"");
        assert_eq!(response.status, 200, "{}", response.body);
        response.body
    }

    /// The ledger's rows, once there are some and every request has been settled.
    pub fn settled(&self) -> Vec<Entry> {
        let mut ledger = self.ledger();
        for _ in 0..500 {
            let entries = ledger.entries().unwrap();
            if !entries.is_empty() && entries.iter().all(|entry| entry.outcome.is_some()) {
                let key = &ledger.keys().unwrap()[0];
                let charged: i64 = entries.iter().map(|entry| entry.cost.0).sum();
                assert_eq!((key.spent.0, key.reserved.0), (charged, 0), "the key's account is the sum of its requests");
                return entries;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("requests are open: {:?}", ledger.entries());
    }

    /// Waits until the server has ended.
    pub fn join(&mut self) {
        self.runtime.block_on(self.server.take().unwrap()).unwrap();
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends a request and leaves its response unread.
    pub fn send(&self, method: &str, path: &str, key: &str, body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let _ = stream.write_all(body); // a server that has heard enough may close before it has read all
        stream
    }

    pub fn request(&self, method: &str, path: &str, key: &str, body: &[u8]) -> Response {
        Response::read(self.send(method, path, key, body))
    }

    /// A response as bytes, with its head.
    pub fn bytes(&self, path: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.send("GET", path, "", b"").read_to_end(&mut bytes).unwrap();
        bytes
    }

    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, &self.key, b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.request("POST", path, &self.key, body.to_string().as_bytes())
    }

    /// A chat with some more fields.
    pub fn chat(&self, more: Value) -> Response {
        self.post("/v1/chat/completions", &chat_body(more))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.shutdown.ask();
        self.shutdown.ask();
    }
}

pub fn chat_body(more: Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "a fish"}], "seed": 7});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A response, read to its end.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn read(mut stream: TcpStream) -> Response {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        let body = if chunked { unchunk(body) } else { body.to_owned() };
        Response { status, head: head.to_lowercase(), body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    /// The events of a stream, which must have come to its end.
    pub fn events(&self) -> Vec<Value> {
        assert!(self.body.ends_with("data: [DONE]\n\n"), "the stream broke off: {}", self.body);
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    /// The named parameter of an error.
    pub fn param(&self) -> String {
        self.json()["error"]["param"].as_str().unwrap_or_default().to_owned()
    }
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 || after.len() < size {
            break;
        }
        body += &after[..size];
        rest = after[size..].trim_start_matches("\r\n");
    }
    body
}

/// A model that speaks at random, with a tokenizer of bytes and a few merges.
pub fn tiny() -> LoadedModel {
    tiny_of(SEED)
}

/// The same with other weights.
pub fn tiny_of(seed: u64) -> LoadedModel {
    let mut trainer = BpeTrainer::new(300, SpecialTokens::default()).unwrap();
    trainer.feed(&["the name of the fish: a fish and another fish"; 8]);
    let tokenizer = Arc::new(trainer.train().unwrap());
    let attention = Attention::gqa(4, 2, 6);
    let config = ModelConfig {
        family: Family::Llama,
        hidden_size: 24,
        layers: 2,
        vocab_size: 310,
        norm_eps: 1e-6,
        rope: RopeConfig {
            base: 10000.0,
            scaling: RopeScaling::None,
            layout: RopeLayout::HalfSplit,
            max_positions: CONTEXT,
            local: None,
        },
        indexer: None,
        streams: None,
        window: None,
        softmax_scale: 1.0 / (attention.qk_dim() as f32).sqrt(),
        attention_cap: None,
        logit_cap: None,
        attention,
        dense_intermediate: 40,
        gating: Gating::Silu,
        moe: None,
        mtp_depth: 0,
        tied_head: false,
        bos_id: None,
        eos_ids: vec![],
        pad_id: None,
        init_std: 0.2,
    };
    LoadedModel {
        model: Arc::new(Model::new(config.clone(), CONTEXT)),
        params: Arc::new(Params::init(&wels_cpu::testing::device(), &config, seed)),
        tokenizer: Some(tokenizer),
        janus: None,
    }
}
