//! The `edge` command: parses, picks the subcommand, gives the exit code.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage or configuration.

mod cmd;
mod config;

fn main() -> std::process::ExitCode {
    cmd::main()
}
