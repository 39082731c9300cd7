//! How large the values of variables may be.

use super::Range;
use std::collections::BTreeMap;

/// How large a value may be, and what is in it.
#[derive(Clone, Debug, Default)]
pub struct Size {
    /// Characters, bytes, items or entries at most; nothing of the kind for objects and numbers.
    pub most: u64,
    /// The bytes of the shortest JSON for it.
    pub shortest: u64,
    /// What is in it.
    pub within: Within,
}

/// What is in a value.
#[derive(Clone, Debug, Default)]
pub enum Within {
    /// Nothing that could be named.
    #[default]
    Nothing,
    /// Fields, by the names that expressions use.
    Fields(BTreeMap<String, Size>),
    /// Items of a list.
    Items(Box<Size>),
    /// Values of a map.
    Values {
        /// Characters of a key at most.
        key: u64,
        /// Of each value.
        value: Box<Size>,
        /// Whether a value that is selected by a name is known to be one of these.
        is_named: bool,
    },
}

impl Size {
    /// Of something without parts.
    pub fn leaf(most: u64, shortest: u64) -> Self {
        Self { most, shortest, within: Within::Nothing }
    }

    /// The part of a field.
    pub fn field(&self, name: &str) -> Option<&Size> {
        match &self.within {
            Within::Fields(fields) => fields.get(name),
            Within::Values { value, is_named: true, .. } => Some(value),
            _ => None,
        }
    }

    /// The part that items or values are.
    pub fn element(&self) -> Option<&Size> {
        match &self.within {
            Within::Items(of) | Within::Values { value: of, .. } => Some(of),
            _ => None,
        }
    }
}

/// The sizes of an expression's variables.
#[derive(Clone, Copy, Debug)]
pub struct Sizes<'s> {
    root: &'s Size,
    /// Which variable has them; all have them when there is none.
    variable: Option<&'static str>,
}

/// Where in the sizes a value is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Path<'s> {
    /// It is no part of a variable.
    Nowhere,
    /// Here; or at a place of which nothing is known.
    At(Option<Spot<'s>>),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Spot<'s> {
    Of(&'s Size),
    /// A key of so many characters at most.
    Key(u64),
}

impl Path<'_> {
    pub(super) fn size(self) -> Option<Range> {
        match self {
            Path::At(Some(Spot::Of(size))) => Some(Range::up_to(size.most)),
            Path::At(Some(Spot::Key(most))) => Some(Range::up_to(most)),
            _ => None,
        }
    }
}

impl<'s> Sizes<'s> {
    /// Every variable has these.
    pub fn of_all(root: &'s Size) -> Self {
        Self { root, variable: None }
    }

    /// The only variable has these.
    pub fn of(variable: &'static str, root: &'s Size) -> Self {
        Self { root, variable: Some(variable) }
    }

    /// The whole of a variable.
    pub(super) fn variable(self, name: &str) -> Path<'s> {
        let is_it = self.variable.is_none_or(|v| v == name);
        Path::At(is_it.then_some(Spot::Of(self.root)))
    }

    pub(super) fn variable_at(self, _place: usize) -> Path<'s> {
        Path::At(Some(Spot::Of(self.root)))
    }

    fn below(self, of: Path<'s>, name: &str, part: impl FnOnce(&'s Size) -> Option<Spot<'s>>) -> Path<'s> {
        match of {
            // cel-go takes the first part of a path for the variable, whatever it is
            Path::Nowhere => self.variable(name),
            Path::At(Some(Spot::Of(size))) => Path::At(part(size)),
            Path::At(_) => Path::At(None),
        }
    }

    pub(super) fn field(self, of: Path<'s>, name: &str) -> Path<'s> {
        self.below(of, name, |size| size.field(name).map(Spot::Of))
    }

    /// An item of a list or a value of a map.
    pub(super) fn element(self, of: Path<'s>) -> Path<'s> {
        self.below(of, "@items", |size| size.element().map(Spot::Of))
    }

    /// A key of a map.
    pub(super) fn key(self, of: Path<'s>) -> Path<'s> {
        self.below(of, "@keys", |size| match size.within {
            Within::Values { key, .. } => Some(Spot::Key(key)),
            _ => None,
        })
    }

    /// An index of a list.
    pub(super) fn index(self, of: Path<'s>) -> Path<'s> {
        self.below(of, "@indices", |_| None)
    }
}
