//! Configuration files, turned into the flags they stand for, so that one parser checks both.

use clap::{ArgAction, Command};
use serde_yaml_ng::Value;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The commands whose configuration the files are.
const OWNERS: [&str; 2] = ["server", "agent"];
/// What other commands take from them, where they have such a flag.
const OF_OTHERS: [&str; 4] = ["cgroup-root", "data-dir", "https-listen-port", "kubelet-port"];

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not YAML, or not a mapping of keys to values.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where that is known.
        reason: String,
    },
    /// A key is no flag of the command.
    #[error("{path}: unknown key {key:?}{hint}")]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// `, did you mean "..."?`, or nothing.
        hint: String,
    },
    /// A value has the wrong type.
    #[error("{path}: {key}: {reason}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

/// Inserts what the configuration files say behind the subcommand in `args`, so that later flags override it.
///
/// # Errors
/// [`FileError`] when a file that was named does not exist, or any file is malformed or has unknown keys.
pub(crate) fn with_files(root: &Command, args: Vec<OsString>) -> Result<Vec<OsString>, FileError> {
    let Some((at, command)) = configured(root, &args) else { return Ok(args) };
    let given = &args[at + 1..];
    let settings = Settings::read_all(root, command, given)?;
    let mut out = args[..=at].to_vec();
    out.extend(settings.into_args(command, given));
    out.extend_from_slice(given);
    Ok(out)
}

/// The settings that come from files, with these.
///
/// # Errors
/// As [`with_files`].
pub(crate) fn settings_of_files(
    root: &Command,
    args: &[OsString],
) -> Result<BTreeMap<String, Vec<PathBuf>>, FileError> {
    let Some((at, command)) = configured(root, args) else { return Ok(BTreeMap::new()) };
    let given = &args[at + 1..];
    let settings = Settings::read_all(root, command, given)?;
    let used = settings.0.into_iter().filter(|(name, setting)| setting.counts(command, name, given));
    Ok(used.map(|(name, setting)| (name, setting.files)).collect())
}

/// Where in the arguments the command is that has configuration files, and which it is: `edge server`, or `edge config show server`.
fn configured<'c>(root: &'c Command, args: &[OsString]) -> Option<(usize, &'c Command)> {
    let at = if args.get(1)? == "config" { args.iter().rposition(|a| a == "server" || a == "agent")? } else { 1 };
    let command = root.find_subcommand(args[at].to_str()?)?;
    command.get_arguments().any(|a| a.get_long() == Some("config")).then_some((at, command))
}

/// Where the configuration is, and whether somebody named that place.
fn config_path(command: &Command, given: &[OsString]) -> (PathBuf, bool) {
    let mut rest = given.iter();
    while let Some(arg) = rest.next() {
        let text = arg.to_string_lossy();
        if text == "--config" || text == "-c" {
            if let Some(value) = rest.next() {
                return (value.into(), true);
            }
        } else if let Some(value) = text.strip_prefix("--config=") {
            return (value.into(), true);
        }
    }
    let arg = command.get_arguments().find(|a| a.get_long() == Some("config"));
    if let Some(value) = arg.and_then(clap::Arg::get_env).and_then(std::env::var_os) {
        return (value.into(), true);
    }
    let default = arg.and_then(|a| a.get_default_values().first()).map(|v| PathBuf::from(&**v));
    (default.unwrap_or_default(), false)
}

/// The file and its drop-ins, the least important first. None of them has to exist, unless somebody named them.
fn files(path: &Path, named: bool) -> Result<Vec<PathBuf>, FileError> {
    let mut out = Vec::new();
    if path.exists() {
        out.push(path.to_owned());
    }
    let mut dir = path.as_os_str().to_owned();
    dir.push(".d");
    match std::fs::read_dir(&dir) {
        Ok(entries) => {
            let mut drop_ins: Vec<PathBuf> = entries
                .flatten()
                .map(|e| e.path())
                .filter(|p| matches!(p.extension().and_then(OsStr::to_str), Some("yaml" | "yml")))
                .collect();
            drop_ins.sort();
            out.extend(drop_ins);
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(FileError::Read { path: dir.into(), source }),
    }
    if named && out.is_empty() {
        return Err(FileError::Read { path: path.into(), source: std::io::ErrorKind::NotFound.into() });
    }
    Ok(out)
}

#[derive(Default)]
struct Setting {
    values: Vec<String>,
    /// Where they come from.
    files: Vec<PathBuf>,
    /// Whether every value was appended by `key+`, so that flags and environment do not replace them.
    appends: bool,
}

#[derive(Default)]
struct Settings(BTreeMap<String, Setting>);

impl Setting {
    /// Whether it is not replaced by a flag or the environment.
    fn counts(&self, command: &Command, name: &str, given: &[OsString]) -> bool {
        let arg = command.get_arguments().find(|a| a.get_long() == Some(name));
        let in_env = arg.and_then(clap::Arg::get_env).is_some_and(|v| std::env::var_os(v).is_some());
        self.appends || !(in_env || is_given(arg, name, given))
    }
}

impl Settings {
    fn read_all(root: &Command, command: &Command, given: &[OsString]) -> Result<Self, FileError> {
        let (path, named) = config_path(command, given);
        let others = OWNERS.map(|name| root.find_subcommand(name).filter(|_| !OWNERS.contains(&command.get_name())));
        let mut settings = Self::default();
        for file in files(&path, named)? {
            settings.read(command, &others, &file)?;
        }
        Ok(settings)
    }

    /// `others`: whose keys are of no interest to the command, and no mistakes.
    fn read(&mut self, command: &Command, others: &[Option<&Command>], path: &Path) -> Result<(), FileError> {
        let text = std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.into(), source })?;
        let malformed = |reason: String| FileError::Malformed { path: path.into(), reason };
        let mapping = match serde_yaml_ng::from_str(&text).map_err(|e| malformed(e.to_string()))? {
            Value::Null => return Ok(()),
            Value::Mapping(m) => m,
            _ => return Err(malformed("expected keys and values, such as `node-name: a`".into())),
        };
        for (key, value) in mapping {
            let Some(key) = key.as_str() else { return Err(malformed("a key is not a text".into())) };
            let (name, append) = key.strip_suffix('+').map_or((key, false), |k| (k, true));
            let owner = others.iter().flatten().find(|owner| flag(owner, name).is_some());
            if owner.is_some() && !(OF_OTHERS.contains(&name) && flag(command, name).is_some()) {
                continue;
            }
            let Some(arg) = flag(command, name).filter(|_| name != "config") else {
                let hint = nearest(command, name).map(|n| format!(", did you mean {n:?}?")).unwrap_or_default();
                return Err(FileError::UnknownKey { path: path.into(), key: key.into(), hint });
            };
            let list = matches!(arg.get_action(), ArgAction::Append);
            let values = scalars(&value, list).map_err(|reason| FileError::Value {
                path: path.into(),
                key: key.into(),
                reason,
            })?;
            let setting = self.0.entry(name.to_owned()).or_default();
            if append && list {
                setting.appends |= setting.values.is_empty();
                setting.values.extend(values);
                setting.files.push(path.into());
            } else {
                *setting = Setting { values, files: vec![path.into()], appends: false };
            }
        }
        Ok(())
    }

    fn into_args(self, command: &Command, given: &[OsString]) -> Vec<OsString> {
        let mut out = Vec::new();
        for (name, setting) in self.0 {
            if !setting.counts(command, &name, given) {
                continue;
            }
            let arg = command.get_arguments().find(|a| a.get_long() == Some(name.as_str()));
            let switch = arg.is_some_and(|a| matches!(a.get_action(), ArgAction::SetTrue));
            for value in setting.values {
                match (switch, value.as_str()) {
                    (true, "false") => {}
                    (true, "true") => out.push(format!("--{name}").into()),
                    _ => out.push(format!("--{name}={value}").into()),
                }
            }
        }
        out
    }
}

fn flag<'c>(command: &'c Command, name: &str) -> Option<&'c clap::Arg> {
    command.get_arguments().find(|a| a.get_long() == Some(name))
}

fn is_given(arg: Option<&clap::Arg>, name: &str, given: &[OsString]) -> bool {
    let short = arg.and_then(clap::Arg::get_short).map(|c| format!("-{c}"));
    given.iter().any(|g| {
        let g = g.to_string_lossy();
        g.strip_prefix("--").is_some_and(|l| l.split('=').next() == Some(name))
            || short.as_ref().is_some_and(|s| g.starts_with(s.as_str()))
    })
}

fn scalars(value: &Value, list: bool) -> Result<Vec<String>, String> {
    match value {
        Value::Sequence(items) if list => items.iter().map(scalar).collect(),
        Value::Sequence(_) => Err("expected one value, found a list".into()),
        other => scalar(other).map(|v| vec![v]),
    }
}

fn scalar(value: &Value) -> Result<String, String> {
    match value {
        Value::String(s) => Ok(s.clone()),
        Value::Bool(b) => Ok(b.to_string()),
        Value::Number(n) => Ok(n.to_string()),
        _ => Err("expected a text, a number, true or false".into()),
    }
}

/// The flag whose name is most like `name`, when one is near enough to be meant.
fn nearest(command: &Command, name: &str) -> Option<String> {
    command
        .get_arguments()
        .filter_map(clap::Arg::get_long)
        .map(|long| (strsim::jaro_winkler(long, name), long))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, long)| long.to_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use clap::CommandFactory;

    fn expand(files: &[(&str, &str)], args: &[&str]) -> Result<Vec<String>, FileError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("config.yaml.d")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let config = format!("--config={}", dir.path().join("config.yaml").display());
        let mut all: Vec<OsString> = vec!["edge".into(), "server".into(), config.clone().into()];
        all.extend(args.iter().map(OsString::from));
        let out = with_files(&crate::cmd::Cli::command(), all)?;
        Ok(out.iter().map(|a| a.to_string_lossy().into_owned()).filter(|a| *a != config).collect())
    }

    #[test]
    fn keys_become_flags() {
        let out =
            expand(&[("config.yaml", "node-name: a\ntls-san: [x, y]\ndebug: true\nhttps-listen-port: 7443\n")], &[]);
        let want =
            ["edge", "server", "--debug", "--https-listen-port=7443", "--node-name=a", "--tls-san=x", "--tls-san=y"];
        assert_eq!(out.unwrap(), want);
    }

    #[test]
    fn flags_win_and_drop_ins_replace_or_append() {
        let out = expand(
            &[
                ("config.yaml", "node-name: a\ntls-san: x\n"),
                ("config.yaml.d/1.yaml", "node-name: b\ntls-san+: y\n"),
                ("config.yaml.d/2.yaml", "cluster-domain: edge.test\n"),
            ],
            &["--node-name", "c"],
        );
        let want = ["edge", "server", "--cluster-domain=edge.test", "--tls-san=x", "--tls-san=y", "--node-name", "c"];
        assert_eq!(out.unwrap(), want);
    }

    #[test]
    fn other_commands_take_what_they_need() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, "data-dir: /somewhere\nnode-name: a\ncgroup-root: /x\nserver: https://b:6443\n").unwrap();
        let config = format!("--config={}", file.display());
        let expand = |command: &str| {
            let args = ["edge", command, config.as_str()].map(OsString::from).to_vec();
            let out = with_files(&crate::cmd::Cli::command(), args);
            out.map(|o| o.iter().map(|a| a.to_string_lossy().into_owned()).filter(|a| *a != config).collect::<Vec<_>>())
        };
        assert_eq!(expand("teardown").unwrap(), ["edge", "teardown", "--cgroup-root=/x", "--data-dir=/somewhere"]);
        for command in ["backup", "restore", "check", "status"] {
            assert_eq!(expand(command).unwrap(), ["edge", command, "--data-dir=/somewhere"]);
        }
        std::fs::write(&file, "data-dri: /somewhere\n").unwrap();
        let unknown = expand("teardown").unwrap_err().to_string();
        assert!(unknown.contains("unknown key \"data-dri\", did you mean \"data-dir\"?"), "{unknown}");
    }

    #[test]
    fn mistakes_are_named() {
        let unknown = expand(&[("config.yaml", "node-nmae: a\n")], &[]).unwrap_err().to_string();
        assert!(unknown.contains("unknown key \"node-nmae\", did you mean \"node-name\"?"), "{unknown}");
        let broken = expand(&[("config.yaml", "a: [\n")], &[]).unwrap_err().to_string();
        assert!(broken.contains("config.yaml") && broken.contains("line"), "{broken}");
        assert!(expand(&[("config.yaml", "node-name: [a, b]\n")], &[]).is_err());
        assert!(expand(&[("config.yaml", "- a\n")], &[]).is_err());
        assert!(expand(&[("config.yaml", "")], &[]).is_ok());
        let missing = expand(&[], &[]).unwrap_err().to_string();
        assert!(missing.contains("config.yaml"), "{missing}");
    }
}
