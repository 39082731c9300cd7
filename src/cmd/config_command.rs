//! `edge config`: what edge would be told at its next start, and by whom.

use super::{Cli, USAGE, fail, options_page, print};
use crate::config::{AgentArgs, FileError, ServerArgs, settings_of_files};
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::process::ExitCode;

/// `edge config`
#[derive(Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Yaml,
    Json,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Look whether edge would start with its flags, environment and files; exit code 2 when not
    Validate {
        #[command(subcommand)]
        of: Role,
    },
    /// Show the settings that edge would start with, and where each comes from
    Show {
        /// Form of the output
        #[arg(long, default_value = "yaml", value_name = "FORM")]
        output: Output,
        #[command(subcommand)]
        of: Role,
    },
    /// Print every command and option as a page in Markdown
    Options,
}

#[derive(Subcommand)]
enum Role {
    /// Of `edge server`, with its flags
    #[command(args_override_self = true)]
    Server(Box<ServerArgs>),
    /// Of `edge agent`, with its flags
    #[command(args_override_self = true)]
    Agent(Box<AgentArgs>),
}

impl Role {
    fn name(&self) -> &'static str {
        match self {
            Self::Server(_) => "server",
            Self::Agent(_) => "agent",
        }
    }

    /// What is wrong, if anything.
    fn check(self) -> Result<(), Box<dyn std::error::Error>> {
        match self {
            Self::Server(args) => drop(args.check()?),
            Self::Agent(args) => drop(args.check(|name| std::env::var(name).ok())?),
        }
        Ok(())
    }
}

/// Runs a subcommand.
pub(crate) fn main(args: ConfigArgs) -> ExitCode {
    let (role, output) = match args.command {
        ConfigCommand::Options => return print(options_page::render(&mut Cli::command()).as_bytes()),
        ConfigCommand::Validate { of } => (of, None),
        ConfigCommand::Show { of, output } => (of, Some(output)),
    };
    let name = role.name();
    if let Err(error) = role.check() {
        return fail(USAGE, &*error);
    }
    let Some(output) = output else { return print(format!("edge {name} would start with this\n").as_bytes()) };
    match settings(name, std::env::args_os().collect()) {
        Ok(settings) => print(text(&settings, output).as_bytes()),
        Err(error) => fail(USAGE, &error),
    }
}

/// A setting with its value.
#[derive(Debug, PartialEq)]
struct Setting {
    key: String,
    /// A text, or a list of texts.
    value: Value,
    source: String,
}

/// All settings that have a value. `args` are those of this process, which has been able to parse them.
fn settings(role: &str, args: Vec<OsString>) -> Result<Vec<Setting>, FileError> {
    let mut root = Cli::command();
    root.build();
    let files = settings_of_files(&root, &args)?;
    let args = crate::config::with_files(&root, args)?;
    // parsed once already, so that this cannot fail
    let Ok(matches) = root.clone().try_get_matches_from(args) else { return Ok(Vec::new()) };
    let mut found = Some(&matches);
    for _ in 0..3 {
        found = found.and_then(|m| m.subcommand()).map(|(_, m)| m);
    }
    let (Some(found), Some(command)) = (found, root.find_subcommand(role)) else { return Ok(Vec::new()) };
    let setting = |arg: &clap::Arg| {
        let key = arg.get_long().filter(|key| !["help", "config"].contains(key))?;
        let id = arg.get_id().as_str();
        let values: Vec<String> = match found.try_get_raw(id) {
            Ok(Some(values)) => values.map(|value| value.to_string_lossy().into_owned()).collect(),
            _ => return None,
        };
        let source = match found.value_source(id)? {
            ValueSource::EnvVariable => arg.get_env().unwrap_or_default().to_string_lossy().into_owned(),
            ValueSource::CommandLine => match files.get(key) {
                Some(files) => files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
                None => "flag".to_owned(),
            },
            _ => "default".to_owned(),
        };
        let hide = |value: String| if arg.is_hide_env_values_set() { "<hidden>".to_owned() } else { value };
        let mut values: Vec<Value> = values.into_iter().map(|value| hide(value).into()).collect();
        let is_list = matches!(arg.get_action(), clap::ArgAction::Append);
        let value = match (is_list, values.len()) {
            (false, 1) => values.remove(0),
            _ => Value::from(values),
        };
        Some(Setting { key: key.to_owned(), value, source })
    };
    Ok(command.get_arguments().filter_map(setting).collect())
}

fn text(settings: &[Setting], output: Output) -> String {
    match output {
        Output::Json => {
            let all: Map<String, Value> =
                settings.iter().map(|s| (s.key.clone(), json!({"value": s.value, "source": s.source}))).collect();
            format!("{:#}\n", Value::from(all))
        }
        Output::Yaml => {
            // JSON is YAML, and quotes what has to be
            let plain = |text: &str| {
                !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b))
            };
            let shown = |value: &Value| match value.as_str() {
                Some(text) if plain(text) => text.to_owned(),
                _ => value.to_string(),
            };
            let lines: Vec<String> = settings.iter().map(|s| format!("{}: {}", s.key, shown(&s.value))).collect();
            let width = lines.iter().map(String::len).filter(|width| *width < 60).max().unwrap_or(0);
            lines.iter().zip(settings).map(|(line, s)| format!("{line:width$}  # {}\n", s.source)).collect()
        }
    }
}
