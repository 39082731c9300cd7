//! `edge certificate`: what this machine shows to others, until when, and new ones at once.

use super::report::Output;
use super::server::{Failure, doing};
use super::{fail, print};
use clap::{Args, Subcommand};
use inotify::{Inotify, WatchMask};
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

const DAY: i64 = 24 * 60 * 60;
/// Certificates with less are renewed by a running edge.
const SOON: i64 = 90;
/// How long a running edge may take to make new ones.
const PATIENCE: Duration = Duration::from_secs(30);

/// `edge certificate`
#[derive(Args)]
pub(crate) struct CertificateArgs {
    #[command(subcommand)]
    command: CertificateCommand,
    /// Directory for all state, as edge was told
    #[arg(long, short, env = "EDGE_DATA_DIR", default_value = "/var/lib/edge", value_name = "DIR", global = true)]
    data_dir: PathBuf,
}

#[derive(Subcommand)]
enum CertificateCommand {
    /// Show the certificates of this machine and when they end; exit code 1 when one has ended
    Check {
        /// Format
        #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
        output: Output,
    },
    /// Make new certificates, but for the authorities; a running edge takes them at once, and connections go on
    ///
    /// The administrator's kubeconfig is written anew. The old certificates stay valid until they end.
    Rotate,
}

/// A certificate in a file.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    pub(super) file: PathBuf,
    subject: String,
    names: Vec<String>,
    is_authority: bool,
    pub(super) end: SystemTime,
}

impl Certificate {
    /// Whole days until it ends; negative when it has.
    pub(super) fn days_left(&self, now: Timestamp) -> i64 {
        let end = Timestamp::try_from(self.end).map_or(i64::MAX, Timestamp::as_second);
        (end - now.as_second()).div_euclid(DAY)
    }
}

/// Runs a subcommand.
pub(crate) fn main(args: &CertificateArgs) -> ExitCode {
    match args.command {
        CertificateCommand::Check { output } => check(&args.data_dir, output),
        CertificateCommand::Rotate => match rotate(&args.data_dir) {
            Ok(text) => print(text.as_bytes()),
            Err(error) => fail(1, &error),
        },
    }
}

/// Where certificates are, in the data directory.
const DIRECTORIES: [&str; 2] = ["server/tls", "agent/tls"];

/// The certificates of this machine, those that can be read.
pub(super) fn all(data_dir: &Path) -> Vec<Certificate> {
    let mut all = Vec::new();
    for directory in DIRECTORIES {
        for entry in std::fs::read_dir(data_dir.join(directory)).into_iter().flatten().flatten() {
            let file = entry.path();
            let facts = std::fs::read(&file).ok().and_then(|pem| edge_pki::certificate_facts(&pem));
            if let Some(facts) = facts {
                let edge_pki::CertificateFacts { subject, names, is_authority, end } = facts;
                all.push(Certificate { file, subject, names, is_authority, end });
            }
        }
    }
    all.sort_by(|a, b| a.file.cmp(&b.file));
    all
}

fn check(data_dir: &Path, output: Output) -> ExitCode {
    let (all, now) = (all(data_dir), Timestamp::now());
    if all.is_empty() {
        return fail(1, &io::Error::other(format!("no certificates below {} can be read", data_dir.display())));
    }
    let end = |c: &Certificate| Timestamp::try_from(c.end).map(|t| t.to_string()).unwrap_or_default();
    let text = match output {
        Output::Json => {
            let value = |c: &Certificate| {
                json!({"file": c.file, "subject": c.subject, "names": c.names, "authority": c.is_authority, "end": end(c),
                    "daysLeft": c.days_left(now)})
            };
            format!("{:#}\n", serde_json::Value::from(all.iter().map(value).collect::<Vec<_>>()))
        }
        Output::Text => all
            .iter()
            .map(|c| {
                let state = match c.days_left(now) {
                    ..0 => "ENDED  ",
                    0..SOON if !c.is_authority => "soon   ",
                    _ => "ok     ",
                };
                let (days, subject, file) = (c.days_left(now), &c.subject, c.file.display());
                format!("{state}  {} ({days:>5} days)  {subject:<55}  {file}\n", end(c))
            })
            .collect(),
    };
    let printed = print(text.as_bytes());
    if all.iter().any(|c| c.days_left(now) < 0) { ExitCode::FAILURE } else { printed }
}

/// The files of certificates that a server makes again when they are missing.
fn own(directory: &Path) -> Vec<PathBuf> {
    let is_own = |name: &str| (name.starts_with("serving-") || name.starts_with("client-")) && name.ends_with(".pem");
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(is_own)).collect()
}

fn rotate(data_dir: &Path) -> Result<String, Failure> {
    let server = data_dir.join("server/tls");
    let directory = if server.exists() { server.clone() } else { data_dir.join("agent/tls") };
    let mut old = own(&directory);
    if old.is_empty() {
        let none = io::Error::other(format!("there are none in {}", directory.display()));
        return Err(doing("looking for certificates")(none));
    }
    old.sort();
    let running = super::status_command::running(data_dir);
    let is_server = directory == server;
    if running.is_none() && !is_server {
        let stopped = io::Error::other("edge does not run here: an agent gets new certificates from its server");
        return Err(doing("renewing certificates")(stopped));
    }
    // before anything changes, so that no change is missed
    let mut changes = Inotify::init().map_err(doing("watching the certificates"))?;
    let mask = WatchMask::MOVED_TO | WatchMask::CREATE;
    changes.watches().add(&directory, mask).map_err(doing("watching the certificates"))?;
    if is_server {
        for file in &old {
            std::fs::remove_file(file).map_err(doing(format!("removing {}", file.display())))?;
        }
    }
    let Some((pid, _)) = running else {
        return Ok(format!("{} removed: edge makes new ones when it starts\n", old.len()));
    };
    kill(Pid::from_raw(pid), Signal::SIGHUP).map_err(doing("telling edge"))?;
    let made = await_new(&mut changes, &old).map_err(doing("waiting for new certificates"))?;
    Ok(made.iter().map(|file| format!("{} is new\n", file.display())).collect())
}

/// Waits until each file has been written anew.
fn await_new(changes: &mut Inotify, files: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let end = std::time::Instant::now() + PATIENCE;
    let mut missing: Vec<&PathBuf> = files.iter().collect();
    let mut buffer = [0; 4096];
    while !missing.is_empty() {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        if poll(&mut [PollFd::new(changes.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            let names: Vec<String> = missing.iter().map(|file| file.display().to_string()).collect();
            return Err(io::Error::other(format!("edge has not made {}: its log says why", names.join(", "))));
        }
        for event in changes.read_events(&mut buffer)? {
            missing.retain(|file| file.file_name() != event.name);
        }
    }
    Ok(files.to_vec())
}
