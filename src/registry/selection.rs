//! Which objects a list or a watch is about.

use crate::options::Target;
use crate::resource::{ResourceInfo, SelectableField};
use crate::stored::Stored;
use edge_api::Status;
use edge_api::selector::{FieldSelector, LabelSelector};

/// Selectors, compiled against the index of the hub.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    /// Empty: all namespaces.
    namespace: Box<str>,
    /// Empty: all names.
    name: Box<str>,
    labels: LabelSelector,
    fields: Vec<Term>,
}

#[derive(Clone, Debug)]
struct Term {
    source: Source,
    value: Box<str>,
    equal: bool,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Name,
    Namespace,
    Field(usize),
}

impl Selection {
    /// Compiles selectors for a row whose objects are indexed by `indexed`.
    ///
    /// # Errors
    /// 400 for a field that the resource does not offer.
    pub(crate) fn new(
        target: &Target<'_>,
        labels: &LabelSelector,
        fields: &FieldSelector,
        indexed: &[SelectableField],
    ) -> Result<Self, Status> {
        let mut terms = Vec::with_capacity(fields.0.len());
        for r in &fields.0 {
            let source = source(target.info, &r.field, indexed)?;
            terms.push(Term { source, value: r.value.as_str().into(), equal: r.equal });
        }
        Ok(Self { namespace: target.namespace.into(), name: target.name.into(), labels: labels.clone(), fields: terms })
    }

    /// The namespace, where there is but one.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name, where there can be but one.
    pub(crate) fn single_name(&self) -> Option<&str> {
        if !self.name.is_empty() {
            return Some(&self.name);
        }
        self.fields.iter().find(|t| t.equal && matches!(t.source, Source::Name)).map(|t| &*t.value)
    }

    /// Whether nothing but the namespace selects.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_empty() && self.name.is_empty()
    }

    pub(crate) fn matches(&self, object: &Stored) -> bool {
        (self.namespace.is_empty() || *self.namespace == *object.namespace())
            && (self.name.is_empty() || *self.name == *object.name())
            && self.fields.iter().all(|t| t.matches(object))
            && self.labels.matches(|k| object.label(k))
    }
}

impl Term {
    fn matches(&self, object: &Stored) -> bool {
        let value = match self.source {
            Source::Name => object.name(),
            Source::Namespace => object.namespace(),
            Source::Field(i) => object.field(i),
        };
        (value == &*self.value) == self.equal
    }
}

fn source(info: &ResourceInfo, label: &str, indexed: &[SelectableField]) -> Result<Source, Status> {
    match label {
        "metadata.name" => return Ok(Source::Name),
        "metadata.namespace" if info.namespaced => return Ok(Source::Namespace),
        _ => {}
    }
    let path = info.selectable_fields.iter().find(|f| f.label == label).map(|f| &f.path);
    path.and_then(|p| indexed.iter().position(|f| f.path == *p)).map(Source::Field).ok_or_else(|| {
        Status::bad_request(format!(
            "Unable to find {:?} that match label selector \"\", field selector {label:?}: field label not supported: {label}",
            info.gvk().to_string()
        ))
    })
}
