//! `/metrics`, `/healthz` and `/readyz`. HTTP/1.1, one request for each connection: those who ask come every few seconds.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::families::{READY, STORE_UP};
use super::{Source, Wanted};
use crate::error::{Error, Result};

/// Connections at once; more wait to be accepted. Nobody can take all file descriptors of a worker.
const MOST_CONNECTIONS: usize = 32;
/// From the accept to the end of the answer. The slowest answer waits for a store, and for a process that does not answer.
const LONGEST: Duration = Duration::from_secs(10);
/// Before the next try, when no connection can be accepted: no file descriptor is free, and one may become so.
const PAUSE: Duration = Duration::from_millis(100);
/// The version of the text format, which every Prometheus reads.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// A port that is being listened at.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

/// Listens at `HOST:PORT`; port 0 is any that is free.
///
/// # Errors
/// [`ErrorKind::Config`](crate::error::ErrorKind::Config) when the address is none of this machine, or is taken.
pub async fn bind(address: &str) -> Result<Server> {
    let failed = |error: std::io::Error| {
        Error::config(format!(
            "metrics cannot be served at {address}: {error}; give an address of this machine and a free port, for example \
             127.0.0.1:9600, or port 0 for any"
        ))
        .with_source(error)
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Server { listener, address })
}

impl Server {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers for ever.
    pub async fn serve(self, source: Arc<dyn Source>) {
        let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
            let Ok((stream, _)) = self.listener.accept().await else {
                sleep(PAUSE).await;
                continue;
            };
            let source = Arc::clone(&source);
            tokio::spawn(async move {
                let _ = timeout(LONGEST, talk(stream, source)).await;
                drop(place);
            });
        }
    }
}

async fn talk(stream: TcpStream, source: Arc<dyn Source>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(answer(&request, &*source).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), answer);
    // Who hangs up early has what they wanted, or nothing that we could tell them.
    let _ = connection.await;
}

async fn answer(request: &Request<Incoming>, source: &dyn Source) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/metrics" => response(StatusCode::OK, PROMETHEUS, source.page(Wanted::WithStore).await.text()),
        // That this is answered is what it says: the process lives, and its engine runs.
        "/healthz" => response(StatusCode::OK, PLAIN, "ok\n"),
        "/readyz" => match not_ready(source).await {
            None => response(StatusCode::OK, PLAIN, "ready\n"),
            Some(why) => response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, why),
        },
        _ => response(StatusCode::NOT_FOUND, PLAIN, "there is /metrics, /healthz and /readyz\n"),
    }
}

async fn not_ready(source: &dyn Source) -> Option<&'static str> {
    let page = source.page(Wanted::WithStore).await;
    let is_zero = |value: Option<f64>| value.is_none_or(|value| value < 1.0);
    if is_zero(page.total(&READY)) {
        Some("no process takes jobs: it is starting or stopping\n")
    } else if is_zero(page.total(&STORE_UP)) {
        Some("the store does not answer\n")
    } else {
        None
    }
}

fn response(status: StatusCode, content: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
