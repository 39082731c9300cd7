//! Which resources there are: the built-in rows, and later custom resources as rows of the same type.

use crate::resource::ResourceInfo;
use parking_lot::RwLock;
use std::sync::Arc;

/// The rows, replaceable as a whole while they are in use.
#[derive(Debug, Default)]
pub struct Catalog {
    rows: RwLock<Arc<Vec<Arc<ResourceInfo>>>>,
}

impl Catalog {
    /// The built-in rows.
    pub fn builtin() -> Self {
        let rows = crate::table::rows().into_iter().map(Arc::new).collect();
        Self { rows: RwLock::new(Arc::new(rows)) }
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
}
