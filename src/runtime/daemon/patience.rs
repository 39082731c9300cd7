//! Waiting for the host of dense programs, which may hang. Who waits for long looks whether the host still greets; one that does not
//! is killed, and with it all its programs, as with one that died by itself. The next program that needs a host starts a new one.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_wasm::dense::Usage;

use super::{Container, Inner, Sandbox, blocking};
use crate::protocol::{ReplyBody, RequestBody};
use crate::status::ExitStatus;

/// How long a host may take for anything before it is looked at.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a program may take to end that was killed, when its host greets. It shares the processors with a thousand others.
const LETTING_GO: Duration = Duration::from_secs(60);

impl Inner {
    /// The result of `work`, to which a host has to contribute. Work that comes to an end when its host does comes to one at last.
    pub(super) async fn with_host<T>(self: &Arc<Self>, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(PATIENCE, &mut work).await {
                return done;
            }
            tokio::select! {
                done = &mut work => return done,
                () = self.look_after_hosts() => {}
            }
        }
    }

    /// Waits for the end of a program that was told to end at once.
    pub(super) async fn until_killed(self: &Arc<Self>, sandbox: &Sandbox, container: &Container) -> ExitStatus {
        if let Ok(exit) = tokio::time::timeout(LETTING_GO, self.with_host(container.wait())).await {
            return exit;
        }
        let id = &container.spec.id;
        tracing::error!(container = %id, "a dense program does not end although its host lives: let go of");
        // The monitor waits no longer for the host when it is asked again. Should it be gone, somebody else reports the end.
        if let Ok(connection) = sandbox.connection() {
            let _ = connection.request(id, RequestBody::KillAll { container: id.clone() }).await;
        }
        container.wait().await
    }

    /// What the program of a container uses, when it is a dense one and runs.
    pub(super) async fn dense_usage(self: &Arc<Self>, sandbox: &Sandbox, container: &Container) -> Usage {
        let id = &container.spec.id;
        if !container.spec.is_dense() || container.exit().is_some() {
            return Usage::default();
        }
        let Ok(connection) = sandbox.connection() else { return Usage::default() };
        let asked = connection.request(id, RequestBody::Usage { container: id.clone() });
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(ReplyBody::Usage(usage))) => usage,
            // It has just ended.
            Ok(_) => Usage::default(),
            Err(_) => {
                // Whoever asks for figures of a hundred pods does not wait for it.
                let inner = Arc::clone(self);
                tokio::spawn(async move { inner.look_after_hosts().await });
                Usage::default()
            }
        }
    }

    /// Kills the hosts that do not greet. Of many who want this at the same time one does it for all.
    async fn look_after_hosts(self: &Arc<Self>) {
        let wanted = Instant::now();
        let mut looked = self.hosts_looked_at.lock().await;
        if looked.is_some_and(|begun| begun >= wanted) {
            return;
        }
        *looked = Some(Instant::now());
        let inner = Arc::clone(self);
        blocking(move || inner.kill_hung_hosts()).await;
    }
}
