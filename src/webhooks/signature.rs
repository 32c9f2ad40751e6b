//! Signatures as Standard Webhooks has them: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use sha2::Sha256;

const PREFIX: &str = "whsec_";
/// The standard wants 24 to 64.
const SECRET_BYTES: usize = 32;

/// What an account and its receiver share. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSecret(Vec<u8>);

impl SigningSecret {
    pub(super) fn mint() -> Self {
        let mut bytes = vec![0; SECRET_BYTES];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }

    pub(super) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text that is shown once: `whsec_` and base64.
    pub fn expose(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&self.0))
    }

    /// `v1,` and the base64 of HMAC-SHA256 over id, moment in Unix seconds and body, with dots between them.
    fn sign(&self, id: &str, timestamp: i64, body: &str) -> Option<String> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body.as_bytes());
        Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The value of `webhook-signature`: one signature a secret, so that receivers may know the old one or the new one while they change over.
pub(super) fn signatures(secrets: &[SigningSecret], id: &str, timestamp: i64, body: &str) -> String {
    let signed: Vec<_> = secrets.iter().filter_map(|secret| secret.sign(id, timestamp, body)).collect();
    signed.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SigningSecret {
        SigningSecret::from_bytes(STANDARD.decode(text.strip_prefix(PREFIX).unwrap()).unwrap())
    }

    /// The example that the libraries of the standard test themselves with.
    #[test]
    fn the_published_example_is_signed_as_published() {
        let secret = secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", r#"{"test": 2432232314}"#);
        let expect = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signatures(std::slice::from_ref(&secret), id, 1_614_265_330, body), expect);
        let both = signatures(&[SigningSecret::mint(), secret], id, 1_614_265_330, body);
        assert!(both.starts_with("v1,") && both.ends_with(&format!(" {expect}")), "{both}");
    }

    #[test]
    fn secrets_are_shown_only_when_asked() {
        let minted = SigningSecret::mint();
        assert_eq!(secret(&minted.expose()), minted);
        assert_eq!(format!("{minted:?}"), "[secret]");
        assert_ne!(SigningSecret::mint(), minted);
    }
}
