//! The text of a key: `sk_`, random characters, and check characters that tell a typing error from an unknown key
//! before anything is looked up.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use rand::{CryptoRng, RngExt, distr::Alphanumeric};
use sha2::{Digest as _, Sha256};
use workers::providers::Secret;

const PREFIX: &str = "sk_";
/// 33 characters of base 62 hold 196 bits. The mask shows the check characters, which tell 32 bits about them: 164 stay unknown.
const RANDOM_CHARACTERS: usize = 33;
/// Six characters of base 62 hold any CRC-32.
const CHECK_CHARACTERS: usize = 6;
const LENGTH: usize = PREFIX.len() + RANDOM_CHARACTERS + CHECK_CHARACTERS;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The SHA-256 of a key's text: what stands for it in memory.
pub type Digest = [u8; 32];

/// A well-formed key. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(String);

impl KeyText {
    /// A new key of 196 random bits.
    pub fn mint(random: &mut impl CryptoRng) -> Self {
        let mut text = String::with_capacity(LENGTH);
        text.push_str(PREFIX);
        text.extend(random.sample_iter(Alphanumeric).take(RANDOM_CHARACTERS).map(char::from));
        let check = check_characters(text.as_bytes());
        text.push_str(&check);
        Self(text)
    }

    /// The key, if its length, its characters and their check are right. Whether anybody has it is another question.
    pub fn parse(text: &str) -> Option<Self> {
        let body = text.strip_prefix(PREFIX)?;
        if text.len() != LENGTH || !body.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let (rest, check) = text.split_at_checked(LENGTH - CHECK_CHARACTERS)?;
        (check_characters(rest.as_bytes()) == check).then(|| Self(text.to_owned()))
    }

    /// The text itself, for the one place that shows it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What people may see of it: `sk_***` and the last six characters.
    pub fn mask(&self) -> String {
        let tail = self.0.get(LENGTH - CHECK_CHARACTERS..).unwrap_or_default();
        format!("{PREFIX}***{tail}")
    }

    /// What stands for it in memory, so that no text of a key is kept.
    pub fn digest(&self) -> Digest {
        Sha256::digest(self.0.as_bytes()).into()
    }

    /// What is stored, in hexadecimal: the SHA-256, or with a secret the HMAC-SHA-256 (RFC 2104), which cannot be searched by whoever has
    /// the table alone. A slow hash would add nothing: there is no guessing 164 random bits.
    pub(super) fn hash(&self, secret: Option<&Secret>) -> String {
        let keyed = secret.and_then(|secret| Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).ok());
        let hash: Digest = match keyed {
            Some(mut mac) => {
                mac.update(self.0.as_bytes());
                mac.finalize().into_bytes().into()
            }
            None => self.digest(),
        };
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The CRC-32 of the text before them, in base 62, most significant character first.
fn check_characters(text: &[u8]) -> String {
    let mut rest = crc32(text);
    let mut characters = [b'0'; CHECK_CHARACTERS];
    for character in characters.iter_mut().rev() {
        // The remainder is below 62.
        *character = usize::try_from(rest % 62).ok().and_then(|digit| BASE62.get(digit)).copied().unwrap_or(b'0');
        rest /= 62;
    }
    characters.iter().copied().map(char::from).collect()
}

/// CRC-32/ISO-HDLC: the one of Ethernet, gzip and PNG.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}

#[cfg(test)]
#[expect(clippy::string_slice, reason = "keys are ASCII")]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn key(seed: u64) -> KeyText {
        KeyText::mint(&mut StdRng::seed_from_u64(seed))
    }

    #[test]
    fn the_checksum_is_the_standard_one() {
        // The check value of the CRC catalogue.
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(check_characters(b"123456789"), format!("{:0>6}", base62(0xCBF4_3926)));
    }

    fn base62(mut number: u64) -> String {
        let mut text = Vec::new();
        while number > 0 {
            text.push(BASE62[usize::try_from(number % 62).unwrap()]);
            number /= 62;
        }
        text.reverse();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn minted_keys_are_well_formed_and_different() {
        let (one, other) = (key(1), key(2));
        assert_ne!(one, other);
        assert_eq!(one.expose().len(), 42);
        assert!(one.expose().starts_with("sk_"));
        assert_eq!(KeyText::parse(one.expose()), Some(one.clone()));
        assert_eq!(one.mask(), format!("sk_***{}", &one.expose()[36..]));
        assert_eq!(format!("{one:?}"), "[secret]");
    }

    #[test]
    fn what_is_no_key_is_told_without_a_look_up() {
        let good = key(1).expose().to_owned();
        for text in [
            "",
            "sk_",
            "sk_votre_cle_api_ici",
            "sk_***abc123",
            &good[1..],
            &good[..41],
            &format!("{good} "),
            &format!("{good}0"),
            &good.replace("sk_", "pk_"),
            &good.replace("sk_", "SK_"),
            &format!("sk_{}", "é".repeat(39)),
            &format!("sk_{}", "0".repeat(39)),
        ] {
            assert_eq!(KeyText::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn hashes_with_and_without_a_secret() {
        let key = KeyText(String::from("abc"));
        // FIPS 180-2, appendix B.1.
        assert_eq!(key.hash(None), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        // RFC 4231, test case 2.
        let key = KeyText(String::from("what do ya want for nothing?"));
        assert_eq!(
            key.hash(Some(&Secret::new("Jefe"))),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    proptest! {
        #[test]
        fn any_single_wrong_character_is_found(seed in any::<u64>(), at in 3usize..42, replacement in "[0-9A-Za-z]") {
            let mut text = key(seed).expose().to_owned();
            prop_assume!(text[at..=at] != replacement);
            text.replace_range(at..=at, &replacement);
            prop_assert_eq!(KeyText::parse(&text), None);
        }

        #[test]
        fn any_text_is_answered(text in ".{0,60}") {
            if let Some(key) = KeyText::parse(&text) {
                prop_assert_eq!(key.expose(), text);
            }
        }
    }
}
