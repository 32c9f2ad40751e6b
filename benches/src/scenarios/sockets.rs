//! What an open WebSocket costs that nobody uses, and what a run costs among many of them.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use super::{Plan, row};
use crate::{
    engine::{Engine, run_of},
    process,
    report::Report,
    target::Target,
};

/// These bring what is kept once, whatever comes: threads, caches, connections to stores.
const FIRST: usize = 100;

pub async fn sockets(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    for round in 0..plan.rounds {
        for &mode in &plan.modes {
            let engine = Engine::start(mode, &plan.setup).await?;
            let target = Target::engine(&engine, run_of("mock", false))?;
            target.measure(16, plan.length.min(Duration::from_secs(1)), None).await?;
            let (figures, seen) = target.measure(1, plan.length, None).await?;
            report.add(
                row("sockets", "none".to_owned(), mode.as_str(), round, figures, &seen),
                seen.complaint.as_deref(),
            );
            let front_door = [engine.front_door.id()];
            let mut sockets = Vec::with_capacity(plan.sockets);
            let mut before = 0.0;
            while sockets.len() < plan.sockets {
                if sockets.len() == FIRST {
                    before = process::memory(&front_door);
                }
                let opened = open(engine.address(), engine.key()).await;
                sockets.push(opened.with_context(|| format!("socket {} (see `ulimit -n`)", sockets.len() + 1))?);
            }
            sleep(Duration::from_secs(1)).await;
            let grown = process::memory(&front_door) - before;
            let (mut figures, seen) = target.measure(1, plan.length, None).await?;
            let further = plan.sockets.saturating_sub(FIRST).max(1);
            figures.set("bytes_each", grown / further as f64);
            let case = format!("{} open", sockets.len());
            report.add(row("sockets", case, mode.as_str(), round, figures, &seen), seen.complaint.as_deref());
        }
    }
    Ok(())
}

/// A handshake (RFC 6455, section 4.1) by hand: the least that a client can have is the connection.
async fn open(address: SocketAddr, key: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    let head = format!(
        "GET /api/v1/ws HTTP/1.1\r\nHost: {address}\r\nx-api-key: {key}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).await?;
        answer.extend(byte);
    }
    if !answer.starts_with(b"HTTP/1.1 101") {
        bail!("the front door refused a socket: {}", String::from_utf8_lossy(&answer));
    }
    Ok(stream)
}
