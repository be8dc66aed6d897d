//! Probes and metrics, asked for over HTTP/1.1.

use std::time::Duration;

use keyward::server::addr::ListenAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Sends a request, and gives the status and the whole reply.
pub(crate) async fn http(addr: &ListenAddr, method: &str, path: &str) -> (u16, String) {
    match addr {
        ListenAddr::Tcp(addr) => exchange(TcpStream::connect(addr).await.unwrap(), method, path).await,
        ListenAddr::Unix(addr) => exchange(UnixStream::connect(addr).await.unwrap(), method, path).await,
        ListenAddr::Passed(name) => panic!("{name} is no address"),
    }
}

/// Sends a whole request, and gives the whole reply.
pub(crate) async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}

async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin, method: &str, path: &str) -> (u16, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: keyward\r\n\r\n");
    let reply = converse(stream, &request).await;
    (reply.split(' ').nth(1).unwrap().parse().unwrap(), reply)
}

pub(crate) async fn get(addr: &ListenAddr, path: &str) -> (u16, String) {
    let (status, reply) = http(addr, "GET", path).await;
    (status, reply.split_once("\r\n\r\n").unwrap().1.trim_end().to_owned())
}

pub(crate) async fn metrics(addr: &ListenAddr) -> String {
    let (status, text) = get(addr, "/metrics").await;
    assert_eq!(status, 200);
    text
}

/// The value of a series in a text of metrics.
pub(crate) fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// Waits until a series has a value that will do.
pub(crate) async fn wait_for_value(ops: &ListenAddr, series: &str, will_do: impl Fn(f64) -> bool) {
    let waiting = async {
        while !value(&metrics(ops).await, series).is_some_and(&will_do) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("waited in vain: {series}"));
}
