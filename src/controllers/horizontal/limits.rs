//! How fast and how far the number of pods may change: what was recommended and done before, and an autoscaler's behaviour. Pure.

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};
use std::time::Duration;
use tokio::time::Instant;

/// Without a behaviour the number of pods may become this multiple of itself at once,
const GROWTH: i32 = 2;
/// or this number, whichever is more.
const LEAST_GROWTH: i32 = 4;

/// A reason for a condition, and its message.
pub(super) type Reason = (&'static str, &'static str);

const RISING: Reason = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const FALLING: Reason = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const STEADY: Reason = ("ReadyForNewScale", "recommended size matches current size");
const IN_RANGE: Reason = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FAST_UP: Reason =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const TOO_FAST_DOWN: Reason =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: Reason = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Reason = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");

/// What is remembered of an autoscaler.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// What was recommended, and when.
    recommendations: Vec<(Instant, i32)>,
    /// By how many pods the number was raised, and when.
    raised: Vec<(Instant, i32)>,
    /// By how many pods the number was lowered, and when.
    lowered: Vec<(Instant, i32)>,
}

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    pub(super) current: i32,
    pub(super) desired: i32,
    pub(super) least: i32,
    pub(super) most: i32,
    pub(super) behavior: Option<&'a HorizontalPodAutoscalerBehavior>,
    /// For how long the greatest recommendation holds where the behaviour says nothing about it.
    pub(super) window: Duration,
}

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) replicas: i32,
    /// Of the condition `AbleToScale`.
    pub(super) able: Reason,
    /// Whether the condition `ScalingLimited` is true, and why.
    pub(super) limited: (bool, Reason),
}

impl Memory {
    /// Begins with the number of pods that there are to be, so that a controller that has just started lowers nothing at once.
    pub(super) fn begin(&mut self, now: Instant, current: i32) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
    }

    /// What may be done of a wish, which is remembered.
    pub(super) fn grant(&mut self, now: Instant, wish: &Wish<'_>) -> Granted {
        let steady = self.stabilize(now, wish);
        let able = match steady == wish.desired {
            true => STEADY,
            false if wish.desired >= wish.current && wish.behavior.is_some() => RISING,
            false => FALLING,
        };
        let (replicas, why) = match wish.behavior {
            None => within(wish, steady),
            Some(behavior) => self.within_rates(now, wish, behavior, steady),
        };
        Granted { replicas, able, limited: (replicas != steady, why) }
    }

    /// Remembers what was done, for rates of up to as long as the behaviour's longest period.
    pub(super) fn done(
        &mut self,
        now: Instant,
        from: i32,
        to: i32,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
    ) {
        let Some(behavior) = behavior else { return };
        let (list, rules) = if to > from {
            (&mut self.raised, behavior.scale_up.as_ref())
        } else {
            (&mut self.lowered, behavior.scale_down.as_ref())
        };
        let longest = policies(rules).map(|p| p.period_seconds).max().unwrap_or(0);
        list.retain(|(at, _)| now.duration_since(*at) <= seconds(longest));
        list.push((now, (to - from).abs()));
    }

    /// The recommendation that holds: none is followed at once that another of the last time speaks against.
    fn stabilize(&mut self, now: Instant, wish: &Wish<'_>) -> i32 {
        let window = |rules: Option<&HPAScalingRules>| rules.and_then(|r| r.stabilization_window_seconds).map(seconds);
        let up = wish.behavior.map_or(Duration::ZERO, |b| window(b.scale_up.as_ref()).unwrap_or_default());
        let down = wish.behavior.and_then(|b| window(b.scale_down.as_ref())).unwrap_or(wish.window);
        let recent = |window: Duration| {
            let of = move |(at, n): &(Instant, i32)| (now.duration_since(*at) < window).then_some(*n);
            self.recommendations.iter().filter_map(of).chain([wish.desired])
        };
        let (lowest, highest) = (recent(up).min().unwrap_or(wish.desired), recent(down).max().unwrap_or(wish.desired));
        self.recommendations.retain(|(at, _)| now.duration_since(*at) <= up.max(down));
        self.recommendations.push((now, wish.desired));
        match wish.behavior {
            None => highest,
            Some(_) => wish.current.max(lowest).min(highest),
        }
    }

    fn within_rates(
        &self,
        now: Instant,
        wish: &Wish<'_>,
        behavior: &HorizontalPodAutoscalerBehavior,
        desired: i32,
    ) -> (i32, Reason) {
        if desired > wish.current {
            let limit = self.limit(now, wish.current, behavior.scale_up.as_ref(), true).max(wish.current);
            let (most, why) = if wish.most > limit { (limit, TOO_FAST_UP) } else { (wish.most, TOO_MANY) };
            return if desired > most { (most, why) } else { (desired, IN_RANGE) };
        }
        if desired < wish.current {
            let limit = self.limit(now, wish.current, behavior.scale_down.as_ref(), false).min(wish.current);
            let (least, why) = if wish.least < limit { (limit, TOO_FAST_DOWN) } else { (wish.least, TOO_FEW) };
            return if desired < least { (least, why) } else { (desired, IN_RANGE) };
        }
        (desired, IN_RANGE)
    }

    /// The number of pods that the policies of one direction allow.
    fn limit(&self, now: Instant, current: i32, rules: Option<&HPAScalingRules>, up: bool) -> i32 {
        let select = rules.and_then(|r| r.select_policy.as_deref()).unwrap_or("Max");
        if select == "Disabled" {
            return current;
        }
        let limits = policies(rules).map(|policy| {
            let period = seconds(policy.period_seconds);
            let at_begin = current - changed(&self.raised, now, period) + changed(&self.lowered, now, period);
            let (begin, value) = (f64::from(at_begin), f64::from(policy.value));
            match (policy.type_.as_str(), up) {
                ("Pods", true) => at_begin.saturating_add(policy.value),
                ("Pods", false) => at_begin.saturating_sub(policy.value),
                // a percentage of few pods must allow one more; the casts saturate
                (_, true) => (begin * (1.0 + value / 100.0)).ceil() as i32,
                (_, false) => (begin * (1.0 - value / 100.0)) as i32,
            }
        });
        // the greatest change is the greatest number upwards, and the least downwards
        let found = if (select == "Min") == up { limits.min() } else { limits.max() };
        found.unwrap_or(current)
    }
}

fn seconds(n: i32) -> Duration {
    Duration::from_secs(u64::try_from(n).unwrap_or(0))
}

fn policies(
    rules: Option<&HPAScalingRules>,
) -> impl Iterator<Item = &k8s_openapi::api::autoscaling::v2::HPAScalingPolicy> {
    rules.into_iter().flat_map(|r| r.policies.iter().flatten())
}

/// By how many pods the number was changed within a period.
fn changed(events: &[(Instant, i32)], now: Instant, period: Duration) -> i32 {
    events.iter().filter(|(at, _)| now.duration_since(*at) < period).map(|(_, n)| n).sum()
}

/// What is granted where nothing is said about rates.
fn within(wish: &Wish<'_>, desired: i32) -> (i32, Reason) {
    let limit = wish.current.saturating_mul(GROWTH).max(LEAST_GROWTH);
    let (most, why) = if wish.most > limit { (limit, TOO_FAST_UP) } else { (wish.most, TOO_MANY) };
    if desired < wish.least {
        (wish.least, TOO_FEW)
    } else if desired > most {
        (most, why)
    } else {
        (desired, IN_RANGE)
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
