//! Many programs of many pods in one process that may nothing.
//!
//! The process ([`host`]) has no privileges, no network and no files of its own: the code of a program, the root of its files, its
//! pipes and its listening sockets come as descriptors from whoever asks it to run one (the pod's monitor, which lives in the
//! pod's network and opens the sockets there, also those for the requests that the program makes). One connection is one program; when
//! it is closed the program ends. When nobody has had a connection for a while the process ends.
//!
//! Each program's memory is limited by the engine's allocator and its processor time by pauses; both are counted for each
//! program. What separates pods is the engine alone: no kernel boundary is between them.

mod asker;
mod connection;
mod host;
mod program;
mod protocol;

pub use host::{Capacity, LINGER, host};
pub use protocol::{
    Descriptors, DialFailure, Event, Request, Spec, Usage, read_event, send_dialled, send_listener, send_request,
    send_start,
};
