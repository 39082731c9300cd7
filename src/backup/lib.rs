//! Backups of a server: one file that holds all that a cluster is, and from which it comes back on this machine or another.
//!
//! In: a data directory whose server may be running. Out: a file, and from the file the directory again. What is in it: the store,
//! authorities, keys, tokens and the watched manifests; that is all below `server`, and what the server's own node is known by. Not in it: what nodes have (images, containers,
//! volumes), and what the store keeps in memory only (events, leases).
//!
//! The file is a gzip-compressed tar archive, so that it can be looked at and taken apart without this program. Its first member,
//! `backup.json`, is the [`Manifest`], with the SHA-256 of every other member. Whoever has it is the administrator of the cluster: its mode is
//! 0600.

mod create;
mod error;
mod kept;
mod manifest;
mod read;
mod restore;
mod work;

pub use create::{About, create};
pub use error::{Error, Result};
pub use kept::{file_name, retain};
pub use manifest::{FORMAT, Manifest, Member};
pub use read::verify;
pub use restore::{Restored, complete, restore};

/// The directory that is backed up, in the data directory.
const SERVER: &str = "server";
/// The directory of the store in it.
const STORE: &str = "db";
/// The file of the store in that.
const DATA: &str = "data.mdb";
/// What the server's own node is known by, in the data directory: without it, its name would be somebody else's.
const NODE_PASSWORD: &str = "agent/tls/node-password";
/// The first member of a backup.
const MANIFEST: &str = "backup.json";
