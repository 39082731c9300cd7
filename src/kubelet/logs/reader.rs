//! Reads logs in CRI format: from the end, since a time, with or without time stamps, and on and on while the container
//! runs. Waits for the kernel to tell that the file has changed, never polls.

use bytes::Bytes;
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use k8s_openapi::jiff::Timestamp;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Take};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// How much is read at a time when looking for lines from the end.
const BLOCK: u64 = 64 * 1024;
/// Longest line that is kept in memory; longer ones are cut (the runtime splits them far below that).
const MAX_LINE: u64 = 1 << 20;
/// About how many bytes are sent at a time.
const CHUNK: usize = 32 * 1024;

/// What to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    /// Go on as the container writes.
    pub(crate) follow: bool,
    /// Only that many lines from the end.
    pub(crate) tail_lines: Option<u64>,
    /// Only what was written at that time or later.
    pub(crate) since: Option<Timestamp>,
    /// Begin each line with its time.
    pub(crate) timestamps: bool,
    /// End after that many bytes.
    pub(crate) limit_bytes: Option<u64>,
    /// Only `stdout` or `stderr`.
    pub(crate) stream: Option<&'static str>,
}

/// Sends a log until its end, or, when following, until `ended` completes and everything written until then is sent.
/// Ends early when nobody listens any more.
pub(crate) async fn send(
    path: PathBuf,
    options: LogOptions,
    ended: impl Future<Output = ()> + Send,
    out: mpsc::Sender<io::Result<Bytes>>,
) {
    if let Err(error) = send_all(path, options, ended, &out).await {
        // a listener that is gone does not care
        let _ = out.send(Err(error)).await;
    }
}

async fn send_all(
    path: PathBuf,
    options: LogOptions,
    ended: impl Future<Output = ()> + Send,
    out: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let mut changes = None;
    if options.follow {
        // watched before the first read, so that nothing falls between
        let inotify = Inotify::init()?;
        let dir = path.parent().unwrap_or(&path);
        let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM;
        inotify.watches().add(dir, mask)?;
        changes = Some(inotify.into_event_stream(vec![0; 4096])?);
    }
    let mut log = blocking(move || Log::open(&path, &options)).await?;
    let mut over = false;
    tokio::pin!(ended);
    loop {
        loop {
            let (chunk, more);
            (log, chunk, more) = blocking(move || {
                let (chunk, more) = log.next_chunk()?;
                Ok((log, chunk, more))
            })
            .await?;
            if !chunk.is_empty() && out.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
            if log.limit == Some(0) {
                return Ok(());
            }
            if !more {
                break;
            }
        }
        let Some(changes) = changes.as_mut().filter(|_| !over) else { return Ok(()) };
        tokio::select! {
            () = &mut ended => over = true,
            () = out.closed() => return Ok(()),
            change = changes.next() => match change {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// An open log.
struct Log {
    path: PathBuf,
    /// Unless it is followed, it ends where it ended when the reader came: a container that writes fast makes the answer neither longer
    /// than it was asked for, nor endless.
    file: BufReader<Take<File>>,
    follow: bool,
    inode: u64,
    /// A line that is not complete yet.
    partial: Vec<u8>,
    since: Option<Timestamp>,
    timestamps: bool,
    stream: Option<&'static str>,
    limit: Option<u64>,
    /// The next content begins a line, and so gets the time.
    line_begins: bool,
}

impl Log {
    fn open(path: &Path, options: &LogOptions) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        let start = match options.tail_lines {
            Some(lines) => tail_start(&mut file, metadata.len(), lines)?,
            None => 0,
        };
        file.seek(SeekFrom::Start(start))?;
        let length = if options.follow { u64::MAX } else { metadata.len() - start };
        Ok(Self {
            path: path.to_owned(),
            inode: metadata.ino(),
            file: BufReader::with_capacity(CHUNK, file.take(length)),
            follow: options.follow,
            partial: Vec::new(),
            since: options.since,
            timestamps: options.timestamps,
            stream: options.stream,
            limit: options.limit_bytes,
            line_begins: true,
        })
    }

    /// The next bytes, and whether there are more at once.
    fn next_chunk(&mut self) -> io::Result<(Bytes, bool)> {
        let mut out = Vec::new();
        while out.len() < CHUNK {
            let before = self.partial.len();
            let room = MAX_LINE.saturating_sub(before as u64).max(1);
            self.file.by_ref().take(room).read_until(b'\n', &mut self.partial)?;
            if self.partial.last() == Some(&b'\n') || self.partial.len() as u64 >= MAX_LINE {
                let line = std::mem::take(&mut self.partial);
                self.add(&line, &mut out);
                if self.limit == Some(0) {
                    return Ok((out.into(), false));
                }
            } else if self.partial.len() == before {
                // the end of this file: perhaps rotation has put a new one in its place
                return if self.follow && self.reopen_rotated()? {
                    Ok((out.into(), true))
                } else {
                    Ok((out.into(), false))
                };
            }
        }
        Ok((out.into(), true))
    }

    fn reopen_rotated(&mut self) -> io::Result<bool> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            // between two renames
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let inode = file.metadata()?.ino();
        if inode == self.inode {
            return Ok(false);
        }
        self.inode = inode;
        self.file = BufReader::with_capacity(CHUNK, file.take(u64::MAX));
        self.partial.clear();
        Ok(true)
    }

    /// Appends the content of a line if it is wanted. Lines that are not CRI's are left out.
    fn add(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(Line { time, stream, full, content }) = parse(line) else { return };
        if self.stream.is_some_and(|wanted| stream != wanted.as_bytes()) {
            return;
        }
        if let Some(since) = self.since {
            let written = std::str::from_utf8(time).ok().and_then(|t| t.parse::<Timestamp>().ok());
            if written.is_none_or(|w| w < since) {
                return;
            }
        }
        let begin = out.len();
        if self.timestamps && self.line_begins {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(content);
        if full {
            out.push(b'\n');
        }
        self.line_begins = full;
        if let Some(limit) = &mut self.limit {
            let room = usize::try_from(*limit).unwrap_or(usize::MAX);
            out.truncate(begin.saturating_add(room));
            *limit -= (out.len() - begin) as u64;
        }
    }
}

/// The parts of a line in CRI format.
struct Line<'a> {
    time: &'a [u8],
    stream: &'a [u8],
    /// The line ends here; otherwise the next one goes on with it.
    full: bool,
    content: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
    if stream != b"stdout" && stream != b"stderr" {
        return None;
    }
    let full = tags.split(|b| *b == b':').next() != Some(b"P");
    Some(Line { time, stream, full, content: parts.next().unwrap_or_default() })
}

/// Where the last `lines` lines of the first `end` bytes of a file begin.
fn tail_start(file: &mut File, end: u64, lines: u64) -> io::Result<u64> {
    if lines == 0 {
        return Ok(end);
    }
    let mut block = vec![0; usize::try_from(BLOCK).unwrap_or(usize::MAX)];
    let (mut at, mut found) = (end, 0);
    while at > 0 {
        let size = at.min(BLOCK);
        at -= size;
        let part = &mut block[..usize::try_from(size).unwrap_or(0)];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(part)?;
        for (index, byte) in part.iter().enumerate().rev() {
            let position = at + index as u64;
            // the newline that ends the file begins no line
            if *byte == b'\n' && position + 1 < end {
                found += 1;
                if found == lines {
                    return Ok(position + 1);
                }
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::io::Write;
    use std::time::Duration;
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    fn line(second: u32, stream: &str, tag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000001Z {stream} {tag} {text}\n")
    }

    async fn read(content: &str, options: LogOptions) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, content).unwrap();
        let (tx, mut rx) = mpsc::channel(4);
        let sender = tokio::spawn(send(path, options, std::future::pending(), tx));
        let mut all = Vec::new();
        while let Some(chunk) = rx.recv().await {
            all.extend_from_slice(&chunk.unwrap());
        }
        sender.await.unwrap();
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn every_option() {
        let text = [
            line(1, "stdout", "F", "one"),
            line(2, "stderr", "F", "two  words"),
            line(3, "stdout", "P", "thr"),
            line(3, "stdout", "F", "ee"),
            line(4, "stdout", "F", ""),
        ]
        .concat();
        let options = LogOptions::default;
        assert_eq!(read(&text, options()).await, "one\ntwo  words\nthree\n\n");
        assert_eq!(read(&text, LogOptions { tail_lines: Some(3), ..options() }).await, "three\n\n");
        assert_eq!(read(&text, LogOptions { tail_lines: Some(0), ..options() }).await, "");
        assert_eq!(read(&text, LogOptions { tail_lines: Some(99), ..options() }).await, "one\ntwo  words\nthree\n\n");
        assert_eq!(read(&text, LogOptions { limit_bytes: Some(6), ..options() }).await, "one\ntw");
        assert_eq!(read(&text, LogOptions { stream: Some("stderr"), ..options() }).await, "two  words\n");
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        assert_eq!(read(&text, LogOptions { since, ..options() }).await, "three\n\n");
        let stamped = read(&text, LogOptions { timestamps: true, tail_lines: Some(3), ..options() }).await;
        assert_eq!(stamped, "2026-01-01T00:00:03.000000001Z three\n2026-01-01T00:00:04.000000001Z \n");
    }

    #[tokio::test]
    async fn long_and_broken_logs() {
        let many: String = (0..20_000).map(|n| line(1, "stdout", "F", &n.to_string())).collect();
        let all = read(&many, LogOptions::default()).await;
        assert_eq!(all.lines().count(), 20_000);
        assert!(all.starts_with("0\n1\n") && all.ends_with("19999\n"));
        let tail = read(&many, LogOptions { tail_lines: Some(5000), ..LogOptions::default() }).await;
        assert!(tail.starts_with("15000\n") && tail.lines().count() == 5000);
        assert_eq!(
            read("garbage\n\n a b\nx stdout\nx stdout F ok\nx stdout F unfinished", LogOptions::default()).await,
            "ok\n"
        );
        let mut seed = 1_u64;
        for _ in 0..50 {
            let noise: String = (0..200)
                .map(|_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    ['x', ' ', '\n', 'F', 'é', ':'][(seed >> 33) as usize % 6]
                })
                .collect();
            read(&noise, LogOptions { tail_lines: Some(3), timestamps: true, ..LogOptions::default() }).await;
        }
    }

    #[test]
    fn what_is_written_while_it_is_read_is_not_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, line(1, "stdout", "F", "one") + &line(2, "stdout", "F", "two")).unwrap();
        let mut log = Log::open(&path, &LogOptions { tail_lines: Some(1), ..LogOptions::default() }).unwrap();
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(line(3, "stdout", "F", "three").as_bytes()).unwrap();
        assert_eq!(log.next_chunk().unwrap(), (Bytes::from("two\n"), false));
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, line(4, "stdout", "F", "after rotation")).unwrap();
        assert_eq!(log.next_chunk().unwrap(), (Bytes::new(), false));
    }

    #[tokio::test]
    async fn following_sees_what_is_written_rotation_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, line(1, "stdout", "F", "old")).unwrap();
        let (tx, mut rx) = mpsc::channel(4);
        let (end, ended) = oneshot::channel::<()>();
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let over = async {
            let _ = ended.await;
        };
        let sender = tokio::spawn(send(path.clone(), options, over, tx));
        let mut seen = String::new();
        let mut until = async |wanted: &str, seen: &mut String| {
            while !seen.contains(wanted) {
                let chunk = timeout(Duration::from_secs(20), rx.recv()).await.unwrap();
                let Some(chunk) = chunk else { panic!("ended, but {wanted:?} was not seen in {seen:?}") };
                seen.push_str(&String::from_utf8_lossy(&chunk.unwrap()));
            }
        };
        until("old\n", &mut seen).await;
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        let (first, second) = (line(2, "stdout", "F", "new"), line(3, "stdout", "F", "last of the old file"));
        file.write_all(&first.as_bytes()[..10]).unwrap();
        file.write_all(&first.as_bytes()[10..]).unwrap();
        until("new\n", &mut seen).await;
        file.write_all(second.as_bytes()).unwrap();
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, line(4, "stdout", "F", "after rotation")).unwrap();
        until("after rotation\n", &mut seen).await;
        assert!(seen.contains("last of the old file\n"));
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(line(5, "stdout", "F", "end").as_bytes())
            .unwrap();
        end.send(()).unwrap();
        until("end\n", &mut seen).await;
        timeout(Duration::from_secs(20), sender).await.unwrap().unwrap();
    }
}
