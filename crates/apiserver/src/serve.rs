//! HTTPS: listeners, certificates, the token, connections, the kubeconfig.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::api::{self, Answer, Call};
use crate::containers::Containers;
use crate::identity::{Identity, write_private};
use crate::refusal::Refusal;
use crate::remote::{Reached, Remote};
use crate::runtime::Runtime;
use crate::store::Store;
use crate::{Error, control};

/// The most bytes of a request, as the API server has it.
const MAX_BODY: usize = 3 << 20;

/// How to start a server.
#[derive(Debug)]
pub struct Options {
    /// Where it listens; the first one is for people (the kubeconfig leads there). None for any port
    /// of 127.0.0.1 that is free. A listener stays in the network that it was opened in.
    pub listeners: Vec<TcpListener>,
    /// By what other addresses and names clients reach these listeners: they are in the certificate
    /// too.
    pub names: Vec<String>,
    /// Where pods reach it: the endpoint of the Service `kubernetes`. The first listener if there is
    /// none.
    pub endpoint: Option<SocketAddr>,
    /// How many changes are remembered for watches and lists of the past.
    pub history: usize,
    /// The directory in which the state is kept; none for memory only.
    pub state: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listeners: Vec::new(),
            names: Vec::new(),
            endpoint: None,
            history: 20_000,
            state: None,
        }
    }
}

/// An API server that is up. It goes down when this is dropped, and its connections with it.
#[derive(Debug)]
pub struct Server {
    store: Arc<Store>,
    /// Never empty.
    addresses: Vec<SocketAddr>,
    certificate: String,
    token: String,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts a server on a runtime that this is called in. Its certificate authority and its token are
    /// new, unless a state is kept: then they are kept with it. The namespaces that every cluster has
    /// are there when this returns.
    pub async fn start(options: Options, runtime: Arc<dyn Runtime>) -> Result<Server, Error> {
        let store = Arc::new(match &options.state {
            Some(directory) => Store::open(directory, options.history)?,
            None => Store::new(options.history),
        });
        // After the state, which nobody else has open then.
        let Identity { token, key } = match &options.state {
            Some(directory) => Identity::kept(directory)?,
            None => Identity::new()?,
        };
        let mut listeners = options.listeners;
        if listeners.is_empty() {
            listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::Listen)?);
        }
        let addresses: Result<Vec<SocketAddr>, _> =
            listeners.iter().map(TcpListener::local_addr).collect();
        let addresses = addresses.map_err(Error::Listen)?;
        let (certificate, tls) = certificates(key, &addresses, options.names)?;
        control::found(&store, options.endpoint.unwrap_or(addresses[0]));
        let tls = TlsAcceptor::from(Arc::new(tls));
        let containers = Arc::new(Containers::new(runtime, store.clone()));
        let mut tasks = vec![tokio::spawn(control::run(store.clone(), containers.clone()))];
        for (listener, address) in listeners.into_iter().zip(&addresses) {
            listener.set_nonblocking(true).map_err(Error::Listen)?;
            let listener = tokio::net::TcpListener::from_std(listener).map_err(Error::Listen)?;
            let (store, containers) = (store.clone(), containers.clone());
            let (token, address) = (token.clone(), *address);
            let shared = Arc::new(Shared { store, containers, token, address });
            tasks.push(tokio::spawn(accept(listener, tls.clone(), shared)));
        }
        Ok(Server { store, addresses, certificate, token, tasks })
    }

    /// The state, for those who are in the same process.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Where it listens first of all.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// The certificate of its authority, in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// What a client has to show (`Authorization: Bearer …`).
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A kubeconfig for people.
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig_at(&self.address().to_string())
    }

    /// A kubeconfig for those who reach it at this `host:port`, which the certificate has to name.
    pub fn kubeconfig_at(&self, address: &str) -> String {
        let token = &self.token;
        let authority = STANDARD.encode(&self.certificate);
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: portcullis\n  \
               cluster:\n    \
                 server: https://{address}\n    \
                 certificate-authority-data: {authority}\n\
             users:\n\
             - name: portcullis\n  \
               user:\n    \
                 token: {token}\n\
             contexts:\n\
             - name: portcullis\n  \
               context:\n    \
                 cluster: portcullis\n    \
                 user: portcullis\n\
             current-context: portcullis\n"
        )
    }

    /// Writes the kubeconfig to a file that only its owner can read. A file that is there is
    /// replaced, whatever its mode.
    pub fn write_kubeconfig(&self, path: &Path) -> Result<(), Error> {
        write_private(path, &self.kubeconfig())
            .map_err(|source| Error::Kubeconfig { path: path.to_owned(), source })
    }
}

/// Whether [`Server::write_kubeconfig`] will be able to write there, for those who want to know before
/// they start a server. Nothing is left of the try.
pub fn kubeconfig_can_be_written(path: &Path) -> Result<(), Error> {
    let try_it = || match path.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => {
            let beside = path.with_extension("try");
            write_private(&beside, "").and_then(|()| std::fs::remove_file(&beside))
        }
    };
    try_it().map_err(|source| Error::Kubeconfig { path: path.to_owned(), source })
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What a server is called by those who are in the cluster.
const NAMES: [&str; 8] = [
    "127.0.0.1",
    "::1",
    "10.96.0.1",
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// The certificate of an authority with this key, in PEM, and what a server of it needs.
fn certificates(
    key: KeyPair,
    addresses: &[SocketAddr],
    mut names: Vec<String>,
) -> Result<(String, rustls::ServerConfig), Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, "portcullis");
    let authority = CertifiedIssuer::self_signed(params, key)?;
    names.extend(NAMES.map(str::to_owned));
    names.extend(addresses.iter().map(|address| address.ip().to_string()));
    names.sort();
    names.dedup();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "portcullis-apiserver");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((authority.pem(), tls))
}

#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    containers: Arc<Containers>,
    token: String,
    address: SocketAddr,
}

async fn accept(listener: tokio::net::TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    // They end with this task.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // What cannot be accepted (no more descriptors, a client that is gone) is no reason to end.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (tls, shared) = (tls.clone(), shared.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(respond(&shared, request).await) }
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new());
            // A client that breaks off has nobody to tell.
            let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

type Reply = Response<Either<Full<Bytes>, Events>>;

async fn respond(shared: &Shared, request: Request<Incoming>) -> Reply {
    let given = text(request.headers(), header::AUTHORIZATION);
    if !is_token(given, &shared.token) {
        return reply(&shared.store, Answer::refused(&Refusal::unauthorized()));
    }
    let query = request.uri().query().unwrap_or_default();
    if let Some(remote) = Remote::read(request.uri().path(), query) {
        return match remote.answer(&shared.store, &shared.containers, request) {
            Ok(Reached::Upgrade(answer)) => answer.map(|()| Either::Left(Full::default())),
            Ok(Reached::Text(text)) => {
                let mut reply = Response::new(Either::Right(Events(text)));
                let plain = HeaderValue::from_static("text/plain");
                reply.headers_mut().insert(header::CONTENT_TYPE, plain);
                reply
            }
            Err(refusal) => reply(&shared.store, Answer::refused(&refusal)),
        };
    }
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        return reply(&shared.store, Answer::refused(&Refusal::too_large(MAX_BODY)));
    };
    let address = shared.address.to_string();
    let call = Call {
        method: &head.method,
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        accept: text(&head.headers, header::ACCEPT),
        content_type: text(&head.headers, header::CONTENT_TYPE),
        agent: text(&head.headers, header::USER_AGENT),
        body: &body.to_bytes(),
        address: &address,
    };
    let mut answer = api::answer(&shared.store, &call);
    if let Some(why) = shared.store.broken() {
        let why = format!("the state cannot be written to disk any more: {why}");
        answer = Answer::refused(&Refusal::internal(&why));
    }
    reply(&shared.store, answer)
}

fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Compares all of it, so that the time does not tell how much was right.
fn is_token(header: &str, token: &str) -> bool {
    let Some(given) = header.strip_prefix("Bearer ") else { return false };
    given.len() == token.len()
        && given.bytes().zip(token.bytes()).fold(0, |wrong, (a, b)| wrong | (a ^ b)) == 0
}

fn reply(store: &Arc<Store>, answer: Answer) -> Reply {
    let (code, content_type, body, warnings) = match answer {
        Answer::Json { code, content_type, body, warnings } => {
            (code, content_type, Either::Left(Full::from(body.to_string())), warnings)
        }
        Answer::Raw { content_type, body } => {
            (200, content_type, Either::Left(Full::from(body)), Vec::new())
        }
        Answer::Watch(watching) => {
            let (to, events) = mpsc::channel(16);
            tokio::spawn(watching.run(store.clone(), to));
            (200, "application/json", Either::Right(Events(events)), Vec::new())
        }
    };
    let mut reply = Response::new(body);
    *reply.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if code == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            headers.append(header::WARNING, value);
        }
    }
    reply
}

/// The body of a watch.
#[derive(Debug)]
struct Events(mpsc::Receiver<Bytes>);

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
