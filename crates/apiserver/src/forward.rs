//! Ports of a pod, forwarded over a WebSocket. As `kubectl port-forward` does it: SPDY frames, of which
//! each connection has two streams, one for its bytes and one for what went wrong. Or as other clients
//! do: the same two as numbered channels, for one connection to each port.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::containers::Containers;
use crate::spdy::{Frame, Reader, Writer};

/// What the client calls it.
pub(crate) const PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";

/// What those call it that have no SPDY.
pub(crate) const CHANNELS: &str = "v4.channel.k8s.io";

/// Serves a client of [`CHANNELS`] until it goes, or its connections have ended.
pub(crate) async fn serve_channels<S: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<S>,
    containers: Arc<Containers>,
    pod: Arc<Value>,
    ports: Vec<u16>,
) {
    let (mut to, mut from) = socket.split();
    let (frames, mut sent) = mpsc::channel::<Bytes>(16);
    let mut connections = HashMap::new();
    for (port, channel) in ports.into_iter().zip((0..u8::MAX).step_by(2)) {
        let (to, bytes) = mpsc::channel(16);
        connections.insert(channel, to);
        let (frames, containers, pod) = (frames.clone(), containers.clone(), pod.clone());
        tokio::spawn(async move {
            let framed = |channel: u8, bytes: &[u8]| Bytes::from([&[channel], bytes].concat());
            // Each channel begins with the port that it is of.
            for channel in [channel, channel + 1] {
                if frames.send(framed(channel, &port.to_le_bytes())).await.is_err() {
                    return;
                }
            }
            let data = |bytes: &[u8]| framed(channel, bytes);
            if let Err(why) = connection(containers, pod, port, &frames, bytes, data).await {
                // A client that is gone does not need it.
                let _ = frames.send(framed(channel + 1, why.as_bytes())).await;
            }
        });
    }
    drop(frames);
    let writer = async {
        while let Some(frame) = sent.recv().await {
            if to.send(Message::Binary(frame)).await.is_err() {
                return;
            }
        }
        let _ = to.send(Message::Close(None)).await;
    };
    let reader = async {
        while let Some(Ok(message)) = from.next().await {
            match message {
                Message::Binary(bytes) => {
                    let to = bytes.first().and_then(|channel| connections.get(channel));
                    if let Some(to) = to {
                        // One that is closed takes nothing any more.
                        let _ = to.send(bytes.slice(1..)).await;
                    }
                }
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    tokio::select! {
        () = reader => {}
        () = writer => {}
    }
}

/// Serves a client until it goes.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<S>,
    containers: Arc<Containers>,
    pod: Arc<Value>,
) {
    let (mut to, mut from) = socket.split();
    let (frames, mut sent) = mpsc::channel::<Bytes>(16);
    let writer = async {
        while let Some(frame) = sent.recv().await {
            if to.send(Message::Binary(frame)).await.is_err() {
                return;
            }
        }
    };
    let reader = async {
        let mut client = Client {
            reader: Reader::new(),
            writer: Writer::default(),
            frames,
            errors: HashMap::new(),
            connections: HashMap::new(),
            containers,
            pod,
        };
        while let Some(Ok(message)) = from.next().await {
            let goes_on = match message {
                Message::Binary(bytes) => client.take(&bytes).await,
                Message::Close(_) => None,
                _ => Some(()),
            };
            if goes_on.is_none() {
                return;
            }
        }
    };
    tokio::select! {
        () = reader => {}
        () = writer => {}
    }
}

struct Client {
    reader: Reader,
    writer: Writer,
    frames: mpsc::Sender<Bytes>,
    /// The streams for what went wrong, by the number of the connection that they are of.
    errors: HashMap<String, u32>,
    /// Where the bytes of a stream go. Dropped when the client has sent the last one.
    connections: HashMap<u32, mpsc::Sender<Bytes>>,
    containers: Arc<Containers>,
    pod: Arc<Value>,
}

impl Client {
    /// Takes bytes of the client; `None` if there is no going on.
    async fn take(&mut self, bytes: &[u8]) -> Option<()> {
        self.reader.put(bytes);
        while let Some(frame) = self.reader.frame().ok()? {
            match frame {
                Frame::Open { stream, headers, .. } => {
                    self.frames.send(self.writer.accept(stream)).await.ok()?;
                    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
                    let request = header("requestid");
                    if header("streamtype") == "error" {
                        self.errors.insert(request, stream);
                    } else {
                        let error = self.errors.remove(&request)?;
                        self.connect(stream, error, header("port").parse().ok()?);
                    }
                }
                Frame::Data { stream, bytes, fin } => {
                    if let Some(to) = self.connections.get(&stream)
                        && !bytes.is_empty()
                    {
                        // One that is closed takes nothing any more.
                        let _ = to.send(bytes).await;
                    }
                    if fin {
                        self.connections.remove(&stream);
                    }
                }
                Frame::Reset { stream } => drop(self.connections.remove(&stream)),
                Frame::Ping { id } => self.frames.send(Writer::pong(id)).await.ok()?,
                Frame::Leave | Frame::Other => {}
            }
        }
        Some(())
    }

    fn connect(&mut self, stream: u32, error: u32, port: u16) {
        let (to, bytes) = mpsc::channel(16);
        self.connections.insert(stream, to);
        let (frames, containers) = (self.frames.clone(), self.containers.clone());
        let pod = self.pod.clone();
        tokio::spawn(async move {
            let data = |bytes: &[u8]| Writer::data(stream, bytes, false);
            let ended = connection(containers, pod, port, &frames, bytes, data).await;
            let why = ended.err().unwrap_or_default();
            // A client that is gone needs neither.
            let _ = frames.send(Writer::data(error, why.as_bytes(), true)).await;
            let _ = frames.send(Writer::data(stream, b"", true)).await;
        });
    }
}

/// A connection to a port of a pod, from its beginning to its end; an error says why there was none.
async fn connection(
    containers: Arc<Containers>,
    pod: Arc<Value>,
    port: u16,
    frames: &mpsc::Sender<Bytes>,
    bytes: mpsc::Receiver<Bytes>,
    data: impl Fn(&[u8]) -> Bytes,
) -> Result<(), String> {
    let opened = move || containers.runtime.connect(&pod, port);
    let opened = match tokio::task::spawn_blocking(opened).await {
        Ok(Ok(opened)) => to_async(opened).map_err(|error| error.to_string()),
        Ok(Err(why)) => Err(why),
        Err(_) => Err("the connection could not be made".to_owned()),
    };
    let opened =
        opened.map_err(|why| format!("cannot connect to port {port} of the pod: {why}"))?;
    join(opened, frames, bytes, data).await;
    Ok(())
}

fn to_async(connection: std::net::TcpStream) -> std::io::Result<TcpStream> {
    connection.set_nonblocking(true)?;
    TcpStream::from_std(connection)
}

/// Copies both ways until the pod has sent its last byte, or the client is gone.
async fn join(
    mut connection: TcpStream,
    frames: &mpsc::Sender<Bytes>,
    mut bytes: mpsc::Receiver<Bytes>,
    data: impl Fn(&[u8]) -> Bytes,
) {
    let (mut from, mut to) = connection.split();
    let upload = async {
        while let Some(bytes) = bytes.recv().await {
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    let download = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(size @ 1..) = from.read(&mut buffer).await {
            if frames.send(data(&buffer[..size])).await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(upload, download);
    let mut uploading = true;
    loop {
        tokio::select! {
            () = &mut download => return,
            () = &mut upload, if uploading => uploading = false,
            () = frames.closed() => return,
        }
    }
}
