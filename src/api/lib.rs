//! The pure vocabulary of the Kubernetes API: objects, names, selectors, quantities, `Status`.
//!
//! No IO, no async. Everything here works on plain values, so every room can use it and test it in microseconds.

pub mod cron;
pub mod duration;
pub mod field;
pub mod gvk;
pub mod jsonpath;
pub mod meta;
pub mod names;
pub mod object;
pub mod pattern;
pub mod quantity;
pub mod quota;
pub mod selector;
pub mod status;
pub mod user;

pub use gvk::{GroupKind, GroupResource, GroupVersion, GroupVersionKind, GroupVersionResource};
pub use object::Object;
pub use quantity::Quantity;
pub use status::{Reason, Status};
pub use user::UserInfo;
