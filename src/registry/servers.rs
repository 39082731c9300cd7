//! Which servers of a shared store live, as kube-apiserver knows it: a key each, which goes when it is not renewed.

use crate::registry::Registry;
use crate::write::storage_status;
use bytes::Bytes;
use edge_api::Status;
use edge_storage::{Class, ListRequest, Op, Storage, Transaction, Watcher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Where kube-apiserver has them.
const PREFIX: &str = "/registry/masterleases/";
/// Who has not said for so long that he lives is taken for dead.
const LIFE: Duration = Duration::from_secs(15);
/// How often a server says so.
const RENEWAL: Duration = Duration::from_secs(6);
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);

/// The servers of a store, and this one among them.
pub struct Servers {
    storage: Arc<dyn Storage>,
    watcher: Option<Watcher>,
    /// When this server is to say again that it lives.
    due: tokio::time::Instant,
}

impl Registry {
    /// The servers of the store; `None` when it is this server's alone.
    pub fn servers(&self) -> Option<Servers> {
        let storage = self.storage.clone();
        storage.is_shared().then(|| Servers { storage, watcher: None, due: tokio::time::Instant::now() })
    }
}

fn key(address: IpAddr) -> Bytes {
    format!("{PREFIX}{address}").into()
}

impl Servers {
    /// Says that the server with this address lives.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn announce(&mut self, address: IpAddr) -> Result<(), Status> {
        let put = Op::Put { key: key(address), value: Bytes::new(), class: Class::Volatile { ttl: Some(LIFE) } };
        let transaction = Transaction { compares: Vec::new(), ops: vec![put] };
        self.storage.transact(transaction).await.map_err(storage_status)?;
        self.due = tokio::time::Instant::now() + RENEWAL;
        Ok(())
    }

    /// Says that it does not any more.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn withdraw(&self, address: IpAddr) -> Result<(), Status> {
        let transaction = Transaction { compares: Vec::new(), ops: vec![Op::Delete { key: key(address) }] };
        self.storage.transact(transaction).await.map(drop).map_err(storage_status)
    }

    /// The addresses of those that live, in order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list(&self) -> Result<Vec<IpAddr>, Status> {
        let request = ListRequest { prefix: PREFIX.into(), ..ListRequest::default() };
        let list = self.storage.list(request).await.map_err(storage_status)?;
        let address = |key: &[u8]| std::str::from_utf8(key.get(PREFIX.len()..)?).ok()?.parse().ok();
        let mut all: Vec<IpAddr> = list.items.iter().filter_map(|kv| address(&kv.key)).collect();
        all.sort_unstable();
        Ok(all)
    }

    /// Waits until servers may have come or gone, or this one has to say that it lives.
    pub async fn changed(&mut self) {
        let (storage, watcher) = (&self.storage, &mut self.watcher);
        let change = async move {
            let Some(watching) = watcher else {
                // what comes between the list and the watch is seen by who lists again now
                match storage.watch(PREFIX.as_bytes(), storage.revision()).await {
                    Ok(new) => *watcher = Some(new),
                    Err(error) => {
                        tracing::debug!(%error, "the servers cannot be followed yet");
                        tokio::time::sleep(RETRY).await;
                    }
                }
                return;
            };
            if let Err(error) = watching.next().await {
                tracing::debug!(%error, "following the servers anew");
                *watcher = None;
            }
        };
        tokio::select! {
            () = change => {}
            () = tokio::time::sleep_until(self.due) => self.due = tokio::time::Instant::now() + RETRY,
        }
    }

    /// Whether it is time for [`Servers::announce`].
    pub fn is_due(&self) -> bool {
        self.due.saturating_duration_since(tokio::time::Instant::now()) <= RETRY
    }
}
