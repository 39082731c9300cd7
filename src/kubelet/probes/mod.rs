//! Probes of one container: startup, liveness, readiness.
//!
//! Comes in: the container's probes, a handle to run them. Goes out: [`ProbeResult`]s, only when something changes; events
//! for failures. Timers run only for probes that are due.

mod grpc;
pub(crate) mod http;

use crate::pods::record::ProbeResult;
use crate::pods::shared::PodShared;
use edge_client::EventType;
use edge_runtime::error::chain;
use edge_runtime::{ExecSpec, PodRuntime};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Probe};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

/// Most bytes of a probe's output shown in an event.
const MAX_OUTPUT: u64 = 10 * 1024;

/// One look at a container.
type Look = Result<String, String>;

/// Counts successes and failures until one of them decides.
#[derive(Clone, Debug)]
struct Counter {
    verdict: Option<bool>,
    last: Option<bool>,
    run: i32,
    success_threshold: i32,
    failure_threshold: i32,
}

impl Counter {
    fn new(probe: &Probe, verdict: Option<bool>) -> Self {
        Self {
            verdict,
            last: None,
            run: 0,
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
        }
    }

    /// Takes one result in; returns the verdict if it has just changed or was confirmed anew by reaching a threshold.
    fn count(&mut self, good: bool) -> Option<bool> {
        if self.last != Some(good) {
            self.run = 0;
            self.last = Some(good);
        }
        self.run = self.run.saturating_add(1);
        let needed = if good { self.success_threshold } else { self.failure_threshold };
        if self.run < needed || self.verdict == Some(good) {
            return None;
        }
        self.verdict = Some(good);
        Some(good)
    }
}

fn seconds(value: Option<i32>, default: i32) -> Duration {
    Duration::from_secs(u64::try_from(value.unwrap_or(default)).unwrap_or(0))
}

/// When and how a probe looks.
struct Schedule {
    first: Instant,
    period: Duration,
    timeout: Duration,
}

impl Schedule {
    fn new(probe: &Probe, begin: Instant) -> Self {
        Self {
            first: begin + seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
        }
    }

    /// Looks again and again until `verdict` says that it is enough.
    async fn run<F, Fut>(&self, look: F, mut verdict: impl FnMut(Look) -> bool)
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Look>,
    {
        let mut next = self.first;
        loop {
            sleep_until(next).await;
            let late = || Err(format!("context deadline exceeded after {}s", self.timeout.as_secs()));
            let result = timeout(self.timeout, look()).await.unwrap_or_else(|_| late());
            if verdict(result) {
                return;
            }
            next = (next + self.period).max(Instant::now());
        }
    }
}

/// Whether a container has anything to probe.
pub(crate) fn has_any(container: &Container) -> bool {
    container.startup_probe.is_some() || container.liveness_probe.is_some() || container.readiness_probe.is_some()
}

/// Runs the probes of a container as long as it runs. `report` gets every change; `started` tells that its startup probe
/// succeeded before (in an earlier life of the agent).
pub(crate) async fn run(
    shared: Arc<PodShared>,
    container: Container,
    id: String,
    about: ObjectReference,
    started: bool,
    report: impl Fn(ProbeResult),
) {
    let begin = Instant::now();
    let tell = |kind: &str, cause: &str| {
        let message = format!("{kind} probe failed: {cause}");
        shared.cx.recorder.event_ref(about.clone(), EventType::Warning, "Unhealthy", message);
    };
    let failed = |kind: &str, probe: &Probe| {
        let message = format!("Container {} failed {kind} probe, will be restarted", container.name);
        shared.cx.recorder.event_ref(about.clone(), EventType::Normal, "Killing", message);
        let grace = probe.termination_grace_period_seconds.and_then(|g| u64::try_from(g).ok());
        report(ProbeResult::Failed(grace.map(Duration::from_secs)));
    };
    let look = |probe: Probe| {
        let (shared, container, id) = (shared.clone(), container.clone(), id.clone());
        async move { look(&shared, &container, &id, &probe).await }
    };
    if let Some(probe) = container.startup_probe.as_ref().filter(|_| !started) {
        let mut counter = Counter::new(probe, None);
        let mut is_up = false;
        let verdict = |result: Look| {
            if let Err(cause) = &result {
                tell("Startup", cause);
            }
            let verdict = counter.count(result.is_ok());
            is_up = verdict == Some(true);
            verdict.is_some()
        };
        Schedule::new(probe, begin).run(|| look(probe.clone()), verdict).await;
        if !is_up {
            return failed("startup", probe);
        }
        report(ProbeResult::Started { has_readiness_probe: container.readiness_probe.is_some() });
    }
    let liveness = async {
        let Some(probe) = &container.liveness_probe else { return };
        let mut counter = Counter::new(probe, Some(true));
        let verdict = |result: Look| {
            if let Err(cause) = &result {
                tell("Liveness", cause);
            }
            counter.count(result.is_ok()) == Some(false)
        };
        Schedule::new(probe, begin).run(|| look(probe.clone()), verdict).await;
        failed("liveness", probe);
    };
    let readiness = async {
        let Some(probe) = &container.readiness_probe else { return };
        let mut counter = Counter::new(probe, None);
        let verdict = |result: Look| {
            if let Err(cause) = &result {
                tell("Readiness", cause);
            }
            if let Some(ready) = counter.count(result.is_ok()) {
                report(ProbeResult::Ready(ready));
            }
            false
        };
        Schedule::new(probe, begin).run(|| look(probe.clone()), verdict).await;
    };
    tokio::join!(liveness, readiness);
}

/// Looks once. The error is the text for the event.
async fn look(shared: &PodShared, container: &Container, id: &str, probe: &Probe) -> Look {
    if let Some(exec) = &probe.exec {
        return exec_look(&*shared.cx.runtime, id, exec.command.clone().unwrap_or_default()).await;
    }
    let addresses = shared.addresses();
    if let Some(action) = &probe.http_get {
        let target = http::Target::new(action, container, &addresses).map_err(|e| chain(&e))?;
        let answer = http::get(&target, "kube-probe/1.36").await.map_err(|e| chain(&e))?;
        return match answer.status {
            200..400 => Ok(answer.body),
            status => Err(format!("HTTP probe failed with statuscode: {status}")),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let port = http::port(&action.port, container).map_err(|e| chain(&e))?;
        let own = addresses.first().map(ToString::to_string);
        let host = action.host.clone().filter(|h| !h.is_empty()).or(own).unwrap_or_default();
        let connected = TcpStream::connect((host.as_str(), port)).await;
        return connected.map(|_| String::new()).map_err(|e| format!("dial tcp {host}:{port}: {e}"));
    }
    if let Some(action) = &probe.grpc {
        let host = addresses.first().map(ToString::to_string).ok_or("the pod has no address")?;
        let port = u16::try_from(action.port).map_err(|_| format!("{} is no port", action.port))?;
        let service = action.service.as_deref().unwrap_or_default();
        return grpc::check(&host, port, service).await.map(|()| String::new()).map_err(|e| chain(&e));
    }
    Err("missing probe handler".to_owned())
}

async fn exec_look(runtime: &dyn PodRuntime, id: &str, args: Vec<String>) -> Look {
    let spec = ExecSpec { args, stdout: true, stderr: true, ..ExecSpec::default() };
    let mut session = runtime.exec(id, spec).await.map_err(|e| chain(&e))?;
    let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
    let read = |stream: Option<edge_runtime::session::Output>| async move {
        let mut text = Vec::new();
        if let Some(mut stream) = stream {
            // what was read before a failure is still worth showing
            let _ = (&mut stream).take(MAX_OUTPUT).read_to_end(&mut text).await;
            // a command that goes on printing must not be blocked
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    let output = async { tokio::join!(read(stdout), read(stderr)) };
    // a grandchild may hold the streams open for ever: the exit decides
    let (exit, output) = {
        let wait = session.wait();
        tokio::pin!(wait, output);
        tokio::select! {
            exit = &mut wait => (exit, timeout(Duration::from_millis(100), output).await.unwrap_or_default()),
            output = &mut output => (wait.await, output),
        }
    };
    let text = format!("{}{}", output.0, output.1);
    match exit.map_err(|e| chain(&e))?.code {
        0 => Ok(text),
        _ => Err(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    fn probe(success: i32, failure: i32) -> Probe {
        Probe {
            success_threshold: Some(success),
            failure_threshold: Some(failure),
            period_seconds: Some(5),
            initial_delay_seconds: Some(7),
            ..Probe::default()
        }
    }

    #[test]
    fn thresholds_must_be_reached_in_a_row() {
        let mut counter = Counter::new(&probe(2, 3), None);
        let looks = [false, false, true, false, false, false, false, true, true, true, false, true];
        let verdicts: Vec<Option<bool>> = looks.iter().map(|good| counter.count(*good)).collect();
        let mut expected = vec![None; looks.len()];
        expected[5] = Some(false);
        expected[8] = Some(true);
        assert_eq!(verdicts, expected);
        assert_eq!(Counter::new(&probe(1, 1), Some(true)).count(true), None, "alive until shown dead");
    }

    #[tokio::test(start_paused = true)]
    async fn looks_are_taken_when_due_and_not_before() {
        let begin = Instant::now();
        let times = Mutex::new(Vec::new());
        let schedule = Schedule::new(&probe(1, 1), begin);
        let look = || async {
            times.lock().push(begin.elapsed().as_secs());
            Ok(String::new())
        };
        let mut left = 4;
        schedule
            .run(look, |_| {
                left -= 1;
                left == 0
            })
            .await;
        assert_eq!(*times.lock(), [7, 12, 17, 22]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_look_is_a_failure_and_does_not_pile_up() {
        let begin = Instant::now();
        let slow = Probe { timeout_seconds: Some(8), ..probe(1, 1) };
        let mut results = Vec::new();
        Schedule::new(&slow, begin)
            .run(std::future::pending, |result| {
                results.push((begin.elapsed().as_secs(), result.is_err()));
                results.len() == 3
            })
            .await;
        assert_eq!(results, [(15, true), (23, true), (31, true)]);
    }
}
