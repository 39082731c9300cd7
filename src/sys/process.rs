//! Processes: forking (single-threaded processes only), leaving without running destructors, closing inherited descriptors.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::unistd::{ForkResult, Pid};

/// Exit status of a forked child whose function panicked (what a panicking Rust program exits with, too).
pub const PANIC_STATUS: i32 = 101;

/// Forks; the child runs `child` and exits with the status it returns, without running the destructors and `atexit`
/// handlers it inherited. Returns the child's pid to the caller.
///
/// # Errors
/// When the calling process has more than one thread: a lock held by another thread would stay locked in the child for
/// ever. Otherwise the error of `fork(2)`.
pub fn fork_child(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    if thread_count()? != 1 {
        return Err(io::Error::other("refusing to fork: the process has more than one thread"));
    }
    // SAFETY: the process has exactly one thread (checked above, and only this thread could start another), so no lock of
    // the allocator, of std or of any library is held by a thread that does not exist in the child.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // A panic must not unwind into the caller's frames, which belong to the parent.
            let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANIC_STATUS);
            exit_now(status)
        }
    }
}

/// Gives memory back to the kernel that was allocated once and is free now. Takes some ten microseconds; nothing to do where the C library
/// does so by itself.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) can be called at any time from any thread; it touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the code and the constants of the program that have been used so far, until they are used again: what only a start needs is then no longer
/// held by this process, and is the first that the kernel can use for something else. Calling it costs as many page faults as there are pages
/// in use, none of which reads from the disk.
///
/// # Errors
/// When `/proc` cannot be read, or the kernel refuses.
pub fn release_code() -> io::Result<()> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let program = program.to_string_lossy();
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        let Some((range, rest)) = line.split_once(' ') else { continue };
        // Code is never written to, nor is what comes first in the file: constants, tables for unwinding and for the loader. All else of
        // the program may hold what was changed since it was mapped.
        let as_in_the_file = rest.starts_with("r-xp ") || rest.starts_with("r--p 00000000 ");
        if !as_in_the_file || !rest.ends_with(&*program) {
            continue;
        }
        let Some((from, to)) = range.split_once('-') else { continue };
        let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)) else { continue };
        // SAFETY: the range is one of the program's own private file mappings that cannot be written to and never could: its pages are
        // those of the file, and come back from there unchanged at the next access, which may be the next instruction.
        let result = unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Ends the process at once: no destructors, no `atexit` handlers, no flushing.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Number of threads of this process.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn thread_count() -> io::Result<u64> {
    // One link for each task, plus the directory's own two.
    Ok(std::fs::metadata("/proc/self/task")?.nlink().saturating_sub(2))
}

/// Closes every descriptor from 3 on, except those in `keep`. For a process that has just been forked and owns nothing else:
/// the caller must hold no other descriptor it still wants to use (or to close).
///
/// # Errors
/// The error of `close_range(2)`.
pub fn close_fds_except(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first: libc::c_uint = 3;
    for fd in keep {
        let fd = fd as libc::c_uint;
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, libc::c_uint::MAX)
}

/// Empties the bounding set of the calling thread: no capability can be gained any more by executing something.
///
/// # Errors
/// The error of `prctl(2)`: it takes a capability itself.
pub fn empty_bounding_set() -> io::Result<()> {
    // Those that the kernel does not know are an error; it knows all below the first.
    for capability in 0..64 {
        // SAFETY: this prctl(2) takes integers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            let err = io::Error::last_os_error();
            return if err.raw_os_error() == Some(libc::EINVAL) && capability > 0 { Ok(()) } else { Err(err) };
        }
    }
    Ok(())
}

/// Gives the calling process the nice value `nice` (-20 to 19; higher is humbler).
///
/// # Errors
/// When it may not be set that low.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: setpriority(2) takes three integers; 0 is the calling process.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    // SAFETY: close_range(2) takes three integers and touches no memory. Closing descriptors others own is the documented
    // purpose of the only caller.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_process_with_threads_may_not_fork() {
        // The test harness runs tests on a thread of their own, so this process has at least two.
        assert!(thread_count().unwrap() >= 2);
        let err = fork_child(|| 0).unwrap_err();
        assert!(err.to_string().contains("more than one thread"), "{err}");
    }

    #[test]
    fn code_that_was_let_go_still_runs() {
        let resident = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let code = smaps
                .split_inclusive("VmFlags:")
                .filter(|block| block.contains(" r-xp ") && block.contains("edge_sys"));
            code.flat_map(str::lines)
                .filter_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
                .sum::<u64>()
        };
        let before = resident();
        assert!(before > 0);
        release_code().unwrap();
        let after = resident();
        assert!(after < before, "{after} kB of {before} kB");
    }
}
