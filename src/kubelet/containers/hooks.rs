//! Lifecycle hooks: postStart and preStop.

use crate::pods::shared::PodShared;
use crate::probes::http;
use edge_runtime::ExecSpec;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("command {command:?} exited with {code}")]
    ExitCode { command: String, code: i32 },
    #[error(transparent)]
    Exec(#[from] edge_runtime::Error),
    #[error(transparent)]
    Http(#[from] http::HttpError),
    #[error("HTTP request answered with status {0}")]
    HttpStatus(u16),
    #[error("not finished in time")]
    Timeout,
    #[error("invalid handler: neither exec, httpGet nor sleep")]
    Invalid,
}

/// Runs a hook of a running container for at most `limit`.
pub(crate) async fn run(
    shared: &PodShared,
    container: &Container,
    id: &str,
    hook: &LifecycleHandler,
    limit: Option<Duration>,
) -> Result<(), HookError> {
    let work = handle(shared, container, id, hook);
    match limit {
        Some(limit) => timeout(limit, work).await.unwrap_or(Err(HookError::Timeout)),
        None => work.await,
    }
}

async fn handle(shared: &PodShared, container: &Container, id: &str, hook: &LifecycleHandler) -> Result<(), HookError> {
    if let Some(exec) = &hook.exec {
        let args = exec.command.clone().unwrap_or_default();
        let command = args.join(" ");
        let mut session = shared.cx.runtime.exec(id, ExecSpec { args, ..ExecSpec::default() }).await?;
        let code = session.wait().await?.code;
        return if code == 0 { Ok(()) } else { Err(HookError::ExitCode { command, code }) };
    }
    if let Some(action) = &hook.http_get {
        let target = http::Target::new(action, container, &shared.addresses())?;
        let answer = http::get(&target, "kube-lifecycle/1.36").await?;
        return if answer.status < 400 { Ok(()) } else { Err(HookError::HttpStatus(answer.status)) };
    }
    if let Some(action) = &hook.sleep {
        sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err(HookError::Invalid)
}
