//! Look-ups that are remembered until anything changes.
//!
//! The generation is part of the key under which an answer is kept, and it is read before the database is. An answer
//! that was being read while something changed is therefore kept under a generation that nobody asks for any more: it
//! cannot come back as news. Answers of old generations are dropped by time and size.

use std::{hash::Hash, time::Duration};

use moka::future::Cache;

use super::Changes;
use crate::db::StoreError;

/// Even an answer that nothing changed is asked for again after this: somebody may have written SQL by hand.
const KEEP_FOUND: Duration = Duration::from_secs(30);
/// What is absent is remembered for less, and apart, so that guessing names or keys pushes out no real ones.
const KEEP_ABSENT: Duration = Duration::from_secs(5);

/// Remembers what a look-up found, and for a shorter time what it did not find. Cheap to clone.
pub(crate) struct Lookups<K, V> {
    changes: Changes,
    found: Cache<(u64, K), V>,
    absent: Cache<(u64, K), ()>,
}

impl<K, V> Clone for Lookups<K, V> {
    fn clone(&self) -> Self {
        Self { changes: self.changes.clone(), found: self.found.clone(), absent: self.absent.clone() }
    }
}

/// Why a load left nothing to keep.
#[derive(Debug)]
enum Nothing {
    Absent,
    Failed(StoreError),
}

impl<K, V> Lookups<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Keeps as much as `capacity`, in the unit of `weigh`, and at most `max_absent` absences.
    pub(crate) fn new(
        changes: Changes,
        capacity: u64,
        weigh: impl Fn(&V) -> u32 + Send + Sync + 'static,
        max_absent: u64,
    ) -> Self {
        Self {
            changes,
            found: Cache::builder()
                .max_capacity(capacity)
                .weigher(move |_, value| weigh(value))
                .time_to_live(KEEP_FOUND)
                .build(),
            absent: Cache::builder().max_capacity(max_absent).time_to_live(KEEP_ABSENT).build(),
        }
    }

    /// What is remembered, or else what `load` finds; callers that ask for the same thing at once share one load.
    pub(crate) async fn get(
        &self,
        key: K,
        load: impl AsyncFnOnce() -> Result<Option<V>, StoreError>,
    ) -> Result<Option<V>, StoreError> {
        let Some(generation) = self.changes.generation() else {
            return Box::pin(load()).await;
        };
        let key = (generation, key);
        if let Some(value) = self.found.get(&key).await {
            return Ok(Some(value));
        }
        // Boxed, so that the many who find what they ask for do not carry the room that a reading of the database needs.
        Box::pin(self.load(key, load)).await
    }

    async fn load(
        &self,
        key: (u64, K),
        load: impl AsyncFnOnce() -> Result<Option<V>, StoreError>,
    ) -> Result<Option<V>, StoreError> {
        if self.absent.contains_key(&key) {
            return Ok(None);
        }
        let load = async {
            match load().await {
                Ok(Some(value)) => Ok(value),
                Ok(None) => Err(Nothing::Absent),
                Err(error) => Err(Nothing::Failed(error)),
            }
        };
        match self.found.try_get_with(key.clone(), load).await {
            Ok(value) => Ok(Some(value)),
            Err(nothing) => match nothing.as_ref() {
                Nothing::Absent => {
                    self.absent.insert(key, ()).await;
                    Ok(None)
                }
                Nothing::Failed(error) => Err(error.clone()),
            },
        }
    }
}

/// A weight for caches whose values are all alike.
pub(crate) fn each_counts_one<V>(_value: &V) -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::oneshot;

    use super::*;
    use crate::changes::TRUST;

    impl Changes {
        /// Trusted from now on, as after a successful reading.
        fn trusted() -> Self {
            let changes = Changes::unwatched();
            changes.trust();
            changes
        }

        fn trust(&self) {
            let until = self.shared.millis(tokio::time::Instant::now() + TRUST);
            self.shared.trusted_until.store(until, Ordering::Release);
        }
    }

    fn lookups(changes: &Changes) -> Lookups<&'static str, u32> {
        Lookups::new(changes.clone(), 100, each_counts_one, 100)
    }

    /// Asks for one key, and says what was answered and whether the database was asked.
    async fn ask(lookups: &Lookups<&'static str, u32>, database: Option<u32>) -> (Option<u32>, bool) {
        let loads = AtomicU32::new(0);
        let answer = lookups
            .get("key", async || {
                loads.fetch_add(1, Ordering::Relaxed);
                Ok(database)
            })
            .await
            .unwrap();
        (answer, loads.into_inner() > 0)
    }

    #[tokio::test(start_paused = true)]
    async fn remembers_until_something_changes() {
        let changes = Changes::trusted();
        let lookups = lookups(&changes);
        assert_eq!(ask(&lookups, Some(1)).await, (Some(1), true));
        assert_eq!(ask(&lookups, Some(2)).await, (Some(1), false));
        changes.forget();
        assert_eq!(ask(&lookups, None).await, (None, true));
        assert_eq!(ask(&lookups, Some(3)).await, (None, false), "absence is remembered too");
        changes.forget();
        assert_eq!(ask(&lookups, Some(3)).await, (Some(3), true));
    }

    #[tokio::test(start_paused = true)]
    async fn asks_the_database_when_changes_cannot_be_read() {
        let changes = Changes::trusted();
        let lookups = lookups(&changes);
        ask(&lookups, Some(1)).await;
        tokio::time::advance(TRUST).await;
        assert_eq!(ask(&lookups, Some(2)).await, (Some(2), true));
        let gone = StoreError::Refused("gone".into());
        assert!(lookups.get("key", async || { Err(gone) }).await.is_err());
        // Readings work again, and nothing changed meanwhile.
        changes.trust();
        assert_eq!(ask(&lookups, Some(3)).await, (Some(1), false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_that_races_a_change_is_not_kept() {
        let changes = Changes::trusted();
        let lookups = lookups(&changes);
        let (started, has_started) = oneshot::channel();
        let (finish, may_finish) = oneshot::channel();
        let slow = tokio::spawn({
            let lookups = lookups.clone();
            async move {
                lookups
                    .get("key", async || {
                        started.send(()).unwrap();
                        may_finish.await.unwrap();
                        Ok(Some(1))
                    })
                    .await
            }
        });
        has_started.await.unwrap();
        changes.forget();
        finish.send(()).unwrap();
        assert_eq!(slow.await.unwrap().unwrap(), Some(1), "who asked before the change may hear the old answer");
        assert_eq!(ask(&lookups, Some(2)).await, (Some(2), true), "who asks after it does not");
    }
}
