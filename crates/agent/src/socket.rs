//! The agent's Unix socket: lines of JSON, as `portcullis_cni::protocol` has them.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portcullis_cni::Attachments;
use portcullis_cni::protocol::{Answer, Holding, LONGEST, Request, line};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, oneshot};
use tracing::{info, warn};

/// The most connections at one time; more have to wait.
const CONNECTIONS: usize = 64;
/// The longest that a connection says nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// So many policies are told in one line, so that none is longer than [`LONGEST`].
const POLICIES: usize = 50;
/// Between attempts to listen, and after a failed accept.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves for ever. `ask` brings a request to where it is answered.
pub(crate) async fn serve(
    socket: &Path,
    attachments: &Path,
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
            for attachment in known {
                // Nobody waits for the answer.
                drop(ask(Request::Add(attachment)));
            }
        }
        Err(error) => warn!(folder = %attachments.display(), %error, "cannot read attachments"),
    }
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = connections.clone().acquire_owned().await;
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let ask = ask.clone();
        tokio::spawn(async move {
            let _permit = permit;
            // Whoever broke off knows it.
            let _ = converse(stream, ask).await;
        });
    }
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
pub(crate) async fn converse(
    stream: impl AsyncRead + AsyncWrite,
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
            Ok(request) => ask(request)
                .await
                .unwrap_or_else(|_| Answer::Failed { why: "the agent is stopping".to_owned() }),
            Err(error) => Answer::Failed { why: format!("not a request: {error}") },
        };
        if let Answer::Policies(Holding { node, settled, mut policies }) = answer {
            // At least one line, for the name of the node.
            loop {
                let rest = policies.split_off(policies.len().min(POLICIES));
                let part = Holding { node: node.clone(), settled, policies };
                writer.write_all(&line(&Answer::Policies(part))).await?;
                if rest.is_empty() {
                    break;
                }
                policies = rest;
            }
            writer.write_all(&line(&Answer::Done)).await?;
            continue;
        }
        writer.write_all(&line(&answer)).await?;
    }
}
