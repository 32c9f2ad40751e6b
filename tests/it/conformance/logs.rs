//! The log of a run's events: what is in it, and who is told.

use std::{sync::Arc, time::Duration};

use workers::{
    job::{Ending, Event, Fence, Job, Logged, Outcome, RunId},
    queue::{Cancelled, Claim, Followed, Held, LOG_BYTES, LOG_PAGE, LogMark, NewText, Restored, Work},
};

use super::bench::{Bench, FrontDoor, LONG, SHORT, Spec, Store, run, succeeded};

fn streamed() -> Spec {
    Spec { stream: true, ..run() }
}

/// Events as a test writes them: `2 started 1`.
fn words(events: &[Logged]) -> Vec<String> {
    let word = |Logged { seq, event }: &Logged| match event {
        Event::Queued => format!("{seq} queued"),
        Event::Started { attempt } => format!("{seq} started {attempt}"),
        Event::Delta(text) => format!("{seq} {text}"),
        Event::Retrying => format!("{seq} retrying"),
        Event::Ended(ending) => format!("{seq} {}", ending.outcome.state().as_str()),
        Event::Skipped => format!("{seq} skipped"),
    };
    events.iter().map(word).collect()
}

/// The log of a run after an event, its length, and which log it is.
async fn read(bench: &Bench, run: RunId, front_door: &FrontDoor, after: u64) -> (Vec<Logged>, u64, u64) {
    match bench.queue.follow(run, front_door.id, after).await.unwrap() {
        Followed::Log { events, length, began } => (events, length, began),
        Followed::Unknown => panic!("the run has a log"),
    }
}

async fn has(bench: &Bench, run: RunId, front_door: &FrontDoor, expect: &[&str]) {
    let (events, length, _) = read(bench, run, front_door, 0).await;
    assert_eq!(words(&events), expect);
    assert_eq!(length, expect.len() as u64);
}

async fn is_told(front_door: &mut FrontDoor, run: RunId, expect: &[&str]) {
    let mut told = Vec::new();
    while told.len() < expect.len() {
        told.push(front_door.event(run).await);
    }
    assert_eq!(words(&told), expect);
}

async fn says(bench: &Bench, claim: &Claim, first: u64, text: &[&str]) -> Held {
    bench.queue.append(claim.job.id, claim.fence, &new_text(first, text)).await.unwrap()
}

fn new_text(first: u64, text: &[&str]) -> NewText {
    NewText { first, before: 0, deltas: text.iter().map(|text| (*text).to_owned()).collect() }
}

async fn stream_for(bench: &Bench, front_door: &FrontDoor) -> Arc<Job> {
    let job = streamed().job();
    bench.enqueue_for(front_door.id, &job).await;
    job
}

fn cancelled(claim: &Claim) -> Ending {
    Ending { outcome: Outcome::Cancelled, ..succeeded(claim) }
}

pub async fn a_streamed_run_has_a_log_from_the_start<S: Store>() {
    let bench = S::open(LONG).await;
    let mut front_door = bench.front_door().await;
    let job = stream_for(&bench, &front_door).await;
    let (events, _, began) = read(&bench, job.id, &front_door, 0).await;
    assert_eq!((words(&events), began), (vec!["1 queued".to_owned()], 0));
    let claim = bench.take().await;
    assert_eq!(claim.log, Some(LogMark { next: 3, streamed: false }));
    assert_eq!(says(&bench, &claim, 3, &["Bon", "jour"]).await, Held::Done);
    bench.end(&claim).await;
    // Whoever submits knows the first event. The ending comes as the last one, and only so: what comes next is of the next run.
    is_told(&mut front_door, job.id, &["2 started 1", "3 Bon", "4 jour", "5 succeeded"]).await;
    let next = stream_for(&bench, &front_door).await;
    let claim = bench.take().await;
    is_told(&mut front_door, next.id, &["2 started 1"]).await;
    bench.end(&claim).await;
}

pub async fn whoever_follows_is_told_what_comes<S: Store>() {
    let bench = S::open(LONG).await;
    let (mut first, mut second) = (bench.front_door().await, bench.front_door().await);
    let job = stream_for(&bench, &first).await;
    let claim = bench.take().await;
    says(&bench, &claim, 3, &["a"]).await;
    has(&bench, job.id, &second, &["1 queued", "2 started 1", "3 a"]).await;
    let (events, length, _) = read(&bench, job.id, &second, 2).await;
    assert_eq!((words(&events), length), (vec!["3 a".to_owned()], 3));
    let (events, length, _) = read(&bench, job.id, &second, 7).await;
    assert_eq!((events, length), (Vec::new(), 3));
    says(&bench, &claim, 4, &["b"]).await;
    bench.end(&claim).await;
    // Once each, however often it asked.
    is_told(&mut second, job.id, &["4 b", "5 succeeded"]).await;
    is_told(&mut first, job.id, &["2 started 1", "3 a", "4 b", "5 succeeded"]).await;
}

pub async fn following_a_run_without_a_log_begins_one<S: Store>() {
    let bench = S::open(LONG).await;
    let mut waits = bench.front_door().await;
    let mut front_door = bench.front_door().await;
    let waiting = run().job();
    bench.enqueue_for(waits.id, &waiting).await;
    has(&bench, waiting.id, &front_door, &["1 queued"]).await;
    let claim = bench.take().await;
    assert_eq!(claim.log, Some(LogMark { next: 3, streamed: false }));
    bench.end(&claim).await;
    is_told(&mut front_door, waiting.id, &["2 started 1", "3 succeeded"]).await;
    // Who waits for the ending alone still gets it.
    assert_eq!(waits.next().await, succeeded_as(&claim, &bench, &front_door).await);

    let leased = run().job();
    bench.enqueue(&leased).await;
    let claim = bench.take().await;
    assert_eq!(claim.log, None);
    has(&bench, leased.id, &front_door, &["1 queued", "2 started 1"]).await;
    bench.end(&claim).await;
    is_told(&mut front_door, leased.id, &["3 succeeded"]).await;

    let ended = run().job();
    bench.enqueue(&ended).await;
    let claim = bench.take().await;
    bench.stash(&succeeded(&claim)).await;
    has(&bench, ended.id, &front_door, &["1 queued", "2 started 1", "3 succeeded"]).await;
    bench.queue.finish(&[(ended.id, claim.fence)]).await.unwrap();
    has(&bench, ended.id, &front_door, &["1 queued", "2 started 1", "3 succeeded"]).await;
}

/// The ending that the log of a run has.
async fn succeeded_as(claim: &Claim, bench: &Bench, front_door: &FrontDoor) -> Ending {
    let (events, ..) = read(bench, claim.job.id, front_door, 0).await;
    match events.last().map(|logged| &logged.event) {
        Some(Event::Ended(ending)) => (**ending).clone(),
        other => panic!("the last event is the ending: {other:?}"),
    }
}

pub async fn an_append_that_is_repeated_writes_nothing_twice<S: Store>() {
    let bench = S::open(LONG).await;
    let mut front_door = bench.front_door().await;
    let job = stream_for(&bench, &front_door).await;
    let claim = bench.take().await;
    assert_eq!(says(&bench, &claim, 3, &["a", "b"]).await, Held::Done);
    assert_eq!(says(&bench, &claim, 3, &["a", "b"]).await, Held::Done);
    assert_eq!(says(&bench, &claim, 4, &["b", "c"]).await, Held::Done);
    has(&bench, job.id, &front_door, &["1 queued", "2 started 1", "3 a", "4 b", "5 c"]).await;
    bench.end(&claim).await;
    is_told(&mut front_door, job.id, &["2 started 1", "3 a", "4 b", "5 c", "6 succeeded"]).await;
}

pub async fn the_last_text_comes_with_the_ending<S: Store>() {
    let bench = S::open(LONG).await;
    let mut front_door = bench.front_door().await;
    let job = stream_for(&bench, &front_door).await;
    let claim = bench.take().await;
    says(&bench, &claim, 3, &["a", "b"]).await;
    // Nobody was answered that "b" was written, so that it comes again.
    let (text, ending) = (new_text(4, &["b", "c", "d"]), succeeded(&claim));
    assert_eq!(bench.queue.stash_after(&text, &ending).await.unwrap(), Held::Done);
    assert_eq!(bench.queue.stash_after(&text, &ending).await.unwrap(), Held::Done);
    let all = ["1 queued", "2 started 1", "3 a", "4 b", "5 c", "6 d", "7 succeeded"];
    has(&bench, job.id, &front_door, &all).await;
    is_told(&mut front_door, job.id, &all[1..]).await;

    let job = stream_for(&bench, &front_door).await;
    let old = bench.take().await;
    bench.retry(&old, Duration::ZERO).await;
    let late = bench.queue.stash_after(&new_text(3, &["late"]), &succeeded(&old)).await.unwrap();
    assert_eq!(late, Held::Elsewhere);
    let all = ["1 queued", "2 started 1", "3 retrying"];
    has(&bench, job.id, &front_door, &all).await;
    is_told(&mut front_door, job.id, &all[1..]).await;
}

pub async fn an_old_fence_appends_nothing<S: Store>() {
    let bench = S::open(LONG).await;
    let front_door = bench.front_door().await;
    let job = stream_for(&bench, &front_door).await;
    let old = bench.take().await;
    assert_eq!(bench.retry(&old, Duration::ZERO).await, Held::Done);
    assert_eq!(says(&bench, &old, 3, &["late"]).await, Held::Elsewhere);
    let new = bench.take().await;
    assert_eq!(says(&bench, &old, 5, &["late"]).await, Held::Elsewhere);
    has(&bench, job.id, &front_door, &["1 queued", "2 started 1", "3 retrying", "4 started 2"]).await;
    bench.stash(&succeeded(&new)).await;
    assert_eq!(says(&bench, &new, 6, &["late"]).await, Held::Elsewhere);
    bench.queue.finish(&[(job.id, new.fence)]).await.unwrap();
    assert_eq!(says(&bench, &new, 6, &["late"]).await, Held::Elsewhere);
    let unknown = bench.queue.append(RunId::new(), Fence(1), &new_text(1, &["late"])).await.unwrap();
    assert_eq!(unknown, Held::Unknown);
}

pub async fn a_retry_is_told_and_what_was_streamed_does_not_count<S: Store>() {
    let bench = S::open(LONG).await;
    let mut front_door = bench.front_door().await;
    let job = stream_for(&bench, &front_door).await;
    let claim = bench.take().await;
    says(&bench, &claim, 3, &["a"]).await;
    bench.retry(&claim, Duration::ZERO).await;
    let claim = bench.take().await;
    assert_eq!(claim.log, Some(LogMark { next: 6, streamed: false }));
    says(&bench, &claim, 6, &["b"]).await;
    bench.end(&claim).await;
    let told = ["2 started 1", "3 a", "4 retrying", "5 started 2", "6 b", "7 succeeded"];
    is_told(&mut front_door, job.id, &told).await;
}

pub async fn a_run_that_is_handed_back_after_text_is_told<S: Store>() {
    let bench = S::open(LONG).await;
    let mut front_door = bench.front_door().await;
    let job = stream_for(&bench, &front_door).await;
    // Nothing was said: nothing has to be forgotten.
    let claim = bench.take().await;
    bench.hand_back(&claim).await;
    let claim = bench.take().await;
    says(&bench, &claim, 4, &["a"]).await;
    bench.hand_back(&claim).await;
    let claim = bench.take().await;
    assert_eq!(claim.log, Some(LogMark { next: 7, streamed: false }));
    bench.end(&claim).await;
    let told = ["2 started 1", "3 started 1", "4 a", "5 retrying", "6 started 1", "7 succeeded"];
    is_told(&mut front_door, job.id, &told).await;
}

pub async fn a_lost_call_says_whether_it_had_streamed<S: Store>() {
    for text in [None, Some("a")] {
        let bench = S::open(SHORT).await;
        let mut front_door = bench.front_door().await;
        let job = stream_for(&bench, &front_door).await;
        let claim = bench.take().await;
        if let Some(text) = text {
            says(&bench, &claim, 3, &[text]).await;
        }
        let lost = bench.reap().await;
        assert!(matches!(lost.work, Work::Lost(_)), "{:?}", lost.work);
        let next = 3 + text.iter().len() as u64;
        assert_eq!(lost.log, Some(LogMark { next, streamed: text.is_some() }));
        // It is told as long as nobody dealt with it, and then no more.
        let lost = bench.reap().await;
        assert_eq!(lost.log, Some(LogMark { next, streamed: text.is_some() }));
        assert_eq!(bench.retry(&lost, Duration::ZERO).await, Held::Done);
        let claim = bench.take_later().await;
        assert_eq!(claim.log, Some(LogMark { next: next + 2, streamed: false }));
        front_door.event(job.id).await;
        if text.is_some() {
            front_door.event(job.id).await;
        }
        assert_eq!(front_door.event(job.id).await, Logged { seq: next, event: Event::Retrying });
        bench.end(&claim).await;
    }
}

pub async fn a_run_that_is_to_end_is_not_told_as_a_retry<S: Store>() {
    let bench = S::open(SHORT).await;
    let mut front_door = bench.front_door().await;
    let job = stream_for(&bench, &front_door).await;
    let claim = bench.take().await;
    says(&bench, &claim, 3, &["a"]).await;
    assert_eq!(bench.cancel(job.id).await, Cancelled::Signalled);
    bench.retry(&claim, Duration::ZERO).await;
    let claim = super::bench::eventually("the cancelled run", async || match bench.claim(1).await.pop() {
        Some(claim) => Some(claim),
        None => bench.queue.reap(bench.other, 1).await.unwrap().pop(),
    })
    .await;
    assert!(matches!(claim.work, Work::Cancel(_)), "{claim:?}");
    bench.stash(&cancelled(&claim)).await;
    is_told(&mut front_door, job.id, &["2 started 1", "3 a", "4 cancelled"]).await;
}

pub async fn a_log_is_read_after_the_end<S: Store>() {
    let bench = S::open(LONG).await;
    let (front_door, other) = (bench.front_door().await, bench.front_door().await);
    let job = stream_for(&bench, &front_door).await;
    let claim = bench.take().await;
    says(&bench, &claim, 3, &["a"]).await;
    let expect = ["1 queued", "2 started 1", "3 a", "4 succeeded"];
    bench.stash(&succeeded(&claim)).await;
    has(&bench, job.id, &other, &expect).await;
    bench.queue.finish(&[(job.id, claim.fence)]).await.unwrap();
    has(&bench, job.id, &other, &expect).await;
    let (events, length, _) = read(&bench, job.id, &other, 3).await;
    assert_eq!((words(&events), length), (vec!["4 succeeded".to_owned()], 4));
    assert_eq!(succeeded_as(&claim, &bench, &other).await.outcome, succeeded(&claim).outcome);
}

pub async fn a_restored_run_has_another_log<S: Store>() {
    let bench = S::open(LONG).await;
    let mut front_door = bench.front_door().await;
    let job = streamed().job();
    bench
        .queue
        .restore(&[Restored { job: Arc::clone(&job), attempts: 2, limited: 0, fence: Fence::default() }])
        .await
        .unwrap();
    let (events, _, began) = read(&bench, job.id, &front_door, 0).await;
    assert_eq!(words(&events), ["1 queued"]);
    assert_ne!(began, 0, "it is not the log of the submission");
    assert_eq!(read(&bench, job.id, &front_door, 0).await.2, began);
    let claim = bench.take().await;
    bench.end(&claim).await;
    is_told(&mut front_door, job.id, &["2 started 3", "3 succeeded"]).await;
    assert_eq!(read(&bench, job.id, &front_door, 0).await.2, began);
}

pub async fn a_submission_that_comes_late_is_told_as_well<S: Store>() {
    let bench = S::open(LONG).await;
    let (mut submits, mut follows) = (bench.front_door().await, bench.front_door().await);
    let job = streamed().job();
    bench
        .queue
        .restore(&[Restored { job: Arc::clone(&job), attempts: 0, limited: 0, fence: Fence::default() }])
        .await
        .unwrap();
    has(&bench, job.id, &follows, &["1 queued"]).await;
    bench.enqueue_for(submits.id, &job).await;
    let claim = bench.take().await;
    bench.end(&claim).await;
    is_told(&mut submits, job.id, &["2 started 1", "3 succeeded"]).await;
    is_told(&mut follows, job.id, &["2 started 1", "3 succeeded"]).await;
}

pub async fn an_unknown_run_has_no_log<S: Store>() {
    let bench = S::open(LONG).await;
    let front_door = bench.front_door().await;
    assert_eq!(bench.queue.follow(RunId::new(), front_door.id, 0).await.unwrap(), Followed::Unknown);
    // Neither has one that ended while nobody followed it.
    bench.flood(&run(), 1).await;
    let claim = bench.take().await;
    bench.end(&claim).await;
    assert_eq!(bench.queue.follow(claim.job.id, front_door.id, 0).await.unwrap(), Followed::Unknown);
}

pub async fn a_long_log_is_read_in_pages<S: Store>() {
    let bench = S::open(LONG).await;
    let front_door = bench.front_door().await;
    let job = stream_for(&bench, &front_door).await;
    let claim = bench.take().await;
    let text = NewText { first: 3, before: 0, deltas: (0..2 * LOG_PAGE).map(|number| format!("{number} ")).collect() };
    bench.queue.append(job.id, claim.fence, &text).await.unwrap();
    bench.end(&claim).await;
    let (mut all, mut pages) = (Vec::new(), Vec::new());
    loop {
        let (events, length, _) = read(&bench, job.id, &front_door, all.len() as u64).await;
        pages.push(events.len());
        all.extend(events);
        if all.len() as u64 == length {
            break;
        }
    }
    assert_eq!(pages, [LOG_PAGE, LOG_PAGE, 3]);
    assert!(all.iter().zip(1..).all(|(logged, seq)| logged.seq == seq));
    let told: String = all.iter().filter_map(|logged| text_of(&logged.event)).collect();
    assert_eq!(told, text.deltas.concat());
    let (events, ..) = read(&bench, job.id, &front_door, 1 << 53).await;
    assert_eq!(events, []);
}

fn text_of(event: &Event) -> Option<&str> {
    match event {
        Event::Delta(text) => Some(text),
        _ => None,
    }
}

pub async fn text_that_a_log_has_no_room_for_is_told_live<S: Store>() {
    let bench = S::open(LONG).await;
    let mut front_door = bench.front_door().await;
    let job = stream_for(&bench, &front_door).await;
    let claim = bench.take().await;
    let large = "a".repeat(LOG_BYTES - 1);
    let mut text = NewText { first: 3, ..NewText::default() };
    for delta in [large.as_str(), "b", "c"] {
        text.deltas.push(delta.to_owned());
        // The answer to the first time was lost.
        for _ in 0..2 {
            assert_eq!(bench.queue.append(job.id, claim.fence, &text).await.unwrap(), Held::Done);
        }
        text.pass();
    }
    assert_eq!((text.first, text.before), (6, LOG_BYTES as u64 + 1));
    bench.end(&claim).await;
    let (events, length, _) = read(&bench, job.id, &front_door, 3).await;
    assert_eq!((words(&events), length), (vec!["4 b".into(), "5 skipped".into(), "6 succeeded".into()], 6));
    assert_eq!(words(&[front_door.event(job.id).await]), ["2 started 1"]);
    assert_eq!(text_of(&front_door.event(job.id).await.event), Some(&*large));
    is_told(&mut front_door, job.id, &["4 b", "5 c", "6 succeeded"]).await;
}

pub async fn a_waiting_run_that_is_cancelled_ends_its_log<S: Store>() {
    let bench = S::open(LONG).await;
    let mut front_door = bench.front_door().await;
    let job = stream_for(&bench, &front_door).await;
    let Cancelled::Ended { ending, .. } = bench.cancel(job.id).await else { panic!("the run was waiting") };
    is_told(&mut front_door, job.id, &["2 cancelled"]).await;
    bench.queue.finish(&[(job.id, ending.fence)]).await.unwrap();
    has(&bench, job.id, &front_door, &["1 queued", "2 cancelled"]).await;
}
