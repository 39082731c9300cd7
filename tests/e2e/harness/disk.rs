//! A disk that forgets, in a power cut, what was written but not flushed: for qemu ([`nbd`]) and for this machine ([`file`]).
//!
//! Real disks acknowledge writes from a cache, and lose, keep or tear any of them in a power cut until the host asks for a
//! flush. This one does it on purpose.

mod file;
mod nbd;

use super::PATIENCE;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

const SECTOR: usize = 512;

/// The disk. Its content is that of an image file, which it changes.
pub(crate) struct Disk {
    image: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    /// Bytes.
    size: u64,
    state: Mutex<State>,
    dark: Condvar,
}

struct State {
    /// What the machine sees.
    live: File,
    /// What would be left after a power cut, at least.
    stable: File,
    /// Offset and data of the writes that are not in `stable` yet, in order.
    unflushed: Vec<(u64, Vec<u8>)>,
    flushes: u64,
    /// After so many more writes the power fails.
    fuse: Option<u64>,
    /// Without power nothing is answered.
    powered: bool,
    /// How often it has failed.
    cuts: u64,
    /// Answers that nobody gets who lives; once they may be given, they are errors.
    held: Option<Vec<Box<dyn Send>>>,
}

/// What a machine wants of its disk.
enum Order {
    Read {
        length: usize,
    },
    Write {
        data: Vec<u8>,
        /// With what was written before, on to what stays.
        through: bool,
    },
    Flush,
}

enum Done {
    Answer(Vec<u8>),
    Dark,
}

/// What became of the writes that were not flushed at a power cut.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    pub(crate) kept: usize,
    pub(crate) torn: usize,
    pub(crate) lost: usize,
}

impl Disk {
    /// Takes the image `stable`, with further files beside it.
    pub(crate) fn new(stable: &Path) -> Self {
        let live = stable.with_extension("live");
        std::fs::copy(stable, &live).unwrap();
        let open = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
        let state = State {
            live: open(&live),
            stable: open(stable),
            unflushed: Vec::new(),
            flushes: 0,
            fuse: None,
            powered: true,
            cuts: 0,
            held: Some(Vec::new()),
        };
        let size = std::fs::metadata(stable).unwrap().len();
        let shared = Arc::new(Shared { size, state: Mutex::new(state), dark: Condvar::new() });
        Self { image: stable.into(), shared }
    }

    /// The same, served to qemu.
    pub(crate) fn serve(stable: &Path) -> Self {
        let disk = Self::new(stable);
        nbd::listen(&disk.socket(), disk.shared.clone());
        disk
    }

    fn socket(&self) -> PathBuf {
        self.image.with_extension("nbd")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    /// How qemu's `-blockdev` reaches it.
    pub(crate) fn blockdev(&self) -> String {
        format!("driver=nbd,server.type=unix,server.path={}", self.socket().display())
    }

    /// How often the machine has flushed it.
    pub(crate) fn flushes(&self) -> u64 {
        self.state().flushes
    }

    /// Lets the power fail once the machine has written so many times more (at least once): nothing is answered from then on.
    pub(crate) fn arm(&self, writes: u64) {
        self.state().fuse = Some(writes);
    }

    /// Takes that back; tells whether it was in time.
    pub(crate) fn disarm(&self) -> bool {
        let mut state = self.state();
        state.fuse = None;
        state.powered
    }

    /// Whether the power has failed.
    pub(crate) fn is_dark(&self) -> bool {
        !self.state().powered
    }

    /// Waits so long for the power to fail; tells whether it has.
    pub(crate) fn await_dark(&self, patience: Duration) -> bool {
        let waited = self.shared.dark.wait_timeout_while(self.state(), patience, |state| state.powered).unwrap();
        !waited.0.powered
    }

    /// Lets the power fail, if it has not, and chance decide what is left of what was not flushed.
    pub(crate) fn cut(&self, random: &mut Random) -> Losses {
        let mut state = self.state();
        (state.powered, state.fuse) = (false, None);
        state.cuts += 1;
        state.forget(random)
    }

    /// Waits until the machine has written so many times more (at least once), and lets the power fail at that very moment: of
    /// what was not flushed only what chance wills is left.
    pub(crate) fn fail_after(&self, writes: u64, random: &mut Random) -> Losses {
        self.arm(writes);
        assert!(self.await_dark(PATIENCE), "the machine does not write");
        self.cut(random)
    }

    /// Gives the power back.
    pub(crate) fn restore_power(&self) {
        let mut state = self.state();
        (state.powered, state.held) = (true, Some(Vec::new()));
    }
}

impl Shared {
    fn execute(&self, offset: u64, order: Order) -> io::Result<Done> {
        let mut state = self.state.lock().unwrap();
        let length = match &order {
            Order::Read { length } => *length,
            Order::Write { data, .. } => data.len(),
            Order::Flush => 0,
        };
        if offset.checked_add(length as u64).is_none_or(|end| end > self.size) {
            return Err(ErrorKind::InvalidInput.into());
        }
        let answer = if state.powered { state.execute(offset, order)? } else { Vec::new() };
        if state.powered {
            return Ok(Done::Answer(answer));
        }
        self.dark.notify_all();
        Ok(Done::Dark)
    }
}

impl State {
    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        for (offset, data) in std::mem::take(&mut self.unflushed) {
            self.stable.write_all_at(&data, offset)?;
        }
        Ok(())
    }

    /// Does what is asked; gives the data that was asked for.
    fn execute(&mut self, offset: u64, order: Order) -> io::Result<Vec<u8>> {
        match order {
            Order::Read { length } => {
                let mut read = vec![0; length];
                self.live.read_exact_at(&mut read, offset)?;
                return Ok(read);
            }
            Order::Write { data, through } => {
                self.live.write_all_at(&data, offset)?;
                self.unflushed.push((offset, data));
                self.fuse = self.fuse.map(|writes| writes.saturating_sub(1));
                if self.fuse == Some(0) {
                    (self.fuse, self.powered) = (None, false);
                } else if through {
                    self.flush()?;
                }
            }
            Order::Flush => self.flush()?,
        }
        Ok(Vec::new())
    }

    /// Keeps, tears or loses each write that was not flushed.
    fn forget(&mut self, random: &mut Random) -> Losses {
        let mut losses = Losses::default();
        let unflushed = std::mem::take(&mut self.unflushed);
        for (offset, data) in &unflushed {
            let kept: &mut dyn FnMut(&mut Random) -> bool = match random.below(3) {
                0 => {
                    losses.lost += 1;
                    continue;
                }
                1 => {
                    losses.kept += 1;
                    &mut |_| true
                }
                _ => {
                    losses.torn += 1;
                    &mut |random| random.below(2) == 0
                }
            };
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                if kept(random) {
                    self.stable.write_all_at(sector, offset + (index * SECTOR) as u64).unwrap();
                }
            }
        }
        for (offset, data) in unflushed {
            let mut left = vec![0; data.len()];
            self.stable.read_exact_at(&mut left, offset).unwrap();
            self.live.write_all_at(&left, offset).unwrap();
        }
        losses
    }
}

/// Numbers of chance that a seed repeats (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    /// Seeded by `EDGE_E2E_SEED`, else by the clock; says which, so that a failure can be repeated as far as timing lets it.
    pub(crate) fn new() -> Self {
        let clock = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = std::env::var("EDGE_E2E_SEED").map_or_else(|_| clock(), |text| text.parse().unwrap());
        eprintln!("EDGE_E2E_SEED={seed}");
        Self(seed.max(1))
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}
