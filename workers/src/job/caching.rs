//! Runs that would be the same call, and may share its result.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a run shares with those that would be the same call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caching {
    /// Names everything that the call depends on, and the account. Two runs with the same digest may have the same result. It is part of keys:
    /// letters and digits only.
    pub digest: String,
    /// How long a result stands for the next runs, in milliseconds.
    pub ttl_ms: u64,
}

/// Where the result of a run that may share it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheUse {
    /// It was there when the run was accepted.
    Hit,
    /// From a call of its own.
    Miss,
    /// From the call of another run, for which it waited.
    Joined,
}

impl CacheUse {
    pub const ALL: [CacheUse; 3] = [CacheUse::Hit, CacheUse::Miss, CacheUse::Joined];

    pub fn as_str(self) -> &'static str {
        match self {
            CacheUse::Hit => "hit",
            CacheUse::Miss => "miss",
            CacheUse::Joined => "joined",
        }
    }

    /// Whether no call was made for the run.
    pub fn is_cached(self) -> bool {
        self != CacheUse::Miss
    }
}

impl FromStr for CacheUse {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        CacheUse::ALL.into_iter().find(|cache| cache.as_str() == text).ok_or(())
    }
}
