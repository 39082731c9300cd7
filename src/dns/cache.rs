//! Answers of other name servers, for as long as they are good and somewhat longer: an old answer is better than none while
//! no name server answers (RFC 8767).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Answers that are remembered at most.
const SIZE: usize = 4096;
/// Longest time that an answer is good, and one that says no, in seconds.
const MAX_TTL: u32 = 300;
const MAX_NEGATIVE_TTL: u32 = 30;
/// How long an answer may be given after it has become old.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long clients may remember an old answer, and how long nobody is asked again after nobody has answered.
const STALE_TTL: u32 = 30;
const QUIET: Duration = Duration::from_secs(5);

/// What others have answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
}

/// A name in small letters, and a type.
pub(crate) type Question = (Name, RecordType);

/// What is remembered of an answer.
#[derive(Debug)]
pub(crate) enum Remembered {
    /// It is good.
    Fresh(Reply),
    /// It is old. `ask` says whether somebody should be asked for a newer one.
    Stale { reply: Reply, ask: bool },
}

#[derive(Debug)]
struct Entry {
    reply: Reply,
    since: Instant,
    until: Instant,
    /// Until when nobody is asked.
    quiet: Option<Instant>,
}

/// The cache.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<Question, Entry>,
}

impl Cache {
    pub(crate) fn get(&mut self, question: &Question, now: Instant) -> Option<Remembered> {
        let entry = self.entries.get(question)?;
        let mut reply = entry.reply.clone();
        let records = reply.answers.iter_mut().chain(&mut reply.authorities);
        if entry.until > now {
            let age = u32::try_from((now - entry.since).as_secs()).unwrap_or(u32::MAX);
            records.for_each(|record| record.ttl = record.ttl.saturating_sub(age));
            return Some(Remembered::Fresh(reply));
        }
        if entry.until + STALE <= now {
            self.entries.remove(question);
            return None;
        }
        records.for_each(|record| record.ttl = STALE_TTL);
        Some(Remembered::Stale { reply, ask: entry.quiet.is_none_or(|quiet| quiet <= now) })
    }

    /// Notes an answer. One that may not be remembered leaves what there is.
    pub(crate) fn put(&mut self, question: Question, reply: Reply, now: Instant) {
        let seconds = time_to_live(&reply);
        if seconds == 0 {
            return;
        }
        if self.entries.len() >= SIZE && !self.entries.contains_key(&question) {
            self.make_room(now);
        }
        let until = now + Duration::from_secs(u64::from(seconds));
        self.entries.insert(question, Entry { reply, since: now, until, quiet: None });
    }

    /// Notes that nobody answered.
    pub(crate) fn unanswered(&mut self, question: &Question, now: Instant) {
        if let Some(entry) = self.entries.get_mut(question) {
            entry.quiet = Some(now + QUIET);
        }
    }

    /// Forgets everything: other name servers may say otherwise.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Old answers go first, then the one that becomes old first.
    fn make_room(&mut self, now: Instant) {
        self.entries.retain(|_, entry| entry.until > now);
        if self.entries.len() >= SIZE {
            let first = self.entries.iter().min_by_key(|(_, entry)| entry.until).map(|(question, _)| question.clone());
            first.map(|question| self.entries.remove(&question));
        }
    }
}

/// Seconds that a reply may be remembered; zero for one that may not.
fn time_to_live(reply: &Reply) -> u32 {
    let soa = |record: &Record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
        _ => None,
    };
    match reply.code {
        ResponseCode::NoError if !reply.answers.is_empty() => {
            reply.answers.iter().map(|record| record.ttl).min().unwrap_or(0).min(MAX_TTL)
        }
        ResponseCode::NoError | ResponseCode::NXDomain => {
            reply.authorities.iter().find_map(soa).unwrap_or(0).min(MAX_NEGATIVE_TTL)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::net::Ipv4Addr;

    fn reply(ttl: u32) -> Reply {
        let name = Name::from_ascii("a.example.").unwrap();
        let record = Record::from_rdata(name, ttl, RData::A(Ipv4Addr::LOCALHOST.into()));
        Reply { code: ResponseCode::NoError, answers: vec![record], authorities: Vec::new() }
    }

    fn question(n: usize) -> Question {
        (Name::from_ascii(format!("n{n}.example.")).unwrap(), RecordType::A)
    }

    #[test]
    fn it_is_bounded() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for n in 0..SIZE + 100 {
            cache.put(question(n), reply(10 + (n as u32).min(280)), now);
        }
        assert_eq!(cache.entries.len(), SIZE);
        assert!(cache.get(&question(0), now).is_none(), "the one that ends first has gone");
        let later = now + Duration::from_secs(295);
        cache.put(question(9000), reply(10), later);
        assert_eq!(cache.entries.len(), 1, "the old ones go when there is need of room");
    }

    #[test]
    fn answers_become_old_and_then_go() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let at = |seconds: u64| now + Duration::from_secs(seconds);
        cache.put(question(1), reply(100), now);
        let Some(Remembered::Fresh(fresh)) = cache.get(&question(1), at(40)) else { panic!() };
        assert_eq!(fresh.answers[0].ttl, 60);
        let Some(Remembered::Stale { reply: old, ask: true }) = cache.get(&question(1), at(100)) else { panic!() };
        assert_eq!(old.answers[0].ttl, STALE_TTL);
        cache.unanswered(&question(1), at(100));
        assert!(matches!(cache.get(&question(1), at(102)), Some(Remembered::Stale { ask: false, .. })));
        assert!(matches!(cache.get(&question(1), at(106)), Some(Remembered::Stale { ask: true, .. })));
        cache.put(question(1), Reply { code: ResponseCode::ServFail, ..reply(0) }, at(106));
        assert!(cache.get(&question(1), at(107)).is_some(), "a failure is no news");
        assert!(cache.get(&question(1), at(100) + STALE).is_none());
        cache.put(question(2), reply(9999), now);
        assert!(matches!(cache.get(&question(2), at(301)), Some(Remembered::Stale { .. })), "never good for longer");
        cache.put(question(3), reply(0), now);
        assert!(cache.get(&question(3), now).is_none());
    }
}
