//! Which resources there are: the built-in rows, and custom resources as rows of the same type.

use crate::custom::Defined;
use crate::resource::ResourceInfo;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;

/// The rows, replaceable as a whole while they are in use.
#[derive(Debug)]
pub struct Catalog {
    rows: RwLock<Arc<Vec<Arc<ResourceInfo>>>>,
    /// By the name of their definition.
    defined: RwLock<HashMap<Box<str>, Arc<Defined>>>,
}

impl Catalog {
    /// The built-in rows.
    pub fn builtin() -> Self {
        let rows = crate::table::rows().into_iter().map(Arc::new).collect();
        Self { rows: RwLock::new(Arc::new(rows)), defined: RwLock::default() }
    }

    /// All rows as of now, in the order in which discovery lists groups.
    pub fn rows(&self) -> Arc<Vec<Arc<ResourceInfo>>> {
        self.rows.read().clone()
    }

    /// Takes out the rows of a group, which somebody else may serve.
    pub fn remove_group(&self, group: &str) {
        let mut rows = self.rows.write();
        *rows = Arc::new(rows.iter().filter(|row| row.group != group).cloned().collect());
    }

    /// A row by the parts of its path.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<Arc<ResourceInfo>> {
        self.rows.read().iter().find(|r| r.plural == plural && r.version == version && r.group == group).cloned()
    }

    /// The preferred row of a group's resource, whatever its version.
    pub fn preferred(&self, group: &str, plural: &str) -> Option<Arc<ResourceInfo>> {
        self.rows.read().iter().find(|r| r.plural == plural && r.group == group).cloned()
    }

    /// A row by kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<ResourceInfo>> {
        self.rows.read().iter().find(|r| r.kind == kind && r.version == version && r.group == group).cloned()
    }

    /// What the definition of this name makes of the catalog; `None` when it is not served.
    pub fn defined(&self, definition: &str) -> Option<Arc<Defined>> {
        self.defined.read().get(definition).cloned()
    }

    /// The names of all definitions that are served.
    pub(crate) fn definitions(&self) -> Vec<Box<str>> {
        self.defined.read().keys().cloned().collect()
    }

    /// Puts the rows of a definition in the place of those that it had; `None`: it is gone, or not served any more.
    pub(crate) fn define(&self, definition: &str, defined: Option<Defined>) {
        let is_other = |row: &&Arc<ResourceInfo>| row.custom.as_ref().is_none_or(|c| *c.definition != *definition);
        {
            let mut rows = self.rows.write();
            let mut next: Vec<Arc<ResourceInfo>> = rows.iter().filter(is_other).cloned().collect();
            next.extend(defined.iter().flat_map(|d| d.rows.iter().cloned()));
            *rows = Arc::new(next);
        }
        let mut all = self.defined.write();
        match defined {
            Some(defined) => drop(all.insert(definition.into(), Arc::new(defined))),
            None => drop(all.remove(definition)),
        }
    }
}
