//! How things are written into the database: records of keys, and facts about the store itself.
//!
//! A record is `create revision | modification revision | CRC-32 of key and all else | value`; a fact is
//! `number | CRC-32 of its name and the number`. Integers are little-endian, revisions and numbers 64-bit.

use crate::types::{KeyValue, Revision};
use bytes::Bytes;

/// Bytes of a record before its value.
pub(super) const HEADER: usize = 20;

/// The name of the fact that says in which format the store is; all formats have it.
pub(super) const FORMAT: &[u8] = b"format";
/// The name of the fact that says the newest durable revision.
pub(super) const REVISION: &[u8] = b"revision";
/// The name of the fact that says up to which revision none comes again after a crash.
pub(super) const RESERVED: &[u8] = b"reserved";

/// A record before its value.
pub(super) fn header(kv: &KeyValue) -> [u8; HEADER] {
    let (create, modified) = (kv.create_revision.to_le_bytes(), kv.mod_revision.to_le_bytes());
    let sum = checksum([&kv.key, &create, &modified, &kv.value]);
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(&create);
    out[8..16].copy_from_slice(&modified);
    out[16..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// The modification revision of a record; `None` when it is damaged.
pub(super) fn verify(key: &[u8], record: &[u8]) -> Option<Revision> {
    parse(key, record).map(|(_, modified, _)| modified)
}

/// What a record says; `None` when it is damaged.
pub(super) fn decode(key: &[u8], record: &[u8]) -> Option<KeyValue> {
    let (create_revision, mod_revision, value) = parse(key, record)?;
    let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    Some(KeyValue { key, value, create_revision, mod_revision })
}

fn parse<'r>(key: &[u8], record: &'r [u8]) -> Option<(Revision, Revision, &'r [u8])> {
    let (create, rest) = record.split_first_chunk::<8>()?;
    let (modified, rest) = rest.split_first_chunk::<8>()?;
    let (sum, value) = rest.split_first_chunk::<4>()?;
    let right = checksum([key, create, modified, value]).to_le_bytes() == *sum;
    right.then(|| (u64::from_le_bytes(*create), u64::from_le_bytes(*modified), value))
}

/// A fact.
pub(super) fn fact(name: &[u8], number: u64) -> [u8; 12] {
    let number = number.to_le_bytes();
    let sum = checksum([name, &number]).to_le_bytes();
    let mut out = [0; 12];
    out[..8].copy_from_slice(&number);
    out[8..].copy_from_slice(&sum);
    out
}

/// What a fact says; `None` when it is damaged.
pub(super) fn read_fact(name: &[u8], value: &[u8]) -> Option<u64> {
    let (number, sum) = value.split_first_chunk::<8>()?;
    (checksum([name, number]).to_le_bytes() == sum).then(|| u64::from_le_bytes(*number))
}

fn checksum<const N: usize>(parts: [&[u8]; N]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.into_iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}
