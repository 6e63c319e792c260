//! API keys: 256 random bits, shown once, kept as their SHA-256.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// What every key begins with.
const PREFIX: &str = "wels-";
/// Characters of a key that are kept readable, to tell keys apart.
const SHOWN: usize = PREFIX.len() + 6;

/// A key as its owner has it. It is neither stored nor logged, and does not print itself.
pub struct Secret(String);

impl Secret {
    /// A new key from the system's random numbers; an error if it has none to give.
    pub fn generate() -> std::io::Result<Secret> {
        Ok(Secret(format!("{PREFIX}{}", random_hex::<32>()?)))
    }

    /// The text to hand to the owner, once.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The characters by which a list shows it.
    pub fn shown(&self) -> &str {
        &self.0[..SHOWN]
    }

    /// What is stored.
    pub fn hash(&self) -> String {
        hash(&self.0)
    }
}

/// SHA-256 in hexadecimal. The keys have 256 bits of randomness: a slow hash or a salt would protect nothing more.
pub fn hash(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

/// `BYTES` random bytes in hexadecimal.
pub fn random_hex<const BYTES: usize>() -> std::io::Result<String> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes what is written");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_random_and_its_hash_is_sha256() {
        let (one, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_ne!(one.reveal(), other.reveal());
        assert_eq!(one.reveal().len(), PREFIX.len() + 64);
        assert!(one.reveal().starts_with(one.shown()) && one.shown().len() < 12);
        assert_eq!(hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
