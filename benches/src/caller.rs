//! One caller: one HTTP/1.1 connection that is kept, and one request at a time on it. It costs as little as it can, because it runs beside
//! what is measured.

use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinHandle};

/// Where requests go, and what they carry.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub path: String,
    pub headers: HeaderMap,
}

impl Endpoint {
    pub fn new(address: SocketAddr, path: &str) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::try_from(address.to_string())?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Self { address, path: path.to_owned(), headers })
    }

    pub fn with(mut self, name: &'static str, value: &str) -> anyhow::Result<Self> {
        self.headers.insert(name, HeaderValue::try_from(value)?);
        Ok(self)
    }
}

/// A connection of its own.
pub struct Caller {
    endpoint: Endpoint,
    requests: SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
}

impl Caller {
    pub async fn connect(endpoint: Endpoint) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(endpoint.address).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { endpoint, requests, connection })
    }

    /// A new connection in place of one that broke.
    pub async fn again(&self) -> anyhow::Result<Self> {
        Self::connect(self.endpoint.clone()).await
    }

    /// Posts, and reads the answer to its end.
    pub async fn post(&mut self, body: &Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
        let answer = self.send(Method::POST, body.clone()).await?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }

    pub async fn get(&mut self, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        path.clone_into(&mut self.endpoint.path);
        let answer = self.send(Method::GET, Bytes::new()).await?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }

    /// Posts, and answers once there is a head; the body is yet to be read.
    pub async fn send(&mut self, method: Method, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        self.requests.ready().await?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.endpoint.path.parse()?;
        *request.headers_mut() = self.endpoint.headers.clone();
        Ok(self.requests.send_request(request).await?)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
