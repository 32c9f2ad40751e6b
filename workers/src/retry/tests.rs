use proptest::prelude::*;

use super::*;

const POLICY: RetryPolicy =
    RetryPolicy { max_attempts: 4, base: Duration::from_millis(200), cap: Duration::from_secs(1) };

const EVERY_CLASS: [ErrorClass; 9] = [
    ErrorClass::Limited { after: None },
    ErrorClass::Failing { after: None },
    ErrorClass::Unreachable,
    ErrorClass::Timeout,
    ErrorClass::Truncated,
    ErrorClass::Garbage,
    ErrorClass::Unauthorized,
    ErrorClass::Rejected,
    ErrorClass::Expired,
];

/// The first attempt of a run with one target and a minute left, with the jitter in the middle.
fn first() -> Situation {
    let (now, deadline) = (UnixMillis(0), UnixMillis(60_000));
    Situation { attempt: 1, limited: 0, target: 0, targets: 1, now, deadline, roll: 0.5 }
}

fn limited(seconds: u64) -> ErrorClass {
    ErrorClass::Limited { after: Some(Duration::from_secs(seconds)) }
}

fn failing(seconds: u64) -> ErrorClass {
    ErrorClass::Failing { after: Some(Duration::from_secs(seconds)) }
}

#[track_caller]
fn check(class: ErrorClass, situation: Situation, expect: Expect) {
    let step = next_step(&POLICY, &CallError::new(class, "for operators only"), situation);
    let got = match step {
        Step::Retry { after, target } => Expect::Retry { millis: after.as_millis(), target },
        Step::Fail(failure) => {
            assert!(!failure.message.contains("operators only"), "{failure:?} tells what the provider said");
            assert!(!failure.message.ends_with('.'), "{failure:?} ends unlike the others");
            Expect::Fail(failure.code, failure.retryable)
        }
        Step::Expire => Expect::Expire,
    };
    assert_eq!(got, expect);
}

#[derive(Debug, PartialEq)]
enum Expect {
    Retry { millis: u128, target: usize },
    Fail(String, bool),
    Expire,
}

fn retry(millis: u128, target: usize) -> Expect {
    Expect::Retry { millis, target }
}

fn fail(code: &str, retryable: bool) -> Expect {
    Expect::Fail(code.to_owned(), retryable)
}

#[test]
fn a_failed_attempt_is_made_again_with_a_growing_jittered_pause() {
    for class in [
        ErrorClass::Failing { after: None },
        ErrorClass::Unreachable,
        ErrorClass::Timeout,
        ErrorClass::Truncated,
        ErrorClass::Garbage,
    ] {
        check(class.clone(), first(), retry(100, 0));
        check(class.clone(), Situation { attempt: 2, ..first() }, retry(200, 0));
        check(class.clone(), Situation { attempt: 3, ..first() }, retry(400, 0));
        check(class, Situation { roll: 0.0, ..first() }, retry(0, 0));
    }
    let patient = RetryPolicy { max_attempts: 100, ..POLICY };
    let late = Situation { attempt: 90, roll: 0.99, ..first() };
    let step = next_step(&patient, &CallError::new(ErrorClass::Timeout, ""), late);
    assert_eq!(step, Step::Retry { after: Duration::from_millis(990), target: 0 }, "the doubling stops at the cap");
}

#[test]
fn a_run_whose_attempts_are_used_up_fails_with_a_code_of_its_class() {
    let last = Situation { attempt: 4, targets: 2, target: 0, ..first() };
    check(ErrorClass::Failing { after: None }, last, fail("provider_error", true));
    check(ErrorClass::Unreachable, last, fail("provider_unreachable", true));
    check(ErrorClass::Timeout, last, fail("provider_timeout", true));
    check(ErrorClass::Truncated, last, fail("provider_truncated", true));
    check(ErrorClass::Garbage, last, fail("provider_garbage", true));
    check(ErrorClass::Unauthorized, last, fail("provider_unauthorized", false));
    check(ErrorClass::Rejected, last, fail("provider_rejected", false));
    check(ErrorClass::Expired, last, Expect::Expire);
}

#[test]
fn what_the_provider_says_about_when_is_a_lower_bound() {
    check(failing(3), first(), retry(3_000, 0));
    check(failing(0), first(), retry(100, 0));
    check(limited(3), first(), retry(3_000, 0));
    check(limited(0), first(), retry(200, 0));
    check(ErrorClass::Limited { after: None }, Situation { roll: 0.0, ..first() }, retry(200, 0));
    check(ErrorClass::Limited { after: None }, Situation { attempt: 3, roll: 0.9, ..first() }, retry(720, 0));
}

#[test]
fn a_year_of_patience_is_not_taken_at_its_word() {
    let tomorrow = Situation { deadline: UnixMillis(86_400_000), ..first() };
    check(limited(365 * 86_400), tomorrow, retry(600_000, 0));
    check(failing(365 * 86_400), tomorrow, retry(600_000, 0));
    check(ErrorClass::Limited { after: Some(Duration::MAX) }, tomorrow, retry(600_000, 0));
}

#[test]
fn a_limited_run_waits_however_often_and_expires_when_the_wait_is_too_long() {
    check(limited(2), Situation { attempt: 40, ..first() }, retry(2_000, 0));
    check(limited(30), first(), retry(30_000, 0));
    check(limited(61), first(), Expect::Expire);
    check(limited(60), first(), Expect::Expire);
    check(limited(1), Situation { now: UnixMillis(59_500), ..first() }, Expect::Expire);
}

#[test]
fn limited_attempts_use_up_nothing_of_a_failure() {
    let after_limits = |attempt| Situation { attempt, limited: 10, ..first() };
    check(ErrorClass::Timeout, after_limits(11), retry(100, 0));
    check(ErrorClass::Timeout, after_limits(12), retry(200, 0));
    check(ErrorClass::Timeout, after_limits(13), retry(400, 0));
    check(ErrorClass::Timeout, after_limits(14), fail("provider_timeout", true));
    // Nor of a target's share.
    let two = Situation { targets: 2, ..after_limits(11) };
    check(ErrorClass::Timeout, two, retry(100, 0));
    check(ErrorClass::Timeout, Situation { attempt: 12, ..two }, retry(0, 1));
    check(ErrorClass::Timeout, Situation { attempt: 13, target: 1, ..two }, retry(400, 1));
    check(ErrorClass::Rejected, Situation { attempt: 13, ..two }, retry(0, 1));
    // A provider that goes on saying later without a time is asked less and less often.
    check(ErrorClass::Limited { after: None }, after_limits(11), retry(500, 0));
}

#[test]
fn a_retry_that_would_miss_the_deadline_is_a_failure_of_the_call() {
    check(failing(61), first(), fail("provider_error", true));
    check(
        ErrorClass::Unreachable,
        Situation { now: UnixMillis(59_950), ..first() },
        fail("provider_unreachable", true),
    );
    check(ErrorClass::Timeout, Situation { now: UnixMillis(60_001), ..first() }, fail("provider_timeout", true));
}

#[test]
fn the_next_target_is_called_at_once_when_this_one_is_of_no_use() {
    let two = Situation { targets: 2, ..first() };
    check(ErrorClass::Unauthorized, two, retry(0, 1));
    check(ErrorClass::Rejected, two, retry(0, 1));
    check(ErrorClass::Unauthorized, Situation { target: 1, ..two }, fail("provider_unauthorized", false));
    check(ErrorClass::Rejected, Situation { now: two.deadline, ..two }, fail("provider_rejected", false));
    // A provider that wants a long pause, or one that the deadline does not leave.
    check(limited(5), two, retry(5_000, 0));
    check(limited(6), two, retry(0, 1));
    check(limited(6), Situation { target: 1, ..two }, retry(6_000, 1));
    check(failing(6), two, retry(0, 1));
    check(limited(2), Situation { now: UnixMillis(59_000), ..two }, retry(0, 1));
    check(failing(2), Situation { now: UnixMillis(59_000), ..two }, retry(0, 1));
    check(ErrorClass::Expired, two, Expect::Expire);
}

#[test]
fn targets_share_the_attempts() {
    let at = |attempt, target, targets| Situation { attempt, target, targets, ..first() };
    check(ErrorClass::Timeout, at(1, 0, 2), retry(100, 0));
    check(ErrorClass::Timeout, at(2, 0, 2), retry(0, 1));
    check(ErrorClass::Timeout, at(3, 1, 2), retry(400, 1));
    check(ErrorClass::Timeout, at(4, 1, 2), fail("provider_timeout", true));
    // A target that was left early leaves its part to the ones after it.
    check(ErrorClass::Timeout, at(2, 1, 2), retry(200, 1));
    // More targets than attempts: one call each, as far as they go.
    check(ErrorClass::Timeout, at(1, 0, 9), retry(0, 1));
    check(ErrorClass::Timeout, at(4, 3, 9), fail("provider_timeout", true));
}

proptest! {
    #[test]
    fn no_run_is_tried_too_often_too_late_or_too_soon(
        errors in proptest::collection::vec((0_usize..EVERY_CLASS.len(), proptest::option::of(0_u64..2_000_000), 0.0_f64..1.0, 0_u64..5_000), 1..60),
        targets in 1_usize..5,
        max_attempts in 0_i32..8,
        deadline in 0_i64..100_000,
    ) {
        let policy = RetryPolicy { max_attempts, ..POLICY };
        let deadline = UnixMillis(deadline);
        let (mut now, mut attempt, mut target, mut limited) = (UnixMillis(0), 0_i32, 0_usize, 0_i32);
        for (class, after, roll, took) in errors {
            attempt += 1;
            now = now.plus(took);
            let said = after.map(Duration::from_millis);
            let class = match EVERY_CLASS[class].clone() {
                ErrorClass::Limited { .. } => ErrorClass::Limited { after: said },
                ErrorClass::Failing { .. } => ErrorClass::Failing { after: said },
                other => other,
            };
            let is_limited = matches!(class, ErrorClass::Limited { .. });
            let situation = Situation { attempt, limited, target, targets, now, deadline, roll };
            let failures = attempt - limited;
            limited += i32::from(is_limited);
            let step = next_step(&policy, &CallError::new(class.clone(), ""), situation);
            match step {
                Step::Retry { after, target: next } => {
                    prop_assert!(class != ErrorClass::Expired);
                    prop_assert!(is_limited || failures < max_attempts, "{failures} failures of {max_attempts}");
                    prop_assert!(next == target || (next == target + 1 && next < targets && after.is_zero()));
                    if next == target {
                        let said = match class {
                            ErrorClass::Limited { .. } | ErrorClass::Failing { .. } => said.unwrap_or_default().min(MAX_PAUSE),
                            _ => Duration::ZERO,
                        };
                        prop_assert!(after >= said, "{after:?} is sooner than {said:?}");
                        prop_assert!(after <= said.max(policy.cap));
                        prop_assert!(!is_limited || after >= policy.base);
                    }
                    now = now.plus(u64::try_from(after.as_millis()).unwrap());
                    prop_assert!(now < deadline, "a try at {now:?} after {deadline:?}");
                    target = next;
                }
                Step::Expire => {
                    prop_assert!(is_limited || class == ErrorClass::Expired);
                    break;
                }
                Step::Fail(failure) => {
                    prop_assert!(!is_limited && class != ErrorClass::Expired);
                    prop_assert!(failure.code.starts_with("provider_"));
                    let hopeless = matches!(class, ErrorClass::Unauthorized | ErrorClass::Rejected);
                    let patient = now.plus(u64::try_from(MAX_PAUSE.as_millis()).unwrap()) < deadline;
                    prop_assert!(hopeless || !patient || failures >= max_attempts, "given up after {failures}");
                    break;
                }
            }
        }
    }
}
