//! The disk as an NBD server on a Unix socket, for qemu. Protocol: "The NBD protocol" (fixed newstyle negotiation, simple replies).

use super::{Done, Order, Shared};
use std::io::{self, Error, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

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

/// Serves until the process of the test ends.
pub(super) fn listen(socket: &Path, shared: Arc<Shared>) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            // qemu being killed is an error here, and what the disk is for
            let _ = serve_connection(connection, &shared);
        }
    });
}

fn serve_connection(mut connection: UnixStream, shared: &Shared) -> io::Result<()> {
    let size = shared.size;
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
        let order = match kind {
            READ => Order::Read { length },
            WRITE => Order::Write { data, through: flags & FORCE_UNIT_ACCESS != 0 },
            FLUSH => Order::Flush,
            other => return Err(Error::other(format!("command {other}"))),
        };
        let read = match shared.execute(offset, order)? {
            Done::Answer(read) => read,
            // an error would be an answer, too
            Done::Dark => return io::copy(&mut connection, &mut io::sink()).map(drop),
        };
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
