//! Simulations: the real server, and hollow nodes instead of machines. They need root, as the end-to-end tests do.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(dead_code, unused_imports, reason = "the end-to-end tests' harness has more than is needed here")]

#[path = "../../benches/common/mod.rs"]
mod common;
#[path = "../e2e/harness/mod.rs"]
mod harness;
#[path = "../hollow/mod.rs"]
mod hollow;

mod chaos;
mod clock;
mod hot_loops;
