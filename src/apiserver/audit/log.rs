//! The file that events go to, one a line.
//!
//! One thread writes, so that a disk that is slow, full or away keeps no request waiting: what cannot be written in time is counted and
//! given up. When the file would become too large it gets a name with the time, as lumberjack does it, and a new one begins.

use super::Truncation;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;

/// Bytes of events at most that wait to be written.
const WAITING: usize = 16 << 20;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Where events are written, and for how long they are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The file; `-` is standard output.
    pub path: PathBuf,
    /// Days for which older files are kept; zero says nothing.
    pub max_age: u32,
    /// How many older files are kept; zero says nothing.
    pub max_backups: u32,
    /// Megabytes of a file at most; with zero it grows for ever.
    pub max_size: u32,
    /// How large events may be.
    pub truncation: Option<Truncation>,
}

/// The way to the thread that writes.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) truncation: Option<Truncation>,
    sender: mpsc::Sender<Order>,
    waiting: Arc<AtomicUsize>,
    /// Events that were not written.
    failed: Arc<AtomicU64>,
}

enum Order {
    Line(Vec<u8>),
    /// Tell when all before it is written.
    Flush(oneshot::Sender<()>),
}

impl Log {
    /// Opens the file and starts the thread, which ends with this.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub(super) fn open(options: LogOptions) -> io::Result<Self> {
        let truncation = options.truncation.clone();
        let mut writer = Writer::open(options)?;
        let (sender, orders) = mpsc::channel();
        let log = Self { truncation, sender, waiting: Arc::default(), failed: Arc::default() };
        let (waiting, failed) = (log.waiting.clone(), log.failed.clone());
        let work = move || {
            let mut is_broken = false;
            for order in orders {
                match order {
                    Order::Line(line) => {
                        let written = writer.write(&line);
                        waiting.fetch_sub(line.len(), Ordering::Relaxed);
                        match written {
                            Ok(()) => is_broken = false,
                            Err(error) => {
                                failed.fetch_add(1, Ordering::Relaxed);
                                // once, not for each event
                                if !std::mem::replace(&mut is_broken, true) {
                                    tracing::error!(%error, "audit events cannot be written");
                                }
                            }
                        }
                    }
                    // whoever asked may have gone
                    Order::Flush(done) => {
                        let _ = done.send(());
                    }
                }
            }
        };
        std::thread::Builder::new().name("audit".into()).spawn(work)?;
        Ok(log)
    }

    /// Hands over a line, its end included.
    pub(super) fn write(&self, line: Vec<u8>) {
        let len = line.len();
        let before = self.waiting.fetch_add(len, Ordering::Relaxed);
        if before + len > WAITING || self.sender.send(Order::Line(line)).is_err() {
            self.waiting.fetch_sub(len, Ordering::Relaxed);
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells when everything handed over until now is written.
    pub(super) fn flush(&self) -> oneshot::Receiver<()> {
        let (done, told) = oneshot::channel();
        // without the thread nobody tells, which ends the wait, too
        let _ = self.sender.send(Order::Flush(done));
        told
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// The file itself.
struct Writer {
    options: LogOptions,
    /// Bytes at most.
    limit: u64,
    file: Option<File>,
    len: u64,
    /// Whether the last line is only in part there.
    is_torn: bool,
}

impl Writer {
    fn open(options: LogOptions) -> io::Result<Self> {
        let limit = match options.max_size {
            0 => u64::MAX,
            megabytes => u64::from(megabytes) << 20,
        };
        let mut writer = Self { options, limit, file: None, len: 0, is_torn: false };
        if !writer.is_output() {
            writer.reopen()?;
        }
        Ok(writer)
    }

    fn is_output(&self) -> bool {
        self.options.path == Path::new("-")
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.options.path)?;
        self.len = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_output() {
            let mut output = io::stdout().lock();
            return output.write_all(line).and_then(|()| output.flush());
        }
        let len = line.len() as u64;
        if len > self.limit {
            return Err(io::Error::other(format!("write length {len} exceeds maximum file size {}", self.limit)));
        }
        if self.file.is_some() && self.len + len > self.limit {
            self.rotate()?;
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotConnected.into()) };
        if self.is_torn {
            file.write_all(b"\n")?;
            self.len += 1;
            self.is_torn = false;
        }
        // what is written of a line before the disk is full stays, and ends with the next
        let mut rest = line;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.len += n as u64;
                    rest = rest.get(n..).unwrap_or_default();
                    self.is_torn = !rest.is_empty();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Gives the file its name for later, and takes away those that are too old or too many.
    fn rotate(&mut self) -> io::Result<()> {
        let name = |extra: u32| {
            let now = jiff::Timestamp::now() + Duration::from_millis(extra.into());
            backup(&self.options.path, &now.strftime("%Y-%m-%dT%H-%M-%S%.3f").to_string())
        };
        // two of one millisecond are two files all the same
        let to = (0..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(0));
        match std::fs::rename(&self.options.path, to) {
            // somebody took it away
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        self.file = None;
        self.is_torn = false;
        if let Err(error) = self.clean() {
            tracing::warn!(%error, "old audit logs cannot be removed");
        }
        Ok(())
    }

    fn clean(&self) -> io::Result<()> {
        let mut backups = backups(&self.options.path)?;
        // the names are in the order of the times
        backups.sort_by(|a, b| b.cmp(a));
        let too_many = match self.options.max_backups {
            0 => backups.len(),
            most => (most as usize).min(backups.len()),
        };
        for path in &backups[too_many..] {
            std::fs::remove_file(path)?;
        }
        if self.options.max_age == 0 {
            return Ok(());
        }
        let oldest = jiff::Timestamp::now() - DAY * self.options.max_age;
        let oldest = backup(&self.options.path, &oldest.strftime("%Y-%m-%dT%H-%M-%S%.3f").to_string());
        backups[..too_many].iter().filter(|path| **path < oldest).try_for_each(std::fs::remove_file)
    }
}

/// `audit.log` of a time: `audit-2026-11-27T10-00-00.000.log`.
fn backup(path: &Path, time: &str) -> PathBuf {
    let part = |p: Option<&std::ffi::OsStr>| p.unwrap_or_default().to_string_lossy().into_owned();
    let (stem, extension) = (part(path.file_stem()), part(path.extension()));
    let dot = if extension.is_empty() { "" } else { "." };
    path.with_file_name(format!("{stem}-{time}{dot}{extension}"))
}

/// The older files.
fn backups(path: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut out = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let found = entry?.path();
        let pattern = backup(path, "\0");
        let (pattern, name) = (pattern.to_string_lossy().into_owned(), found.to_string_lossy().into_owned());
        let Some((start, end)) = pattern.split_once('\0') else { continue };
        // the parent of a bare name is not in what is found
        let start = Path::new(start).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let name = name.rsplit('/').next().unwrap_or_default();
        let time = name.strip_prefix(start.as_str()).and_then(|n| n.strip_suffix(end));
        let is_time = |t: &str| jiff::civil::DateTime::strptime("%Y-%m-%dT%H-%M-%S%.3f", t).is_ok();
        if time.is_some_and(is_time) {
            out.push(path.with_file_name(name));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn options(directory: &Path) -> LogOptions {
        LogOptions { path: directory.join("audit.log"), max_age: 0, max_backups: 2, max_size: 1, truncation: None }
    }

    fn line(c: char, len: usize) -> Vec<u8> {
        let mut line: String = std::iter::repeat_n(c, len).collect();
        line.push('\n');
        line.into_bytes()
    }

    #[test]
    fn files_are_rotated_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        // not one of ours
        std::fs::write(dir.path().join("audit-note.log"), "keep").unwrap();
        let mut writer = Writer::open(options.clone()).unwrap();
        for c in ['a', 'b', 'c', 'd', 'e'] {
            writer.write(&line(c, 600 << 10)).unwrap();
        }
        let mut kept = backups(&options.path).unwrap();
        kept.sort();
        assert_eq!(kept.len(), 2, "{kept:?}");
        let first = |path: &Path| std::fs::read(path).unwrap()[0];
        assert_eq!((first(&kept[0]), first(&kept[1]), first(&options.path)), (b'c', b'd', b'e'));
        assert!(dir.path().join("audit-note.log").exists());
        // by age
        let old = backup(&options.path, "2020-01-01T00-00-00.000");
        std::fs::write(&old, "").unwrap();
        let mut writer = Writer::open(LogOptions { max_age: 1, max_backups: 0, ..options.clone() }).unwrap();
        writer.write(&line('f', 600 << 10)).unwrap();
        assert!(!old.exists());
        assert_eq!(backups(&options.path).unwrap().len(), 3);
        // what is there is gone on with
        let mut writer = Writer::open(options.clone()).unwrap();
        writer.write(&line('g', 10)).unwrap();
        assert_eq!(first(&options.path), b'f');
        assert!(writer.write(&line('h', 2 << 20)).is_err(), "too long for any file");
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_the_next_line_begins_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(LogOptions { path: "/dev/full".into(), ..options(dir.path()) }).unwrap();
        for _ in 0..3 {
            log.write(line('x', 10));
        }
        log.flush().blocking_recv().unwrap();
        assert_eq!(log.failed(), 3);
        assert!(Log::open(LogOptions { path: dir.path().join("no/such/audit.log"), ..options(dir.path()) }).is_err());
        let mut writer = Writer::open(options(dir.path())).unwrap();
        writer.write(b"half").unwrap();
        writer.is_torn = true;
        writer.write(b"whole\n").unwrap();
        assert_eq!(std::fs::read(dir.path().join("audit.log")).unwrap(), b"half\nwhole\n");
    }
}
