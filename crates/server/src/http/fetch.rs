//! Pictures at addresses: fetched from the hosts that the operator has listed, and from no machine in a private
//! network. The addresses that a name leads to are looked at, and those that were are then the ones that are connected
//! to: a name that leads elsewhere a moment later changes nothing. Redirects are not followed, and no proxy is asked.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::Uri;
use tokio::sync::{Semaphore, oneshot};
use ureq::config::Config;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body, Error};

use super::app::App;
use super::fair_queue::{Buffered, Permit};
use crate::wire::{ApiError, NOT_FETCHED, PictureFile, PictureSource};

/// For all pictures of a request to come.
const TIME: Duration = Duration::from_secs(20);
/// Requests at once whose pictures are fetched, each by a thread.
const AT_ONCE: usize = 16;
/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;

/// The hosts that pictures are fetched from.
#[derive(Debug)]
pub struct ImageHosts {
    hosts: Vec<Host>,
    agent: Agent,
    slots: Arc<Semaphore>,
}

/// One, or all below one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Host {
    /// In small letters.
    name: String,
    /// Names that end with a point and `name`, in its place.
    below: bool,
    /// `None`: that of the scheme.
    port: Option<u16>,
}

impl Default for ImageHosts {
    fn default() -> ImageHosts {
        ImageHosts::reaching(Vec::new(), is_public)
    }
}

impl ImageHosts {
    /// From hosts as they are typed: `images.example`, `*.images.example`, either with `:PORT`.
    ///
    /// # Errors
    /// The host that is none.
    pub fn new(hosts: &[String]) -> Result<ImageHosts, String> {
        let host = |typed: &String| Host::read(typed).ok_or_else(|| typed.clone());
        Ok(ImageHosts::reaching(hosts.iter().map(host).collect::<Result<_, _>>()?, is_public))
    }

    /// The same hosts, wherever they lead: for tests, whose servers are on their own machine.
    pub fn everywhere(self) -> ImageHosts {
        ImageHosts::reaching(self.hosts, |_| true)
    }

    fn reaching(hosts: Vec<Host>, may_reach: fn(IpAddr) -> bool) -> ImageHosts {
        let config = Agent::config_builder().http_status_as_error(false).proxy(None).max_idle_connections(0);
        let config = config.max_redirects(0).max_redirects_will_error(false).user_agent("wels").build();
        let resolver = Reaching { inner: DefaultResolver::default(), may_reach };
        let agent = Agent::with_parts(config, DefaultConnector::default(), resolver);
        ImageHosts { hosts, agent, slots: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Whether any of these pictures is at an address.
    ///
    /// # Errors
    /// 400 if one is at an address that is not fetched.
    pub(super) fn check(&self, pictures: &[PictureFile]) -> Result<bool, ApiError> {
        let mut found = false;
        for (picture, address) in pictures.iter().filter_map(|picture| Some((picture, picture.address()?))) {
            self.host(address).map_err(|message| ApiError::param(picture.param.clone(), message))?;
            found = true;
        }
        Ok(found)
    }

    /// The host of an address that may be fetched.
    fn host(&self, address: &str) -> Result<String, String> {
        if self.hosts.is_empty() {
            return Err(NOT_FETCHED.to_owned());
        }
        let uri: Uri = address.parse().map_err(|error| format!("This is no address: {error}."))?;
        let authority = uri.authority().ok_or("This is no address of a picture: it names no host.")?;
        if authority.as_str().contains('@') {
            return Err("An address with a name and a password is not fetched.".to_owned());
        }
        let host = authority.host().to_ascii_lowercase();
        let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = authority.port_u16().unwrap_or(usual);
        match self.hosts.iter().any(|listed| listed.is(&host, port, usual)) {
            true => Ok(host),
            false => Err(format!(
                "`{authority}` is not among the hosts that pictures are fetched from here, which are {}: send the \
                 picture itself, as a data: URL or base64.",
                self.hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(", ")
            )),
        }
    }

    /// The file at an address, of at most `bytes_max` bytes.
    fn fetch(
        &self,
        address: &str,
        until: Instant,
        bytes_max: usize,
        buffered: &mut Buffered,
    ) -> Result<Vec<u8>, Failure> {
        let host = self.host(address)?;
        let left = until.checked_duration_since(Instant::now()).ok_or(Error::Timeout(ureq::Timeout::Global));
        let failed = |error: Error| Failure::Words(in_words(&host, &error));
        let request = self.agent.get(address).config().timeout_global(Some(left.map_err(failed)?)).build();
        let response = request.call().map_err(failed)?;
        match response.status().as_u16() {
            200 => {}
            300..=399 => return Err(format!("`{host}` leads on to another address: give the picture's own.").into()),
            status => return Err(format!("`{host}` answered {status} in the place of a picture.").into()),
        }
        read(response.into_body(), bytes_max, buffered, failed)
    }
}

fn read(
    body: Body,
    bytes_max: usize,
    buffered: &mut Buffered,
    failed: impl Fn(Error) -> Failure,
) -> Result<Vec<u8>, Failure> {
    if body.content_length().is_some_and(|length| length > bytes_max as u64) {
        return Err(Failure::TooLarge);
    }
    let mut reader = body.into_with_config().limit(u64::MAX).reader();
    let (mut bytes, mut piece) = (Vec::new(), vec![0; PIECE]);
    loop {
        let count = reader.read(&mut piece).map_err(|error| failed(error.into()))?;
        if count == 0 {
            return Ok(bytes);
        }
        if bytes.len() + count > bytes_max {
            return Err(Failure::TooLarge);
        }
        buffered.add(count)?;
        bytes.extend_from_slice(&piece[..count]);
    }
}

impl Host {
    fn read(typed: &str) -> Option<Host> {
        let (name, port) = match typed.split_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (typed, None),
        };
        let (name, below) = name.strip_prefix("*.").map_or((name, false), |name| (name, true));
        let is_label =
            |label: &str| !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        name.split('.').all(is_label).then(|| Host { name: name.to_ascii_lowercase(), below, port })
    }

    fn is(&self, host: &str, port: u16, usual: u16) -> bool {
        let named = match self.below {
            true => host.strip_suffix(&self.name).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            false => host == self.name,
        };
        named && port == self.port.unwrap_or(usual)
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let below = if self.below { "*." } else { "" };
        match self.port {
            Some(port) => write!(f, "{below}{}:{port}", self.name),
            None => write!(f, "{below}{}", self.name),
        }
    }
}

/// Looks names up as the system does, and knows of their addresses only those that may be reached.
#[derive(Debug)]
struct Reaching {
    inner: DefaultResolver,
    may_reach: fn(IpAddr) -> bool,
}

impl Resolver for Reaching {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let reachable = found.iter().filter(|address| (self.may_reach)(address.ip()));
        let mut kept = self.empty();
        reachable.for_each(|address: &SocketAddr| kept.push(*address));
        match kept.is_empty() {
            true => Err(Error::Io(std::io::Error::from(ErrorKind::PermissionDenied))),
            false => Ok(kept),
        }
    }
}

/// Whether an address is one of the public internet, after IANA's registries of special-purpose addresses
/// (iana-ipv4-special-registry, iana-ipv6-special-registry; RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => is_public_v4(address),
            None => is_public_v6(address),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = match address.octets() {
        [0 | 10 | 127, ..] => true,                   // this network, private, loopback
        [100, second, ..] => second >> 6 == 1,        // of carriers, 100.64.0.0/10
        [169, 254, ..] => true,                       // link-local, with the metadata of clouds
        [172, second, ..] => second >> 4 == 1,        // private, 172.16.0.0/12
        [192, 0, 0 | 2, _] => true,                   // of protocols, for documentation
        [192, 88, 99, _] => true,                     // relays of 6to4
        [192, 168, ..] => true,                       // private
        [198, 18 | 19, ..] => true,                   // for benchmarks
        [198, 51, 100, _] | [203, 0, 113, _] => true, // for documentation
        [first, ..] => first >= 224,                  // multicast, reserved, broadcast
    };
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        [0x2001, second, ..] if second < 0x200 => false, // of protocols, 2001::/23: Teredo, ORCHID
        [0x2001, 0xdb8, ..] => false,                    // for documentation
        [0x2002, ..] => false,                           // 6to4, which holds an address of IPv4
        [0x3fff, second, ..] if second >> 12 == 0 => false, // for documentation, 3fff::/20
        [first, ..] => first >> 13 == 1,                 // 2000::/3 is all that is public
    }
}

/// Why a picture was not fetched.
enum Failure {
    /// A 400's message.
    Words(String),
    /// With the pictures before it.
    TooLarge,
    /// Not for its own sake.
    Other(ApiError),
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure::Words(message)
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure::Other(error)
    }
}

fn in_words(host: &str, error: &Error) -> String {
    match error {
        Error::Io(error) if error.kind() == ErrorKind::PermissionDenied => {
            format!("`{host}` leads to no address of the public internet.")
        }
        Error::HostNotFound => format!("There is no host `{host}`."),
        Error::Timeout(_) => format!("The pictures at addresses did not come within {} s.", TIME.as_secs()),
        error => format!("The picture cannot be fetched from `{host}`: {error}."),
    }
}

/// Fetches all pictures that are at addresses, each address once. `permit`: of the key, for as long as that takes.
///
/// # Errors
/// 400 about the picture that cannot be fetched; 503 if all requests' bodies and pictures are too many bytes.
pub(super) async fn all(app: &App, pictures: &mut [PictureFile], permit: Permit) -> Result<Buffered, ApiError> {
    let hosts = Arc::clone(&app.settings.image_hosts);
    let gone = || ApiError::internal("The pictures could not be fetched.");
    let slot = Arc::clone(&hosts.slots).acquire_owned().await.map_err(|_| gone())?;
    let (buffered, bytes_max) = (app.queue.buffered(), app.settings.body_bytes_max);
    let address = |picture: &PictureFile| Some((picture.address()?.to_owned(), picture.param.clone()));
    let addresses: Vec<(String, String)> = pictures.iter().filter_map(address).collect();
    let (sender, answer) = oneshot::channel();
    // Threads of its own: what waits for other servers holds up none that plan prompts.
    let thread = std::thread::Builder::new().name("fetch".to_owned()).spawn(move || {
        let _ = sender.send(fetch_each(&hosts, addresses, bytes_max, buffered));
        drop((permit, slot));
    });
    thread.map_err(|_| gone())?;
    let (files, buffered) = answer.await.map_err(|_| gone())??;
    for picture in pictures {
        if let Some(bytes) = picture.address().and_then(|address| files.get(address)) {
            picture.source = PictureSource::Bytes(bytes.clone());
        }
    }
    Ok(buffered)
}

/// The files by their addresses. `addresses`: with the parameters that have them.
fn fetch_each(
    hosts: &ImageHosts,
    addresses: Vec<(String, String)>,
    bytes_max: usize,
    mut buffered: Buffered,
) -> Result<(HashMap<String, Vec<u8>>, Buffered), ApiError> {
    let until = Instant::now() + TIME;
    let (mut files, mut left) = (HashMap::new(), bytes_max);
    for (address, param) in addresses {
        if files.contains_key(&address) {
            continue;
        }
        let file = hosts.fetch(&address, until, left, &mut buffered).map_err(|failure| match failure {
            Failure::Words(message) => ApiError::param(param, message),
            Failure::TooLarge => {
                let message = format!("The pictures at addresses have more than {bytes_max} bytes together.");
                ApiError::param(param, message)
            }
            Failure::Other(error) => error,
        })?;
        left -= file.len();
        files.insert(address, file);
    }
    Ok((files, buffered))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_reached() {
        for address in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.1.1",
            "223.255.1.1",
            "198.20.0.1",
            "2606:4700::1111",
            "2a00:1450::5",
            "2001:4860::8",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.1",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "4000::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    fn hosts(typed: &[&str]) -> ImageHosts {
        ImageHosts::new(&typed.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn only_listed_hosts_are_asked() {
        let listed = hosts(&["Images.example", "*.cdn.example", "odd.example:8443"]);
        for address in [
            "https://images.example/cat.png?a=b#c",
            "http://IMAGES.example",
            "https://images.example:443/",
            "https://a.cdn.example/x",
            "https://a.b.cdn.example/x",
            "http://odd.example:8443/",
        ] {
            assert!(listed.host(address).is_ok(), "{address}: {:?}", listed.host(address));
        }
        for address in [
            "https://example/",
            "https://images.example.evil/",
            "https://evilimages.example/",
            "https://cdn.example/",
            "https://evilcdn.example/",
            "https://.cdn.example/",
            "https://images.example:8443/",
            "http://images.example:443/",
            "https://odd.example/",
            "https://images.example./",
            "https://images.example@evil.example/",
            "https://evil.example/?images.example",
            "https://[::1]/",
            "https://user:word@images.example/",
            "https://",
            "https:///x",
            "https://a b/",
        ] {
            assert!(listed.host(address).is_err(), "{address}");
        }
        assert_eq!(hosts(&[]).host("https://images.example/"), Err(NOT_FETCHED.to_owned()));
        for typed in ["", "*", "*.", "a..b", "https://a", "a/b", "a:b", "a:99999", "a@b", "[::1]", "ä.example"] {
            assert_eq!(ImageHosts::new(&[typed.to_owned()]).unwrap_err(), typed);
        }
    }

    proptest! {
        #[test]
        fn no_address_of_another_host_is_taken(host in "[a-z.@:\\[\\]%/\\\\#?]{0,20}", rest in "[a-z@/:?#.]{0,20}") {
            let listed = hosts(&["images.example"]);
            let address = format!("https://{host}{rest}");
            if listed.host(&address).is_ok() {
                let uri: Uri = address.parse().unwrap();
                prop_assert_eq!(uri.host(), Some("images.example"));
            }
        }
    }

    #[test]
    fn a_server_that_says_nothing_is_not_waited_for() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let listed = hosts(&[&address.to_string()]).everywhere();
        let queue = super::super::fair_queue::FairQueue::new(1 << 20);
        let begin = Instant::now();
        let until = begin + Duration::from_millis(300);
        for _ in 0..2 {
            let failure = listed.fetch(&format!("http://{address}/"), until, 100, &mut queue.buffered());
            let Err(Failure::Words(words)) = failure else { panic!("an answer of nobody") };
            assert_eq!(words, "The pictures at addresses did not come within 20 s.");
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }

    /// A name in the list that leads to this machine is refused before anything is connected to.
    #[test]
    fn a_listed_name_may_not_lead_to_this_machine() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        server.set_nonblocking(true).unwrap();
        let port = server.local_addr().unwrap().port();
        let queue = super::super::fair_queue::FairQueue::new(1 << 20);
        for name in ["localhost", "127.0.0.1"] {
            let listed = hosts(&[&format!("{name}:{port}")]);
            let until = Instant::now() + TIME;
            let failure = listed.fetch(&format!("http://{name}:{port}/"), until, 100, &mut queue.buffered());
            let Err(Failure::Words(words)) = failure else { panic!("{name} was reached") };
            assert_eq!(words, format!("`{name}` leads to no address of the public internet."));
        }
        assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nobody has connected");
    }
}
