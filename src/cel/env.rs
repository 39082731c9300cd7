//! What an expression may refer to.

use crate::types::Type;

/// The variables of an expression, in the order of their places ([`crate::Variables::get`]).
#[derive(Clone, Debug, Default)]
pub struct Env {
    pub(crate) variables: Vec<(String, Type)>,
    pub(crate) structures: bool,
}

impl Env {
    /// No variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more variable. A name with a dot, such as `variables.x`, is a variable, too, and needs none with the name before the dot.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, ty: Type) -> Self {
        self.variables.push((name.into(), ty));
        self
    }

    /// Makes `Object{...}` and `JSONPatch{...}` known, as mutating policies have them.
    #[must_use]
    pub fn with_structures(mut self) -> Self {
        self.structures = true;
        self
    }

    /// The place of a variable.
    pub fn place(&self, name: &str) -> Option<usize> {
        // the newest of a name hides the others
        self.variables.iter().rposition(|(n, _)| n == name)
    }

    /// Whether there are variables whose names begin with this and a dot.
    pub(crate) fn is_prefix(&self, name: &str) -> bool {
        self.variables.iter().any(|(n, _)| n.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
    }
}
