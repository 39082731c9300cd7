//! The objects of one resource, their recent changes, and who watches them.

use crate::custom::{Defined, values};
use crate::resource::{ResourceInfo, SelectableField};
use crate::scan::Paths;
use crate::selection::Selection;
use crate::stored::{EventKind, Stored, WatchEvent};
use crate::watch::WatchStream;
use edge_storage::KeyValue;
use parking_lot::RwLock;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How many changes are remembered, for watches from an earlier version and the pages of a list, and how many bytes the objects that
/// are no more may have, as they were before those changes.
#[derive(Clone, Copy)]
struct Bounds {
    changes: usize,
    bytes: usize,
}
/// Of old changes: what is kept while nothing happens.
const OLD: Bounds = Bounds { changes: 1024, bytes: 8 << 20 };
/// Of all: in a burst there are more, so that who lists a large resource can still go on from there.
const ALL: Bounds = Bounds { changes: 8192, bytes: 16 << 20 };
/// When a change is old (as in Kubernetes).
const FRESH_FOR: Duration = Duration::from_secs(75);
/// A watcher that is so many events behind is ended.
const MAX_LAG: usize = 8192;

/// A change of one object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    revision: u64,
    /// Which change of the resource it is: there may be several of one revision.
    number: u64,
    at: Instant,
    /// `None`: it was created.
    pub(crate) before: Option<Stored>,
    /// `None`: it was deleted.
    pub(crate) after: Option<Stored>,
    /// The state before with the revision of the change, for those who see it leave; made when somebody does.
    left: Option<Stored>,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// With what is there.
    Now,
    /// With what is there, and a bookmark that says that this was all.
    NowWithMark,
    /// With the next change.
    Next,
    /// With what came after a revision.
    After(u64),
}

/// A revision is older than what is remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TooOld {
    /// The oldest that is.
    pub(crate) oldest: u64,
}

#[derive(Debug)]
struct Watching {
    selection: Selection,
    bookmarks: bool,
    /// It wants what came after this revision.
    after: u64,
    /// What it had at its beginning ends with the change of this number.
    had: u64,
    events: mpsc::Sender<WatchEvent>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeSet<Stored>,
    changes: VecDeque<Change>,
    /// Bytes of the objects before the changes.
    bytes: usize,
    /// Changes up to this revision are not remembered.
    oldest: u64,
    /// The number of the last change.
    number: u64,
    /// The number of the last change that was told to watchers: only what is visible is told.
    told: u64,
    watchers: Vec<Watching>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ResourceHub {
    prefix: Box<str>,
    api_version: Box<str>,
    kind: Box<str>,
    fields: Vec<SelectableField>,
    paths: Paths,
    /// The row of the stored version of a custom resource, into whose form objects are brought.
    custom: RwLock<Option<Arc<ResourceInfo>>>,
    state: RwLock<State>,
}

impl ResourceHub {
    /// An empty one for the stored version's row.
    pub(crate) fn new(info: &ResourceInfo) -> Self {
        Self {
            prefix: info.prefix.as_ref().into(),
            api_version: info.api_version().into(),
            kind: info.kind.as_ref().into(),
            fields: info.selectable_fields.clone(),
            paths: Paths::new(&info.selectable_fields),
            custom: RwLock::new(None),
            state: RwLock::default(),
        }
    }

    /// One for a custom resource, with what is in the store.
    pub(crate) fn custom(defined: &Defined, items: Vec<(String, KeyValue)>, revision: u64) -> Self {
        let info = &defined.storage;
        let hub = Self {
            fields: defined.selectable.clone(),
            paths: Paths::new(&defined.selectable),
            custom: RwLock::new(Some(info.clone())),
            ..Self::new(info)
        };
        hub.reset(items, revision, |_| {});
        hub
    }

    /// Goes by a row that says the same of objects, and so lets go of the definition that the former one was made of.
    pub(crate) fn renew(&self, info: &Arc<ResourceInfo>) {
        *self.custom.write() = Some(info.clone());
    }

    /// Path of the objects in the store below `/registry/`.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The fields that are indexed, in their order.
    pub(crate) fn fields(&self) -> &[SelectableField] {
        &self.fields
    }

    /// What is read out of every object.
    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// One object.
    pub(crate) fn get(&self, key: &str) -> Option<Stored> {
        self.state.read().objects.get(key).cloned()
    }

    /// All objects.
    pub(crate) fn all(&self) -> Vec<Stored> {
        self.state.read().objects.iter().cloned().collect()
    }

    /// All objects of a selection as they are now.
    pub(crate) fn select(&self, selection: &Selection) -> Vec<Stored> {
        let state = self.state.read();
        state.selected(&state.objects, selection, "").cloned().collect()
    }

    /// Objects of a selection as of a revision that come after a key, at most `limit` (zero: all), and how many follow.
    ///
    /// # Errors
    /// When the revision is not remembered.
    pub(crate) fn list(
        &self,
        selection: &Selection,
        revision: u64,
        after: &str,
        limit: usize,
    ) -> Result<(Vec<Stored>, usize), TooOld> {
        let state = self.state.read();
        let past = state.as_of(revision)?;
        let objects = past.as_ref().unwrap_or(&state.objects);
        let mut selected = state.selected(objects, selection, after);
        if limit == 0 {
            return Ok((selected.cloned().collect(), 0));
        }
        let items = selected.by_ref().take(limit).cloned().collect();
        Ok((items, selected.count()))
    }

    /// Begins a watch. `revision` is the newest that is visible: what has been taken in beyond it comes as changes.
    ///
    /// # Errors
    /// When the revision to begin after is not remembered.
    pub(crate) fn watch(
        &self,
        selection: Selection,
        begin: Begin,
        bookmarks: bool,
        revision: u64,
    ) -> Result<WatchStream, TooOld> {
        let mut state = self.state.write();
        let mut initial = VecDeque::new();
        let had = state.told;
        let after = match begin {
            Begin::Next => 0,
            Begin::After(after) if after < state.oldest => return Err(TooOld { oldest: state.oldest }),
            Begin::After(after) => after,
            Begin::Now | Begin::NowWithMark => {
                let past = state.as_of(revision)?;
                let present = state.selected(past.as_ref().unwrap_or(&state.objects), &selection, "");
                initial.extend(present.map(|o| WatchEvent { kind: EventKind::Added, object: o.clone() }));
                revision
            }
        };
        if begin == Begin::NowWithMark {
            initial.push_back(self.mark(revision, true));
        }
        if begin != Begin::Next {
            let newer = state.changes.iter_mut().filter(|c| c.revision > after && c.number <= had);
            initial.extend(newer.filter_map(|c| c.seen_by(&selection)));
        }
        let (events, live) = mpsc::channel(MAX_LAG);
        state.watchers.push(Watching { selection, bookmarks, after, had, events });
        Ok(WatchStream::new(initial, live))
    }

    /// Replaces everything after the store was read anew. Who watches is told what changed, without the steps between.
    pub(crate) fn reset(&self, items: Vec<(String, KeyValue)>, revision: u64, mut observe: impl FnMut(&Change)) {
        let fresh: BTreeSet<Stored> =
            items.iter().filter_map(|(key, kv)| self.read(key, &kv.value, kv.mod_revision)).collect();
        let mut state = self.state.write();
        let old = std::mem::take(&mut state.objects);
        let gone = old.iter().filter(|o| !fresh.contains(o.key()));
        let mut changes: Vec<(u64, Option<Stored>, Option<Stored>)> =
            gone.map(|o| (revision, Some(o.clone()), None)).collect();
        for object in &fresh {
            let before = old.get(object.key());
            if before.is_none_or(|b| b.resource_version() != object.resource_version()) {
                changes.push((object.resource_version(), before.cloned(), Some(object.clone())));
            }
        }
        state.objects = fresh;
        for (revision, before, after) in changes {
            let change = state.change(revision, before, after);
            observe(&change);
            state.tell(change);
        }
        state.changes.clear();
        state.bytes = 0;
        state.oldest = revision;
    }

    /// Takes a change of the store in (`None`: a deletion), and gives what is to be told of it once its revision is visible: who
    /// has been told of a change and asks then must not get an answer from before it.
    pub(crate) fn apply(
        &self,
        key: &str,
        value: Option<&[u8]>,
        revision: u64,
        observe: impl FnOnce(&Change),
    ) -> Option<Change> {
        let after = match value {
            None => None,
            Some(json) => Some(self.read(key, json, revision)?),
        };
        let mut state = self.state.write();
        let before = match &after {
            Some(object) => state.objects.replace(object.clone()),
            None => state.objects.take(key),
        };
        if before.is_none() && after.is_none() {
            return None;
        }
        let change = state.change(revision, before, after);
        observe(&change);
        state.remember(change.clone());
        Some(change)
    }

    /// Tells watchers of a change; to be called for each, in their order.
    pub(crate) fn tell(&self, change: Change) {
        self.state.write().tell(change);
    }

    /// Tells who wants bookmarks that nothing more happened up to a revision.
    pub(crate) fn bookmark(&self, revision: u64) {
        let mut state = self.state.write();
        let mark = self.mark(revision, false);
        state.watchers.retain(|w| !w.bookmarks || w.events.try_send(mark.clone()).is_ok());
    }

    fn mark(&self, revision: u64, initial: bool) -> WatchEvent {
        let annotations = if initial { r#","annotations":{"k8s.io/initial-events-end":"true"}"# } else { "" };
        let json = format!(
            r#"{{"apiVersion":"{}","kind":"{}","metadata":{{"resourceVersion":"{revision}"{annotations}}}}}"#,
            self.api_version, self.kind
        );
        WatchEvent { kind: EventKind::Bookmark, object: Stored::opaque("", json.into(), revision) }
    }

    fn read(&self, key: &str, json: &[u8], revision: u64) -> Option<Stored> {
        let custom = self.custom.read().clone();
        let modern = custom.and_then(|info| values::modernized(&info, json));
        match Stored::new(key, modern.as_deref().unwrap_or(json), revision, &self.paths) {
            Ok(object) if modern.is_some() => Some(object.modernized()),
            Ok(object) => Some(object),
            Err(error) => {
                tracing::error!(prefix = self.prefix(), key, %error, "stored object cannot be read, it is left out");
                None
            }
        }
    }
}

impl State {
    /// Objects of a selection after a key, in order.
    fn selected<'a>(
        &self,
        objects: &'a BTreeSet<Stored>,
        selection: &'a Selection,
        after: &str,
    ) -> impl Iterator<Item = &'a Stored> {
        let prefix = match selection.namespace() {
            "" => String::new(),
            namespace => format!("{namespace}/"),
        };
        // with namespace and name there is at most one
        let single = selection.single_name().filter(|_| !prefix.is_empty()).map(|name| format!("{prefix}{name}"));
        let from = match &single {
            Some(key) if key.as_str() > after => Bound::Included(key.as_str()),
            _ if after >= prefix.as_str() && !after.is_empty() => Bound::Excluded(after),
            _ => Bound::Included(prefix.as_str()),
        };
        let range = objects.range::<str, _>((from, Bound::Unbounded));
        range
            .take_while(move |o| o.key().starts_with(&prefix) && single.as_ref().is_none_or(|s| o.key() == s))
            .filter(|o| selection.matches(o))
    }

    /// The objects as of a revision; `None`: as they are now.
    fn as_of(&self, revision: u64) -> Result<Option<BTreeSet<Stored>>, TooOld> {
        if self.changes.back().is_none_or(|c| c.revision <= revision) {
            return if revision < self.oldest { Err(TooOld { oldest: self.oldest }) } else { Ok(None) };
        }
        if revision < self.oldest {
            return Err(TooOld { oldest: self.oldest });
        }
        let mut objects = self.objects.clone();
        for change in self.changes.iter().rev().take_while(|c| c.revision > revision) {
            match (&change.before, &change.after) {
                (Some(before), _) => drop(objects.replace(before.clone())),
                (None, Some(after)) => drop(objects.take(after.key())),
                (None, None) => {}
            }
        }
        Ok(Some(objects))
    }

    /// Keeps a change, and forgets the oldest beyond the bounds.
    fn remember(&mut self, change: Change) {
        self.bytes += change.bytes();
        self.changes.push_back(change);
        while let Some(oldest) = self.changes.front() {
            let bounds = if oldest.at.elapsed() > FRESH_FOR { OLD } else { ALL };
            if self.changes.len() <= bounds.changes && self.bytes <= bounds.bytes {
                break;
            }
            self.bytes -= oldest.bytes();
            self.oldest = oldest.revision;
            self.changes.pop_front();
        }
        // what a burst has taken is given back after it
        if self.changes.capacity() > 4 * self.changes.len().max(OLD.changes) {
            self.changes.shrink_to(OLD.changes);
        }
    }

    /// Gives a change to all who see it. Who does not take his events loses his place, and learns it by the end of his
    /// stream.
    fn tell(&mut self, mut change: Change) {
        self.told = change.number;
        self.watchers.retain(|w| {
            let is_new = change.number > w.had && change.revision > w.after;
            match change.seen_by(&w.selection).filter(|_| is_new) {
                Some(event) => w.events.try_send(event).is_ok(),
                None => !w.events.is_closed(),
            }
        });
    }

    /// The next change.
    fn change(&mut self, revision: u64, before: Option<Stored>, after: Option<Stored>) -> Change {
        self.number += 1;
        Change { revision, number: self.number, at: Instant::now(), before, after, left: None }
    }
}

impl Change {
    /// What it keeps in memory; the object after it is there anyway, or counted with the next change.
    fn bytes(&self) -> usize {
        self.before.as_ref().map_or(0, |o| o.bytes().len())
    }

    /// The event that a selection sees: a change can bring an object into it, or out of it.
    fn seen_by(&mut self, selection: &Selection) -> Option<WatchEvent> {
        let was = self.before.as_ref().is_some_and(|o| selection.matches(o));
        let is = self.after.as_ref().filter(|o| selection.matches(o));
        let (kind, object) = match (was, is) {
            (true, Some(new)) => (EventKind::Modified, new.clone()),
            (false, Some(new)) => (EventKind::Added, new.clone()),
            (true, None) => {
                let (before, revision) = (self.before.as_ref()?, self.revision);
                (EventKind::Deleted, self.left.get_or_insert_with(|| before.at(revision)).clone())
            }
            (false, None) => return None,
        };
        Some(WatchEvent { kind, object })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::catalog::Catalog;
    use crate::options::Target;
    use edge_api::selector::{FieldSelector, LabelSelector};
    use futures::{FutureExt, StreamExt};

    fn hub() -> (Arc<ResourceInfo>, ResourceHub) {
        let row = Catalog::builtin().preferred("", "configmaps").unwrap();
        let hub = ResourceHub::new(&row);
        (row, hub)
    }

    fn put(hub: &ResourceHub, key: &str, label: &str, revision: u64) {
        let name = key.rsplit('/').next().unwrap();
        let json = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","labels":{{"l":"{label}"}}}}}}"#
        );
        apply(hub, key, Some(json.as_bytes()), revision);
    }

    /// A change that is visible as soon as it is there.
    fn apply(hub: &ResourceHub, key: &str, value: Option<&[u8]>, revision: u64) {
        hub.tell(hub.apply(key, value, revision, |_| {}).unwrap());
    }

    fn select(row: &ResourceInfo, hub: &ResourceHub, namespace: &str, labels: &str) -> Selection {
        let target = Target { info: row, namespace, name: "", subresource: "" };
        Selection::new(&target, &LabelSelector::parse(labels).unwrap(), &FieldSelector::default(), hub.fields())
            .unwrap()
    }

    fn seen(stream: &mut WatchStream) -> Vec<String> {
        let mut out = Vec::new();
        while let Some(Some(e)) = stream.next().now_or_never() {
            out.push(format!("{} {} {}", e.kind.as_str(), e.object.name(), e.object.resource_version()));
        }
        out
    }

    #[test]
    fn selections_see_objects_come_and_go() {
        let (row, hub) = hub();
        put(&hub, "ns/a", "x", 1);
        let mut x = hub.watch(select(&row, &hub, "ns", "l=x"), Begin::NowWithMark, true, 1).unwrap();
        put(&hub, "ns/a", "x", 2);
        put(&hub, "ns/a", "y", 3);
        put(&hub, "other/a", "x", 4);
        put(&hub, "ns/a", "x", 5);
        apply(&hub, "ns/a", None, 6);
        hub.bookmark(9);
        assert_eq!(
            seen(&mut x),
            ["ADDED a 1", "BOOKMARK  1", "MODIFIED a 2", "DELETED a 3", "ADDED a 5", "DELETED a 6", "BOOKMARK  9"]
        );
        let mut late = hub.watch(select(&row, &hub, "", ""), Begin::After(3), false, 9).unwrap();
        assert_eq!(seen(&mut late), ["ADDED a 4", "MODIFIED a 5", "DELETED a 6"]);
    }

    /// A transaction changes two objects; watches begin at every moment of it.
    #[test]
    fn what_is_not_visible_is_not_told_and_then_told_once() {
        let (row, hub) = hub();
        let everything = || select(&row, &hub, "", "");
        let begin = |begin, visible| hub.watch(everything(), begin, false, visible).unwrap();
        put(&hub, "ns/a", "x", 1);
        let mut watches = vec![begin(Begin::Now, 1), begin(Begin::After(1), 1)];
        let json = |name: &str| format!(r#"{{"metadata":{{"name":"{name}"}}}}"#);
        let first = hub.apply("ns/a", Some(json("a").as_bytes()), 2, |_| {}).unwrap();
        watches.extend([begin(Begin::Now, 1), begin(Begin::After(1), 1)]);
        let second = hub.apply("ns/b", Some(json("b").as_bytes()), 2, |_| {}).unwrap();
        watches.extend([begin(Begin::Now, 1), begin(Begin::After(1), 1)]);
        for watch in watches.chunks_mut(2) {
            assert_eq!(seen(&mut watch[0]), ["ADDED a 1"]);
            assert!(seen(&mut watch[1]).is_empty());
        }
        // now the revision is visible, and then it is told
        let mut late = [begin(Begin::Now, 2), begin(Begin::After(2), 2)];
        hub.tell(first);
        watches.extend([begin(Begin::After(1), 2)]);
        hub.tell(second);
        watches.extend([begin(Begin::After(1), 2)]);
        for watch in &mut watches {
            assert_eq!(seen(watch), ["MODIFIED a 2", "ADDED b 2"]);
        }
        assert_eq!(seen(&mut late[0]), ["ADDED a 2", "ADDED b 2"]);
        assert!(seen(&mut late[1]).is_empty());
        put(&hub, "ns/a", "x", 3);
        for watch in watches.iter_mut().chain(&mut late) {
            assert_eq!(seen(watch), ["MODIFIED a 3"]);
        }
    }

    #[test]
    fn pages_are_of_one_revision() {
        let (row, hub) = hub();
        for (i, key) in ["a/1", "b/1", "b/2", "b/3", "c/1"].iter().enumerate() {
            put(&hub, key, "x", i as u64 + 1);
        }
        let b = select(&row, &hub, "b", "");
        let keys =
            |list: &(Vec<Stored>, usize)| (list.0.iter().map(|o| o.key().to_owned()).collect::<Vec<_>>(), list.1);
        let first = hub.list(&b, 5, "", 2).unwrap();
        assert_eq!(keys(&first), (vec!["b/1".to_owned(), "b/2".to_owned()], 1));
        apply(&hub, "b/3", None, 6);
        put(&hub, "b/4", "x", 7);
        assert_eq!(keys(&hub.list(&b, 5, "b/2", 2).unwrap()), (vec!["b/3".to_owned()], 0));
        assert_eq!(keys(&hub.list(&b, 7, "b/2", 0).unwrap()), (vec!["b/4".to_owned()], 0));
        assert_eq!(hub.select(&select(&row, &hub, "", "")).len(), 5);
        for i in 0..OLD.changes as u64 {
            put(&hub, "a/1", "x", 8 + i);
        }
        assert!(hub.list(&b, 5, "", 0).is_ok(), "what has just been is known longer");
        let long_ago = Instant::now() - 2 * FRESH_FOR;
        hub.state.write().changes.iter_mut().for_each(|change| change.at = long_ago);
        put(&hub, "a/1", "x", 5000);
        assert_eq!(hub.state.read().changes.len(), OLD.changes);
        assert!(hub.list(&b, 5, "", 0).is_err());
        assert!(hub.watch(b.clone(), Begin::After(5), false, 5000).is_err());
        for i in 0..=ALL.changes as u64 {
            put(&hub, "a/1", "x", 5001 + i);
        }
        assert_eq!(hub.state.read().changes.len(), ALL.changes);
        assert!(hub.watch(b, Begin::After(5000), false, 20_000).is_err());
    }

    #[test]
    fn large_objects_are_remembered_for_fewer_changes() {
        let (row, hub) = hub();
        let everything = || select(&row, &hub, "", "");
        let big = "x".repeat(1 << 20);
        for revision in 1..=60 {
            let json = format!(r#"{{"metadata":{{"name":"a"}},"data":{{"big":"{big}"}}}}"#);
            apply(&hub, "ns/a", Some(json.as_bytes()), revision);
        }
        // fifteen former objects of a little more than a MiB: changes 46 to 60
        assert!(hub.watch(everything(), Begin::After(44), false, 60).is_err());
        assert!(hub.list(&everything(), 44, "", 0).is_err());
        assert_eq!(seen(&mut hub.watch(everything(), Begin::After(45), false, 60).unwrap()).len(), 15);
        assert_eq!(hub.list(&everything(), 45, "", 0).unwrap().0[0].resource_version(), 45);
    }

    #[test]
    fn the_slow_are_ended_and_a_reset_is_told_as_changes() {
        let (row, hub) = hub();
        let mut slow = hub.watch(select(&row, &hub, "", ""), Begin::Next, false, 0).unwrap();
        for i in 0..=MAX_LAG as u64 {
            put(&hub, "ns/a", "x", 1 + i);
        }
        assert_eq!(seen(&mut slow).len(), MAX_LAG);
        assert!(slow.next().now_or_never().unwrap().is_none());
        let mut watch = hub.watch(select(&row, &hub, "", ""), Begin::Next, false, 0).unwrap();
        let kv = KeyValue {
            key: "/registry/configmaps/ns/b".into(),
            value: r#"{"metadata":{"name":"b"}}"#.into(),
            create_revision: 5000,
            mod_revision: 5000,
        };
        hub.reset(vec![("ns/b".into(), kv)], 5001, |_| {});
        assert_eq!(seen(&mut watch), ["DELETED a 5001", "ADDED b 5000"]);
    }
}
