//! The seam to admission control: the registry calls it at two points of every write, the API server implements it.

use async_trait::async_trait;
use edge_api::{Object, Status, UserInfo};

use crate::options::DeleteOptions;
use crate::resource::ResourceInfo;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new object (or an object submitted to a subresource such as `binding` or `eviction`).
    Create,
    /// A change.
    Update,
    /// A deletion.
    Delete,
    /// A connection to something behind an object (`exec`, `attach`, `portforward`, `proxy`); nothing is written.
    Connect,
}

/// The facts of a write.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// What is being done.
    pub operation: Operation,
    /// The row of the resource.
    pub info: &'a ResourceInfo,
    /// Empty for the resource itself.
    pub subresource: &'a str,
    /// Empty for cluster-scoped resources.
    pub namespace: &'a str,
    /// Empty while `generateName` has not made one.
    pub name: &'a str,
    /// Who does it.
    pub user: &'a UserInfo,
    /// Whether nothing will be stored.
    pub dry_run: bool,
    /// The object as stored, for updates and deletions.
    pub old: Option<&'a Object>,
    /// Name under which changed fields are recorded.
    pub field_manager: &'a str,
    /// What was asked for, for deletions.
    pub deletion: Option<&'a DeleteOptions>,
}

/// Admission control.
///
/// For updates both are called again with each attempt, as the live object may have changed in between.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Changes the object, or refuses it; before defaulting and validation. Not called for deletions.
    ///
    /// # Errors
    /// The answer to the client.
    async fn mutate(&self, attributes: &Attributes<'_>, object: &mut Object) -> Result<(), Status>;

    /// Refuses the object as it would be stored; `None` for deletions.
    ///
    /// # Errors
    /// The answer to the client.
    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Object>) -> Result<(), Status>;
}

/// Admission that lets everything pass, for tools and tests that work below the API server.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdmitAll;

#[async_trait]
impl Admission for AdmitAll {
    async fn mutate(&self, _: &Attributes<'_>, _: &mut Object) -> Result<(), Status> {
        Ok(())
    }

    async fn validate(&self, _: &Attributes<'_>, _: Option<&Object>) -> Result<(), Status> {
        Ok(())
    }
}
