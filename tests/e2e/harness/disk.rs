//! A disk that forgets, in a power cut, what was written but not flushed: an NBD server on a Unix socket, for qemu.
//!
//! Real disks acknowledge writes from a cache, and lose, keep or tear any of them in a power cut until the host asks for a
//! flush. This one does it on purpose. Protocol: "The NBD protocol" (fixed newstyle negotiation, simple replies).

use super::PATIENCE;
use std::fs::File;
use std::io::{self, Error, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

const SECTOR: usize = 512;

// Negotiation.
const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE_NO_ZEROES: u16 = 1 | 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
const INFO_EXPORT: u16 = 0;

// Transmission.
const HAS_FLAGS_FLUSH_FUA: u16 = 1 | 1 << 2 | 1 << 3;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const FORCE_UNIT_ACCESS: u16 = 1;

/// The disk. Its content is that of an image file, which it changes.
pub(crate) struct Disk {
    socket: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    dark: Condvar,
}

struct State {
    /// What the machine sees.
    live: File,
    /// What would be left after a power cut, at least.
    stable: File,
    size: u64,
    /// Offset and data of the writes that are not in `stable` yet, in order.
    unflushed: Vec<(u64, Vec<u8>)>,
    flushes: u64,
    /// After so many more writes the power fails.
    fuse: Option<u64>,
    /// Without power nothing is answered.
    powered: bool,
}

/// What became of the writes that were not flushed at a power cut.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    pub(crate) kept: usize,
    pub(crate) torn: usize,
    pub(crate) lost: usize,
}

impl Disk {
    /// Serves the image `stable`, with `live` and the socket as further files in the same directory.
    pub(crate) fn serve(stable: &Path) -> Self {
        let live = stable.with_extension("live");
        std::fs::copy(stable, &live).unwrap();
        let open = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
        let state = State {
            size: std::fs::metadata(stable).unwrap().len(),
            live: open(&live),
            stable: open(stable),
            unflushed: Vec::new(),
            flushes: 0,
            fuse: None,
            powered: true,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), dark: Condvar::new() });
        let disk = Self { socket: stable.with_extension("nbd"), shared: shared.clone() };
        let listener = UnixListener::bind(&disk.socket).unwrap();
        // ends with the process of the test
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                // qemu being killed is an error here, and what the disk is for
                let _ = serve_connection(connection, &shared);
            }
        });
        disk
    }

    /// How qemu's `-blockdev` reaches it.
    pub(crate) fn blockdev(&self) -> String {
        format!("driver=nbd,server.type=unix,server.path={}", self.socket.display())
    }

    /// How often the machine has flushed it.
    pub(crate) fn flushes(&self) -> u64 {
        self.shared.state.lock().unwrap().flushes
    }

    /// Waits until the machine has written so many times more (at least once), and lets the power fail at that very moment:
    /// nothing is answered from then on, and of what was not flushed only what chance wills is left.
    pub(crate) fn fail_after(&self, writes: u64, random: &mut Random) -> Losses {
        let mut state = self.shared.state.lock().unwrap();
        state.fuse = Some(writes);
        let (mut state, late) = self.shared.dark.wait_timeout_while(state, PATIENCE, |state| state.powered).unwrap();
        assert!(!late.timed_out(), "the machine does not write");
        let mut losses = Losses::default();
        let unflushed = std::mem::take(&mut state.unflushed);
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
                    state.stable.write_all_at(sector, offset + (index * SECTOR) as u64).unwrap();
                }
            }
        }
        for (offset, data) in unflushed {
            let mut left = vec![0; data.len()];
            state.stable.read_exact_at(&mut left, offset).unwrap();
            state.live.write_all_at(&left, offset).unwrap();
        }
        losses
    }

    /// Gives the power back.
    pub(crate) fn restore_power(&self) {
        self.shared.state.lock().unwrap().powered = true;
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
    fn execute(&mut self, kind: u16, flags: u16, offset: u64, length: usize, data: Vec<u8>) -> io::Result<Vec<u8>> {
        if !self.powered {
            return Ok(Vec::new());
        }
        if offset.checked_add(length as u64).is_none_or(|end| end > self.size) {
            return Err(ErrorKind::InvalidInput.into());
        }
        match kind {
            READ => {
                let mut read = vec![0; length];
                self.live.read_exact_at(&mut read, offset)?;
                return Ok(read);
            }
            WRITE => {
                self.live.write_all_at(&data, offset)?;
                self.unflushed.push((offset, data));
                self.fuse = self.fuse.map(|writes| writes.saturating_sub(1));
                if self.fuse == Some(0) {
                    (self.fuse, self.powered) = (None, false);
                } else if flags & FORCE_UNIT_ACCESS != 0 {
                    self.flush()?;
                }
            }
            FLUSH => self.flush()?,
            other => return Err(Error::other(format!("command {other}"))),
        }
        Ok(Vec::new())
    }
}

fn serve_connection(mut connection: UnixStream, shared: &Shared) -> io::Result<()> {
    let size = shared.state.lock().unwrap().size;
    negotiate(&mut connection, size)?;
    loop {
        let request: [u8; 28] = receive(&mut connection)?;
        let (header, offset, length) = (&request[..16], be64(&request[16..24]), be32(&request[24..]) as usize);
        if be32(&header[..4]) != REQUEST {
            return Err(ErrorKind::InvalidData.into());
        }
        let (flags, kind) = (be16(&header[4..6]), be16(&header[6..8]));
        if kind == DISCONNECT {
            return Ok(());
        }
        let mut data = vec![0; if kind == WRITE { length } else { 0 }];
        connection.read_exact(&mut data)?;
        let mut state = shared.state.lock().unwrap();
        let executed = state.execute(kind, flags, offset, length, data);
        if !state.powered {
            shared.dark.notify_all();
            drop(state);
            // an error would be an answer, too
            return io::copy(&mut connection, &mut io::sink()).map(drop);
        }
        drop(state);
        let read = executed?;
        let mut reply = SIMPLE_REPLY.to_be_bytes().to_vec();
        reply.extend([0; 4]);
        reply.extend(&header[8..16]);
        reply.extend(read);
        connection.write_all(&reply)?;
    }
}

/// Answers options until the client begins, as it does with OPTION_GO.
fn negotiate(connection: &mut UnixStream, size: u64) -> io::Result<()> {
    let mut greeting = [NBDMAGIC.to_be_bytes(), IHAVEOPT.to_be_bytes()].concat();
    greeting.extend(FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes());
    connection.write_all(&greeting)?;
    let _client_flags: [u8; 4] = receive(connection)?;
    loop {
        let option: [u8; 16] = receive(connection)?;
        let kind = be32(&option[8..12]);
        io::copy(&mut Read::take(&mut *connection, u64::from(be32(&option[12..]))), &mut io::sink())?;
        let mut reply = |result: u32, data: &[u8]| {
            let mut bytes = OPTION_REPLY.to_be_bytes().to_vec();
            bytes.extend([kind.to_be_bytes(), result.to_be_bytes(), (data.len() as u32).to_be_bytes()].concat());
            bytes.extend(data);
            connection.write_all(&bytes)
        };
        if kind != OPTION_GO {
            reply(REPLY_UNSUPPORTED, &[])?;
            continue;
        }
        let mut export = INFO_EXPORT.to_be_bytes().to_vec();
        export.extend(size.to_be_bytes());
        export.extend(HAS_FLAGS_FLUSH_FUA.to_be_bytes());
        reply(REPLY_INFO, &export)?;
        return reply(REPLY_ACK, &[]);
    }
}

fn receive<const N: usize>(connection: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    connection.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(bytes.try_into().unwrap())
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
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
