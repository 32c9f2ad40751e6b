//! A TCP proxy on loopback that breaks what goes through it, when a test says so.
//!
//! It runs on a thread and a runtime of its own, so that a busy test does not slow it down. What it does to connections holds for those
//! that are open and for new ones, until [`FaultProxy::heal`]. Bytes that are held back are delivered late, as by a network that comes
//! back; those of a connection that was cut are gone.

use std::{
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};

/// Pieces of up to 16 KiB that may be on their way in one direction of a connection.
const ON_THE_WAY: usize = 256;

/// Which half of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What the client says.
    Request,
    /// What the server answers: the server does what it is told, and nobody hears of it.
    Answer,
}

#[derive(Clone, Debug, Default)]
struct Faults {
    /// In each direction.
    latency: Duration,
    refuses: bool,
    holds_requests: bool,
    holds_answers: bool,
    /// Connections of an earlier age are cut.
    age: u64,
}

impl Faults {
    fn holds(&self, direction: Direction) -> bool {
        match direction {
            Direction::Request => self.holds_requests,
            Direction::Answer => self.holds_answers,
        }
    }
}

pub struct FaultProxy {
    address: SocketAddr,
    faults: watch::Sender<Faults>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FaultProxy {
    /// Passes on to a server on a port of loopback.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let faults = watch::Sender::new(Faults::default());
        let (stop, stopped) = oneshot::channel();
        let seen = faults.subscribe();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, port, seen) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, faults, stop: Some(stop), thread: Some(thread) }
    }

    /// In front of the server that a URL of loopback names; answers with the URL that leads through the proxy.
    pub fn in_front_of(url: &str) -> (Self, String) {
        let authority = url.split("://").nth(1).unwrap().split('/').next().unwrap();
        let port = authority.rsplit(':').next().unwrap();
        let proxy = Self::start(port.parse().unwrap());
        let through = url.replace(&format!(":{port}"), &format!(":{}", proxy.address.port()));
        (proxy, through)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Delays what is said from now on, in each direction.
    pub fn delay(&self, latency: Duration) {
        self.faults.send_modify(|faults| faults.latency = latency);
    }

    /// Cuts all connections, with RST. New ones are taken.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| faults.age += 1);
    }

    /// New connections are reset at once; open ones go on.
    pub fn refuse(&self) {
        self.faults.send_modify(|faults| faults.refuses = true);
    }

    /// One direction falls silent, the other goes on.
    pub fn half_close(&self, direction: Direction) {
        self.faults.send_modify(|faults| match direction {
            Direction::Request => faults.holds_requests = true,
            Direction::Answer => faults.holds_answers = true,
        });
    }

    /// Connections are taken, and nothing more is heard of them.
    pub fn black_hole(&self) {
        self.faults.send_modify(|faults| (faults.holds_requests, faults.holds_answers) = (true, true));
    }

    /// Everything passes again, and what was held back arrives.
    pub fn heal(&self) {
        self.faults.send_modify(|faults| *faults = Faults { age: faults.age, ..Faults::default() });
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the proxy panicked");
        }
    }
}

async fn serve(listener: TcpListener, port: u16, faults: watch::Receiver<Faults>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        // A connection that is gone before it is accepted is its client's affair.
        let Ok((client, _)) = listener.accept().await else { continue };
        if faults.borrow().refuses {
            let _reset = client.set_zero_linger();
            continue;
        }
        tokio::spawn(connect(client, port, faults.clone()));
    }
}

async fn connect(client: TcpStream, port: u16, mut faults: watch::Receiver<Faults>) {
    let age = faults.borrow().age;
    // A server that is gone refuses; so does the proxy then.
    let server = TcpStream::connect(("127.0.0.1", port)).await;
    for stream in std::iter::once(&client).chain(server.as_ref()) {
        let _nodelay = stream.set_nodelay(true);
        // However it ends, it ends with RST, as when a machine or the way to it is gone.
        let _reset = stream.set_zero_linger();
    }
    let Ok(server) = server else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let passed = faults.clone();
    tokio::select! {
        () = pass(from_client, to_server, Direction::Request, passed.clone()) => {}
        () = pass(from_server, to_client, Direction::Answer, passed) => {}
        _ = faults.wait_for(|faults| faults.age != age) => {}
    }
}

/// Ends when either side does.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut faults: watch::Receiver<Faults>,
) {
    let (pieces, mut late) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    let latency = faults.clone();
    let read = async move {
        let mut piece = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            let due = Instant::now() + latency.borrow().latency;
            if pieces.send((due, piece[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((due, piece)) = late.recv().await {
            sleep_until(due).await;
            // The sender lives as long as the proxy.
            let _ = faults.wait_for(|faults| !faults.holds(direction)).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    // What was read before the end of a side is still delivered: the writer ends after it.
    tokio::join!(read, write);
}

/// A server that repeats every line, and a proxy in front of it.
async fn echo() -> FaultProxy {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    FaultProxy::start(port)
}

async fn ask(stream: &mut TcpStream) -> std::io::Result<Duration> {
    let asked = Instant::now();
    stream.write_all(b"hello").await?;
    stream.read_exact(&mut [0; 5]).await?;
    Ok(asked.elapsed())
}

#[tokio::test]
async fn it_breaks_connections_in_every_way_and_heals() {
    let proxy = echo().await;
    let address = ("127.0.0.1", proxy.port());
    let mut stream = TcpStream::connect(address).await.unwrap();
    ask(&mut stream).await.unwrap();
    proxy.delay(Duration::from_millis(50));
    assert!(ask(&mut stream).await.unwrap() >= Duration::from_millis(100));
    proxy.heal();
    for fault in
        [&(|| proxy.half_close(Direction::Request)) as &dyn Fn(), &|| proxy.half_close(Direction::Answer), &|| {
            proxy.black_hole()
        }]
    {
        fault();
        let mut other = TcpStream::connect(address).await.unwrap();
        other.write_all(b"hello").await.unwrap();
        assert!(timeout(Duration::from_millis(50), other.read_exact(&mut [0; 5])).await.is_err());
        proxy.heal();
        ask(&mut other).await.unwrap();
    }
    proxy.refuse();
    ask(&mut stream).await.unwrap();
    let refused = async { ask(&mut TcpStream::connect(address).await?).await };
    assert!(refused.await.is_err());
    proxy.heal();
    proxy.cut();
    assert!(ask(&mut stream).await.is_err());
    ask(&mut TcpStream::connect(address).await.unwrap()).await.unwrap();
}
