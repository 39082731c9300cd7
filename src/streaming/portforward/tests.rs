#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::testing::{
    BOUND, Random, SPDY, SpdyClient, WEBSOCKET, client_frame, noise, play, soon, standstill, upgrade,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use futures::SinkExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Any way to carry SPDY.
trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for T {}

type Client = SpdyClient<Box<dyn Carrier>>;

/// Plain SPDY as kubectl up to 1.30 speaks it, and tunnelled as later ones do.
const TUNNELLED: [bool; 2] = [false, true];

async fn connect(tunnelled: bool) -> (Client, PortForwardSession) {
    let head = match tunnelled {
        false => format!("{SPDY}X-Stream-Protocol-Version: portforward.k8s.io\r\n"),
        true => format!("{WEBSOCKET}Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n"),
    };
    let (io, answer, mut sessions) = upgrade("/portForward", &head, port_forward).await;
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("portforward.k8s.io\r\n"), "{answer}");
    let io: Box<dyn Carrier> = match tunnelled {
        false => Box::new(io),
        true => Box::new(Tunnel::new(WebSocketStream::from_raw_socket(io, Role::Client, None).await)),
    };
    (SpdyClient::new(io), soon("the session", sessions.recv()).await.unwrap().unwrap())
}

/// Opens the streams of one connection as kubectl does; the error stream is `error`, the data stream two more.
async fn open(client: &mut Client, session: &mut PortForwardSession, port: u16, error: u32) -> PortConnection {
    let (port, request) = (port.to_string(), error.to_string());
    client.open(error, &[("streamtype", "error"), ("port", &port), ("requestid", &request)]).await;
    client.data(error, b"", true).await;
    client.open(error + 2, &[("streamtype", "data"), ("port", &port), ("requestid", &request)]).await;
    soon("a connection", session.next()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn connections_carry_bytes_both_ways_until_both_have_ended() {
    for tunnelled in TUNNELLED {
        let (mut client, mut session) = connect(tunnelled).await;
        let mut first = open(&mut client, &mut session, 80, 1).await;
        let mut second = open(&mut client, &mut session, 443, 5).await;
        assert_eq!((first.port, second.port), (80, 443));
        client.data(3, b"to the first", true).await;
        client.data(7, b"to the second", false).await;
        let mut text = String::new();
        first.stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "to the first");
        let mut read = [0; 13];
        second.stream.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"to the second");
        // The client has ended its half, and still hears the other.
        first.stream.write_all(b"from the first").await.unwrap();
        first.stream.shutdown().await.unwrap();
        second.stream.write_all(b"from the second").await.unwrap();
        let mut others = Vec::new();
        assert_eq!(client.read_to_end(3, &mut others).await, b"from the first");
        assert!(!first.closed.is_cancelled(), "its error is still open");
        drop(first);
        assert_eq!(client.read_to_end(1, &mut others).await, b"", "no error");
        // Which does not concern the other connection.
        client.data(7, b"!", false).await;
        assert_eq!(second.stream.read_u8().await.unwrap(), b'!');
        drop(second);
        let late = client.read_to_end(7, &mut others).await;
        let early = others.iter().filter_map(|event| match event {
            Event::Data { id: 7, bytes, .. } => Some(&bytes[..]),
            _ => None,
        });
        let all = early.chain([late.as_slice()]).collect::<Vec<_>>().concat();
        assert_eq!(all, b"from the second");
        assert_eq!(client.read_to_end(5, &mut others).await, b"", "no error");
        // And the numbers of ended connections say nothing any more.
        client.data(3, b"too late", true).await;
        let mut third = open(&mut client, &mut session, 80, 9).await;
        client.data(11, b"x", false).await;
        assert_eq!(third.stream.read_u8().await.unwrap(), b'x');
        drop(client);
        assert!(soon("the end", session.next()).await.is_none());
        soon("closed", third.closed.cancelled()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_that_refuses_is_told() {
    for tunnelled in TUNNELLED {
        let (mut client, mut session) = connect(tunnelled).await;
        let PortConnection { error, .. } = open(&mut client, &mut session, 81, 1).await;
        error.send("connection refused");
        let mut others = Vec::new();
        assert_eq!(client.read_to_end(1, &mut others).await, b"connection refused");
        while !others.contains(&Event::Reset { id: 3 }) {
            others.push(client.next().await.unwrap());
        }
        // The session goes on.
        let mut next = open(&mut client, &mut session, 80, 5).await;
        next.stream.write_all(b"hello").await.unwrap();
        drop(next);
        assert_eq!(client.read_to_end(7, &mut others).await, b"hello");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_gives_up_one_connection() {
    for tunnelled in TUNNELLED {
        let (mut client, mut session) = connect(tunnelled).await;
        let mut given_up = open(&mut client, &mut session, 80, 1).await;
        let other = open(&mut client, &mut session, 80, 5).await;
        client.data(3, b"abc", false).await;
        given_up.stream.read_exact(&mut [0; 3]).await.unwrap();
        client.send(Outbound::Reset { stream: 3 }).await;
        soon("closed", given_up.closed.cancelled()).await;
        assert_eq!(soon("the end", given_up.stream.read(&mut [0])).await.unwrap(), 0);
        assert!(given_up.stream.write_all(b"x").await.is_err());
        assert!(!other.closed.is_cancelled());
        // kubectl waits for the end of the error stream even so.
        drop(given_up);
        assert_eq!(client.read_to_end(1, &mut Vec::new()).await, b"");
        drop(session);
        assert_eq!(client.next().await, None, "a session that is let go of ends the client's connection");
        soon("closed", other.closed.cancelled()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn streams_are_paired() {
    let (mut client, mut session) = connect(false).await;
    for (id, headers) in [
        (1, &[("streamtype", "data")][..]),
        (3, &[("streamtype", "data"), ("port", "0")]),
        (5, &[("streamtype", "data"), ("port", "65536")]),
        (7, &[("streamtype", "stdin"), ("port", "80")]),
        (9, &[("port", "80")]),
    ] {
        client.request(id, headers).await;
        assert_eq!(client.next().await, Some(Event::Reset { id }), "{headers:?}");
    }
    // In any order, with others in between; the oldest clients do not number their requests.
    client.open(11, &[("streamtype", "data"), ("port", "81"), ("requestid", "a")]).await;
    client.open(13, &[("streamtype", "error"), ("port", "82")]).await;
    client.open(15, &[("streamtype", "data"), ("port", "82")]).await;
    let unnumbered = soon("a connection", session.next()).await.unwrap();
    client.open(17, &[("streamtype", "error"), ("port", "81"), ("requestid", "a")]).await;
    let numbered = soon("a connection", session.next()).await.unwrap();
    assert_eq!((unnumbered.port, numbered.port), (82, 81));
    client.request(15, &[("streamtype", "data"), ("port", "82")]).await;
    assert_eq!(client.next().await, Some(Event::Reset { id: 15 }), "a number that is in use");
    // Half a pair is given up after a while.
    client.open(19, &[("streamtype", "error"), ("port", "83"), ("requestid", "b")]).await;
    assert_eq!(client.next().await, Some(Event::Reset { id: 19 }));
    client.send(Outbound::Pong { id: 5 }).await;
    assert_eq!(client.next().await, Some(Event::Ping { id: 5 }));
}

#[tokio::test(start_paused = true)]
async fn connections_are_limited() {
    let (mut client, mut session) = connect(false).await;
    let mut open_ones = Vec::new();
    for n in 0..u32::try_from(MAX_CONNECTIONS).unwrap() {
        open_ones.push(open(&mut client, &mut session, 80, 1 + 4 * n).await);
    }
    client.request(9_999_999, &[("streamtype", "error"), ("port", "80")]).await;
    assert_eq!(client.next().await, Some(Event::Reset { id: 9_999_999 }));
    drop(open_ones.pop());
    let mut others = Vec::new();
    client.read_to_end(3 + 4 * 1023, &mut others).await;
    if others.is_empty() {
        client.read_to_end(1 + 4 * 1023, &mut others).await;
    }
    client.open(9_999_999, &[("streamtype", "error"), ("port", "80")]).await;

    // Nobody reads: what the client sends to all of them together is bounded, too.
    let sent = Arc::new(AtomicUsize::new(0));
    let writer = tokio::spawn({
        let sent = sent.clone();
        async move {
            let piece = noise(100_000);
            for n in 0..1000 {
                client.data(3 + 4 * n, &piece, false).await;
                sent.fetch_add(piece.len(), Ordering::Relaxed);
            }
        }
    });
    standstill().await;
    // The pipes hold 64 KiB each, the rest waits.
    let buffered = sent.load(Ordering::Relaxed);
    let waiting = buffered - (buffered / 100_000) * STREAM_BUFFER;
    assert!(buffered > 0 && waiting < MAX_PENDING + BOUND, "{buffered}");
    writer.abort();
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_read_slows_the_client_down() {
    for tunnelled in TUNNELLED {
        let (mut client, mut session) = connect(tunnelled).await;
        let mut connection = open(&mut client, &mut session, 80, 1).await;
        let (data, sent) = (Arc::new(noise(4 << 20)), Arc::new(AtomicUsize::new(0)));
        let writer = tokio::spawn({
            let (data, sent) = (data.clone(), sent.clone());
            async move {
                for piece in data.chunks(32 * 1024) {
                    client.data(3, piece, false).await;
                    sent.fetch_add(piece.len(), Ordering::Relaxed);
                }
                client.data(3, b"", true).await;
                client
            }
        });
        standstill().await;
        let buffered = sent.load(Ordering::Relaxed);
        assert!(buffered > 0 && buffered < BOUND, "{buffered}");
        let mut read = Vec::new();
        soon("all of it", connection.stream.read_to_end(&mut read)).await.unwrap();
        assert!(read == *data, "{} bytes", read.len());
        // The other way round.
        let mut client = writer.await.unwrap();
        let sent = Arc::new(AtomicUsize::new(0));
        let writer = tokio::spawn({
            let (data, sent) = (data.clone(), sent.clone());
            async move {
                for piece in data.chunks(10_000) {
                    connection.stream.write_all(piece).await.unwrap();
                    sent.fetch_add(piece.len(), Ordering::Relaxed);
                }
            }
        });
        standstill().await;
        let buffered = sent.load(Ordering::Relaxed);
        assert!(buffered > 0 && buffered < BOUND, "{buffered}");
        let read = client.read_to_end(3, &mut Vec::new()).await;
        assert!(read == *data, "{} bytes", read.len());
        writer.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn malformed_bytes_end_the_session() {
    for tunnelled in TUNNELLED {
        for bytes in [
            &b"\x80\x02\0\x01\0\0\0\0"[..],
            b"\x80\x03\0\x01\0\xff\xff\xff",
            b"\x80\x03\0\x01\0\0\0\x10\0\0\0\x0b\0\0\0\0\0\0zlib?!",
            b"\0\0\0\0\0\0\0\0",
        ] {
            let (mut client, mut session) = connect(tunnelled).await;
            let connection = open(&mut client, &mut session, 80, 1).await;
            client.raw(bytes).await;
            assert!(soon("the end", session.next()).await.is_none());
            soon("closed", connection.closed.cancelled()).await;
        }
    }
    // A tunnel carries bytes only.
    let head = format!("{WEBSOCKET}Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n");
    let (mut io, _, mut sessions) = upgrade("/portForward", &head, port_forward).await;
    let mut session = soon("the session", sessions.recv()).await.unwrap().unwrap();
    io.write_all(&client_frame(0x81, b"text")).await.unwrap();
    assert!(soon("the end", session.next()).await.is_none());
}

/// Opens a WebSocket of the older protocol, which has a pair of channels for each port of the query.
async fn channels(name: &str, query: &str) -> (WebSocketStream<tokio::io::DuplexStream>, PortForwardSession) {
    let head = format!("{WEBSOCKET}Sec-WebSocket-Protocol: {name}\r\n");
    let uri = format!("/portForward?{query}");
    let (io, answer, mut sessions) = upgrade(&uri, &head, port_forward).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let session = soon("the session", sessions.recv()).await.unwrap().unwrap();
    (WebSocketStream::from_raw_socket(io, Role::Client, None).await, session)
}

#[tokio::test(start_paused = true)]
async fn channels_of_the_older_websocket_protocol() {
    for base64 in [false, true] {
        let name = if base64 { "v4.base64.channel.k8s.io" } else { "v4.channel.k8s.io" };
        let (mut socket, mut session) = channels(name, "ports=80&ports=8080").await;
        let message = |channel: u8, bytes: &[u8]| match base64 {
            true => Message::text(format!("{channel}{}", STANDARD.encode(bytes))),
            false => Message::binary([&[channel], bytes].concat()),
        };
        for (channel, port) in [(0, 80_u16), (1, 80), (2, 8080), (3, 8080)] {
            let hello = soon("the port", socket.next()).await.unwrap().unwrap();
            assert_eq!(hello, message(channel, &port.to_le_bytes()));
        }
        let mut first = soon("a connection", session.next()).await.unwrap();
        let second = soon("a connection", session.next()).await.unwrap();
        assert_eq!((first.port, second.port), (80, 8080));
        socket.send(message(0, b"hello")).await.unwrap();
        let mut read = [0; 5];
        first.stream.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
        first.stream.write_all(b"answer").await.unwrap();
        assert_eq!(soon("the answer", socket.next()).await.unwrap().unwrap(), message(0, b"answer"));
        second.error.send("refused");
        assert_eq!(soon("the error", socket.next()).await.unwrap().unwrap(), message(3, b"refused"));
        // The channels have no end of their own, so the connection ends with the last of them.
        drop((first.stream, first.error));
        let end = soon("the end", socket.next()).await.unwrap().unwrap();
        assert!(matches!(end, Message::Close(Some(frame)) if u16::from(frame.code) == 1000));
        assert!(soon("the end", socket.next()).await.is_none_or(|last| last.is_err()));
        assert!(soon("the end", session.next()).await.is_none());
    }
    // A client that vanishes.
    let (socket, mut session) = channels("v4.channel.k8s.io", "ports=80").await;
    let connection = soon("a connection", session.next()).await.unwrap();
    drop(socket);
    assert!(soon("the end", session.next()).await.is_none());
    soon("closed", connection.closed.cancelled()).await;
}

#[tokio::test]
async fn ports_of_the_query() {
    assert_eq!(query_ports("ports=80&ports=443,8080&x=1").unwrap(), [80, 443, 8080]);
    assert_eq!(query_ports("port=80&port=443%2C8080").unwrap(), [80, 443, 8080]);
    let many = vec!["ports=80"; MAX_PORTS + 1].join("&");
    for bad in ["", "ports=", "ports=0", "ports=65536", "ports=-1", "ports=a", "ports=80,", &many] {
        assert_eq!(query_ports(bad).unwrap_err().status_code(), http::StatusCode::BAD_REQUEST, "{bad}");
    }
    let head = format!("{WEBSOCKET}Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n");
    let (_, answer, _) = upgrade::<PortForwardSession, _>("/portForward", &head, port_forward).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

/// Serves the connections of a session by sending back what comes.
async fn echo(mut connections: mpsc::Receiver<PortConnection>) {
    let mut serving = JoinSet::new();
    while let Some(PortConnection { stream, error, closed, .. }) = connections.recv().await {
        serving.spawn(async move {
            let (mut from, mut to) = tokio::io::split(stream);
            tokio::select! {
                _ = tokio::io::copy(&mut from, &mut to) => {}
                () = closed.cancelled() => {}
            }
            error.send("over");
        });
    }
    while serving.join_next().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn damaged_sessions_end() {
    let mut spdy = BytesMut::new();
    let mut encoder = crate::spdy::Encoder::new();
    for (id, kind, request) in [(1, "error", "0"), (3, "data", "0"), (5, "data", "1"), (7, "error", "1")] {
        let headers = [("streamtype", kind), ("port", "80"), ("requestid", request)];
        encoder.open(id, &Headers::of(&headers), &mut spdy);
    }
    let data = |stream, bytes: &'static [u8], fin| Outbound::Data { stream, bytes: bytes.into(), fin };
    for frame in [
        data(1, b"", true),
        data(3, b"to the first", false),
        data(5, b"to the second", true),
        Outbound::Pong { id: 1 },
        Outbound::Reset { stream: 3 },
        Outbound::Close,
    ] {
        encoder.encode(&frame, &mut spdy);
    }
    let tunnelled: Vec<u8> = spdy.chunks(33).flat_map(|piece| client_frame(0x82, piece)).collect();
    let channels: Vec<u8> = [&b"\0to the first"[..], b"\x02to the second", b"\x01error", b"\xff\0", b"\x05nowhere"]
        .iter()
        .flat_map(|message| client_frame(0x82, message))
        .chain(client_frame(0x88, b""))
        .collect();
    for seed in 0..1500 {
        for (kind, good) in [&spdy[..], &tunnelled, &channels].into_iter().enumerate() {
            let mut random = Random::new(seed);
            let bytes = random.damage(good);
            let (near, far) = tokio::io::duplex(1024);
            let (accepted, connections) = mpsc::channel(ACCEPT_QUEUE);
            let serving = async {
                // How it ends is not asked; that it does is.
                let _ = match kind {
                    0 => serve_spdy(far, accepted).await,
                    1 => serve_spdy(Tunnel::new(websocket::server(far).await), accepted).await,
                    _ => serve_websocket(far, Framing::Binary, vec![80, 8080], accepted).await,
                };
            };
            let all = async { tokio::join!(serving, play(near, bytes, random), echo(connections)) };
            soon(&format!("{kind}, seed {seed}"), Box::pin(all)).await;
        }
    }
}
