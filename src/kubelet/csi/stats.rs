//! How full a driver's volume is, and how well.

use super::Csi;
use super::client::Client;
use crate::storage::{FsStats, Health};

impl Csi {
    /// What the driver of a pod's volume says; `None` when it is no driver's.
    ///
    /// # Errors
    /// Why it is not known: the driver does not tell, or not now.
    pub(crate) async fn stats(&self, uid: &str, name: &str) -> Option<Result<(FsStats, Option<Health>), String>> {
        let (key, target, staging) = self.state.look(|volumes| {
            let mut of = volumes.0.iter().filter_map(|(key, volume)| Some((key, volume, volume.pods.get(uid)?)));
            let (key, volume, published) = of.find(|(_, _, p)| p.is_done && p.names.iter().any(|n| n == name))?;
            Some((key.clone(), published.target.clone()?, volume.staging.clone()))
        })?;
        let ask = async {
            let driver = self.drivers.of(&key.0).map_err(|error| error.to_string())?;
            let capabilities = driver.capabilities().await.map_err(|error| error.to_string())?;
            if !capabilities.tells_stats {
                return Err("the driver does not tell".to_owned());
            }
            let client: Client = driver.connect().await.map_err(|error| error.to_string())?;
            let answer = client.stats(&key.1, &target, staging.as_deref()).await.map_err(|error| error.to_string())?;
            Ok((answer.stats, answer.health.filter(|_| capabilities.tells_health)))
        };
        Some(ask.await)
    }
}
