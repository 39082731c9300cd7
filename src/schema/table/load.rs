//! Reads `table.bin`: bytes in, [`Schema`] out. The format is written by `scripts/gen-schema`: a magic, five counts, then strings (lengths,
//! then bytes), types, fields, kinds and names, all little-endian.

use std::borrow::Cow;

use super::{FieldRec, KindRec, Leaf, Relation, Schema, Sym, Tag, TypeRec};

const MAGIC: &[u8] = b"edgeschema\x00\x01";

/// Why a table cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("schema table: not a table of this version")]
    Magic,
    #[error("schema table: truncated")]
    Truncated,
    #[error("schema table: string is not UTF-8")]
    Text(#[source] std::str::Utf8Error),
    #[error("schema table: unknown code {0}")]
    Code(u8),
    #[error("schema table: index out of range")]
    Index,
}

struct Reader {
    rest: &'static [u8],
}

impl Reader {
    fn take(&mut self, n: usize) -> Result<&'static [u8], LoadError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(LoadError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(LoadError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, LoadError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, LoadError> {
        self.array().map(u32::from_le_bytes)
    }

    fn sym(&mut self) -> Result<Sym, LoadError> {
        self.u32().map(Sym)
    }

    fn many<T>(&mut self, n: u32, mut one: impl FnMut(&mut Self) -> Result<T, LoadError>) -> Result<Vec<T>, LoadError> {
        (0..n).map(|_| one(self)).collect()
    }
}

/// Reads a whole table and checks that every index in it points somewhere.
pub(super) fn load(bytes: &'static [u8]) -> Result<Schema, LoadError> {
    let mut r = Reader { rest: bytes.strip_prefix(MAGIC).ok_or(LoadError::Magic)? };
    let [strings, types, fields, kinds, names] = [r.u32()?, r.u32()?, r.u32()?, r.u32()?, r.u32()?];
    let lengths = r.many(strings, Reader::u16)?;
    let strings =
        lengths.into_iter().map(|n| std::str::from_utf8(r.take(n.into())?).map(Cow::Borrowed).map_err(LoadError::Text));
    let schema = Schema {
        strings: strings.collect::<Result<_, _>>()?,
        types: r.many(types, read_type)?,
        fields: r.many(fields, read_field)?,
        kinds: r.many(kinds, |r| Ok(KindRec { group: r.sym()?, version: r.sym()?, kind: r.sym()?, ty: r.u32()? }))?,
        names: r.many(names, |r| Ok((r.sym()?, r.u32()?)))?,
    };
    if !r.rest.is_empty() || !in_range(&schema) {
        return Err(LoadError::Index);
    }
    Ok(schema)
}

fn read_type(r: &mut Reader) -> Result<TypeRec, LoadError> {
    let [tag, leaf, relation, _] = r.array()?;
    Ok(TypeRec {
        tag: tag_of(tag, leaf)?,
        relation: match relation {
            0 => Relation::Granular,
            1 => Relation::Atomic,
            2 => Relation::Set,
            3 => Relation::Keyed,
            code => return Err(LoadError::Code(code)),
        },
        name: r.sym()?,
        first: r.u32()?,
        count: r.u32()?,
        keys: r.sym()?,
        preserves_unknown: false,
    })
}

fn tag_of(tag: u8, leaf: u8) -> Result<Tag, LoadError> {
    const LEAVES: [Leaf; 11] = [
        Leaf::String,
        Leaf::Bytes,
        Leaf::Bool,
        Leaf::Int32,
        Leaf::Int64,
        Leaf::Double,
        Leaf::Quantity,
        Leaf::IntOrString,
        Leaf::Time,
        Leaf::MicroTime,
        Leaf::Duration,
    ];
    Ok(match tag {
        0 => Tag::Leaf(*LEAVES.get(usize::from(leaf)).ok_or(LoadError::Code(leaf))?),
        1 => Tag::Struct,
        2 => Tag::Either,
        3 => Tag::Map,
        4 => Tag::List,
        5 => Tag::WrappedList,
        6 => Tag::Any,
        code => return Err(LoadError::Code(code)),
    })
}

fn read_field(r: &mut Reader) -> Result<FieldRec, LoadError> {
    let (name, ty, number, flags) = (r.sym()?, r.u32()?, r.u16()?, r.u16()?);
    Ok(FieldRec { name, ty, number: number.into(), flags, default: r.sym()?, merge_key: r.sym()? })
}

fn in_range(s: &Schema) -> bool {
    let (types, fields) = (s.types.len() as u32, s.fields.len() as u32);
    s.fields.iter().all(|f| f.ty < types)
        && s.kinds.iter().all(|k| k.ty < types)
        && s.names.iter().all(|(_, ty)| *ty < types)
        && s.types.iter().all(|t| match t.tag {
            Tag::Struct | Tag::Either => t.first.checked_add(t.count).is_some_and(|end| end <= fields),
            Tag::Map | Tag::List | Tag::WrappedList => t.first < types,
            Tag::Leaf(_) | Tag::Any | Tag::Builtin => true,
        })
}
