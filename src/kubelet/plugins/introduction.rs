//! How plugins introduce themselves: the messages of `pluginregistration.Registration`.

use edge_grpc::wire::{Fields, Message};
use edge_grpc::{CallError, Channel};
use std::path::{Path, PathBuf};

/// What a plugin says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Introduction {
    /// Its type, such as `CSIPlugin`.
    pub(crate) kind: String,
    pub(crate) name: String,
    /// The socket where it is asked.
    pub(crate) endpoint: PathBuf,
    pub(crate) versions: Vec<String>,
}

impl Introduction {
    /// Asks the plugin behind a socket who it is.
    pub(super) async fn ask(channel: &Channel, socket: &Path) -> Result<Self, CallError> {
        let answer = channel.call("/pluginregistration.Registration/GetInfo", Message::default()).await?;
        let (mut fields, mut out) = (Fields::of(answer), Self::default());
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => out.kind = value.text()?,
                2 => out.name = value.text()?,
                3 => out.endpoint = path(&value.text()?),
                4 => out.versions.push(value.text()?),
                _ => {}
            }
        }
        if out.endpoint.as_os_str().is_empty() {
            // it is asked where it registers
            socket.clone_into(&mut out.endpoint);
        }
        Ok(out)
    }
}

fn path(endpoint: &str) -> PathBuf {
    PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint))
}

/// Tells a plugin whether it is known now.
pub(super) async fn answer(channel: &Channel, result: Result<(), &str>) -> Result<(), CallError> {
    let message = Message::default().flag(1, result.is_ok()).text(2, result.err().unwrap_or_default());
    channel.call("/pluginregistration.Registration/NotifyRegistrationStatus", message).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_paths() {
        for endpoint in ["unix:///run/a.sock", "/run/a.sock"] {
            assert_eq!(path(endpoint), Path::new("/run/a.sock"));
        }
    }
}
