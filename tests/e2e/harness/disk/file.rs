//! The disk as a file of a file system of its own, which a loop device of this machine can have: so a directory can be on it.
//!
//! ext4 with all that makes it forgiving switched off: no write without being asked for (for a long time), no data before the
//! metadata that name it, no guess that a file that takes another one's place is to be whole.

use super::{Disk, Done, Order, Shared};
use crate::harness::success;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, Session, WriteFlags,
};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

const FOREVER: Duration = Duration::from_secs(86400);
const NAME: &str = "disk";
const FILE: INodeNo = INodeNo(2);
const OPTIONS: &str = "loop,noatime,noauto_da_alloc,data=writeback,commit=300";

/// The disk's file system, mounted. Dropping this lets go of whoever waits for a disk without power.
pub(crate) struct Mounted {
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
    bench: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes an image of so many MiB with a file system that has what is in a directory.
    pub(crate) fn make(image: &Path, content: &Path, megabytes: u32) -> Self {
        let mut command = Command::new("/usr/sbin/mke2fs");
        command.args(["-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"]).args([content, image]);
        success("mke2fs", command.arg(format!("{megabytes}M")).output().unwrap());
        Self::new(image)
    }

    /// Mounts its file system.
    pub(crate) fn mount(&self, at: &Path) -> Mounted {
        let bench = self.image.with_extension("bench");
        std::fs::create_dir_all(&bench).unwrap();
        let mut config = Config::default();
        config.n_threads = Some(2);
        let session = Session::new(Server(self.shared.clone(), self.state().cuts), &bench, &config)
            .expect("mounting needs root and /dev/fuse");
        let session = Some(session.spawn().unwrap());
        let mounted = Mounted { shared: self.shared.clone(), session, bench, at: at.into() };
        let mut command = Command::new("mount");
        command.args(["-t", "ext4", "-o", OPTIONS]).args([&mounted.bench.join(NAME), at]);
        success("mounting the disk", command.output().unwrap());
        mounted
    }
}

impl Mounted {
    /// Whoever waits for the disk that has no power gets errors, and nothing keeps him alive any more.
    pub(crate) fn let_go(&self) {
        let held = self.shared.state.lock().unwrap().held.take();
        // who asks from now on is answered at once
        drop(held);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.let_go();
        for place in [&self.at, &self.bench] {
            // a cut has unmounted them already
            let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
        }
        // its thread ends when the loop device has let go of the file
        drop(self.session.take());
    }
}

/// With the number of cuts before: a kernel that has not finished yet with what a cut ended must not write any more.
struct Server(Arc<Shared>, u64);

impl Server {
    /// Answers by `answer`, or keeps the answer back while the power is away.
    fn execute<R: Send + 'static>(
        &self,
        offset: u64,
        order: Order,
        reply: R,
        answer: impl FnOnce(R, Result<Vec<u8>, Errno>),
    ) {
        if self.0.state.lock().unwrap().cuts > self.1 {
            return answer(reply, Err(Errno::EIO));
        }
        match self.0.execute(offset, order) {
            Ok(Done::Answer(data)) => answer(reply, Ok(data)),
            Ok(Done::Dark) => match self.0.state.lock().unwrap().held.as_mut() {
                Some(held) => held.push(Box::new(reply)),
                None => answer(reply, Err(Errno::EIO)),
            },
            Err(_) => answer(reply, Err(Errno::EIO)),
        }
    }

    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let is_file = ino == FILE;
        let size = if is_file { self.0.size } else { 0 };
        FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&FOREVER, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attributes(ino));
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.0.size.saturating_sub(offset);
        let length = usize::try_from(left).unwrap().min(size as usize);
        self.execute(offset, Order::Read { length }, reply, |reply, done| match done {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let length = u32::try_from(data.len()).unwrap();
        let order = Order::Write { data: data.to_vec(), through: false };
        self.execute(offset, order, reply, move |reply, done| match done {
            Ok(_) => reply.written(length),
            Err(error) => reply.error(error),
        });
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.execute(0, Order::Flush, reply, |reply, done| match done {
            Ok(_) => reply.ok(),
            Err(error) => reply.error(error),
        });
    }
}
