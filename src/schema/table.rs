//! The schema table: types, their fields, and the kinds that name them.
//!
//! In: the checked-in `table.bin`, or the schema of a custom resource ([`Schema::custom`]). Out: [`Schema`], navigated through the cheap, copyable
//! [`TypeRef`] and [`FieldRef`]. A type is a leaf, a struct, a map, a list, an either (two alternatives told apart by their JSON form) or
//! anything at all.

mod load;
mod structural;

pub use structural::StructuralError;

use std::{borrow::Cow, fmt, sync::OnceLock};

use edge_api::GroupVersionKind;
use serde_json::Value;

/// Index of a string in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sym(u32);

/// The string that stands for "none".
const NONE: Sym = Sym(0);

/// What a type is, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Leaf(Leaf),
    Struct,
    Either,
    Map,
    List,
    /// An array in JSON, but a message with one repeated field on the wire.
    WrappedList,
    Any,
    /// Type `first` of the built-in table.
    Builtin,
}

#[derive(Clone, Copy, Debug)]
struct TypeRec {
    tag: Tag,
    relation: Relation,
    /// OpenAPI name, or `NONE` when anonymous.
    name: Sym,
    /// First field (struct, either), element type (map, list) or type in the built-in table.
    first: u32,
    /// Number of fields.
    count: u32,
    /// Comma-joined merge keys (lists).
    keys: Sym,
    /// Whether fields that a struct does not know are kept (custom resources).
    preserves_unknown: bool,
}

impl TypeRec {
    fn new(tag: Tag) -> Self {
        let relation = Relation::Granular;
        Self { tag, relation, name: NONE, first: 0, count: 0, keys: NONE, preserves_unknown: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    /// Maps and structs: merged key by key.
    Granular,
    Atomic,
    Set,
    /// Lists keyed by fields of their elements.
    Keyed,
}

#[derive(Clone, Copy, Debug)]
struct FieldRec {
    name: Sym,
    ty: u32,
    number: u32,
    flags: u16,
    /// JSON text.
    default: Sym,
    merge_key: Sym,
}

/// Bits of [`FieldRec::flags`]; `scripts/gen-schema` writes the same values.
mod flag {
    pub(super) const REQUIRED: u16 = 1;
    pub(super) const POINTER: u16 = 1 << 1;
    pub(super) const EMIT_ZERO: u16 = 1 << 2;
    pub(super) const OMIT_ZERO: u16 = 1 << 3;
    pub(super) const INLINE: u16 = 1 << 4;
    pub(super) const PATCH_MERGE: u16 = 1 << 5;
    pub(super) const RETAIN_KEYS: u16 = 1 << 6;
    pub(super) const PATCH_REPLACE: u16 = 1 << 7;
    /// Custom resources only.
    pub(super) const NULLABLE: u16 = 1 << 8;
}

#[derive(Clone, Copy, Debug)]
struct KindRec {
    group: Sym,
    version: Sym,
    kind: Sym,
    ty: u32,
}

/// Kinds of `meta/v1` that belong to every group version.
pub(crate) const EVERYWHERE: [&str; 7] =
    ["CreateOptions", "DeleteOptions", "GetOptions", "ListOptions", "PatchOptions", "UpdateOptions", "WatchEvent"];

/// A set of types and the kinds that name some of them.
///
/// One instance holds every built-in type ([`Schema::builtin`]); each version of a custom resource has its own ([`Schema::custom`]).
pub struct Schema {
    strings: Vec<Cow<'static, str>>,
    types: Vec<TypeRec>,
    fields: Vec<FieldRec>,
    /// Sorted by group, version, kind.
    kinds: Vec<KindRec>,
    /// Named struct types, sorted by name.
    names: Vec<(Sym, u32)>,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema")
            .field("types", &self.types.len())
            .field("fields", &self.fields.len())
            .finish_non_exhaustive()
    }
}

impl Schema {
    /// The built-in types of Kubernetes, loaded on first use.
    pub fn builtin() -> &'static Schema {
        static BUILTIN: OnceLock<Schema> = OnceLock::new();
        BUILTIN.get_or_init(|| {
            load::load(include_bytes!("table.bin")).expect("invariant: the checked-in table.bin is well formed")
        })
    }

    /// The type of a kind; `WatchEvent` and the options of `meta/v1` (`DeleteOptions`, ...) are found in every group version.
    pub fn kind(&self, gvk: &GroupVersionKind) -> Option<TypeRef<'_>> {
        let found = match self.find_kind(&gvk.group, &gvk.version, &gvk.kind) {
            None if EVERYWHERE.contains(&gvk.kind.as_str()) => self.find_kind("meta.k8s.io", "v1", &gvk.kind),
            found => found,
        };
        found.map(|k| self.ty(k.ty))
    }

    fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&KindRec> {
        let at = self.kinds.binary_search_by(|k| {
            (self.str(k.group), self.str(k.version), self.str(k.kind)).cmp(&(group, version, kind))
        });
        at.ok().map(|i| &self.kinds[i])
    }

    /// A struct type by its OpenAPI name, for instance `io.k8s.api.core.v1.PodSpec`.
    pub fn named(&self, name: &str) -> Option<TypeRef<'_>> {
        let at = self.names.binary_search_by(|(n, _)| self.str(*n).cmp(name)).ok()?;
        Some(self.ty(self.names[at].1))
    }

    /// Every named type, sorted by name.
    pub fn names(&self) -> impl Iterator<Item = TypeRef<'_>> {
        self.names.iter().map(|(_, ty)| self.ty(*ty))
    }

    /// Every kind, sorted by group, version and kind.
    pub fn kinds(&self) -> impl Iterator<Item = Kind<'_>> {
        self.kinds.iter().map(|k| Kind {
            group: self.str(k.group),
            version: self.str(k.version),
            kind: self.str(k.kind),
            ty: self.ty(k.ty),
        })
    }

    fn str(&self, sym: Sym) -> &str {
        self.strings.get(sym.0 as usize).map_or("", |s| s.as_ref())
    }

    fn opt(&self, sym: Sym) -> Option<&str> {
        (sym != NONE).then(|| self.str(sym))
    }

    fn ty(&self, id: u32) -> TypeRef<'_> {
        let here = TypeRef { schema: self, id };
        match here.rec().tag {
            Tag::Builtin => TypeRef { schema: Schema::builtin(), id: here.rec().first },
            _ => here,
        }
    }
}

/// One kind of a [`Schema`].
#[derive(Clone, Copy, Debug)]
pub struct Kind<'s> {
    /// API group; empty for the core group.
    pub group: &'s str,
    /// API version.
    pub version: &'s str,
    /// Kind.
    pub kind: &'s str,
    /// Its type, always a struct.
    pub ty: TypeRef<'s>,
}

/// Scalar types, told apart by their JSON and protobuf forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leaf {
    /// UTF-8 text.
    String,
    /// Base64 text in JSON.
    Bytes,
    /// `true` or `false`.
    Bool,
    /// 32-bit signed integer.
    Int32,
    /// 64-bit signed integer.
    Int64,
    /// Double-precision number.
    Double,
    /// `resource.Quantity`: text such as `500m` or `1Gi` (numbers are accepted on input).
    Quantity,
    /// An int32 or text.
    IntOrString,
    /// RFC 3339 time with second precision.
    Time,
    /// RFC 3339 time with microsecond precision.
    MicroTime,
    /// Text such as `15s`; nanoseconds in protobuf.
    Duration,
}

/// What a type is.
#[derive(Clone, Copy, Debug)]
pub enum Shape<'s> {
    /// A scalar.
    Leaf(Leaf),
    /// A JSON object with known fields: see [`TypeRef::field`] and [`TypeRef::fields`].
    Struct,
    /// A JSON object with arbitrary keys and values of one type.
    Map(TypeRef<'s>),
    /// A JSON array of elements of one type; how it merges is [`TypeRef::list_type`].
    List(TypeRef<'s>),
    /// A JSON object of the first type, or something else of the second (`JSONSchemaPropsOrBool` and its like).
    Either(TypeRef<'s>, TypeRef<'s>),
    /// Any JSON value, kept as it is (`RawExtension`, `FieldsV1`, `JSON`).
    Any,
}

/// How a list merges (`x-kubernetes-list-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType<'s> {
    /// Replaced as a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Elements are identified by some of their fields.
    Map(Keys<'s>),
}

/// Names of the merge keys of an associative list, in their declared order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys<'s>(&'s str);

impl<'s> Keys<'s> {
    /// The key fields' JSON names.
    pub fn iter(self) -> impl Iterator<Item = &'s str> + Clone {
        self.0.split(',').filter(|k| !k.is_empty())
    }
}

/// How a map or struct merges (`x-kubernetes-map-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    /// Key by key.
    Granular,
    /// Replaced as a whole.
    Atomic,
}

/// A type of a [`Schema`]; a cheap copyable handle.
#[derive(Clone, Copy)]
pub struct TypeRef<'s> {
    schema: &'s Schema,
    id: u32,
}

impl fmt::Debug for TypeRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TypeRef({:?} {})", self.rec().tag, self.name().unwrap_or("-"))
    }
}

impl PartialEq for TypeRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.schema, other.schema) && self.id == other.id
    }
}

impl<'s> TypeRef<'s> {
    fn rec(&self) -> &'s TypeRec {
        &self.schema.types[self.id as usize]
    }

    fn recs(&self) -> &'s [FieldRec] {
        let rec = self.rec();
        &self.schema.fields[rec.first as usize..(rec.first + rec.count) as usize]
    }

    /// OpenAPI name of a struct, for instance `io.k8s.api.core.v1.PodSpec`; `None` for anonymous types.
    pub fn name(&self) -> Option<&'s str> {
        self.schema.opt(self.rec().name)
    }

    /// The type as its name declares it: a field may use a struct with another map type than the struct itself has.
    pub fn declared(&self) -> TypeRef<'s> {
        self.name().and_then(|name| self.schema.named(name)).unwrap_or(*self)
    }

    /// What the type is.
    pub fn shape(&self) -> Shape<'s> {
        let rec = self.rec();
        match rec.tag {
            Tag::Leaf(leaf) => Shape::Leaf(leaf),
            Tag::Struct => Shape::Struct,
            Tag::Map => Shape::Map(self.schema.ty(rec.first)),
            Tag::List | Tag::WrappedList => Shape::List(self.schema.ty(rec.first)),
            Tag::Either => match self.recs() {
                [object, other] => Shape::Either(self.schema.ty(object.ty), self.schema.ty(other.ty)),
                _ => Shape::Any,
            },
            Tag::Any | Tag::Builtin => Shape::Any,
        }
    }

    /// The element type of a list or map.
    pub fn element(&self) -> Option<TypeRef<'s>> {
        match self.shape() {
            Shape::Map(t) | Shape::List(t) => Some(t),
            _ => None,
        }
    }

    /// How a list merges; `None` for anything that is no list.
    pub fn list_type(&self) -> Option<ListType<'s>> {
        let rec = self.rec();
        match (rec.tag, rec.relation) {
            (Tag::List | Tag::WrappedList, Relation::Set) => Some(ListType::Set),
            (Tag::List | Tag::WrappedList, Relation::Keyed) => Some(ListType::Map(Keys(self.schema.str(rec.keys)))),
            (Tag::List | Tag::WrappedList, _) => Some(ListType::Atomic),
            _ => None,
        }
    }

    /// How a map or struct merges; `None` for anything else.
    pub fn map_type(&self) -> Option<MapType> {
        let rec = self.rec();
        match (rec.tag, rec.relation) {
            (Tag::Map | Tag::Struct, Relation::Atomic) => Some(MapType::Atomic),
            (Tag::Map | Tag::Struct, _) => Some(MapType::Granular),
            _ => None,
        }
    }

    /// Whether the type is one of [`Schema::builtin`].
    pub(crate) fn is_builtin(&self) -> bool {
        std::ptr::eq(self.schema, Schema::builtin())
    }

    /// Whether a struct keeps fields it does not know (`x-kubernetes-preserve-unknown-fields`).
    pub fn preserves_unknown(&self) -> bool {
        self.rec().preserves_unknown
    }

    /// Whether the wire form of this list is a message around it.
    pub(crate) fn is_wrapped(&self) -> bool {
        self.rec().tag == Tag::WrappedList
    }

    /// A field of a struct by its JSON name (case-sensitive), including those inlined into it.
    pub fn field(&self, name: &str) -> Option<FieldRef<'s>> {
        if self.rec().tag != Tag::Struct {
            return None;
        }
        self.wire_fields()
            .find_map(|f| if f.is_inline() { f.ty().field(name) } else { (f.name() == name).then_some(f) })
    }

    /// The fields of a struct as its JSON object has them (inlined ones flattened), in order of their protobuf numbers.
    pub fn fields(&self) -> Vec<FieldRef<'s>> {
        let mut out = Vec::with_capacity(self.rec().count as usize);
        self.collect_fields(&mut out);
        out
    }

    fn collect_fields(&self, out: &mut Vec<FieldRef<'s>>) {
        for f in self.wire_fields() {
            if f.is_inline() { f.ty().collect_fields(out) } else { out.push(f) }
        }
    }

    /// The field of a struct's protobuf message with this number.
    pub(crate) fn wire_field(&self, number: u32) -> Option<FieldRef<'s>> {
        let rec = self.recs().binary_search_by_key(&number, |f| f.number).ok().filter(|_| number != 0)?;
        Some(FieldRef { schema: self.schema, rec: &self.recs()[rec] })
    }

    /// The fields of the protobuf message, by number; inlined messages appear as one field. Empty unless a struct or an either.
    pub(crate) fn wire_fields(&self) -> impl DoubleEndedIterator<Item = FieldRef<'s>> + use<'s> {
        let schema = self.schema;
        let recs = if matches!(self.rec().tag, Tag::Struct | Tag::Either) { self.recs() } else { &[] };
        recs.iter().map(move |rec| FieldRef { schema, rec })
    }
}

/// A field of a struct; a cheap copyable handle.
#[derive(Clone, Copy)]
pub struct FieldRef<'s> {
    schema: &'s Schema,
    rec: &'s FieldRec,
}

impl fmt::Debug for FieldRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FieldRef({} {:?})", self.name(), self.ty())
    }
}

impl<'s> FieldRef<'s> {
    /// JSON name.
    pub fn name(&self) -> &'s str {
        self.schema.str(self.rec.name)
    }

    /// Type.
    pub fn ty(&self) -> TypeRef<'s> {
        self.schema.ty(self.rec.ty)
    }

    /// Protobuf field number; 0 when the field is not on the wire (`kind`, `apiVersion`).
    pub fn number(&self) -> u32 {
        self.rec.number
    }

    /// Whether the published schema lists the field as required.
    pub fn is_required(&self) -> bool {
        self.has(flag::REQUIRED)
    }

    /// Whether absent and zero are different values (a pointer in Kubernetes' structs).
    pub fn is_pointer(&self) -> bool {
        self.has(flag::POINTER)
    }

    /// Whether null is a value of its own (custom resources).
    pub fn is_nullable(&self) -> bool {
        self.has(flag::NULLABLE)
    }

    /// Whether a zero scalar appears in JSON all the same (no `omitempty`).
    pub fn emits_zero(&self) -> bool {
        self.has(flag::EMIT_ZERO)
    }

    /// Whether Kubernetes' JSON leaves the field out when it has this value: a zero held by value, with `omitempty`.
    pub fn omits(&self, value: &Value) -> bool {
        let shape = self.ty().shape();
        let is_zero = match (shape, value) {
            (Shape::Leaf(Leaf::String | Leaf::Bytes), Value::String(text)) => text.is_empty(),
            (Shape::Leaf(Leaf::Bool), Value::Bool(is)) => !is,
            (Shape::Leaf(Leaf::Int32 | Leaf::Int64 | Leaf::Double), Value::Number(n)) => n.as_f64() == Some(0.0),
            (Shape::List(_), Value::Array(items)) => items.is_empty(),
            (Shape::Map(_), Value::Object(entries)) => entries.is_empty(),
            _ => false,
        };
        is_zero && self.ty().is_builtin() && !self.is_pointer() && !self.emits_zero()
    }

    /// Whether a struct held by value always appears in JSON and protobuf, `{}` if need be.
    pub fn is_value_struct(&self) -> bool {
        !self.is_pointer() && !self.has(flag::OMIT_ZERO) && self.ty().rec().tag == Tag::Struct
    }

    /// Whether the field's own fields belong to the enclosing JSON object.
    pub(crate) fn is_inline(&self) -> bool {
        self.has(flag::INLINE)
    }

    /// Whether a strategic merge patch merges into this field (`patchStrategy: merge`): lists by [`Self::patch_merge_key`], or as sets of
    /// scalars when there is no key.
    pub fn patch_merge(&self) -> bool {
        self.has(flag::PATCH_MERGE)
    }

    /// Whether a strategic merge patch replaces the field as a whole (`patchStrategy: replace`).
    pub fn patch_replace(&self) -> bool {
        self.has(flag::PATCH_REPLACE)
    }

    /// Whether a strategic merge patch may name the keys to retain (`patchStrategy: retainKeys`).
    pub fn patch_retain_keys(&self) -> bool {
        self.has(flag::RETAIN_KEYS)
    }

    /// The merge key of a strategic merge patch (`patchMergeKey`), for lists of structs.
    pub fn patch_merge_key(&self) -> Option<&'s str> {
        self.schema.opt(self.rec.merge_key)
    }

    /// Static default, as JSON text; may be the zero value of the type.
    pub fn default_json(&self) -> Option<&'s str> {
        self.schema.opt(self.rec.default)
    }

    /// Static default as a value; may be the zero value of the type.
    pub fn default(&self) -> Option<Value> {
        self.default_json().and_then(|text| serde_json::from_str(text).ok())
    }

    fn has(&self, bit: u16) -> bool {
        self.rec.flags & bit != 0
    }
}
