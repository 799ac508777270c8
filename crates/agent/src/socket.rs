//! The agent's Unix socket: lines of JSON, as `portcullis_cni::protocol` has them.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portcullis_cni::Attachments;
use portcullis_cni::flow::{Filter, Flow};
use portcullis_cni::protocol::{Answer, Attachment, Held, Holding, LONGEST, Request, line};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::accept;
use crate::flows::Flows;

/// The most connections at one time; more have to wait.
const CONNECTIONS: usize = 64;
/// The longest that a connection says nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// So many rules or policies are told in one line, so that none is longer than [`LONGEST`].
const IN_A_LINE: usize = 50;
/// Between attempts to listen, and after a failed accept.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves for ever. `ask` brings a request to where it is answered, `know` what the plugin has noted of
/// pods to where it is known.
pub(crate) async fn serve(
    socket: &Path,
    attachments: &Path,
    flows: &Arc<Flows>,
    know: impl Fn(Attachment),
    ask: impl Fn(Request) -> oneshot::Receiver<Answer> + Clone + Send + 'static,
) -> Infallible {
    let mut said = false;
    let listener = loop {
        match listen(socket) {
            Ok(listener) => break listener,
            Err(error) if !said => {
                let socket = socket.display();
                warn!(%socket, %error, "cannot listen; until that works nobody can ask");
                said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    };
    // Only now: whoever found no agent before has left a file, and whoever comes later asks.
    match Attachments::of(attachments).read() {
        Ok(known) => {
            info!(socket = %socket.display(), attachments = known.len(), "listening");
            known.into_iter().for_each(know);
        }
        Err(error) => warn!(folder = %attachments.display(), %error, "cannot read attachments"),
    }
    answer_each(PAUSE, || listener.accept(), flows, ask).await
}

/// Answers whoever connects, for ever. After a failed accept it pauses.
pub(crate) async fn answer_each<S, From, A>(
    pause: Duration,
    accept: impl Fn() -> A,
    flows: &Arc<Flows>,
    ask: impl Fn(Request) -> oneshot::Receiver<Answer> + Clone + Send + 'static,
) -> Infallible
where
    A: Future<Output = io::Result<(S, From)>>,
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let converse = |(stream, _): (S, From)| {
        let (ask, flows) = (ask.clone(), flows.clone());
        async move {
            // Whoever broke off knows it.
            let _ = converse(stream, &flows, ask).await;
        }
    };
    accept::each(CONNECTIONS, pause, accept, converse).await
}

/// Takes the place of a socket that an earlier agent left. Nobody but the owner and root can
/// connect, from the first moment on.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder)?;
    }
    let new = socket.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    fs::rename(new, socket)?;
    Ok(listener)
}

/// Answers requests until whoever asks hangs up.
async fn converse(
    stream: impl AsyncRead + AsyncWrite,
    flows: &Flows,
    ask: impl Fn(Request) -> oneshot::Receiver<Answer>,
) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::new(reader);
    loop {
        let mut request = Vec::new();
        let mut limited = (&mut reader).take(LONGEST as u64);
        let read = tokio::time::timeout(PATIENCE, limited.read_until(b'\n', &mut request)).await;
        if read.map_err(|_| io::ErrorKind::TimedOut)?? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_slice(&request) {
            Ok(Request::Observe { filter, last, follow }) => {
                let wanted = Wanted { filter, last: last.unwrap_or(usize::MAX), follow };
                observe(flows, &wanted, &mut reader, &mut writer).await?;
                continue;
            }
            Ok(request) => ask(request)
                .await
                .unwrap_or_else(|_| Answer::Failed { why: "the agent is stopping".to_owned() }),
            Err(error) => Answer::Failed { why: format!("not a request: {error}") },
        };
        for part in parts(answer) {
            writer.write_all(&line(&part)).await?;
        }
    }
}

/// An answer as the lines that it takes. Of those that can be long, `done` is the last.
fn parts(answer: Answer) -> Vec<Answer> {
    let mut parts: Vec<Answer> = match answer {
        Answer::Hits { rules } => {
            let lines = rules.chunks(IN_A_LINE);
            lines.map(|rules| Answer::Hits { rules: rules.to_vec() }).collect()
        }
        // At least one line, for the name of the node.
        Answer::Policies(holding) if holding.policies.len() <= IN_A_LINE => {
            vec![Answer::Policies(holding)]
        }
        Answer::Policies(Holding { node, settled, policies }) => {
            let part = |policies: &[Held]| Holding {
                node: node.clone(),
                settled,
                policies: policies.to_vec(),
            };
            policies.chunks(IN_A_LINE).map(|policies| Answer::Policies(part(policies))).collect()
        }
        other => return vec![other],
    };
    parts.push(Answer::Done);
    parts
}

/// What is asked for of connections.
struct Wanted {
    filter: Filter,
    last: usize,
    follow: bool,
}

/// Tells of connections, for ever if they are to be followed, until whoever asked hangs up.
async fn observe(
    flows: &Flows,
    wanted: &Wanted,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut batch = flows.last(&wanted.filter, wanted.last);
    loop {
        let mut lines = Vec::new();
        if batch.missed > 0 {
            lines.extend(line(&Answer::Missed { count: batch.missed }));
        }
        for flow in &batch.flows {
            lines.extend(line(&Answer::Flow(Box::new(Flow::clone(flow)))));
        }
        if !wanted.follow {
            lines.extend(line(&Answer::Done));
            return writer.write_all(&lines).await;
        }
        writer.write_all(&lines).await?;
        let mut more = [0];
        batch = tokio::select! {
            batch = flows.from(batch.next, &wanted.filter) => batch,
            // Whoever follows says nothing more.
            _ = reader.read(&mut more) => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
    }
}
