//! Writes the files of a configMap, secret, downwardAPI or projected volume so that a reader sees either all of the old
//! files or all of the new ones.
//!
//! The files live in a directory named after the time; `..data` is a symbolic link to it, and every file of the volume is
//! a symbolic link through `..data`. An update makes a new directory and moves `..data` over to it.

use nix::unistd::Gid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileContent {
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
}

/// The files of a volume by their paths.
pub(crate) type Payload = BTreeMap<String, FileContent>;

/// Why a volume cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("invalid path {0:?} in volume")]
    Path(String),
    #[error("cannot write volume {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes the volume at `dir` (which exists) hold exactly these files. Returns whether anything changed.
pub(crate) fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> Result<bool, WriteError> {
    for path in payload.keys() {
        validate(path)?;
    }
    replace(dir, payload, group).map_err(|source| WriteError::Io { path: dir.to_owned(), source })
}

/// A relative path without `..`, that does not meet the names used here.
fn validate(path: &str) -> Result<(), WriteError> {
    let plain = |c: Component<'_>| matches!(c, Component::Normal(n) if n.len() <= 255);
    let valid =
        !path.is_empty() && path.len() <= 4096 && !path.starts_with("..") && Path::new(path).components().all(plain);
    if valid && !path.contains('\0') { Ok(()) } else { Err(WriteError::Path(path.to_owned())) }
}

fn replace(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    let old = fs::read_link(dir.join(DATA)).ok();
    if let Some(old) = &old
        && is_same(&dir.join(old), payload)
    {
        // links may be missing after a crash
        link_files(dir, payload)?;
        return Ok(false);
    }
    let stamp = k8s_openapi::jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S").to_string();
    let fresh = (0..1000_u32)
        .map(|n| format!("..{stamp}.{n}"))
        .find(|name| !dir.join(name).exists())
        .ok_or_else(|| io::Error::other("no free name for the new files"))?;
    if let Err(error) = write_files(&dir.join(&fresh), payload, group) {
        // the first error is the one worth telling
        let _ = fs::remove_dir_all(dir.join(&fresh));
        return Err(error);
    }
    edge_sys::fsutil::remove_file_if_exists(&dir.join(NEW_DATA))?;
    symlink(&fresh, dir.join(NEW_DATA))?;
    fs::rename(dir.join(NEW_DATA), dir.join(DATA))?;
    link_files(dir, payload)?;
    remove_stale(dir, payload, &fresh)?;
    Ok(true)
}

fn write_files(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    make_dir(dir, group)?;
    for (path, file) in payload {
        let path = dir.join(path);
        let mut parents: Vec<&Path> = path.ancestors().skip(1).take_while(|p| *p != dir).collect();
        while let Some(parent) = parents.pop() {
            if !parent.exists() {
                make_dir(parent, group)?;
            }
        }
        fs::write(&path, &file.data)?;
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        nix::unistd::chown(&path, None, group.map(Gid::from_raw))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn make_dir(path: &Path, group: Option<u32>) -> io::Result<()> {
    fs::create_dir(path)?;
    nix::unistd::chown(path, None, group.map(Gid::from_raw))?;
    let mode = if group.is_some() { 0o2775 } else { 0o755 };
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn is_same(dir: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    collect(dir, "", &mut found).is_ok()
        && found.iter().eq(payload.keys())
        && payload.iter().all(|(path, file)| {
            let path = dir.join(path);
            let mode = fs::metadata(&path).map(|m| m.permissions().mode() & 0o777);
            mode.is_ok_and(|mode| mode & file.mode == file.mode) && fs::read(&path).is_ok_and(|data| data == file.data)
        })
}

fn collect(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{name}/"), found)?;
        } else {
            found.insert(name);
        }
    }
    Ok(())
}

fn first_component(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

fn link_files(dir: &Path, payload: &Payload) -> io::Result<()> {
    let names: BTreeSet<&str> = payload.keys().map(|p| first_component(p)).collect();
    for name in names {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    Ok(())
}

/// Removes the links of files that are gone, and the directories of older versions.
fn remove_stale(dir: &Path, payload: &Payload, current: &str) -> io::Result<()> {
    let names: BTreeSet<&str> = payload.keys().map(|p| first_component(p)).collect();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == DATA || name == current || names.contains(name.as_str()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| FileContent { data: text.as_bytes().to_vec(), mode: 0o640 };
        files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
    }

    fn visible(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|n| !n.starts_with("..")).collect();
        names.sort();
        names
    }

    #[test]
    fn updates_replace_everything_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &payload(&[("a", "1"), ("sub/b", "2"), ("sub/deep/c", "3")]), None).unwrap());
        assert_eq!(visible(dir), ["a", "sub"]);
        assert_eq!(fs::read_to_string(dir.join("sub/deep/c")).unwrap(), "3");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(!write(dir, &payload(&[("a", "1"), ("sub/b", "2"), ("sub/deep/c", "3")]), None).unwrap());

        let opened = fs::canonicalize(dir.join("a")).unwrap();
        assert!(write(dir, &payload(&[("a", "new"), ("z", "9")]), None).unwrap());
        assert_eq!(visible(dir), ["a", "z"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "new");
        assert!(!opened.exists(), "the older version is removed");
        assert_eq!(fs::read_dir(dir).unwrap().count(), 4, "data link, its directory, two files");

        assert!(write(dir, &payload(&[]), None).unwrap());
        assert!(visible(dir).is_empty());
    }

    #[test]
    fn a_crash_in_between_is_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, &payload(&[("a", "1")]), None).unwrap();
        fs::remove_file(dir.join("a")).unwrap();
        symlink("nowhere", dir.join(NEW_DATA)).unwrap();
        fs::create_dir(dir.join("..half")).unwrap();
        write(dir, &payload(&[("a", "1")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "1");
        write(dir, &payload(&[("a", "2")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "2");
        assert!(!dir.join("..half").exists() && fs::symlink_metadata(dir.join(NEW_DATA)).is_err());
    }

    #[test]
    fn the_group_can_read() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        let mut files = payload(&[("sub/a", "1")]);
        files.get_mut("sub/a").unwrap().mode = 0o400;
        write(dir.path(), &files, Some(4711)).unwrap();
        let meta = fs::metadata(dir.path().join("sub/a")).unwrap();
        assert_eq!((meta.gid(), meta.mode() & 0o777), (4711, 0o440));
        assert_eq!(fs::metadata(dir.path().join("sub")).unwrap().gid(), 4711);
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["", "..", "../x", "a/../../x", "/etc/x", "..data", "..x", "a\0b", &"x".repeat(300)] {
            assert!(matches!(write(dir.path(), &payload(&[(path, "x")]), None), Err(WriteError::Path(_))), "{path:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
