//! What an expression is made of.

use crate::functions::Function;
use edge_api::pattern::Regex;
use std::sync::Arc;

/// A node, and where in the text it is (a byte offset).
#[derive(Clone, Debug)]
pub(crate) struct Expr {
    pub(crate) at: u32,
    /// Levels of nodes, this one included.
    pub(crate) depth: u16,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Box<str>),
    Bytes(Arc<[u8]>),
    Type(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
}

impl Op {
    /// The name by which messages call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Op::Add => "_+_",
            Op::Sub => "_-_",
            Op::Mul => "_*_",
            Op::Div => "_/_",
            Op::Rem => "_%_",
            Op::Eq => "_==_",
            Op::Ne => "_!=_",
            Op::Lt => "_<_",
            Op::Le => "_<=_",
            Op::Gt => "_>_",
            Op::Ge => "_>=_",
            Op::In => "@in",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FoldKind {
    All,
    Exists,
    ExistsOne,
    /// `map`, with or without a filter.
    Map,
    Filter,
    TransformList,
    TransformMap,
    TransformMapEntry,
}

/// A macro that goes through a list or a map.
#[derive(Clone, Debug)]
pub(crate) struct Fold {
    pub(crate) kind: FoldKind,
    pub(crate) range: Expr,
    pub(crate) first: Box<str>,
    pub(crate) second: Option<Box<str>>,
    pub(crate) filter: Option<Expr>,
    pub(crate) body: Expr,
}

/// A function that is called, once it is known which.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) name: Box<str>,
    /// Whether the first argument stood before the dot.
    pub(crate) is_member: bool,
    pub(crate) arguments: Vec<Expr>,
    pub(crate) function: Option<&'static Function>,
    /// Of a pattern that is written in the expression.
    pub(crate) regex: Option<Arc<Regex>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Literal(Literal),
    /// A name before it is looked up; afterwards only types are left.
    Name(Box<str>),
    /// A variable of the environment, by its place.
    Variable(u16),
    /// A variable of a macro, by its place on the stack.
    Local(u16),
    Select {
        operand: Box<Expr>,
        field: Box<str>,
        optional: bool,
    },
    /// `has(a.b)`.
    Has {
        operand: Box<Expr>,
        field: Box<str>,
    },
    Index {
        operand: Box<Expr>,
        key: Box<Expr>,
        optional: bool,
    },
    Call(Box<Call>),
    Binary(Op, Box<[Expr; 2]>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Ternary(Box<[Expr; 3]>),
    /// Elements, and whether each is left out when it is an empty optional.
    List(Vec<(Expr, bool)>),
    Map(Vec<(Expr, Expr, bool)>),
    /// `Name{field: value}`.
    Struct(Box<str>, Vec<(Box<str>, Expr, bool)>),
    Fold(Box<Fold>),
    /// `cel.bind(name, value, body)`.
    Bind {
        name: Box<str>,
        value: Box<Expr>,
        body: Box<Expr>,
    },
    /// `optional.optMap(name, body)`, and `optFlatMap` when `flat`.
    OptionalMap {
        operand: Box<Expr>,
        name: Box<str>,
        body: Box<Expr>,
        flat: bool,
    },
}
