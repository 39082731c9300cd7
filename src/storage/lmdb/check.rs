//! Reads a data file with a reader of its own, before LMDB sees it, and says whether it is whole.
//!
//! LMDB believes what is on its pages: one wrong bit in a page number, and it hands out other data, ends the process, or
//! overwrites pages that are in use. So at each open every page of the newest state is visited once here: its
//! number, kind and bounds, the order of its keys, that no page is used twice or both used and free, that the trees have
//! as many pages and entries as they say, and the checksums of all records and facts.
//!
//! What this cannot find: damage in pages that are not in use, which is harmless; and one single wrong bit in the number of the
//! last transaction, in half of the transactions, which looks like a power cut before that transaction (it is then missing).
//!
//! Sizes are those of the machine's words (`MDB_page`, `MDB_node`, `MDB_db`, `MDB_meta` of LMDB 0.9's file format, version 1).

use super::record;
use crate::error::{Error, Result};
use crate::types::Revision;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// The names of LMDB's databases in the file.
pub(super) const KEYS: &str = "keys";
pub(super) const FACTS: &str = "meta";

const WORD: usize = size_of::<usize>();
/// A page begins with its number, padding, flags, and two bounds (or the number of pages).
const PAGE_HEADER: usize = WORD + 8;
/// A node begins with its size (or page number), flags, and the size of its key.
const NODE_HEADER: usize = 8;
/// What is known of a tree: padding, flags, depth, then five words.
const TREE: usize = 8 + 5 * WORD;
const META: usize = PAGE_HEADER + 8 + 2 * WORD + 2 * TREE + 2 * WORD;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const META_PAGE: u16 = 0x08;

const BIG_DATA: u16 = 0x01;
const SUB_TREE: u16 = 0x02;

const MAGIC: u32 = 0xBEEF_C0DE;
const LMDB_FORMAT: u32 = 1;
const INTEGER_KEYS: u16 = 0x08;
const NO_PAGE: usize = usize::MAX;
/// LMDB's cursors do not go deeper.
const MAX_DEPTH: u16 = 32;
/// Beyond so many pages after its end, the file is cut off.
const UNWRITTEN: u64 = 1 << 20;

/// What a whole file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// The newest durable revision.
    pub(super) revision: Revision,
    /// Revisions up to this one are reserved.
    pub(super) reserved: Revision,
    /// The highest revision of a record.
    pub(super) highest: Revision,
    /// How many keys there are.
    pub(super) keys: u64,
}

/// Checks a file that this program can read in format `known`.
///
/// # Errors
/// [`Error::Format`] when it is in a newer one (then nothing else is looked at), [`Error::Corrupt`], [`Error::Io`].
pub(super) fn check(path: &Path, known: u64) -> Result<State> {
    let io = |e: io::Error| Error::Io { path: path.into(), source: Arc::new(e) };
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let mut checker =
        Checker { path, file, length, page_size: 0, last_page: 0, used: Vec::new(), state: State::default() };
    let meta = checker.newest_meta()?;
    checker.used = vec![0; meta.last_page / 8 + 1];
    checker.page_size = meta.page_size;
    checker.last_page = meta.last_page;
    checker.format(&meta.main, known)?;
    checker.tree(&meta.main, Kind::Names)?;
    checker.tree(&meta.free, Kind::Free)?;
    Ok(checker.state)
}

/// The two trees of the newest transaction.
struct Meta {
    transaction: usize,
    page_size: usize,
    last_page: usize,
    free: Tree,
    main: Tree,
}

#[derive(Clone, Copy)]
struct Tree {
    flags: u16,
    depth: u16,
    branches: usize,
    leaves: usize,
    overflows: usize,
    entries: usize,
    root: usize,
}

impl Tree {
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            flags: short(bytes, 4)?,
            depth: short(bytes, 6)?,
            branches: word(bytes, 8)?,
            leaves: word(bytes, 8 + WORD)?,
            overflows: word(bytes, 8 + 2 * WORD)?,
            entries: word(bytes, 8 + 3 * WORD)?,
            root: word(bytes, 8 + 4 * WORD)?,
        })
    }
}

/// What the leaves of a tree are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Transactions to the pages that they freed.
    Free,
    /// Names to other trees.
    Names,
    /// Keys to records.
    Keys,
    /// Names to facts.
    Facts,
}

/// What was found in a tree.
#[derive(Default, PartialEq, Eq)]
struct Found {
    branches: usize,
    leaves: usize,
    overflows: usize,
    entries: usize,
    keys: bool,
    facts: bool,
}

struct Checker<'p> {
    path: &'p Path,
    file: File,
    length: u64,
    page_size: usize,
    last_page: usize,
    /// A bit per page that has been met.
    used: Vec<u8>,
    state: State,
}

/// Where the keys of a subtree may lie: from the first on, before the second.
type Bounds<'k> = (Option<&'k [u8]>, Option<&'k [u8]>);

impl Checker<'_> {
    fn corrupt(&self, detail: impl Into<String>) -> Error {
        Error::Corrupt { path: self.path.into(), detail: detail.into() }
    }

    fn damaged(&self, page: usize, what: &str) -> Error {
        self.corrupt(format!("page {page}: {what}"))
    }

    /// Exactly `length` bytes from an offset.
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        if offset.checked_add(length as u64).is_none_or(|end| end > self.length) {
            let needs = offset.saturating_add(length as u64);
            return Err(self.corrupt(format!("it is cut off: {} bytes long, at least {needs} are needed", self.length)));
        }
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|e| Error::Io { path: self.path.into(), source: Arc::new(e) })?;
        Ok(bytes)
    }

    /// Reads both first pages, which take turns in saying which transaction was the last.
    fn newest_meta(&self) -> Result<Meta> {
        let first = self.meta(0, 0)?;
        let second = self.meta(1, first.page_size as u64)?;
        if first.page_size != second.page_size {
            return Err(self.corrupt("its first pages do not agree on the size of pages"));
        }
        if first.transaction.abs_diff(second.transaction) != 1 || first.transaction % 2 != 0 {
            return Err(self.corrupt(format!(
                "transactions {} and {} cannot be the last two",
                first.transaction, second.transaction
            )));
        }
        let newest = if first.transaction > second.transaction { first } else { second };
        // free pages at the end need not be in the file; that can only be so many as one transaction may free
        let pages = self.length / newest.page_size as u64;
        if newest.last_page as u64 > pages + UNWRITTEN {
            let detail = format!("it is cut off: {pages} pages long, but it has {}", newest.last_page);
            return Err(self.corrupt(detail));
        }
        Ok(newest)
    }

    fn meta(&self, index: usize, offset: u64) -> Result<Meta> {
        let bytes = self.read(offset, META)?;
        let no_store = || self.corrupt("it is no store");
        let magic = long(&bytes, PAGE_HEADER).ok_or_else(no_store)?;
        if magic != MAGIC || short(&bytes, WORD + 2) != Some(META_PAGE) || word(&bytes, 0) != Some(index) {
            return Err(no_store());
        }
        let version = long(&bytes, PAGE_HEADER + 4).ok_or_else(no_store)?;
        if version != LMDB_FORMAT {
            let (found, known) = (u64::from(version), u64::from(LMDB_FORMAT));
            return Err(Error::Format { path: self.path.into(), what: "LMDB", found, known });
        }
        let trees = PAGE_HEADER + 8 + 2 * WORD;
        let tree = |at: usize| bytes.get(at..at + TREE).and_then(Tree::read).ok_or_else(no_store);
        let after = trees + 2 * TREE;
        let page_size = long(&bytes, trees).ok_or_else(no_store)? as usize;
        if !page_size.is_power_of_two() || !(512..=65536).contains(&page_size) {
            return Err(self.corrupt(format!("pages of {page_size} bytes")));
        }
        Ok(Meta {
            transaction: word(&bytes, after + WORD).ok_or_else(no_store)?,
            page_size,
            last_page: word(&bytes, after).ok_or_else(no_store)?,
            free: tree(trees)?,
            main: tree(trees + TREE)?,
        })
    }

    /// Looks for the format, without trusting anything else: a newer one may differ in all but this.
    fn format(&self, main: &Tree, known: u64) -> Result<()> {
        let missing = || self.corrupt("it does not say its format");
        let name = FACTS.as_bytes();
        let facts = self.find(main, name)?.and_then(|data| Tree::read(&data)).ok_or_else(missing)?;
        let fact = self.find(&facts, record::FORMAT)?.ok_or_else(missing)?;
        match record::read_fact(record::FORMAT, &fact) {
            Some(found) if found > known => Err(Error::Format { path: self.path.into(), what: "store", found, known }),
            Some(found) if found == known => Ok(()),
            _ => Err(missing()),
        }
    }

    /// The data of a key in a tree of one leaf, which is all that names and facts ever need.
    fn find(&self, tree: &Tree, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if tree.root == NO_PAGE || tree.depth != 1 {
            return Ok(None);
        }
        let page = self.page(tree.root, LEAF)?;
        for node in &self.nodes(tree.root, &page)? {
            if node.key == key && node.flags & BIG_DATA == 0 {
                return Ok(Some(node.data.to_vec()));
            }
        }
        Ok(None)
    }

    /// Visits a whole tree.
    fn tree(&mut self, tree: &Tree, kind: Kind) -> Result<()> {
        let flags = if kind == Kind::Free { INTEGER_KEYS } else { 0 };
        if tree.flags != flags || tree.depth > MAX_DEPTH {
            return Err(self.corrupt("a tree is of an impossible kind"));
        }
        let mut found = Found::default();
        if tree.root == NO_PAGE {
            if tree.depth != 0 {
                return Err(self.corrupt("a tree has lost its root"));
            }
        } else if tree.depth == 0 {
            return Err(self.corrupt("an empty tree has a root"));
        } else {
            self.subtree(tree.root, tree.depth, kind, (None, None), &mut found)?;
        }
        let counted = (found.branches, found.leaves, found.overflows, found.entries);
        let said = (tree.branches, tree.leaves, tree.overflows, tree.entries);
        if counted != said {
            return Err(
                self.corrupt(format!("a tree has {counted:?} pages and entries, and says that it has {said:?}"))
            );
        }
        if kind == Kind::Keys {
            self.state.keys = found.entries as u64;
        }
        match kind {
            Kind::Names if !(found.keys && found.facts && found.entries == 2) => {
                Err(self.corrupt("it does not have the databases of a store"))
            }
            _ => Ok(()),
        }
    }

    /// Visits what is at and below a page that is so many levels above nothing.
    fn subtree(&mut self, number: usize, levels: u16, kind: Kind, within: Bounds<'_>, found: &mut Found) -> Result<()> {
        self.claim(number)?;
        let page = self.page(number, if levels > 1 { BRANCH } else { LEAF })?;
        let nodes = self.nodes(number, &page)?;
        if nodes.is_empty() && kind != Kind::Free {
            return Err(self.damaged(number, "nothing is on it"));
        }
        let branch = levels > 1;
        // the first key of a branch is never looked at: everything smaller is below it
        let keys = nodes.iter().skip(usize::from(branch)).map(|n| n.key);
        if !keys.clone().zip(keys.clone().skip(1)).all(|(a, b)| kind.is_before(a, b)) {
            return Err(self.damaged(number, "its keys are not in order"));
        }
        let inside = |key: &[u8]| {
            within.0.is_none_or(|least| !kind.is_before(key, least))
                && within.1.is_none_or(|end| kind.is_before(key, end))
        };
        if !keys.clone().all(inside) {
            return Err(self.damaged(number, "its keys do not belong there"));
        }
        if branch {
            found.branches += 1;
            for (i, node) in nodes.iter().enumerate() {
                let least = if i == 0 { within.0 } else { Some(node.key) };
                let end = nodes.get(i + 1).map(|n| n.key).or(within.1);
                self.subtree(node.child(), levels - 1, kind, (least, end), found)?;
            }
        } else {
            found.leaves += 1;
            for node in &nodes {
                found.entries += 1;
                self.leaf_node(number, node, kind, found)?;
            }
        }
        Ok(())
    }

    fn leaf_node(&mut self, page: usize, node: &Node<'_>, kind: Kind, found: &mut Found) -> Result<()> {
        let allowed = match kind {
            Kind::Names => node.flags == SUB_TREE,
            _ => node.flags & !BIG_DATA == 0,
        };
        if !allowed {
            return Err(self.damaged(page, "an entry of an impossible kind"));
        }
        let overflow;
        let data = if node.flags & BIG_DATA != 0 {
            let (pages, bytes) = self.overflow(page, node)?;
            found.overflows += pages;
            overflow = bytes;
            &overflow[..]
        } else {
            node.data
        };
        match kind {
            Kind::Free => self.free_pages(page, data),
            Kind::Names => {
                let tree = Tree::read(data).filter(|_| data.len() == TREE);
                let tree = tree.ok_or_else(|| self.damaged(page, "a database without a description"))?;
                match node.key {
                    key if key == KEYS.as_bytes() => found.keys = true,
                    key if key == FACTS.as_bytes() => found.facts = true,
                    _ => return Err(self.damaged(page, "a database that a store does not have")),
                }
                self.tree(&tree, if node.key == KEYS.as_bytes() { Kind::Keys } else { Kind::Facts })
            }
            Kind::Keys => {
                let revision = record::verify(node.key, data).ok_or_else(|| {
                    self.corrupt(format!("record {:?} fails its checksum", String::from_utf8_lossy(node.key)))
                })?;
                self.state.highest = self.state.highest.max(revision);
                Ok(())
            }
            Kind::Facts => {
                let number = record::read_fact(node.key, data).ok_or_else(|| {
                    self.corrupt(format!("fact {:?} fails its checksum", String::from_utf8_lossy(node.key)))
                })?;
                match node.key {
                    record::REVISION => self.state.revision = number,
                    record::RESERVED => self.state.reserved = number,
                    _ => {}
                }
                Ok(())
            }
        }
    }

    /// The data that a node has on pages of its own, and how many those are.
    fn overflow(&mut self, page: usize, node: &Node<'_>) -> Result<(usize, Vec<u8>)> {
        let first = word(node.data, 0).ok_or_else(|| self.damaged(page, "an entry without its page"))?;
        self.claim(first)?;
        let head = self.read(self.offset(first), PAGE_HEADER)?;
        let needed = (PAGE_HEADER - 1 + node.size) / self.page_size + 1;
        let pages = long(&head, WORD + 4).map(|n| n as usize).filter(|n| *n >= needed);
        let pages = pages.filter(|_| word(&head, 0) == Some(first) && short(&head, WORD + 2) == Some(OVERFLOW));
        let pages = pages.ok_or_else(|| self.damaged(first, "not the pages of a large entry"))?;
        for number in first + 1..first.saturating_add(pages) {
            self.claim(number)?;
        }
        let data = self.read(self.offset(first) + PAGE_HEADER as u64, node.size)?;
        Ok((pages, data))
    }

    /// A list of free pages: how many, then their numbers.
    fn free_pages(&mut self, page: usize, data: &[u8]) -> Result<()> {
        let count = word(data, 0).filter(|count| *count < data.len() / WORD);
        let count = count.ok_or_else(|| self.damaged(page, "a list of free pages that is too short"))?;
        for i in 1..=count {
            let number = word(data, i * WORD).unwrap_or(NO_PAGE);
            self.claim(number)?;
        }
        Ok(())
    }

    /// Notes that a page has been met, which may happen only once.
    fn claim(&mut self, number: usize) -> Result<()> {
        if number < 2 || number > self.last_page {
            return Err(self.damaged(number, "is referred to and does not exist"));
        }
        let (byte, bit) = (number / 8, 1 << (number % 8));
        if self.used[byte] & bit != 0 {
            return Err(self.damaged(number, "is used twice"));
        }
        self.used[byte] |= bit;
        Ok(())
    }

    fn offset(&self, number: usize) -> u64 {
        number as u64 * self.page_size as u64
    }

    fn page(&self, number: usize, flags: u16) -> Result<Vec<u8>> {
        if number < 2 || number > self.last_page {
            return Err(self.damaged(number, "is referred to and does not exist"));
        }
        let page = self.read(self.offset(number), self.page_size)?;
        if word(&page, 0) != Some(number) || short(&page, WORD + 2) != Some(flags) {
            return Err(self.damaged(number, "another page is in its place"));
        }
        Ok(page)
    }

    /// The nodes of a branch or leaf, which lie without gaps between the upper bound and the page's end.
    fn nodes<'b>(&self, number: usize, page: &'b [u8]) -> Result<Vec<Node<'b>>> {
        let damaged = || self.damaged(number, "its entries are out of bounds");
        let lower = short(page, WORD + 4).ok_or_else(damaged)? as usize;
        let upper = short(page, WORD + 6).ok_or_else(damaged)? as usize;
        if lower < PAGE_HEADER || lower > upper || upper > page.len() || !(lower - PAGE_HEADER).is_multiple_of(2) {
            return Err(damaged());
        }
        let is_branch = short(page, WORD + 2) == Some(BRANCH);
        let mut nodes = Vec::with_capacity((lower - PAGE_HEADER) / 2);
        let mut total = 0;
        for at in (PAGE_HEADER..lower).step_by(2) {
            let start = short(page, at).ok_or_else(damaged)? as usize;
            let node = page.get(start..).filter(|_| start >= upper).and_then(|rest| Node::read(rest, is_branch));
            let (node, length) = node.ok_or_else(damaged)?;
            total += length.next_multiple_of(2);
            nodes.push(node);
        }
        if total != page.len() - upper {
            return Err(damaged());
        }
        Ok(nodes)
    }
}

impl Kind {
    fn is_before(self, a: &[u8], b: &[u8]) -> bool {
        match self {
            Self::Free => match (word(a, 0), word(b, 0)) {
                (Some(x), Some(y)) => a.len() == WORD && b.len() == WORD && x < y,
                _ => false,
            },
            _ => a < b,
        }
    }
}

struct Node<'b> {
    /// Of its data; in branches, with the flags, the page below.
    size: usize,
    flags: u16,
    key: &'b [u8],
    /// In the node itself: of a large entry only where it is.
    data: &'b [u8],
}

impl<'b> Node<'b> {
    /// A node and its length on the page.
    fn read(bytes: &'b [u8], is_branch: bool) -> Option<(Self, usize)> {
        let size = short(bytes, 0)? as usize | (short(bytes, 2)? as usize) << 16;
        let flags = short(bytes, 4)?;
        let key_size = short(bytes, 6)? as usize;
        let key = bytes.get(NODE_HEADER..NODE_HEADER + key_size)?;
        let data_size = match (is_branch, flags & BIG_DATA != 0) {
            (true, _) => 0,
            (false, true) => WORD,
            (false, false) => size,
        };
        let end = NODE_HEADER + key_size + data_size;
        let data = bytes.get(NODE_HEADER + key_size..end)?;
        Some((Self { size, flags, key, data }, end))
    }

    fn child(&self) -> usize {
        // page numbers have 48 bits, of which the flags are the upper ones
        self.size | usize::from(self.flags).checked_shl(32).unwrap_or(0)
    }
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.first_chunk().map(|b| usize::from_ne_bytes(*b))
}
