//! How many sockets are open: on this front door, and of each key.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use workers::job::KeyId;

use crate::config::WebSocketConfig;

/// Counts sockets while their [`Seat`]s are held. Cheap to clone.
#[derive(Clone, Default)]
pub(in crate::http) struct Sockets(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    all: usize,
    by_key: HashMap<KeyId, usize>,
}

/// The right to one socket. Dropped, it is free again.
pub(super) struct Seat {
    sockets: Sockets,
    key: KeyId,
}

/// What there are too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    OfThisKey,
    OfAll,
}

impl Sockets {
    pub(super) fn take(&self, key: KeyId, limits: &WebSocketConfig) -> Result<Seat, Full> {
        let mut open = self.lock();
        if open.all >= limits.max_sockets {
            return Err(Full::OfAll);
        }
        let of_key = open.by_key.get(&key).copied().unwrap_or(0);
        if of_key >= limits.max_sockets_per_key {
            return Err(Full::OfThisKey);
        }
        open.by_key.insert(key, of_key + 1);
        open.all += 1;
        Ok(Seat { sockets: self.clone(), key })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.sockets.lock();
        open.all -= 1;
        match open.by_key.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                open.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn sockets_are_counted_while_they_are_open() {
        let limits = WebSocketConfig {
            allowed_origins: Vec::new(),
            max_sockets: 3,
            max_sockets_per_key: 2,
            max_runs: 1,
            max_message_bytes: 1,
            ping: Duration::from_secs(1),
        };
        let sockets = Sockets::default();
        let (one, other) = (KeyId::new(), KeyId::new());
        let first = sockets.take(one, &limits).unwrap();
        let second = sockets.take(one, &limits).unwrap();
        assert_eq!(sockets.take(one, &limits).err(), Some(Full::OfThisKey));
        let third = sockets.take(other, &limits).unwrap();
        assert_eq!(sockets.take(other, &limits).err(), Some(Full::OfAll));
        drop(first);
        let fourth = sockets.take(one, &limits).unwrap();
        drop((second, third, fourth));
        let open = sockets.lock();
        assert!(open.all == 0 && open.by_key.is_empty(), "nothing is kept of keys without sockets");
    }
}
