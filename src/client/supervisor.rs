//! Parts of a process that must go on: started again when they panic, and known to be down meanwhile.

use futures::FutureExt;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// First and longest wait before a part is started again.
const WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// A part that worked for so long before it panicked is no part that panics at each start.
const STEADY: Duration = Duration::from_secs(60);

/// Watches over the parts of one component. Clones watch over the same.
#[derive(Clone, Debug, Default)]
pub struct Supervisor {
    down: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Supervisor {
    /// Runs a part until it ends by itself; after a panic it is made and run again, from its beginning. Dropping the
    /// future ends the part.
    pub async fn keep<F: Future<Output = ()>>(&self, name: &str, make: impl Fn() -> F) {
        let mut wait = WAIT.0;
        loop {
            let start = Instant::now();
            // what the part has left half-done goes with it; its successor begins anew
            let Err(panic) = AssertUnwindSafe(async { make().await }).catch_unwind().await else { return };
            let reason = reason(panic.as_ref());
            if start.elapsed() > STEADY {
                wait = WAIT.0;
            }
            tracing::error!(part = name, reason, ?wait, "panicked, starting it again");
            self.down.lock().insert(name.to_owned(), reason);
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WAIT.1);
            self.down.lock().remove(name);
        }
    }

    /// What is down at this moment, and why; `None` when all is well.
    pub fn problem(&self) -> Option<String> {
        let down = self.down.lock();
        let text: Vec<String> = down.iter().map(|(name, reason)| format!("{name} panicked: {reason}")).collect();
        (!text.is_empty()).then(|| text.join("; "))
    }
}

fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no reason given").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_part_that_panics_is_started_again_and_known_to_be_down() {
        let (supervisor, runs) = (Supervisor::default(), AtomicU32::new(0));
        let kept = supervisor.keep("half", || async {
            if runs.fetch_add(1, Ordering::Relaxed) < 2 {
                panic!("at its start");
            }
        });
        tokio::pin!(kept);
        tokio::select! {
            biased;
            () = &mut kept => panic!("it waits before it starts again"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(supervisor.problem().as_deref(), Some("half panicked: at its start"));
        kept.await;
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        assert_eq!(supervisor.problem(), None);
    }
}
