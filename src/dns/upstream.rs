//! Asking the host's name servers, with a small cache. Equal questions at the same time are asked once.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::answer::MAX_DATAGRAM;

/// Answers that are remembered at most.
const CACHE_SIZE: usize = 2048;
/// Longest time that an answer is remembered, and one that says no.
const MAX_TTL: u32 = 300;
const MAX_NEGATIVE_TTL: u32 = 30;
/// How long one name server may take before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// Name servers that are used at most, as in the C library.
const MAX_SERVERS: usize = 3;
/// Questions that may be on the way at the same time.
const MAX_QUESTIONS: usize = 512;
/// Where systemd-resolved lists the real name servers, of which `/etc/resolv.conf` knows only its own stub.
const SYSTEMD_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";
const PORT: u16 = 53;

/// What others have answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
}

type Answer = Result<Reply, ResponseCode>;
type Question = (Name, RecordType);

struct Cached {
    reply: Reply,
    since: Instant,
    until: Instant,
}

#[derive(Default)]
struct State {
    cache: HashMap<Question, Cached>,
    asking: HashMap<Question, Shared<BoxFuture<'static, Answer>>>,
    servers: Vec<SocketAddr>,
    /// Modification time of the file `servers` was read from.
    read: Option<SystemTime>,
}

/// The host's name servers.
#[derive(Clone)]
pub struct Upstream {
    resolv_conf: Arc<PathBuf>,
    /// Our own address, which must never be asked.
    own: IpAddr,
    state: Arc<Mutex<State>>,
}

impl Upstream {
    /// The name servers listed in `resolv_conf`, which is read again whenever it has changed; never `own`.
    pub fn new(resolv_conf: PathBuf, own: IpAddr) -> Self {
        Self { resolv_conf: Arc::new(resolv_conf), own, state: Arc::default() }
    }

    /// The answer to a question from the cache or from the name servers. The error is the code to give the client.
    pub(crate) async fn resolve(&self, query: Query) -> Answer {
        let question = (query.name.to_lowercase(), query.query_type);
        let asking = {
            let mut state = self.state.lock();
            if let Some(reply) = state.remembered(&question, Instant::now()) {
                return Ok(reply);
            }
            if let Some(asking) = state.asking.get(&question) {
                asking.clone()
            } else {
                if state.asking.len() >= MAX_QUESTIONS {
                    return Err(ResponseCode::ServFail);
                }
                let servers = self.servers(&mut state);
                if servers.is_empty() {
                    return Err(ResponseCode::Refused);
                }
                let asking = self.clone().ask(question.clone(), query, servers).boxed().shared();
                state.asking.insert(question, asking.clone());
                // On a task of its own: it must end, and be forgotten, even when everybody who asked has gone away.
                tokio::spawn(asking.clone());
                asking
            }
        };
        asking.await
    }

    async fn ask(self, question: Question, query: Query, servers: Vec<SocketAddr>) -> Answer {
        let mut answer = Err(ResponseCode::ServFail);
        for server in servers {
            match exchange(server, &query).await {
                Ok(message) => {
                    let code = message.metadata.response_code;
                    let reply = Reply { code, answers: message.answers, authorities: message.authorities };
                    answer = Ok(reply);
                    if matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
                        break;
                    }
                }
                Err(error) => tracing::debug!(%server, name = %query.name, %error, "name server did not answer"),
            }
        }
        let mut state = self.state.lock();
        if let Ok(reply) = &answer {
            state.remember(question.clone(), reply.clone(), Instant::now());
        }
        state.asking.remove(&question);
        answer
    }

    /// The name servers to ask; reads the file again when it has changed.
    fn servers(&self, state: &mut State) -> Vec<SocketAddr> {
        let modified = fs::metadata(self.resolv_conf.as_ref()).and_then(|metadata| metadata.modified()).ok();
        if modified.is_none() || modified != state.read {
            let text = fs::read_to_string(self.resolv_conf.as_ref()).unwrap_or_default();
            let mut servers = name_servers(&text, self.own);
            if !servers.is_empty() && servers.iter().all(|server| server.ip().is_loopback()) {
                // A stub on this machine may itself ask us: prefer the servers behind it.
                let behind = fs::read_to_string(SYSTEMD_RESOLV_CONF).unwrap_or_default();
                let behind = name_servers(&behind, self.own);
                if !behind.is_empty() {
                    servers = behind;
                }
            }
            state.servers = servers;
            state.read = modified;
        }
        state.servers.clone()
    }
}

/// The `nameserver` lines of a `resolv.conf`. A port may follow the address after `#`, as dnsmasq writes it.
fn name_servers(text: &str, own: IpAddr) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next())??;
        let (address, port) = match address.split_once('#') {
            Some((address, port)) => (address, port.parse().ok()?),
            None => (address, PORT),
        };
        let address: IpAddr = address.parse().ok()?;
        (address != own && !address.is_unspecified()).then_some(SocketAddr::new(address, port))
    };
    text.lines().filter_map(server).take(MAX_SERVERS).collect()
}

impl State {
    fn remembered(&mut self, question: &Question, now: Instant) -> Option<Reply> {
        let cached = self.cache.get(question)?;
        if cached.until <= now {
            self.cache.remove(question);
            return None;
        }
        let age = u32::try_from((now - cached.since).as_secs()).unwrap_or(u32::MAX);
        let mut reply = cached.reply.clone();
        for record in reply.answers.iter_mut().chain(&mut reply.authorities) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(reply)
    }

    fn remember(&mut self, question: Question, reply: Reply, now: Instant) {
        let seconds = time_to_live(&reply);
        if seconds == 0 {
            return;
        }
        if self.cache.len() >= CACHE_SIZE {
            self.cache.retain(|_, cached| cached.until > now);
        }
        if self.cache.len() >= CACHE_SIZE {
            // Full of answers that are still good: the one that ends first goes.
            let first = self.cache.iter().min_by_key(|(_, cached)| cached.until).map(|(question, _)| question.clone());
            first.map(|question| self.cache.remove(&question));
        }
        let until = now + Duration::from_secs(u64::from(seconds));
        self.cache.insert(question, Cached { reply, since: now, until });
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

/// Asks one name server, by TCP when the answer does not fit a datagram.
async fn exchange(server: SocketAddr, query: &Query) -> io::Result<Message> {
    let mut request = Message::query();
    request.metadata.recursion_desired = true;
    request.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_DATAGRAM);
    request.set_edns(edns);
    let bytes = request.to_vec().map_err(io::Error::other)?;
    let by_udp = timeout(PATIENCE, by_datagram(server, &request, &bytes)).await??;
    if by_udp.metadata.truncation {
        return timeout(PATIENCE, by_stream(server, &request, &bytes)).await?;
    }
    Ok(by_udp)
}

/// Whether `answer` answers `request`: a forged or late answer to something else does not.
fn belongs(request: &Message, answer: &Message) -> bool {
    let [asked] = request.queries.as_slice() else { return false };
    let [answered] = answer.queries.as_slice() else { return false };
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == request.metadata.id
        && asked.name == answered.name
        && (asked.query_type, asked.query_class) == (answered.query_type, answered.query_class)
}

async fn by_datagram(server: SocketAddr, request: &Message, bytes: &[u8]) -> io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket for each question: its random port is what a forger has to guess, besides the id.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if belongs(request, &answer) => return Ok(answer),
            _ => {}
        }
    }
}

async fn by_stream(server: SocketAddr, request: &Message, bytes: &[u8]) -> io::Result<Message> {
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).map_err(io::Error::other)?;
    if belongs(request, &answer) { Ok(answer) } else { Err(io::Error::from(io::ErrorKind::InvalidData)) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn reads_resolv_conf() {
        let text = "# comment\nsearch a b\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 \nnameserver 10.43.0.10\nnameserver x\n\
                    nameserver 127.0.0.1#5353\nnameserver\nnameserver 192.0.2.4\n";
        let servers = name_servers(text, "10.43.0.10".parse().unwrap());
        let texts: Vec<String> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["192.0.2.1:53", "[2001:db8::1]:53", "127.0.0.1:5353"]);
    }

    #[test]
    fn the_cache_is_bounded_and_forgets() {
        let mut state = State::default();
        let now = Instant::now();
        let reply = |ttl| {
            let name = Name::from_ascii("a.example.").unwrap();
            let record = Record::from_rdata(name, ttl, RData::A(Ipv4Addr::LOCALHOST.into()));
            Reply { code: ResponseCode::NoError, answers: vec![record], authorities: Vec::new() }
        };
        let question = |n: usize| (Name::from_ascii(format!("n{n}.example.")).unwrap(), RecordType::A);
        for n in 0..CACHE_SIZE + 100 {
            state.remember(question(n), reply(10 + n as u32), now);
        }
        assert_eq!(state.cache.len(), CACHE_SIZE);
        assert!(state.remembered(&question(0), now).is_none(), "the one that ends first has gone");
        let later = now + Duration::from_secs(200);
        let old = state.remembered(&question(250), later).unwrap();
        assert_eq!(old.answers[0].ttl, 60);
        assert!(state.remembered(&question(150), later).is_none());
        assert!(
            state.remembered(&question(CACHE_SIZE), now + Duration::from_secs(301)).is_none(),
            "never longer than that"
        );
        state.remember(question(9000), reply(0), now);
        assert!(state.remembered(&question(9000), now).is_none());
    }
}
