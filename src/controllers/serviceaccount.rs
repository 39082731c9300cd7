//! Every namespace has a ServiceAccount named `default`.

use crate::context::Context;
use edge_client::{Api, Change, Error, Outcome, PostParams, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

const NAME: &str = "default";

pub(crate) async fn run(context: Context) {
    let namespaces = context.informers.of::<Namespace>();
    let accounts = context.informers.of::<ServiceAccount>();
    let queue = WorkQueue::<String>::new();
    let (mut namespace_changes, mut account_changes) = (namespaces.subscribe(), accounts.subscribe());
    namespaces.synced().await;
    accounts.synced().await;
    let watch = async {
        loop {
            tokio::select! {
                Some(change) = namespace_changes.recv() => queue.add(change.object().name_any()),
                Some(change) = account_changes.recv() => {
                    if let Change::Deleted(account) = change && account.name_any() == NAME {
                        queue.add(account.namespace().unwrap_or_default());
                    }
                }
                else => return,
            }
        }
    };
    let work = run_workers("serviceaccount", queue.clone(), 1, |name: String| {
        let (namespaces, accounts, client) = (namespaces.clone(), accounts.clone(), context.client.clone());
        async move {
            let living = namespaces.get("", &name).is_some_and(|n| n.metadata.deletion_timestamp.is_none());
            if !living || accounts.get(&name, NAME).is_some() {
                return Ok(Outcome::Done);
            }
            let account = ServiceAccount {
                metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
                ..ServiceAccount::default()
            };
            let api: Api<ServiceAccount> = Api::namespaced(client, &name);
            settled(api.create(&PostParams::default(), &account).await)
        }
    });
    tokio::join!(watch, work);
}

/// A creation that was not necessary after all, or came too late for its namespace, is done too.
pub(crate) fn settled<T>(result: Result<T, Error>) -> Result<Outcome, Error> {
    match result {
        Err(e) if !edge_client::is_conflict(&e) && !edge_client::is_not_found(&e) && !is_terminating(&e) => Err(e),
        _ => Ok(Outcome::Done),
    }
}

/// Whether something was refused because its namespace is being deleted.
fn is_terminating(error: &Error) -> bool {
    matches!(error, Error::Api(s) if s.code == 403 && s.message.contains("being terminated"))
}
