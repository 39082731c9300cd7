//! The server over real sockets, asked as `dig` would.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{RData, Record, RecordType};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);
const DNS: &str = "10.43.0.10";

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn service(namespace: &str, service: &str, spec: Value) -> Change<Service> {
    let object = json!({"metadata": {"namespace": namespace, "name": service}, "spec": spec});
    Change::Applied { old: None, new: Arc::new(serde_json::from_value(object).unwrap()) }
}

fn slice(service: &str, kind: &str, endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"namespace": "ns", "name": format!("{service}-{kind}"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": kind, "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"port": 9, "protocol": "UDP"}],
    }))
    .unwrap()
}

fn cluster() -> Records {
    let mut records = Records::new(name("cluster.local."), vec![DNS.parse().unwrap()]);
    records.namespace_changed("ns", true);
    let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    records.service_changed(&service("ns", "web", json!({"clusterIPs": ["10.43.0.5", "fd00::5"], "ports": ports})));
    records.service_changed(&service(
        "ns",
        "db",
        json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
    ));
    records.service_changed(&service("ns", "all", json!({"clusterIP": "None", "publishNotReadyAddresses": true})));
    records.service_changed(&service("ns", "none", json!({"clusterIP": "None"})));
    records.service_changed(&service("ns", "far", json!({"type": "ExternalName", "externalName": "far.example"})));
    records.service_changed(&service(
        "ns",
        "near",
        json!({"type": "ExternalName", "externalName": "web.ns.svc.cluster.local."}),
    ));
    records.service_changed(&service(
        "ns",
        "loop",
        json!({"type": "ExternalName", "externalName": "loop.ns.svc.cluster.local"}),
    ));
    let endpoints = json!([
        {"addresses": ["10.42.0.7"], "hostname": "db-0", "conditions": {"ready": true}},
        {"addresses": ["10.42.0.8"]},
        {"addresses": ["10.42.0.9"], "conditions": {"ready": false}},
    ]);
    for (service, kind) in [("db", "IPv4"), ("all", "IPv4")] {
        let new = Arc::new(slice(service, kind, endpoints.clone()));
        records.slice_changed(&Change::Applied { old: None, new });
    }
    records.set_complete();
    records
}

fn show(data: &RData) -> String {
    match data {
        RData::SRV(srv) => format!("{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target),
        RData::TXT(txt) => txt.to_string(),
        other => other.to_string(),
    }
}

fn found(records: &Records, text: &str, kind: RecordType) -> String {
    match records.lookup(&name(text), kind) {
        Lookup::Found(found) => {
            let all: BTreeSet<String> = found.answers.iter().map(show).collect();
            all.into_iter().collect::<Vec<_>>().join(" | ")
        }
        Lookup::Alias(target) => format!("-> {target}"),
        other => format!("{other:?}"),
    }
}

#[test]
fn names_of_the_specification() {
    use RecordType::{A, AAAA, NS, PTR, SRV, TXT};
    let records = cluster();
    for (text, kind, expected) in [
        ("web.ns.svc.cluster.local.", A, "10.43.0.5"),
        ("WEB.Ns.sVc.Cluster.Local.", A, "10.43.0.5"),
        ("web.ns.svc.cluster.local.", AAAA, "fd00::5"),
        ("web.ns.svc.cluster.local.", TXT, ""),
        ("_http._tcp.web.ns.svc.cluster.local.", SRV, "0 100 80 web.ns.svc.cluster.local."),
        ("_dns._udp.web.ns.svc.cluster.local.", SRV, "0 100 53 web.ns.svc.cluster.local."),
        ("_http._tcp.web.ns.svc.cluster.local.", A, ""),
        ("_tcp.web.ns.svc.cluster.local.", SRV, ""),
        ("_sctp.web.ns.svc.cluster.local.", SRV, "NoName"),
        ("_nope._tcp.web.ns.svc.cluster.local.", SRV, "NoName"),
        ("db.ns.svc.cluster.local.", A, "10.42.0.7 | 10.42.0.8"),
        ("db.ns.svc.cluster.local.", AAAA, ""),
        ("db-0.db.ns.svc.cluster.local.", A, "10.42.0.7"),
        ("10-42-0-8.db.ns.svc.cluster.local.", A, "10.42.0.8"),
        ("10-42-0-7.db.ns.svc.cluster.local.", A, "NoName"),
        ("10-42-0-9.db.ns.svc.cluster.local.", A, "NoName"),
        ("10-42-0-9.all.ns.svc.cluster.local.", A, "10.42.0.9"),
        (
            "_http._tcp.db.ns.svc.cluster.local.",
            SRV,
            "0 50 8080 10-42-0-8.db.ns.svc.cluster.local. | 0 50 8080 db-0.db.ns.svc.cluster.local.",
        ),
        ("_._udp.db.ns.svc.cluster.local.", SRV, "NoName"),
        ("none.ns.svc.cluster.local.", A, "NoName"),
        ("far.ns.svc.cluster.local.", A, "-> far.example."),
        ("x.far.ns.svc.cluster.local.", A, "NoName"),
        ("10-42-0-99.ns.pod.cluster.local.", A, "10.42.0.99"),
        ("fd00--9.ns.pod.cluster.local.", AAAA, "fd00::9"),
        ("10-42-0-99.ns.pod.cluster.local.", AAAA, ""),
        ("10-42-0-99.other.pod.cluster.local.", A, "NoName"),
        ("10-42-0.ns.pod.cluster.local.", A, "NoName"),
        ("5.0.43.10.in-addr.arpa.", PTR, "web.ns.svc.cluster.local."),
        ("7.0.42.10.in-addr.arpa.", PTR, "db-0.all.ns.svc.cluster.local. | db-0.db.ns.svc.cluster.local."),
        ("9.0.42.10.in-addr.arpa.", PTR, "10-42-0-9.all.ns.svc.cluster.local."),
        ("1.2.0.192.in-addr.arpa.", PTR, "Outside"),
        ("0.42.10.in-addr.arpa.", PTR, "Outside"),
        ("dns-version.cluster.local.", TXT, "1.1.0"),
        ("cluster.local.", NS, "ns.dns.cluster.local."),
        ("ns.dns.cluster.local.", A, DNS),
        ("cluster.local.", A, ""),
        ("svc.cluster.local.", A, ""),
        ("ns.svc.cluster.local.", A, ""),
        ("other.svc.cluster.local.", A, "NoName"),
        ("missing.ns.svc.cluster.local.", A, "NoName"),
        ("web.cluster.local.", A, "NoName"),
        ("example.com.", A, "Outside"),
        ("xcluster.local.", A, "Outside"),
        (".", NS, "Outside"),
    ] {
        assert_eq!(found(&records, text, kind), expected, "{text} {kind}");
    }
    let Lookup::Found(srv) = records.lookup(&name("_http._tcp.db.ns.svc.cluster.local."), SRV) else { panic!() };
    assert_eq!(srv.additionals.len(), 2, "the targets' addresses come along");
}

#[test]
fn changes_are_seen_and_leave_nothing() {
    use RecordType::{A, PTR};
    let mut records = cluster();
    let old = Arc::new(slice("db", "IPv4", json!([{"addresses": ["10.42.0.7"], "hostname": "db-0"}])));
    let mut moved = old.as_ref().clone();
    moved.metadata.labels = Some([("kubernetes.io/service-name".to_owned(), "none".to_owned())].into());
    records.slice_changed(&Change::Applied { old: Some(old), new: Arc::new(moved) });
    assert_eq!(found(&records, "db.ns.svc.cluster.local.", A), "NoName");
    assert_eq!(found(&records, "db-0.none.ns.svc.cluster.local.", A), "10.42.0.7");
    let Change::Applied { new, .. } = service("ns", "web", json!({})) else { panic!() };
    records.service_changed(&Change::Deleted(new));
    assert_eq!(found(&records, "web.ns.svc.cluster.local.", A), "NoName");
    assert_eq!(found(&records, "5.0.43.10.in-addr.arpa.", PTR), "Outside");
    let mut unknown = Records::new(name("cluster.local."), vec![DNS.parse().unwrap()]);
    assert_eq!(found(&unknown, "web.ns.svc.cluster.local.", A), "NotReady", "not known is not \"no\"");
    unknown.set_complete();
    assert_eq!(found(&unknown, "web.ns.svc.cluster.local.", A), "NoName");
}

/// A server with the records of [`cluster`] whose upstreams are listed in a file of its own.
struct Fixture {
    address: SocketAddr,
    resolv_conf: tempfile::NamedTempFile,
    upstream: Upstream,
    metrics: Arc<Metrics>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut records: Records, upstreams: &[SocketAddr]) -> Fixture {
    let many: Vec<Value> = (0..200).map(|n| json!({"addresses": [format!("10.42.1.{n}")]})).collect();
    records.service_changed(&service("ns", "many", json!({"clusterIP": "None"})));
    records.slice_changed(&Change::Applied { old: None, new: Arc::new(slice("many", "IPv4", json!(many))) });
    let resolv_conf = tempfile::NamedTempFile::new().unwrap();
    let lines = upstreams.iter().map(|upstream| format!("nameserver {}#{}\n", upstream.ip(), upstream.port()));
    fs::write(resolv_conf.path(), lines.collect::<String>()).unwrap();
    let metrics = Arc::new(Metrics::default());
    let upstream = Upstream::new(resolv_conf.path().to_owned(), vec![DNS.parse().unwrap()], metrics.clone());
    let records = Arc::new(RwLock::new(records));
    let any = ["127.0.0.1:0".parse().unwrap()];
    let server = Server::bind(&any, records, upstream.clone(), metrics.clone()).await.unwrap();
    let address = server.addresses().unwrap()[0];
    Fixture { address, resolv_conf, upstream, metrics, serving: tokio::spawn(server.run()) }
}

fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    message
}

async fn by_udp(server: SocketAddr, query: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&query.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("an answer").unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!((answer.metadata.id, &answer.queries), (query.metadata.id, &query.queries));
    answer
}

async fn tcp_exchange(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<Message> {
    stream.write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    Ok(Message::from_vec(&buffer).unwrap())
}

async fn by_tcp(server: SocketAddr, query: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    timeout(PATIENCE, tcp_exchange(&mut stream, &query.to_vec().unwrap())).await.expect("an answer").unwrap()
}

fn texts(answer: &Message) -> Vec<String> {
    answer.answers.iter().map(|record| show(&record.data)).collect()
}

#[tokio::test]
async fn answers_over_udp_and_tcp() {
    let fixture = serve(cluster(), &[]).await;
    for tcp in [false, true] {
        let ask = async |query: Message| {
            if tcp { by_tcp(fixture.address, &query).await } else { by_udp(fixture.address, &query).await }
        };
        let answer = ask(question("wEb.ns.svc.cluster.LOCAL.", RecordType::A)).await;
        assert_eq!(texts(&answer), ["10.43.0.5"]);
        assert_eq!(answer.answers[0].name.to_ascii(), "wEb.ns.svc.cluster.LOCAL.", "the letters as they were asked");
        assert_eq!(answer.answers[0].ttl, 5);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available && answer.edns.is_none());
        let missing = ask(question("nope.ns.svc.cluster.local.", RecordType::A)).await;
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(missing.authorities[0].record_type(), RecordType::SOA);
        let no_data = ask(question("web.ns.svc.cluster.local.", RecordType::MX)).await;
        assert_eq!((no_data.metadata.response_code, no_data.answers.len()), (ResponseCode::NoError, 0));
        assert_eq!(no_data.authorities[0].record_type(), RecordType::SOA);
        let near = ask(question("near.ns.svc.cluster.local.", RecordType::A)).await;
        assert_eq!(texts(&near), ["web.ns.svc.cluster.local.", "10.43.0.5"]);
        let circle = ask(question("loop.ns.svc.cluster.local.", RecordType::A)).await;
        assert_eq!(circle.metadata.response_code, ResponseCode::ServFail);
        let outside = ask(question("example.com.", RecordType::A)).await;
        assert_eq!(outside.metadata.response_code, ResponseCode::Refused, "no name servers: at once");
    }
}

#[tokio::test]
async fn large_answers_are_truncated_and_whole_over_tcp() {
    let fixture = serve(cluster(), &[]).await;
    let mut query = question("many.ns.svc.cluster.local.", RecordType::A);
    let short = by_udp(fixture.address, &query).await;
    assert!(short.metadata.truncation && short.answers.is_empty());
    let mut edns = Edns::new();
    edns.set_max_payload(65_000);
    query.set_edns(edns);
    let still_short = by_udp(fixture.address, &query).await;
    assert!(still_short.metadata.truncation, "no datagram that would be fragmented");
    assert!(still_short.edns.is_some());
    let whole = by_tcp(fixture.address, &query).await;
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 200));
    let again = by_tcp(fixture.address, &query).await;
    assert_ne!(texts(&whole)[0], texts(&again)[0], "the order turns");
}

#[tokio::test]
async fn unusual_queries() {
    let fixture = serve(cluster(), &[]).await;
    let mut version = question("web.ns.svc.cluster.local.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(9);
    version.set_edns(edns);
    let answer = by_udp(fixture.address, &version).await;
    // BADVERS and BADSIG are the same number.
    assert_eq!((u16::from(answer.metadata.response_code), answer.answers.len()), (16, 0));
    let mut update = question("web.ns.svc.cluster.local.", RecordType::A);
    update.metadata.op_code = OpCode::Status;
    assert_eq!(by_udp(fixture.address, &update).await.metadata.response_code, ResponseCode::NotImp);
    let mut two = question("web.ns.svc.cluster.local.", RecordType::A);
    two.add_query(Query::query(name("a."), RecordType::A));
    assert_eq!(by_udp(fixture.address, &two).await.metadata.response_code, ResponseCode::FormErr);
    assert_eq!(
        texts(&by_udp(fixture.address, &question("web.ns.svc.cluster.local.", RecordType::ANY)).await),
        ["10.43.0.5"]
    );
}

/// Random, truncated and mutated packets on both sockets: no harm, and the server answers afterwards.
#[tokio::test]
async fn malformed_packets_never_hurt() {
    let fixture = serve(cluster(), &[]).await;
    let good = question("_http._tcp.db.ns.svc.cluster.local.", RecordType::SRV).to_vec().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut state = 3_u64;
    let mut random = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    for round in 0..3000 {
        let mut packet = good.clone();
        for _ in 0..=random() % 6 {
            let at = random() % packet.len();
            packet[at] = random() as u8;
        }
        packet.truncate(random() % (packet.len() + 1));
        if round % 3 == 0 {
            packet = (0..random() % 80).map(|_| random() as u8).collect();
        }
        socket.send_to(&packet, fixture.address).await.unwrap();
        if round % 100 == 0 {
            let mut stream = TcpStream::connect(fixture.address).await.unwrap();
            let _ = timeout(Duration::from_millis(20), tcp_exchange(&mut stream, &packet)).await;
            // A length that is never followed by so many bytes.
            let _ = stream.write_all(&[0xff, 0xff, 1, 2, 3]).await;
        }
    }
    let header_only = by_udp_raw(fixture.address, &[0xab, 0xcd, 1, 0, 0, 9, 0, 0, 0, 0, 0, 0]).await;
    assert_eq!((header_only.metadata.id, header_only.metadata.response_code), (0xabcd, ResponseCode::FormErr));
    let answer = by_udp(fixture.address, &question("web.ns.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(texts(&answer), ["10.43.0.5"]);
    assert_eq!(
        texts(&by_tcp(fixture.address, &question("web.ns.svc.cluster.local.", RecordType::A)).await),
        ["10.43.0.5"]
    );
}

async fn by_udp_raw(server: SocketAddr, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(bytes, server).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("an answer").unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

/// Somebody else's name server: every name is 192.0.2.7, `missing.*` does not exist, `big.*` fits only TCP, `slow.*` takes its time.
async fn other_server(asked: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = Arc::new(UdpSocket::bind(address).await.unwrap());
    let answer = move |bytes: &[u8], tcp: bool| {
        let query = Message::from_vec(bytes).unwrap();
        // Whether we ask the server that asks us is another test's business.
        if query.queries[0].query_type != RecordType::HINFO {
            asked.fetch_add(1, Ordering::SeqCst);
        }
        let mut message = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        message.add_queries(query.queries.clone());
        let name = query.queries[0].name.clone();
        let first = String::from_utf8(name.iter().next().unwrap().to_vec()).unwrap();
        let record = |data| Record::from_rdata(name.clone(), 60, data);
        match first.as_str() {
            "missing" => {
                message.metadata.response_code = ResponseCode::NXDomain;
                message.add_authority(record(RData::SOA(SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, 60))));
            }
            "big" if !tcp => message.metadata.truncation = true,
            "brief" => {
                message.add_answer(Record::from_rdata(name, 1, RData::A(Ipv4Addr::new(192, 0, 2, 7).into())));
            }
            _ => {
                message.add_answer(record(RData::A(Ipv4Addr::new(192, 0, 2, 7).into())));
            }
        }
        (message.to_vec().unwrap(), first == "slow")
    };
    let udp_answer = answer.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let (bytes, slow) = udp_answer(&buffer[..length], false);
            // A forged answer with another id comes first and must be ignored.
            let mut forged = bytes.clone();
            forged[0] ^= 0xff;
            socket.send_to(&forged, client).await.unwrap();
            if slow {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            socket.send_to(&bytes, client).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            let (bytes, _) = answer(&query, true);
            stream.write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat()).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn other_names_are_forwarded_cached_and_asked_once() {
    let asked = Arc::new(AtomicUsize::new(0));
    let upstream = other_server(asked.clone()).await;
    // Nobody listens at the first one: the second one is asked at once.
    let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let fixture = serve(cluster(), &[nobody, upstream]).await;
    let ask = async |text: &str| by_udp(fixture.address, &question(text, RecordType::A)).await;
    let count = || asked.swap(0, Ordering::SeqCst);

    let answer = ask("www.Example.com.").await;
    assert_eq!(texts(&answer), ["192.0.2.7"]);
    assert!(!answer.metadata.authoritative);
    assert_eq!(texts(&ask("WWW.example.com.").await), ["192.0.2.7"]);
    assert_eq!(count(), 1, "the second answer is remembered");

    assert_eq!(ask("missing.example.com.").await.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(ask("missing.example.com.").await.authorities.len(), 1);
    assert_eq!(count(), 1, "so is a no");

    assert_eq!(texts(&ask("big.example.com.").await), ["192.0.2.7"]);
    assert_eq!(count(), 2, "once more by TCP");

    assert_eq!(texts(&ask("far.ns.svc.cluster.local.").await), ["far.example.", "192.0.2.7"]);
    assert_eq!(count(), 1);

    let (a, b, own, c) = tokio::join!(
        ask("slow.example.com."),
        ask("slow.example.com."),
        ask("web.ns.svc.cluster.local."),
        ask("slow.example.com."),
    );
    assert_eq!([&a, &b, &c].map(texts), [["192.0.2.7"]; 3].map(|one| one.map(str::to_owned).to_vec()));
    assert_eq!(texts(&own), ["10.43.0.5"]);
    assert_eq!(count(), 1, "three questions at the same time are one");
}

#[tokio::test]
async fn changed_name_servers_are_noticed() {
    let fixture = serve(cluster(), &[]).await;
    let ask = async || by_udp(fixture.address, &question("www.example.com.", RecordType::A)).await;
    assert_eq!(ask().await.metadata.response_code, ResponseCode::Refused);
    let upstream = other_server(Arc::default()).await;
    let file = fixture.resolv_conf.path();
    // Our own address is never asked, even if somebody lists it.
    fs::write(file, format!("nameserver {DNS}\nnameserver {}#{}\n", upstream.ip(), upstream.port())).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    fs::File::options().append(true).open(file).unwrap().set_modified(later).unwrap();
    assert_eq!(texts(&ask().await), ["192.0.2.7"]);
    assert_eq!(IpAddr::from([192, 0, 2, 7]).to_string(), texts(&ask().await)[0]);
}

/// A connection's queries are answered as their answers are ready, and all of them.
#[tokio::test]
async fn queries_are_pipelined() {
    let upstream = other_server(Arc::default()).await;
    let fixture = serve(cluster(), &[upstream]).await;
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    let queries = ["slow.example.com.", "web.ns.svc.cluster.local.", "fast.example.com."]
        .map(|text| question(text, RecordType::A));
    let mut bytes = Vec::new();
    for query in &queries {
        let query = query.to_vec().unwrap();
        bytes.extend((query.len() as u16).to_be_bytes());
        bytes.extend(query);
    }
    stream.write_all(&bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut ids = Vec::new();
    for _ in &queries {
        let mut buffer = vec![0; usize::from(timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap())];
        stream.read_exact(&mut buffer).await.unwrap();
        ids.push(Message::from_vec(&buffer).unwrap().metadata.id);
    }
    assert_eq!(ids[0], queries[1].metadata.id, "what is known does not wait for what is not");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>(), queries.iter().map(|q| &q.metadata.id).collect());
}

#[tokio::test]
async fn domains_with_name_servers_of_their_own() {
    let asked = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    let (host, corp) = (other_server(asked[0].clone()).await, other_server(asked[1].clone()).await);
    let fixture = serve(cluster(), &[host]).await;
    let stub = json!({"data": {"stubDomains": json!({"corp.example": [corp.to_string()]}).to_string()}});
    let forwards = Forwards::parse(&serde_json::from_value(stub).unwrap());
    let ask = async |text: &str| texts(&by_udp(fixture.address, &question(text, RecordType::A)).await);
    let counts = || asked.each_ref().map(|count| count.swap(0, Ordering::SeqCst));
    assert_eq!(ask("www.corp.example.").await, ["192.0.2.7"]);
    assert_eq!(counts(), [1, 0]);
    fixture.upstream.set_forwards(forwards);
    ask("www.corp.example.").await;
    assert_eq!(counts(), [0, 1], "what others said before is forgotten");
    ask("www.example.com.").await;
    assert_eq!(counts(), [1, 0]);
    fixture.upstream.set_forwards(Forwards::default());
    ask("x.corp.example.").await;
    assert_eq!(counts(), [1, 0]);
}

/// The name server goes away: what it said is given on for a while, at once.
#[tokio::test]
async fn old_answers_are_better_than_none() {
    let upstream = other_server(Arc::default()).await;
    let fixture = serve(cluster(), &[upstream]).await;
    let ask = async |text: &str| by_udp(fixture.address, &question(text, RecordType::A)).await;
    assert_eq!(ask("brief.example.com.").await.answers[0].ttl, 1);
    let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    fs::write(fixture.resolv_conf.path(), format!("nameserver {}#{}\n", nobody.ip(), nobody.port())).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    fs::File::options().append(true).open(fixture.resolv_conf.path()).unwrap().set_modified(later).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for _ in 0..3 {
        let answer = ask("brief.example.com.").await;
        assert_eq!((texts(&answer), answer.answers[0].ttl), (vec!["192.0.2.7".to_owned()], 30));
    }
    assert_eq!(ask("other.example.com.").await.metadata.response_code, ResponseCode::ServFail);
    let counted = fixture.metrics.text();
    assert!(counted.contains("coredns_cache_served_stale_total 3"), "{counted}");
    assert!(counted.contains("coredns_dns_responses_total{rcode=\"SERVFAIL\"} 1"), "{counted}");
}

/// The host's resolver asks us: it is left out, and others are asked.
#[tokio::test]
async fn a_name_server_that_asks_us_is_left_out() {
    let forwarder = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let loops = forwarder.local_addr().unwrap();
    let good = other_server(Arc::default()).await;
    let fixture = serve(cluster(), &[loops]).await;
    let ours = fixture.address;
    let forwarder = Arc::new(forwarder);
    let forwarding = tokio::spawn(async move {
        let mut buffer = [0; 2000];
        while let Ok((length, client)) = forwarder.recv_from(&mut buffer).await {
            let (query, forwarder) = (buffer[..length].to_vec(), forwarder.clone());
            tokio::spawn(async move {
                let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                socket.send_to(&query, ours).await.unwrap();
                let mut answer = [0; 2000];
                if let Ok(Ok(length)) = timeout(PATIENCE, socket.recv(&mut answer)).await {
                    forwarder.send_to(&answer[..length], client).await.unwrap();
                }
            });
        }
    });
    let ask = async |text: &str| by_udp(ours, &question(text, RecordType::A)).await;
    // The first question goes round once, and is given up.
    assert_eq!(ask("a.example.com.").await.metadata.response_code, ResponseCode::ServFail);
    let again = ask("b.example.com.").await;
    assert_eq!(again.metadata.response_code, ResponseCode::Refused, "there is no other name server");
    fs::write(
        fixture.resolv_conf.path(),
        format!("nameserver {}#{}\nnameserver {}#{}\n", loops.ip(), loops.port(), good.ip(), good.port()),
    )
    .unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    fs::File::options().append(true).open(fixture.resolv_conf.path()).unwrap().set_modified(later).unwrap();
    assert_eq!(texts(&ask("c.example.com.").await), ["192.0.2.7"]);
    forwarding.abort();
}

/// A client that is not ours: dig, over both transports, with and without EDNS.
#[tokio::test(flavor = "multi_thread")]
async fn dig_understands_the_answers() {
    let upstream = other_server(Arc::default()).await;
    let fixture = serve(cluster(), &[upstream]).await;
    let dig = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("dig");
        command.arg(format!("@{}", fixture.address.ip())).args(["-p", &fixture.address.port().to_string()]);
        let output =
            command.args(["+time=5", "+tries=1"]).args(arguments).output().await.expect("dig (scripts/setup test)");
        String::from_utf8(output.stdout).unwrap()
    };
    for how in ["+notcp", "+tcp", "+noedns", "+bufsize=512"] {
        let answer = dig(&[how, "+short", "web.ns.svc.cluster.local", "A"]).await;
        assert_eq!(answer, "10.43.0.5\n", "{how}");
        let answer = dig(&[how, "nope.ns.svc.cluster.local", "A"]).await;
        assert!(answer.contains("status: NXDOMAIN") && answer.contains("flags: qr aa rd ra"), "{how}: {answer}");
        // The one about .local is dig's opinion of our domain.
        assert_eq!(answer.matches("WARNING").count(), 1, "{how}: {answer}");
    }
    let many = dig(&["many.ns.svc.cluster.local", "A"]).await;
    assert!(many.contains("ANSWER: 200"), "again by TCP: {many}");
    let srv = dig(&["+short", "_http._tcp.db.ns.svc.cluster.local", "SRV"]).await;
    assert!(srv.contains("0 50 8080 db-0.db.ns.svc.cluster.local."), "{srv}");
    assert_eq!(dig(&["+short", "-x", "10.43.0.5"]).await, "web.ns.svc.cluster.local.\n");
    assert_eq!(dig(&["+short", "dns-version.cluster.local", "TXT"]).await, "\"1.1.0\"\n");
    assert_eq!(dig(&["+short", "far.ns.svc.cluster.local"]).await, "far.example.\n192.0.2.7\n");
    let no_data = dig(&["web.ns.svc.cluster.local", "MX"]).await;
    assert!(
        no_data.contains("status: NOERROR") && no_data.contains("ANSWER: 0") && no_data.contains("SOA"),
        "{no_data}"
    );
    assert!(dig(&["+edns=7", "+noednsnegotiation", "web.ns.svc.cluster.local"]).await.contains("status: BADVERS"));
    let both =
        dig(&["+tcp", "+keepopen", "+short", "web.ns.svc.cluster.local", "A", "db-0.db.ns.svc.cluster.local", "A"])
            .await;
    assert_eq!(both, "10.43.0.5\n10.42.0.7\n", "one connection");
}

/// Queries that are nearly right: the seeds that mutations begin with, hand-made ones with what decoders stumble over.
fn query_corpus() -> Vec<Vec<u8>> {
    let mut with_edns = question("web.ns.svc.cluster.local.", RecordType::SRV);
    with_edns.set_edns(Edns::new());
    let header = |counts: [u8; 8]| [&[0x12, 0x34, 1, 0][..], &counts].concat();
    let asks = |name: &[u8]| [&header([0, 1, 0, 0, 0, 0, 0, 0]), name, &[0, 1, 0, 1]].concat();
    let long_label = [&[63][..], &[b'a'; 63]].concat();
    vec![
        question("web.ns.svc.cluster.local.", RecordType::A).to_vec().unwrap(),
        with_edns.to_vec().unwrap(),
        // a name that points to itself, behind itself, and behind the end
        asks(&[0xc0, 12]),
        asks(&[1, b'a', 0xc0, 12]),
        asks(&[0xc0, 0xff]),
        asks(&[0xff, 0xff]),
        // labels that are too long, names that are, and one of a forbidden kind
        asks(&[&[64][..], &[b'a'; 64], &[0]].concat()),
        asks(&[long_label.repeat(5), vec![0]].concat()),
        asks(&[0x41, 0, 0]),
        asks(b"\x03a.b\x05clust\x00"),
        asks(b"\x04\xff\xfe\x00\x80\x00"),
        // more questions, and more records, than there are
        header([0, 2, 0, 0, 0, 0, 0, 0]),
        header([0xff; 8]),
        [&asks(b"\x01a\x00")[..], &[0, 0, 41, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff]].concat(),
        // options of EDNS that are longer than the message
        [
            &header([0, 1, 0, 0, 0, 0, 0, 1]),
            &b"\x01a\x00\x00\x01\x00\x01"[..],
            &[0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 4, 0, 8, 0xff, 0xff],
        ]
        .concat(),
    ]
}

/// Whatever comes, the server neither panics nor says something that is no answer, and it answers well-formed queries still.
#[tokio::test]
async fn malformed_queries_are_survived() {
    let fixture = serve(cluster(), &[]).await;
    let corpus = query_corpus();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(fixture.address).await.unwrap();
    let mut state = 0x5eed_u64;
    let mut random = |limit: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % limit
    };
    let records = cluster();
    for round in 0..30_000 {
        let mut bytes = corpus[random(corpus.len())].clone();
        for _ in 0..random(6) {
            if bytes.is_empty() {
                break;
            }
            let at = random(bytes.len());
            match random(5) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes[at] ^= 1 << random(8),
                2 => bytes.truncate(at),
                3 => bytes.insert(at, [0, 0xc0, 0xff, 63, 12][random(5)]),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes.truncate(4096);
        // the decoder and the records alone, quickly; over the socket now and then
        if let Ok(query) = answer::parse(&bytes)
            && let answer::Outcome::Answer(message) | answer::Outcome::Ask(message, _) =
                answer::answer(&records, &query, round)
        {
            assert_eq!(message.metadata.id, query.metadata.id);
            let limit = answer::datagram_limit(&query);
            assert!(answer::encode(&message, limit).is_none_or(|bytes| bytes.len() <= limit));
        }
        if round % 100 == 0 {
            socket.send(&bytes).await.unwrap();
        }
    }
    let answer = by_udp(fixture.address, &question("web.ns.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(texts(&answer), ["10.43.0.5"]);
    // The same over TCP: a length that promises too much, one of nothing, a message in pieces.
    for bytes in corpus.iter().chain([&vec![0xff; 300], &Vec::new()]) {
        let mut stream = TcpStream::connect(fixture.address).await.unwrap();
        stream.write_all(&(bytes.len() as u16).to_be_bytes()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server lets go");
    }
    let answer = by_udp(fixture.address, &question("web.ns.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(texts(&answer), ["10.43.0.5"]);
}

/// What other name servers answer is not to be trusted either.
#[test]
fn malformed_answers_are_survived() {
    let corpus = query_corpus();
    let mut state = 0xa5_u64;
    for _ in 0..30_000 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut bytes = corpus[(state >> 33) as usize % corpus.len()].clone();
        if bytes.len() > 8 {
            bytes[2] |= 0x80;
            let at = (state >> 20) as usize % bytes.len();
            bytes[at] = (state >> 50) as u8;
        }
        if let Ok(message) = Message::from_vec(&bytes) {
            let _ = message.to_vec();
        }
    }
}

/// A port that another program has: the reason is told, and the server serves as soon as it is free.
#[tokio::test]
async fn a_taken_port_is_told_and_tried_again() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let (told, mut troubles) = tokio::sync::mpsc::unbounded_channel();
    let metrics = Arc::new(Metrics::default());
    let config = DnsConfig {
        listen: vec![address],
        domain: "cluster.local".into(),
        resolv_conf: "/dev/null".into(),
        metrics: metrics.clone(),
        metrics_listen: Vec::new(),
        on_trouble: Arc::new(move |error| drop(told.send(error.to_string()))),
    };
    let upstream = Upstream::new("/dev/null".into(), Vec::new(), metrics);
    let records = Arc::new(RwLock::new(cluster()));
    let serving = tokio::spawn(async move { super::serve(&config, records, upstream).await });
    let reason = timeout(PATIENCE, troubles.recv()).await.unwrap().unwrap();
    assert!(reason.starts_with(&format!("listen on {address}")) && reason.contains("another program"), "{reason}");
    drop(taken);
    let answer = loop {
        let query = question("web.ns.svc.cluster.local.", RecordType::A);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(address).await.unwrap();
        let mut buffer = [0; 512];
        let asked = async {
            socket.send(&query.to_vec().unwrap()).await?;
            socket.recv(&mut buffer).await
        };
        match timeout(Duration::from_millis(200), asked).await {
            Ok(Ok(length)) => break Message::from_vec(&buffer[..length]).unwrap(),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert_eq!(texts(&answer), ["10.43.0.5"]);
    assert!(troubles.try_recv().is_err(), "told once");
    serving.abort();
}

#[tokio::test]
async fn counters_are_served_as_coredns_serves_them() {
    let fixture = serve(cluster(), &[]).await;
    by_udp(fixture.address, &question("web.ns.svc.cluster.local.", RecordType::A)).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let metrics = fixture.metrics.clone();
    let serving = tokio::spawn(async move { metrics_server::run(&[free], metrics).await });
    let get = async |path: &str| {
        let mut stream = loop {
            match TcpStream::connect(free).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: dns\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let text = get("/metrics").await;
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    for line in [
        "coredns_dns_requests_total{proto=\"udp\"} 1",
        "coredns_dns_responses_total{rcode=\"NOERROR\"} 1",
        "coredns_dns_request_duration_seconds_count 1",
        "coredns_dns_request_duration_seconds_bucket{le=\"+Inf\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert!(get("/").await.starts_with("HTTP/1.1 404"));
    serving.abort();
}
