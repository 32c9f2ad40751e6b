//! What is published to front doors, and what becomes of it when nobody hears it.

use std::net::Ipv4Addr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

use super::*;
use crate::job::{Event, Logged};

/// `tell`, as the steps say it: of what is told, the place of an event is a number.
impl Server {
    /// Until so many are subscribed.
    async fn until_heard(&self, channel: &str, by: u64) {
        eventually(async || {
            let (_, subscribed): (String, u64) = self.command(&["PUBSUB", "NUMSUB", channel]).await;
            (subscribed == by).then_some(())
        })
        .await;
    }
}

/// The next one that is no [`Reply::Resumed`].
async fn told(replies: &mut mpsc::Receiver<Reply>) -> Reply {
    loop {
        match soon(replies.recv()).await.expect("the listener goes on") {
            Reply::Resumed => {}
            reply => return reply,
        }
    }
}

impl RedisQueue {
    /// Ends a new run that this front door waits for.
    async fn end_one(&self, front_door: FrontDoorId) -> Ending {
        self.put_for(&job(), front_door).await;
        let worker = WorkerId::new();
        let ending = ending(&self.claim_one(worker).await, worker);
        assert_eq!(self.stash(&ending).await.unwrap(), Held::Done);
        ending
    }
}

#[tokio::test]
async fn whoever_lost_the_connection_is_told_so_and_hears_what_comes_next() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let front_door = FrontDoorId::new();
    let mut replies = queue.replies(front_door, CancellationToken::new()).await.unwrap();
    for round in 0..3 {
        if round > 0 {
            assert_eq!(server.command::<u32>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await, 1);
            assert!(matches!(soon(replies.recv()).await, Some(Reply::Resumed)));
        }
        for _ in 0..5 {
            let ended = queue.end_one(front_door).await;
            let Some(Reply::Ended(told)) = soon(replies.recv()).await else { panic!("an ending was sent") };
            assert_eq!(*told, ended);
        }
        assert!(replies.try_recv().is_err(), "each of them comes once");
    }
}

/// Texts that look like something else, numbers of all sizes, more parts and bytes than fit into one read.
#[tokio::test]
async fn what_one_step_tells_is_one_message_and_in_order() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let (front_door, worker) = (FrontDoorId::new(), WorkerId::new());
    let mut replies = queue.replies(front_door, CancellationToken::new()).await.unwrap();
    queue.put(&job()).await;
    let ending = ending(&queue.claim_one(worker).await, worker);
    let texts = ["\0\r\n", "ending", "\u{80}"].map(str::to_owned).into_iter();
    let texts: Vec<_> = texts.chain([0, 30, 31, 254, 255, 65_534, 65_535].map(|bytes| "a".repeat(bytes))).collect();
    let seqs = [1, 127, 128, 65_535, 65_536, u64::from(u32::MAX) + 1, 1 << 53];
    let expected: Vec<_> = (0..300)
        .map(|index| {
            let logged =
                Logged { seq: seqs[index % seqs.len()], event: Event::Delta(texts[index % texts.len()].clone()) };
            (RunId::new(), logged)
        })
        .collect();

    let mut step = queue.step(scripts::TELL).arg(front_door.to_string());
    for (run, Logged { seq, event }) in &expected {
        step = step.arg("run").arg(run.to_string()).arg("seq").arg(seq).arg("event").arg(event.encode());
        step = step.arg("ending").arg(ending.encode());
    }
    queue.run::<()>(step).await.unwrap();
    for expected in expected {
        let Some(Reply::Event(run, logged)) = soon(replies.recv()).await else { panic!("an event was sent") };
        assert_eq!((run, logged), expected);
        let Some(Reply::Ended(told)) = soon(replies.recv()).await else { panic!("an ending was sent") };
        assert_eq!(*told, ending);
    }
    assert!(replies.try_recv().is_err());
    let stats: String = server.command(&["INFO", "commandstats"]).await;
    assert!(stats.contains("cmdstat_publish:calls=1,"), "{stats}");
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_asked_for_and_stops_nothing() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let front_door = FrontDoorId::new();
    let mut replies = queue.replies(front_door, CancellationToken::new()).await.unwrap();
    let channel = queue.key(&format!("reply:{front_door}"));
    server.command::<u32>(&["PUBLISH", &channel, "Guten Tag"]).await;
    let ended = queue.end_one(front_door).await;
    let Some(Reply::Ended(told)) = soon(replies.recv()).await else { panic!("an ending was sent") };
    assert_eq!(*told, ended);
    assert!(matches!(soon(replies.recv()).await, Some(Reply::Resumed)));
}

#[tokio::test]
async fn nothing_is_left_in_redis_of_a_front_door_and_what_it_was_told() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let (front_door, stop) = (FrontDoorId::new(), CancellationToken::new());
    let channel = queue.key(&format!("reply:{front_door}"));
    let replies = queue.replies(front_door, stop.clone()).await.unwrap();
    server.until_heard(&channel, 1).await;
    stop.cancel();
    server.until_heard(&channel, 0).await;
    drop(replies);
    drop(queue.replies(front_door, CancellationToken::new()).await.unwrap());
    server.until_heard(&channel, 0).await;
    // It is gone, and its run ends all the same.
    queue.end_one(front_door).await;
    let keys: Vec<String> = server.command(&["KEYS", "*reply*"]).await;
    assert_eq!(keys, Vec::<String>::new());
}

/// A way to a server. What is done to it holds for the connections of then, or for those that are made from then on.
struct Way {
    port: u16,
    leads_to: watch::Sender<u16>,
    falls_silent: watch::Sender<()>,
}

impl Way {
    async fn to(server: &Server) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (leads_to, target) = watch::channel(server.port);
        let (falls_silent, mut silence) = watch::channel(());
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let target = *target.borrow();
                silence.borrow_and_update();
                let mut silence = silence.clone();
                tokio::spawn(async move {
                    let mut to = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut from, &mut to) => {}
                        // Both ends stay open.
                        Ok(()) = silence.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { port, leads_to, falls_silent }
    }

    async fn queue(&self, server: &Server) -> RedisQueue {
        let url = Secret::new(format!("redis://127.0.0.1:{}", self.port));
        RedisQueue::connect(RedisSettings { url, ..server.settings() }).await.unwrap()
    }
}

/// The server knows nothing of it: for it, somebody listens.
#[tokio::test]
async fn a_connection_that_says_nothing_any_more_is_given_up() {
    let server = Server::start().await;
    let way = Way::to(&server).await;
    let queue = way.queue(&server).await;
    let front_door = FrontDoorId::new();
    let mut replies = queue.replies(front_door, CancellationToken::new()).await.unwrap();
    way.falls_silent.send(()).unwrap();
    assert!(matches!(soon(replies.recv()).await, Some(Reply::Resumed)));
    // Steps have found out, too.
    eventually(async || queue.ping().await.ok()).await;
    let ended = queue.end_one(front_door).await;
    let Reply::Ended(heard) = told(&mut replies).await else { panic!("an ending was sent") };
    assert_eq!(*heard, ended);
}

/// A server that was replaced may keep its subscribers, and answers their pings. Nobody publishes there any more.
#[tokio::test]
async fn a_front_door_follows_the_steps_to_another_server() {
    let (old, new) = (Server::start().await, Server::start().await);
    let way = Way::to(&old).await;
    let queue = way.queue(&old).await;
    let front_door = FrontDoorId::new();
    let mut replies = queue.replies(front_door, CancellationToken::new()).await.unwrap();
    way.leads_to.send(new.port).unwrap();
    old.command::<u32>(&["CLIENT", "KILL", "TYPE", "normal"]).await;

    new.until_heard(&queue.key(&format!("reply:{front_door}")), 1).await;
    assert!(matches!(soon(replies.recv()).await, Some(Reply::Resumed)));
    let ended = queue.end_one(front_door).await;
    let Reply::Ended(heard) = told(&mut replies).await else { panic!("an ending was sent") };
    assert_eq!(*heard, ended);
}
