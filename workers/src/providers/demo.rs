//! The built-in offline model: no network, no key, and always the same answer to the same question.
//!
//! It is for a first run and for rehearsals, so its answer begins by saying what it is. It then repeats the rendered
//! prompt, which is what somebody who tries a prompt wants to see.
//!
//! Tokens are counted by a simple rule: a token is a word, that is, a run of characters without white space. System and
//! user text count as input, the answer as output, `max_tokens` bounds the answer. Stop sequences end the repeated
//! text. Other parameters and an output schema change nothing.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Call, CallError, Completion, DeltaSink, Provider, ProviderSettings, transport::Patience};
use crate::job::Usage;

/// The first line of every answer.
const NOTICE: &str = "Modèle de démonstration hors ligne\u{a0}: aucun fournisseur n’a été appelé. / \
    Offline demo model: no provider was called.";

/// No delay is longer than a day, so that arithmetic with it cannot overflow.
const LONGEST_DELAY: Duration = Duration::from_secs(86_400);

/// The offline model.
pub struct Demo {
    settings: ProviderSettings,
}

impl Demo {
    pub fn new(settings: &ProviderSettings) -> Self {
        Self { settings: settings.clone() }
    }
}

#[async_trait]
impl Provider for Demo {
    /// Answers after [`ProviderSettings::demo_delay`]; a streamed answer is spread evenly over it.
    async fn call(&self, call: Call<'_>, sink: &mut dyn DeltaSink) -> Result<Completion, CallError> {
        let patience = Patience::start(&self.settings, &call)?;
        let started = Instant::now();
        let delay = self.settings.demo_delay.min(LONGEST_DELAY);
        let answer = answer(&call);
        let mut first_token = None;
        if call.stream {
            let pieces: Vec<&str> = answer.output.split_inclusive(char::is_whitespace).collect();
            let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
            for (number, piece) in (1_u32..).zip(pieces) {
                patience.sleep_until(started + delay.mul_f64(f64::from(number) / f64::from(count))).await?;
                first_token.get_or_insert_with(|| patience.elapsed());
                sink.delta(piece);
            }
        } else {
            patience.sleep_until(started + delay).await?;
        }
        Ok(Completion { first_token, ..answer })
    }
}

fn answer(call: &Call<'_>) -> Completion {
    let request = call.request;
    let parameters = &request.parameters;
    let echo =
        parameters.stop.iter().filter(|stop| !stop.is_empty()).fold(request.user.as_str(), |text, stop| {
            text.split_once(stop.as_str()).map_or(text, |(before, _)| before)
        });
    let mut output = format!("{NOTICE}\n\n{echo}");
    let mut finish_reason = "stop";
    if let Some(end) = parameters.max_tokens.and_then(|max| end_of_words(&output, max)) {
        output.truncate(end);
        finish_reason = "length";
    }
    let input = count_words(request.system.as_deref().unwrap_or_default()).saturating_add(count_words(&request.user));
    Completion {
        usage: Usage { input_tokens: Some(input), output_tokens: Some(count_words(&output)) },
        output,
        finish_reason: Some(finish_reason.to_owned()),
        first_token: None,
    }
}

fn count_words(text: &str) -> u64 {
    u64::try_from(text.split_whitespace().count()).unwrap_or(u64::MAX)
}

/// Where the first `max` words end; `None` when there are no more than that.
fn end_of_words(text: &str, max: u32) -> Option<usize> {
    let (mut words, mut end, mut offset) = (0, 0, 0);
    for piece in text.split_inclusive(char::is_whitespace) {
        let word = piece.trim_end();
        if !word.is_empty() {
            if words == max {
                return Some(end);
            }
            words += 1;
            end = offset + word.len();
        }
        offset += piece.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{ModelRequest, Parameters},
        providers::{ErrorClass, ProviderKind, Unwatched},
    };

    fn demo(delay: Duration) -> Demo {
        Demo::new(&ProviderSettings {
            name: "demo".to_owned(),
            kind: ProviderKind::Demo,
            base_url: String::new(),
            api_key: None,
            api_key_env: None,
            attempt_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            max_response_bytes: 1 << 20,
            demo_delay: delay,
            requests_per_minute: None,
            tokens_per_minute: None,
            max_concurrency: None,
        })
    }

    fn asks(parameters: Parameters) -> ModelRequest {
        ModelRequest {
            system: Some("Tu es bref.".to_owned()),
            user: "Écris à Steph STOP et à  Zoé\nmerci".to_owned(),
            parameters,
            output_schema: None,
        }
    }

    fn call(request: &ModelRequest, stream: bool) -> Call<'_> {
        Call { upstream: "demo", request, stream, deadline: Instant::now() + Duration::from_secs(30) }
    }

    #[derive(Default)]
    struct Pieces(Vec<(String, Instant)>);

    impl DeltaSink for Pieces {
        fn delta(&mut self, text: &str) {
            self.0.push((text.to_owned(), Instant::now()));
        }
    }

    #[tokio::test]
    async fn the_answer_says_what_it_is_and_repeats_the_prompt() {
        let request = asks(Parameters::default());
        let answer = demo(Duration::ZERO).call(call(&request, false), &mut Unwatched).await.unwrap();
        let (notice, echo) = answer.output.split_once("\n\n").unwrap();
        assert!(notice.contains("hors ligne") && notice.contains("Offline demo model"), "{notice}");
        assert_eq!(echo, request.user);
        assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
        let words = |text: &str| Some(text.split_whitespace().count() as u64);
        assert_eq!(answer.usage, Usage { input_tokens: Some(11), output_tokens: words(&answer.output) });
    }

    #[tokio::test]
    async fn parameters_bound_the_answer() {
        let whole = demo(Duration::ZERO).call(call(&asks(Parameters::default()), false), &mut Unwatched).await.unwrap();
        let total = u32::try_from(whole.usage.output_tokens.unwrap()).unwrap();
        for max in 0..=total + 1 {
            let request = asks(Parameters { max_tokens: Some(max), ..Parameters::default() });
            let answer = demo(Duration::ZERO).call(call(&request, false), &mut Unwatched).await.unwrap();
            assert_eq!(answer.usage.output_tokens, Some(u64::from(max.min(total))));
            assert_eq!(answer.finish_reason.as_deref(), Some(if max < total { "length" } else { "stop" }), "{max}");
            assert!(whole.output.starts_with(&answer.output));
        }
        let request = asks(Parameters { stop: vec![String::new(), " STOP".to_owned()], ..Parameters::default() });
        let answer = demo(Duration::ZERO).call(call(&request, false), &mut Unwatched).await.unwrap();
        assert!(answer.output.ends_with("\n\nÉcris à Steph"), "{}", answer.output);
    }

    #[tokio::test(start_paused = true)]
    async fn a_streamed_answer_comes_in_pieces_spread_over_the_delay() {
        let request = asks(Parameters::default());
        let started = Instant::now();
        let mut pieces = Pieces::default();
        let answer = demo(Duration::from_secs(10)).call(call(&request, true), &mut pieces).await.unwrap();
        assert_eq!(started.elapsed().as_secs(), 10);
        assert_eq!(pieces.0.iter().map(|(text, _)| text.as_str()).collect::<String>(), answer.output);
        assert!(pieces.0.len() > 10);
        assert!(pieces.0.is_sorted_by(|a, b| a.1 < b.1));
        assert_eq!(answer.first_token, Some(pieces.0[0].1 - started));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_ends_with_the_run_or_the_attempt() {
        let request = asks(Parameters::default());
        for stream in [false, true] {
            let error = demo(Duration::from_secs(31)).call(call(&request, stream), &mut Unwatched).await.unwrap_err();
            assert_eq!(error.class, ErrorClass::Expired);
            let patient = Call { deadline: Instant::now() + Duration::from_secs(1_000), ..call(&request, stream) };
            let error = demo(Duration::MAX).call(patient, &mut Unwatched).await.unwrap_err();
            assert_eq!(error.class, ErrorClass::Timeout);
            let late = Call { deadline: Instant::now(), ..call(&request, stream) };
            let error = demo(Duration::ZERO).call(late, &mut Unwatched).await.unwrap_err();
            assert_eq!(error.class, ErrorClass::Expired);
        }
    }
}
