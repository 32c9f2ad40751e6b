//! What every queue promises, held against both: each case runs over the embedded queue and over Redis.
//!
//! A case is a function over a [`bench::Store`]. It is listed once, in `suite!`, and one that is not listed is an unused function.
//! On the embedded queue time is tokio's paused clock; on Redis it is real, so the cases use short leases and delays there is no
//! harm in waiting for, and wait for conditions with a deadline. What takes minutes is in `over_time`, for the paused clock alone.

mod admission;
pub mod bench;
mod cancelling;
mod endings;
mod entering;
pub mod fairness;
mod flights;
mod leases;
mod limits;
mod logs;
mod losses;
mod over_time;
mod redis;
mod waking;

macro_rules! suite {
    ($test:meta, $store:ty) => {
        $crate::conformance::cases! { $test, $store;
            entering {
                enqueueing_a_known_run_changes_nothing
                a_restored_run_keeps_its_attempts_and_others_are_left_as_they_are
                a_restored_run_goes_on_above_its_last_fence
                a_submission_that_comes_after_its_restoration_is_still_answered
                missing_are_the_runs_that_the_queue_never_heard_of
                a_loss_of_memory_is_told_until_it_is_restored
                one_worker_compares_the_ledger_in_a_while
                a_run_is_located_until_it_has_ended
                the_runs_that_a_worker_has_are_counted
                a_run_is_recalled_until_it_is_finished
                stats_count_every_run_where_it_is
                the_store_answers
            }
            admission {
                every_rule_is_charged_or_none
                subjects_do_not_share_their_minute
                admitting_charges_without_enqueueing
                a_known_run_is_not_charged_again
                a_full_queue_refuses_and_charges_nothing
                bytes_of_waiting_runs_are_bounded
            }
            leases {
                a_claim_tells_all_that_a_call_needs
                two_workers_never_get_the_same_run
                fences_grow_with_every_claim
                only_the_named_scopes_are_claimed
                heartbeats_are_answered_in_order
                a_heartbeat_keeps_the_lease_and_the_slot
                a_retry_waits_and_goes_to_its_target
                a_retry_at_once_is_ready_at_once
                a_retry_goes_before_the_account_s_later_runs
                calls_that_a_provider_limited_are_counted_apart
                a_run_that_is_handed_back_is_uncounted_and_goes_first
                an_old_fence_releases_nothing
            }
            losses {
                a_lost_call_is_told_and_then_made_again
                a_lost_call_does_not_begin_before_its_run
                what_a_lost_reaper_had_is_told_again
                a_lost_call_that_is_handed_back_is_told_again
                two_reapers_never_get_the_same_run
                a_run_that_is_lost_too_often_is_poison
                a_lost_run_that_was_cancelled_is_to_be_cancelled
                a_deadline_that_passed_is_found_by_a_claim
                a_deadline_that_passed_is_found_by_a_reaper
                a_delayed_run_can_expire
                slots_of_a_lost_worker_heal
            }
            endings {
                a_stash_reaches_the_front_door_that_waits
                a_repeated_stash_changes_nothing
                a_stash_under_an_old_fence_changes_nothing
                a_stash_of_an_unknown_run_says_so
                a_stashed_ending_outlives_its_worker
                a_stashed_run_is_held_until_it_is_finished
                a_finished_run_does_not_come_back
                finishing_under_an_old_fence_changes_nothing
                a_finished_run_that_was_unknown_does_not_come_back
            }
            cancelling {
                a_waiting_run_ends_at_once
                a_delayed_run_ends_at_once
                a_leased_run_is_signalled
                a_signalled_run_is_not_called_again
                a_run_that_has_ended_is_finished
                an_unknown_run_is_unknown
                a_run_can_be_expired_from_outside
                an_ending_that_its_canceller_did_not_record_is_found
                of_a_cancellation_and_a_stash_one_wins
                of_a_cancellation_and_a_claim_one_wins
                of_two_cancellations_one_wins
            }
            logs {
                a_streamed_run_has_a_log_from_the_start
                whoever_follows_is_told_what_comes
                following_a_run_without_a_log_begins_one
                an_append_that_is_repeated_writes_nothing_twice
                the_last_text_comes_with_the_ending
                an_old_fence_appends_nothing
                a_retry_is_told_and_what_was_streamed_does_not_count
                a_run_that_is_handed_back_after_text_is_told
                a_lost_call_says_whether_it_had_streamed
                a_run_that_is_to_end_is_not_told_as_a_retry
                a_log_is_read_after_the_end
                a_restored_run_has_another_log
                a_submission_that_comes_late_is_told_as_well
                an_unknown_run_has_no_log
                a_long_log_is_read_in_pages
                text_that_a_log_has_no_room_for_is_told_live
                a_waiting_run_that_is_cancelled_ends_its_log
            }
            flights {
                who_would_be_the_same_call_waits_behind_it
                whoever_follows_a_success_is_to_be_answered
                an_answer_that_is_gone_is_a_call_of_its_own
                whoever_follows_a_failure_goes_alone
                whoever_follows_a_run_that_left_has_a_new_leader
                who_is_more_urgent_does_not_wait_behind_who_waits
                a_run_behind_another_can_be_cancelled_and_can_expire
                a_hundred_times_ten_runs_share_one_call
            }
            limits {
                workers_share_concurrency_slots
                workers_share_requests_a_minute
                workers_share_tokens_a_minute
                a_worker_gets_no_more_than_may_leave_at_once
                what_is_not_called_needs_no_pace
                a_stash_frees_its_slot
                a_release_frees_its_slot
                tokens_are_settled_to_what_was_used
                more_tokens_than_a_minute_allows_go_alone
                a_throttled_scope_holds_nobody_else_back
                a_paused_scope_waits_and_goes_on
                a_shorter_pause_does_not_end_a_longer_one
            }
            fairness {
                lanes_share_by_weight
                a_lane_alone_gets_every_turn
                runs_of_an_account_go_in_order
                a_flood_of_one_account_does_not_delay_another
                an_account_that_comes_late_has_nothing_to_catch_up_on
                accounts_share_by_cost
            }
            waking {
                an_idle_wait_ends_in_time
                a_submission_wakes
                a_submission_between_a_claim_and_its_wait_wakes
                a_worker_that_left_runs_behind_does_not_sleep
                a_worker_that_took_all_there_was_is_woken
                a_restored_run_wakes
                a_freed_slot_wakes
                a_run_that_is_handed_back_wakes
                the_claim_says_when_a_delayed_run_is_due
                a_paused_queue_hands_out_nothing
                resuming_wakes
            }
        }
    };
}

macro_rules! cases {
    ($test:meta, $store:ty; $($topic:ident { $($case:ident)* })*) => {
        $(mod $topic {
            $(#[$test]
            async fn $case() {
                $crate::conformance::$topic::$case::<$store>().await;
            })*
        })*
    };
}

use {cases, suite};

mod embedded {
    super::suite!(tokio::test(start_paused = true), crate::conformance::bench::Embedded);
}
