//! What the environment says: the variables of `huggingface_hub`.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::HubError;

/// Where the hub and the cache are.
#[derive(Clone)]
pub struct Settings {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, or the contents of the file `token` in `HF_HOME`.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: the cache alone.
    pub offline: bool,
    /// Between two tries where the first has brought something; each that has not doubles it.
    pub wait: Duration,
    /// A connection over which nothing comes for so long has failed.
    pub silence: Duration,
}

impl Settings {
    /// Reads them from the environment.
    ///
    /// # Errors
    /// [`HubError::Setting`] if there is no place for a cache; [`HubError::Io`] if the token's file cannot be read.
    pub fn from_env() -> Result<Settings, HubError> {
        Settings::read(&|name| std::env::var(name).ok())
    }

    /// The same from any source of variables. One that is empty is not set.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Settings, HubError> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let home = || path("HOME").map(|home| home.join(".cache"));
        let hf_home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").or_else(home).map(|cache| cache.join("huggingface")))
            .ok_or_else(|| HubError::Setting { problem: "there is no place for a cache: HOME is not set".into() })?;
        let cache =
            path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hf_home.join("hub"));
        let token = match variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")) {
            Some(token) => Some(token),
            None => read_token(&path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token")))?,
        };
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let is_true = |value: String| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str());
        Ok(Settings {
            endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
            cache,
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: variable("HF_HUB_OFFLINE").is_some_and(is_true),
            wait: Duration::from_secs(1),
            silence: Duration::from_secs(30),
        })
    }
}

fn read_token(path: &std::path::Path) -> Result<Option<String>, HubError> {
    match std::fs::read_to_string(path) {
        Ok(token) => Ok(Some(token)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HubError::io("read", path)(source)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Settings {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Settings::read(&find).unwrap()
    }

    #[test]
    fn the_variables_mean_what_they_mean_to_python() {
        let plain = read(&[("HOME", "/home/a")]);
        assert_eq!(plain.cache, Path::new("/home/a/.cache/huggingface/hub"));
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), ("https://huggingface.co", None, false));
        assert_eq!(read(&[("HOME", "/a"), ("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
        assert_eq!(read(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).cache, Path::new("/h/hub"));
        let set = read(&[
            ("HF_HOME", "/h"),
            ("HF_HUB_CACHE", "/c"),
            ("HF_ENDPOINT", "http://mirror:80/"),
            ("HF_TOKEN", " t\n"),
            ("HF_HUB_OFFLINE", "yes"),
        ]);
        assert_eq!((set.cache.as_path(), set.endpoint.as_str()), (Path::new("/c"), "http://mirror:80"));
        assert_eq!((set.token.as_deref(), set.offline), (Some("t"), true));
        assert!(!read(&[("HF_HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).offline);
        assert!(matches!(Settings::read(&|_| None), Err(HubError::Setting { .. })));
    }

    #[test]
    fn the_token_comes_from_its_file_last() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "from-file\n").unwrap();
        let home = folder.path().display().to_string();
        assert_eq!(read(&[("HF_HOME", &home)]).token.as_deref(), Some("from-file"));
        assert_eq!(read(&[("HF_HOME", &home), ("HF_TOKEN", "t")]).token.as_deref(), Some("t"));
        let path = folder.path().join("elsewhere").display().to_string();
        assert_eq!(read(&[("HF_HOME", &home), ("HF_TOKEN_PATH", &path)]).token, None);
    }
}
