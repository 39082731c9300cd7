//! Layers made with the `tar` crate (so that our reader is checked against another writer), unpacked on the real disk.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::process::Command;
use tar::{Builder, EntryType, Header};

/// A layer under construction. Names go into the header unchecked, since the `tar` crate would refuse hostile ones.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, name: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(2000);
        header.set_mtime(1_234_567_890);
        header.set_size(data.len() as u64);
        if kind == EntryType::Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.add(EntryType::Regular, name, "", 0o644, data)
    }

    fn dir(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, "", 0o750, b"")
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.add(EntryType::Symlink, name, to, 0o777, b"")
    }

    fn hard_link(self, name: &str, to: &str) -> Self {
        self.add(EntryType::Link, name, to, 0o644, b"")
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn unpack(layer: &[u8]) -> (tempfile::TempDir, Result<Unpacked, LayerError>) {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("fs");
    std::fs::create_dir(&target).unwrap();
    let result = unpack_layer(layer, &target, &Limits::default());
    (dir, result)
}

fn unpacked(layer: Layer) -> (tempfile::TempDir, PathBuf) {
    let (dir, result) = unpack(&layer.bytes());
    result.unwrap();
    let path = dir.path().join("fs");
    (dir, path)
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn files_keep_owner_mode_time_and_attributes() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let long = format!("d/{}", "n".repeat(200));
    let (_dir, root) = unpacked(
        Layer::new()
            .dir("d")
            .add(EntryType::Regular, "d/suid", "", 0o4755, b"hello")
            .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.trusted.overlay.redirect", b"/x")])
            .file("d/cap", b"x")
            .pax(&[("path", long.as_bytes()), ("mtime", b"99.5"), ("uid", b"70000")])
            .file("short", b"long")
            .symlink("d/link", "/etc/passwd")
            .hard_link("d/hard", "d/suid")
            .add(EntryType::Fifo, "fifo", "", 0o600, b"")
            .add(EntryType::Char, "null", "", 0o666, b""),
    );
    let suid = root.join("d/suid").metadata().unwrap();
    assert_eq!((suid.mode() & 0o7777, suid.uid(), suid.gid(), suid.mtime()), (0o4755, 1000, 2000, 1_234_567_890));
    assert_eq!(std::fs::read(root.join("d/suid")).unwrap(), b"hello");
    let dir = root.join("d").metadata().unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.uid(), dir.mtime()), (0o750, 1000, 1_234_567_890));
    assert_eq!(xattr(&root.join("d/cap"), "security.capability").unwrap(), capability);
    assert_eq!(xattr(&root.join("d/cap"), "trusted.overlay.redirect"), None, "overlayfs' attributes are not a layer's");
    let named = root.join(&long).metadata().unwrap();
    assert_eq!((named.uid(), named.mtime(), named.mtime_nsec()), (70000, 99, 500_000_000));
    let link = root.join("d/link").symlink_metadata().unwrap();
    assert_eq!((link.uid(), link.mtime()), (1000, 1_234_567_890));
    assert_eq!(std::fs::read_link(root.join("d/link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(root.join("d/hard").metadata().unwrap().ino(), suid.ino());
    assert!(root.join("fifo").metadata().unwrap().file_type().is_fifo());
    let null = root.join("null").metadata().unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let (_dir, root) = unpacked(
        Layer::new()
            .file("a/.wh.gone", b"")
            .file("b/.wh..wh..opq", b"")
            .file("b/kept", b"x")
            .file("a/.wh..wh.plnk", b"")
            .file("a/.wh.again", b"")
            .dir("a/again")
            .file("a/again/new", b"")
            .file("c/stays", b"")
            .file("c/.wh.stays", b""),
    );
    let gone = root.join("a/gone").symlink_metadata().unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(xattr(&root.join("b"), "trusted.overlay.opaque").unwrap(), b"y");
    assert!(root.join("b/kept").exists());
    assert_eq!(std::fs::read_dir(root.join("a")).unwrap().count(), 2, "no .wh. file is left");
    assert_eq!(xattr(&root.join("a/again"), "trusted.overlay.opaque").unwrap(), b"y");
    assert!(root.join("c/stays").is_file(), "a whiteout does not concern files of its own layer");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let (_dir, root) = unpacked(
        Layer::new()
            .file("x", b"1")
            .file("x", b"2")
            .dir("d")
            .file("d/in", b"")
            .file("d", b"now a file")
            .symlink("l", "x")
            .dir("l")
            .file("l/in", b"3"),
    );
    assert_eq!(std::fs::read(root.join("x")).unwrap(), b"2");
    assert_eq!(std::fs::read(root.join("d")).unwrap(), b"now a file");
    assert_eq!(std::fs::read(root.join("l/in")).unwrap(), b"3");
    assert!(!root.join("l").is_symlink());
}

#[test]
fn a_link_inside_the_layer_is_followed() {
    let (_dir, root) = unpacked(Layer::new().dir("usr").dir("usr/bin").symlink("bin", "usr/bin").file("bin/sh", b"#"));
    assert!(root.join("usr/bin/sh").is_file() && root.join("bin").is_symlink());
}

#[test]
fn hostile_layers_are_refused_and_touch_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().to_str().unwrap();
    std::fs::write(outside.path().join("victim"), b"safe").unwrap();
    let cases = [
        ("absolute", Layer::new().file("/etc/evil", b"x")),
        ("dot-dot", Layer::new().file("../evil", b"x")),
        ("inner dot-dot", Layer::new().file("a/../../evil", b"x")),
        ("absolute symlink", Layer::new().symlink("a", out).file("a/victim", b"x")),
        ("climbing symlink", Layer::new().symlink("a", "../..").file("a/evil", b"x")),
        ("symlink chain", Layer::new().symlink("a", "b").symlink("b", "/").file("a/evil", b"x")),
        ("symlink loop", Layer::new().symlink("a", "b").symlink("b", "a").file("a/evil", b"x")),
        ("directory over symlink", Layer::new().symlink("a", out).dir("a/new")),
        ("hard link out", Layer::new().hard_link("a", "../../victim")),
        ("absolute hard link", Layer::new().hard_link("a", &format!("{out}/victim"))),
        ("hard link through symlink", Layer::new().symlink("s", out).hard_link("a", "s/victim")),
        ("hard link to itself", Layer::new().file("a", b"").hard_link("a", "./a")),
        ("dangling hard link", Layer::new().hard_link("a", "none")),
        ("whiteout through symlink", Layer::new().symlink("s", out).file("s/.wh.victim", b"")),
        ("opaque through symlink", Layer::new().symlink("s", out).file("s/.wh..wh..opq", b"")),
        ("whiteout of dot-dot", Layer::new().file("a/.wh...", b"")),
        ("whiteout without name", Layer::new().file("a/.wh.", b"")),
        ("root as a file", Layer::new().file("./", b"").file(".", b"")),
        ("unknown type", Layer::new().add(EntryType::new(b'Z'), "z", "", 0o644, b"")),
        ("path through a file", Layer::new().file("f", b"").file("f/x", b"")),
    ];
    for (name, layer) in cases {
        let (dir, result) = unpack(&layer.bytes());
        assert!(result.is_err(), "{name} was accepted");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{name} left its directory");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "{name} wrote outside");
        let victim = outside.path().join("victim");
        assert_eq!(std::fs::read(&victim).unwrap(), b"safe", "{name}");
        assert_eq!(victim.metadata().unwrap().nlink(), 1, "{name} linked to a file outside");
        assert!(xattr(outside.path(), "trusted.overlay.opaque").is_none(), "{name}");
    }
}

#[test]
fn a_hard_link_to_a_symlink_links_the_link() {
    let (_dir, root) = unpacked(Layer::new().symlink("s", "/etc/passwd").hard_link("h", "s"));
    assert!(root.join("h").is_symlink());
    assert_eq!(root.join("h").symlink_metadata().unwrap().nlink(), 2);
}

#[test]
fn bombs_end_at_the_limits() {
    let limits = Limits { layer_bytes: 1 << 20, layer_entries: 10, archive_bytes: 1 << 20 };
    let unpack = |bytes: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        unpack_layer(bytes, dir.path(), &limits)
    };
    let zeros = vec![0; 2 << 20];
    let big = Layer::new().file("zeros", &zeros).bytes();
    assert!(matches!(unpack(&big), Err(LayerError::TooLarge(_))));
    let mut trailing = Layer::new().bytes();
    trailing.extend(&zeros);
    assert!(matches!(unpack(&trailing), Err(LayerError::TooLarge(_))), "garbage after the end counts too");
    let many = (0..11).fold(Layer::new(), |layer, i| layer.file(&i.to_string(), b"")).bytes();
    assert!(matches!(unpack(&many), Err(LayerError::TooManyEntries(10))));
    // A header may promise any size; an extension header must not be read into memory on its word.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    assert!(matches!(unpack(header.as_bytes()), Err(LayerError::Read(_))));
}

#[test]
fn zeros_become_holes() {
    let (_dir, root) = unpacked(Layer::new().file("zeros", &vec![0; 4 << 20]));
    let zeros = root.join("zeros").metadata().unwrap();
    assert_eq!(zeros.len(), 4 << 20);
    assert!(zeros.blocks() * 512 < 1 << 20, "{} blocks", zeros.blocks());
}

#[test]
fn sparse_files_of_gnu_tar_in_all_formats() {
    let dir = tempfile::tempdir().unwrap();
    let source = File::create(dir.path().join("sparse")).unwrap();
    let mut expected = vec![0; 3 << 20];
    for at in (0..3 << 20).step_by(100_000) {
        std::os::unix::fs::FileExt::write_at(&source, b"data", at as u64).unwrap();
        expected[at..at + 4].copy_from_slice(b"data");
    }
    source.set_len(3 << 20).unwrap();
    for format in ["gnu", "posix"] {
        let tar = dir.path().join(format);
        let made = Command::new("tar")
            .args(["--sparse", "--format", format, "-cf"])
            .arg(&tar)
            .arg("-C")
            .args([dir.path().as_os_str(), OsStr::new("sparse")])
            .status();
        assert!(made.unwrap().success());
        let (out, result) = unpack(&std::fs::read(&tar).unwrap());
        result.unwrap();
        assert!(std::fs::read(out.path().join("fs/sparse")).unwrap() == expected, "format {format}");
    }
}

#[test]
fn directories_that_a_layer_does_not_describe_take_their_metadata_from_below() {
    let (_below, below) =
        unpacked(
            Layer::new()
                .add(EntryType::Directory, "tmp", "", 0o1777, b"")
                .pax(&[("SCHILY.xattr.user.mark", b"1")])
                .add(EntryType::Directory, "tmp/sub", "", 0o700, b""),
        );
    let (dir, result) = unpack(&Layer::new().file("tmp/sub/x", b"").file("other/y", b"").bytes());
    let implied = result.unwrap().implied;
    assert_eq!(implied, [Path::new("other"), Path::new("tmp"), Path::new("tmp/sub")]);
    let root = dir.path().join("fs");
    inherit_directories(&root, &implied, &[below]).unwrap();
    let tmp = root.join("tmp").metadata().unwrap();
    assert_eq!((tmp.mode() & 0o7777, tmp.uid(), tmp.mtime()), (0o1777, 1000, 1_234_567_890));
    let sub = root.join("tmp/sub").metadata().unwrap();
    assert_eq!(sub.mode() & 0o7777, 0o700);
    assert_eq!(xattr(&root.join("tmp/sub"), "user.mark").unwrap(), b"1");
    assert_eq!(root.join("other").metadata().unwrap().permissions().mode() & 0o7777, 0o755);
}

/// Flips bytes of a real layer at random: anything may come out but a panic or a file outside.
#[test]
fn damaged_layers_never_panic_or_escape() {
    let layer = Layer::new()
        .dir("d")
        .pax(&[("path", b"d/renamed"), ("SCHILY.xattr.user.a", b"b"), ("GNU.sparse.major", b"1")])
        .file("d/f", b"data")
        .symlink("d/s", "f")
        .hard_link("d/h", "d/f")
        .file("d/.wh.x", b"")
        .bytes();
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 33).unwrap()
    };
    for _ in 0..1500 {
        let mut bytes = layer.clone();
        for _ in 0..=random() % 4 {
            let block = random() % (bytes.len() / 512) * 512;
            let at = random() % 345;
            bytes[block + at] = u8::try_from(random() % 256).unwrap();
            // Most damage would end at the checksum; repair it, so that the fields are reached.
            let sum: u32 =
                (0..512).map(|i| if (148..156).contains(&i) { 32 } else { u32::from(bytes[block + i]) }).sum();
            bytes[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        bytes.truncate(bytes.len() - random() % 600);
        let (dir, _) = unpack(&bytes);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
