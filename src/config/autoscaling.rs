//! What autoscaling goes by: flags with the names and defaults of Kubernetes' controller manager.

use super::node::{ConfigError, wrong};
use super::time::parse_time;
use clap::Args;
use edge_controllers::Autoscaling;
use std::time::Duration;

const HEADING: &str = "Autoscaling";

/// The flags about autoscaling.
#[derive(Args, Clone, Debug)]
pub(crate) struct AutoscalingArgs {
    /// How often an autoscaler is looked at
    #[arg(long, default_value = "15s", value_name = "TIME", help_heading = HEADING)]
    pub(crate) horizontal_pod_autoscaler_sync_period: String,
    /// How far use may be from its target without anything being done, as a part of the target
    #[arg(long, default_value_t = 0.1, value_name = "PART", help_heading = HEADING)]
    pub(crate) horizontal_pod_autoscaler_tolerance: f64,
    /// For how long the number of pods is not lowered below what was recommended
    #[arg(long, default_value = "5m", value_name = "TIME", help_heading = HEADING)]
    pub(crate) horizontal_pod_autoscaler_downscale_stabilization: String,
    /// For so long after its start a pod's processor time counts only while the pod is ready
    #[arg(long, default_value = "5m", value_name = "TIME", help_heading = HEADING)]
    pub(crate) horizontal_pod_autoscaler_cpu_initialization_period: String,
    /// A pod that became unready within this time after its start counts as one that has never been ready
    #[arg(long, default_value = "30s", value_name = "TIME", help_heading = HEADING)]
    pub(crate) horizontal_pod_autoscaler_initial_readiness_delay: String,
}

impl AutoscalingArgs {
    pub(super) fn check(&self) -> Result<Autoscaling, ConfigError> {
        let time = |flag: &'static str, text: &str| {
            parse_time(text).ok_or_else(|| wrong(flag, format!("{text:?} is not a time such as 15s or 5m")))
        };
        let period = time("horizontal-pod-autoscaler-sync-period", &self.horizontal_pod_autoscaler_sync_period)?;
        if period < Duration::from_secs(1) {
            return Err(wrong("horizontal-pod-autoscaler-sync-period", "expected at least 1s"));
        }
        let tolerance = self.horizontal_pod_autoscaler_tolerance;
        if !tolerance.is_finite() || tolerance < 0.0 {
            return Err(wrong("horizontal-pod-autoscaler-tolerance", "expected a number that is not less than 0"));
        }
        Ok(Autoscaling {
            period,
            tolerance,
            downscale_window: time(
                "horizontal-pod-autoscaler-downscale-stabilization",
                &self.horizontal_pod_autoscaler_downscale_stabilization,
            )?,
            cpu_initialization: time(
                "horizontal-pod-autoscaler-cpu-initialization-period",
                &self.horizontal_pod_autoscaler_cpu_initialization_period,
            )?,
            readiness_delay: time(
                "horizontal-pod-autoscaler-initial-readiness-delay",
                &self.horizontal_pod_autoscaler_initial_readiness_delay,
            )?,
        })
    }
}
