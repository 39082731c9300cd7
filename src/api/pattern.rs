//! Regular expressions as Go has them (RE2), which are those of schemas and of CEL.
//!
//! In: a pattern of a user. Out: the same for the crate `regex`, which promises the same linear time. The two mean different things by
//! some signs (`\d` and `\b` are ASCII's in Go, `[a&&b]` is no intersection, `\Q…\E` and octal numbers are not known to the crate, a lone `{` is
//! one), so a pattern is read here and written anew; what Go refuses is refused, in Go's words.

mod class;

pub use regex::Regex;
use regex::RegexBuilder;
use std::fmt::Write;

/// Why a pattern is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("error parsing regexp: {what}: `{part}`")]
pub struct Error {
    /// What is wrong.
    what: &'static str,
    /// With which part.
    part: String,
}

impl Error {
    fn new(what: &'static str, part: &str) -> Self {
        Self { what, part: part.to_owned() }
    }
}

/// Something may be repeated so often.
const MOST_REPEATED: u32 = 1000;
/// Levels of groups at most.
const DEEPEST: u32 = 100;
/// Bytes for the states that a search finds out as it goes; what needs more is searched without them.
const STATES: usize = 64 * 1024;

/// Compiles a pattern that takes so many bytes at most.
///
/// # Errors
/// What Go says about one that is none, or too large.
pub fn compile(pattern: &str, most: usize) -> Result<Regex, Error> {
    let translated = translate(pattern)?;
    let build =
        |text: &str| RegexBuilder::new(text).size_limit(most).dfa_size_limit(STATES).nest_limit(DEEPEST).build();
    build(&translated.text).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => Error::new("expression too large", pattern),
        _ => {
            // a class that there is not, or else too many groups in one another
            let unknown = translated.classes.iter().find(|(_, class)| build(class).is_err());
            let deep = || Error::new("expression nests too deeply", pattern);
            unknown.map_or_else(deep, |(part, _)| Error::new(class::RANGE, part))
        }
    })
}

/// A pattern in the crate's language.
#[derive(Debug, Default)]
struct Translated {
    text: String,
    /// The Unicode classes in it, as they were written and as they are now.
    classes: Vec<(String, String)>,
}

fn translate(pattern: &str) -> Result<Translated, Error> {
    let mut reader = Reader { whole: pattern, rest: pattern, out: Translated::default() };
    reader.read()?;
    Ok(reader.out)
}

struct Reader<'p> {
    whole: &'p str,
    rest: &'p str,
    out: Translated,
}

/// What stands before a repetition.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Something,
    Repetition,
}

/// A character that stands for itself.
fn literal(out: &mut String, c: char) {
    if c.is_ascii_alphanumeric() || (!c.is_ascii() && !c.is_control()) || matches!(c, ' ' | '_' | '/' | ':' | ',') {
        out.push(c);
    } else {
        let _ = write!(out, "\\x{{{:x}}}", u32::from(c));
    }
}

impl<'p> Reader<'p> {
    fn take(&mut self) -> Option<char> {
        let mut rest = self.rest.chars();
        let c = rest.next();
        self.rest = rest.as_str();
        c
    }

    fn eat(&mut self, text: &str) -> bool {
        self.rest.strip_prefix(text).map(|rest| self.rest = rest).is_some()
    }

    /// What has been read since.
    fn since(&self, start: &'p str) -> &'p str {
        &start[..start.len() - self.rest.len()]
    }

    fn read(&mut self) -> Result<(), Error> {
        let mut open = 0_u32;
        let mut before = Before::Nothing;
        // where the repetition before this place begins
        let mut last = self.rest;
        while let Some(c) = self.rest.chars().next() {
            let start = self.rest;
            match c {
                '*' | '+' | '?' => {
                    self.take();
                    self.repetition(before, last, start, c.encode_utf8(&mut [0; 4]))?;
                    (before, last) = (Before::Repetition, start);
                }
                '{' => match self.count()? {
                    Some(count) => {
                        self.repetition(before, last, start, &count)?;
                        (before, last) = (Before::Repetition, start);
                    }
                    None => {
                        self.take();
                        literal(&mut self.out.text, '{');
                        before = Before::Something;
                    }
                },
                '(' => {
                    open += 1;
                    if self.group()? {
                        // flags for what follows are no group
                        open -= 1;
                    }
                    before = Before::Nothing;
                }
                ')' => {
                    self.take();
                    open = open.checked_sub(1).ok_or_else(|| Error::new("unexpected )", self.whole))?;
                    self.out.text.push(')');
                    before = Before::Something;
                }
                '|' => {
                    self.take();
                    self.out.text.push('|');
                    before = Before::Nothing;
                }
                '[' => {
                    self.class()?;
                    before = Before::Something;
                }
                '\\' => {
                    if self.outer_escape()? {
                        before = Before::Something;
                    }
                }
                '.' | '^' | '$' => {
                    self.take();
                    self.out.text.push(c);
                    before = Before::Something;
                }
                c => {
                    self.take();
                    literal(&mut self.out.text, c);
                    before = Before::Something;
                }
            }
        }
        if open > 0 { Err(Error::new("missing closing )", self.whole)) } else { Ok(()) }
    }

    /// Takes a repetition that has been read; `last` is where the one before it began, and `start` where this one did.
    fn repetition(&mut self, before: Before, last: &'p str, start: &'p str, text: &str) -> Result<(), Error> {
        let is_lazy = self.eat("?");
        match before {
            Before::Nothing => Err(Error::new("missing argument to repetition operator", self.since(start))),
            Before::Repetition => Err(Error::new("invalid nested repetition operator", self.since(last))),
            Before::Something => {
                self.out.text.push_str(text);
                self.out.text.push_str(if is_lazy { "?" } else { "" });
                Ok(())
            }
        }
    }

    /// Reads `{2}`, `{2,}` or `{2,3}`; anything else is a brace.
    fn count(&mut self) -> Result<Option<String>, Error> {
        let number = |text: &str| -> Option<Option<u32>> {
            let is_one = !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_digit())
                && (text.len() == 1 || !text.starts_with('0'));
            // what is too large to be a number is too much in any case
            is_one.then(|| text.parse().ok())
        };
        let Some((inner, rest)) = self.rest.strip_prefix('{').and_then(|t| t.split_once('}')) else { return Ok(None) };
        let (least, most) = match inner.split_once(',') {
            None => (number(inner), number(inner)),
            Some((least, "")) => (number(least), Some(Some(0))),
            Some((least, most)) => (number(least), number(most)),
        };
        let (Some(least), Some(most)) = (least, most) else { return Ok(None) };
        let has_end = !inner.ends_with(',');
        let fits = |n: Option<u32>| n.is_some_and(|n| n <= MOST_REPEATED);
        if !fits(least) || !fits(most) || (has_end && most < least) {
            return Err(Error::new("invalid repeat count", &self.rest[..inner.len() + 2]));
        }
        self.rest = rest;
        Ok(Some(format!("{{{inner}}}")))
    }

    /// Reads what begins a group, or flags; whether it was flags alone.
    fn group(&mut self) -> Result<bool, Error> {
        let start = self.rest;
        self.take();
        if !self.eat("?") {
            self.out.text.push('(');
            return Ok(false);
        }
        if self.rest.starts_with("P<") || self.rest.starts_with('<') {
            self.eat("P");
            self.take();
            let Some((name, rest)) = self.rest.split_once('>') else {
                return Err(Error::new("invalid named capture", start));
            };
            self.rest = rest;
            let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !is_name {
                return Err(Error::new("invalid named capture", self.since(start)));
            }
            let again = format!("(?P<{name}>");
            if self.out.text.contains(&again) {
                return Err(Error::new("duplicate capture group name", name));
            }
            // a name may begin with a digit in Go; nobody asks for groups by name
            self.out.text.push_str(if name.starts_with(|c: char| c.is_ascii_digit()) { "(" } else { &again });
            return Ok(false);
        }
        let (mut is_off, mut has_flag) = (false, false);
        while let Some(c) = self.take() {
            match c {
                'i' | 'm' | 's' | 'U' => has_flag = true,
                '-' if !is_off => (is_off, has_flag) = (true, false),
                ':' | ')' if !is_off || has_flag => {
                    let flags = self.since(start);
                    self.out.text.push_str(if flags == "(?)" { "" } else { flags });
                    return Ok(c == ')');
                }
                _ => break,
            }
        }
        Err(Error::new("invalid or unsupported Perl syntax", self.since(start)))
    }

    /// Reads an escape outside of brackets; whether it is something that can be repeated.
    fn outer_escape(&mut self) -> Result<bool, Error> {
        let start = self.rest;
        if self.eat("\\Q") {
            let (text, rest) = self.rest.split_once("\\E").unwrap_or((self.rest, ""));
            self.rest = rest;
            text.chars().for_each(|c| literal(&mut self.out.text, c));
            return Ok(!text.is_empty());
        }
        for (written, meant) in [("\\A", "\\A"), ("\\z", "\\z"), ("\\b", "(?-u:\\b)"), ("\\B", "(?-u:\\B)")] {
            if self.eat(written) {
                self.out.text.push_str(meant);
                return Ok(true);
            }
        }
        if self.eat("\\C") {
            return Err(Error::new(class::ESCAPE, self.since(start)));
        }
        if let Some((perl, is_negated)) = self.perl() {
            let _ = write!(self.out.text, "[{}{perl}]", if is_negated { "^" } else { "" });
        } else if let Some(class) = self.unicode()? {
            self.out.text.push_str(&class);
        } else {
            let c = self.escape()?;
            literal(&mut self.out.text, c);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
