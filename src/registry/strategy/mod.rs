//! What a resource does differently from the others: plain functions in a file named after it.
//!
//! In: the submitted object (defaults filled in) and, for updates, the live one. Out: the object as it is stored, or field
//! errors in Kubernetes' wording. The generic store calls them in the order prepare, validate.

use crate::options::Propagation;
use edge_api::Object;
use edge_api::field::ErrorList;

/// How names of a resource are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// DNS subdomain (most resources).
    Subdomain,
    /// DNS label.
    Label,
    /// DNS label that begins with a letter (services).
    Label1035,
    /// Anything that fits into a path (RBAC).
    PathSegment,
}

/// What the API server allocates for a resource besides the object itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Nothing.
    None,
    /// Cluster addresses and node ports.
    Service,
}

/// The hooks of a resource. Rows override [`Strategy::DEFAULT`].
#[derive(Debug)]
pub struct Strategy {
    /// Shape of names.
    pub name: NameRule,
    /// Whether `metadata.generation` counts changes of the desired state.
    pub generation: bool,
    /// Whether a submitted status survives creation (nodes).
    pub keeps_status_on_create: bool,
    /// Whether PUT to an absent name creates.
    pub create_on_update: bool,
    /// Whether PUT without a resourceVersion is allowed.
    pub unconditional_update: bool,
    /// Completes a new object.
    pub prepare_create: fn(&mut Object),
    /// Completes a changed object; the second is the live one.
    pub prepare_update: fn(&mut Object, &Object),
    /// Judges the object as it would be stored.
    pub validate: fn(&Object, &mut ErrorList),
    /// Judges the change from the live object (second).
    pub validate_update: fn(&Object, &Object, &mut ErrorList),
    /// The grace period in seconds that a deletion gets, given what was asked for; `None`: no graceful deletion.
    pub grace_period: Option<fn(&Object, Option<i64>) -> i64>,
    /// Whether something keeps a deleted object from going.
    pub is_held: fn(&Object) -> bool,
    /// What a deletion that is not at its end leaves on the object.
    pub prepare_delete: fn(&mut Object),
    /// What becomes of dependents when the client does not say.
    pub propagation: Propagation,
    /// What is allocated along with the object.
    pub allocation: Allocation,
}

impl Strategy {
    /// Nothing special.
    pub const DEFAULT: Self = Self {
        name: NameRule::Subdomain,
        generation: false,
        keeps_status_on_create: false,
        create_on_update: false,
        unconditional_update: true,
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        validate: |_, _| {},
        validate_update: |_, _, _| {},
        grace_period: None,
        is_held: |o| o.finalizers().next().is_some(),
        prepare_delete: |_| {},
        propagation: Propagation::Background,
        allocation: Allocation::None,
    };
}

/// The row of a resource that does nothing special.
pub static DEFAULT: Strategy = Strategy::DEFAULT;
