//! The newest revision of a store that several servers share: one question for all who ask at the same time.

use edge_storage::{Error, Revision, Storage};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Newest {
    /// Counts those who asked.
    asked: AtomicU64,
    last: Mutex<Answer>,
}

/// The last answer, and which of those who asked it is good for: it was asked for after they had come.
#[derive(Debug)]
struct Answer {
    good_for: u64,
    revision: Result<Revision, Error>,
}

impl Default for Answer {
    fn default() -> Self {
        Self { good_for: 0, revision: Ok(0) }
    }
}

impl Newest {
    /// A revision of which every write is part that was acknowledged before this was called.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn ask(&self, storage: &dyn Storage) -> Result<Revision, Error> {
        let own = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut last = self.last.lock().await;
        if last.good_for < own {
            let good_for = self.asked.load(Ordering::Acquire);
            let revision = storage.newest().await;
            *last = Answer { good_for, revision };
        }
        last.revision.clone()
    }
}
