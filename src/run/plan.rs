//! What a run may do, decided from what is known before it is submitted. Pure.

use std::{fmt::Write, time::Duration};

use sha2::{Digest, Sha256};
use workers::job::{AccountId, Caching, ModelRequest, Target, UnixMillis};

use super::{Answer, RunError, RunRequest};
use crate::{
    accounts::{Account, Plan},
    config::{LimitsConfig, ModelConfig},
    prompts::{Rendered, ResolvedPrompt},
};

/// Tokens reserved for an answer whose prompt sets no `max_tokens`.
const ASSUMED_OUTPUT_TOKENS: u64 = 1024;
/// The usual estimate for Latin scripts; the provider's own count settles the reservation afterwards.
const CHARACTERS_PER_TOKEN: usize = 4;

/// Whether the account's plan lets it start runs at all.
pub(super) fn admit(account: &Account, now: UnixMillis) -> Result<(), RunError> {
    if account.plan == Plan::Free {
        return Err(RunError::PlanRequired);
    }
    match account.plan_ends {
        Some(ended) if ended <= now => Err(RunError::SubscriptionExpired { ended }),
        _ => Ok(()),
    }
}

/// Where the call may go: the prompt's own model, which must be allowed, then those of its fallbacks that are.
pub(super) fn targets(
    account: &Account,
    model: &str,
    fallbacks: &[String],
    configured: impl Fn(&str) -> Option<ModelConfig>,
) -> Result<Vec<Target>, RunError> {
    let first = target(account, model, &configured)?;
    let others = fallbacks.iter().filter_map(|name| target(account, name, &configured).ok());
    Ok(std::iter::once(first).chain(others).collect())
}

fn target(
    account: &Account,
    model: &str,
    configured: impl Fn(&str) -> Option<ModelConfig>,
) -> Result<Target, RunError> {
    let not_allowed = || RunError::ModelNotAllowed(model.to_owned());
    if !account.allowed_models.is_empty() && !account.allowed_models.iter().any(|allowed| allowed == model) {
        return Err(not_allowed());
    }
    let Some(config) = configured(model) else {
        return Err(RunError::ModelNotConfigured(model.to_owned()));
    };
    if !config.plans.is_empty() && !config.plans.iter().any(|plan| plan == account.plan.as_str()) {
        return Err(not_allowed());
    }
    Ok(Target { model: config.name, provider: config.provider, upstream: config.upstream, price: config.price })
}

/// How long the run may take: what its caller asked for, or the default: of callers that wait for an answer, or of those that
/// leave or are told of it as it comes.
pub(super) fn timeout(request: &RunRequest, limits: &LimitsConfig) -> Result<Duration, RunError> {
    match request.timeout {
        Some(asked) if asked > limits.max_timeout => Err(RunError::TimeoutTooLong { asked, max: limits.max_timeout }),
        Some(asked) => Ok(asked),
        None if request.answer == Answer::Wait && !request.stream => Ok(limits.default_timeout),
        None => Ok(limits.async_timeout),
    }
}

/// How many tokens the call may use: an estimate of its input, and all of the output that it is allowed.
pub(super) fn tokens(rendered: &Rendered, max_tokens: Option<u32>) -> u64 {
    let characters: usize = texts(rendered).map(|text| text.chars().count()).sum();
    let input = u64::try_from(characters.div_ceil(CHARACTERS_PER_TOKEN)).unwrap_or(u64::MAX);
    input.saturating_add(max_tokens.map_or(ASSUMED_OUTPUT_TOKENS, u64::from))
}

/// What the run shares: with those of its account that would ask the same of the same model, by the same version of the same prompt.
pub(super) fn caching(
    account: AccountId,
    prompt: &ResolvedPrompt,
    targets: &[Target],
    request: &ModelRequest,
    ttl: Duration,
) -> Caching {
    // A structure of texts, numbers and JSON always serialises, and always in the same way.
    let asked = serde_json::to_vec(&(account, prompt.prompt, prompt.version, targets, request)).unwrap_or_default();
    let digest = Sha256::digest(asked).iter().fold(String::with_capacity(64), |mut digest, byte| {
        // Writing to a string cannot fail.
        let _ = write!(digest, "{byte:02x}");
        digest
    });
    Caching { digest, ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX) }
}

fn texts(rendered: &Rendered) -> impl Iterator<Item = &str> {
    rendered.system.as_deref().into_iter().chain([rendered.user.as_str()])
}

#[cfg(test)]
mod tests {
    use workers::job::AccountId;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000);

    fn account(plan: Plan, plan_ends: Option<UnixMillis>, allowed: &[&str]) -> Account {
        Account {
            id: AccountId::new(),
            name: "acme".into(),
            plan,
            plan_ends,
            allowed_models: allowed.iter().map(|&name| name.to_owned()).collect(),
            monthly_budget: None,
        }
    }

    /// `a` for everybody, `b` for PRO, `free-only` for FREE.
    fn configured(name: &str) -> Option<ModelConfig> {
        let plans = match name {
            "a" => Vec::new(),
            "b" => vec!["pro".to_owned()],
            "free-only" => vec!["free".to_owned()],
            _ => return None,
        };
        let (provider, upstream) = ("local".to_owned(), format!("{name}-upstream"));
        Some(ModelConfig { name: name.to_owned(), provider, upstream, price: None, plans })
    }

    #[test]
    fn plans_admit() {
        let check = |plan, ends: Option<i64>, expect: Result<(), &str>| {
            let result = admit(&account(plan, ends.map(UnixMillis), &[]), NOW);
            assert_eq!(result.map_err(|error| error.code()), expect, "{plan:?} until {ends:?}");
        };
        check(Plan::Pro, None, Ok(()));
        check(Plan::Pro, Some(1_001), Ok(()));
        check(Plan::Pro, Some(1_000), Err("subscription_expired"));
        check(Plan::Free, None, Err("plan_required"));
        check(Plan::Free, Some(1), Err("plan_required"));
    }

    #[test]
    fn targets_are_the_allowed_ones_in_order() {
        let check = |allowed: &[&str], model: &str, expect: Result<Vec<&str>, &str>| {
            let fallbacks = ["b".to_owned(), "free-only".to_owned(), "unknown".to_owned(), "a".to_owned()];
            let result = targets(&account(Plan::Pro, None, allowed), model, &fallbacks, configured);
            let names = result.map(|targets| targets.into_iter().map(|target| target.model).collect::<Vec<_>>());
            match (names, expect) {
                (Ok(names), Ok(expect)) => assert_eq!(names, expect),
                (Err(error), Err(code)) => assert_eq!(error.code(), code),
                (got, expect) => panic!("{model} with {allowed:?}: {got:?}, not {expect:?}"),
            }
        };
        check(&[], "a", Ok(vec!["a", "b", "a"]));
        check(&["a"], "a", Ok(vec!["a", "a"]));
        check(&["a"], "b", Err("model_not_allowed"));
        check(&[], "free-only", Err("model_not_allowed"));
        check(&[], "unknown", Err("model_not_configured"));
        // What an account may not use is not revealed to be unconfigured.
        check(&["a"], "unknown", Err("model_not_allowed"));
    }

    #[test]
    fn a_target_is_what_the_configuration_says() {
        let targets = targets(&account(Plan::Pro, None, &[]), "a", &[], configured).unwrap();
        let expect = Target { model: "a".into(), provider: "local".into(), upstream: "a-upstream".into(), price: None };
        assert_eq!(targets, [expect]);
    }

    #[test]
    fn tokens_are_estimated_from_characters_not_bytes() {
        let rendered =
            |system: Option<&str>, user: &str| Rendered { system: system.map(Into::into), user: user.into() };
        assert_eq!(tokens(&rendered(None, ""), None), 1024);
        assert_eq!(tokens(&rendered(None, "éééé"), Some(10)), 11);
        assert_eq!(tokens(&rendered(Some("abcd"), "a"), Some(0)), 2);
    }

    #[test]
    fn timeouts_follow_the_way_of_answering() {
        let limits = LimitsConfig {
            account_requests_per_minute: None,
            key_requests_per_minute: None,
            default_timeout: Duration::from_secs(30),
            max_timeout: Duration::from_secs(600),
            async_timeout: Duration::from_secs(300),
            max_rendered_bytes: 1,
        };
        let check = |asked: Option<u64>, answer, expect: Option<u64>| {
            let mut request = RunRequest::parse(br#"{"promptName":"a"}"#, answer).unwrap();
            request.timeout = asked.map(Duration::from_secs);
            assert_eq!(timeout(&request, &limits).ok(), expect.map(Duration::from_secs));
        };
        check(None, Answer::Wait, Some(30));
        check(None, Answer::Later, Some(300));
        check(None, Answer::WaitAtMost(Duration::from_secs(1)), Some(300));
        check(Some(600), Answer::Wait, Some(600));
        check(Some(601), Answer::Later, None);
    }
}
