//! `/healthz`, `/readyz` and `/metrics`.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::{Metrics, accept};

/// The most connections at one time; more have to wait.
const CONNECTIONS: usize = 16;
/// The longest that a connection lasts.
const PATIENCE: Duration = Duration::from_secs(10);
/// After a failed accept, such as when the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves for ever. `refresh` brings the metrics up to date before they are read.
pub(crate) async fn serve<F>(
    listener: TcpListener,
    metrics: Arc<Mutex<Metrics>>,
    refresh: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> Infallible
where
    F: Future<Output = ()> + Send + 'static,
{
    accept::each(
        CONNECTIONS,
        PAUSE,
        || listener.accept(),
        |(stream, _)| {
            let (metrics, refresh) = (metrics.clone(), refresh.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (metrics, refresh) = (metrics.clone(), refresh.clone());
                async move {
                    if request.uri().path() == "/metrics" {
                        refresh().await;
                    }
                    let metrics = metrics.lock().unwrap_or_else(PoisonError::into_inner);
                    Ok::<_, Infallible>(answer(request.method(), request.uri().path(), &metrics))
                }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            let connection =
                server.keep_alive(false).serve_connection(TokioIo::new(stream), service);
            async {
                // Whoever broke off knows it.
                let _ = tokio::time::timeout(PATIENCE, connection).await;
            }
        },
    )
    .await
}

fn answer(method: &Method, path: &str, metrics: &Metrics) -> Response<Full<Bytes>> {
    let ok = || (StatusCode::OK, "ok\n".to_owned());
    let (status, text) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, metrics.render()),
        (&Method::GET | &Method::HEAD, "/healthz") => match metrics.is_alive() {
            true => ok(),
            false => (StatusCode::SERVICE_UNAVAILABLE, "the agent hangs\n".to_owned()),
        },
        (&Method::GET | &Method::HEAD, "/readyz") => match metrics.readiness() {
            Ok(()) => ok(),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        (&Method::GET | &Method::HEAD, _) => {
            let known = "there are /healthz, /readyz and /metrics\n";
            (StatusCode::NOT_FOUND, known.to_owned())
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, "GET is all that is served\n".to_owned()),
    };
    let kind = match path {
        "/metrics" => "text/plain; version=0.0.4; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
