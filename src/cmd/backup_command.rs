//! `edge backup` and `edge restore`: a server in one file, and back.

use super::server::{Failure, doing};
use super::{GIT_VERSION, fail, instance, print};
use clap::{Args, ValueEnum};
use edge_backup::{About, Manifest};
use edge_storage::Lmdb;
use jiff::Timestamp;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// `edge backup`
#[derive(Args)]
pub(crate) struct BackupArgs {
    /// The file to write; a directory gets a file named after the node and the time
    file: PathBuf,
    /// Configuration file of edge, for where things are
    #[arg(long, env = "EDGE_CONFIG_FILE", default_value = "/etc/edge/config.yaml", value_name = "FILE")]
    config: PathBuf,
    /// Directory for all state, as the server was told
    #[arg(long, short, env = "EDGE_DATA_DIR", default_value = "/var/lib/edge", value_name = "DIR")]
    data_dir: PathBuf,
    /// Form of the output
    #[arg(long, short, default_value = "text", value_name = "FORM")]
    output: Output,
}

/// `edge restore`
#[derive(Args)]
pub(crate) struct RestoreArgs {
    /// A file that `edge backup` has written
    file: PathBuf,
    /// Configuration file of edge, for where things are
    #[arg(long, env = "EDGE_CONFIG_FILE", default_value = "/etc/edge/config.yaml", value_name = "FILE")]
    config: PathBuf,
    /// Directory for all state, as the server is told
    #[arg(long, short, env = "EDGE_DATA_DIR", default_value = "/var/lib/edge", value_name = "DIR")]
    data_dir: PathBuf,
    /// Only look whether the file is whole, and say what is in it
    #[arg(long)]
    check: bool,
    /// Form of the output
    #[arg(long, short, default_value = "text", value_name = "FORM")]
    output: Output,
}

/// Runs `edge backup`.
pub(crate) fn backup(args: BackupArgs) -> ExitCode {
    let output = args.output;
    match back_up(args) {
        Ok((file, manifest)) => {
            let length = std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
            match output {
                Output::Json => {
                    let mut value = summary(&manifest);
                    value["file"] = file.display().to_string().into();
                    value["bytes"] = length.into();
                    print(format!("{value:#}\n").as_bytes())
                }
                Output::Text => {
                    let text = format!("{}: {}, {} KiB\n", file.display(), content(&manifest), length.div_ceil(1024));
                    print(text.as_bytes())
                }
            }
        }
        Err(error) => fail(1, &error),
    }
}

fn back_up(args: BackupArgs) -> Result<(PathBuf, Manifest), Failure> {
    let node = crate::config::host_name().map_err(doing("finding this machine's name"))?;
    let file = match args.file.is_dir() {
        true => args.file.join(edge_backup::file_name(&node, Timestamp::now())),
        false => args.file,
    };
    super::datastore::is_here(&args.data_dir.join("server"))?;
    let store = args.data_dir.join("server/db");
    let manifest = edge_backup::create(&args.data_dir, &file, about(&node), |copy| Lmdb::copy(&store, copy));
    Ok((file, manifest.map_err(doing("making the backup"))?))
}

/// What backups say of this program.
pub(crate) fn about(node: &str) -> About {
    About { edge: GIT_VERSION.into(), node: node.into() }
}

/// Runs `edge restore`.
pub(crate) fn restore(args: &RestoreArgs) -> ExitCode {
    let done = if args.check {
        edge_backup::verify(&args.file).map(|manifest| (manifest, None)).map_err(doing("reading the backup"))
    } else {
        put_back(&args.file, &args.data_dir)
    };
    let (manifest, before) = match done {
        Ok(done) => done,
        Err(error) => return fail(1, &error),
    };
    match args.output {
        Output::Json => {
            let mut value = summary(&manifest);
            if let Some(before) = &before {
                value["before"] = before.display().to_string().into();
            }
            print(format!("{value:#}\n").as_bytes())
        }
        Output::Text => {
            let mut text = format!(
                "{}: {}, made on {} at {}\n",
                args.file.display(),
                content(&manifest),
                manifest.node,
                manifest.time
            );
            if let Some(before) = &before {
                text += &format!("what was there is kept in {}: remove it when all is well\n", before.display());
            }
            if !args.check {
                text += "restored: start the server with the same configuration as before\n";
            }
            print(text.as_bytes())
        }
    }
}

fn put_back(file: &Path, data_dir: &Path) -> Result<(Manifest, Option<PathBuf>), Failure> {
    let secret = |dir: &Path| edge_sys::fsutil::create_dir_all_mode(dir, 0o700);
    secret(&data_dir.join("run")).map_err(doing("making the data directory"))?;
    let _instance = instance::claim(data_dir)?;
    let restored = edge_backup::restore(file, data_dir).map_err(doing("restoring"))?;
    Ok((restored.manifest, restored.before))
}

fn content(manifest: &Manifest) -> String {
    format!("{} objects at revision {}", manifest.keys, manifest.revision)
}

fn summary(manifest: &Manifest) -> serde_json::Value {
    json!({
        "edge": manifest.edge,
        "node": manifest.node,
        "time": manifest.time,
        "revision": manifest.revision,
        "objects": manifest.keys,
    })
}
