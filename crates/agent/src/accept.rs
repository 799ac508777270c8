//! The connections of a listener, each served on its own.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

/// Serves whatever is accepted, for ever, and no more at one time than `most`: others have to wait.
/// After a failed accept, such as when the process has no descriptor left, it pauses.
pub(crate) async fn each<C, A, S>(
    most: usize,
    pause: Duration,
    accept: impl Fn() -> A,
    serve: impl Fn(C) -> S,
) -> Infallible
where
    A: Future<Output = io::Result<C>>,
    S: Future<Output = ()> + Send + 'static,
{
    let connections = Arc::new(Semaphore::new(most));
    loop {
        let permit = connections.clone().acquire_owned().await;
        let Ok(connection) = accept().await else {
            tokio::time::sleep(pause).await;
            continue;
        };
        let serving = serve(connection);
        tokio::spawn(async move {
            let _permit = permit;
            serving.await;
        });
    }
}
