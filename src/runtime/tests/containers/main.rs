//! Real containers on the real kernel, made of busybox. Needs root, and says so when it is not.
//!
//! A program of its own, because the zygote must be forked before there are threads.
#![expect(clippy::unwrap_used, reason = "tests")]

mod basics;
mod crashes;
mod dense;
mod isolation;
mod streams;
mod support;
mod wasm;

use edge_runtime::Zygote;
use libtest_mimic::{Arguments, Trial};

fn main() -> std::process::ExitCode {
    // The host of dense programs is this program.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == edge_runtime::DENSE_HOST) {
        return edge_runtime::dense_host(args);
    }
    let arguments = Arguments::from_args();
    if !arguments.list {
        assert!(nix::unistd::geteuid().is_root(), "these tests make containers and need root");
        let zygote = Zygote::start().unwrap();
        if let Ok(directory) = std::env::var(crashes::DOOMED) {
            crashes::doomed_daemon(zygote, directory.as_ref());
        }
        support::keep_zygote(zygote);
    }
    libtest_mimic::run(&arguments, trials()).exit_code()
}

fn trials() -> Vec<Trial> {
    [basics::trials(), streams::trials(), isolation::trials(), crashes::trials(), wasm::trials(), dense::trials()]
        .into_iter()
        .flatten()
        .collect()
}
