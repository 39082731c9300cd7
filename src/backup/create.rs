//! Making a backup.

use crate::error::{Error, Result, at};
use crate::manifest::{FORMAT, Manifest, Member};
use crate::work::Work;
use crate::{DATA, MANIFEST, NODE_PASSWORD, SERVER, STORE};
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// What a backup is told about where it comes from.
#[derive(Clone, Debug)]
pub struct About {
    /// The version of edge.
    pub edge: String,
    /// The node.
    pub node: String,
}

/// Backs up the server in `data_dir` to a new file, which appears whole or not at all, and replaces what was there. `copy` writes a
/// consistent copy of the store to a path that does not exist.
///
/// # Errors
/// [`Error::NoStore`], [`Error::Store`], [`Error::Io`]; no file is left then.
pub fn create(
    data_dir: &Path,
    target: &Path,
    about: About,
    copy: impl FnOnce(&Path) -> edge_storage::Result<()>,
) -> Result<Manifest> {
    crate::complete(data_dir)?;
    let store = data_dir.join(SERVER).join(STORE).join(DATA);
    if !store.exists() {
        return Err(Error::NoStore { path: store });
    }
    let directory = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // beside the target, which has to have space for it anyhow
    let work = Work::begin(directory).map_err(at(directory))?;
    let copied = work.path().join(DATA);
    copy(&copied).map_err(|source| Error::Store { path: store.clone(), source })?;
    let facts = edge_storage::inspect(&copied).map_err(|source| Error::Store { path: store, source })?;

    let mut files = small_files(data_dir)?;
    let mut data = File::open(&copied).map_err(at(&copied))?;
    let member = Member::of(&mut data, 0o600).map_err(at(&copied))?;
    let mut manifest = Manifest {
        format: FORMAT,
        edge: about.edge,
        node: about.node,
        time: Timestamp::now(),
        revision: facts.revision,
        keys: facts.keys,
        files: files.iter().map(|(path, file)| (path.clone(), file.member.clone())).collect(),
    };
    let data_path = format!("{SERVER}/{STORE}/{DATA}");
    manifest.files.insert(data_path.clone(), member.clone());

    let part = work.path().join("backup");
    let written = (|| {
        data.rewind()?;
        let mut archive = Archive::new(&part, manifest.time)?;
        archive.add(MANIFEST, 0o600, &serde_json::to_vec_pretty(&manifest)?)?;
        for (path, file) in std::mem::take(&mut files) {
            archive.add(&path, file.member.mode, &file.content)?;
        }
        archive.add_from(&data_path, &member, &mut data)?;
        archive.finish()
    })();
    written.map_err(at(target))?;
    fs::rename(&part, target).and_then(|()| edge_sys::fsutil::sync_dir(directory)).map_err(at(target))?;
    Ok(manifest)
}

/// A file that is kept in memory: another one can take its place at any time.
struct Small {
    member: Member,
    content: Vec<u8>,
}

/// All regular files below `server`, and what links there lead to, but for the store; and the node's password.
fn small_files(data_dir: &Path) -> Result<BTreeMap<String, Small>> {
    let mut found = BTreeMap::new();
    if let Some(file) = small(&data_dir.join(NODE_PASSWORD))? {
        found.insert(NODE_PASSWORD.to_owned(), file);
    }
    let mut directories = vec![PathBuf::from(SERVER)];
    while let Some(directory) = directories.pop() {
        let path = data_dir.join(&directory);
        for entry in fs::read_dir(&path).map_err(at(&path))? {
            let name = entry.map_err(at(&path))?.file_name();
            let relative = directory.join(&name);
            let path = data_dir.join(&relative);
            let Some(metadata) = unless_gone(fs::metadata(&path)).map_err(at(&path))? else { continue };
            let is_store = relative == Path::new(SERVER).join(STORE);
            // files that are being written have such names until they are whole
            let is_partial = name.as_encoded_bytes().starts_with(b".") && name.as_encoded_bytes().ends_with(b".tmp");
            if metadata.is_dir() && !is_store {
                directories.push(relative);
            } else if metadata.is_file() && !is_partial {
                let Some(file) = small(&path)? else { continue };
                let name = relative.into_os_string().into_string();
                let name = name.map_err(|_| at(&path)(io::Error::other("its name is not UTF-8")))?;
                found.insert(name, file);
            }
        }
    }
    Ok(found)
}

/// Reads a file, unless it is gone.
fn small(path: &Path) -> Result<Option<Small>> {
    let read = || {
        let mut file = File::open(path)?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok(Small { member: Member::of(&mut content.as_slice(), mode)?, content })
    };
    unless_gone(read()).map_err(at(path))
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file that is being written.
struct Archive {
    tar: Builder<GzEncoder<BufWriter<File>>>,
    time: u64,
}

impl Archive {
    fn new(path: &Path, time: Timestamp) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        let time = u64::try_from(time.as_second()).unwrap_or(0);
        Ok(Self { tar: Builder::new(GzEncoder::new(BufWriter::new(file), Compression::default())), time })
    }

    fn header(&self, size: u64, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(size);
        header.set_mode(mode);
        header.set_mtime(self.time);
        header
    }

    fn add(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let mut header = self.header(content.len() as u64, mode);
        self.tar.append_data(&mut header, path, content)
    }

    fn add_from(&mut self, path: &str, member: &Member, file: &mut File) -> io::Result<()> {
        let mut header = self.header(member.size, member.mode);
        self.tar.append_data(&mut header, path, file)
    }

    fn finish(self) -> io::Result<()> {
        let mut buffered = self.tar.into_inner()?.finish()?;
        buffered.flush()?;
        buffered.get_ref().sync_all()
    }
}
