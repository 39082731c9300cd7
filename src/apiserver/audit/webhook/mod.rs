//! Events for somebody elsewhere: POSTed to him as `audit.k8s.io/v1` `EventList`s, in JSON.
//!
//! In batch mode a task gathers events and others send them, so that a receiver who is slow or away keeps no request waiting; in the blocking modes
//! every event is sent by itself, and whoever made it may wait until it has arrived. What waits is bounded in any mode; what does not
//! find room, or is refused for long enough, is counted and given up. Nothing runs while there is nothing to send.

mod batch;
mod kubeconfig;
mod send;

pub use kubeconfig::KubeconfigError;

use super::Truncation;
use batch::{Batch, Collector, Order};
use bytes::Bytes;
use send::Sender;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;

/// Bytes of events at most that wait or are under way. Kubernetes has no such limit.
const ROOM: usize = 32 << 20;

/// Where events are sent, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookOptions {
    /// A kubeconfig that says who receives them.
    pub config_file: PathBuf,
    /// How long to wait before a failed request is sent for the second time; before each later time one and a half times as long.
    pub initial_backoff: Duration,
    /// Who waits for whom.
    pub mode: WebhookMode,
    /// How large events and batches may be.
    pub truncation: Option<Truncation>,
}

/// Who waits for whom.
#[derive(Clone, Debug, PartialEq)]
pub enum WebhookMode {
    /// Events are gathered, and nobody waits for them.
    Batch(BatchOptions),
    /// Requests wait until their events have arrived, or are given up.
    Blocking,
    /// And are refused where it cannot be told that they were received.
    BlockingStrict,
}

/// How events are gathered.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchOptions {
    /// Events that wait at most; more are lost.
    pub buffer_size: usize,
    /// Events that are sent together at most.
    pub max_size: usize,
    /// For so long an event waits for others.
    pub max_wait: Duration,
    /// How many batches are sent.
    pub throttle: Option<ThrottleOptions>,
}

/// How many batches are sent in a time.
#[derive(Clone, Debug, PartialEq)]
pub struct ThrottleOptions {
    /// Batches a second on average, more than zero.
    pub qps: f64,
    /// So many at once, when there were fewer before.
    pub burst: u32,
}

/// The way to the receiver.
#[derive(Debug)]
pub(super) struct Webhook {
    pub(super) truncation: Option<Truncation>,
    way: Way,
    room: Arc<Semaphore>,
    sender: Arc<Sender>,
    /// What is being sent.
    tasks: TaskTracker,
    /// Where it is sent: a record may end anywhere.
    runtime: Handle,
}

#[derive(Debug)]
enum Way {
    Batch {
        orders: mpsc::Sender<Order>,
        /// Events that did not find room.
        lost: AtomicU64,
        is_losing: AtomicBool,
    },
    Each {
        is_strict: bool,
    },
}

/// Whether an event is stored, as soon as that counts for its request.
#[derive(Debug)]
#[must_use = "a request may have to wait for it"]
pub(crate) enum Stored {
    /// The request goes on, or not, whatever comes of the event.
    Settled(bool),
    /// Somebody is told of it now.
    Awaited { arrived: oneshot::Receiver<bool>, is_strict: bool },
}

impl Stored {
    /// Waits until the request may go on; or may not, where it is `false`.
    pub(crate) async fn wait(self) -> bool {
        match self {
            Self::Settled(may) => may,
            Self::Awaited { arrived, is_strict } => arrived.await.unwrap_or(false) || !is_strict,
        }
    }
}

impl Webhook {
    /// Reads the kubeconfig and gets ready. Must be called within a runtime, in which all is sent; what gathers events ends with this.
    ///
    /// # Errors
    /// When the kubeconfig is no good. Nobody is asked yet.
    pub(super) fn open(options: WebhookOptions) -> Result<Self, KubeconfigError> {
        let sender = Arc::new(Sender::open(options.config_file, options.initial_backoff)?);
        let tasks = TaskTracker::new();
        let largest = options.truncation.as_ref().map_or(usize::MAX, |limit| limit.max_batch);
        let way = match options.mode {
            WebhookMode::Batch(options) => {
                let (orders, received) = mpsc::channel(options.buffer_size.max(1));
                tokio::spawn(Collector::new(&options, largest, sender.clone(), tasks.clone()).run(received));
                Way::Batch { orders, lost: AtomicU64::new(0), is_losing: AtomicBool::new(false) }
            }
            WebhookMode::Blocking => Way::Each { is_strict: false },
            WebhookMode::BlockingStrict => Way::Each { is_strict: true },
        };
        let room = Arc::new(Semaphore::new(ROOM));
        Ok(Self { truncation: options.truncation, way, room, sender, tasks, runtime: Handle::current() })
    }

    /// Hands over an event, in JSON without its kind.
    pub(super) fn hand_over(&self, event: &Bytes) -> Stored {
        let bytes = u32::try_from(event.len()).ok();
        let room = bytes.and_then(|bytes| self.room.clone().try_acquire_many_owned(bytes).ok());
        match &self.way {
            Way::Batch { orders, lost, is_losing } => {
                let order = room.map(|room| Order::Event(event.clone(), room));
                if order.is_some_and(|order| orders.try_send(order).is_ok()) {
                    is_losing.store(false, Ordering::Relaxed);
                } else {
                    lost.fetch_add(1, Ordering::Relaxed);
                    // once, not for each event
                    if !is_losing.swap(true, Ordering::Relaxed) {
                        tracing::error!("audit events are lost: too many wait for the webhook");
                    }
                }
                Stored::Settled(true)
            }
            Way::Each { is_strict } => {
                let Some(room) = room else {
                    self.sender.lose(1, &"too many events wait for the webhook");
                    return Stored::Settled(!is_strict);
                };
                let (told, arrived) = oneshot::channel();
                let (sender, batch) = (self.sender.clone(), Batch::of(event, room));
                // by a task, so that it goes on when the client goes
                let work = async move {
                    // whoever asked may have gone
                    let _ = told.send(sender.deliver(batch).await);
                };
                drop(self.tasks.spawn_on(work, &self.runtime));
                Stored::Awaited { arrived, is_strict: *is_strict }
            }
        }
    }

    /// Sends what waits, and waits until all of it has arrived or is given up.
    pub(super) async fn flush(&self) {
        if let Way::Batch { orders, .. } = &self.way {
            let (done, told) = oneshot::channel();
            if orders.send(Order::Flush(done)).await.is_ok() {
                let _ = told.await;
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }

    /// Events that did not find room, where they are gathered; and events that did not arrive.
    pub(super) fn lost(&self) -> (Option<u64>, u64) {
        let unsent = match &self.way {
            Way::Batch { lost, .. } => Some(lost.load(Ordering::Relaxed)),
            Way::Each { .. } => None,
        };
        (unsent, self.sender.failed())
    }
}
