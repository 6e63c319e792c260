//! The hub's protocol over HTTP: the list of a revision's files, and what the head of a file says.
//!
//! Redirects are followed here and not by `ureq`, for two reasons: the hash of a large file stands in the head of the
//! redirect, and the token is for the hub alone, never for the host that it sends us to.

use std::time::Duration;

use serde::Deserialize;
use ureq::http::header::HeaderMap;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

use crate::cache::is_commit;
use crate::error::HubError;
use crate::id::is_dataset;
use crate::name::is_safe_path;
use crate::select::Entry;
use crate::settings::Settings;

const REDIRECTS_MAX: usize = 10;
/// A repository with 100,000 files has some 25 MB of list.
const LIST_BYTES_MAX: u64 = 1 << 26;

/// Asks the hub.
pub struct Client {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<String>,
    /// As in [`Settings`].
    pub wait: Duration,
}

/// Scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin(String, String, u16);

/// What the hub says of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub hash: Hash,
    pub bytes: u64,
}

/// The hash of a file, which is also its name in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hash {
    /// Of the contents, for large files.
    Sha256(String),
    /// Of git's header and the contents, for small ones.
    GitSha1(String),
}

impl Hash {
    /// By the number of digits. `None` if it is neither.
    pub fn parse(digits: &str) -> Option<Hash> {
        let digits = digits.to_ascii_lowercase();
        match (digits.len(), digits.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            (64, true) => Some(Hash::Sha256(digits)),
            (40, true) => Some(Hash::GitSha1(digits)),
            _ => None,
        }
    }

    /// Hexadecimal digits.
    pub fn digits(&self) -> &str {
        let (Hash::Sha256(digits) | Hash::GitSha1(digits)) = self;
        digits
    }
}

/// Why one request came to nothing.
pub enum Fault {
    /// May be better next time, after so long if the server says so.
    Passing { reason: String, after: Option<Duration> },
    /// The connection ended early, and has brought something.
    CutOff { reason: String },
    /// Will be the same next time.
    Lasting(HubError),
}

impl Client {
    /// # Errors
    /// [`HubError::Setting`].
    pub fn new(settings: &Settings) -> Result<Client, HubError> {
        let bad = |problem: String| HubError::Setting { problem };
        let endpoint = settings.endpoint.clone();
        let origin = endpoint.parse().ok().and_then(|uri| Origin::of(&uri));
        let origin = origin
            .ok_or_else(|| bad(format!("HF_ENDPOINT is {endpoint}, which is no address such as https://HOST")))?;
        if settings.token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(bad("the token (HF_TOKEN or its file) holds characters that no token has".into()));
        }
        let agent = Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(settings.silence))
            .timeout_per_read(Some(settings.silence))
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("wels/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Client { agent, endpoint, origin, token: settings.token.clone(), wait: settings.wait })
    }

    /// The commit that a revision is, and its files.
    ///
    /// # Errors
    /// Those of an answer; no second try is made.
    pub fn list(&self, id: &str, revision: &str) -> Result<(String, Vec<Entry>), HubError> {
        #[derive(Deserialize)]
        struct Listing {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
            #[serde(rename = "blobId")]
            blob: Option<String>,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            sha256: String,
        }
        let kind = if is_dataset(id) { "" } else { "models/" };
        let url = format!("{}/api/{kind}{id}/revision/{}?blobs=true", self.endpoint, quoted(revision, false));
        let mut response = self.open(&url, 0).map_err(|fault| match fault {
            Fault::Passing { reason, .. } | Fault::CutOff { reason } => {
                HubError::Unreachable { url: url.clone(), reason }
            }
            Fault::Lasting(error) => error,
        })?;
        let bad = |problem: String| HubError::Answer { url: url.clone(), problem };
        if response.status() != 200 {
            return Err(self.refusal(&response, &url, id, revision, None));
        }
        let text = response.body_mut().with_config().limit(LIST_BYTES_MAX).read_to_string();
        let text = text.map_err(|error| HubError::Unreachable { url: url.clone(), reason: error.to_string() })?;
        let listing: Listing = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if !is_commit(&listing.sha) {
            return Err(bad(format!("{:?} is no commit", listing.sha)));
        }
        let entry = |file: Sibling| Entry {
            name: file.rfilename,
            bytes: file.size,
            hash: file.lfs.map(|lfs| lfs.sha256).or(file.blob),
        };
        Ok((listing.sha, listing.siblings.into_iter().map(entry).collect()))
    }

    /// The address of a file.
    pub fn address(&self, id: &str, commit: &str, file: &str) -> String {
        format!("{}/{id}/resolve/{commit}/{}", self.endpoint, quoted(file, true))
    }

    /// What the hub says of the file at `url`.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn head(&self, url: &str, id: &str, commit: &str, file: &str) -> Result<Head, Fault> {
        let mut at = url.to_owned();
        for _ in 0..REDIRECTS_MAX {
            let response = self.send(&at, true, 0)?;
            let headers = response.headers();
            let is_redirect = response.status().is_redirection();
            if !is_redirect && response.status() != 200 {
                return Err(Fault::Lasting(self.refusal(&response, url, id, commit, Some(file))));
            }
            // Within the hub, a redirect is to the new name of a model, which knows the hash.
            let next = if is_redirect { Some(self.next(&at, headers)?) } else { None };
            if let Some(next) = next
                && header(headers, "x-linked-etag").is_none()
                && next.parse().ok().and_then(|uri| Origin::of(&uri)) == Some(self.origin.clone())
            {
                at = next;
                continue;
            }
            return head_of(headers, url, is_redirect).map_err(Fault::Lasting);
        }
        Err(Fault::Lasting(too_many_redirects(url)))
    }

    /// The contents behind `url` from byte `from` on, after all redirects: 200, 206 or 416.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn contents(&self, url: &str, from: u64, names: [&str; 3]) -> Result<Response<Body>, Fault> {
        let [id, commit, file] = names;
        let response = self.open(url, from)?;
        match response.status().as_u16() {
            200 | 206 | 416 => Ok(response),
            _ => Err(Fault::Lasting(self.refusal(&response, url, id, commit, Some(file)))),
        }
    }

    /// Follows redirects to an answer that is none.
    fn open(&self, url: &str, from: u64) -> Result<Response<Body>, Fault> {
        let mut at = url.to_owned();
        for _ in 0..REDIRECTS_MAX {
            let response = self.send(&at, false, from)?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            at = self.next(&at, response.headers())?;
        }
        Err(Fault::Lasting(too_many_redirects(url)))
    }

    /// One request, with the token if it goes to the hub itself.
    fn send(&self, url: &str, head: bool, from: u64) -> Result<Response<Body>, Fault> {
        let mut request = if head { self.agent.head(url) } else { self.agent.get(url) };
        request = request.header("Accept-Encoding", "identity");
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        let is_hub = url.parse().ok().and_then(|uri| Origin::of(&uri)).as_ref() == Some(&self.origin);
        if let Some(token) = self.token.as_ref().filter(|_| is_hub) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request.call().map_err(|error| Fault::Passing { reason: error.to_string(), after: None })?;
        let status = response.status();
        if status.is_server_error() || status == 429 || status == 408 {
            let after = header(response.headers(), "retry-after").and_then(|text| text.parse().ok());
            let reason = format!("it answers {status}");
            return Err(Fault::Passing { reason, after: after.map(Duration::from_secs) });
        }
        Ok(response)
    }

    /// Where a redirect leads.
    fn next(&self, url: &str, headers: &HeaderMap) -> Result<String, Fault> {
        let bad = |problem: String| Fault::Lasting(HubError::Answer { url: url.to_owned(), problem });
        let location = header(headers, "location").ok_or_else(|| bad("a redirect without an address".into()))?;
        let next = joined(url, location).ok_or_else(|| bad(format!("a redirect to {location:?}")))?;
        match url.starts_with("https:") && !next.starts_with("https:") {
            true => Err(bad(format!("a redirect from https to {next}"))),
            false => Ok(next),
        }
    }

    /// What an answer other than the expected one means.
    fn refusal(&self, response: &Response<Body>, url: &str, id: &str, revision: &str, file: Option<&str>) -> HubError {
        let (endpoint, id, revision) = (self.endpoint.clone(), id.to_owned(), revision.to_owned());
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        match (code, response.status().as_u16(), file) {
            ("RepoNotFound", ..) => HubError::NoModel { endpoint, id },
            ("RevisionNotFound", ..) => HubError::NoRevision { id, revision },
            ("GatedRepo", ..) | (_, 401 | 403, Some(_)) => HubError::Gated { endpoint, id },
            (_, 404, Some(file)) => HubError::NoFile { id, file: file.to_owned() },
            // Whoever shows no token is not told whether there is a private model of that name.
            (_, 401 | 403 | 404, None) => HubError::NoModel { endpoint, id },
            (_, status, _) => HubError::Status { url: url.to_owned(), status },
        }
    }
}

impl Origin {
    fn of(uri: &Uri) -> Option<Origin> {
        let port = match uri.scheme_str()? {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(port);
        Some(Origin(uri.scheme_str()?.to_owned(), uri.host()?.to_ascii_lowercase(), port))
    }
}

fn too_many_redirects(url: &str) -> HubError {
    HubError::Answer { url: url.to_owned(), problem: format!("more than {REDIRECTS_MAX} redirects") }
}

/// Hash and length. Those of a redirect's own body are not meant.
fn head_of(headers: &HeaderMap, url: &str, is_redirect: bool) -> Result<Head, HubError> {
    let own = |name| header(headers, name).filter(|_| !is_redirect);
    let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag")).unwrap_or_default();
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    let hash = Hash::parse(etag).ok_or_else(|| HubError::NoHash { url: url.to_owned() })?;
    let bytes = header(headers, "x-linked-size").or_else(|| own("content-length")).and_then(|text| text.parse().ok());
    let no_length = || HubError::Answer { url: url.to_owned(), problem: "a file without a length".into() };
    Ok(Head { hash, bytes: bytes.ok_or_else(no_length)? })
}

/// A header's value, if it is ASCII.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The address that `location` means in an answer of `url`.
fn joined(url: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    let uri: Uri = url.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    match location.strip_prefix("//") {
        Some(rest) => Some(format!("{scheme}://{rest}")),
        None if location.starts_with('/') => Some(format!("{scheme}://{authority}{location}")),
        None => None,
    }
}

/// For use in a path of an address; slashes stay if they separate.
fn quoted(text: &str, keep_slashes: bool) -> String {
    debug_assert!(is_safe_path(text), "{text:?} was to be checked");
    let mut quoted = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => quoted.push(byte.into()),
            b'/' if keep_slashes => quoted.push('/'),
            _ => quoted.push_str(&format!("%{byte:02X}")),
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |text: &str| text.parse().ok().and_then(|uri| Origin::of(&uri));
        assert_eq!(origin("https://Hub.example/a"), origin("https://hub.example:443/b?c"));
        for other in
            ["http://hub.example", "https://hub.example:444", "https://hub.example@evil.example", "ftp://hub.example"]
        {
            assert_ne!(origin(other), origin("https://hub.example"), "{other}");
        }
    }

    #[test]
    fn redirects_are_absolute_or_from_the_root() {
        let from = |location: &str| joined("https://hub.example:8/a/b?c", location);
        assert_eq!(from("http://x/y").as_deref(), Some("http://x/y"));
        assert_eq!(from("//x/y").as_deref(), Some("https://x/y"));
        assert_eq!(from("/x?y").as_deref(), Some("https://hub.example:8/x?y"));
        assert_eq!((from("x"), from("file:///etc/passwd")), (None, None));
    }

    #[test]
    fn https_leads_nowhere_else() {
        let home = |name: &str| (name == "HOME").then(|| "/nowhere".to_owned());
        let client = Client::new(&Settings::read(&home).unwrap()).unwrap();
        let next = |location: &str| {
            let headers = [("location".parse().unwrap(), location.parse().unwrap())].into_iter().collect();
            client.next("https://huggingface.co/a", &headers).ok()
        };
        assert_eq!(next("https://cdn.example/b").as_deref(), Some("https://cdn.example/b"));
        assert_eq!(next("http://huggingface.co/b"), None);
    }

    #[test]
    fn addresses_are_quoted() {
        assert_eq!(quoted("a b/ü#?%.json", true), "a%20b/%C3%BC%23%3F%25.json");
        assert_eq!(quoted("refs/pr/1", false), "refs%2Fpr%2F1");
    }
}
