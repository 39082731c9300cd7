//! Flags, environment and configuration files: one source of truth, the clap definition of each command.
//!
//! A configuration file holds the flags' names as keys (`node-name: a` is `--node-name=a`), as k3s users know it.
//! Precedence: flag, then environment, then the drop-ins of `config.yaml.d` in order of their names, then
//! `config.yaml`; `key+:` appends to a list instead of replacing it. Unknown keys are errors.

mod agent;
mod audit;
mod autoscaling;
mod file;
mod node;
mod parts;
mod server;
mod time;

pub(crate) use agent::{AgentArgs, AgentConfig};
pub(crate) use audit::AuditConfig;
pub(crate) use file::{FileError, settings_of_files, with_files};
pub(crate) use node::{NodeConfig, TokenSource, host_name};
pub(crate) use parts::Part;
pub(crate) use server::{BackupConfig, ServerArgs, ServerConfig};
pub(crate) use time::parse_time;
