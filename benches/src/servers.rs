//! Throw-away stores with the durability that a deployment has: Redis with `appendonly yes`, `appendfsync everysec`; PostgreSQL with
//! `fsync` and `synchronous_commit` as they come.

mod postgres;
mod redis;

pub use self::{
    postgres::{Postgres, SqlCounts, connect},
    redis::{Redis, RedisCounts},
};

/// A port that was free a moment ago.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
