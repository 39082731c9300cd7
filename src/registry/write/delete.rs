//! Delete and deletecollection: at once, after a grace period, or when the last finalizer has gone.

use super::{Change, Committed, attributes};
use crate::admission::{Attributes, Operation};
use crate::meta::{set_finalizer, set_generation};
use crate::options::{DeleteOptions, ListOptions, Propagation, Target, WriteOptions};
use crate::read::{self, resource_of};
use crate::registry::{Deleted, Registry};
use crate::resource::ResourceInfo;
use crate::stored::{List, Stored};
use edge_api::{Object, Reason, Status};
use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Deletions of a collection under way at once.
const AT_ONCE: usize = 16;

/// What a deletion does to an object as it is.
#[derive(Debug, PartialEq)]
enum Step {
    Remove,
    Mark(Object),
    /// It is going already, and nothing about that changes.
    Nothing,
}

impl Registry {
    pub(crate) async fn do_delete(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        deletion: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        self.delete_with(target, options, deletion, true).await
    }

    /// The same; `is_judged`: admission has not been asked yet.
    pub(super) async fn delete_with(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        deletion: &DeleteOptions,
        is_judged: bool,
    ) -> Result<Deleted, Status> {
        let hub = resource_of(&self.hub, target, "delete")?;
        loop {
            let live = read::get(&self.hub, target)?;
            let object = live.object()?;
            check_preconditions(target, deletion, &object)?;
            if is_judged {
                let a = attributes(Operation::Delete, target, options, Some(&object));
                self.validate_admission(&Attributes { deletion: Some(deletion), ..a }, None).await?;
            }
            let (change, gone) = match &step(target.info, deletion, &object, Timestamp::now()) {
                Step::Nothing => return Ok(Deleted::Pending(live)),
                Step::Remove => (self.commit(target, &hub, Some(&live), Change::Delete, options.dry_run).await?, true),
                Step::Mark(marked) => {
                    (self.commit(target, &hub, Some(&live), Change::Put(marked), options.dry_run).await?, false)
                }
            };
            match change {
                Committed::Done(stored) if gone => return Ok(Deleted::Gone(stored)),
                Committed::Done(stored) => return Ok(Deleted::Pending(stored)),
                Committed::Lost => {}
            }
        }
    }

    pub(crate) async fn do_delete_collection(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        selection: &ListOptions,
        deletion: &DeleteOptions,
    ) -> Result<List, Status> {
        let list = read::list(&self.hub, target, selection).await?;
        for chunk in list.items.chunks(AT_ONCE) {
            let deletions: Vec<BoxFuture<'_, Result<(), Status>>> =
                chunk.iter().map(|item| self.delete_item(target, options, deletion, item).boxed()).collect();
            try_join_all(deletions).await?;
        }
        Ok(list)
    }

    async fn delete_item(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        deletion: &DeleteOptions,
        item: &Stored,
    ) -> Result<(), Status> {
        let one = Target { namespace: item.namespace(), name: item.name(), ..*target };
        match self.do_delete(&one, options, deletion).await {
            Err(e) if e.reason == Reason::NotFound => Ok(()),
            other => other.map(drop),
        }
    }
}

fn check_preconditions(target: &Target<'_>, deletion: &DeleteOptions, object: &Object) -> Result<(), Status> {
    let conditions = &deletion.preconditions;
    let pairs = [
        ("UID", conditions.uid.as_deref(), object.uid()),
        ("ResourceVersion", conditions.resource_version.as_deref(), object.resource_version()),
    ];
    for (what, wanted, found) in pairs {
        if let Some(wanted) = wanted.filter(|w| *w != found) {
            let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
            return Err(Status::conflict(&target.info.group_resource(), target.name, &why));
        }
    }
    Ok(())
}

/// What happens to an object that is deleted now.
fn step(info: &ResourceInfo, deletion: &DeleteOptions, object: &Object, now: Timestamp) -> Step {
    let strategy = info.strategy;
    let mut marked = object.clone();
    set_propagation(&mut marked, info, deletion);
    let grace = strategy.grace_period.map_or(0, |f| f(object, deletion.grace_period_seconds)).max(0);
    let running = object.metadata().and_then(|m| m.get("deletionGracePeriodSeconds")).and_then(Value::as_i64);
    if object.is_terminating() {
        // the time that was given can only become shorter
        let shorter = running.is_some_and(|r| grace < r);
        if shorter && grace > 0 {
            mark(&mut marked, now, grace);
            return Step::Mark(marked);
        }
        let waits = running.is_some_and(|r| r > 0) && !shorter;
        if waits {
            return if marked == *object { Step::Nothing } else { Step::Mark(marked) };
        }
    } else if grace > 0 {
        mark(&mut marked, now, grace);
        (strategy.prepare_delete)(&mut marked);
        return Step::Mark(marked);
    }
    if !(strategy.is_held)(&marked) {
        return Step::Remove;
    }
    if !object.is_terminating() || running.is_some_and(|r| r > 0) {
        mark(&mut marked, now, 0);
    }
    (strategy.prepare_delete)(&mut marked);
    if marked == *object { Step::Nothing } else { Step::Mark(marked) }
}

fn mark(object: &mut Object, now: Timestamp, grace: i64) {
    let end = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
    let meta = object.metadata_mut();
    meta.insert("deletionTimestamp".into(), edge_api::meta::time(end).into());
    meta.insert("deletionGracePeriodSeconds".into(), grace.into());
    if object.generation() > 0 {
        let generation = object.generation() + 1;
        set_generation(object, generation);
    }
}

/// Finalizers that make the garbage collector see to the dependents.
fn set_propagation(object: &mut Object, info: &ResourceInfo, deletion: &DeleteOptions) {
    let has = |name: &str| object.finalizers().any(|f| f == name);
    let (orphan, foreground) = match (deletion.orphan_dependents, deletion.propagation) {
        (Some(orphan), _) => (orphan, !orphan && has(FOREGROUND)),
        (None, Some(policy)) => (policy == Propagation::Orphan, policy == Propagation::Foreground),
        // what an earlier deletion or a client has put there stands
        (None, None) if has(ORPHAN) || has(FOREGROUND) => (has(ORPHAN), has(FOREGROUND)),
        (None, None) => {
            let policy = info.strategy.propagation;
            (policy == Propagation::Orphan, policy == Propagation::Foreground)
        }
    };
    set_finalizer(object, ORPHAN, orphan);
    set_finalizer(object, FOREGROUND, foreground);
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::catalog::Catalog;
    use serde_json::json;

    fn row(group: &str, plural: &str) -> std::sync::Arc<ResourceInfo> {
        Catalog::builtin().preferred(group, plural).unwrap()
    }

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    fn now() -> Timestamp {
        "2026-11-24T19:00:00Z".parse().unwrap()
    }

    #[test]
    fn plain_objects_go_at_once_unless_a_finalizer_holds_them() {
        let row = row("", "configmaps");
        let plain = object(json!({"metadata": {"name": "a"}}));
        assert_eq!(step(&row, &DeleteOptions::default(), &plain, now()), Step::Remove);
        let held = object(json!({"metadata": {"name": "a", "finalizers": ["x/y"]}}));
        let Step::Mark(marked) = step(&row, &DeleteOptions::default(), &held, now()) else { panic!("not marked") };
        assert_eq!(marked.str_at("/metadata/deletionTimestamp"), "2026-11-24T19:00:00Z");
        assert_eq!(step(&row, &DeleteOptions::default(), &marked, now()), Step::Nothing);
    }

    #[test]
    fn propagation_becomes_finalizers() {
        let row = row("apps", "deployments");
        let plain = object(json!({"metadata": {"name": "a", "generation": 3}}));
        for (policy, finalizer) in [(Propagation::Foreground, FOREGROUND), (Propagation::Orphan, ORPHAN)] {
            let options = DeleteOptions { propagation: Some(policy), ..DeleteOptions::default() };
            let Step::Mark(marked) = step(&row, &options, &plain, now()) else { panic!("not marked") };
            assert_eq!((marked.finalizers().collect::<Vec<_>>(), marked.generation()), (vec![finalizer], 4));
            let background = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
            assert_eq!(step(&row, &background, &marked, now()), Step::Remove);
        }
    }

    #[test]
    fn pods_get_their_grace_period_and_it_only_shrinks() {
        let row = row("", "pods");
        let pod = object(json!({"metadata": {"name": "a"}, "status": {"phase": "Running"},
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}}));
        let with = |grace: Option<i64>| DeleteOptions { grace_period_seconds: grace, ..DeleteOptions::default() };
        let Step::Mark(marked) = step(&row, &with(None), &pod, now()) else { panic!("not marked") };
        assert_eq!(marked.str_at("/metadata/deletionTimestamp"), "2026-11-24T19:00:30Z");
        assert_eq!(step(&row, &with(Some(60)), &marked, now()), Step::Nothing);
        let Step::Mark(sooner) = step(&row, &with(Some(5)), &marked, now()) else { panic!("not marked") };
        assert_eq!(sooner.str_at("/metadata/deletionTimestamp"), "2026-11-24T19:00:05Z");
        assert_eq!(step(&row, &with(Some(0)), &sooner, now()), Step::Remove);
        let waiting = object(json!({"metadata": {"name": "a"}, "spec": {"terminationGracePeriodSeconds": 30}}));
        assert_eq!(step(&row, &with(None), &waiting, now()), Step::Remove);
    }

    #[test]
    fn namespaces_stay_until_they_are_finalized() {
        let row = row("", "namespaces");
        let ns = object(json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"}}));
        let Step::Mark(marked) = step(&row, &DeleteOptions::default(), &ns, now()) else { panic!("not marked") };
        assert_eq!(marked.str_at("/status/phase"), "Terminating");
        let done = object(json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}}));
        assert_eq!(step(&row, &DeleteOptions::default(), &done, now()), Step::Remove);
    }
}
