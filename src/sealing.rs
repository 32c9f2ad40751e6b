//! Secrets that have to be stored and read again: sealed with the operator's keys (`security.secret_key`), never in the clear.
//!
//! Each key of the ring has an id that is stored beside what it sealed. The first key seals, all of them open, so that a key is replaced by putting
//! a new one in front, sealing everything again (`prompt-manager secrets rotate`), and taking the old one away.
//!
//! XChaCha20-Poly1305 with a random nonce of 192 bits, which may be drawn without counting
//! (<https://datatracker.ietf.org/doc/html/draft-irtf-cfrg-xchacha-03>). What a secret belongs to is authenticated with it, so that one row's
//! secret cannot be moved to another.

use chacha20poly1305::{
    XChaCha20Poly1305,
    aead::{Aead, KeyInit, Payload},
};
use hmac::{Hmac, Mac};
use rand::Rng;
use sha2::Sha256;
use workers::providers::Secret;

const NONCE_BYTES: usize = 24;

/// The operator's keys. Cheap to clone.
#[derive(Clone, Default)]
pub struct KeyRing {
    /// The one that seals comes first.
    keys: Vec<SealingKey>,
}

#[derive(Clone)]
struct SealingKey {
    id: String,
    cipher: XChaCha20Poly1305,
}

/// A secret as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub key_id: String,
    /// The nonce, then the ciphertext with its tag.
    pub bytes: Vec<u8>,
}

/// Why a secret cannot be sealed or opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("no secret key is configured: set PROMPT_MANAGER_SECRET_KEY (openssl rand -hex 32)")]
    NoKey,
    #[error("a stored secret was sealed with the secret key {0}, which is not configured any more")]
    UnknownKey(String),
    #[error("a stored secret cannot be opened: it was changed, or belongs to something else")]
    Damaged,
}

impl KeyRing {
    /// `first` seals.
    pub fn new<'a>(first: Option<&'a Secret>, old: impl IntoIterator<Item = &'a Secret>) -> Self {
        Self { keys: first.into_iter().chain(old).filter_map(SealingKey::new).collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The id of the key that seals.
    pub fn current(&self) -> Result<&str, SealError> {
        self.keys.first().map(|key| key.id.as_str()).ok_or(SealError::NoKey)
    }

    /// Seals a secret of `owner`.
    pub fn seal(&self, owner: &str, secret: &[u8]) -> Result<Sealed, SealError> {
        let key = self.keys.first().ok_or(SealError::NoKey)?;
        let mut nonce = [0; NONCE_BYTES];
        rand::rng().fill_bytes(&mut nonce);
        let payload = Payload { msg: secret, aad: owner.as_bytes() };
        let sealed = key.cipher.encrypt(&nonce.into(), payload).map_err(|_| SealError::Damaged)?;
        Ok(Sealed { key_id: key.id.clone(), bytes: [&nonce[..], &sealed].concat() })
    }

    /// Opens what was sealed for `owner`.
    pub fn open(&self, owner: &str, sealed: &Sealed) -> Result<Vec<u8>, SealError> {
        let key = self.keys.iter().find(|key| key.id == sealed.key_id);
        let key = key.ok_or_else(|| SealError::UnknownKey(sealed.key_id.clone()))?;
        let (nonce, text) = sealed.bytes.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::Damaged)?;
        let payload = Payload { msg: text, aad: owner.as_bytes() };
        key.cipher.decrypt(&(*nonce).into(), payload).map_err(|_| SealError::Damaged)
    }
}

impl SealingKey {
    /// The operator's key is a text of any length, and has another use besides: what is made of it here serves this one alone.
    fn new(secret: &Secret) -> Option<Self> {
        let derived = |purpose: &[u8]| -> Option<[u8; 32]> {
            let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(secret.expose().as_bytes()).ok()?;
            mac.update(purpose);
            Some(mac.finalize().into_bytes().into())
        };
        let cipher = XChaCha20Poly1305::new(&derived(b"prompt-manager sealing key 1")?.into());
        let id = derived(b"prompt-manager sealing key id 1")?;
        Some(Self { id: id.iter().take(4).map(|byte| format!("{byte:02x}")).collect(), cipher })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(keys: &[&str]) -> KeyRing {
        let keys: Vec<Secret> = keys.iter().map(|key| Secret::new(*key)).collect();
        KeyRing::new(keys.first(), keys.iter().skip(1))
    }

    #[test]
    fn what_is_sealed_is_opened_by_its_own_key_and_owner_only() {
        let sealed = ring(&["new"]).seal("owner", b"secret").unwrap();
        assert_eq!(ring(&["new"]).open("owner", &sealed).unwrap(), b"secret");
        assert_eq!(ring(&["newer", "new"]).open("owner", &sealed).unwrap(), b"secret");
        assert_eq!(ring(&["new"]).open("another", &sealed), Err(SealError::Damaged));
        assert_eq!(ring(&["other"]).open("owner", &sealed), Err(SealError::UnknownKey(sealed.key_id.clone())));
        assert_eq!(ring(&[]).seal("owner", b"secret"), Err(SealError::NoKey));
        for index in 0..sealed.bytes.len() {
            let mut bytes = sealed.bytes.clone();
            bytes[index] ^= 1;
            let changed = Sealed { bytes, ..sealed.clone() };
            assert_eq!(ring(&["new"]).open("owner", &changed), Err(SealError::Damaged), "byte {index}");
        }
        assert_ne!(ring(&["new"]).seal("owner", b"secret").unwrap().bytes, sealed.bytes, "never the same nonce twice");
    }
}
