//! Network namespaces: created and kept alive by a bind mount (as `ip netns` does), entered by a closure.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Creates a new network namespace and pins it to the file `path` (whose directory must exist). It lives until [`delete`]
/// is called and the last process has left it. The caller's own namespace does not change.
///
/// # Errors
/// When `path` exists, or the caller lacks CAP_SYS_ADMIN. Nothing is left behind.
pub fn create(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).open(path)?;
    let result = on_fresh_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        // The thread's own entry: /proc/self is the main thread, which stays where it is.
        mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    });
    if result.is_err() {
        let _ = std::fs::remove_file(path);
    }
    result
}

/// Unpins the namespace at `path` and removes the file. A path that does not exist is fine; a file that is not (any more)
/// mounted, as after a reboot, is just removed.
///
/// # Errors
/// The error of the system calls.
pub fn delete(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(err) => return Err(err.into()),
    }
    crate::fsutil::remove_file_if_exists(path)
}

/// Runs `work` inside the network namespace pinned at `path` (or of a process: `/proc/<pid>/ns/net`), on a thread that
/// exists only for it, and returns its result. Sockets made inside stay in that namespace wherever they are used.
/// Blocks the calling thread: from async code use `spawn_blocking`.
///
/// # Errors
/// When the namespace cannot be opened or entered; "other" when `work` panics.
pub fn run_in<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = File::open(path)?;
    on_fresh_thread(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

/// Namespaces belong to threads, so whatever changes one happens on a thread that ends right after.
fn on_fresh_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let handle = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        handle.join().map_err(|_| io::Error::other("the thread inside the network namespace panicked"))?
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn namespace_of(path: &str) -> String {
        std::fs::read_link(path).unwrap().display().to_string()
    }

    #[test]
    fn created_entered_and_deleted() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ns");
        let before = namespace_of("/proc/thread-self/ns/net");
        create(&path).unwrap();
        assert!(create(&path).is_err(), "an existing namespace must not be replaced");
        let inside = run_in(&path, || {
            let interfaces = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            (namespace_of("/proc/thread-self/ns/net"), interfaces.lines().skip(2).count())
        })
        .unwrap();
        assert_ne!(inside.0, before);
        assert_eq!(inside.1, 1, "a new namespace has only its loopback interface");
        assert_eq!(namespace_of("/proc/thread-self/ns/net"), before, "the caller must stay where it was");
        delete(&path).unwrap();
        assert!(!path.exists());
        delete(&path).unwrap();
        assert!(run_in(&path, || ()).is_err());
    }

    #[test]
    fn a_panic_inside_is_an_error() {
        assert!(run_in(Path::new("/proc/self/ns/net"), || panic!("on purpose")).is_err());
    }
}
