//! Events are gathered until there are enough of them, or the first has waited for long enough.

use super::send::Sender;
use super::{BatchOptions, ThrottleOptions};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

const HEAD: &[u8] = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;
const TAIL: &[u8] = b"]}";
/// Batches at most that are under way at once, those that wait for their next attempt included. Kubernetes has no such limit.
const UNDER_WAY: usize = 16;

/// For ever, in a form that can be added to a time.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What the collector is told.
#[derive(Debug)]
pub(super) enum Order {
    /// An event, and the room that it takes.
    Event(Bytes, OwnedSemaphorePermit),
    /// Send what there is, and tell when that is under way.
    Flush(oneshot::Sender<()>),
}

/// Events that are sent together.
#[derive(Debug)]
pub(super) struct Batch {
    body: Vec<u8>,
    pub(super) events: u64,
    room: Option<OwnedSemaphorePermit>,
    /// When it is sent at the latest; never, when it is empty.
    due: Option<Instant>,
}

impl Batch {
    fn new() -> Self {
        Self { body: Vec::new(), events: 0, room: None, due: None }
    }

    /// Of one event.
    pub(super) fn of(event: &[u8], room: OwnedSemaphorePermit) -> Self {
        let mut batch = Self::new();
        batch.push(event, room);
        batch
    }

    fn push(&mut self, event: &[u8], room: OwnedSemaphorePermit) {
        self.body.extend_from_slice(if self.body.is_empty() { HEAD } else { b"," });
        self.body.extend_from_slice(event);
        self.events += 1;
        match &mut self.room {
            Some(taken) => taken.merge(room),
            None => self.room = Some(room),
        }
    }

    /// The list, and the room that it takes until nobody needs it any more.
    pub(super) fn into_body(mut self) -> (Bytes, Option<OwnedSemaphorePermit>) {
        self.body.extend_from_slice(TAIL);
        (self.body.into(), self.room)
    }
}

/// Gathers events and has them sent.
pub(super) struct Collector {
    most: u64,
    /// Bytes of a batch's events.
    largest: usize,
    wait: Duration,
    throttle: Option<Throttle>,
    slots: Arc<Semaphore>,
    sender: Arc<Sender>,
    tasks: TaskTracker,
}

impl Collector {
    pub(super) fn new(options: &BatchOptions, largest: usize, sender: Arc<Sender>, tasks: TaskTracker) -> Self {
        Self {
            most: options.max_size.max(1) as u64,
            largest,
            wait: options.max_wait.min(LONGEST_WAIT),
            throttle: options.throttle.as_ref().map(Throttle::new),
            slots: Arc::new(Semaphore::new(UNDER_WAY)),
            sender,
            tasks,
        }
    }

    /// Runs until nobody can tell it anything any more.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut batch = Batch::new();
        loop {
            let order = match batch.due {
                // no timer runs while there is nothing to send
                None => orders.recv().await,
                Some(due) => match tokio::time::timeout_at(due, orders.recv()).await {
                    Ok(order) => order,
                    Err(_) => {
                        self.send(&mut batch).await;
                        continue;
                    }
                },
            };
            match order {
                Some(Order::Event(event, room)) => {
                    if batch.body.len() + event.len() > self.largest {
                        self.send(&mut batch).await;
                    }
                    batch.push(&event, room);
                    batch.due.get_or_insert_with(|| Instant::now() + self.wait);
                    if batch.events >= self.most {
                        self.send(&mut batch).await;
                    }
                }
                Some(Order::Flush(done)) => {
                    self.send(&mut batch).await;
                    // whoever asked may have gone
                    let _ = done.send(());
                }
                None => return self.send(&mut batch).await,
            }
        }
    }

    /// Has a batch sent, when that is allowed and there are not too many under way: until then events wait where they are counted.
    async fn send(&mut self, batch: &mut Batch) {
        let batch = std::mem::replace(batch, Batch::new());
        if batch.events == 0 {
            return;
        }
        if let Some(throttle) = &mut self.throttle {
            throttle.pass().await;
        }
        // nobody closes it
        let slot = self.slots.clone().acquire_owned().await;
        let sender = self.sender.clone();
        self.tasks.spawn(async move {
            sender.deliver(batch).await;
            drop(slot);
        });
    }
}

/// A bucket of permits, which fills up by and by.
struct Throttle {
    qps: f64,
    burst: f64,
    permits: f64,
    counted: Instant,
}

impl Throttle {
    fn new(options: &ThrottleOptions) -> Self {
        let burst = f64::from(options.burst.max(1));
        Self { qps: options.qps, burst, permits: burst, counted: Instant::now() }
    }

    /// Waits for a permit and takes it.
    async fn pass(&mut self) {
        let now = Instant::now();
        self.permits = (self.permits + (now - self.counted).as_secs_f64() * self.qps).min(self.burst);
        self.counted = now;
        self.permits -= 1.0;
        if self.permits < 0.0 {
            // what is too long for a time waits for ever
            let pause = Duration::try_from_secs_f64(-self.permits / self.qps).unwrap_or(Duration::MAX);
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn batches_are_throttled() {
        let mut throttle = Throttle::new(&ThrottleOptions { qps: 10.0, burst: 3 });
        let start = Instant::now();
        for (n, millis) in [(1, 0), (2, 0), (3, 0), (4, 100), (5, 200)] {
            throttle.pass().await;
            assert_eq!(start.elapsed().as_millis(), millis, "number {n}");
        }
        // unused, it fills up again, and not beyond
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        for (n, millis) in [(1, 0), (2, 0), (3, 0), (4, 100)] {
            throttle.pass().await;
            assert_eq!(start.elapsed().as_millis(), millis, "number {n}");
        }
    }
}
