//! Signs the ConfigMap `cluster-info` in `kube-public` with every bootstrap token that is for signing: who has a token and no
//! certificate yet can tell by it that what anybody may read is true.

use crate::context::{Context, each, unless_changed};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use edge_client::{Api, Error, Outcome, PostParams, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

const TOKENS: &str = "type=bootstrap.kubernetes.io/token";
const TOKENS_NAMESPACE: &str = "kube-system";
const NAMESPACE: &str = "kube-public";
const NAME: &str = "cluster-info";
/// What is signed.
const CONTENT: &str = "kubeconfig";
/// The keys of signatures, before the token's id.
const SIGNATURE: &str = "jws-kubeconfig-";
/// SHA-256's blocks, in bytes.
const BLOCK: usize = 64;

pub(crate) async fn run(context: Context) {
    let secrets = context.informers.select::<Secret>(TOKENS);
    let infos = context.informers.select::<ConfigMap>("metadata.name=cluster-info");
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), NAMESPACE);
    secrets.synced().await;
    infos.synced().await;
    // there is one thing to do, whatever changes
    let queue = WorkQueue::<&'static str>::new();
    let work = run_workers("bootstrap-signer", queue.clone(), 1, |_| {
        let info = infos.get(NAMESPACE, NAME);
        let tokens: Vec<Token> = secrets.list_namespace(TOKENS_NAMESPACE).iter().filter_map(Token::of).collect();
        let api = api.clone();
        async move {
            let Some(info) = info else { return Ok::<_, Error>(Outcome::Done) };
            if let Some(data) = signed(info.data.as_ref(), &tokens) {
                let next = ConfigMap { data: Some(data), ..(*info).clone() };
                unless_changed(api.replace(NAME, &PostParams::default(), &next).await)?;
            }
            Ok(Outcome::Done)
        }
    });
    tokio::join!(
        each(&secrets, |change| {
            if change.object().namespace().as_deref() == Some(TOKENS_NAMESPACE) {
                queue.add(NAME);
            }
        }),
        each(&infos, |change| {
            if change.object().namespace().as_deref() == Some(NAMESPACE) {
                queue.add(NAME);
            }
        }),
        work,
    );
}

/// A token that signs.
struct Token {
    id: String,
    secret: String,
}

impl Token {
    /// The token of a secret, if it is for signing and still valid. The token cleaner deletes those that are not.
    fn of(secret: &Arc<Secret>) -> Option<Self> {
        let data = secret.data.as_ref()?;
        let text =
            |key: &str| data.get(key).and_then(|v| String::from_utf8(v.0.clone()).ok()).filter(|v| !v.is_empty());
        let (id, key) = (text("token-id")?, text("token-secret")?);
        let is_named_so = secret.metadata.name.as_deref() == Some(&format!("bootstrap-token-{id}"));
        let ended = text("expiration").is_some_and(|t| t.parse::<Timestamp>().is_ok_and(|end| end <= Timestamp::now()));
        (is_named_so && !ended && text("usage-bootstrap-signing")? == "true").then_some(Self { id, secret: key })
    }
}

/// The data with all signatures that it should have and no others; `None` when it is as it should be.
fn signed(data: Option<&BTreeMap<String, String>>, tokens: &[Token]) -> Option<BTreeMap<String, String>> {
    let data = data?;
    let content = data.get(CONTENT)?;
    let others = data.iter().filter(|(key, _)| !key.starts_with(SIGNATURE));
    let mut next: BTreeMap<String, String> = others.map(|(k, v)| (k.clone(), v.clone())).collect();
    next.extend(tokens.iter().map(|t| (format!("{SIGNATURE}{}", t.id), signature(content, t))));
    (next != *data).then_some(next)
}

/// A JSON web signature without its content (RFC 7515, appendix F).
fn signature(content: &str, token: &Token) -> String {
    let header = BASE64.encode(serde_json::json!({"alg": "HS256", "kid": token.id}).to_string());
    let input = format!("{header}.{}", BASE64.encode(content));
    format!("{header}..{}", BASE64.encode(hmac(token.secret.as_bytes(), input.as_bytes())))
}

/// HMAC with SHA-256 (RFC 2104).
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use k8s_openapi::ByteString;
    use serde_json::json;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn codes_are_those_of_rfc_4231() {
        let one = hmac(&[0x0b; 20], b"Hi There");
        assert_eq!(hex(&one), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
        let two = hmac(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(hex(&two), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let long = hmac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(hex(&long), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    }

    #[test]
    fn each_token_for_signing_signs() {
        let secret = |name: &str, fields: &[(&str, &str)]| {
            let data: BTreeMap<String, ByteString> =
                fields.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect();
            Arc::new(serde_json::from_value::<Secret>(json!({"metadata": {"name": name}, "data": data})).unwrap())
        };
        let good = [("token-id", "abcdef"), ("token-secret", "0123456789abcdef"), ("usage-bootstrap-signing", "true")];
        let of = |name: &str, more: &[(&str, &str)]| Token::of(&secret(name, &[&good[..], more].concat()));
        let token = of("bootstrap-token-abcdef", &[]).unwrap();
        assert!(of("bootstrap-token-other", &[]).is_none());
        assert!(of("bootstrap-token-abcdef", &[("usage-bootstrap-signing", "false")]).is_none());
        assert!(of("bootstrap-token-abcdef", &[("expiration", "2020-01-01T00:00:00Z")]).is_none());
        assert!(of("bootstrap-token-abcdef", &[("token-secret", "")]).is_none());

        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let before = map(&[("kubeconfig", "content"), ("mine", "x"), ("jws-kubeconfig-gone", "y")]);
        let after = signed(Some(&before), &[token]).unwrap();
        assert_eq!(after.keys().collect::<Vec<_>>(), ["jws-kubeconfig-abcdef", "kubeconfig", "mine"]);
        let jws = &after["jws-kubeconfig-abcdef"];
        let (header, code) = jws.split_once("..").unwrap();
        let header: serde_json::Value = serde_json::from_slice(&BASE64.decode(header).unwrap()).unwrap();
        assert_eq!(header, json!({"alg": "HS256", "kid": "abcdef"}));
        assert_eq!(BASE64.decode(code).unwrap().len(), 32);
        let token = of("bootstrap-token-abcdef", &[]).unwrap();
        assert_eq!(signed(Some(&after), &[token]), None, "as it should be");
        assert_eq!(signed(Some(&after), &[]).unwrap().len(), 2, "no token, no signature");
        assert_eq!(signed(Some(&map(&[("other", "x")])), &[]), None);
        assert_eq!(signed(None, &[]), None);
    }
}
