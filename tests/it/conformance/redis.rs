//! The suite over Redis: a server of its own for every case.

use std::{sync::Arc, time::Duration};

use workers::{
    providers::Secret,
    queue::redis::{RedisQueue, RedisSettings},
};

use super::bench::{Bench, Store};
use crate::support::redis::RedisServer;

pub struct Redis;

impl Store for Redis {
    async fn open(lease: Duration) -> Bench {
        let server = RedisServer::start().await;
        let settings =
            RedisSettings { url: Secret::new(server.url()), pool: "conformance".into(), max_connections: 4 };
        let queue = RedisQueue::connect(settings).await.expect("the server was started").with_lease(lease);
        Bench::new(Arc::new(queue), server)
    }
}

super::suite!(tokio::test(flavor = "multi_thread", worker_threads = 2), crate::conformance::redis::Redis);
