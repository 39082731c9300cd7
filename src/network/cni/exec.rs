//! Running a plugin: a program that is told what to do by its environment and standard input, and answers in JSON.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use serde::Deserialize;
use serde_json::Value;

use super::CniError;

/// One call of a plugin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    /// `ADD`, `DEL`, `CHECK`, `STATUS` or `GC`.
    pub(super) command: &'static str,
    pub(super) directories: &'a [PathBuf],
    /// Container, namespace and arguments; `None` where the call is about no container.
    pub(super) attachment: Option<(&'a str, &'a Path, &'a str)>,
}

/// How a plugin says that something went wrong.
#[derive(Debug, Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

fn find(kind: &str, directories: &[PathBuf]) -> Result<PathBuf, CniError> {
    let found = directories.iter().map(|dir| dir.join(kind)).find(|path| path.is_file());
    found.ok_or_else(|| CniError::NoPlugin { kind: kind.to_owned(), directories: directories.to_vec() })
}

impl Call<'_> {
    /// Runs the plugin of type `kind` with `input`; gives what it answered, `Null` where it answered nothing.
    pub(super) fn run(&self, kind: &str, input: &Value) -> Result<Value, CniError> {
        let program = find(kind, self.directories)?;
        let failed = |source| CniError::Run { program: program.clone(), source };
        let path: Vec<String> = self.directories.iter().map(|dir| dir.display().to_string()).collect();
        let mut command = Command::new(&program);
        command.env("CNI_COMMAND", self.command).env("CNI_PATH", path.join(":"));
        if let Some((container, netns, args)) = self.attachment {
            command.env("CNI_CONTAINERID", container).env("CNI_NETNS", netns).env("CNI_ARGS", args);
            command.env("CNI_IFNAME", crate::pod::POD_INTERFACE);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let text = input.to_string();
        let stdin = child.stdin.take();
        let output = thread::scope(|scope| {
            // a plugin may answer before it has read everything; it may also read nothing
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(text.as_bytes())));
            child.wait_with_output()
        })
        .map_err(failed)?;
        if output.status.success() {
            let answer = output.stdout.trim_ascii();
            if answer.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(answer)
                .map_err(|source| CniError::Answer { program: program.clone(), source });
        }
        let refusal: Refusal = serde_json::from_slice(output.stdout.trim_ascii()).unwrap_or_default();
        let mut message = [refusal.msg, refusal.details].join(" ").trim().to_owned();
        if message.is_empty() {
            message = String::from_utf8_lossy(output.stderr.trim_ascii()).chars().take(1024).collect();
        }
        if message.is_empty() {
            message = output.status.to_string();
        }
        Err(CniError::Refused { kind: kind.to_owned(), command: self.command, code: refusal.code, message })
    }
}
