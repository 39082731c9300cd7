//! Who is connected, and who has to go when there are too many.
//!
//! A connection is busy while a request of it is answered, and idle otherwise: also while it shakes hands or dribbles the
//! head of a request. Only idle ones are ever ended: those that have been idle for too long, and, when there are too
//! many, the one that has been idle for longest. So whoever opens connections and says nothing loses those, and takes the
//! place of nobody who works.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// All connections of a listener.
#[derive(Debug)]
pub(crate) struct Connections {
    limit: usize,
    state: Mutex<State>,
    open: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts up, so that the first of the idle ones has been idle for longest.
    next: u64,
    idle: BTreeMap<u64, CancellationToken>,
}

/// One of them; dropping it makes its place free.
#[derive(Debug)]
pub(crate) struct Connection {
    all: Arc<Connections>,
    evicted: CancellationToken,
    /// How many requests are being answered. Changes only together with the state of all.
    requests: watch::Sender<Requests>,
}

#[derive(Clone, Copy, Debug)]
struct Requests {
    open: usize,
    /// While there are none: the place among the idle connections, and since when.
    idle: (u64, Instant),
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Connection>);

impl Connections {
    /// For at most so many connections at once.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default(), open: watch::Sender::new(0) })
    }

    /// A place for a new connection. When there are too many, the one that has been idle for longest has to go; `None` when
    /// all are busy.
    pub(crate) fn open(self: &Arc<Self>) -> Option<Arc<Connection>> {
        let mut state = self.state.lock();
        if *self.open.borrow() >= self.limit {
            let (_, longest) = state.idle.pop_first()?;
            longest.cancel();
        }
        let evicted = CancellationToken::new();
        let idle = (state.rest(evicted.clone()), Instant::now());
        let requests = watch::Sender::new(Requests { open: 0, idle });
        self.open.send_modify(|open| *open += 1);
        Some(Arc::new(Connection { all: self.clone(), evicted, requests }))
    }

    /// Returns when no connection is open.
    pub(crate) async fn closed(&self) {
        // the sender is `self`
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }
}

impl State {
    fn rest(&mut self, evicted: CancellationToken) -> u64 {
        let place = self.next;
        self.next += 1;
        self.idle.insert(place, evicted);
        place
    }
}

impl Connection {
    /// A request begins; it lasts as long as the result.
    pub(crate) fn request(self: &Arc<Self>) -> Busy {
        let mut state = self.all.state.lock();
        self.requests.send_modify(|requests| {
            if requests.open == 0 {
                state.idle.remove(&requests.idle.0);
            }
            requests.open += 1;
        });
        Busy(self.clone())
    }

    /// Returns when its place was given to another.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Returns when it has been idle for so long.
    pub(crate) async fn idle_for(&self, time: Duration) {
        let mut requests = self.requests.subscribe();
        loop {
            let Requests { open, idle } = *requests.borrow_and_update();
            // the sender is `self`: it never closes
            if open > 0 {
                let _ = requests.changed().await;
            } else if tokio::time::timeout_at(idle.1 + time, requests.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let Connection { all, evicted, requests } = self.0.as_ref();
        let mut state = all.state.lock();
        requests.send_modify(|requests| {
            requests.open -= 1;
            if requests.open == 0 {
                requests.idle = (state.rest(evicted.clone()), Instant::now());
            }
        });
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let requests = *self.requests.borrow();
        self.all.state.lock().idle.remove(&requests.idle.0);
        self.all.open.send_modify(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn is_evicted(connection: &Connection) -> bool {
        connection.evicted.is_cancelled()
    }

    #[tokio::test]
    async fn the_longest_idle_one_goes_and_a_busy_one_never() {
        let all = Connections::new(3);
        let (a, b, c) = (all.open().unwrap(), all.open().unwrap(), all.open().unwrap());
        let working = a.request();
        drop(b.request());
        let d = all.open().unwrap();
        assert_eq!([&a, &b, &c, &d].map(|x| is_evicted(x)), [false, false, true, false]);
        drop(c);
        let e = all.open().unwrap();
        assert!(is_evicted(&b));
        drop(b);
        let (_second, _third) = (d.request(), e.request());
        assert!(all.open().is_none(), "all are busy");
        drop(working);
        let f = all.open().unwrap();
        assert!(is_evicted(&a));
        drop((a, d, e, f));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_means_without_a_request() {
        let all = Connections::new(3);
        let a = all.open().unwrap();
        let since = Instant::now();
        a.idle_for(Duration::from_secs(90)).await;
        assert_eq!(since.elapsed().as_secs(), 90);
        let working = a.request();
        let also = a.request();
        let idle = tokio::time::timeout(Duration::from_secs(3600), a.idle_for(Duration::from_secs(90)));
        assert!(idle.await.is_err());
        drop(working);
        let idle = tokio::time::timeout(Duration::from_secs(3600), a.idle_for(Duration::from_secs(90)));
        assert!(idle.await.is_err(), "the other request is still there");
        drop(also);
        let since = Instant::now();
        a.idle_for(Duration::from_secs(90)).await;
        assert_eq!(since.elapsed().as_secs(), 90);
        let closed = tokio::spawn({
            let all = all.clone();
            async move { all.closed().await }
        });
        tokio::task::yield_now().await;
        assert!(!closed.is_finished());
        drop(a);
        closed.await.unwrap();
        assert!(all.state.lock().idle.is_empty());
    }
}
