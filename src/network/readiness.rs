//! Whether pods can be connected, and who wants to know when that changes.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Whether pods can be connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// They can.
    Ready,
    /// They cannot, and why.
    NotReady(String),
}

type Listener = Box<dyn Fn() + Send + Sync>;

pub(crate) struct Announcer {
    state: Mutex<Readiness>,
    listeners: Mutex<Vec<Listener>>,
}

impl fmt::Debug for Announcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl Announcer {
    pub(crate) fn new(why_not: String) -> Self {
        Self { state: Mutex::new(Readiness::NotReady(why_not)), listeners: Mutex::default() }
    }

    pub(crate) fn get(&self) -> Readiness {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells the listeners when it changes something.
    pub(crate) fn set(&self, new: Readiness) {
        let before = std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), new.clone());
        if before != new {
            self.listeners.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|listener| listener());
        }
    }

    pub(crate) fn listen(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(listener));
    }
}
