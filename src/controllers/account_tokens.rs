//! Tokens of service accounts that live in Secrets: who makes a Secret of type `kubernetes.io/service-account-token` gets one that
//! lasts as long as the Secret, and no longer than its account.

use crate::context::{Context, each, unless_changed, unless_gone};
use base64::{Engine, prelude::BASE64_STANDARD};
use edge_client::{
    Api, Change, DeleteParams, Error, Informer, Key, Outcome, Patch, PatchParams, Preconditions, ResourceExt,
    WorkQueue, run_workers,
};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use serde_json::{Value, json};
use std::fmt::Debug;
use std::sync::Arc;

const TOKENS: &str = "type=kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Makes tokens that do not expire; holds the cluster's key.
pub trait TokenSigner: Debug + Send + Sync {
    /// A token of a service account (name and UID) that is good as long as the Secret of a name holds it.
    ///
    /// # Errors
    /// Why it cannot be made.
    fn sign(&self, namespace: &str, account: (&str, &str), secret: &str) -> Result<String, String>;
}

pub(crate) async fn run(context: Context, ca: String, signer: Arc<dyn TokenSigner>) {
    let secrets = context.informers.select::<Secret>(TOKENS);
    let accounts = context.informers.of::<ServiceAccount>();
    let queue = WorkQueue::<Key>::new();
    secrets.synced().await;
    accounts.synced().await;
    let watch_accounts = each(&accounts, |change| {
        let account = change.object();
        let gone = matches!(change, Change::Deleted(_) | Change::Applied { old: None, .. });
        for secret in secrets.list_namespace(&account.namespace().unwrap_or_default()) {
            if gone && account_of(&secret) == account.metadata.name.as_deref() {
                queue.add(Key::of(&*secret));
            }
        }
    });
    let watch_secrets = each(&secrets, |change| {
        if let Change::Applied { new, .. } = change {
            queue.add(Key::of(&**new));
        }
    });
    let work = run_workers("account-tokens", queue.clone(), 1, |key: Key| {
        let secret = secrets.get_key(&key).filter(|secret| secret.metadata.deletion_timestamp.is_none());
        let (context, accounts, ca, signer) = (&context, &accounts, &ca, &signer);
        async move {
            let Some(secret) = secret else { return Ok::<_, Error>(Outcome::Done) };
            let Some(name) = account_of(&secret) else { return Ok(Outcome::Done) };
            let api: Api<Secret> = Api::namespaced(context.client.clone(), &key.namespace);
            let Some(account) = account(context, accounts, &key.namespace, name, &secret).await? else {
                let params = DeleteParams {
                    preconditions: Some(Preconditions { uid: secret.uid(), resource_version: None }),
                    ..DeleteParams::default()
                };
                unless_changed(api.delete(&key.name, &params).await)?;
                return Ok(Outcome::Done);
            };
            let uid = account.uid().unwrap_or_default();
            let token = || signer.sign(&key.namespace, (name, uid.as_str()), &key.name);
            match missing(&secret, &key.namespace, &uid, ca, token) {
                Ok(Some(patch)) => {
                    unless_changed(api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
                }
                Ok(None) => {}
                Err(why) => tracing::warn!(secret = %key, why, "no token can be made"),
            }
            Ok(Outcome::Done)
        }
    });
    tokio::join!(watch_accounts, watch_secrets, work);
}

fn account_of(secret: &Secret) -> Option<&str> {
    secret.annotations().get(ACCOUNT).map(String::as_str).filter(|name| !name.is_empty())
}

/// The account that a secret names; nothing when it is not there, or is another one of the same name.
async fn account(
    context: &Context,
    accounts: &Informer<ServiceAccount>,
    namespace: &str,
    name: &str,
    secret: &Secret,
) -> Result<Option<Arc<ServiceAccount>>, Error> {
    let wanted = secret.annotations().get(ACCOUNT_UID).filter(|uid| !uid.is_empty());
    let is_it = |account: &ServiceAccount| wanted.is_none_or(|uid| Some(uid) == account.metadata.uid.as_ref());
    if let Some(known) = accounts.get(namespace, name).filter(|account| is_it(account)) {
        return Ok(Some(known));
    }
    // the cache may be behind
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), namespace);
    Ok(unless_gone(api.get(name).await)?.filter(is_it).map(Arc::new))
}

/// The merge patch with what a secret lacks; nothing when it has all.
fn missing(
    secret: &Secret,
    namespace: &str,
    uid: &str,
    ca: &str,
    token: impl FnOnce() -> Result<String, String>,
) -> Result<Option<Value>, String> {
    let held = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.as_slice());
    let mut data = serde_json::Map::new();
    let mut set = |key: &str, value: &str| drop(data.insert(key.to_owned(), BASE64_STANDARD.encode(value).into()));
    if held("ca.crt") != Some(ca.as_bytes()) {
        set("ca.crt", ca);
    }
    if held("namespace").is_none_or(<[u8]>::is_empty) {
        set("namespace", namespace);
    }
    if held("token").is_none_or(<[u8]>::is_empty) {
        set("token", &token()?);
    }
    if data.is_empty() {
        return Ok(None);
    }
    Ok(Some(json!({"metadata": {"uid": secret.uid(), "resourceVersion": secret.resource_version(),
        "annotations": {ACCOUNT_UID: uid}}, "data": data})))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_secret_gets_what_it_lacks() {
        let secret = |data: Value| -> Secret {
            serde_json::from_value(json!({"metadata": {"name": "s", "uid": "u"}, "data": data})).unwrap()
        };
        let encoded = |text: &str| BASE64_STANDARD.encode(text);
        let all = json!({"ca.crt": encoded("ca"), "namespace": encoded("ns"), "token": encoded("t")});
        let lacks = |data: Value| missing(&secret(data), "ns", "1", "ca", || Ok("made".into()));
        assert_eq!(lacks(all.clone()), Ok(None));
        let patch = lacks(json!({})).unwrap().unwrap();
        assert_eq!(patch["data"]["token"], encoded("made"));
        assert_eq!(patch["metadata"]["annotations"][ACCOUNT_UID], "1");
        let mut old = all;
        old["ca.crt"] = encoded("former").into();
        assert_eq!(lacks(old).unwrap().unwrap()["data"], json!({"ca.crt": encoded("ca")}), "the token stays");
        assert_eq!(missing(&secret(json!({})), "ns", "1", "ca", || Err("no".into())), Err("no".into()));
    }
}
