//! Writes, the same for every resource: what they have in common.
//!
//! A write is prepared (admission, defaults, strategy, validation) and then committed against the revision it was prepared
//! from. Who loses a race waits until the winner's state is visible and prepares again.

mod create;
mod delete;
mod evict;
mod update;

use crate::admission::{Attributes, Operation};
use crate::allocate::Claim;
use crate::hub::{CLAIMS, ResourceHub};
use crate::options::{Target, WriteOptions};
use crate::registry::Registry;
use crate::resource::{ResourceInfo, StorageClass};
use crate::stored::Stored;
use crate::strategy::Allocation;
use bytes::Bytes;
use edge_api::field::ErrorList;
use edge_api::{Object, Status};
use edge_schema::apply::{Writer, update_managed_fields};
use edge_schema::default;
use edge_storage::{Class, Compare, EtcdError, Op, Outcome, Transaction};
use serde_json::Value;

/// What is to happen to one object.
enum Change<'o> {
    /// It becomes this, in the stored version.
    Put(&'o Object),
    Delete,
}

/// What happened.
enum Committed {
    /// It is as asked; the object as it is now, or was last.
    Done(Stored),
    /// Somebody else was faster; what he did is visible now.
    Lost,
}

impl Registry {
    /// Writes one object, if it is still as `live` (`None`: absent), and returns when that is visible. A dry run returns
    /// what would be.
    async fn commit(
        &self,
        target: &Target<'_>,
        hub: &ResourceHub,
        live: Option<&Stored>,
        change: Change<'_>,
        dry_run: bool,
    ) -> Result<Committed, Status> {
        self.commit_claim(target, hub, live, change, dry_run, None).await
    }

    /// The same for an object for which something was claimed, when `claims` ([`crate::hub::Hub::claims`]) was the newest
    /// claim that was known.
    async fn commit_claim(
        &self,
        target: &Target<'_>,
        hub: &ResourceHub,
        live: Option<&Stored>,
        change: Change<'_>,
        dry_run: bool,
        claims: Option<u64>,
    ) -> Result<Committed, Status> {
        let key = crate::read::object_key(target);
        let expected = live.map_or(0, Stored::resource_version);
        let json = match change {
            Change::Put(object) => Some(stored_json(object)),
            Change::Delete => None,
        };
        if dry_run {
            return Ok(Committed::Done(match (&json, live) {
                (Some(json), _) => Stored::new(&key, json, expected, hub.paths()).map_err(Status::internal)?,
                (None, Some(live)) => live.clone(),
                (None, None) => return Ok(Committed::Lost),
            }));
        }
        let store_key = Bytes::from(format!("{}{key}", target.info.key_prefix()));
        let mut transaction = match &json {
            Some(json) => Transaction::put(store_key, json.clone(), class(target.info), expected),
            None => Transaction::delete(store_key, expected),
        };
        if let Some(claims) = claims.filter(|_| self.storage.is_shared()) {
            // nobody has claimed anything that this claim did not know of
            let key = Bytes::from_static(CLAIMS.as_bytes());
            transaction.compares.push(Compare { key: key.clone(), mod_revision: claims });
            transaction.ops.push(Op::Put { key, value: Bytes::new(), class: Class::Durable });
        }
        match self.storage.transact(transaction).await.map_err(storage_status)? {
            Outcome::Committed(revision) => {
                self.hub.settled(revision).await;
                let stored = match (hub.get(&key).filter(|s| s.resource_version() == revision), &json, live) {
                    (Some(stored), ..) => stored,
                    // somebody else has changed it again already
                    (None, Some(json), _) => {
                        Stored::new(&key, json, revision, hub.paths()).map_err(Status::internal)?
                    }
                    (None, None, Some(live)) => live.at(revision),
                    (None, None, None) => return Ok(Committed::Lost),
                };
                Ok(Committed::Done(stored))
            }
            Outcome::Failed { current } => {
                let newest = current.iter().flatten().map(|kv| kv.mod_revision).max();
                // a key that is gone went at some revision up to the newest
                self.hub.settled(newest.unwrap_or_else(|| self.storage.revision())).await;
                Ok(Committed::Lost)
            }
        }
    }

    /// Defaults, mutating admission, and defaults for what that added.
    async fn mutate(&self, attributes: &Attributes<'_>, object: &mut Object) -> Result<(), Status> {
        fill_defaults(attributes.info, object);
        if let Some(admission) = self.admission.get() {
            admission.mutate(attributes, object).await?;
            fill_defaults(attributes.info, object);
        }
        Ok(())
    }

    /// Both kinds of admission for what is submitted to a subresource and is no object of the resource itself.
    async fn admit_submitted(&self, attributes: &Attributes<'_>, submitted: &mut Object) -> Result<(), Status> {
        if let Some(admission) = self.admission.get() {
            admission.mutate(attributes, submitted).await?;
            admission.validate(attributes, Some(submitted)).await?;
        }
        Ok(())
    }

    async fn validate_admission(&self, attributes: &Attributes<'_>, object: Option<&Object>) -> Result<(), Status> {
        match self.admission.get() {
            Some(admission) => admission.validate(attributes, object).await,
            None => Ok(()),
        }
    }

    /// Takes what the object needs besides itself. The claim is held until the write is visible.
    fn allocate(&self, info: &ResourceInfo, object: &mut Object, live: Option<&Object>) -> Result<Claim<'_>, Status> {
        match info.strategy.allocation {
            Allocation::None => Ok(Claim::default()),
            Allocation::Service => {
                let claim = self.allocator.allocate(object, live);
                claim.map_err(|errors| Status::invalid(&info.group_kind(), object.name(), &errors))
            }
        }
    }
}

fn attributes<'a>(
    operation: Operation,
    target: &Target<'a>,
    options: &WriteOptions<'a>,
    old: Option<&'a Object>,
) -> Attributes<'a> {
    Attributes {
        operation,
        info: target.info,
        subresource: target.subresource,
        namespace: target.namespace,
        name: target.name,
        user: options.user,
        dry_run: options.dry_run,
        old,
        field_manager: options.field_manager,
        deletion: None,
    }
}

fn fill_defaults(info: &ResourceInfo, object: &mut Object) {
    let Some(ty) = info.schema() else { return };
    let mut value = std::mem::take(object).into_value();
    default::apply(ty, &mut value);
    *object = Object::from_value(value).unwrap_or_default();
}

/// The form that goes into the store: without its resourceVersion, which is the store's to say.
fn stored_json(object: &Object) -> Bytes {
    if object.resource_version().is_empty() {
        return object.to_json().into();
    }
    let mut object = object.clone();
    object.set_meta("resourceVersion", "");
    object.to_json().into()
}

fn class(info: &ResourceInfo) -> Class {
    match info.storage {
        StorageClass::Volatile(ttl) => Class::Volatile { ttl },
        StorageClass::Durable | StorageClass::None => Class::Durable,
    }
}

fn invalid_unless_empty(info: &ResourceInfo, name: &str, errors: &ErrorList) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&info.group_kind(), name, errors)) }
}

/// Records who wrote which fields. `live` and `object` are of the served version.
fn record_fields(target: &Target<'_>, options: &WriteOptions<'_>, live: Option<&Object>, object: &mut Object) {
    let now = edge_api::meta::now();
    let api_version = target.info.api_version();
    let resets: &[&str] = match target.subresource {
        "" if target.info.subresource("status").is_some()
            && !(live.is_none() && target.info.strategy.keeps_status_on_create) =>
        {
            &["status"]
        }
        "status" => &["spec"],
        _ => &[],
    };
    let writer = Writer {
        manager: options.field_manager,
        api_version: &api_version,
        subresource: target.subresource,
        resets,
        now: &now,
    };
    let live: Option<Value> = live.map(|l| l.clone().into_value());
    let mut value = std::mem::take(object).into_value();
    update_managed_fields(target.info.schema(), live.as_ref(), &mut value, &writer);
    *object = Object::from_value(value).unwrap_or_default();
}

pub(crate) fn storage_status(error: edge_storage::Error) -> Status {
    match &error {
        edge_storage::Error::KeyLength { .. } => {
            Status::bad_request(format!("namespace and name are too long: {error}"))
        }
        edge_storage::Error::Closed => Status::unavailable("the server is stopping"),
        // the store has said so already; the answer is that of kube-apiserver with an etcd that is full
        edge_storage::Error::Full { .. } | edge_storage::Error::LimitReached { .. } => Status::internal(error),
        edge_storage::Error::Etcd(error) => etcd_status(error),
        _ => {
            tracing::error!(%error, "write failed");
            Status::internal(error)
        }
    }
}

/// Whether it happened is part of the answer: nobody must take what is unknown for a failure.
fn etcd_status(error: &EtcdError) -> Status {
    match error {
        EtcdError::Unknown { .. } => Status::timeout(error.to_string()),
        EtcdError::Unreachable { .. } => Status::unavailable(error.to_string()),
        EtcdError::TooLarge => Status::too_large(error.to_string()),
        _ => Status::internal(error),
    }
}
