//! What the Unix socket says, said on loopback too: for people, who come by a port-forward to the
//! agent's pod. Whatever changes something is refused here.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use portcullis_cni::protocol::{Answer, Request};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::flows::Flows;
use crate::socket::answer_each;

/// After a failed accept, such as when the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves for ever. `ask` brings a request to where it is answered.
pub(crate) async fn serve(
    listener: TcpListener,
    flows: Arc<Flows>,
    ask: impl Fn(Request) -> oneshot::Receiver<Answer> + Clone + Send + Sync + 'static,
) -> Infallible {
    let ask = move |request: Request| match request.only_reads() {
        true => ask(request),
        false => {
            let (answer, wait) = oneshot::channel();
            let why = "pods are added and deleted at the Unix socket alone".to_owned();
            // The other end is right here.
            let _ = answer.send(Answer::Failed { why });
            wait
        }
    };
    answer_each(PAUSE, || listener.accept(), &flows, ask).await
}
