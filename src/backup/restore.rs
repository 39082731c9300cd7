//! Bringing a server back.

use crate::error::{Error, Result, at};
use crate::manifest::Manifest;
use crate::read::read;
use crate::{NODE_PASSWORD, SERVER, STORE};
use edge_sys::fsutil::{create_dir_all_mode, remove_dir_all_if_exists, sync_dir, write_atomic};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where a backup is unpacked, in the data directory.
const STAGE: &str = "server.restoring";

/// Where the node's password is until then, in that directory.
const STAGED_PASSWORD: &str = "node-password.restoring";

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// Where the server's state is that was there before.
    pub before: Option<PathBuf>,
}

/// Puts the server of a backup into `data_dir`, in which no server may be running. What was there is kept beside it. Either all of it happens or,
/// whatever crashes, nothing.
///
/// # Errors
/// As [`crate::verify`], and [`Error::Store`] when the store in it is damaged: nothing has changed.
pub fn restore(file: &Path, data_dir: &Path) -> Result<Restored> {
    let stage = data_dir.join(STAGE);
    let restored = unpack(file, &stage).and_then(|manifest| {
        place_password(data_dir, &stage)?;
        let before = swap(data_dir, &stage, &manifest)?;
        Ok(Restored { manifest, before })
    });
    if restored.is_err() {
        // the first error is the one worth reporting; the next attempt removes it too
        let _ = remove_dir_all_if_exists(&stage);
    }
    restored
}

fn unpack(file: &Path, stage: &Path) -> Result<Manifest> {
    remove_dir_all_if_exists(stage).map_err(at(stage))?;
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
            let file = File::options().write(true).create_new(true).mode(mode).open(&path).map_err(at(&path))?;
            Ok(Synced(file))
        },
    )?;
    let store = stage.join(STORE);
    edge_storage::Lmdb::continue_restored(&store).map_err(|source| Error::Store { path: file.into(), source })?;
    sync_directories(stage).map_err(at(stage))?;
    Ok(manifest)
}

/// Gives the node the password by which the restored server knows it. Until the two directories have changed places it matters to
/// nobody who has no server yet; where it is another one, the node was set up anew since the backup.
fn place_password(data_dir: &Path, stage: &Path) -> Result<()> {
    let staged = stage.join(STAGED_PASSWORD);
    let target = data_dir.join(NODE_PASSWORD);
    let password = match fs::read(&staged) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(at(&staged))?,
    };
    fs::remove_file(&staged).map_err(at(&staged))?;
    if fs::read(&target).is_ok_and(|known| known == password) {
        return Ok(());
    }
    let directory = target.parent().unwrap_or(data_dir);
    create_dir_all_mode(directory, 0o700).and_then(|()| write_atomic(&target, &password, 0o600)).map_err(at(&target))
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

/// Lets the two change places, and gives the old one a name that says what it is.
fn swap(data_dir: &Path, stage: &Path, manifest: &Manifest) -> Result<Option<PathBuf>> {
    let server = data_dir.join(SERVER);
    let exchanged = match renameat_with(CWD, stage, CWD, &server, RenameFlags::EXCHANGE) {
        Ok(()) => true,
        Err(Errno::NOENT) => {
            fs::rename(stage, &server).map_err(at(&server))?;
            false
        }
        Err(error) => return Err(at(&server)(error.into())),
    };
    sync_dir(data_dir).map_err(at(data_dir))?;
    if !exchanged {
        return Ok(None);
    }
    let at_time = manifest.time.strftime("%Y%m%dT%H%M%SZ");
    let free = (1_u32..).map(|n| data_dir.join(format!("server.before-restore-of-{at_time}.{n}")));
    let kept = free.into_iter().find(|path| !path.exists()).unwrap_or_else(|| stage.into());
    // it is in the stage's place until then, and a second restore would remove it there
    fs::rename(stage, &kept).and_then(|()| sync_dir(data_dir)).map_err(at(&kept))?;
    Ok(Some(kept))
}
