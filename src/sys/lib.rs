//! Room `sys`: the only room with `unsafe` code. Thin, safe wrappers over the Linux calls the other rooms need and the
//! standard library or `nix` do not offer safely: forking a single-threaded process, passing file descriptors, pidfds,
//! detached mounts, terminals, network namespaces, programs for device access, and durable file writes.
//!
//! Comes in: plain values and owned or borrowed descriptors. Goes out: plain values, owned descriptors, [`std::io::Error`].
//! Nothing here knows about Kubernetes or containers.

pub mod async_fd;
pub mod bpf;
pub mod clock;
pub mod fsutil;
pub mod mount;
pub mod netns;
pub mod pidfd;
pub mod process;
pub mod signal;
pub mod socket;
pub mod tty;
