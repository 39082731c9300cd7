//! `edge unpack`: the files that a machine needs beside the program. The install script asks for them, so that one file is
//! all that has to be carried to a machine.

use super::fail;
use clap::Args;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

/// Path below the project, content, mode.
const FILES: [(&str, &str, u32); 7] = [
    file("systemd/edge.service", include_str!("../../systemd/edge.service")),
    file("rootfs/etc/edge/config.yaml.example", include_str!("../../rootfs/etc/edge/config.yaml.example")),
    file("rootfs/etc/modules-load.d/edge.conf", include_str!("../../rootfs/etc/modules-load.d/edge.conf")),
    file("rootfs/etc/sysctl.d/90-edge.conf", include_str!("../../rootfs/etc/sysctl.d/90-edge.conf")),
    script("rootfs/etc/init.d/edge", include_str!("../../rootfs/etc/init.d/edge")),
    script("rootfs/usr/local/bin/edge-killall.sh", include_str!("../../rootfs/usr/local/bin/edge-killall.sh")),
    script("rootfs/usr/local/bin/edge-uninstall.sh", include_str!("../../rootfs/usr/local/bin/edge-uninstall.sh")),
];

const fn file(path: &'static str, content: &'static str) -> (&'static str, &'static str, u32) {
    (path, content, 0o644)
}

const fn script(path: &'static str, content: &'static str) -> (&'static str, &'static str, u32) {
    (path, content, 0o755)
}

/// `edge unpack`
#[derive(Args)]
pub(crate) struct UnpackArgs {
    /// Directory to write to; made when missing
    #[arg(value_name = "DIR")]
    to: PathBuf,
}

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
struct UnpackError {
    path: PathBuf,
    source: io::Error,
}

pub(crate) fn main(args: &UnpackArgs) -> ExitCode {
    match unpack(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

fn unpack(args: &UnpackArgs) -> Result<(), UnpackError> {
    for (path, content, mode) in FILES {
        let target = args.to.join(path);
        let write = || {
            fs::create_dir_all(target.parent().unwrap_or(&args.to))?;
            fs::write(&target, content)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(mode))
        };
        write().map_err(|source| UnpackError { path: target.clone(), source })?;
    }
    Ok(())
}
