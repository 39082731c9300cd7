//! What is told of requests, and to whom: flags with the names and defaults of Kubernetes' API server.

use super::node::{ConfigError, wrong};
use super::time::parse_time;
use clap::{ArgAction, Args};
use edge_apiserver::{
    AuditOptions, BatchOptions, LogOptions, ThrottleOptions, Truncation, WebhookMode, WebhookOptions,
};
use std::path::PathBuf;

const HEADING: &str = "Audit";
/// The only version of events that there still is.
const VERSION: &str = "audit.k8s.io/v1";

/// The flags about the audit log.
#[derive(Args, Clone, Debug)]
pub(crate) struct AuditArgs {
    /// What is told of requests to the API: an audit.k8s.io/v1 Policy [default: nothing]
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub(crate) audit_policy_file: Option<PathBuf>,
    /// Where it is told, one event a line; - is standard output
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub(crate) audit_log_path: Option<PathBuf>,
    /// Days for which older files are kept; with 0 for ever
    #[arg(long, default_value_t = 366, value_name = "DAYS", help_heading = HEADING)]
    pub(crate) audit_log_maxage: u32,
    /// How many older files are kept; with 0 all
    #[arg(long, default_value_t = 100, value_name = "N", help_heading = HEADING)]
    pub(crate) audit_log_maxbackup: u32,
    /// Megabytes of a file, before a new one begins; with 0 none ever does
    #[arg(long, default_value_t = 100, value_name = "MB", help_heading = HEADING)]
    pub(crate) audit_log_maxsize: u32,
    /// Whether events are made shorter that are too large for the log
    #[arg(
        long,
        default_value_t = false,
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "BOOL",
        help_heading = HEADING
    )]
    pub(crate) audit_log_truncate_enabled: bool,
    /// Bytes of the log's events that are written together: of no effect, each is written by itself
    #[arg(long, default_value_t = 10_485_760, value_name = "BYTES", help_heading = HEADING)]
    pub(crate) audit_log_truncate_max_batch_size: u32,
    /// Bytes of an event in the log. A larger one loses its request and response; if that is not enough it is left out
    #[arg(long, default_value_t = 102_400, value_name = "BYTES", help_heading = HEADING)]
    pub(crate) audit_log_truncate_max_event_size: u32,

    /// To whom it is told, with or without a log: a kubeconfig of somebody who takes audit.k8s.io/v1 EventLists
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub(crate) audit_webhook_config_file: Option<PathBuf>,
    /// How long to wait before a failed request to him is sent again; longer each time, and five times in all
    #[arg(long, default_value = "10s", value_name = "TIME", help_heading = HEADING)]
    pub(crate) audit_webhook_initial_backoff: String,
    /// The form of what he is sent; there is only one
    #[arg(long, default_value = VERSION, value_name = "VERSION", help_heading = HEADING)]
    pub(crate) audit_webhook_version: String,
    /// Whether events are gathered and nobody waits for them (batch), or requests wait for theirs (blocking), and are refused when
    /// it cannot be told that they were received (blocking-strict)
    #[arg(long, default_value = "batch", value_name = "MODE", help_heading = HEADING)]
    pub(crate) audit_webhook_mode: String,
    /// How many events wait to be sent at most; more are lost (batch)
    #[arg(long, default_value_t = 10_000, value_name = "N", help_heading = HEADING)]
    pub(crate) audit_webhook_batch_buffer_size: u32,
    /// How many events are sent together at most (batch)
    #[arg(long, default_value_t = 400, value_name = "N", help_heading = HEADING)]
    pub(crate) audit_webhook_batch_max_size: u32,
    /// For how long an event waits for others (batch)
    #[arg(long, default_value = "30s", value_name = "TIME", help_heading = HEADING)]
    pub(crate) audit_webhook_batch_max_wait: String,
    /// Whether it is limited how many batches are sent (batch)
    #[arg(
        long,
        default_value_t = true,
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "BOOL",
        help_heading = HEADING
    )]
    pub(crate) audit_webhook_batch_throttle_enable: bool,
    /// Batches a second at most, on average (batch)
    #[arg(long, default_value_t = 10.0, value_name = "N", help_heading = HEADING)]
    pub(crate) audit_webhook_batch_throttle_qps: f64,
    /// Batches at once at most, when there were fewer before (batch)
    #[arg(long, default_value_t = 15, value_name = "N", help_heading = HEADING)]
    pub(crate) audit_webhook_batch_throttle_burst: u32,
    /// Whether events are made shorter, and batches smaller, that are too large for the webhook
    #[arg(
        long,
        default_value_t = false,
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "BOOL",
        help_heading = HEADING
    )]
    pub(crate) audit_webhook_truncate_enabled: bool,
    /// Bytes of the events that are sent together
    #[arg(long, default_value_t = 10_485_760, value_name = "BYTES", help_heading = HEADING)]
    pub(crate) audit_webhook_truncate_max_batch_size: u32,
    /// Bytes of an event that is sent. A larger one loses its request and response; if that is not enough it is left out
    #[arg(long, default_value_t = 102_400, value_name = "BYTES", help_heading = HEADING)]
    pub(crate) audit_webhook_truncate_max_event_size: u32,
}

/// An audit log.
#[derive(Clone, Debug)]
pub(crate) struct AuditConfig {
    /// A file; read when the server starts.
    pub(crate) policy: PathBuf,
    pub(crate) options: AuditOptions,
}

impl AuditArgs {
    /// `None`: there is no audit log.
    pub(super) fn check(self) -> Result<Option<AuditConfig>, ConfigError> {
        let options = AuditOptions { log: self.log()?, webhook: self.webhook()? };
        let Some(policy) = self.audit_policy_file else {
            let lonely =
                [("audit-log-path", options.log.is_some()), ("audit-webhook-config-file", options.webhook.is_some())];
            return match lonely.into_iter().find(|(_, is_given)| *is_given) {
                Some((flag, _)) => Err(wrong(flag, "nothing is told without a policy (--audit-policy-file)")),
                None => Ok(None),
            };
        };
        if options.log.is_none() && options.webhook.is_none() {
            let reason = "it is not said where to tell it (--audit-log-path, --audit-webhook-config-file)";
            return Err(wrong("audit-policy-file", reason));
        }
        Ok(Some(AuditConfig { policy, options }))
    }

    fn log(&self) -> Result<Option<LogOptions>, ConfigError> {
        let Some(path) = self.audit_log_path.clone() else { return Ok(None) };
        let sizes = [
            ("audit-log-truncate-max-batch-size", self.audit_log_truncate_max_batch_size),
            ("audit-log-truncate-max-event-size", self.audit_log_truncate_max_event_size),
        ];
        Ok(Some(LogOptions {
            path,
            max_age: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
            max_size: self.audit_log_maxsize,
            truncation: truncation(self.audit_log_truncate_enabled, sizes)?,
        }))
    }

    fn webhook(&self) -> Result<Option<WebhookOptions>, ConfigError> {
        let Some(config_file) = self.audit_webhook_config_file.clone() else { return Ok(None) };
        let time = |flag: &'static str, text: &str| {
            parse_time(text).ok_or_else(|| wrong(flag, format!("{text:?} is not a time such as 10s or 1m")))
        };
        if self.audit_webhook_version != VERSION {
            let reason = format!("{:?} is not {VERSION}, which is all there is", self.audit_webhook_version);
            return Err(wrong("audit-webhook-version", reason));
        }
        let mode = match self.audit_webhook_mode.as_str() {
            "batch" => WebhookMode::Batch(BatchOptions {
                buffer_size: positive("audit-webhook-batch-buffer-size", self.audit_webhook_batch_buffer_size)?,
                max_size: positive("audit-webhook-batch-max-size", self.audit_webhook_batch_max_size)?,
                max_wait: time("audit-webhook-batch-max-wait", &self.audit_webhook_batch_max_wait)?,
                throttle: self.audit_webhook_batch_throttle_enable.then(|| self.throttle()).transpose()?,
            }),
            "blocking" => WebhookMode::Blocking,
            "blocking-strict" => WebhookMode::BlockingStrict,
            other => {
                let reason = format!("{other:?} is none of batch, blocking, blocking-strict");
                return Err(wrong("audit-webhook-mode", reason));
            }
        };
        let sizes = [
            ("audit-webhook-truncate-max-batch-size", self.audit_webhook_truncate_max_batch_size),
            ("audit-webhook-truncate-max-event-size", self.audit_webhook_truncate_max_event_size),
        ];
        Ok(Some(WebhookOptions {
            config_file,
            initial_backoff: time("audit-webhook-initial-backoff", &self.audit_webhook_initial_backoff)?,
            mode,
            truncation: truncation(self.audit_webhook_truncate_enabled, sizes)?,
        }))
    }

    fn throttle(&self) -> Result<ThrottleOptions, ConfigError> {
        let qps = self.audit_webhook_batch_throttle_qps;
        if !qps.is_finite() || qps <= 0.0 {
            return Err(wrong("audit-webhook-batch-throttle-qps", "expected a number that is more than 0"));
        }
        positive("audit-webhook-batch-throttle-burst", self.audit_webhook_batch_throttle_burst)?;
        Ok(ThrottleOptions { qps, burst: self.audit_webhook_batch_throttle_burst })
    }
}

fn positive(flag: &'static str, number: u32) -> Result<usize, ConfigError> {
    if number == 0 { Err(wrong(flag, "expected a number that is more than 0")) } else { Ok(number as usize) }
}

/// Sizes are checked even where they are not used, as Kubernetes does it.
fn truncation(
    is_enabled: bool,
    [(batch_flag, max_batch), (event_flag, max_event)]: [(&'static str, u32); 2],
) -> Result<Option<Truncation>, ConfigError> {
    positive(event_flag, max_event)?;
    if max_batch < max_event {
        return Err(wrong(batch_flag, format!("it is less than {max_event}, the size of one event")));
    }
    Ok(is_enabled.then_some(Truncation { max_batch: max_batch as usize, max_event: max_event as usize }))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use clap::Parser;
    use std::time::Duration;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: AuditArgs,
    }

    fn check(args: &[&str]) -> Result<Option<AuditConfig>, ConfigError> {
        Only::try_parse_from(["edge"].iter().chain(args)).unwrap().args.check()
    }

    fn webhook(more: &[&str]) -> Result<WebhookOptions, ConfigError> {
        let args = [&["--audit-policy-file=p", "--audit-webhook-config-file=w"], more].concat();
        Ok(check(&args)?.unwrap().options.webhook.unwrap())
    }

    #[test]
    fn defaults_are_those_of_kubernetes() {
        assert!(check(&[]).unwrap().is_none());
        let batch = BatchOptions {
            buffer_size: 10_000,
            max_size: 400,
            max_wait: Duration::from_secs(30),
            throttle: Some(ThrottleOptions { qps: 10.0, burst: 15 }),
        };
        let want = WebhookOptions {
            config_file: "w".into(),
            initial_backoff: Duration::from_secs(10),
            mode: WebhookMode::Batch(batch),
            truncation: None,
        };
        assert_eq!(webhook(&[]).unwrap(), want);
        let both = check(&["--audit-policy-file=p", "--audit-log-path=-", "--audit-webhook-config-file=w"]).unwrap();
        let both = both.unwrap().options;
        assert!(both.webhook.is_some() && both.log.is_some_and(|log| log.truncation.is_none()));
    }

    #[test]
    fn switches_are_said_as_in_go() {
        let truncation = |flag: &str| webhook(&[flag]).unwrap().truncation;
        let want = Truncation { max_batch: 10 << 20, max_event: 100 << 10 };
        assert_eq!(truncation("--audit-webhook-truncate-enabled"), Some(want.clone()));
        assert_eq!(truncation("--audit-webhook-truncate-enabled=true"), Some(want.clone()));
        assert_eq!(truncation("--audit-webhook-truncate-enabled=false"), None);
        let log = check(&["--audit-policy-file=p", "--audit-log-path=-", "--audit-log-truncate-enabled=true"]).unwrap();
        assert_eq!(log.unwrap().options.log.unwrap().truncation, Some(want));
        let WebhookMode::Batch(batch) = webhook(&["--audit-webhook-batch-throttle-enable=false"]).unwrap().mode else {
            panic!("no batch");
        };
        assert_eq!(batch.throttle, None);
        assert_eq!(webhook(&["--audit-webhook-mode=blocking"]).unwrap().mode, WebhookMode::Blocking);
        assert_eq!(webhook(&["--audit-webhook-mode=blocking-strict"]).unwrap().mode, WebhookMode::BlockingStrict);
    }

    #[test]
    fn mistakes_name_their_flag() {
        for (args, flag) in [
            (&["--audit-log-path=-"][..], "--audit-log-path"),
            (&["--audit-webhook-config-file=w"], "--audit-webhook-config-file"),
            (&["--audit-policy-file=p.yaml"], "--audit-policy-file"),
        ] {
            let error = check(args).unwrap_err().to_string();
            assert!(error.starts_with(flag), "{args:?}: {error}");
        }
        for flag in [
            "--audit-webhook-mode=async",
            "--audit-webhook-version=audit.k8s.io/v1beta1",
            "--audit-webhook-initial-backoff=soon",
            "--audit-webhook-batch-max-wait=1",
            "--audit-webhook-batch-max-size=0",
            "--audit-webhook-batch-buffer-size=0",
            "--audit-webhook-batch-throttle-qps=0",
            "--audit-webhook-batch-throttle-qps=NaN",
            "--audit-webhook-batch-throttle-burst=0",
            "--audit-webhook-truncate-max-event-size=0",
            "--audit-webhook-truncate-max-batch-size=1",
        ] {
            let error = webhook(&[flag]).unwrap_err().to_string();
            assert!(error.starts_with(flag.split('=').next().unwrap()), "{flag}: {error}");
        }
        // what is not used may be anything, as in Kubernetes
        for unused in [
            &["--audit-webhook-mode=blocking", "--audit-webhook-batch-max-size=0"][..],
            &["--audit-webhook-batch-throttle-enable=false", "--audit-webhook-batch-throttle-qps=0"],
        ] {
            assert!(webhook(unused).is_ok(), "{unused:?}");
        }
    }
}
