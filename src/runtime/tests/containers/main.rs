//! Real containers on the real kernel, made of busybox. Needs root, and says so when it is not.
//!
//! A program of its own, because the zygote must be forked before there are threads.
#![expect(clippy::unwrap_used, reason = "tests")]

mod basics;
mod crashes;
mod isolation;
mod streams;
mod support;
mod wasm;

use edge_runtime::Zygote;
use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments = Arguments::from_args();
    if !arguments.list {
        assert!(nix::unistd::geteuid().is_root(), "these tests make containers and need root");
        let zygote = Zygote::start().unwrap();
        if let Ok(directory) = std::env::var(crashes::DOOMED) {
            crashes::doomed_daemon(zygote, directory.as_ref());
        }
        support::keep_zygote(zygote);
    }
    libtest_mimic::run(&arguments, trials()).exit();
}

fn trials() -> Vec<Trial> {
    [basics::trials(), streams::trials(), isolation::trials(), crashes::trials(), wasm::trials()]
        .into_iter()
        .flatten()
        .collect()
}
