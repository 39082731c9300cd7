//! SPDY/3.1, as far as Kubernetes speaks it: streams opened by the client, data both ways, no server push.
//!
//! [`frame`] turns bytes into events and back without any IO, [`headers`] (de)compresses header blocks, and [`io`]
//! connects them to a byte stream.
//!
//! There is no SPDY flow control here, on purpose: the library behind every Kubernetes client (spdystream) neither
//! honours windows nor ever sends a `WINDOW_UPDATE`, so a server that counted windows would stop after 64 KiB. TCP's own
//! flow control is what slows a peer down, for all streams of a connection together.

mod frame;
mod headers;
mod io;

#[cfg(test)]
pub(crate) use frame::Encoder;
pub(crate) use frame::{Event, StreamId};
pub(crate) use headers::Headers;
pub(crate) use io::{EventReader, write_frames};
