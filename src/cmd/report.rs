//! What commands find when they look at a machine or a cluster: a line for each thing, and what to do about it.

use clap::ValueEnum;
use serde::Serialize;
use std::process::ExitCode;

/// How a report is printed.
#[derive(Clone, Copy, Default, ValueEnum)]
pub(super) enum Output {
    /// A line for each check.
    #[default]
    Text,
    /// A list of objects.
    Json,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Ok,
    /// Something does not work, or will not for long.
    Warning,
    /// The whole does not work.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) state: State,
    /// What was found.
    pub(super) found: String,
    /// What to do about it; empty when nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) fix: String,
}

impl Check {
    /// A check that comes out as `otherwise` when something is not fit.
    pub(super) fn new(
        name: &'static str,
        is_fit: bool,
        otherwise: State,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let (state, fix) = if is_fit { (State::Ok, String::new()) } else { (otherwise, fix.into()) };
        Self { name, state, found: found.into(), fix }
    }

    /// A check that came out well.
    pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Ok, found: found.into(), fix: String::new() }
    }
}

/// Prints a report; the exit code is 1 when something failed.
pub(super) fn print(checks: &[Check], output: Output) -> ExitCode {
    let mut text = String::new();
    match output {
        // plain data always serializes
        Output::Json => text = serde_json::to_string_pretty(checks).unwrap_or_default() + "\n",
        Output::Text => {
            for check in checks {
                let state = match check.state {
                    State::Ok => "ok     ",
                    State::Warning => "warning",
                    State::Failure => "FAILURE",
                };
                text += &format!("{state}  {:<14} {}\n", check.name, check.found);
                if !check.fix.is_empty() {
                    text += &format!("         {:<14} → {}\n", "", check.fix);
                }
            }
        }
    }
    let printed = super::print(text.as_bytes());
    if checks.iter().any(|check| check.state == State::Failure) { ExitCode::FAILURE } else { printed }
}
