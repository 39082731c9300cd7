//! The filter of processes that run a WebAssembly program: what the engine, its executor and the C library's name lookup call, and
//! nothing else. The program itself makes no system calls, so a program that got out of the engine finds little to call: no execution,
//! no new processes, no namespaces, no mounts, no tracing of others, no kernel interfaces beyond files, sockets and memory.

use libcontainer::oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::{CLONE_NAMESPACE_FLAGS, allow, argument, refuse_clone3};

/// `CLONE_THREAD`: what is made is a thread and no process.
const CLONE_THREAD: u64 = 0x0001_0000;

/// Address families: unix (the executor's signal pipe, the C library's name service), IPv4, IPv6, and netlink, by which the C library
/// sees which families there are.
const FAMILIES: [u64; 4] = [1, 2, 10, 16];

/// Memory, threads, time, and the process' own end.
const PROCESS: &[&str] = &[
    "arch_prctl",
    "brk",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "exit",
    "exit_group",
    "futex",
    "futex_time64",
    "get_robust_list",
    "getcpu",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getppid",
    "getrandom",
    "getresgid",
    "getresuid",
    "getrlimit",
    "getrusage",
    "gettid",
    "gettimeofday",
    "getuid",
    "madvise",
    "membarrier",
    "memfd_create",
    "mlock",
    "mmap",
    "mmap2",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "prctl",
    "prlimit64",
    "restart_syscall",
    "riscv_flush_icache",
    "rseq",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
    "sysinfo",
    "tgkill",
    "time",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_settime",
    "times",
    "uname",
];

/// Files, by descriptors and by paths.
const FILES: &[&str] = &[
    "_llseek",
    "access",
    "chdir",
    "close",
    "close_range",
    "copy_file_range",
    "dup",
    "dup2",
    "dup3",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fadvise64_64",
    "fallocate",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fcntl",
    "fcntl64",
    "fdatasync",
    "fstat",
    "fstat64",
    "fstatat64",
    "fstatfs",
    "fstatfs64",
    "fsync",
    "ftruncate",
    "ftruncate64",
    "futimesat",
    "getcwd",
    "getdents",
    "getdents64",
    "ioctl",
    "linkat",
    "lseek",
    "lstat",
    "lstat64",
    "mkdirat",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readlink",
    "readlinkat",
    "readv",
    "renameat",
    "renameat2",
    "sendfile",
    "stat",
    "stat64",
    "statfs",
    "statx",
    "symlinkat",
    "sync_file_range",
    "truncate",
    "umask",
    "unlinkat",
    "utimensat",
    "write",
    "writev",
];

/// Sockets, and waiting for them.
const SOCKETS: &[&str] = &[
    "accept",
    "accept4",
    "bind",
    "connect",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "eventfd2",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "pipe2",
    "poll",
    "ppoll",
    "pselect6",
    "recv",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "select",
    "send",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "signalfd4",
];

/// Sockets that somebody else has made.
const GIVEN_SOCKETS: &[&str] = &[
    "accept",
    "accept4",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "eventfd2",
    "getpeername",
    "getsockname",
    "getsockopt",
    "pipe2",
    "poll",
    "ppoll",
    "recv",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "send",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
];

/// The profile of a process that runs one program.
pub(crate) fn wasm_profile() -> LinuxSeccomp {
    let mut rules: Vec<_> = [PROCESS, FILES, SOCKETS].into_iter().map(|names| allow(names, Vec::new())).collect();
    for family in FAMILIES {
        rules.push(allow(&["socket", "socketpair"], vec![of_family(family)]));
    }
    profile(rules)
}

/// The profile of the process that runs many: it makes no sockets, and waits only at those that it is given.
pub(crate) fn dense_profile() -> LinuxSeccomp {
    let mut rules: Vec<_> = [PROCESS, FILES, GIVEN_SOCKETS].into_iter().map(|names| allow(names, Vec::new())).collect();
    rules.push(allow(&["socketpair"], vec![of_family(FAMILIES[0])]));
    profile(rules)
}

fn of_family(family: u64) -> LinuxSeccompArg {
    argument(LinuxSeccompOperator::ScmpCmpEq, family, None)
}

fn profile(mut rules: Vec<LinuxSyscall>) -> LinuxSeccomp {
    let thread =
        argument(LinuxSeccompOperator::ScmpCmpMaskedEq, CLONE_THREAD | CLONE_NAMESPACE_FLAGS, Some(CLONE_THREAD));
    rules.push(allow(&["clone"], vec![thread]));
    rules.push(refuse_clone3());
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile.set_default_errno_ret(Some(nix::libc::EPERM as u32));
    // One process of one program: whoever calls by another architecture's numbers is not it.
    profile.set_architectures(Some(vec![Arch::ScmpArchNative]));
    profile.set_syscalls(Some(rules));
    profile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_program_needs_is_refused() {
        let named = |profile: &LinuxSeccomp, name: &str| {
            profile.syscalls().iter().flatten().any(|rule| rule.names().iter().any(|n| n == name))
        };
        let (one, many) = (wasm_profile(), dense_profile());
        for name in [
            "execve",
            "execveat",
            "fork",
            "vfork",
            "ptrace",
            "process_vm_writev",
            "mount",
            "unshare",
            "setns",
            "bpf",
            "io_uring_setup",
            "keyctl",
            "userfaultfd",
            "perf_event_open",
            "mknodat",
            "chroot",
            "setuid",
            "kill",
            "personality",
        ] {
            assert!(!named(&one, name) && !named(&many, name), "{name}");
        }
        assert!(named(&one, "mmap") && named(&one, "connect") && named(&one, "clone"));
        assert!(named(&many, "mmap") && named(&many, "accept4") && named(&many, "clone"));
        for name in ["socket", "connect", "bind", "listen"] {
            assert!(!named(&many, name), "{name}");
        }
    }
}
