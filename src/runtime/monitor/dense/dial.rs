//! Connections for the requests of a dense program, which the host cannot make: a short-lived child of the monitor looks up the name
//! as the pod would, connects in the pod's network, and gives the connection to the host.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_sys::process;
use edge_wasm::dense::{DialFailure, Request, send_dialled, send_request};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, alarm, chdir, chroot, setgroups, setresgid, setresuid};

use crate::cgroup::Cgroups;
use crate::dense::HOST_ID;

/// For how long one address is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// For how long the whole may take, in seconds.
const WHOLE_TIMEOUT: u32 = 60;

/// What is wanted, and for whom.
pub(super) struct Call<'a> {
    pub(super) id: u64,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) cgroups: &'a Cgroups,
    /// The container's, whose processor time it is.
    pub(super) cgroup: &'a str,
    pub(super) netns: Option<&'a Path>,
    /// Directory with `etc/hosts` and `etc/resolv.conf`.
    pub(super) names: PathBuf,
    /// The connection to the host.
    pub(super) reply: &'a OwnedFd,
}

/// Forks the child; gives its pid. It answers in any case, unless it is killed.
pub(super) fn begin(call: &Call<'_>) -> io::Result<i32> {
    process::fork_child(|| helper(call)).map(|pid| pid.as_raw())
}

fn helper(call: &Call<'_>) -> i32 {
    let connected = process::close_fds_except(&[call.reply.as_raw_fd()])
        .and_then(|()| enter(call))
        .map_err(|err| failed(&err))
        .and_then(|()| connect(&call.host, call.port));
    let told = match connected {
        Ok(stream) => send_dialled(call.reply.as_fd(), call.id, stream.as_fd()),
        Err(failure) => send_request(call.reply.as_fd(), &Request::Dialled { id: call.id, failure: Some(failure) }),
    };
    i32::from(told.is_err())
}

/// Becomes a process that has the pod's network, its names, and nothing else.
fn enter(call: &Call<'_>) -> io::Result<()> {
    alarm::set(WHOLE_TIMEOUT);
    call.cgroups.enter(call.cgroup).map_err(io::Error::other)?;
    if let Some(netns) = call.netns {
        setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
    }
    chroot(&call.names)?;
    chdir("/")?;
    let (uid, gid) = (Uid::from_raw(HOST_ID), Gid::from_raw(HOST_ID));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(prctl::set_no_new_privs()?)
}

fn connect(host: &str, port: u16) -> Result<TcpStream, DialFailure> {
    let addresses = (host, port).to_socket_addrs().map_err(|err| DialFailure::Name(err.to_string()))?;
    let mut last = DialFailure::Name("no address".to_owned());
    for address in addresses {
        match try_address(&address) {
            Ok(stream) => return Ok(stream),
            Err(err) => last = failed(&err),
        }
    }
    Err(last)
}

fn try_address(address: &SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(address, CONNECT_TIMEOUT)
}

fn failed(err: &io::Error) -> DialFailure {
    let usual = match err.kind() {
        io::ErrorKind::TimedOut => nix::libc::ETIMEDOUT,
        _ => nix::libc::EIO,
    };
    DialFailure::Connect(err.raw_os_error().unwrap_or(usual))
}
