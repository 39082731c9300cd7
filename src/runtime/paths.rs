//! Where everything lies below the runtime's directory. Both the daemon and the monitors go by it.
//!
//! ```text
//! <dir>/skeletons/                         the lowest layers of containers
//! <dir>/pods/<sandbox>/sandbox.json        what was asked for
//!                      monitor.sock        the monitor listens here
//!                      shm/                tmpfs shared by the containers
//!                      containers/<id>/    spec.json    what was asked for
//!                                          config.json  the OCI specification
//!                                          exit.json    how it ended
//!                                          rootfs/ upper/ work/ mounts/  the file system
//!                                          oci/         libcontainer's own state
//! ```

use std::path::{Path, PathBuf};

/// Name of the socket in a sandbox's directory.
pub(crate) const SOCKET: &str = "monitor.sock";

/// The id under which libcontainer knows a container: each has a state directory of its own, so one short name does for all.
pub(crate) const OCI_ID: &str = "init";

/// Paths of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SandboxPaths {
    directory: PathBuf,
}

impl SandboxPaths {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn spec(&self) -> PathBuf {
        self.directory.join("sandbox.json")
    }

    pub(crate) fn shm(&self) -> PathBuf {
        self.directory.join("shm")
    }

    /// See [`crate::skeleton`]. They are the same for all sandboxes.
    pub(crate) fn skeletons(&self) -> PathBuf {
        self.directory.ancestors().nth(2).unwrap_or(&self.directory).join("skeletons")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.directory.join("containers")
    }

    pub(crate) fn container(&self, id: &str) -> ContainerPaths {
        ContainerPaths { sandbox: self.clone(), directory: self.containers().join(id) }
    }
}

/// Paths of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerPaths {
    sandbox: SandboxPaths,
    directory: PathBuf,
}

impl ContainerPaths {
    pub(crate) fn sandbox(&self) -> &SandboxPaths {
        &self.sandbox
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn spec(&self) -> PathBuf {
        self.directory.join("spec.json")
    }

    /// The OCI bundle is the container's directory itself.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.join("config.json")
    }

    pub(crate) fn exit(&self) -> PathBuf {
        self.directory.join("exit.json")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    pub(crate) fn staged_mount(&self, index: usize) -> PathBuf {
        self.directory.join("mounts").join(index.to_string())
    }

    /// libcontainer's state directory.
    pub(crate) fn oci(&self) -> PathBuf {
        self.directory.join("oci")
    }

    /// Where libcontainer's init waits for the word to start.
    pub(crate) fn notify_directory(&self) -> PathBuf {
        self.oci().join(OCI_ID)
    }
}
