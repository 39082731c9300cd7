//! Bringing a server back.

use crate::error::{Error, Result, at};
use crate::manifest::Manifest;
use crate::read::read;
use crate::{NODE_PASSWORD, SERVER, STORE};
use edge_sys::fsutil::{create_dir_all_mode, remove_dir_all_if_exists, sync_dir, write_atomic};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where a backup is unpacked, in the data directory.
const STAGE: &str = "server.restoring";

/// Where the node's password is until it has its place, in the directory of a server that was restored. It is there, perhaps empty, as long as
/// that is not done.
const STAGED_PASSWORD: &str = "node-password.restoring";

/// What the name of a server's directory that was there before begins with.
const BEFORE: &str = "server.before-restore-of-";

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// Where the server's state is that was there before.
    pub before: Option<PathBuf>,
}

/// Puts the server of a backup into `data_dir`, in which no server may be running. What was there is kept beside it. Either all of it happens or,
/// whatever crashes, nothing; what is left then of an attempt goes with the next one.
///
/// # Errors
/// As [`crate::verify`], and [`Error::Store`] when the store in it is damaged: nothing has changed.
pub fn restore(file: &Path, data_dir: &Path) -> Result<Restored> {
    complete(data_dir)?;
    remove_attempts(data_dir)?;
    let stage = data_dir.join(STAGE);
    let restored = unpack(file, &stage).and_then(|manifest| {
        let before = swap(data_dir, &stage, &manifest)?;
        Ok(Restored { manifest, before })
    });
    if restored.is_err() {
        // the first error is the one worth reporting; the next attempt removes it too
        let _ = remove_dir_all_if_exists(&stage);
    }
    let restored = restored?;
    complete(data_dir)?;
    Ok(restored)
}

/// Finishes what a restoration that was interrupted has left to do: gives the node the password by which the restored server knows
/// it. To be called before anything is done with a server's directory.
///
/// # Errors
/// When a file cannot be read or written.
pub fn complete(data_dir: &Path) -> Result<()> {
    let staged = data_dir.join(SERVER).join(STAGED_PASSWORD);
    let target = data_dir.join(NODE_PASSWORD);
    let password = match fs::read(&staged) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(at(&staged))?,
    };
    if !password.is_empty() && !fs::read(&target).is_ok_and(|known| known == password) {
        let directory = target.parent().unwrap_or(data_dir);
        let placed = create_dir_all_mode(directory, 0o700).and_then(|()| write_atomic(&target, &password, 0o600));
        placed.and_then(|()| sync_dir(data_dir)).map_err(at(&target))?;
    }
    fs::remove_file(&staged).and_then(|()| sync_dir(&data_dir.join(SERVER))).map_err(at(&staged))
}

/// Removes what attempts that were interrupted have left: backups that were unpacked, and did not become the server.
fn remove_attempts(data_dir: &Path) -> Result<()> {
    for entry in fs::read_dir(data_dir).map_err(at(data_dir))? {
        let path = entry.map_err(at(data_dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == STAGE || name.starts_with(BEFORE) && path.join(STAGED_PASSWORD).exists() {
            remove_dir_all_if_exists(&path).map_err(at(&path))?;
        }
    }
    Ok(())
}

fn unpack(file: &Path, stage: &Path) -> Result<Manifest> {
    let open = |path: &Path, mode| File::options().write(true).create_new(true).mode(mode).open(path).map_err(at(path));
    let manifest = read(
        file,
        |_, _| create_dir_all_mode(stage, 0o700).map_err(at(stage)),
        |name, mode, _| {
            let path = match name {
                NODE_PASSWORD => stage.join(STAGED_PASSWORD),
                name => stage.join(Path::new(name).strip_prefix(SERVER).unwrap_or(Path::new(name))),
            };
            let directory = path.parent().unwrap_or(stage);
            // all are private: the server sets those right that need not be
            create_dir_all_mode(directory, 0o700).map_err(at(directory))?;
            Ok(Synced(open(&path, mode)?))
        },
    )?;
    let password = stage.join(STAGED_PASSWORD);
    if !password.exists() {
        open(&password, 0o600)?;
    }
    let store = stage.join(STORE);
    edge_storage::Lmdb::continue_restored(&store).map_err(|source| Error::Store { path: file.into(), source })?;
    sync_directories(stage).map_err(at(stage))?;
    Ok(manifest)
}

/// Whoever flushes waits for the disk.
struct Synced(File);

impl Write for Synced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

fn sync_directories(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    sync_dir(directory)
}

/// Lets the two change places. The new one has the name of the old one just before: so each of them has a name that nobody
/// removes at any moment.
fn swap(data_dir: &Path, stage: &Path, manifest: &Manifest) -> Result<Option<PathBuf>> {
    let server = data_dir.join(SERVER);
    let moved = |from: &Path, to: &Path| fs::rename(from, to).and_then(|()| sync_dir(data_dir)).map_err(at(to));
    if !server.exists() {
        moved(stage, &server)?;
        return Ok(None);
    }
    let at_time = manifest.time.strftime("%Y%m%dT%H%M%SZ");
    let free = (1_u32..).map(|n| data_dir.join(format!("{BEFORE}{at_time}.{n}")));
    let kept = free.into_iter().find(|path| !path.exists()).unwrap_or_else(|| stage.into());
    moved(stage, &kept)?;
    match renameat_with(CWD, &kept, CWD, &server, RenameFlags::EXCHANGE) {
        Ok(()) => sync_dir(data_dir).map_err(at(data_dir))?,
        Err(error) => {
            // a file system that cannot do it: the first error is the one worth reporting
            let _ = remove_dir_all_if_exists(&kept);
            return Err(at(&server)(error.into()));
        }
    }
    Ok(Some(kept))
}
