//! The server behind the scripted provider: raw HTTP/1.1, so that it can break every rule on purpose.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::TcpListener,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
};

use super::{Act, Answer, End, Recorded};

#[derive(Default)]
pub struct Shared {
    pub state: Mutex<State>,
    /// Counts the changes of the requests.
    pub changed: watch::Sender<u64>,
}

pub struct State {
    pub queue: VecDeque<Answer>,
    pub queues: HashMap<String, VecDeque<Answer>>,
    pub default: Answer,
    pub defaults: HashMap<String, Answer>,
    pub requests: Vec<Recorded>,
    pub in_flight: usize,
    pub max_in_flight: usize,
    pub connections: usize,
}

impl Default for State {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            queues: HashMap::new(),
            default: Answer::echo(),
            defaults: HashMap::new(),
            requests: Vec::new(),
            in_flight: 0,
            max_in_flight: 0,
            connections: 0,
        }
    }
}

impl State {
    fn answer_to(&mut self, request: &Recorded) -> Answer {
        let model = request.model();
        let pushed = self.queues.get_mut(model).and_then(VecDeque::pop_front).or_else(|| self.queue.pop_front());
        pushed.unwrap_or_else(|| self.defaults.get(model).unwrap_or(&self.default).clone())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_end(&self, request: usize, end: End) {
        {
            let mut state = self.lock();
            let request = &mut state.requests[request];
            (request.end, request.ended_at) = (Some(end), Some(Instant::now()));
            state.in_flight -= 1;
        }
        self.changed.send_modify(|changes| *changes += 1);
    }
}

pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        // A connection that is gone before it is accepted is its client's affair.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _nodelay = stream.set_nodelay(true);
        let connection = {
            let mut state = shared.lock();
            state.connections += 1;
            state.connections
        };
        tokio::spawn(converse(stream, connection, shared.clone()));
    }
}

/// What becomes of a connection after an answer.
enum Then {
    KeepAlive,
    Close,
    Reset,
}

async fn converse(mut stream: TcpStream, connection: usize, shared: Arc<Shared>) {
    let mut buffer = Vec::new();
    while let Ok(Some(mut request)) = read_request(&mut stream, &mut buffer, connection).await {
        let (number, acts) = {
            let mut state = shared.lock();
            let answer = state.answer_to(&request);
            let acts = answer.acts_for(&request);
            request.usage = answer.told_usage();
            state.in_flight += 1;
            state.max_in_flight = state.max_in_flight.max(state.in_flight);
            state.requests.push(request);
            (state.requests.len() - 1, acts)
        };
        shared.changed.send_modify(|changes| *changes += 1);

        let (mut reader, mut writer) = stream.split();
        let then = tokio::select! {
            biased;
            then = perform(&acts, &mut writer) => then.ok(),
            () = hung_up(&mut reader) => None,
        };
        shared.note_end(number, if then.is_some() { End::Sent } else { End::HungUp });
        match then {
            Some(Then::KeepAlive) => {}
            Some(Then::Close) => {
                let _closed = stream.shutdown().await;
                return;
            }
            Some(Then::Reset) => {
                let _reset = stream.set_zero_linger();
                return;
            }
            None => return,
        }
    }
}

async fn perform(acts: &[Act], writer: &mut WriteHalf<'_>) -> io::Result<Then> {
    // What is to be sent without a pause is sent in one piece, so that no test depends on how fast it follows.
    let mut unsent: Vec<u8> = Vec::new();
    for act in acts {
        if let Act::Send(bytes) = act {
            unsent.extend_from_slice(bytes);
            continue;
        }
        writer.write_all(&std::mem::take(&mut unsent)).await?;
        match act {
            Act::Send(_) => {}
            Act::Wait(duration) => tokio::time::sleep(*duration).await,
            Act::Hold(gate) => gate.opened().await,
            Act::Drip { bytes, every } => loop {
                writer.write_all(bytes).await?;
                tokio::time::sleep(*every).await;
            },
            Act::Hang => std::future::pending().await,
            Act::Close => return Ok(Then::Close),
            Act::Reset => return Ok(Then::Reset),
        }
    }
    writer.write_all(&unsent).await?;
    Ok(Then::KeepAlive)
}

/// Ends when the client closes its side. Bytes of a next request do not count: they are left where they are.
async fn hung_up(reader: &mut ReadHalf<'_>) {
    if let Ok(1..) = reader.peek(&mut [0]).await {
        std::future::pending().await
    }
}

/// `None` when the connection ended before a request began.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>, connection: usize) -> io::Result<Option<Recorded>> {
    let end_of_head = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end_of_head]).into_owned();
    let mut lines = head.split("\r\n");
    let mut request_line = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let end_of_body = end_of_head + 4 + length.unwrap_or(0);
    while buffer.len() < end_of_body {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    let request: Vec<u8> = buffer.drain(..end_of_body).collect();
    Ok(Some(Recorded {
        connection,
        method: request_line.next().unwrap_or_default(),
        target: request_line.next().unwrap_or_default(),
        headers,
        body: serde_json::from_slice(&request[end_of_head + 4..]).unwrap_or(Value::Null),
        at: Instant::now(),
        usage: None,
        end: None,
        ended_at: None,
    }))
}
