//! Kubernetes' flavour of the Common Expression Language: `object.spec.replicas <= 5`.
//!
//! In: the text of an expression and the variables that it may use ([`Env`]). Out: a [`Program`], compiled once and evaluated often
//! over JSON that it borrows. Pure: no IO, no clock. What an expression may cost is bounded twice, in depth when it is compiled and by a
//! [`Budget`] when it runs, so that nobody's expression stops the server.
//!
//! The parser is our own: crates.io's `cel` brings the runtime of ANTLR, has no cost limit, and no optional types of Kubernetes' kind.

pub mod admission;
mod ast;
mod budget;
mod check;
pub mod devices;
mod env;
mod error;
mod estimate;
mod eval;
mod fold;
mod functions;
mod lexer;
pub mod openapi;
mod parse;
mod program;
pub mod rules;
mod types;
mod value;

pub use budget::{Budget, PER_CALL, PER_REQUEST};
pub use env::Env;
pub use error::{CompileError, Error, Issue};
pub use estimate::{Size, Sizes, Within};
pub use functions::authorizer::{Authorizer, Check, Decision};
pub use program::{Program, Variables};
pub use types::{Field, ObjectType, Type, escape};
pub use value::{Key, List, Map, Opaque, Text, Value};
