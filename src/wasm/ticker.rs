//! The engine's clock: what makes programs that compute for long leave their thread to others now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use wasmtime::{Engine, EngineWeak};

/// For how long at most a program computes before others get the thread.
const TICK: Duration = Duration::from_millis(10);
/// Bytes of the ticking thread's stack.
const STACK: usize = 64 * 1024;

/// Ticks while programs compute, and sleeps for good while none does.
#[derive(Debug)]
pub(crate) struct Ticker {
    state: Arc<State>,
    thread: Thread,
}

#[derive(Debug)]
struct State {
    running: AtomicUsize,
    asleep: AtomicBool,
    ended: AtomicBool,
}

/// A program that computes now.
#[derive(Debug)]
pub(crate) struct Computing<'a>(&'a State);

impl Ticker {
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Self> {
        let state = Arc::new(State {
            running: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let handle: JoinHandle<()> = std::thread::Builder::new().name("ticker".into()).stack_size(STACK).spawn({
            let (state, engine) = (Arc::clone(&state), engine.weak());
            move || tick(&state, &engine)
        })?;
        Ok(Self { state, thread: handle.thread().clone() })
    }

    /// Has the clock tick until what it returns is dropped.
    pub(crate) fn computing(&self) -> Computing<'_> {
        self.state.running.fetch_add(1, Ordering::SeqCst);
        // One of many wakes it.
        if self.state.asleep.load(Ordering::SeqCst) && self.state.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
        Computing(&self.state)
    }
}

impl Drop for Computing<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

fn tick(state: &State, engine: &EngineWeak) {
    while !state.ended.load(Ordering::SeqCst) {
        if state.running.load(Ordering::SeqCst) == 0 {
            // Who begins to compute raises the count first and then looks here, so one of both sees the other.
            state.asleep.store(true, Ordering::SeqCst);
            while state.asleep.load(Ordering::SeqCst)
                && state.running.load(Ordering::SeqCst) == 0
                && !state.ended.load(Ordering::SeqCst)
            {
                std::thread::park();
            }
            state.asleep.store(false, Ordering::SeqCst);
        }
        // At least once, so that many short computations wake it a hundred times a second at most.
        std::thread::sleep(TICK);
        let Some(engine) = engine.upgrade() else { return };
        engine.increment_epoch();
    }
}
