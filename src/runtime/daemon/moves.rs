//! Keeps the first process of a container from waiting when it is moved into its cgroup.
//!
//! Such a move takes a lock of all processes, for which the kernel waits until every processor has been seen outside of it (an RCU grace
//! period: 5 to 20 ms, half of what a pod takes to start), unless somebody has just waited for that. So while sandboxes and containers are
//! made a thread waits in advance, by moving this process to where it is, and again before that is forgotten. What a process does to
//! itself with one thread needs no such lock ([`Cgroups::enter`]), but libcontainer moves the first process by its number.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::cgroup::Cgroups;

/// How long the kernel remembers at least that nobody has to wait: a grace period, which is never shorter.
const REMEMBERED: Duration = Duration::from_millis(4);
/// How long it is seen to at most: what takes longer is stuck, and the next one begins anew.
const LONGEST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Moves {
    cgroups: Cgroups,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many sandboxes and containers are being made.
    making: usize,
    /// Whether the thread is at work.
    works: bool,
}

/// Something is being made as long as this lives, from which a process will be moved into a cgroup.
#[derive(Debug)]
#[must_use]
pub struct Making(Arc<Moves>);

impl Moves {
    pub(super) fn new(cgroups: Cgroups) -> Arc<Self> {
        Arc::new(Self { cgroups, state: Mutex::default(), ended: Condvar::new() })
    }

    /// Something is going to be made. Returns at once.
    pub(super) fn expect(self: &Arc<Self>) -> Making {
        let mut state = self.state.lock();
        state.making += 1;
        if !std::mem::replace(&mut state.works, true) {
            let moves = Arc::clone(self);
            tokio::task::spawn_blocking(move || moves.work());
        }
        Making(Arc::clone(self))
    }

    fn work(&self) {
        // without it the moves take their time
        let mut file = self.cgroups.own_processes();
        let until = Instant::now() + LONGEST;
        loop {
            if let Some(own) = &mut file
                && own.write_all(b"0").is_err()
            {
                file = None;
            }
            let mut state = self.state.lock();
            if file.is_some() && state.making > 0 {
                self.ended.wait_for(&mut state, REMEMBERED);
            }
            if file.is_none() || state.making == 0 || Instant::now() >= until {
                state.works = false;
                return;
            }
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.making -= 1;
        if state.making == 0 {
            self.0.ended.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_works_as_long_as_something_is_made() {
        let moves = Moves::new(Cgroups::detect("/").expect("cgroups are mounted"));
        let (first, second) = (moves.expect(), moves.expect());
        drop(first);
        assert_eq!(moves.state.lock().making, 1);
        drop(second);
        // whatever it could do, it ends
        let until = Instant::now() + Duration::from_secs(10);
        while moves.state.lock().works {
            assert!(Instant::now() < until, "the thread is still at work");
            tokio::task::yield_now().await;
        }
        drop(moves.expect());
    }
}
