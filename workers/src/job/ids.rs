//! The ids of everything that a run touches: UUIDs that cannot be mistaken for each other.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::{Builder, Uuid};

use super::UnixMillis;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id, ordered by the time of its creation (UUID version 7, RFC 9562).
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id!(/// One run, for its whole life.
    RunId);
impl RunId {
    /// The id of a run that is created at this moment.
    pub fn at(moment: UnixMillis) -> Self {
        Self(uuid_at(moment))
    }

    /// No run that was made at this moment or after it has a smaller id, and none before it has a greater one.
    pub fn first_at(moment: UnixMillis) -> Self {
        // The id of version 7 begins with 48 bits of milliseconds.
        Self(Uuid::from_u128(u128::from(moment.since(UnixMillis(0))) << 80))
    }
}

id!(/// What a webhook is told about one run, however often it is sent: its `webhook-id`.
    DeliveryId);
impl DeliveryId {
    /// The id of a delivery that is created at this moment.
    pub fn at(moment: UnixMillis) -> Self {
        Self(uuid_at(moment))
    }
}

fn uuid_at(moment: UnixMillis) -> Uuid {
    Builder::from_unix_timestamp_millis(moment.since(UnixMillis(0)), &rand::random()).into_uuid()
}

id!(/// An account: the owner of prompts, keys and runs.
    AccountId);
id!(/// An API key (its row, never its text).
    KeyId);
id!(/// A prompt, whatever its version.
    PromptId);
id!(/// One boot of a front door: where the replies of the runs that it accepted go.
    FrontDoorId);
id!(/// One boot of a worker process: who owns a lease.
    WorkerId);
impl WorkerId {
    /// Stands for a worker that was lost before anybody heard of it.
    pub const UNKNOWN: Self = Self(Uuid::nil());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_a_time_begin_with_the_first() {
        let moment = UnixMillis(0x0123_4567_89ab);
        for _ in 0..100 {
            let run = RunId::at(moment);
            assert!(RunId::first_at(moment) <= run && run < RunId::first_at(moment.plus(1)), "{run}");
            assert_eq!(run.0.get_version_num(), 7);
        }
        assert_eq!(RunId::first_at(UnixMillis(0x0123_4567_89ab)).to_string(), "01234567-89ab-0000-0000-000000000000");
        assert_eq!(RunId::first_at(UnixMillis(-1)), RunId(Uuid::nil()));
    }
}
