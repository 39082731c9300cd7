//! The patch types other than apply, as pure functions over JSON values.
//!
//! In: the live object and a patch. Out: the patched object, not yet validated or defaulted. Which one runs is the request's
//! content type:
//! - [`json`]: `application/json-patch+json` (RFC 6902),
//! - [`merge`]: `application/merge-patch+json` (RFC 7386),
//! - [`strategic`]: `application/strategic-merge-patch+json`, for built-in types only.
//!
//! Every error converts into the `Status` that kube-apiserver answers with.

pub mod json;
pub mod merge;
pub mod strategic;

pub use json::{JsonPatch, JsonPatchError};
pub use merge::MergePatchError;
pub use strategic::StrategicPatchError;

use edge_api::status::{StatusCause, StatusDetails};
use edge_api::{Reason, Status};

/// 422 for a patch that is well formed but does not fit the object; the cause says where.
fn unprocessable(error: &impl std::fmt::Display) -> Status {
    let mut status =
        Status::new(422, Reason::Invalid, "the server rejected our request due to an error in our request");
    let cause = StatusCause { message: error.to_string(), ..StatusCause::default() };
    status.details = Some(Box::new(StatusDetails { causes: vec![cause], ..StatusDetails::default() }));
    status
}
