//! Passwords: how strong they must be, and how they are hashed.

use std::{
    sync::{Arc, OnceLock},
    thread,
};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use tokio::sync::Semaphore;
use workers::providers::Secret;

use crate::{accounts::unreadable, db::StoreError};

/// NIST SP 800-63B-4, section 3.1.1.2: a password that is the only factor has at least 15 characters (it would be 8 beside a second
/// factor, which this product does not have). The same section asks for no other rule of composition.
pub const MIN_PASSWORD_CHARACTERS: usize = 15;

/// Long enough for any sentence (the same section asks for 64 at least), short enough that hashing stays cheap.
const MAX_PASSWORD_BYTES: usize = 1024;

/// Why a password is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeakPassword {
    #[error("the password must have at least {MIN_PASSWORD_CHARACTERS} characters")]
    TooShort,
    #[error("the password must not be longer than {MAX_PASSWORD_BYTES} bytes")]
    TooLong,
}

/// Whether a password may be set. Characters are Unicode code points.
pub fn check_password_strength(password: &Secret) -> Result<(), WeakPassword> {
    if password.expose().chars().count() < MIN_PASSWORD_CHARACTERS {
        Err(WeakPassword::TooShort)
    } else if password.expose().len() > MAX_PASSWORD_BYTES {
        Err(WeakPassword::TooLong)
    } else {
        Ok(())
    }
}

/// Hashes and checks passwords, on as many blocking threads as there are cores and no more: each takes 19 MiB and a core.
#[derive(Clone)]
pub(super) struct Passwords {
    permits: Arc<Semaphore>,
}

impl Passwords {
    pub(super) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { permits: Arc::new(Semaphore::new(cores)) }
    }

    /// The PHC string of a new password.
    pub(super) async fn hash(&self, password: Secret) -> Result<String, StoreError> {
        self.on_blocking_thread(move || hash(&password)).await
    }

    /// Whether the password is the one of the PHC string. Without a string it takes the same time and is wrong, so that the time of an
    /// answer does not tell who has an account.
    pub(super) async fn verify(&self, password: Secret, known: Option<String>) -> Result<bool, StoreError> {
        if password.expose().len() > MAX_PASSWORD_BYTES {
            return Ok(false);
        }
        self.on_blocking_thread(move || {
            static NOBODY: OnceLock<String> = OnceLock::new();
            let exists = known.is_some();
            let known = match known {
                Some(known) => known,
                None => match NOBODY.get() {
                    Some(nobody) => nobody.clone(),
                    None => {
                        let nobody = hash(&Secret::new("nobody"))?;
                        NOBODY.get_or_init(|| nobody).clone()
                    }
                },
            };
            let known = PasswordHash::new(&known).map_err(unreadable)?;
            let right = argon2()?.verify_password(password.expose().as_bytes(), &known).is_ok();
            Ok(right && exists)
        })
        .await
    }

    async fn on_blocking_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        // Nobody closes the semaphore.
        let _permit = self.permits.acquire().await;
        tokio::task::spawn_blocking(work).await.map_err(unhashed)?
    }
}

fn hash(password: &Secret) -> Result<String, StoreError> {
    // The salt is 16 bytes of the operating system's randomness.
    let hash: PasswordHash = argon2()?.hash_password(password.expose().as_bytes()).map_err(unhashed)?;
    Ok(hash.to_string())
}

/// Argon2id with 19 MiB, two passes and one lane: the OWASP Password Storage Cheat Sheet's first recommendation.
fn argon2() -> Result<Argon2<'static>, StoreError> {
    let params = Params::new(19 * 1024, 2, 1, None).map_err(unhashed)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn unhashed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable {
        sentence: "the password cannot be hashed".to_owned(),
        source: Arc::new(sea_orm::DbErr::Custom(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(password: &str, expect: Result<(), WeakPassword>) {
        assert_eq!(check_password_strength(&Secret::new(password)), expect, "{password:?}");
    }

    #[test]
    fn length_is_what_counts() {
        check("", Err(WeakPassword::TooShort));
        check("14 characters!", Err(WeakPassword::TooShort));
        check("15 characters!!", Ok(()));
        check("éééééééééééééé", Err(WeakPassword::TooShort));
        check("ééééééééééééééé", Ok(()));
        check(&"a".repeat(1024), Ok(()));
        check(&"a".repeat(1025), Err(WeakPassword::TooLong));
    }

    #[tokio::test]
    async fn hashes_are_salted_and_carry_their_parameters() {
        let passwords = Passwords::new();
        let right = Secret::new("correct horse battery staple");
        let hash = passwords.hash(right.clone()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_ne!(hash, passwords.hash(right.clone()).await.unwrap());
        assert!(passwords.verify(right.clone(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify(Secret::new("wrong horse"), Some(hash)).await.unwrap());
        assert!(!passwords.verify(Secret::new("nobody"), None).await.unwrap());
    }
}
