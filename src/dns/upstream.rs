//! Asking other name servers: those of the host, or those that are configured for a domain. Equal questions at the same time
//! are asked once, and answers are remembered.
//!
//! A name server that does not answer is asked last for a while. One that sends our questions back to us (the host's
//! resolver may be configured to ask the cluster's DNS) is found out by a question nobody else can ask, and left out.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::answer::MAX_DATAGRAM;
use crate::cache::{Cache, Question, Remembered, Reply};
use crate::forwards::Forwards;
use crate::metrics::{Metrics, count};

/// How long one name server may take before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client waits for a new answer when there is an old one.
const STALE_PATIENCE: Duration = Duration::from_millis(1800);
/// How long a name server that did not answer is asked last.
const SHUNNED: Duration = Duration::from_secs(10);
/// How long a name server that asked us back is left out before it is tried again.
const LOOPING: Duration = Duration::from_secs(60);
/// Name servers of the host that are used at most, as in the C library.
const MAX_SERVERS: usize = 3;
/// Questions that may be on the way at the same time.
const MAX_QUESTIONS: usize = 512;
/// Where systemd-resolved lists the real name servers, of which `/etc/resolv.conf` knows only its own stub.
const SYSTEMD_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";
const PORT: u16 = 53;

type Answer = Result<Reply, ResponseCode>;

#[derive(Default)]
struct State {
    cache: Cache,
    asking: HashMap<Question, Shared<BoxFuture<'static, Answer>>>,
    /// The host's name servers.
    servers: Vec<SocketAddr>,
    /// Modification time of the file `servers` was read from.
    read: Option<SystemTime>,
    forwards: Forwards,
    /// When name servers last did not answer.
    failed: HashMap<SocketAddr, Instant>,
    /// Name servers that have been asked whether they ask us, and when.
    probed: HashMap<SocketAddr, Instant>,
    /// The questions of probes that are on their way.
    probes: HashMap<Name, SocketAddr>,
    looping: HashSet<SocketAddr>,
}

/// Other name servers.
#[derive(Clone)]
pub struct Upstream {
    resolv_conf: Arc<PathBuf>,
    /// Our own addresses, which must never be asked.
    own: Arc<Vec<IpAddr>>,
    state: Arc<Mutex<State>>,
    /// How many probes are on their way: nearly always none, and then no question needs a closer look.
    probing: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Upstream {
    /// The name servers listed in `resolv_conf`, which is read again whenever it has changed; never one of `own`.
    pub fn new(resolv_conf: PathBuf, own: Vec<IpAddr>, metrics: Arc<Metrics>) -> Self {
        Self {
            resolv_conf: Arc::new(resolv_conf),
            own: Arc::new(own),
            state: Arc::default(),
            probing: Arc::default(),
            metrics,
        }
    }

    /// Name servers for certain domains, in the place of those that were set before.
    pub(crate) fn set_forwards(&self, mut forwards: Forwards) {
        forwards.retain(|server| !self.own.contains(&server.ip()) && !server.ip().is_unspecified());
        let mut state = self.state.lock();
        if state.forwards != forwards {
            state.forwards = forwards;
            state.cache.clear();
            state.probed.clear();
            state.looping.clear();
        }
    }

    /// Whether a query is one of our own that came back; whoever brought it is not asked any more.
    pub(crate) fn came_back(&self, query: &Query) -> bool {
        if self.probing.load(Ordering::Relaxed) == 0 || query.query_type != RecordType::HINFO {
            return false;
        }
        let mut state = self.state.lock();
        let Some(server) = state.probes.get(&query.name.to_lowercase()).copied() else { return false };
        if state.looping.insert(server) {
            tracing::error!(%server, "this name server asks the cluster's DNS itself: it is left out");
        }
        true
    }

    /// The answer to a question from the cache or from the name servers. The error is the code to give the client.
    pub(crate) async fn resolve(&self, query: Query) -> Answer {
        let question = (query.name.to_lowercase(), query.query_type);
        let (asking, old) = {
            let mut state = self.state.lock();
            let old = match state.cache.get(&question, Instant::now()) {
                Some(Remembered::Fresh(reply)) => {
                    let denied = reply.code != ResponseCode::NoError || reply.answers.is_empty();
                    count(if denied { &self.metrics.denials } else { &self.metrics.hits });
                    return Ok(reply);
                }
                Some(Remembered::Stale { reply, ask: false }) => {
                    count(&self.metrics.stale);
                    return Ok(reply);
                }
                Some(Remembered::Stale { reply, ask: true }) => Some(reply),
                None => None,
            };
            count(&self.metrics.misses);
            (self.start(&mut state, question, query), old)
        };
        let Some(old) = old else { return asking?.await };
        if let Ok(asking) = asking
            && let Ok(Ok(reply)) = timeout(STALE_PATIENCE, asking).await
            && matches!(reply.code, ResponseCode::NoError | ResponseCode::NXDomain)
        {
            return Ok(reply);
        }
        count(&self.metrics.stale);
        Ok(old)
    }

    /// Joins those who ask the same already, or begins to ask.
    fn start(
        &self,
        state: &mut State,
        question: Question,
        query: Query,
    ) -> Result<Shared<BoxFuture<'static, Answer>>, ResponseCode> {
        if let Some(asking) = state.asking.get(&question) {
            return Ok(asking.clone());
        }
        if state.asking.len() >= MAX_QUESTIONS {
            return Err(ResponseCode::ServFail);
        }
        let servers = self.servers(state, &question.0);
        if servers.is_empty() {
            return Err(ResponseCode::Refused);
        }
        let asking = self.clone().ask(question.clone(), query, servers).boxed().shared();
        state.asking.insert(question, asking.clone());
        // On a task of its own: it must end, and be forgotten, even when everybody who asked has gone away.
        tokio::spawn(asking.clone());
        Ok(asking)
    }

    async fn ask(self, question: Question, query: Query, servers: Vec<SocketAddr>) -> Answer {
        let mut answer = Err(ResponseCode::ServFail);
        for server in servers {
            count(&self.metrics.forwarded);
            match exchange(server, &query).await {
                Ok(message) => {
                    self.state.lock().failed.remove(&server);
                    let code = message.metadata.response_code;
                    answer = Ok(Reply { code, answers: message.answers, authorities: message.authorities });
                    if matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
                        break;
                    }
                }
                Err(error) => {
                    count(&self.metrics.failed);
                    self.state.lock().failed.insert(server, Instant::now());
                    tracing::debug!(%server, name = %query.name, %error, "name server did not answer");
                }
            }
        }
        let mut state = self.state.lock();
        let now = Instant::now();
        match &answer {
            Ok(reply) if matches!(reply.code, ResponseCode::NoError | ResponseCode::NXDomain) => {
                state.cache.put(question.clone(), reply.clone(), now);
            }
            _ => state.cache.unanswered(&question, now),
        }
        state.asking.remove(&question);
        answer
    }

    /// The name servers to ask for a name (in small letters), in this order.
    fn servers(&self, state: &mut State, name: &Name) -> Vec<SocketAddr> {
        self.read_host(state);
        let mut servers = match state.forwards.of(name) {
            Some(servers) => servers.to_vec(),
            None if state.forwards.default.is_empty() => state.servers.clone(),
            None => state.forwards.default.clone(),
        };
        let now = Instant::now();
        for server in &servers {
            let known = state.probed.get(server);
            let again = state.looping.contains(server) && known.is_some_and(|since| now - *since > LOOPING);
            if known.is_none() || again {
                self.probe(state, *server, now);
            }
        }
        servers.retain(|server| !state.looping.contains(server));
        let shunned = |server: &SocketAddr| state.failed.get(server).filter(|since| now - **since < SHUNNED).copied();
        // Who failed longest ago comes first among those who failed.
        servers.sort_by_key(|server| (shunned(server).is_some(), shunned(server)));
        servers
    }

    /// Asks a name server something that nobody else asks: whether the question comes back is seen by
    /// [`Self::came_back`].
    fn probe(&self, state: &mut State, server: SocketAddr, now: Instant) {
        let random = RandomState::new();
        let text = format!("{:016x}.{:016x}.", random.hash_one(0), random.hash_one(1));
        let Ok(name) = Name::from_ascii(text) else { return };
        state.probed.insert(server, now);
        let was_looping = state.looping.contains(&server);
        state.probes.insert(name.clone(), server);
        self.probing.fetch_add(1, Ordering::Relaxed);
        let upstream = self.clone();
        tokio::spawn(async move {
            // The answer does not matter, only whether we are asked in the meantime.
            let answered = exchange(server, &Query::query(name.clone(), RecordType::HINFO)).await;
            let mut state = upstream.state.lock();
            let came_back = answered.is_ok_and(|answer| answer.metadata.response_code == LOOP_CODE);
            if was_looping && !came_back {
                state.looping.remove(&server);
            }
            state.probes.remove(&name);
            upstream.probing.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Reads the host's name servers again when their file has changed.
    fn read_host(&self, state: &mut State) {
        let modified = fs::metadata(self.resolv_conf.as_ref()).and_then(|metadata| metadata.modified()).ok();
        if modified.is_some() && modified == state.read {
            return;
        }
        let text = fs::read_to_string(self.resolv_conf.as_ref()).unwrap_or_default();
        let mut servers = name_servers(&text, &self.own);
        if !servers.is_empty() && servers.iter().all(|server| server.ip().is_loopback()) {
            // A stub on this machine may itself ask us: prefer the servers behind it.
            let behind = fs::read_to_string(SYSTEMD_RESOLV_CONF).unwrap_or_default();
            let behind = name_servers(&behind, &self.own);
            if !behind.is_empty() {
                servers = behind;
            }
        }
        if state.read.is_some() && servers != state.servers {
            state.probed.clear();
            state.looping.clear();
        }
        state.servers = servers;
        state.read = modified;
    }
}

/// What a probe that comes back is answered.
pub(crate) const LOOP_CODE: ResponseCode = ResponseCode::Refused;

/// The `nameserver` lines of a `resolv.conf`. A port may follow the address after `#`, as dnsmasq writes it.
fn name_servers(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next())??;
        let (address, port) = match address.split_once('#') {
            Some((address, port)) => (address, port.parse().ok()?),
            None => (address, PORT),
        };
        let address: IpAddr = address.parse().ok()?;
        (!own.contains(&address) && !address.is_unspecified()).then_some(SocketAddr::new(address, port))
    };
    text.lines().filter_map(server).take(MAX_SERVERS).collect()
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
        let servers = name_servers(text, &["10.43.0.10".parse().unwrap()]);
        let texts: Vec<String> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["192.0.2.1:53", "[2001:db8::1]:53", "127.0.0.1:5353"]);
    }
}
