//! Users and groups of an image: turns the `USER` of an image (`name`, `uid`, `name:group`, `uid:gid`) into numbers.
//!
//! Comes in: the layers of the image and the text. Goes out: [`User`]. The files are opened so that no symbolic link of a
//! hostile image can lead out of its layer, and only a bounded part of them is read.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::error::{Error, Result};
use crate::spec::User;

/// Most bytes read of `/etc/passwd` and `/etc/group`.
const MAX_FILE_SIZE: u64 = 4 << 20;

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Resolves `user` (empty means root) in an image of these layers, from the bottom to the top. A number needs no entry in
/// `/etc/passwd`; its group is 0 then. The groups that list the user as a member become supplementary groups.
///
/// # Errors
/// [`Error::InvalidSpec`] when a name is unknown; [`Error::Io`] when a layer cannot be read.
pub fn resolve(layers: &[PathBuf], user: &str) -> Result<User> {
    let passwd = read_file(layers, "etc/passwd")?;
    let group = read_file(layers, "etc/group")?;
    resolve_in(&passwd, &group, user)
}

/// The supplementary groups and the home of `uid`: for a user that was not given by the image but as a number.
///
/// # Errors
/// [`Error::Io`] when a layer cannot be read.
pub fn resolve_uid(layers: &[PathBuf], uid: u32, gid: Option<u32>) -> Result<User> {
    let text = gid.map_or_else(|| uid.to_string(), |gid| format!("{uid}:{gid}"));
    resolve(layers, &text)
}

fn resolve_in(passwd: &str, group: &str, user: &str) -> Result<User> {
    let (user, group_part) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let number = if user.is_empty() { Some(0) } else { user.parse::<u32>().ok() };
    let entry = passwd_entries(passwd).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == user,
    });
    let uid = match (&entry, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => {
            return Err(Error::InvalidSpec(format!("unable to find user {user}: no matching entries in passwd file")));
        }
    };
    let gid = match group_part {
        Some(name) => resolve_group(group, name)?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let additional_gids = match (&entry, group_part) {
        // As in OCI runtimes: naming a group explicitly means exactly that group.
        (Some(entry), None) => member_of(group, entry.name),
        _ => Vec::new(),
    };
    let home = entry.map(|entry| entry.home.to_owned()).filter(|home| !home.is_empty());
    Ok(User { uid, gid, additional_gids, home })
}

fn resolve_group(group: &str, name: &str) -> Result<u32> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    group_entries(group)
        .find(|entry| entry.name == name)
        .map(|entry| entry.gid)
        .ok_or_else(|| Error::InvalidSpec(format!("unable to find group {name}: no matching entries in group file")))
}

fn member_of(group: &str, name: &str) -> Vec<u32> {
    group_entries(group)
        .filter(|entry| entry.members.split(',').any(|member| member == name))
        .map(|entry| entry.gid)
        .collect()
}

fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        Some(PasswdEntry { name, uid, gid, home })
    })
}

fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
    })
}

/// The text of a file of the image: from the topmost layer that has it (or hides it). Empty when there is none.
fn read_file(layers: &[PathBuf], path: &str) -> Result<String> {
    for layer in layers.iter().rev() {
        match open_in_layer(layer, path) {
            Ok(fd) => return read_bounded(File::from(fd)).map_err(Error::io("cannot read", layer.join(path))),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) if err.raw_os_error() == Some(nix::libc::ENOTDIR) => {}
            Err(err) => return Err(Error::io("cannot open", layer.join(path))(err)),
        }
    }
    Ok(String::new())
}

fn open_in_layer(layer: &Path, path: &str) -> io::Result<OwnedFd> {
    let root = File::open(layer)?;
    // Non-blocking, so that a FIFO of a hostile image cannot hold us up.
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(&root, path, how)?)
}

fn read_bounded(file: File) -> io::Result<String> {
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_char_device() && metadata.rdev() == 0 {
        // An overlayfs whiteout: the file was deleted in this layer.
        return Ok(String::new());
    }
    if !kind.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_SIZE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken line\nbad:x:notanumber:5::/:\nweb:x:33:34:Web:/var/www:/bin/false\nshort:x:7:8\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:web,other\nwww:x:34:\nlogs:x:50:web\n:::\n";

    fn user(uid: u32, gid: u32, additional: &[u32], home: Option<&str>) -> User {
        User { uid, gid, additional_gids: additional.to_vec(), home: home.map(str::to_owned) }
    }

    #[test]
    fn all_forms_of_user() {
        let resolve = |text| resolve_in(PASSWD, GROUP, text).unwrap();
        assert_eq!(resolve(""), user(0, 0, &[], Some("/root")));
        assert_eq!(resolve("web"), user(33, 34, &[4, 50], Some("/var/www")));
        assert_eq!(resolve("33"), user(33, 34, &[4, 50], Some("/var/www")));
        assert_eq!(resolve("web:adm"), user(33, 4, &[], Some("/var/www")));
        assert_eq!(resolve("web:"), user(33, 34, &[4, 50], Some("/var/www")));
        assert_eq!(resolve("1000"), user(1000, 0, &[], None));
        assert_eq!(resolve("1000:2000"), user(1000, 2000, &[], None));
        assert_eq!(resolve("short"), user(7, 8, &[], None));
        for bad in ["nobody", "bad", "web:nogroup", "-1", "4294967296"] {
            assert!(resolve_in(PASSWD, GROUP, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn links_stay_inside_the_layer_and_upper_layers_win() {
        let dir = tempfile::tempdir().unwrap();
        let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
        for layer in [&lower, &upper] {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        std::fs::write(lower.join("etc/passwd"), "one:x:1:1::/:\n").unwrap();
        let layers = [lower.clone(), upper.clone()];
        assert_eq!(resolve(&layers, "one").unwrap().uid, 1);
        // The host's file must not be reachable, neither absolutely nor with dots.
        std::fs::write(dir.path().join("secret"), "leak:x:66:66::/:\n").unwrap();
        std::os::unix::fs::symlink("../../../../secret", upper.join("etc/passwd")).unwrap();
        assert!(resolve(&layers, "leak").is_err());
        std::fs::remove_file(upper.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), upper.join("etc/passwd")).unwrap();
        assert!(resolve(&layers, "leak").is_err());
        std::fs::remove_file(upper.join("etc/passwd")).unwrap();
        std::fs::write(upper.join("etc/passwd"), "two:x:2:2::/:\n").unwrap();
        assert_eq!(resolve(&layers, "two").unwrap().uid, 2);
        assert!(resolve(&layers, "one").is_err());
    }

    #[test]
    fn a_fifo_is_refused_and_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(resolve(&[dir.path().to_owned()], "root").is_err());
    }
}
