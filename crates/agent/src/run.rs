//! The agent on its threads: the watches and the HTTP endpoints share one, the work has another.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use portcullis_cni::InForce;
use portcullis_cni::protocol::{Answer, Attachment, Request};
use portcullis_core::incremental::Logged;
use portcullis_core::model::{LogLevel, Mode};
use portcullis_dataplane::state::Log;
use portcullis_dataplane::{Allowed, Dataplane, FlowLog, Headers};
use portcullis_kube::live::{self, Access, Event, Kind};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::level_filters::LevelFilter;
use tracing::{info, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry;
use tracing_subscriber::util::SubscriberInitExt;

use crate::agent::Reports;
use crate::flows::Flows;
use crate::guard::Guard;
use crate::observed::Concern;
use crate::report::Reporter;
use crate::{Agent, Metrics, Unprogrammed, api, events, http, socket};

/// How the agent is to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of the node that it runs on.
    pub node: String,
    /// The cluster.
    pub access: Access,
    /// Where `/healthz`, `/readyz` and `/metrics` are served; `None` for nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// Where on loopback people can ask what the Unix socket answers; `None` for nowhere.
    pub api_address: Option<SocketAddr>,
    /// What becomes of addresses that nothing has been heard of.
    pub unprogrammed: Unprogrammed,
    /// Whether anything is refused at all.
    pub mode: Mode,
    /// Whether connections go on that were open before a state that does not allow them.
    pub keep_established: bool,
    /// Whether a pod may send from addresses that are not its own.
    pub allow_spoofing: bool,
    /// What is reported of connections.
    pub log: Logging,
    /// Whether pods get Events of connections that are refused.
    pub events: bool,
    /// Where others of this node can ask, and what is said to them beside it; `None` for nowhere.
    pub socket: Option<Socket>,
}

/// What is reported of connections, and how the kernel tells the agent of it.
#[derive(Debug, Clone, Copy)]
pub struct Logging {
    /// Of pods whose namespace says nothing.
    pub level: LogLevel,
    /// The NFLOG group.
    pub group: u16,
    /// The most packets a second that the kernel tells of, in each direction.
    pub rate: u32,
}

impl Default for Logging {
    fn default() -> Logging {
        Logging { level: LogLevel::Denied, group: 86, rate: 100 }
    }
}

impl Logging {
    /// What the data plane is told, where this is to be reported.
    pub(crate) fn of(self, logged: &Logged) -> Option<Log> {
        let Logging { group, rate, .. } = self;
        logged.refused.then_some(Log { group, rate })
    }
}

/// Where the agent listens for others of its node.
#[derive(Debug, Clone)]
pub struct Socket {
    /// The Unix socket.
    pub path: PathBuf,
    /// The folder in which the CNI plugin keeps who has which address.
    pub attachments: PathBuf,
}

impl Default for Socket {
    fn default() -> Socket {
        Socket {
            path: portcullis_cni::SOCKET.into(),
            attachments: portcullis_cni::ATTACHMENTS.into(),
        }
    }
}

/// Why the agent could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The cluster.
    #[error(transparent)]
    Live(#[from] live::Error),
    /// The machine refused.
    #[error("cannot run: {0}")]
    Runtime(#[source] io::Error),
    /// The address for metrics is not free, or not here.
    #[error("cannot serve metrics at {address}: {source}; choose another with --metrics-address")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What the machine answered.
        source: io::Error,
    },
    /// Whoever can connect may ask.
    #[error(
        "cannot answer people at {0}: --api-address must be of loopback, such as 127.0.0.1:9465"
    )]
    NotLoopback(SocketAddr),
    /// The address for people is not free.
    #[error("cannot answer people at {address}: {source}; choose another with --api-address")]
    ApiAddress {
        /// The address.
        address: SocketAddr,
        /// What the machine answered.
        source: io::Error,
    },
    /// The kernel refuses to guard open connections or sources.
    #[error("cannot guard open connections and the sources of packets: {0}")]
    Guard(#[source] portcullis_dataplane::Error),
    /// Without it no rule can be changed.
    #[error(
        "this process may not change the rules of its network: it lacks the capability NET_ADMIN. \
         Run it as root; or give the capability to the program's file, with `portcullis \
         agent permit FILE`; in a container, add NET_ADMIN to the capabilities, and for a user \
         other than root leave allowPrivilegeEscalation on, because with it off what the file gives \
         may not count"
    )]
    NoCapability,
    /// A program's file could not be given it.
    #[error(
        "cannot give {} the capability NET_ADMIN: {source}; that takes root, and a plain file (no link \
         to one) on a file system that keeps extended attributes", program.display()
    )]
    Permit {
        /// The file.
        program: PathBuf,
        /// What the machine answered.
        source: io::Error,
    },
    /// The work ended by itself, which it never should.
    #[error("the agent broke; what is in force stands")]
    Broken,
    /// The cluster has no such node.
    #[error("the cluster has no node {node:?}: it has {}", known.join(", "))]
    UnknownNode {
        /// The name asked for.
        node: String,
        /// The nodes that there are.
        known: Vec<String>,
    },
    /// The API server did not tell everything in time.
    #[error("cannot read {kind} of the cluster: {why}")]
    Unheard {
        /// What was missing.
        kind: Kind,
        /// What came instead.
        why: String,
    },
}

/// What the worker is told.
enum Message {
    Event(Box<Event>, Instant),
    /// The plugin has noted this of a pod.
    Attached(Attachment, Instant),
    /// Somebody of this node asks.
    Asked(Request, Instant, oneshot::Sender<Answer>),
    /// What concerns two addresses?
    Excerpt([IpAddr; 2], mpsc::SyncSender<Concern>),
    /// The hits are to be brought up to date.
    Count(oneshot::Sender<()>),
    Stop,
}

/// How long a scrape waits for fresh numbers before it gets those of last time.
const SCRAPE: Duration = Duration::from_secs(2);

/// Sends what the agent says to standard error, one line for each thing, as JSON if asked for.
/// Once in a process; a second time has no effect.
pub fn log(json: bool) {
    let lines = layer().with_writer(io::stderr).with_ansi(false).with_target(false);
    // What the libraries below would say of a failure comes as an event, in our words.
    let ours = Targets::new().with_target("portcullis", LevelFilter::INFO);
    let _ = match json {
        true => registry().with(lines.json().flatten_event(true).with_filter(ours)).try_init(),
        false => registry().with(lines.with_filter(ours)).try_init(),
    };
}

/// Enforces until SIGTERM or SIGINT. What is in force then stands (SEMANTICS 27).
pub fn run(options: Options, dataplane: impl Dataplane + Send + 'static) -> Result<(), Error> {
    run_until(options, dataplane, stopped())
}

/// Does something again and again, so long apart, until SIGTERM or SIGINT.
pub fn every(period: Duration, mut something: impl FnMut()) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::Runtime)?.block_on(async {
        let mut end = std::pin::pin!(stopped());
        loop {
            match tokio::time::timeout(period, &mut end).await {
                Ok(stopped) => return stopped.map_err(Error::Runtime),
                Err(_) => something(),
            }
        }
    })
}

/// Until SIGTERM or SIGINT.
async fn stopped() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Enforces until it is to stop. What is in force then stands (SEMANTICS 27).
pub fn run_until(
    options: Options,
    dataplane: impl Dataplane + Send + 'static,
    stop: impl Future<Output = io::Result<()>>,
) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let metrics = Arc::new(Mutex::new(Metrics::default()));
    let (tell, told) = mpsc::channel();
    let guard = Guard::open(options.keep_established, options.allow_spoofing);
    let guard = guard.map_err(Error::Guard)?;
    let flows = Arc::new(Flows::default());
    let (say, refused) = tokio::sync::mpsc::channel(events::WAITING);
    let say = options.events.then_some(say);
    let (say_cut, cut) = mpsc::channel();
    let (reports, reporter) = report(&options, &tell, &flows, say, cut, &metrics)?.unzip();
    let earlier = options.socket.as_ref().and_then(|socket| InForce::read(&socket.path).ok());
    let guard = guard
        .telling(reports.is_some().then_some(say_cut))
        .remembering(earlier.unwrap_or_default().owners)
        .on_a_thread(metrics.clone());
    let guard = guard.map_err(Error::Runtime)?;
    let mut agent = Agent::new(&options.node, dataplane, metrics.clone())
        .with_reports(reports)
        .with_unprogrammed(options.unprogrammed)
        .with_mode(options.mode)
        .with_teller(guard);
    if let Some(Socket { path, .. }) = &options.socket {
        agent.tell_beside(path.clone());
    }
    // Dropped with the thread, whichever way that ends.
    let (ended, end) = oneshot::channel::<Infallible>();
    let worker = thread::Builder::new().name("enforce".to_owned());
    let worker = worker
        .spawn(move || {
            let _ended = ended;
            work(agent, &told);
        })
        .map_err(Error::Runtime)?;

    let outcome = runtime.block_on(async {
        if let Some(address) = options.metrics_address {
            let listener = TcpListener::bind(address).await;
            let listener = listener.map_err(|source| Error::Address { address, source })?;
            let tell = tell.clone();
            let refresh = move || {
                let (done, wait) = oneshot::channel();
                let _ = tell.send(Message::Count(done));
                async { drop(tokio::time::timeout(SCRAPE, wait).await) }
            };
            tokio::spawn(http::serve(listener, metrics, refresh));
        }
        let asking = tell.clone();
        let ask = move |request| {
            let (answer, wait) = oneshot::channel();
            // Nobody answers when the agent stops.
            let _ = asking.send(Message::Asked(request, Instant::now(), answer));
            wait
        };
        if let Some(address) = options.api_address {
            if !address.ip().is_loopback() {
                return Err(Error::NotLoopback(address));
            }
            let listener = TcpListener::bind(address).await;
            let listener = listener.map_err(|source| Error::ApiAddress { address, source })?;
            tokio::spawn(api::serve(listener, flows.clone(), ask.clone()));
        }
        if let Some(Socket { path, attachments }) = options.socket {
            let tell = tell.clone();
            // Nobody listens when the agent stops.
            let know = move |known| _ = tell.send(Message::Attached(known, Instant::now()));
            tokio::spawn(async move {
                socket::serve(&path, &attachments, &flows, know, ask).await;
            });
        }
        if options.events {
            let events = options.access.events(&options.node).await.map_err(Error::Live)?;
            tokio::spawn(events::write(events, refused));
        }
        let tell = tell.clone();
        let watch = options.access.watch(move |event| {
            // Nobody listens when the agent stops.
            let _ = tell.send(Message::Event(Box::new(event), Instant::now()));
        });
        info!(node = options.node, "started");
        tokio::select! {
            ended = watch => match ended {
                Ok(never) => match never {},
                Err(error) => Err(Error::Live(error)),
            },
            _ = end => Err(Error::Broken),
            stopped = stop => stopped.map_err(Error::Runtime),
        }
    });
    runtime.shutdown_background();
    // What is under way is brought to its end.
    let _ = tell.send(Message::Stop);
    let joined = worker.join();
    outcome?;
    // It ends with the work, and the next agent can listen.
    let reported = reporter.map_or(Ok(()), JoinHandle::join);
    joined.and(reported).map_err(|_| Error::Broken)?;
    info!("stopped; what is in force stands");
    Ok(())
}

/// Reports connections on a thread of its own, if the kernel can tell of them. Enforcement does not
/// depend on it.
fn report(
    options: &Options,
    tell: &mpsc::Sender<Message>,
    flows: &Arc<Flows>,
    events: Option<tokio::sync::mpsc::Sender<events::Refused>>,
    cut: mpsc::Receiver<Vec<Headers>>,
    metrics: &Arc<Mutex<Metrics>>,
) -> Result<Option<(Reports, JoinHandle<()>)>, Error> {
    let Logging { level, group, rate } = options.log;
    let log = Log { group, rate };
    let allowed = match Allowed::open(log) {
        Ok(allowed) => allowed,
        Err(error) => {
            warn!(
                %error,
                "nothing is logged: the kernel does not tell which connections are refused; it \
                 needs the modules nft_log, nft_limit and nfnetlink_log"
            );
            return Ok(None);
        }
    };
    let (say, wanted) = mpsc::channel();
    let tell = tell.clone();
    let ask = move |source, destination| {
        let (answer, excerpt) = mpsc::sync_channel(1);
        tell.send(Message::Excerpt([source, destination], answer)).ok()?;
        excerpt.recv().ok()
    };
    let (node, flows, metrics) = (options.node.clone(), flows.clone(), metrics.clone());
    let reporter = Reporter {
        node,
        level,
        log,
        told: FlowLog::open(log.group).ok(),
        allowed,
        ask: Box::new(ask),
        wanted,
        cut,
        flows,
        events,
        metrics,
    };
    let thread = reporter.on_a_thread().map_err(Error::Runtime)?;
    Ok(Some((Reports { logging: options.log, tell: say }, thread)))
}

fn work<D: Dataplane>(mut agent: Agent<D>, told: &mpsc::Receiver<Message>) {
    let mut next = Instant::now();
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        let first = match told.recv_timeout(wait) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        for message in first.into_iter().chain(told.try_iter()) {
            match message {
                Message::Event(event, at) => agent.hear(*event, at),
                Message::Attached(attachment, at) => agent.attached(&attachment, at),
                Message::Asked(request, at, answer) => agent.asked(request, at, answer),
                Message::Excerpt([source, destination], answer) => {
                    // Whoever asked may have gone.
                    let _ = answer.send(agent.excerpt(source, destination));
                }
                Message::Count(done) => {
                    agent.count_hits();
                    // Whoever asked may have gone.
                    let _ = done.send(());
                }
                Message::Stop => {
                    agent.stop();
                    return;
                }
            }
        }
        next = agent.step();
    }
}
