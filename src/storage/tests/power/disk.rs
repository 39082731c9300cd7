//! A file system that knows what has been synced: what a power cut leaves can be asked for at any moment, and any
//! operation can be made to fail or to wait.
//!
//! It promises no more than POSIX does: without a sync, any part of a write (in sectors) may be lost or kept, in any order,
//! and so may each change of a directory.
//!
//! `lock.mdb` is elsewhere (a symbolic link in each directory, which no listing shows): it means nothing after a power cut,
//! and it is mapped to be written, which must not be served by the same process.

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyStatfs, ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const FOREVER: Duration = Duration::from_secs(86400);
const SECTOR: usize = 512;
/// Set in the numbers of symbolic links, with the number of their directory.
const LINK: u64 = 1 << 40;

/// Random numbers that are the same each time.
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Less than `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// What is about to happen to a file.
#[derive(Debug)]
pub(crate) enum Operation<'n> {
    Write { name: &'n OsStr, offset: u64, length: usize },
    Sync { name: &'n OsStr },
    Take,
}

type Fault = Box<dyn FnMut(&Operation<'_>) -> Option<Errno> + Send>;
type Observer = Box<dyn FnMut(&State) + Send>;

/// The disk, mounted; dropping it unmounts.
pub(crate) struct Disk {
    shared: Arc<Shared>,
    _session: BackgroundSession,
}

#[derive(Default)]
struct Shared {
    /// Where the files are that mean nothing after a power cut.
    elsewhere: PathBuf,
    state: Mutex<State>,
    fault: Mutex<Option<Fault>>,
    observer: Mutex<Option<Observer>>,
}

impl Disk {
    /// Mounts an empty disk. Files in `elsewhere` take the place of those that mean nothing after a power cut.
    pub(crate) fn mount(at: &Path, elsewhere: &Path) -> Self {
        let shared = Arc::new(Shared { elsewhere: elsewhere.into(), ..Shared::default() });
        shared.state.lock().nodes.insert(1, Node::new(OsStr::new("/"), Content::Directory(Entries::default())));
        let mut config = Config::default();
        config.n_threads = Some(2);
        let session = Session::new(Server(shared.clone()), at, &config).expect("mounting needs root and /dev/fuse");
        Self { shared, _session: session.spawn().unwrap() }
    }

    /// Asks before each operation whether it shall fail. It may also wait there.
    pub(crate) fn set_fault(&self, fault: impl FnMut(&Operation<'_>) -> Option<Errno> + Send + 'static) {
        *self.shared.fault.lock() = Some(Box::new(fault));
    }

    /// Lets everything work again.
    pub(crate) fn heal(&self) {
        *self.shared.fault.lock() = None;
    }

    /// Shows the disk before each operation that changes it.
    pub(crate) fn observe(&self, observer: impl FnMut(&State) + Send + 'static) {
        *self.shared.observer.lock() = Some(Box::new(observer));
    }
}

/// All that is on the disk, synced or not.
#[derive(Default)]
pub(crate) struct State {
    nodes: HashMap<u64, Node>,
}

type Entries = BTreeMap<OsString, u64>;

struct Node {
    name: OsString,
    content: Content,
    /// As of the last sync.
    synced: Content,
    /// Since then, in order.
    changes: Vec<Change>,
}

#[derive(Clone)]
enum Content {
    Directory(Entries),
    File(Vec<u8>),
}

enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Size(usize),
}

impl Node {
    fn new(name: &OsStr, content: Content) -> Self {
        Self { name: name.into(), synced: content.clone(), content, changes: Vec::new() }
    }

    fn sync(&mut self) {
        self.synced = self.content.clone();
        self.changes.clear();
    }

    fn attributes(&self, ino: u64) -> FileAttr {
        let (kind, size, perm) = match &self.content {
            Content::Directory(_) => (FileType::Directory, 0, 0o700),
            Content::File(data) => (FileType::RegularFile, data.len() as u64, 0o600),
        };
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(SECTOR as u64),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// A symbolic link.
fn link(ino: u64) -> FileAttr {
    let mut attributes = Node::new(OsStr::new(""), Content::File(Vec::new())).attributes(ino);
    attributes.kind = FileType::Symlink;
    attributes.perm = 0o777;
    attributes
}

fn write_at(data: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if data.len() < offset + bytes.len() {
        data.resize(offset + bytes.len(), 0);
    }
    data[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl State {
    /// Writes what a power cut at this moment could leave into a directory.
    pub(crate) fn cut(&self, random: &mut Random, to: &Path) {
        self.cut_node(1, random, to);
    }

    fn cut_node(&self, ino: u64, random: &mut Random, to: &Path) {
        let node = &self.nodes[&ino];
        match (&node.synced, &node.content) {
            (Content::File(synced), _) => {
                let mut data = synced.clone();
                for change in &node.changes {
                    match change {
                        Change::Size(size) if random.below(2) == 0 => data.resize(*size, 0),
                        Change::Size(_) => {}
                        Change::Write { offset, bytes } => {
                            // all, nothing, or some sectors
                            let how = random.below(3);
                            for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                                if how == 0 || (how == 1 && random.below(2) == 0) {
                                    write_at(&mut data, offset + i * SECTOR, sector);
                                }
                            }
                        }
                    }
                }
                std::fs::write(to, data).unwrap();
            }
            (Content::Directory(synced), Content::Directory(now)) => {
                std::fs::create_dir_all(to).unwrap();
                let entries = if random.below(2) == 0 { synced } else { now };
                for (name, child) in entries.iter().filter(|(_, c)| self.nodes.contains_key(c)) {
                    self.cut_node(*child, random, &to.join(name));
                }
            }
            (Content::Directory(_), Content::File(_)) => unreachable!("a directory stays one"),
        }
    }

    fn entries(&mut self, ino: INodeNo) -> Option<&mut Entries> {
        match &mut self.nodes.get_mut(&ino.0)?.content {
            Content::Directory(entries) => Some(entries),
            Content::File(_) => None,
        }
    }

    fn add(&mut self, parent: INodeNo, name: &OsStr, content: Content) -> Option<(u64, FileAttr)> {
        let ino = self.nodes.keys().max()? + 1;
        self.entries(parent)?.insert(name.into(), ino);
        let node = Node::new(name, content);
        let attributes = node.attributes(ino);
        self.nodes.insert(ino, node);
        Some((ino, attributes))
    }
}

struct Server(Arc<Shared>);

impl Server {
    fn refuses(&self, operation: &Operation<'_>) -> Option<Errno> {
        self.0.fault.lock().as_mut().and_then(|fault| fault(operation))
    }

    fn name(&self, ino: INodeNo) -> OsString {
        self.0.state.lock().nodes.get(&ino.0).map(|n| n.name.clone()).unwrap_or_default()
    }

    /// Changes the disk, after showing it.
    fn change<T>(&self, work: impl FnOnce(&mut State) -> Option<T>) -> Result<T, Errno> {
        let mut state = self.0.state.lock();
        if let Some(observer) = self.0.observer.lock().as_mut() {
            observer(&state);
        }
        work(&mut state).ok_or(Errno::ENOENT)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.change(|state| state.entries(parent)?.remove(name)) {
            Ok(_) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn sync(&self, ino: INodeNo, reply: ReplyEmpty) {
        if let Some(error) = self.refuses(&Operation::Sync { name: &self.name(ino) }) {
            return reply.error(error);
        }
        match self.change(|state| state.nodes.get_mut(&ino.0).map(Node::sync)) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "lock.mdb" {
            return reply.entry(&FOREVER, &link(LINK | parent.0), Generation(0));
        }
        let mut state = self.0.state.lock();
        let found = state.entries(parent).and_then(|e| e.get(name).copied());
        match found.and_then(|ino| Some((ino, state.nodes.get(&ino)?))) {
            Some((ino, node)) => reply.entry(&FOREVER, &node.attributes(ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        reply.data(self.0.elsewhere.join(format!("lock-{}", ino.0)).as_os_str().as_bytes());
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if ino.0 & LINK != 0 {
            return reply.attr(&FOREVER, &link(ino.0));
        }
        match self.0.state.lock().nodes.get(&ino.0) {
            Some(node) => reply.attr(&FOREVER, &node.attributes(ino.0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.change(|state| {
            let node = state.nodes.get_mut(&ino.0)?;
            if let (Some(size), Content::File(data)) = (size, &mut node.content) {
                data.resize(size as usize, 0);
                node.changes.push(Change::Size(size as usize));
            }
            Some(node.attributes(ino.0))
        });
        match changed {
            Ok(attributes) => reply.attr(&FOREVER, &attributes),
            Err(e) => reply.error(e),
        }
    }

    fn mkdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        match self.change(|state| state.add(parent, name, Content::Directory(Entries::default()))) {
            Ok((_, attributes)) => reply.entry(&FOREVER, &attributes, Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.change(|state| state.add(parent, name, Content::File(Vec::new()))) {
            Ok((_, attributes)) => {
                reply.created(&FOREVER, &attributes, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(e) => reply.error(e),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.change(|state| {
            let ino = state.entries(parent)?.remove(name)?;
            state.entries(newparent)?.insert(newname.into(), ino);
            Some(())
        });
        match renamed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.state.lock().nodes.get(&ino.0).map(|n| &n.content) {
            Some(Content::File(data)) => {
                let begin = data.len().min(offset as usize);
                let end = data.len().min(begin + size as usize);
                reply.data(&data[begin..end]);
            }
            _ => reply.error(Errno::EISDIR),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Some(error) = self.refuses(&Operation::Write { name: &self.name(ino), offset, length: data.len() }) {
            return reply.error(error);
        }
        let written = self.change(|state| {
            let node = state.nodes.get_mut(&ino.0)?;
            let Content::File(content) = &mut node.content else { return None };
            write_at(content, offset as usize, data);
            node.changes.push(Change::Write { offset: offset as usize, bytes: data.to_vec() });
            Some(())
        });
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if let Some(error) = self.refuses(&Operation::Take) {
            return reply.error(error);
        }
        let end = (offset + length) as usize;
        let taken = self.change(|state| {
            let node = state.nodes.get_mut(&ino.0)?;
            if let Content::File(data) = &mut node.content
                && mode == 0
                && data.len() < end
            {
                data.resize(end, 0);
                node.changes.push(Change::Size(end));
            }
            Some(())
        });
        match taken {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut state = self.0.state.lock();
        let Some(entries) = state.entries(ino).map(|e| e.clone()) else { return reply.error(Errno::ENOTDIR) };
        for (i, (name, child)) in entries.iter().enumerate().skip(offset as usize) {
            let kind = match state.nodes.get(child).map(|n| &n.content) {
                Some(Content::Directory(_)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            if reply.add(INodeNo(*child), i as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}
