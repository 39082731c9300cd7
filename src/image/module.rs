//! The WebAssembly program of an image: which file of which layer it is.
//!
//! Nothing is mounted for that. The layers are searched as overlayfs would show them, and no symbolic link is ever followed by
//! the kernel, since a link of an image may point anywhere.

use crate::digest::{Digest, Hashing};
use crate::error::Error;
use crate::image::{Image, ImageConfig, ImageKind};
use crate::store::{ImageStore, Inner, blocking};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How every WebAssembly module and component begins.
const MAGIC: &[u8] = b"\0asm";
/// Most symbolic links on the way to one file, as in the kernel.
const MAX_LINKS: usize = 40;
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// The kernel refuses every symbolic link on the way.
const STRAIGHT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The WebAssembly program that a container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WasmProgram {
    /// Digest of the module's bytes.
    pub digest: Digest,
    /// The module's file, in the store.
    pub path: PathBuf,
}

impl ImageStore {
    /// The program of a WebAssembly image: the module of an artifact; else the file that `program` names (mostly the first word
    /// of the container's command line), from `working_dir` on when it is relative, or what the image itself runs.
    ///
    /// # Errors
    /// When there is no such file in the image, or it cannot be read.
    pub async fn wasm_program(
        &self,
        image: Arc<Image>,
        program: Option<String>,
        working_dir: Option<String>,
    ) -> Result<WasmProgram, Error> {
        let inner = Arc::clone(&self.inner);
        if let ImageKind::WasmModule { module } = image.kind {
            return Ok(WasmProgram { digest: module, path: inner.content.blob(module) });
        }
        blocking(move || {
            let program = program.or_else(|| command(&image.config).map(str::to_owned)).unwrap_or_default();
            let working_dir = working_dir.as_deref().unwrap_or(&image.config.working_dir);
            let path = locate(&image.lower_dirs, working_dir, &program)
                .map_err(|reason| Error::malformed(format!("{program:?} in image {}", image.id), reason))?;
            let digest = inner.program_digest(&path)?;
            Ok(WasmProgram { digest, path })
        })
        .await
    }

    /// Digests of the modules that images of the store hold, as far as they are known.
    #[must_use]
    pub fn wasm_digests(&self) -> HashSet<Digest> {
        let images = self.list();
        let of_images = images.iter().filter_map(|image| match image.kind {
            ImageKind::WasmModule { module } => Some(module),
            ImageKind::WasmRootfs { module } => module,
            ImageKind::Container => None,
        });
        let programs = self.inner.programs.lock();
        of_images.chain(programs.iter().filter(|(path, _)| path.exists()).map(|(_, digest)| *digest)).collect()
    }
}

impl Inner {
    /// The digest of a file in a layer, which never changes.
    fn program_digest(&self, path: &Path) -> Result<Digest, Error> {
        if let Some(known) = self.programs.lock().get(path) {
            return Ok(*known);
        }
        let digest = digest(path)?;
        let mut programs = self.programs.lock();
        programs.retain(|path, _| path.exists());
        programs.insert(path.to_owned(), digest);
        Ok(digest)
    }
}

/// What an image with these layers (top first) holds: a root file system whose program is a module is WebAssembly, whatever
/// platform it names.
pub(crate) fn kind(named: ImageKind, config: &ImageConfig, lower_dirs: &[PathBuf]) -> Result<ImageKind, Error> {
    if matches!(named, ImageKind::WasmModule { .. }) {
        return Ok(named);
    }
    let program = command(config).and_then(|program| locate(lower_dirs, &config.working_dir, program).ok());
    match program {
        Some(path) if is_module(&path)? => Ok(ImageKind::WasmRootfs { module: Some(digest(&path)?) }),
        _ => Ok(named),
    }
}

/// Refuses a file that is no module or component.
pub(crate) fn check(module: Digest, file: &Path) -> Result<(), Error> {
    match is_module(file)? {
        true => Ok(()),
        false => Err(Error::malformed(
            format!("module {module}"),
            "not a WebAssembly module: it does not begin with the bytes of one",
        )),
    }
}

/// The first word of what the image runs.
fn command(config: &ImageConfig) -> Option<&str> {
    config.entrypoint.first().or(config.cmd.first()).map(String::as_str)
}

fn is_module(file: &Path) -> Result<bool, Error> {
    let mut begin = Vec::with_capacity(MAGIC.len());
    let opened = File::open(file).map_err(Error::io("open", file))?;
    opened.take(MAGIC.len() as u64).read_to_end(&mut begin).map_err(Error::io("read", file))?;
    Ok(begin == MAGIC)
}

fn digest(file: &Path) -> Result<Digest, Error> {
    let mut hashing = Hashing::new(File::open(file).map_err(Error::io("open", file))?);
    io::copy(&mut hashing, &mut io::sink()).map_err(Error::io("read", file))?;
    Ok(hashing.finish().0)
}

/// Finds the regular file that `program` is in the file system of `layers` (top first). The texts are for the pod's author.
fn locate(layers: &[PathBuf], working_dir: &str, program: &str) -> Result<PathBuf, &'static str> {
    if program.is_empty() {
        return Err("the image names no program, and the container no command");
    }
    let found = walk(layers, &Path::new("/").join(working_dir).join(program));
    match found {
        // `docker build` writes what the Dockerfile says, which often lacks the slash.
        Err(NO_SUCH_FILE) => walk(layers, &Path::new("/").join(program)),
        found => found,
    }
}

const NO_SUCH_FILE: &str = "no such file in the image";

fn walk(layers: &[PathBuf], path: &Path) -> Result<PathBuf, &'static str> {
    let components = |path: &Path| {
        path.as_os_str().as_bytes().split(|b| *b == b'/').map(OsStr::from_bytes).map(OsString::from).collect()
    };
    let mut left: VecDeque<OsString> = components(path);
    let (mut done, mut links) = (PathBuf::new(), 0);
    let mut file = None;
    while let Some(component) = left.pop_front() {
        match component.as_bytes() {
            b"" | b"." => continue,
            b".." => {
                done.pop();
                continue;
            }
            _ if file.is_some() => return Err(NO_SUCH_FILE),
            _ => done.push(&component),
        }
        match topmost(layers, &done) {
            Some(Found::Directory) => {}
            Some(Found::File(path)) => file = Some(path),
            Some(Found::Link(target)) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err("too many symbolic links");
                }
                done.pop();
                if target.is_absolute() {
                    done = PathBuf::new();
                }
                let mut longer: VecDeque<OsString> = components(&target);
                longer.append(&mut left);
                left = longer;
            }
            Some(Found::Other) => return Err("not a regular file"),
            None => return Err(NO_SUCH_FILE),
        }
    }
    file.ok_or("not a regular file")
}

enum Found {
    Directory,
    File(PathBuf),
    Link(PathBuf),
    Other,
}

/// What is at `path`, whose parents are directories, in the uppermost layer that has it.
fn topmost(layers: &[PathBuf], path: &Path) -> Option<Found> {
    for layer in layers {
        match look(layer, path) {
            Some(Entry::Whiteout) => return None,
            Some(Entry::Found(found)) => return Some(found),
            None => {}
        }
        // What this layer has on the way may hide what lower layers have below it.
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            match look(layer, parent) {
                Some(Entry::Found(Found::Directory)) if is_opaque(&layer.join(parent)) => return None,
                Some(Entry::Found(Found::Directory)) | None => {}
                Some(_) => return None,
            }
        }
    }
    None
}

enum Entry {
    Found(Found),
    Whiteout,
}

fn look(layer: &Path, path: &Path) -> Option<Entry> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, layer, directory, Mode::empty()).ok()?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entry = rustix::fs::openat2(&root, path, flags, Mode::empty(), STRAIGHT).ok()?;
    let stat = rustix::fs::fstat(&entry).ok()?;
    Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Entry::Found(Found::Directory),
        FileType::RegularFile => Entry::Found(Found::File(layer.join(path))),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&entry, "", Vec::new()).ok()?;
            Entry::Found(Found::Link(PathBuf::from(OsString::from_vec(target.into_bytes()))))
        }
        FileType::CharacterDevice if stat.st_rdev == 0 => Entry::Whiteout,
        _ => Entry::Found(Found::Other),
    })
}

/// The path was looked at: it leads through directories only.
fn is_opaque(directory: &Path) -> bool {
    let mut value = [0; 1];
    match rustix::fs::lgetxattr(directory, OPAQUE_XATTR, &mut value[..]) {
        Ok(_) => value == *b"y",
        Err(Errno::RANGE) => false,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn layers(count: usize) -> (tempfile::TempDir, Vec<PathBuf>) {
        let directory = tempfile::tempdir().unwrap();
        let layers: Vec<_> = (0..count).map(|i| directory.path().join(i.to_string())).collect();
        for layer in &layers {
            fs::create_dir_all(layer.join("app")).unwrap();
        }
        (directory, layers)
    }

    fn whiteout(path: &Path) {
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR, 0).unwrap();
    }

    #[test]
    fn the_uppermost_file_counts_and_whiteouts_hide() {
        let (_directory, layers) = layers(3);
        fs::write(layers[1].join("app/a.wasm"), "upper").unwrap();
        fs::write(layers[2].join("app/a.wasm"), "lower").unwrap();
        fs::write(layers[2].join("app/b.wasm"), "b").unwrap();
        whiteout(&layers[0].join("app/b.wasm"));
        assert_eq!(locate(&layers, "", "/app/a.wasm").unwrap(), layers[1].join("app/a.wasm"));
        assert_eq!(locate(&layers, "/app", "a.wasm").unwrap(), layers[1].join("app/a.wasm"));
        assert_eq!(locate(&layers, "", "app/a.wasm").unwrap(), layers[1].join("app/a.wasm"));
        assert_eq!(locate(&layers, "/elsewhere", "app/../app/a.wasm").unwrap(), layers[1].join("app/a.wasm"));
        assert_eq!(locate(&layers, "", "/app/b.wasm"), Err(NO_SUCH_FILE));
        assert_eq!(locate(&layers, "", "/app/a.wasm/x"), Err(NO_SUCH_FILE));
        assert_eq!(locate(&layers, "", "/app"), Err("not a regular file"));
        assert!(locate(&layers, "", "").is_err());
        fs::remove_dir_all(layers[0].join("app")).unwrap();
        fs::write(layers[0].join("app"), "a file hides a directory").unwrap();
        assert_eq!(locate(&layers, "", "/app/a.wasm"), Err(NO_SUCH_FILE));
    }

    #[test]
    fn an_opaque_directory_hides_what_is_below() {
        let (_directory, layers) = layers(2);
        fs::write(layers[1].join("app/a.wasm"), "a").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(layers[0].join("app"), OPAQUE_XATTR, b"y", flags).unwrap();
        assert_eq!(locate(&layers, "", "/app/a.wasm"), Err(NO_SUCH_FILE));
    }

    #[test]
    fn links_lead_through_the_image_and_never_out_of_it() {
        let (directory, layers) = layers(2);
        let secret = directory.path().join("secret.wasm");
        fs::write(&secret, "of the host").unwrap();
        fs::write(layers[1].join("app/real.wasm"), "a").unwrap();
        symlink("real.wasm", layers[0].join("app/beside.wasm")).unwrap();
        symlink("/app/real.wasm", layers[0].join("absolute.wasm")).unwrap();
        symlink("../../../app", layers[0].join("climbs")).unwrap();
        symlink(&secret, layers[0].join("out.wasm")).unwrap();
        symlink(directory.path(), layers[0].join("host")).unwrap();
        symlink("loop", layers[0].join("loop")).unwrap();
        for good in ["/app/beside.wasm", "absolute.wasm", "/climbs/real.wasm"] {
            assert_eq!(locate(&layers, "", good).unwrap(), layers[1].join("app/real.wasm"), "{good}");
        }
        for bad in ["/out.wasm", "/host/secret.wasm", "/../secret.wasm"] {
            assert_eq!(locate(&layers, "", bad), Err(NO_SUCH_FILE), "{bad}");
        }
        assert_eq!(locate(&layers, "", "/loop"), Err("too many symbolic links"));
        // A lower layer's link is not followed where an upper layer has a directory.
        fs::remove_dir_all(layers[1].join("app")).unwrap();
        symlink(directory.path(), layers[1].join("app")).unwrap();
        assert_eq!(locate(&layers, "", "/app/secret.wasm"), Err(NO_SUCH_FILE));
    }
}
