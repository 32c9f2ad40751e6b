//! How jobs and endings cross the queue, and how the ledger keeps a job.
//!
//! In the queue they are [MessagePack](https://msgpack.org), a struct being an array of its fields: half the bytes of JSON, all of which Redis's Lua looks at,
//! and written and read in a quarter of the time. So a field has its place. None is left out; a new one comes last, with a default, and those
//! who do not know it yet leave the run to those who do. Whatever else changes is another [`WIRE_VERSION`], the first element.
//!
//! The ledger keeps JSON: rows are read by people, and by later versions. An earlier one leaves a run alone whose job has a field that it does not know, as it
//! does in the queue: it would put the run back without that.

use serde::{Serialize, de::DeserializeOwned};

use super::{Ending, Job, WIRE_VERSION};

/// Most messages have no more bytes than this, so that writing one moves nothing.
const USUAL_BYTES: usize = 1024;

/// A message that this process cannot read: written by another version, or damaged.
#[derive(Debug, thiserror::Error)]
#[error("a message about a run has a format that this version cannot read")]
pub struct Unreadable(#[source] pub Option<Box<dyn std::error::Error + Send + Sync>>);

impl Unreadable {
    fn because(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(error)))
    }
}

impl Job {
    /// The bytes that cross the queue.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        decode(bytes, |job: &Self| job.v)
    }

    /// The text that the ledger keeps.
    pub fn to_text(&self) -> String {
        // Strings, numbers and maps with string keys always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    pub fn from_text(text: &str) -> Result<Self, Unreadable> {
        let job: Self = serde_json::from_str(text).map_err(Unreadable::because)?;
        if job.v == WIRE_VERSION { Ok(job) } else { Err(Unreadable(None)) }
    }
}

impl Ending {
    /// The bytes that cross the queue.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        decode(bytes, |ending: &Self| ending.v)
    }
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    // The lengths of all collections are known, and a vector takes every byte.
    let _ = rmp_serde::encode::write(&mut bytes, message);
    bytes
}

fn decode<T: DeserializeOwned>(bytes: &[u8], version: impl FnOnce(&T) -> u8) -> Result<T, Unreadable> {
    let message = rmp_serde::from_slice(bytes).map_err(Unreadable::because)?;
    if version(&message) == WIRE_VERSION { Ok(message) } else { Err(Unreadable(None)) }
}

/// Parameters without the names that files and the ledger give them.
pub(super) mod parameters {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::job::Parameters;

    pub fn serialize<S: Serializer>(parameters: &Parameters, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            return parameters.serialize(to);
        }
        let Parameters { temperature, top_p, max_tokens, stop, seed } = parameters;
        (temperature, top_p, max_tokens, stop, seed).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Parameters, D::Error> {
        if from.is_human_readable() {
            return Parameters::deserialize(from);
        }
        let (temperature, top_p, max_tokens, stop, seed) = Deserialize::deserialize(from)?;
        Ok(Parameters { temperature, top_p, max_tokens, stop, seed })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::job::{
        AccountId, Attempt, AttemptOutcome, CacheUse, Caching, Failure, Fence, KeyId, Lane, ModelRequest, Outcome,
        Parameters, Price, PromptId, RunId, Target, UnixMillis, Usage, WorkerId,
    };

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn full_job() -> Job {
        Job {
            v: WIRE_VERSION,
            id: RunId(id(1)),
            account: AccountId(id(2)),
            key: Some(KeyId(id(3))),
            prompt: PromptId(id(4)),
            prompt_name: "welcome".into(),
            prompt_version: 5,
            lane: Lane::Batch,
            targets: vec![Target {
                model: "fast".into(),
                provider: "openai".into(),
                upstream: "gpt".into(),
                price: Some(Price { input: 6, output: 7 }),
            }],
            request: ModelRequest {
                system: Some("Be brief.".into()),
                user: "Bonjour \"é\"\n".into(),
                parameters: Parameters {
                    temperature: Some(0.5),
                    top_p: None,
                    max_tokens: Some(8),
                    stop: vec!["END".into()],
                    seed: Some(-9),
                },
                output_schema: Some(json!({"type": "object", "required": ["a"], "minimum": -1.5, "n": null})),
            },
            stream: true,
            metadata: BTreeMap::from([("team".into(), "a".into())]),
            created_at: UnixMillis(10),
            deadline: UnixMillis(11),
            keep_content: true,
            tokens: 12,
            repeat_streamed: true,
            webhook_url: Some("https://example.com".into()),
            caching: Some(Caching { digest: "abc".into(), ttl_ms: 13 }),
        }
    }

    fn empty_job() -> Job {
        Job {
            key: None,
            targets: Vec::new(),
            request: ModelRequest::default(),
            metadata: BTreeMap::new(),
            webhook_url: None,
            caching: None,
            ..full_job()
        }
    }

    fn ending(outcome: Outcome, attempt: Option<Attempt>, cache: Option<CacheUse>) -> Ending {
        Ending {
            v: WIRE_VERSION,
            run: RunId(id(1)),
            fence: Fence(2),
            outcome,
            model: "fast".into(),
            started_at: attempt.as_ref().map(|attempt| attempt.started_at),
            finished_at: UnixMillis(4),
            queue_ms: 5,
            attempt,
            cache,
        }
    }

    fn endings() -> Vec<Ending> {
        let attempt = Attempt {
            number: 1,
            fence: Fence(2),
            provider: "openai".into(),
            model: "fast".into(),
            worker: WorkerId(id(6)),
            started_at: UnixMillis(3),
            duration_ms: 7,
            first_token_ms: Some(8),
            outcome: AttemptOutcome::RateLimited,
            status: Some(429),
            detail: Some("slow down".into()),
            usage: Usage { input_tokens: Some(9), output_tokens: None },
            cost_nano_usd: Some(-10),
        };
        let failure = Failure { code: "rate_limited".into(), message: "Too many".into(), retryable: true };
        let succeeded = Outcome::Succeeded { output: "Salut\u{0}".into(), finish_reason: Some("stop".into()) };
        vec![
            ending(succeeded, Some(attempt.clone()), Some(CacheUse::Joined)),
            ending(Outcome::Failed(failure), Some(attempt), None),
            ending(Outcome::Cancelled, None, None),
            ending(Outcome::Expired, None, Some(CacheUse::Hit)),
        ]
    }

    #[test]
    fn jobs_and_endings_survive_the_queue_and_the_ledger() {
        for job in [full_job(), empty_job()] {
            assert_eq!(Job::decode(&job.encode()).unwrap(), job);
            assert_eq!(Job::from_text(&job.to_text()).unwrap(), job);
        }
        for ending in endings() {
            assert_eq!(Ending::decode(&ending.encode()).unwrap(), ending);
        }
    }

    #[test]
    fn what_another_version_wrote_or_was_cut_is_refused() {
        let job = full_job();
        let later = Job { v: WIRE_VERSION + 1, ..job.clone() };
        assert!(Job::decode(&later.encode()).is_err());
        assert!(Job::from_text(&later.to_text()).is_err());
        let bytes = job.encode();
        for end in 0..bytes.len() {
            assert!(Job::decode(&bytes[..end]).is_err(), "{end} of {} bytes", bytes.len());
        }
        // JSON was in the queue before.
        assert!(Job::decode(job.to_text().as_bytes()).is_err());
        for ending in endings() {
            let later = Ending { v: WIRE_VERSION + 1, ..ending.clone() };
            assert!(Ending::decode(&later.encode()).is_err());
            let bytes = ending.encode();
            for end in 0..bytes.len() {
                assert!(Ending::decode(&bytes[..end]).is_err(), "{end} of {} bytes", bytes.len());
            }
        }
    }

    /// A process of this version reads what one of another build of it wrote: no field changes its place.
    #[test]
    fn the_format_of_this_version_stays() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(WIRE_VERSION, 1);
        assert_eq!(
            hex(&empty_job().encode()),
            concat!(
                "dc001301c41000000000000000000000000000000001c41000000000000000000000000000000002c0c4100000000000",
                "0000000000000000000004a777656c636f6d6505a562617463689094c0a095c0c0c090c0c0c3800a0bc30cc3c0c0",
            )
        );
        assert_eq!(
            hex(&full_job().encode()),
            concat!(
                "dc001301c41000000000000000000000000000000001c41000000000000000000000000000000002c410000000000000",
                "00000000000000000003c41000000000000000000000000000000004a777656c636f6d6505a562617463689194a46661",
                "7374a66f70656e6169a367707492060794a942652062726965662ead426f6e6a6f75722022c3a9220a95cb3fe0000000",
                "000000c00891a3454e44f784a76d696e696d756dcbbff8000000000000a16ec0a8726571756972656491a161a4747970",
                "65a66f626a656374c381a47465616da1610a0bc30cc3b368747470733a2f2f6578616d706c652e636f6d92a36162630d",
            )
        );
        assert_eq!(
            hex(&endings()[0].encode()),
            concat!(
                "9a01c410000000000000000000000000000000010281a973756363656564656492a653616c757400a473746f70a46661",
                "73740304059d0102a66f70656e6169a466617374c41000000000000000000000000000000006030708ac726174655f6c",
                "696d69746564cd01ada9736c6f7720646f776e9209c0f6a66a6f696e6564",
            )
        );
    }

    /// What an earlier build of this version did not know yet has its default.
    #[test]
    fn a_field_that_is_not_there_yet_has_its_default() {
        let mut bytes = empty_job().encode();
        assert_eq!((bytes[..3].to_vec(), bytes.pop()), (vec![0xdc, 0, 19], Some(0xc0)));
        bytes[2] = 18;
        assert_eq!(Job::decode(&bytes).unwrap(), empty_job());
    }
}
