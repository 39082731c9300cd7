//! Log files of containers in CRI format: `<time> stdout|stderr F|P <text>`, one line for every line of output. A line that is
//! longer than [`MAX_LINE`], or that ends without a newline, becomes `P` (partial) lines. Files are rotated by size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::spec::LogRotation;

/// Longest text of one log line in bytes.
const MAX_LINE: usize = 16 * 1024;

/// Bytes after which formatted lines are written, so that rotation can step in between.
const MAX_WRITE: usize = 16 * 1024;

/// Which stream a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The log of one container.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    rotation: LogRotation,
    /// `None` after a failure (a full disk, a removed directory); opened again with the next output.
    file: Option<File>,
    /// Bytes in the current file.
    size: u64,
}

impl Log {
    /// Opens the log, appending to what is there.
    pub(super) fn open(path: &Path, rotation: LogRotation) -> io::Result<Self> {
        let mut log = Self { path: path.to_owned(), rotation, file: None, size: 0 };
        log.reopen()?;
        Ok(log)
    }

    /// Closes the file and opens the path again.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Writes formatted lines. Output that cannot be written is lost: the container must not wait for a full disk.
    fn write(&mut self, lines: &[u8]) {
        if self.file.is_none() && self.reopen().is_err() {
            return;
        }
        if self.size > 0 && self.size + lines.len() as u64 > self.rotation.max_size && self.rotate().is_err() {
            self.file = None;
            return;
        }
        let written = self.file.as_mut().map(|file| file.write_all(lines));
        match written {
            Some(Ok(())) => self.size += lines.len() as u64,
            _ => self.file = None,
        }
    }

    /// Renames the current file to `<path>.<time>`, begins a new one, and removes the oldest beyond the limit.
    fn rotate(&mut self) -> io::Result<()> {
        // Sorts by time, and the nanoseconds keep two rotations in one second apart.
        let suffix = Timestamp::now().strftime("%Y%m%d-%H%M%S.%9f").to_string();
        let mut rotated = self.path.clone().into_os_string();
        rotated.push(".");
        rotated.push(suffix);
        fs::rename(&self.path, rotated)?;
        self.reopen()?;
        self.prune()
    }

    fn prune(&self) -> io::Result<()> {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Ok(()) };
        let mut prefix = name.to_os_string();
        prefix.push(".");
        let mut rotated: Vec<PathBuf> = fs::read_dir(directory)?
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()))
            .map(|entry| entry.path())
            .collect();
        rotated.sort();
        let keep = self.rotation.max_files.saturating_sub(1) as usize;
        for old in rotated.iter().take(rotated.len().saturating_sub(keep)) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

/// Cuts the output of one stream into log lines.
#[derive(Debug)]
pub(super) struct LineSplitter {
    stream: Stream,
    /// The beginning of a line whose end has not arrived yet; at most [`MAX_LINE`] bytes.
    pending: Vec<u8>,
}

impl LineSplitter {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Takes a piece of output and writes the lines that are complete.
    pub(super) fn push(&mut self, mut output: &[u8], log: &mut Log) {
        let mut lines = Vec::new();
        let time = format!("{:.9}", Timestamp::now());
        while !output.is_empty() {
            if lines.len() >= MAX_WRITE {
                log.write(&lines);
                lines.clear();
            }
            let room = MAX_LINE - self.pending.len();
            let newline = output.iter().take(room + 1).position(|byte| *byte == b'\n');
            match newline {
                Some(at) => {
                    self.emit(&time, 'F', &output[..at], &mut lines);
                    output = &output[at + 1..];
                }
                None if output.len() > room => {
                    // Only when more text follows: exactly MAX_LINE bytes and a newline are one full line.
                    self.emit(&time, 'P', &output[..room], &mut lines);
                    output = &output[room..];
                }
                None => {
                    self.pending.extend_from_slice(output);
                    break;
                }
            }
        }
        if !lines.is_empty() {
            log.write(&lines);
        }
    }

    /// Writes the beginning of a line that will never end: the stream has ended.
    pub(super) fn finish(&mut self, log: &mut Log) {
        if self.pending.is_empty() {
            return;
        }
        let mut lines = Vec::new();
        self.emit(&format!("{:.9}", Timestamp::now()), 'P', &[], &mut lines);
        log.write(&lines);
    }

    fn emit(&mut self, time: &str, tag: char, end: &[u8], lines: &mut Vec<u8>) {
        lines.extend_from_slice(format!("{time} {} {tag} ", self.stream.name()).as_bytes());
        lines.append(&mut self.pending);
        lines.extend_from_slice(end);
        lines.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn logged(pieces: &[&[u8]], finish: bool) -> Vec<(char, Vec<u8>)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, LogRotation::default()).unwrap();
        let mut splitter = LineSplitter::new(Stream::Stderr);
        for piece in pieces {
            splitter.push(piece, &mut log);
        }
        if finish {
            splitter.finish(&mut log);
        }
        let bytes = fs::read(&path).unwrap();
        bytes
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| {
                let mut fields = line.splitn(4, |byte| *byte == b' ');
                let time = String::from_utf8(fields.next().unwrap().to_vec()).unwrap();
                assert!(time.ends_with('Z') && time.len() == "2024-01-01T00:00:00.000000000Z".len(), "{time}");
                assert_eq!(fields.next().unwrap(), b"stderr");
                let tag = fields.next().unwrap()[0] as char;
                (tag, fields.next().unwrap().strip_suffix(b"\n").unwrap().to_vec())
            })
            .collect()
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        assert_eq!(
            logged(&[b"a\nb", b"c\n\n"], false),
            [('F', b"a".to_vec()), ('F', b"bc".to_vec()), ('F', b"".to_vec())]
        );
        assert_eq!(logged(&[b"no newline"], false), []);
        assert_eq!(logged(&[b"no ", b"newline"], true), [('P', b"no newline".to_vec())]);
        assert_eq!(logged(&[b"x\n"], true), [('F', b"x".to_vec())]);
    }

    #[test]
    fn long_lines_are_split_exactly() {
        let full = vec![b'x'; MAX_LINE];
        assert_eq!(logged(&[&full, b"\n"], true), [('F', full.clone())]);
        assert_eq!(logged(&[&full, b"y\n"], true), [('P', full.clone()), ('F', b"y".to_vec())]);
        let three = vec![b'z'; MAX_LINE * 2 + 5];
        let lines = logged(&[&three, b"\n"], true);
        assert_eq!(
            lines.iter().map(|(tag, text)| (*tag, text.len())).collect::<Vec<_>>(),
            [('P', MAX_LINE), ('P', MAX_LINE), ('F', 5)]
        );
    }

    #[test]
    fn nothing_is_lost_however_the_output_is_cut() {
        let mut state = 12345_u32;
        let mut random = move || {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
            (state >> 16) as usize
        };
        for _ in 0..50 {
            let output: Vec<u8> = (0..random() % 60_000)
                .map(|_| if random() % 9000 == 0 { b'\n' } else { (random() % 256) as u8 })
                .collect();
            let mut pieces = Vec::new();
            let mut rest = output.as_slice();
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at((1 + random() % 20_000).min(rest.len()));
                pieces.push(piece);
                rest = tail;
            }
            let mut put_together = Vec::new();
            for (tag, text) in logged(&pieces, true) {
                assert!(text.len() <= MAX_LINE);
                put_together.extend(text);
                if tag == 'F' {
                    put_together.push(b'\n');
                }
            }
            assert!(put_together == output, "output of {} bytes was changed", output.len());
        }
    }

    #[test]
    fn rotates_by_size_and_keeps_a_number_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, LogRotation { max_size: 200, max_files: 3 }).unwrap();
        let mut splitter = LineSplitter::new(Stream::Stdout);
        for number in 0..40 {
            splitter.push(format!("line number {number}\n").as_bytes(), &mut log);
        }
        let files: Vec<PathBuf> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() <= 200));
        assert!(fs::read_to_string(&path).unwrap().contains("line number 39"));
        // Somebody else renames the file: output goes on there until the log is opened again.
        fs::rename(&path, dir.path().join("moved")).unwrap();
        log.reopen().unwrap();
        splitter.push(b"after\n", &mut log);
        assert!(fs::read_to_string(&path).unwrap().ends_with("after\n"));
        // A directory that disappears loses output but nothing else.
        fs::remove_dir_all(dir.path()).unwrap();
        log.file = None;
        splitter.push(b"lost\n", &mut log);
        fs::create_dir(dir.path()).unwrap();
        splitter.push(b"back\n", &mut log);
        assert!(fs::read_to_string(&path).unwrap().ends_with("back\n"));
    }
}
