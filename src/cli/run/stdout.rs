//! Stdout, written by a thread of its own: a reader that stops reading must not keep the command from hearing Ctrl-C.

use std::{
    io::{self, ErrorKind, Write},
    sync::mpsc,
    thread,
};

use tokio::sync::oneshot;

type Order = (String, oneshot::Sender<io::Result<()>>);

pub(super) struct Stdout(mpsc::Sender<Order>);

/// Why nothing more is written.
#[derive(Debug)]
pub(super) enum Unwritten {
    /// The reader has gone, with what it wanted.
    Gone,
    Failed(io::Error),
}

impl Stdout {
    /// Nobody joins the thread: it ends with its orders, and one that is stuck in a write ends with the process.
    pub fn open() -> Self {
        let (orders, received) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (text, answer) in received {
                let mut out = io::stdout().lock();
                let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                // Whoever was interrupted does not listen any more.
                let _ = answer.send(written);
            }
        });
        Self(orders)
    }

    /// Returns when all of it has left the process.
    pub async fn write(&self, text: impl Into<String>) -> Result<(), Unwritten> {
        let text = text.into();
        if text.is_empty() {
            return Ok(());
        }
        let (answer, written) = oneshot::channel();
        let gone = || Unwritten::Failed(ErrorKind::Other.into());
        self.0.send((text, answer)).map_err(|_| gone())?;
        match written.await.map_err(|_| gone())? {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Unwritten::Gone),
            Err(error) => Err(Unwritten::Failed(error)),
        }
    }
}

/// Text without the control characters that a terminal would obey: a model's words must not move its cursor or set its title.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}
