//! The server's own backups, on a schedule.

use super::backup_command::about;
use crate::config::BackupConfig;
use edge_storage::Storage;
use edge_sys::clock;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// After a failure, when nothing better is known.
const RETRY: Duration = Duration::from_secs(600);

/// Makes backups when they are due, and removes old ones, for ever. A moment at which the server did not run is not made up for.
pub(crate) async fn keep(config: BackupConfig, data_dir: PathBuf, node: String, storage: Arc<dyn Storage>) {
    let mut after = Timestamp::now();
    loop {
        let Some(due) = config.schedule.next(after, &TimeZone::system()) else {
            // the 30th of February
            return std::future::pending().await;
        };
        if let Err(error) = clock::sleep_until(SystemTime::from(due)).await {
            tracing::error!(%error, "no timer for backups");
            tokio::time::sleep(RETRY).await;
        }
        let now = Timestamp::now();
        if now < due {
            // the clock was set: what is due next is to be looked at anew
            after = now;
            continue;
        }
        after = now;
        let (config, data_dir, node, storage) = (config.clone(), data_dir.clone(), node.clone(), storage.clone());
        let runtime = tokio::runtime::Handle::current();
        let made = tokio::task::spawn_blocking(move || {
            let copy = |target: &Path| runtime.block_on(storage.snapshot(target));
            make(&config, &data_dir, &node, now, copy)
        });
        match made.await {
            Ok(Ok(file)) => tracing::info!(file = %file.display(), "backup made"),
            Ok(Err(error)) => tracing::error!(error = super::with_causes(&error), "no backup could be made"),
            Err(panic) => tracing::error!(error = %panic, "no backup could be made"),
        }
    }
}

/// Makes one backup, and removes those beyond the number that is kept.
fn make(
    config: &BackupConfig,
    data_dir: &Path,
    node: &str,
    now: Timestamp,
    copy: impl FnOnce(&Path) -> edge_storage::Result<()>,
) -> edge_backup::Result<PathBuf> {
    let directory = &config.directory;
    let io = |source| edge_backup::Error::Io { path: directory.clone(), source };
    edge_sys::fsutil::create_dir_all_mode(directory, 0o700).map_err(io)?;
    let file = directory.join(edge_backup::file_name(node, now));
    edge_backup::create(data_dir, &file, about(node), copy)?;
    edge_backup::retain(directory, node, config.retention)?;
    Ok(file)
}
