//! What can be wrong with an expression, before and while it runs.

use std::fmt;

/// One thing that is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Where, as a byte offset.
    pub at: u32,
    /// What.
    pub message: String,
}

/// Why an expression does not compile; reads as kube-apiserver's messages do, with the line and a mark below it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct CompileError {
    /// The expression.
    pub source_text: String,
    /// At least one.
    pub issues: Vec<Issue>,
}

impl CompileError {
    /// What a field error about the expression says.
    pub fn detail(&self) -> String {
        match self.issues.as_slice() {
            [only] if only.message.starts_with("must evaluate to") => only.message.clone(),
            _ => format!("compilation failed: {self}"),
        }
    }
}

/// Lines longer than this are not shown again in messages.
const LONGEST_LINE: usize = 1000;

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, issue) in self.issues.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let at = (issue.at as usize).min(self.source_text.len());
            let before = self.source_text.get(..at).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let start = before.rfind('\n').map_or(0, |p| p + 1);
            let column = before.get(start..).unwrap_or_default().chars().count();
            write!(f, "ERROR: <input>:{line}:{}: {}", column + 1, issue.message)?;
            let text = self.source_text.get(start..).and_then(|t| t.lines().next()).unwrap_or_default();
            if text.len() <= LONGEST_LINE {
                write!(f, "\n | {}\n | {}^", text.replace('\t', " "), ".".repeat(column))?;
            }
        }
        Ok(())
    }
}

/// Why an evaluation has no value. The words are those of cel-go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The expression met something that it cannot handle.
    #[error("{0}")]
    Failed(String),
    /// This one expression costs more than [`crate::PER_CALL`].
    #[error("operation cancelled: actual cost limit exceeded")]
    TooExpensive,
    /// All expressions of the request together cost too much.
    #[error("validation failed due to running out of cost budget, no further validation rules will be run")]
    BudgetSpent,
}

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Error::Failed(message.into())
    }

    pub(crate) fn no_overload() -> Self {
        Error::Failed("no such overload".to_owned())
    }

    /// Whether nothing can be made of it within the expression.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self, Error::Failed(_))
    }
}
