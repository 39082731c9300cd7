//! The components of this process as users of the API: each has its own name, and the rights of that name.

use edge_api::UserInfo;
use edge_apiserver::{ApiServer, Body};
use edge_client::{Client, LocalResponse};
use http_body_util::BodyExt;

/// A client whose requests the API server of this process answers, as they would be answered to `user`.
pub(crate) fn client(api: &ApiServer, user: UserInfo) -> Client {
    let api = api.clone();
    edge_client::local(move |request| {
        let (api, user) = (api.clone(), user.clone());
        Box::pin(async move {
            let response: LocalResponse =
                api.call(Some(user), request.map(Body::full)).await.map(BodyExt::boxed_unsync);
            response
        })
    })
}

/// The user behind a name: service accounts and nodes have their groups.
pub(crate) fn user(name: &str) -> UserInfo {
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, _)) => UserInfo::new(name, edge_auth::service_account_groups(namespace)),
        None if name.starts_with("system:node:") => UserInfo::new(name, ["system:nodes"]),
        None => UserInfo::new(name, [""; 0]),
    }
}
