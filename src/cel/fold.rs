//! The macros that go through lists and maps.

use crate::ast::{Expr, Fold, FoldKind};
use crate::error::Error;
use crate::eval::Machine;
use crate::value::{Key, List, Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a macro goes through.
enum Range<'a> {
    List(List<'a>),
    Map(std::vec::IntoIter<(Value<'a>, Value<'a>)>),
}

impl<'a> Range<'a> {
    /// The step's two values; of a list with one variable the first is the item.
    fn step(&mut self, i: usize, two: bool) -> Option<(Value<'a>, Value<'a>)> {
        match self {
            Range::List(list) if two => Some((Value::Int(i64::try_from(i).ok()?), list.get(i)?)),
            Range::List(list) => Some((list.get(i)?, Value::Null)),
            Range::Map(entries) => entries.next(),
        }
    }
}

/// What has come together so far.
#[derive(Default)]
struct Gathered<'a> {
    items: Vec<Value<'a>>,
    entries: BTreeMap<Key<'a>, Value<'a>>,
    count: usize,
    error: Option<Error>,
}

impl<'a> Gathered<'a> {
    fn insert(&mut self, key: &Value<'a>, value: Value<'a>) -> Result<(), Error> {
        let place = Key::of(key).ok_or_else(|| Error::new("unsupported key type"))?;
        match self.entries.insert(place, value) {
            None => Ok(()),
            Some(_) => Err(Error::new(format!("insert failed: key {key} already exists"))),
        }
    }
}

impl<'a> Machine<'a, '_> {
    #[inline(never)]
    pub(crate) fn fold(&mut self, fold: &'a Fold) -> Result<Value<'a>, Error> {
        self.budget.pay(1)?;
        let mut range = match self.eval(&fold.range)? {
            Value::List(list) => Range::List(list),
            Value::Map(map) => {
                self.budget.pay(map.len() as u64)?;
                Range::Map(map.entries().into_iter())
            }
            _ => return Err(Error::no_overload()),
        };
        let mut out = Gathered::default();
        let two = fold.second.is_some();
        let mut i = 0;
        while let Some((first, second)) = range.step(i, two) {
            i += 1;
            self.budget.pay(1)?;
            let depth = self.locals.len();
            let item = first.clone();
            self.locals.push(first);
            if two {
                self.locals.push(second);
            }
            let decided = self.step(fold, item, &mut out);
            self.locals.truncate(depth);
            if let Some(decided) = decided? {
                return Ok(decided);
            }
        }
        match fold.kind {
            FoldKind::All | FoldKind::Exists => out.error.map_or(Ok(Value::Bool(fold.kind == FoldKind::All)), Err),
            FoldKind::ExistsOne => Ok(Value::Bool(out.count == 1)),
            FoldKind::Map | FoldKind::Filter | FoldKind::TransformList => Ok(Value::list(out.items)),
            FoldKind::TransformMap | FoldKind::TransformMapEntry => Ok(Value::Map(Map::Shared(Arc::new(out.entries)))),
        }
    }

    fn truth(&mut self, expr: &'a Expr) -> Result<bool, Error> {
        self.eval(expr)?.as_bool().ok_or_else(Error::no_overload)
    }

    /// One item; what it decides, if it decides all.
    fn step(&mut self, fold: &'a Fold, item: Value<'a>, out: &mut Gathered<'a>) -> Result<Option<Value<'a>>, Error> {
        if let Some(filter) = &fold.filter
            && !self.truth(filter)?
        {
            return Ok(None);
        }
        match fold.kind {
            FoldKind::All | FoldKind::Exists => {
                let decides = fold.kind == FoldKind::Exists;
                match self.truth(&fold.body) {
                    Ok(b) if b == decides => return Ok(Some(Value::Bool(decides))),
                    Ok(_) => {}
                    Err(e) if e.is_final() => return Err(e),
                    Err(e) => out.error = out.error.take().or(Some(e)),
                }
            }
            FoldKind::ExistsOne => out.count += usize::from(self.truth(&fold.body)?),
            FoldKind::Filter => {
                if self.truth(&fold.body)? {
                    out.items.push(item);
                }
            }
            FoldKind::Map | FoldKind::TransformList => {
                let value = self.eval(&fold.body)?;
                out.items.push(value);
            }
            FoldKind::TransformMap => {
                let value = self.eval(&fold.body)?;
                out.insert(&item, value)?;
            }
            FoldKind::TransformMapEntry => {
                let Value::Map(entries) = self.eval(&fold.body)? else { return Err(Error::no_overload()) };
                self.budget.pay(entries.len() as u64)?;
                for (key, value) in entries.entries() {
                    out.insert(&key, value)?;
                }
            }
        }
        Ok(None)
    }
}
