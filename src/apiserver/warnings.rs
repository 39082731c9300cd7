//! Warnings that come up on the way of a request, wherever that is; the answer carries them, whatever else it is.

use std::cell::RefCell;
use std::future::Future;

tokio::task_local! {
    static WARNINGS: RefCell<Vec<String>>;
}

/// Runs the work of one request; what it came to, and its warnings in order, each once.
pub(crate) async fn collect<F: Future>(work: F) -> (F::Output, Vec<String>) {
    WARNINGS
        .scope(RefCell::default(), async {
            let output = work.await;
            let warnings = WARNINGS.with(RefCell::take);
            (output, warnings)
        })
        .await
}

/// Adds a warning to the request that is being answered. Outside of one it is dropped.
pub(crate) fn add(warning: String) {
    // an update that lost a race is judged again
    let _ = WARNINGS.try_with(|all| {
        let mut all = all.borrow_mut();
        if !all.contains(&warning) {
            all.push(warning);
        }
    });
}
