//! How much is below a directory. What is there may be anybody's and may change meanwhile: links are not followed, other file systems are not
//! entered, and the work is bounded.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, open, openat, statat};
use rustix::io::Errno;
use serde::Serialize;
use std::io;
use std::ops::{Add, AddAssign};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// At most so many files are looked at.
const MOST_FILES: u64 = 4_000_000;
/// At most so deep, and at most so long.
const DEEPEST: usize = 1 << 16;
const LONGEST: Duration = Duration::from_secs(20);
/// So many directories on the way down are kept open; above them it goes by `..`.
const OPEN: usize = 64;
/// After so many files it is looked whether there is time left.
const ROUND: u64 = 1024;

/// What is on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Used {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl Add for Used {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), inodes: self.inodes.saturating_add(other.inodes) }
    }
}

impl AddAssign for Used {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Used {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// Sums up. A file with several names counts as a part of itself for each: all of them are in one volume, so nothing has to be remembered.
#[derive(Default)]
struct Sum {
    bytes: u64,
    inodes: f64,
    files: u64,
}

impl Sum {
    fn count(&mut self, stat: &Stat, is_dir: bool) {
        #[allow(clippy::unnecessary_cast, reason = "the type is another one on other machines")]
        let links = if is_dir { 1 } else { (stat.st_nlink as u64).max(1) };
        self.bytes = self.bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) / links);
        self.inodes += 1.0 / links as f64;
        self.files += 1;
    }
}

/// A directory on the way down.
struct Level {
    dir: Option<Dir>,
    device: u64,
    inode: u64,
    /// Where to go on in it.
    offset: i64,
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Level {
    fn enter(fd: OwnedFd) -> Result<(Self, Stat), Errno> {
        let stat = fstat(&fd)?;
        let level = Self { dir: Some(Dir::new(fd)?), device: stat.st_dev, inode: stat.st_ino, offset: 0 };
        Ok((level, stat))
    }
}

/// How much is below a directory, itself included; one that does not exist has nothing. What cannot be reached any more, or not in time, is
/// not in it. Blocking.
pub(super) fn used(root: &Path, is_cancelled: &dyn Fn() -> bool) -> io::Result<Used> {
    let begun = Instant::now();
    let fd = match open(root, FLAGS, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(Used::default()),
        Err(error) => return Err(error.into()),
    };
    let (top, stat) = Level::enter(fd)?;
    let device = top.device;
    let mut sum = Sum::default();
    sum.count(&stat, true);
    let mut levels = vec![top];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { break };
        if sum.files % ROUND == 0 && (begun.elapsed() > LONGEST || is_cancelled()) || sum.files > MOST_FILES {
            tracing::warn!(directory = %root.display(), files = sum.files, "not all of a directory is counted");
            break;
        }
        let Some(dir) = &mut level.dir else { break };
        // one that is removed while it is read has nothing left
        let Some(Ok(entry)) = dir.read() else {
            if !ascend(&mut levels) {
                tracing::debug!(directory = %root.display(), "a directory was moved while it was counted");
                break;
            }
            continue;
        };
        level.offset = entry.offset();
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(fd) = dir.fd() else { continue };
        let Ok(stat) = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) else { continue };
        if stat.st_dev != device {
            continue;
        }
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        sum.count(&stat, is_dir);
        if !is_dir || depth >= DEEPEST {
            continue;
        }
        let Ok(fd) = openat(fd, name, FLAGS, Mode::empty()) else { continue };
        let Ok((level, stat)) = Level::enter(fd) else { continue };
        if stat.st_dev == device {
            levels.push(level);
            if let Some(far) = levels.len().checked_sub(OPEN) {
                levels[far].dir = None;
            }
        }
    }
    Ok(Used { bytes: sum.bytes, inodes: sum.inodes.round() as u64 })
}

/// Goes back to the directory above; not when it is no longer where it was.
fn ascend(levels: &mut Vec<Level>) -> bool {
    let Some(below) = levels.pop() else { return true };
    let Some(level) = levels.last_mut().filter(|level| level.dir.is_none()) else { return true };
    let reopen = || -> Result<Dir, Errno> {
        let below = below.dir.as_ref().ok_or(Errno::BADF)?;
        let (entered, _) = Level::enter(openat(below.fd()?, "..", FLAGS, Mode::empty())?)?;
        let mut dir = entered.dir.ok_or(Errno::BADF)?;
        if (entered.device, entered.inode) != (level.device, level.inode) {
            return Err(Errno::STALE);
        }
        dir.seek(level.offset)?;
        Ok(dir)
    };
    match reopen() {
        Ok(dir) => {
            level.dir = Some(dir);
            true
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    fn count(path: &Path) -> Used {
        used(path, &|| false).unwrap()
    }

    fn blocks(path: &Path) -> u64 {
        fs::symlink_metadata(path).unwrap().blocks() * 512
    }

    #[test]
    fn everything_counts_once_and_links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let (dir, outside) = (place.path().join("d"), place.path().join("outside"));
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("big"), vec![1; 1 << 20]).unwrap();
        fs::write(dir.join("file"), vec![1; 100_000]).unwrap();
        fs::hard_link(dir.join("file"), dir.join("sub/again")).unwrap();
        fs::hard_link(dir.join("file"), dir.join("sub/and-again")).unwrap();
        std::os::unix::fs::symlink(&outside, dir.join("link")).unwrap();
        std::os::unix::fs::symlink("..", dir.join("sub/up")).unwrap();
        let parts = ["", "sub", "file", "link", "sub/up"].map(|part| blocks(&dir.join(part)));
        let found = count(&dir);
        assert_eq!(found.inodes, 5);
        assert!(parts.iter().sum::<u64>().abs_diff(found.bytes) < 3, "{found:?} {parts:?}");
        assert_eq!(count(&place.path().join("none")), Used::default());
        assert!(used(&dir.join("link"), &|| false).is_err(), "not even at the top");
        assert!(used(&dir.join("file"), &|| false).is_err());
        assert_eq!(used(&dir, &|| true).unwrap().bytes, found.bytes, "few files are not worth asking");
    }

    #[test]
    fn deep_trees_are_counted_whole() {
        let place = tempfile::tempdir().unwrap();
        let root = open(place.path(), FLAGS, Mode::empty()).unwrap();
        let mut at = root.try_clone().unwrap();
        let (deep, name) = (300, "x".repeat(50));
        for level in 0..deep {
            // some before and some after the way down
            for sibling in ["a", "z"] {
                rustix::fs::mkdirat(&at, format!("{sibling}{level}"), Mode::RWXU).unwrap();
            }
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = openat(&at, &name, FLAGS, Mode::empty()).unwrap();
        }
        assert_eq!(count(place.path()).inodes, 1 + 3 * deep);
    }

    #[test]
    fn other_file_systems_are_not_entered() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let place = tempfile::tempdir().unwrap();
        let mounted = place.path().join("mounted");
        crate::volumes::local::tmpfs(&mounted, Some(1 << 20), 0o777).unwrap();
        fs::write(mounted.join("file"), vec![1; 100_000]).unwrap();
        let found = (count(place.path()), count(&mounted));
        crate::volumes::local::unmount_below(place.path()).unwrap();
        assert_eq!(found.0.inodes, 1);
        assert_eq!(found.1.inodes, 2, "a directory that is one is counted");
    }
}
