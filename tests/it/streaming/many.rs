//! Many streams at once. `scripts/open-streams` runs it: it needs more open files than a test may take for granted.

use crate::support::{
    app::{App, Mode, Shape, client},
    events::{EventStream, check_whole},
    provider::{Answer, Gate},
};

use super::greeting;

/// Streams that are opened at a time.
const AT_ONCE: usize = 50;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "opens as many streams as OPEN_STREAMS says; `scripts/open-streams` runs it"]
async fn open_streams_cost_little() {
    let count: usize = std::env::var("OPEN_STREAMS").unwrap().parse().unwrap();
    let config = format!("[workers]\nslots = {}\n", count + 100);
    let app = App::shaped(Shape { config, ..Shape::of(Mode::Distributed) }).await;
    app.import_greeting();
    let gate = Gate::new();
    app.provider().set_default(Answer::pieces(["Bonjour ", "et ", "au revoir"]).held_after(1, &gate));
    // What is kept once, whatever comes: connections to stores, caches, threads.
    let mut streams = open(&app, 100).await;
    let before = [app.front_doors[0].resident(), app.workers[0].resident()];
    while streams.len() < count {
        streams.extend(open(&app, AT_ONCE.min(count - streams.len())).await);
    }
    let now = [app.front_doors[0].resident(), app.workers[0].resident()];
    let each = |process: usize| now[process].saturating_sub(before[process]) / (count as u64 - 100);
    println!(
        "{count} streams in the middle of their text: {} bytes a stream in the front door, {} in the worker",
        each(0),
        each(1)
    );
    assert_eq!(app.provider().concurrency(), count);
    let since = std::time::Instant::now();
    gate.open();
    let rests = streams.into_iter().map(async |(run, mut events, mut stream)| {
        events.extend(stream.rest().await);
        check_whole(&events, &run, 0);
    });
    futures::future::join_all(rests).await;
    println!("all {count} were whole {:?} after their models went on", since.elapsed());
}

/// Opens streams, and reads each up to its first text.
async fn open(app: &App, count: usize) -> Vec<(String, Vec<crate::support::events::Told>, EventStream)> {
    let opened = (0..count).map(async |_| {
        let mut body = greeting();
        body["stream"] = true.into();
        let request = client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", app.key()).json(&body);
        let mut stream = EventStream::of(request.send().await.unwrap()).await.expect("a stream");
        let (run, events) = (stream.run(), stream.until("run.output_text.delta").await);
        (run, events, stream)
    });
    futures::future::join_all(opened).await
}
