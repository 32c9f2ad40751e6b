//! What an open WebSocket costs that nobody uses, and what a run costs among many of them.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use anyhow::{Context, bail, ensure};
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
pub const FIRST: usize = 100;
/// Until what was begun is done.
const CALM: Duration = Duration::from_secs(1);

pub async fn sockets(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    for round in 0..plan.rounds {
        for &mode in &plan.modes {
            let engine = Engine::start(mode, &plan.setup).await?;
            // Before any load: what that left to the allocator would be filled first.
            let front_door = [engine.front_door.id()];
            let mut sockets = Vec::with_capacity(plan.sockets);
            let mut before = 0.0;
            while sockets.len() < plan.sockets {
                if sockets.len() == FIRST {
                    sleep(CALM).await;
                    before = process::memory(&front_door);
                }
                let opened = open(engine.address(), engine.key()).await;
                sockets.push(opened.with_context(|| format!("socket {} (see `ulimit -n`)", sockets.len() + 1))?);
            }
            sleep(CALM).await;
            let each = (process::memory(&front_door) - before) / (plan.sockets - FIRST) as f64;
            let target = Target::engine(&engine, run_of("mock", false))?;
            target.warm_up(1, plan.length).await?;
            let (mut figures, seen) = target.measure(1, plan.length, None).await?;
            figures.set("bytes_each", each);
            let case = format!("{} open", sockets.len());
            report.add(row("sockets", case, mode.as_str(), round, figures, &seen), seen.complaint.as_deref());
            let closed = sockets.iter().filter(|socket| !is_open(socket)).count();
            ensure!(
                closed == 0,
                "{closed} sockets were closed meanwhile: they answer no pings, so it must not take minutes"
            );
            drop(sockets);
            sleep(CALM).await;
            let (figures, seen) = target.measure(1, plan.length, None).await?;
            let row = row("sockets", "none".to_owned(), mode.as_str(), round, figures, &seen);
            report.add(row, seen.complaint.as_deref());
        }
    }
    Ok(())
}

/// Whatever came over the socket is read: its end would come after that.
fn is_open(socket: &TcpStream) -> bool {
    let mut bytes = [0; 256];
    loop {
        match socket.try_read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
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
