//! Tokens to a tree. Nesting is bounded, so neither this nor whatever goes through the tree can run out of stack.

use crate::ast::{Call, Expr, Fold, FoldKind, Kind, Literal, Op};
use crate::error::Issue;
use crate::lexer::{Token, tokens};

/// Characters of an expression at most (cel-go's value).
const LONGEST: usize = 100_000;
/// Levels of a tree at most; of cel-go's 250 each is a rule of the grammar, of which a level of the tree takes several.
pub(crate) const DEEPEST: u16 = 150;
/// Words that are no names.
const RESERVED: [&str; 19] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "null",
    "package",
    "return",
    "true",
    "void",
];

/// The tree of an expression.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn parse(text: &str) -> Result<Expr, Issue> {
    let size = text.chars().count();
    if size > LONGEST {
        let message = format!("expression code point size exceeds limit: size: {size}, limit {LONGEST}");
        return Err(Issue { at: 0, message });
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, nesting: 0 };
    let expr = parser.expression()?;
    parser.expect_end()?;
    Ok(expr)
}

struct Parser {
    tokens: Vec<(u32, Token)>,
    next: usize,
    nesting: u16,
}

fn too_deep(at: u32) -> Issue {
    Issue { at, message: format!("expression recursion limit exceeded: {DEEPEST}") }
}

fn node(at: u32, kind: Kind, children: u16) -> Result<Expr, Issue> {
    let depth = children + 1;
    if depth > DEEPEST { Err(too_deep(at)) } else { Ok(Expr { at, depth, kind }) }
}

fn deepest<'e>(of: impl IntoIterator<Item = &'e Expr>) -> u16 {
    of.into_iter().map(|e| e.depth).max().unwrap_or(0)
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |(_, t)| t)
    }

    fn at(&self) -> u32 {
        self.tokens.get(self.next).or(self.tokens.last()).map_or(0, |(at, _)| *at)
    }

    fn take(&mut self) -> Token {
        let token = self.tokens.get_mut(self.next).map_or(Token::End, |(_, t)| std::mem::replace(t, Token::End));
        self.next += 1;
        token
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.peek(), Token::Symbol(s) if *s == symbol)
    }

    fn eat(&mut self, symbol: &str) -> bool {
        let found = self.is(symbol);
        self.next += usize::from(found);
        found
    }

    fn unexpected(&self, expected: &str) -> Issue {
        let input = match self.peek() {
            Token::End => "<EOF>".to_owned(),
            Token::Int(v) => v.to_string(),
            Token::Uint(v) => format!("{v}u"),
            Token::Double(v) => v.to_string(),
            Token::String(v) => format!("{v:?}"),
            Token::Bytes(_) => "bytes".to_owned(),
            Token::Ident(v) => v.clone(),
            Token::Quoted(v) => format!("`{v}`"),
            Token::Symbol(v) => (*v).to_owned(),
        };
        let message = match expected {
            "" => format!("Syntax error: extraneous input '{input}' expecting <EOF>"),
            _ => format!("Syntax error: mismatched input '{input}' expecting {expected}"),
        };
        Issue { at: self.at(), message }
    }

    fn expect(&mut self, symbol: &str) -> Result<(), Issue> {
        if self.eat(symbol) { Ok(()) } else { Err(self.unexpected(&format!("'{symbol}'"))) }
    }

    fn expect_end(&self) -> Result<(), Issue> {
        if *self.peek() == Token::End { Ok(()) } else { Err(self.unexpected("")) }
    }

    fn expression(&mut self) -> Result<Expr, Issue> {
        self.nesting += 1;
        if self.nesting > DEEPEST / 2 {
            return Err(too_deep(self.at()));
        }
        let condition = self.any_of()?;
        let out = if self.is("?") {
            let at = self.at();
            self.take();
            let yes = self.any_of()?;
            self.expect(":")?;
            let no = self.expression()?;
            let children = deepest([&condition, &yes, &no]);
            node(at, Kind::Ternary(Box::new([condition, yes, no])), children)?
        } else {
            condition
        };
        self.nesting -= 1;
        Ok(out)
    }

    fn any_of(&mut self) -> Result<Expr, Issue> {
        let first = self.all_of()?;
        if !self.is("||") {
            return Ok(first);
        }
        let at = self.at();
        let mut all = vec![first];
        while self.eat("||") {
            all.push(self.all_of()?);
        }
        let children = deepest(&all);
        node(at, Kind::Or(all), children)
    }

    fn all_of(&mut self) -> Result<Expr, Issue> {
        let first = self.relation()?;
        if !self.is("&&") {
            return Ok(first);
        }
        let at = self.at();
        let mut all = vec![first];
        while self.eat("&&") {
            all.push(self.relation()?);
        }
        let children = deepest(&all);
        node(at, Kind::And(all), children)
    }

    fn relation(&mut self) -> Result<Expr, Issue> {
        const OPS: [(&str, Op); 6] =
            [("==", Op::Eq), ("!=", Op::Ne), ("<=", Op::Le), (">=", Op::Ge), ("<", Op::Lt), (">", Op::Gt)];
        let mut left = self.sum()?;
        loop {
            let op = match self.peek() {
                Token::Ident(word) if word == "in" => Op::In,
                Token::Symbol(s) => match OPS.iter().find(|(symbol, _)| symbol == s) {
                    Some((_, op)) => *op,
                    None => return Ok(left),
                },
                _ => return Ok(left),
            };
            left = self.binary(op, left, Self::sum)?;
        }
    }

    fn sum(&mut self) -> Result<Expr, Issue> {
        let mut left = self.product()?;
        loop {
            let op = match self.peek() {
                Token::Symbol("+") => Op::Add,
                Token::Symbol("-") => Op::Sub,
                _ => return Ok(left),
            };
            left = self.binary(op, left, Self::product)?;
        }
    }

    fn product(&mut self) -> Result<Expr, Issue> {
        let mut left = self.unary()?;
        loop {
            let op = match self.peek() {
                Token::Symbol("*") => Op::Mul,
                Token::Symbol("/") => Op::Div,
                Token::Symbol("%") => Op::Rem,
                _ => return Ok(left),
            };
            left = self.binary(op, left, Self::unary)?;
        }
    }

    fn binary(&mut self, op: Op, left: Expr, right: fn(&mut Self) -> Result<Expr, Issue>) -> Result<Expr, Issue> {
        let at = self.at();
        self.take();
        let right = right(self)?;
        let children = left.depth.max(right.depth);
        node(at, Kind::Binary(op, Box::new([left, right])), children)
    }

    fn unary(&mut self) -> Result<Expr, Issue> {
        let at = self.at();
        let mut signs = 0_u32;
        let symbol = if self.is("!") { "!" } else { "-" };
        while self.eat(symbol) {
            signs += 1;
        }
        if signs == 0 {
            return self.member();
        }
        if symbol == "-"
            && let Token::Int(value) = *self.peek()
            && signs % 2 == 1
        {
            // so that the least number can be written
            let literal =
                0_i64.checked_sub_unsigned(value).ok_or_else(|| Issue { at, message: "invalid int literal".into() })?;
            self.take();
            let number = node(at, Kind::Literal(Literal::Int(literal)), 0)?;
            return self.member_of(number);
        }
        if symbol == "-"
            && let Token::Double(value) = *self.peek()
            && signs % 2 == 1
        {
            self.take();
            let number = node(at, Kind::Literal(Literal::Double(-value)), 0)?;
            return self.member_of(number);
        }
        let operand = self.member()?;
        if signs.is_multiple_of(2) {
            return Ok(operand);
        }
        let (children, operand) = (operand.depth, Box::new(operand));
        node(at, if symbol == "!" { Kind::Not(operand) } else { Kind::Negate(operand) }, children)
    }

    fn member(&mut self) -> Result<Expr, Issue> {
        let primary = self.primary()?;
        self.member_of(primary)
    }

    fn member_of(&mut self, mut out: Expr) -> Result<Expr, Issue> {
        loop {
            let at = self.at();
            if self.eat(".") {
                let optional = self.eat("?");
                let field = match self.take() {
                    Token::Ident(name) => name,
                    Token::Quoted(name) => name,
                    _ => {
                        self.next -= 1;
                        return Err(Issue {
                            at: self.at(),
                            message: "Syntax error: no viable alternative at input '.'".into(),
                        });
                    }
                };
                if self.is("(") && !optional {
                    self.take();
                    let arguments = self.arguments(")")?;
                    out = member_call(at, out, field, arguments)?;
                } else if let ("in", false) = (field.as_str(), optional) {
                    return Err(Issue { at, message: "Syntax error: no viable alternative at input '.in'".into() });
                } else {
                    let children = out.depth;
                    out = node(at, Kind::Select { operand: Box::new(out), field: field.into(), optional }, children)?;
                }
            } else if self.eat("[") {
                let optional = self.eat("?");
                let key = self.expression()?;
                self.expect("]")?;
                let children = out.depth.max(key.depth);
                out = node(at, Kind::Index { operand: Box::new(out), key: Box::new(key), optional }, children)?;
            } else if self.is("{") && type_name(&out).is_some() {
                let name = type_name(&out).unwrap_or_default();
                self.take();
                out = self.structure(at, name)?;
            } else {
                return Ok(out);
            }
        }
    }

    fn arguments(&mut self, close: &str) -> Result<Vec<Expr>, Issue> {
        let mut out = Vec::new();
        if self.eat(close) {
            return Ok(out);
        }
        loop {
            out.push(self.expression()?);
            if !self.eat(",") {
                self.expect(close)?;
                return Ok(out);
            }
        }
    }

    fn structure(&mut self, at: u32, name: String) -> Result<Expr, Issue> {
        let mut fields = Vec::new();
        while !self.eat("}") {
            let optional = self.eat("?");
            let (Token::Ident(field) | Token::Quoted(field)) = self.take() else {
                self.next -= 1;
                return Err(self.unexpected("a field"));
            };
            self.expect(":")?;
            fields.push((field.into(), self.expression()?, optional));
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        let children = deepest(fields.iter().map(|(_, e, _)| e));
        node(at, Kind::Struct(name.into(), fields), children)
    }

    fn primary(&mut self) -> Result<Expr, Issue> {
        let at = self.at();
        let literal = |literal| node(at, Kind::Literal(literal), 0);
        match self.take() {
            Token::Int(v) => match i64::try_from(v) {
                Ok(v) => literal(Literal::Int(v)),
                Err(_) => Err(Issue { at, message: "invalid int literal".into() }),
            },
            Token::Uint(v) => literal(Literal::Uint(v)),
            Token::Double(v) => literal(Literal::Double(v)),
            Token::String(v) => literal(Literal::String(v.into())),
            Token::Bytes(v) => literal(Literal::Bytes(v)),
            Token::Symbol("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Symbol("[") => self.list(at),
            Token::Symbol("{") => self.map(at),
            Token::Symbol(".") => match self.take() {
                Token::Ident(name) => self.name(at, name),
                _ => {
                    self.next -= 1;
                    Err(self.unexpected("IDENTIFIER"))
                }
            },
            Token::Ident(name) => match name.as_str() {
                "true" => literal(Literal::Bool(true)),
                "false" => literal(Literal::Bool(false)),
                "null" => literal(Literal::Null),
                _ => self.name(at, name),
            },
            token => {
                self.next -= 1;
                if let Some(slot) = self.tokens.get_mut(self.next) {
                    slot.1 = token;
                }
                Err(self.unexpected("{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}"))
            }
        }
    }

    fn name(&mut self, at: u32, name: String) -> Result<Expr, Issue> {
        if self.eat("(") {
            let arguments = self.arguments(")")?;
            return global_call(at, name, arguments);
        }
        if RESERVED.contains(&name.as_str()) {
            return Err(Issue { at, message: format!("reserved identifier: {name}") });
        }
        node(at, Kind::Name(name.into()), 0)
    }

    fn list(&mut self, at: u32) -> Result<Expr, Issue> {
        let mut items = Vec::new();
        while !self.eat("]") {
            let optional = self.eat("?");
            items.push((self.expression()?, optional));
            if !self.eat(",") {
                self.expect("]")?;
                break;
            }
        }
        let children = deepest(items.iter().map(|(e, _)| e));
        node(at, Kind::List(items), children)
    }

    fn map(&mut self, at: u32) -> Result<Expr, Issue> {
        let mut entries = Vec::new();
        while !self.eat("}") {
            let optional = self.eat("?");
            let key = self.expression()?;
            self.expect(":")?;
            entries.push((key, self.expression()?, optional));
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        let children = deepest(entries.iter().flat_map(|(k, v, _)| [k, v]));
        node(at, Kind::Map(entries), children)
    }
}

/// `a.b.c` as the name of a type.
fn type_name(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Name(name) => Some(name.to_string()),
        Kind::Select { operand, field, optional: false } => Some(format!("{}.{field}", type_name(operand)?)),
        _ => None,
    }
}

fn global_call(at: u32, name: String, arguments: Vec<Expr>) -> Result<Expr, Issue> {
    if name == "has" && arguments.len() == 1 {
        let argument = arguments.into_iter().next();
        return match argument {
            Some(Expr { kind: Kind::Select { operand, field, optional: false }, depth, .. }) => {
                Ok(Expr { at, depth, kind: Kind::Has { operand, field } })
            }
            _ => Err(Issue { at, message: "invalid argument to has() macro".into() }),
        };
    }
    call(at, name, false, arguments)
}

fn call(at: u32, name: String, is_member: bool, arguments: Vec<Expr>) -> Result<Expr, Issue> {
    let children = deepest(&arguments);
    node(
        at,
        Kind::Call(Box::new(Call { name: name.into(), is_member, arguments, function: None, regex: None })),
        children,
    )
}

/// A call with something before the dot: a macro, or a function.
fn member_call(at: u32, target: Expr, name: String, mut arguments: Vec<Expr>) -> Result<Expr, Issue> {
    let is_bind =
        matches!(&target.kind, Kind::Name(n) if n.as_ref() == "cel") && name == "bind" && arguments.len() == 3;
    if is_bind {
        let children = deepest(&arguments);
        let (Some(body), Some(value), Some(first)) = (arguments.pop(), arguments.pop(), arguments.pop()) else {
            return call(at, name, true, arguments);
        };
        let name = variable(&first, "cel.bind() variable names must be simple identifiers")?;
        return node(at, Kind::Bind { name, value: Box::new(value), body: Box::new(body) }, children);
    }
    if matches!(name.as_str(), "optMap" | "optFlatMap") && arguments.len() == 2 {
        let children = deepest(&arguments).max(target.depth);
        let (Some(body), Some(first)) = (arguments.pop(), arguments.pop()) else {
            return call(at, name, true, arguments);
        };
        let variable = variable(&first, &format!("{name}() variable name must be a simple identifier"))?;
        let flat = name == "optFlatMap";
        let kind = Kind::OptionalMap { operand: Box::new(target), name: variable, body: Box::new(body), flat };
        return node(at, kind, children);
    }
    let Some((kind, variables, filtered)) = fold_shape(&name, arguments.len()) else {
        arguments.insert(0, target);
        return call(at, name, true, arguments);
    };
    let children = deepest(&arguments).max(target.depth);
    let mut rest = arguments.into_iter();
    let mut names = Vec::new();
    for argument in rest.by_ref().take(variables) {
        names.push(variable(&argument, "argument must be a simple name")?);
    }
    let filter = if filtered { rest.next() } else { None };
    let Some(body) = rest.next() else { return Err(Issue { at, message: "invalid macro".into() }) };
    let mut names = names.into_iter();
    let first = names.next().unwrap_or_default();
    let fold = Fold { kind, range: target, first, second: names.next(), filter, body };
    node(at, Kind::Fold(Box::new(fold)), children)
}

/// What a macro is: its kind, how many variables it has, and whether it has a filter.
fn fold_shape(name: &str, arguments: usize) -> Option<(FoldKind, usize, bool)> {
    Some(match (name, arguments) {
        ("all", 2) => (FoldKind::All, 1, false),
        ("all", 3) => (FoldKind::All, 2, false),
        ("exists", 2) => (FoldKind::Exists, 1, false),
        ("exists", 3) => (FoldKind::Exists, 2, false),
        ("exists_one" | "existsOne", 2) => (FoldKind::ExistsOne, 1, false),
        ("exists_one" | "existsOne", 3) => (FoldKind::ExistsOne, 2, false),
        ("map", 2) => (FoldKind::Map, 1, false),
        ("map", 3) => (FoldKind::Map, 1, true),
        ("filter", 2) => (FoldKind::Filter, 1, false),
        ("transformList", 3) => (FoldKind::TransformList, 2, false),
        ("transformList", 4) => (FoldKind::TransformList, 2, true),
        ("transformMap", 3) => (FoldKind::TransformMap, 2, false),
        ("transformMap", 4) => (FoldKind::TransformMap, 2, true),
        ("transformMapEntry", 3) => (FoldKind::TransformMapEntry, 2, false),
        ("transformMapEntry", 4) => (FoldKind::TransformMapEntry, 2, true),
        _ => return None,
    })
}

fn variable(expr: &Expr, why: &str) -> Result<Box<str>, Issue> {
    match &expr.kind {
        Kind::Name(name) => Ok(name.clone()),
        _ => Err(Issue { at: expr.at, message: why.to_owned() }),
    }
}
