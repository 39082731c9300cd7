//! Classes of characters, and what stands behind a backslash.

use super::{Error, Reader, literal};
use std::fmt::Write;

pub(super) const RANGE: &str = "invalid character class range";
pub(super) const ESCAPE: &str = "invalid escape sequence";
const UNCLOSED: &str = "missing closing ]";

/// The names between `[:` and `:]`.
const NAMES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word",
    "xdigit",
];

impl Reader<'_> {
    /// Reads `\d` and its like: the characters, and whether it means all others.
    pub(super) fn perl(&mut self) -> Option<(&'static str, bool)> {
        let kind = self.rest.strip_prefix('\\')?.chars().next()?;
        let characters = match kind.to_ascii_lowercase() {
            'd' => "0-9",
            's' => "\\t\\n\\x{c}\\r ",
            'w' => "0-9A-Za-z_",
            _ => return None,
        };
        self.rest = &self.rest[2..];
        Some((characters, kind.is_ascii_uppercase()))
    }

    /// Reads `\pL`, `\p{Greek}`, `\P{^Greek}`.
    pub(super) fn unicode(&mut self) -> Result<Option<String>, Error> {
        let start = self.rest;
        let is_negated = self.rest.starts_with("\\P");
        if !is_negated && !self.rest.starts_with("\\p") {
            return Ok(None);
        }
        self.rest = &self.rest[2..];
        let name = if self.rest.starts_with('{') {
            let Some((name, rest)) = self.rest[1..].split_once('}') else { return Err(Error::new(RANGE, start)) };
            self.rest = rest;
            name.to_owned()
        } else {
            self.take().map(String::from).unwrap_or_default()
        };
        let (name, is_negated) = match name.strip_prefix('^') {
            Some(name) => (name, !is_negated),
            None => (name.as_str(), is_negated),
        };
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            return Err(Error::new(RANGE, self.since(start)));
        }
        let class = format!("\\{}{{{name}}}", if is_negated { 'P' } else { 'p' });
        let written = self.since(start).to_owned();
        self.out.classes.push((written, class.clone()));
        Ok(Some(class))
    }

    /// Reads an escape that is one character.
    pub(super) fn escape(&mut self) -> Result<char, Error> {
        let start = self.rest;
        self.take();
        let Some(c) = self.take() else { return Err(Error::new("trailing backslash at end of expression", "")) };
        let octal = |c: Option<char>| c.and_then(|c| c.to_digit(8));
        match c {
            // one digit alone would be what a group has matched
            '1'..='7' if octal(self.rest.chars().next()).is_none() => {}
            '0'..='7' => {
                let mut code = octal(Some(c)).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = octal(self.rest.chars().next()) else { break };
                    self.take();
                    code = code * 8 + digit;
                }
                return char::from_u32(code).ok_or_else(|| Error::new(ESCAPE, self.since(start)));
            }
            'x' => {
                if let Some(c) = self.hexadecimal() {
                    return Ok(c);
                }
            }
            'a' => return Ok('\u{7}'),
            'f' => return Ok('\u{c}'),
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'v' => return Ok('\u{b}'),
            c if c.is_ascii_punctuation() => return Ok(c),
            _ => {}
        }
        Err(Error::new(ESCAPE, self.since(start)))
    }

    /// What follows `\x`: two digits, or any number of them in braces.
    fn hexadecimal(&mut self) -> Option<char> {
        let (digits, rest) = match self.rest.strip_prefix('{') {
            Some(braced) => braced.split_once('}')?,
            None => self.rest.split_at_checked(2)?,
        };
        let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
        self.rest = rest;
        char::from_u32(u32::from_str_radix(digits, 16).ok().filter(|_| is_number)?)
    }

    /// Reads `[…]`.
    pub(super) fn class(&mut self) -> Result<(), Error> {
        let start = self.rest;
        self.take();
        self.out.text.push('[');
        if self.eat("^") {
            self.out.text.push('^');
        }
        let mut is_first = true;
        while is_first || !self.rest.starts_with(']') {
            is_first = false;
            self.item(start)?;
        }
        self.take();
        self.out.text.push(']');
        Ok(())
    }

    /// Reads one part of a class; `class` is where that begins.
    fn item(&mut self, class: &str) -> Result<(), Error> {
        let start = self.rest;
        if let Some((name, rest)) = self.rest.strip_prefix("[:").and_then(|t| t.split_once(":]")) {
            self.rest = rest;
            if !NAMES.contains(&name.trim_start_matches('^')) || name.starts_with("^^") {
                return Err(Error::new(RANGE, self.since(start)));
            }
            let _ = write!(self.out.text, "[:{name}:]");
            return Ok(());
        }
        if let Some(class) = self.unicode()? {
            self.out.text.push_str(&class);
            return Ok(());
        }
        if let Some((characters, is_negated)) = self.perl() {
            let _ = if is_negated {
                write!(self.out.text, "[^{characters}]")
            } else {
                write!(self.out.text, "{characters}")
            };
            return Ok(());
        }
        let from = self.character(class)?;
        literal(&mut self.out.text, from);
        if self.rest.starts_with('-') && !self.rest[1..].starts_with(']') {
            self.take();
            let until = self.character(class)?;
            if until < from {
                return Err(Error::new(RANGE, self.since(start)));
            }
            self.out.text.push('-');
            literal(&mut self.out.text, until);
        }
        Ok(())
    }

    fn character(&mut self, class: &str) -> Result<char, Error> {
        if self.rest.starts_with('\\') {
            return self.escape();
        }
        self.take().ok_or_else(|| Error::new(UNCLOSED, class))
    }
}
