//! The patch types on an object: which engine runs, and what its result must be.

use super::Context;
use crate::decode;
use crate::negotiate::{Encoding, PatchKind};
use edge_api::{GroupKind, GroupVersionKind, Object, Status};
use edge_schema::patch::{JsonPatch, merge, strategic};
use edge_schema::validate::{self, DecodeError, FieldValidation};
use edge_schema::{Document, TypeRef};
use parking_lot::Mutex;
use serde_json::Value;

/// A patch other than apply: read once, applied as often as the object changes under it.
pub(super) struct Patch<'a> {
    engine: Engine,
    gvk: &'a GroupVersionKind,
    ty: Option<TypeRef<'a>>,
    mode: FieldValidation,
    duplicates: Vec<String>,
    /// Of the latest application.
    warnings: Mutex<Vec<String>>,
}

enum Engine {
    Json(JsonPatch),
    Merge(Value),
    Strategic(Value),
}

impl<'a> Patch<'a> {
    /// Reads a patch of `kind` for an object of kind `gvk`.
    ///
    /// # Errors
    /// 400 or 422 for a malformed patch, 415 for a strategic one on a type without merge rules.
    pub(super) fn parse(
        kind: PatchKind,
        body: &[u8],
        gvk: &'a GroupVersionKind,
        ty: Option<TypeRef<'a>>,
        mode: FieldValidation,
    ) -> Result<Self, Status> {
        let Document { value, duplicates } = decode::tree(Encoding::Json, body, gvk)?;
        let engine = match kind {
            PatchKind::Json => Engine::Json(JsonPatch::parse(&value)?),
            PatchKind::Strategic if ty.is_some() => Engine::Strategic(value),
            PatchKind::Strategic => return Err(Self::not_strategic()),
            _ => Engine::Merge(value),
        };
        Ok(Self { engine, gvk, ty, mode, duplicates, warnings: Mutex::default() })
    }

    /// 415: the type has no merge rules, as that of a custom resource.
    pub(super) fn not_strategic() -> Status {
        Status::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        )
    }

    /// The object that `live` becomes.
    ///
    /// # Errors
    /// Where the patch does not fit the object, or the result not its type.
    pub(super) fn apply(&self, live: &Object) -> Result<Object, Status> {
        let tree = live.clone().into_value();
        let mut patched = match (&self.engine, self.ty) {
            (Engine::Json(patch), _) => patch.apply(tree)?,
            (Engine::Merge(patch), _) => merge::apply(tree, patch)?,
            (Engine::Strategic(patch), Some(ty)) => strategic::apply(ty, tree, patch)?,
            (Engine::Strategic(_), None) => return Err(Status::internal("strategic merge patch without a type")),
        };
        if let Some(ty) = self.ty {
            let mut reports: Vec<String> =
                self.duplicates.iter().map(|path| format!("duplicate field \"{path}\"")).collect();
            let unknown = validate::conform(ty, &mut patched).map_err(|e| decode::decode_error(self.gvk, &e))?;
            reports.extend(unknown);
            match self.mode {
                FieldValidation::Strict if !reports.is_empty() => {
                    return Err(decode::decode_error(self.gvk, &DecodeError::Strict(reports)));
                }
                FieldValidation::Ignore => {}
                _ => *self.warnings.lock() = reports,
            }
        }
        let mut object =
            Object::from_value(patched).map_err(|_| Status::bad_request("the patch does not leave an object"))?;
        object.set_gvk(self.gvk);
        Ok(object)
    }

    /// What the client should be warned of.
    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings.into_inner()
    }
}

/// The configuration of a server-side apply.
///
/// # Errors
/// 400 when it is malformed, names another kind, or no field manager is given.
pub(super) fn apply_configuration(
    context: &Context<'_>,
    body: &[u8],
    gvk: &GroupVersionKind,
    ty: Option<TypeRef<'_>>,
    mode: FieldValidation,
) -> Result<decode::Decoded, Status> {
    if context.query.get("fieldManager").is_none_or(str::is_empty) {
        let mut errors = edge_api::field::ErrorList::new();
        errors.required(&edge_api::field::Path::new("fieldManager"), "is required for apply patch");
        return Err(Status::invalid(&options_kind(), "", &errors));
    }
    decode::object(Encoding::Yaml, body, gvk, ty, mode)
}

/// The kind of the options of a patch, for the errors about them.
pub(super) fn options_kind() -> GroupKind {
    GroupKind { group: "meta.k8s.io".into(), kind: "PatchOptions".into() }
}
