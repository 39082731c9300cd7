//! `/containerLogs`: the log of a container.

use super::{Answer, Body, Refusal, full, query, typed};
use crate::logs::reader::{LogOptions, send};
use crate::pods::record::{ContainerRecord, State};
use crate::pods::shared::PodShared;
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::path::PathBuf;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// What a request for a log asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct LogQuery {
    previous: bool,
    options: LogOptions,
}

fn parse(query: &[(String, String)], now: Timestamp) -> Result<LogQuery, Refusal> {
    let mut wanted = LogQuery::default();
    let mut since_seconds = None;
    for (name, value) in query.iter().filter(|(_, value)| !value.is_empty()) {
        let invalid = || Refusal::bad_request(format!("invalid {name} {value:?}"));
        let yes = || match value.as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(invalid()),
        };
        let options = &mut wanted.options;
        match name.as_str() {
            "follow" => options.follow = yes()?,
            "previous" => wanted.previous = yes()?,
            "timestamps" => options.timestamps = yes()?,
            // -1 and the like mean all of it
            "tailLines" => options.tail_lines = u64::try_from(value.parse::<i64>().map_err(|_| invalid())?).ok(),
            "limitBytes" => options.limit_bytes = Some(value.parse().ok().filter(|n| *n > 0).ok_or_else(invalid)?),
            "sinceSeconds" => since_seconds = Some(value.parse::<i64>().ok().filter(|n| *n > 0).ok_or_else(invalid)?),
            "sinceTime" => options.since = Some(value.parse().map_err(|_| invalid())?),
            "stream" => {
                options.stream = match value.as_str() {
                    "Stdout" => Some("stdout"),
                    "Stderr" => Some("stderr"),
                    "All" => None,
                    _ => return Err(invalid()),
                };
            }
            _ => {}
        }
    }
    if let Some(seconds) = since_seconds {
        if wanted.options.since.is_some() {
            return Err(Refusal::bad_request("at most one of sinceTime or sinceSeconds may be specified"));
        }
        let since = now.checked_sub(SignedDuration::from_secs(seconds));
        wanted.options.since = Some(since.unwrap_or(Timestamp::MIN));
    }
    Ok(wanted)
}

/// Which log it is, by the number of restarts; or why there is none.
fn log_number(pod: &str, c: &ContainerRecord, waiting: &str, previous: bool) -> Result<i32, Refusal> {
    let name = &c.name;
    if previous {
        let exists = c.last.is_some() || matches!(c.state, State::Exited(..)) && c.restarts > 0;
        let number = if exists { Some(c.restarts - 1).filter(|n| *n >= 0) } else { None };
        return number.ok_or_else(|| {
            Refusal::bad_request(format!("previous terminated container {name:?} in pod {pod:?} not found"))
        });
    }
    match (&c.state, &c.last) {
        (State::Running(_) | State::Exited(..), _) => Ok(c.restarts),
        // the new start has not come to anything yet
        (State::Waiting | State::Starting, Some(_)) => Ok((c.restarts - 1).max(0)),
        (State::Waiting | State::Starting, None) => {
            // Kubernetes' words for what is most common
            let waiting = match waiting {
                "ErrImagePull" => "image can't be pulled",
                "ImagePullBackOff" => "trying and failing to pull image",
                other => other,
            };
            Err(Refusal::bad_request(format!("container {name:?} in pod {pod:?} is waiting to start: {waiting}")))
        }
    }
}

/// Answers with a log.
pub(super) fn answer(shared: &PodShared, container: &str, request: &Request<Incoming>) -> Answer {
    let wanted = parse(&query(request), Timestamp::now())?;
    let record = shared.record();
    let index = record.containers.iter().position(|c| c.name == container);
    let index = index
        .ok_or_else(|| Refusal::not_found(format!("container {container:?} in pod {:?} not found", shared.name)))?;
    let c = &record.containers[index];
    let reason = crate::pods::step::waiting_reason(&shared.pod(), &record, index, tokio::time::Instant::now());
    let waiting = reason.map_or_else(|| "ContainerCreating".to_owned(), |p| p.reason);
    let number = log_number(&shared.name, c, &waiting, wanted.previous)?;
    let path = shared.log_dir().join(container).join(format!("{number}.log"));
    if !path.exists() {
        // the container was described but never wrote, or its logs were removed by hand
        return Ok(typed("text/plain; charset=utf-8", full("")));
    }
    let running = match &c.state {
        State::Running(running) if !wanted.previous => Some(running.id.clone()),
        _ => None,
    };
    Ok(typed("text/plain; charset=utf-8", stream(path, wanted.options, shared.follow_record(), running)))
}

fn stream(
    path: PathBuf,
    mut options: LogOptions,
    mut record: watch::Receiver<std::sync::Arc<crate::pods::record::Record>>,
    running: Option<String>,
) -> Body {
    options.follow &= running.is_some();
    let ended = async move {
        let Some(id) = running else { return };
        let is_over = |record: &std::sync::Arc<crate::pods::record::Record>| {
            !record.containers.iter().any(|c| matches!(&c.state, State::Running(r) if r.id == id))
        };
        // an error means that the pod is gone altogether
        let _ = record.wait_for(is_over).await;
    };
    let (tx, rx) = mpsc::channel(4);
    tokio::spawn(send(path, options, ended, tx));
    StreamBody::new(ReceiverStream::new(rx).map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::pods::record::Kind;

    fn parsed(text: &str) -> Result<LogQuery, Refusal> {
        let query: Vec<_> = form_urlencoded::parse(text.as_bytes()).into_owned().collect();
        parse(&query, Timestamp::from_second(1000).unwrap())
    }

    #[test]
    fn parameters() {
        let all = parsed("follow=true&previous=1&tailLines=5&sinceSeconds=10&timestamps=true&limitBytes=7").unwrap();
        assert!(all.previous && all.options.follow && all.options.timestamps);
        assert_eq!((all.options.tail_lines, all.options.limit_bytes), (Some(5), Some(7)));
        assert_eq!(all.options.since, Some(Timestamp::from_second(990).unwrap()));
        assert_eq!(parsed("tailLines=-1&follow=").unwrap(), LogQuery::default());
        for bad in [
            "tailLines=x",
            "limitBytes=0",
            "limitBytes=-1",
            "sinceSeconds=0",
            "follow=maybe",
            "sinceTime=now",
            "stream=Both",
            "sinceTime=2026-01-01T00:00:00Z&sinceSeconds=1",
        ] {
            assert_eq!(parsed(bad).unwrap_err().0, http::StatusCode::BAD_REQUEST, "{bad}");
        }
        assert!(parsed("sinceSeconds=9223372036854775807").unwrap().options.since.unwrap() == Timestamp::MIN);
    }

    #[test]
    fn a_container_that_never_ran_has_no_log() {
        let c = ContainerRecord::new("c", Kind::Main);
        let refusal = log_number("p", &c, "ContainerCreating", false).unwrap_err();
        assert_eq!(refusal.1, "container \"c\" in pod \"p\" is waiting to start: ContainerCreating");
        let refusal = log_number("p", &c, "ImagePullBackOff", false).unwrap_err();
        assert_eq!(refusal.1, "container \"c\" in pod \"p\" is waiting to start: trying and failing to pull image");
        let refusal = log_number("p", &c, "", true).unwrap_err();
        assert_eq!(refusal.1, "previous terminated container \"c\" in pod \"p\" not found");
    }
}
