//! Text to tokens.

use crate::error::Issue;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    Int(u64),
    Uint(u64),
    Double(f64),
    String(String),
    Bytes(Arc<[u8]>),
    /// Also keywords.
    Ident(String),
    /// A field in backquotes, which may hold any characters of Kubernetes' names.
    Quoted(String),
    Symbol(&'static str),
    End,
}

/// Longest first.
const SYMBOLS: [&str; 29] = [
    "&&", "||", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "<", ">", "!", "?", ":", ".", ",", "(", ")", "[", "]",
    "{", "}", "=", "&", "|", ";", "^",
];

/// All tokens with their byte offsets; the last one is [`Token::End`].
///
/// # Errors
/// What is no token.
pub(crate) fn tokens(text: &str) -> Result<Vec<(u32, Token)>, Issue> {
    let mut lexer = Lexer { text, at: 0 };
    let mut out = Vec::new();
    loop {
        lexer.skip_space();
        let at = u32::try_from(lexer.at).unwrap_or(u32::MAX);
        let token = lexer.next().map_err(|message| Issue { at, message })?;
        let is_end = token == Token::End;
        out.push((at, token));
        if is_end {
            return Ok(out);
        }
    }
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

fn syntax(what: impl std::fmt::Display) -> String {
    format!("Syntax error: {what}")
}

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip_space(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n', '\u{c}']);
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn next(&mut self) -> Result<Token, String> {
        let Some(c) = self.peek() else { return Ok(Token::End) };
        if c.is_ascii_digit() || (c == '.' && self.rest()[1..].starts_with(|d: char| d.is_ascii_digit())) {
            return self.number();
        }
        if let Some((raw, bytes, length)) = self.string_prefix() {
            self.at += length;
            return self.string(raw, bytes);
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let rest = self.rest();
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            self.at += end;
            return Ok(Token::Ident(rest[..end].to_owned()));
        }
        if c == '`' {
            let inner = &self.rest()[1..];
            let end = inner.find('`').ok_or_else(|| syntax("token recognition error at: '`'"))?;
            let name = &inner[..end];
            let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | ' ');
            if name.is_empty() || !name.chars().all(is_fine) {
                return Err(syntax(format!("token recognition error at: '`{name}`'")));
            }
            self.at += end + 2;
            return Ok(Token::Quoted(name.to_owned()));
        }
        let Some(symbol) = SYMBOLS.iter().find(|s| self.rest().starts_with(**s)) else {
            return Err(syntax(format!("token recognition error at: '{c}'")));
        };
        self.at += symbol.len();
        match *symbol {
            "=" | "&" | "|" | ";" | "^" => Err(syntax(format!("token recognition error at: '{symbol}'"))),
            symbol => Ok(Token::Symbol(symbol)),
        }
    }

    /// `r`, `b`, `rb`, `br` in any case before a quote: whether it is raw, whether it is bytes, and how long.
    fn string_prefix(&self) -> Option<(bool, bool, usize)> {
        let (mut raw, mut bytes) = (false, false);
        for (i, c) in self.rest().chars().enumerate().take(3) {
            match c {
                '"' | '\'' => return Some((raw, bytes, i)),
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes => bytes = true,
                _ => return None,
            }
        }
        None
    }

    fn number(&mut self) -> Result<Token, String> {
        let rest = self.rest();
        if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
            let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
            let value = u64::from_str_radix(&hex[..end], 16).map_err(|_| "invalid int literal".to_owned())?;
            self.at += 2 + end;
            return Ok(self.maybe_unsigned(value));
        }
        let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let mut end = digits(rest);
        let mut is_double = false;
        if rest[end..].starts_with('.') && rest[end + 1..].starts_with(|c: char| c.is_ascii_digit()) {
            is_double = true;
            end += 1 + digits(&rest[end + 1..]);
        }
        if rest[end..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
            let exponent = digits(&rest[end + 1 + sign..]);
            if exponent > 0 {
                is_double = true;
                end += 1 + sign + exponent;
            }
        }
        self.at += end;
        let text = &rest[..end];
        if is_double {
            let value: f64 = text.parse().map_err(|_| "invalid double literal".to_owned())?;
            return if value.is_finite() { Ok(Token::Double(value)) } else { Err("invalid double literal".to_owned()) };
        }
        let value = text.parse().map_err(|_| "invalid int literal".to_owned())?;
        Ok(self.maybe_unsigned(value))
    }

    fn maybe_unsigned(&mut self, value: u64) -> Token {
        if self.rest().starts_with(['u', 'U']) {
            self.at += 1;
            return Token::Uint(value);
        }
        Token::Int(value)
    }

    fn string(&mut self, raw: bool, bytes: bool) -> Result<Token, String> {
        let rest = self.rest();
        let quote = &rest[..1];
        let triple = if quote == "\"" { "\"\"\"" } else { "'''" };
        let quote = if rest.starts_with(triple) { triple } else { quote };
        self.at += quote.len();
        let mut out: Vec<u8> = Vec::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(quote) {
                self.at += quote.len();
                break;
            }
            let Some(c) = self.peek() else { return Err(syntax("unterminated string")) };
            if (c == '\n' || c == '\r') && quote.len() == 1 {
                return Err(syntax("unterminated string"));
            }
            self.at += c.len_utf8();
            if c == '\\' && !raw {
                self.escape(bytes, &mut out)?;
            } else {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        if bytes {
            return Ok(Token::Bytes(out.into()));
        }
        String::from_utf8(out).map(Token::String).map_err(|_| syntax("invalid UTF-8"))
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), String> {
        let bad = || syntax("invalid escape sequence");
        let c = self.peek().ok_or_else(bad)?;
        self.at += c.len_utf8();
        let simple = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '\'' | '"' | '`' | '?' => c as u8,
            'x' | 'X' => return self.code(2, 16, bytes, out),
            'u' if !bytes => return self.code(4, 16, false, out),
            'U' if !bytes => return self.code(8, 16, false, out),
            '0'..='3' => {
                self.at -= 1;
                return self.code(3, 8, bytes, out);
            }
            _ => return Err(bad()),
        };
        out.push(simple);
        Ok(())
    }

    fn code(&mut self, digits: usize, radix: u32, is_byte: bool, out: &mut Vec<u8>) -> Result<(), String> {
        let bad = || syntax("invalid escape sequence");
        let text = self.rest().get(..digits).filter(|t| t.chars().all(|c| c.is_digit(radix))).ok_or_else(bad)?;
        let code = u32::from_str_radix(text, radix).map_err(|_| bad())?;
        self.at += digits;
        if is_byte {
            out.push(u8::try_from(code).map_err(|_| bad())?);
        } else {
            let c = char::from_u32(code).ok_or_else(bad)?;
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }
}
