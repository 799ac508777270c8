//! Events on pods of which connections were refused, few of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use portcullis_cni::flow::{Direction, Flow, Reason};
use portcullis_kube::live::{Events, PodEvent};
use tokio::sync::mpsc::Receiver;
use tracing::warn;

/// A pod gets one in so long, for each direction.
const APART: Duration = Duration::from_secs(300);
/// The agent writes no more than one in so long.
const PACE: Duration = Duration::from_secs(1);
/// So many wait to be written; what comes then gets none.
pub(crate) const WAITING: usize = 64;

/// A refused connection, and the uid of the pod whose policies refused it, empty if that is not known.
pub(crate) type Refused = (Flow, String);

/// Writes an Event for a refused connection now and then, until nobody reports any more.
pub(crate) async fn write(events: Events, mut refused: Receiver<Refused>) {
    let mut written = HashMap::new();
    let mut failed = false;
    while let Some((flow, uid)) = refused.recv().await {
        let Some(event) = event(&flow, uid) else { continue };
        written.retain(|_, at: &mut Instant| at.elapsed() < APART);
        let key = (event.namespace.clone(), event.pod.clone(), flow.direction);
        if written.contains_key(&key) {
            continue;
        }
        match events.write(&event).await {
            Ok(()) => {
                written.insert(key, Instant::now());
                failed = false;
            }
            Err(why) if !failed => {
                warn!(why, "cannot write Events; they need the permission to create events");
                failed = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(PACE).await;
    }
}

/// What is said of a connection that policies refused.
fn event(flow: &Flow, uid: String) -> Option<PodEvent> {
    let (subject, direction, other) = match flow.direction? {
        Direction::Egress => (&flow.source, "to", &flow.destination),
        Direction::Ingress => (&flow.destination, "from", &flow.source),
    };
    if flow.reason != Some(Reason::Policy) {
        return None;
    }
    let port = match flow.destination.port {
        Some(port) => format!("{port}/{}", flow.protocol),
        None => flow.protocol.clone(),
    };
    let (other, policies) = (other.name(), flow.isolated_by.join(", "));
    let nearest = match &flow.nearest {
        Some(nearest) => format!("; nearest is {nearest}"),
        None => String::new(),
    };
    Some(PodEvent {
        namespace: subject.namespace.clone()?,
        pod: subject.pod.clone()?,
        uid,
        time: flow.time.clone(),
        reason: "ConnectionRefused",
        message: format!(
            "refused {direction} {other} on {port}: isolated by {policies}{nearest}. More of these \
             within 5 minutes are not told here: portcullis observe"
        ),
    })
}
