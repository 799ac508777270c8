//! A command and its client over a WebSocket: streams as numbered channels (`v4.channel.k8s.io`,
//! `v5.channel.k8s.io`).

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};

use crate::containers::{Container, DRAIN};
use crate::meta;
use crate::runtime::{Input, Output, Process};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// How it ended, as a `Status`.
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the channel that follows is closed.
const CLOSE: u8 = 255;

/// How long a client that was told of the end may take to leave.
const LEAVE: Duration = Duration::from_secs(5);

/// Which streams a client wants (`PodExecOptions`, `PodAttachOptions`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// What is sent to the client.
#[derive(Debug)]
enum Sent {
    Output(u8, Bytes),
    /// The last thing.
    End(Value),
}

/// A command as its client meets it.
pub(crate) struct Session {
    sent: mpsc::Receiver<Sent>,
    /// What the client writes. Dropped when it will write nothing more.
    input: Option<mpsc::Sender<Bytes>>,
    resize: Box<dyn Fn(u16, u16) + Send + Sync>,
    /// Called when the client leaves before the end.
    leave: Box<dyn FnOnce() + Send>,
}

impl Session {
    /// One that ends before it begins.
    pub(crate) fn failed(why: &str) -> Session {
        let message = format!("Internal error occurred: {why}");
        let status = json!({
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "InternalError",
            "details": {"causes": [{"message": why}]},
            "code": 500,
        });
        let (to, sent) = mpsc::channel(1);
        let _ = to.try_send(Sent::End(status));
        Session { sent, input: None, resize: Box::new(|_, _| {}), leave: Box::new(|| {}) }
    }

    /// A command that was started for this client alone: it ends with the client.
    pub(crate) fn of_command(process: Process, wanted: Wanted) -> Session {
        let (to, sent) = mpsc::channel(16);
        let pump =
            |output: Option<Output>, channel_number: u8, wanted: bool| -> Option<Receiver<()>> {
                let (mut output, to) = (output?, to.clone());
                let (ended, end) = channel::<()>();
                thread::spawn(move || {
                    let mut buffer = [0; 16 << 10];
                    while let Ok(size @ 1..) = output.0.read(&mut buffer) {
                        let bytes = Bytes::copy_from_slice(&buffer[..size]);
                        let sent = Sent::Output(channel_number, bytes);
                        // Without a client the command is killed, and this ends.
                        if wanted && to.blocking_send(sent).is_err() {
                            break;
                        }
                    }
                    drop(ended);
                });
                Some(end)
            };
        let pumps = [
            pump(process.stdout, STDOUT, wanted.stdout),
            pump(process.stderr, STDERR, wanted.stderr),
        ];
        let input = process.stdin.filter(|_| wanted.stdin).map(|Input(mut stdin)| {
            let (input, mut written) = mpsc::channel::<Bytes>(16);
            thread::spawn(move || {
                while let Some(bytes) = written.blocking_recv() {
                    if stdin.write_all(&bytes).and_then(|()| stdin.flush()).is_err() {
                        return;
                    }
                }
            });
            input
        });
        let control = process.control;
        let (resized, killed) = (control.clone(), control.clone());
        thread::spawn(move || {
            let code = control.wait();
            for end in pumps.into_iter().flatten() {
                let _ = end.recv_timeout(DRAIN);
            }
            let _ = to.blocking_send(Sent::End(exit_status(code)));
        });
        Session {
            sent,
            input,
            resize: Box::new(move |columns, rows| resized.resize(columns, rows)),
            leave: Box::new(move || killed.kill()),
        }
    }

    /// The command of a container, which goes on when the client leaves.
    pub(crate) fn of_container(container: Arc<Container>, spec: &Value, wanted: Wanted) -> Session {
        let (to, sent) = mpsc::channel(16);
        let (log, mut next) = container.attach();
        let tty = spec["tty"] == true;
        tokio::spawn(async move {
            let mut grown = log.subscribe();
            loop {
                grown.borrow_and_update();
                let (chunks, after, ended) = log.from(next);
                next = after;
                for chunk in chunks {
                    let (number, wanted) = match chunk.is_error && !tty {
                        true => (STDERR, wanted.stderr),
                        false => (STDOUT, wanted.stdout),
                    };
                    if wanted && to.send(Sent::Output(number, chunk.bytes)).await.is_err() {
                        return;
                    }
                }
                if ended {
                    let _ = to.send(Sent::End(exit_status(0))).await;
                    return;
                }
                tokio::select! {
                    changed = grown.changed() => if changed.is_err() { return },
                    () = to.closed() => return,
                }
            }
        });
        let once = spec["stdinOnce"] == true;
        let reads = spec["stdin"] == true && wanted.stdin;
        let input = reads.then(|| {
            let (input, mut written) = mpsc::channel::<Bytes>(16);
            let container = container.clone();
            thread::spawn(move || {
                while let Some(bytes) = written.blocking_recv() {
                    if !container.write(&bytes) {
                        return;
                    }
                }
                if once {
                    container.close_stdin();
                }
            });
            input
        });
        let resize = Box::new(move |columns, rows| container.resize(columns, rows));
        Session { sent, input, resize, leave: Box::new(|| {}) }
    }

    /// Serves a client until the command has ended or the client is gone.
    pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self, socket: WebSocketStream<S>) {
        let Session { mut sent, mut input, resize, leave } = self;
        let (mut to, mut from) = socket.split();
        let reader = async {
            while let Some(Ok(message)) = from.next().await {
                let data = match message {
                    Message::Binary(data) => data,
                    Message::Text(text) => text.into(),
                    Message::Close(_) => break,
                    _ => continue,
                };
                match (data.first(), data.get(1..).unwrap_or_default()) {
                    (Some(&STDIN), [_, ..]) => {
                        if let Some(to) = &input
                            && to.send(data.slice(1..)).await.is_err()
                        {
                            input = None;
                        }
                    }
                    (Some(&CLOSE), [STDIN, ..]) => input = None,
                    (Some(&RESIZE), size) => {
                        let size: Value = serde_json::from_slice(size).unwrap_or_default();
                        let side = |name| u16::try_from(meta::integer(&size, name)).ok();
                        if let (Some(columns), Some(rows)) = (side("/Width"), side("/Height")) {
                            resize(columns, rows);
                        }
                    }
                    _ => {}
                }
            }
        };
        let writer = async {
            while let Some(sent) = sent.recv().await {
                let (number, bytes, last) = match sent {
                    Sent::Output(number, bytes) => (number, bytes, false),
                    Sent::End(status) => (ERROR, status.to_string().into(), true),
                };
                let mut data = BytesMut::with_capacity(bytes.len() + 1);
                data.put_u8(number);
                data.put(bytes);
                if to.send(Message::Binary(data.freeze())).await.is_err() {
                    return;
                }
                if last {
                    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                    let _ = to.send(Message::Close(Some(frame))).await;
                    return;
                }
            }
        };
        tokio::pin!(reader);
        tokio::select! {
            // It goes on reading, so that what was sent last is not lost by hanging up.
            () = writer => drop(tokio::time::timeout(LEAVE, reader).await),
            () = &mut reader => leave(),
        }
    }
}

/// How a command ended, as clients read it.
fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}
