//! A scripted HTTP server for the tests of this module. It records requests byte for byte. It speaks just enough
//! HTTP/1.1, one request per connection, so that it can also disconnect in the middle.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::client::{Client, Timeouts};
use super::rate_limit::ApiKey;
use crate::clock::Clock;
use crate::domain::fixtures;
use crate::domain::stripe_requests::{Purpose, StripeRequest};

/// A key without rate limits.
pub fn key() -> ApiKey {
    ApiKey::unlimited("sk_test_sandbox".into())
}

/// A stored confirmation with this body.
pub fn request(body: &str) -> StripeRequest {
    fixtures::request(Purpose::Confirmation, 1, body, fixtures::START)
}

/// A recorded request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, …
    pub method: String,
    /// Path and query.
    pub target: String,
    headers: Vec<(String, String)>,
    /// The raw body.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The path without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// What the server replies.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A complete response: status, headers, body.
    Response(u16, Vec<(&'static str, &'static str)>, String),
    /// Closes the connection.
    Disconnect,
    /// Sends the head and half of the body, then closes the connection.
    DisconnectInBody,
    /// Sends nothing until the client disconnects.
    Silent,
}

/// A response without extra headers.
pub fn response(status: u16, body: &str) -> Reply {
    Reply::Response(status, Vec::new(), body.to_owned())
}

/// The server. Dropping it stops it.
pub struct ScriptedServer {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    server: JoinHandle<()>,
}

impl ScriptedServer {
    /// A server that responds to each request with `reply`.
    pub async fn new(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (reply, seen) = (Arc::new(reply), requests.clone());
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (reply, seen) = (reply.clone(), seen.clone());
                tokio::spawn(async move { serve(stream, &*reply, &seen).await });
            }
        });
        Self { address, requests, server }
    }

    /// A server that sends `replies` one after the other, then repeats the last.
    pub async fn sequence(replies: Vec<Reply>) -> Self {
        let next = Mutex::new(replies.into_iter().peekable());
        Self::new(move |_| {
            let mut next = next.lock();
            let reply = next.next().unwrap();
            if next.peek().is_none() {
                *next = vec![reply.clone()].into_iter().peekable();
            }
            reply
        })
        .await
    }

    /// A client of this server whose pauses are a thousand times shorter.
    pub fn client(&self) -> Client {
        self.client_with(Timeouts { connect: Duration::from_secs(5), call: Duration::from_secs(30) })
    }

    /// The same with other time limits.
    pub fn client_with(&self, timeouts: Timeouts) -> Client {
        self.client_on(Clock::scaled(Clock::system().now(), 1_000), timeouts)
    }

    /// The same on another clock.
    pub fn client_on(&self, clock: Clock, timeouts: Timeouts) -> Client {
        Client::new(&self.address, clock, timeouts).unwrap()
    }

    /// The requests received so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(mut stream: TcpStream, reply: &(impl Fn(&Request) -> Reply + Sync), seen: &Mutex<Vec<Request>>) {
    let Some(request) = read(&mut stream).await else { return };
    seen.lock().push(request.clone());
    let bytes = match reply(&request) {
        Reply::Disconnect => return,
        Reply::Silent => {
            // Returns when the client disconnects.
            drop(stream.read(&mut [0; 1]).await);
            return;
        }
        Reply::DisconnectInBody => "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"id\":".to_owned(),
        Reply::Response(status, headers, body) => {
            let headers = headers.iter().map(|(name, value)| [name, ": ", value, "\r\n"].concat()).collect::<String>();
            format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
        }
    };
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut request = Request { method, target, headers, body: bytes.split_off(head_end + 4) };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    while request.body.len() < length {
        if stream.read_buf(&mut request.body).await.ok()? == 0 {
            return None;
        }
    }
    Some(request)
}
