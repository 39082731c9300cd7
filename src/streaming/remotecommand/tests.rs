#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::TerminalSize;
use crate::testing::{
    BOUND, Random, SPDY, SpdyClient, WEBSOCKET, client_frame, noise, play, soon, standstill, upgrade,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use futures::SinkExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

const ALL: RemoteCommandOptions = RemoteCommandOptions { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: RemoteCommandOptions = RemoteCommandOptions { stdin: true, stdout: true, stderr: false, tty: true };

/// The client's numbers of the streams.
const STREAMS: [(&str, u32); 5] = [("error", 1), ("stdin", 3), ("stdout", 5), ("stderr", 7), ("resize", 9)];

/// What a client and a server may speak.
#[derive(Clone, Copy, Debug)]
struct Protocol {
    /// `None` is SPDY.
    framing: Option<Framing>,
    name: &'static str,
    json_status: bool,
    half_close: bool,
}

/// What kubectl 1.20 speaks.
const SPDY_V4: Protocol = Protocol { framing: None, name: "v4.channel.k8s.io", json_status: true, half_close: true };
/// What kubectl speaks from 1.31 on.
const WEB_V5: Protocol =
    Protocol { framing: Some(Framing::Binary), name: "v5.channel.k8s.io", json_status: true, half_close: true };
const WEB_V4: Protocol = Protocol { name: "v4.channel.k8s.io", half_close: false, ..WEB_V5 };
const WEB_BASE64: Protocol =
    Protocol { framing: Some(Framing::Base64), name: "base64.channel.k8s.io", json_status: false, half_close: false };
const PROTOCOLS: [Protocol; 4] = [SPDY_V4, WEB_V5, WEB_V4, WEB_BASE64];

enum Client {
    Spdy(SpdyClient<DuplexStream>),
    Web(WebSocketStream<DuplexStream>, Framing),
}

/// All that a client got until the connection ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    status: Vec<u8>,
    /// The server ended the connection as the protocol has it.
    properly_closed: bool,
}

impl Heard {
    fn add(&mut self, channel: u8, bytes: &[u8]) {
        match channel {
            1 => {
                assert!(self.status.is_empty(), "output after the status");
                self.stdout.extend_from_slice(bytes);
            }
            2 => {
                assert!(self.status.is_empty(), "output after the status");
                self.stderr.extend_from_slice(bytes);
            }
            3 => self.status.extend_from_slice(bytes),
            other => panic!("unexpected channel {other}"),
        }
    }
}

impl Client {
    async fn channel(&mut self, channel: u8, bytes: &[u8]) {
        match self {
            Self::Spdy(client) => client.data(if channel == channel::STDIN { 3 } else { 9 }, bytes, false).await,
            Self::Web(socket, Framing::Binary) => {
                let message = [&[channel], bytes].concat();
                let _ = socket.send(Message::Binary(message.into())).await;
            }
            Self::Web(socket, Framing::Base64) => {
                let _ = socket.send(Message::Text(format!("{channel}{}", STANDARD.encode(bytes)).into())).await;
            }
        }
    }

    async fn stdin(&mut self, bytes: &[u8]) {
        self.channel(channel::STDIN, bytes).await;
    }

    async fn end_stdin(&mut self) {
        match self {
            Self::Spdy(client) => client.data(3, b"", true).await,
            Self::Web(socket, _) => socket.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap(),
        }
    }

    async fn raw(&mut self, bytes: &[u8]) {
        match self {
            Self::Spdy(client) => client.raw(bytes).await,
            Self::Web(socket, _) => {
                let _ = socket.get_mut().write_all(bytes).await;
            }
        }
    }

    /// Listens until the end of the connection.
    async fn rest(&mut self) -> Heard {
        let mut heard = Heard::default();
        while self.hear(&mut heard).await {}
        heard
    }

    /// Listens until stdout says `text`.
    async fn until(&mut self, text: &str) {
        let mut heard = Heard::default();
        while !String::from_utf8_lossy(&heard.stdout).contains(text) {
            assert!(self.hear(&mut heard).await, "ended before {text:?} came: {heard:?}");
        }
    }

    /// Hears one more thing; false at the end.
    async fn hear(&mut self, heard: &mut Heard) -> bool {
        match self {
            Self::Spdy(client) => match client.next().await {
                Some(Event::Data { id, bytes, .. }) => {
                    let channel = [(5, 1), (7, 2), (1, 3)].iter().find(|(stream, _)| *stream == id).unwrap().1;
                    heard.add(channel, &bytes);
                }
                Some(Event::GoAway) => heard.properly_closed = true,
                Some(event) => panic!("unexpected: {event:?}"),
                None => return false,
            },
            Self::Web(socket, framing) => match soon("a message", socket.next()).await {
                Some(Ok(Message::Binary(bytes))) if *framing == Framing::Binary => heard.add(bytes[0], &bytes[1..]),
                Some(Ok(Message::Text(text))) if *framing == Framing::Base64 => {
                    heard.add(text.as_bytes()[0] - b'0', &STANDARD.decode(&text.as_bytes()[1..]).unwrap());
                }
                Some(Ok(Message::Close(Some(frame)))) => heard.properly_closed = u16::from(frame.code) == 1000,
                Some(Ok(message)) => panic!("unexpected: {message:?}"),
                Some(Err(_)) | None => return false,
            },
        }
        true
    }
}

fn head(protocol: Protocol) -> String {
    match protocol.framing {
        None => format!("{SPDY}X-Stream-Protocol-Version: {}\r\n", protocol.name),
        Some(_) => format!("{WEBSOCKET}Sec-WebSocket-Protocol: {}\r\n", protocol.name),
    }
}

/// Opens the streams as kubectl does.
async fn open_streams(client: &mut SpdyClient<DuplexStream>, options: RemoteCommandOptions) {
    for (kind, id) in STREAMS {
        let wanted = match kind {
            "stdin" => options.stdin,
            "stdout" => options.stdout,
            "stderr" => options.wants_stderr(),
            "resize" => options.tty,
            _ => true,
        };
        if wanted {
            client.open(id, &[("streamtype", kind)]).await;
        }
    }
    // It will say nothing there.
    client.data(1, b"", true).await;
}

async fn connect(protocol: Protocol, options: RemoteCommandOptions) -> (Client, Session) {
    let accept = move |request: &mut Request<_>| remote_command(request, options);
    let (io, answer, mut sessions) = upgrade("/exec", &head(protocol), accept).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.contains(&format!(": {}\r\n", protocol.name)), "{answer}");
    let client = match protocol.framing {
        None => {
            let mut client = SpdyClient::new(io);
            open_streams(&mut client, options).await;
            Client::Spdy(client)
        }
        Some(framing) => {
            let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
            // That the connection is up is told by an empty message.
            let hello = soon("the hello", socket.next()).await.unwrap().unwrap();
            let expected = if framing == Framing::Binary { Message::binary(vec![1]) } else { Message::text("1") };
            assert_eq!(hello, expected);
            Client::Web(socket, framing)
        }
    };
    (client, soon("the session", sessions.recv()).await.unwrap().unwrap())
}

async fn read_all(stream: Option<ByteStream>) -> Vec<u8> {
    let mut all = Vec::new();
    soon("the end of a stream", stream.unwrap().read_to_end(&mut all)).await.unwrap();
    all
}

#[tokio::test(start_paused = true)]
async fn a_command_runs() {
    for protocol in PROTOCOLS {
        let (mut client, mut session) = connect(protocol, ALL).await;
        assert!(session.resize.is_none());
        client.stdin(b"hello ").await;
        client.stdin(b"world").await;
        if protocol.half_close {
            client.end_stdin().await;
            assert_eq!(read_all(session.stdin.take()).await, b"hello world", "{protocol:?}");
        } else {
            let mut read = [0; 11];
            soon("stdin", session.stdin.as_mut().unwrap().read_exact(&mut read)).await.unwrap();
            assert_eq!(&read, b"hello world", "{protocol:?}");
        }
        // The end of one direction is not the end of the other.
        let (mut stdout, mut stderr) = (session.stdout.take().unwrap(), session.stderr.take().unwrap());
        stdout.write_all(b"first ").await.unwrap();
        client.until("first ").await;
        stdout.write_all(b"second ").await.unwrap();
        stderr.write_all(b"problem").await.unwrap();
        stdout.write_all(b"third").await.unwrap();
        drop((stdout, stderr));
        let finishing = tokio::spawn(session.completion.finish(ExitStatus::Exited(7)));
        let heard = client.rest().await;
        assert!(heard.properly_closed, "{protocol:?}: {heard:?}");
        assert_eq!((heard.stdout.as_slice(), heard.stderr.as_slice()), (&b"second third"[..], &b"problem"[..]));
        let message = "command terminated with non-zero exit code: exit status 7";
        if protocol.json_status {
            let status: serde_json::Value = serde_json::from_slice(&heard.status).unwrap();
            assert_eq!(status["status"], "Failure");
            assert_eq!(status["reason"], "NonZeroExitCode");
            assert_eq!(status["message"], message);
            assert_eq!(status["details"]["causes"][0]["reason"], "ExitCode");
            assert_eq!(status["details"]["causes"][0]["message"], "7");
        } else {
            assert_eq!(heard.status, message.as_bytes());
        }
        soon("finish", finishing).await.unwrap().unwrap();
        drop(client);
        soon("closed", session.closed.cancelled()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_end_is_told() {
    for protocol in PROTOCOLS {
        let ends = [
            (ExitStatus::Success, "Success", ""),
            (ExitStatus::Failed("no such program".into()), "Failure", "no such program"),
        ];
        for (end, word, text) in ends {
            let options = RemoteCommandOptions { stdout: true, ..Default::default() };
            let (mut client, session) = connect(protocol, options).await;
            drop(session.stdout);
            tokio::spawn(session.completion.finish(end));
            let heard = client.rest().await;
            let said = String::from_utf8(heard.status).unwrap();
            assert!(heard.properly_closed && said.contains(text), "{protocol:?}: {said}");
            assert_eq!(said.contains(word), protocol.json_status, "{protocol:?}: {said}");
            assert_eq!(said.is_empty(), word == "Success" && !protocol.json_status, "{protocol:?}: {said}");
        }
        // A session that is let go of has failed; clients take silence for success.
        let (mut client, session) = connect(protocol, ALL).await;
        drop(session);
        let heard = client.rest().await;
        assert!(heard.properly_closed && String::from_utf8_lossy(&heard.status).contains("abandoned"), "{heard:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_terminal_is_resized() {
    for protocol in PROTOCOLS {
        let (mut client, mut session) = connect(protocol, TERMINAL).await;
        assert!(session.stderr.is_none(), "a terminal has one output");
        let sizes = session.resize.as_mut().unwrap();
        for piece in ["{\"Width\":80,\"Height\":24}\n", "{\"Width\":132,", "\"Height\":50}\n"] {
            client.channel(channel::RESIZE, piece.as_bytes()).await;
        }
        for (columns, rows) in [(80, 24), (132, 50)] {
            assert_eq!(soon("a size", sizes.recv()).await, Some(TerminalSize { columns, rows }), "{protocol:?}");
        }
        // Sizes that nobody asked for do not fill memory, and nonsense leaves the terminal as it is.
        for _ in 0..1000 {
            client.channel(channel::RESIZE, b"{\"Width\":1,\"Height\":1}").await;
        }
        client.channel(channel::RESIZE, b"nonsense").await;
        client.stdin(b"x").await;
        assert_eq!(soon("stdin", session.stdin.as_mut().unwrap().read_u8()).await.unwrap(), b'x');
        let mut queued = 0;
        while soon("a size", sizes.recv()).await.is_some() {
            queued += 1;
        }
        assert!((1..=64).contains(&queued), "{queued}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_may_vanish() {
    for protocol in PROTOCOLS {
        for farewell in [false, true] {
            let (mut client, mut session) = connect(protocol, ALL).await;
            client.stdin(b"abc").await;
            match &mut client {
                Client::Web(socket, _) if farewell => {
                    socket.send(Message::Close(None)).await.unwrap();
                    assert!(matches!(soon("the answer", socket.next()).await, Some(Ok(Message::Close(_)))));
                }
                Client::Spdy(client) if farewell => client.send(Outbound::Close).await,
                _ => {}
            }
            drop(client);
            soon("closed", session.closed.cancelled()).await;
            assert_eq!(read_all(session.stdin.take()).await, b"abc", "{protocol:?}: what it typed still counts");
            let mut stdout = session.stdout.take().unwrap();
            let written = soon("an error", async { while stdout.write_all(&[0; 1000]).await.is_ok() {} });
            written.await;
            let finished = soon("finish", session.completion.finish(ExitStatus::Success)).await;
            assert!(finished.is_err(), "{protocol:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_opens_no_streams_is_given_up() {
    let accept = |request: &mut Request<_>| remote_command(request, ALL);
    for vanishes in [false, true] {
        let (io, _, mut sessions) = upgrade("/exec", &head(SPDY_V4), accept).await;
        let mut client = SpdyClient::new(io);
        client.open(1, &[("streamtype", "error")]).await;
        client.request(3, &[("streamtype", "nonsense")]).await;
        assert_eq!(client.next().await, Some(Event::Reset { id: 3 }));
        client.request(5, &[("streamtype", "error")]).await;
        assert_eq!(client.next().await, Some(Event::Reset { id: 5 }), "a second stream of the same type");
        client.send(Outbound::Pong { id: 77 }).await;
        assert_eq!(client.next().await, Some(Event::Ping { id: 77 }), "a ping is answered meanwhile");
        let kept = (!vanishes).then_some(client);
        let error = soon("an error", sessions.recv()).await.unwrap().unwrap_err();
        assert_eq!(matches!(error, Error::Disconnected), vanishes, "{error}");
        assert_eq!(matches!(error, Error::StreamsTimeout(_)), !vanishes, "{error}");
        if let Some(mut client) = kept {
            assert_eq!(client.next().await, None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn malformed_bytes_end_the_session() {
    let spdy: &[&[u8]] = &[
        b"\x80\x02\0\x01\0\0\0\0",                               // version 2
        b"\x80\x03\0\x01\0\xff\xff\xff",                         // a control frame of 16 MiB
        b"\x80\x03\0\x01\0\0\0\x04\0\0\0\x0b",                   // SYN_STREAM that is too short
        b"\x80\x03\0\x01\0\0\0\x10\0\0\0\x0b\0\0\0\0\0\0zlib?!", // headers that are not compressed
        b"\0\0\0\0\0\0\0\0",                                     // data on stream 0
    ];
    let oversized = [&[0x82, 0xff][..], &(5_u64 << 20).to_be_bytes(), &[0; 4]].concat();
    let endless = [&[0x82, 0xff][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    let mut fragments = client_frame(0x02, &vec![0; 1 << 20]);
    for _ in 0..4 {
        fragments.extend(client_frame(0x00, &vec![0; 1 << 20]));
    }
    let web: &[&[u8]] = &[
        b"\x82\x01\0",                    // not masked
        &client_frame(0x83, b""),         // an opcode that is none
        &client_frame(0xc2, b""),         // an extension that was not negotiated
        &client_frame(0x09, b""),         // a fragmented ping
        &client_frame(0x80, b""),         // the rest of nothing
        &client_frame(0x89, &[0; 200]),   // a ping that is too long
        &client_frame(0x81, b"\xc3\x28"), // text that is not UTF-8
        &oversized,
        &endless,
        &fragments,
    ];
    let channels: &[&[u8]] = &[&client_frame(0x82, b"\xff"), &client_frame(0x82, b"\xff\0\0")];
    let base64: &[&[u8]] = &[&client_frame(0x81, b"0***"), &client_frame(0x81, b"!")];
    for (protocol, cases) in
        [(SPDY_V4, spdy), (WEB_V5, web), (WEB_BASE64, web), (WEB_V5, channels), (WEB_BASE64, base64)]
    {
        for case in cases {
            let (mut client, mut session) = connect(protocol, ALL).await;
            client.raw(case).await;
            let shown = &case[..case.len().min(20)];
            soon(&format!("{protocol:?} {shown:x?}"), session.closed.cancelled()).await;
            assert_eq!(read_all(session.stdin.take()).await, b"");
            assert!(session.completion.finish(ExitStatus::Success).await.is_err());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_means_nothing_is_ignored() {
    let spdy: &[&[u8]] = &[
        b"\0\0\0\x63\0\0\0\x02ab",                       // data of a stream that does not exist
        b"\x80\x03\0\x04\0\0\0\x04\0\0\0\0",             // settings
        b"\x80\x03\0\x09\0\0\0\x08\0\0\0\x03\0\0\0\x01", // a window
        b"\x80\x03\0\x07\0\0\0\x08\0\0\0\0\0\0\0\0",     // no more streams
    ];
    let web: &[&[u8]] = &[
        &client_frame(0x82, b""),           // no channel
        &client_frame(0x82, b"\x01output"), // a channel that is ours
        &client_frame(0x82, b"\x63x"),      // a channel that does not exist
        &client_frame(0x81, b"\0text "),    // stdin, by clients that send text
        &client_frame(0x8a, b"pong"),
    ];
    for (protocol, cases, before) in [(SPDY_V4, spdy, &b""[..]), (WEB_V5, web, b"text ")] {
        let (mut client, mut session) = connect(protocol, ALL).await;
        for case in cases {
            client.raw(case).await;
        }
        client.stdin(b"done").await;
        client.end_stdin().await;
        assert_eq!(read_all(session.stdin.take()).await, [before, b"done"].concat());
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_that_does_not_read_slows_its_client_down() {
    for protocol in PROTOCOLS {
        let (mut client, mut session) = connect(protocol, ALL).await;
        let (data, written) = (Arc::new(noise(4 << 20)), Arc::new(AtomicUsize::new(0)));
        let writer = tokio::spawn({
            let (data, written) = (data.clone(), written.clone());
            async move {
                for piece in data.chunks(32 * 1024) {
                    client.stdin(piece).await;
                    written.fetch_add(piece.len(), Ordering::Relaxed);
                }
                client
            }
        });
        standstill().await;
        let buffered = written.load(Ordering::Relaxed);
        assert!(buffered > 0 && buffered < BOUND, "{protocol:?}: {buffered} bytes");
        let mut read = vec![0; data.len()];
        soon("stdin", session.stdin.as_mut().unwrap().read_exact(&mut read)).await.unwrap();
        assert!(read == *data, "{protocol:?}: it came changed");
        // A command that has ended, or closed its stdin, does not hinder the client.
        let mut client = writer.await.unwrap();
        drop((session.stdin, session.stdout, session.stderr));
        soon("the rest", async {
            for piece in data.chunks(32 * 1024) {
                client.stdin(piece).await;
            }
        })
        .await;
        tokio::spawn(session.completion.finish(ExitStatus::Success));
        assert!(client.rest().await.properly_closed, "{protocol:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_slows_the_command_down() {
    for protocol in PROTOCOLS {
        let (mut client, mut session) = connect(protocol, ALL).await;
        let (data, written) = (Arc::new(noise(4 << 20)), Arc::new(AtomicUsize::new(0)));
        let mut stdout = session.stdout.take().unwrap();
        let writer = tokio::spawn({
            let (data, written) = (data.clone(), written.clone());
            async move {
                for piece in data.chunks(10_000) {
                    stdout.write_all(piece).await.unwrap();
                    written.fetch_add(piece.len(), Ordering::Relaxed);
                }
            }
        });
        standstill().await;
        let buffered = written.load(Ordering::Relaxed);
        assert!(buffered > 0 && buffered < BOUND, "{protocol:?}: {buffered} bytes");
        drop(session.stderr);
        // Nothing is lost of what was written before the end.
        let finishing = tokio::spawn(async move {
            writer.await.unwrap();
            session.completion.finish(ExitStatus::Exited(1)).await
        });
        let heard = client.rest().await;
        assert!(heard.stdout == *data && heard.properly_closed, "{protocol:?}: {} bytes", heard.stdout.len());
        assert!(!heard.status.is_empty());
        finishing.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn pings_without_end_fill_no_memory() {
    let pings = [
        (SPDY_V4, b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x01".repeat(1000)),
        (WEB_V5, client_frame(0x89, &[7; 125]).repeat(100)),
    ];
    for (protocol, pings) in pings {
        let (client, session) = connect(protocol, ALL).await;
        let (mut from, mut to) = match client {
            Client::Spdy(client) => client.into_parts(),
            Client::Web(socket, _) => tokio::io::split(socket.into_inner()),
        };
        let sent = Arc::new(AtomicUsize::new(0));
        let flood = tokio::spawn({
            let sent = sent.clone();
            async move {
                for _ in 0..400 {
                    to.write_all(&pings).await.unwrap();
                    sent.fetch_add(pings.len(), Ordering::Relaxed);
                }
                to
            }
        });
        // Either the server stops reading, or it answers only some of them, as RFC 6455 allows.
        standstill().await;
        let stopped = sent.load(Ordering::Relaxed) < BOUND;
        assert_eq!(stopped, !flood.is_finished());
        let mut answers = 0;
        let mut buffer = vec![0; 64 * 1024];
        while !stopped && let Ok(read) = timeout(Duration::from_secs(1), from.read(&mut buffer)).await {
            answers += read.unwrap();
        }
        assert!(answers < BOUND, "{answers} bytes were waiting for the client");
        drop((flood, session));
    }
}

#[tokio::test]
async fn requests_that_cannot_be_upgraded_are_answered() {
    let none = RemoteCommandOptions::default();
    for (headers, options, status, text) in [
        ("".to_owned(), ALL, "400 Bad Request", "missing upgrade headers"),
        ("Connection: Upgrade\r\nUpgrade: h2c\r\n".to_owned(), ALL, "400 Bad Request", "h2c"),
        (format!("{SPDY}X-Stream-Protocol-Version: v9.channel.k8s.io\r\n"), ALL, "403 Forbidden", "v9.channel.k8s.io"),
        (format!("{WEBSOCKET}Sec-WebSocket-Protocol: chat\r\n"), ALL, "403 Forbidden", "chat"),
        (head(SPDY_V4), none, "400 Bad Request", "at least 1 of stdin, stdout, stderr"),
    ] {
        let accept = move |request: &mut Request<_>| remote_command(request, options);
        let (mut io, answer, _) = upgrade::<Session, _>("/exec", &headers, accept).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        let length: usize = answer.split("content-length: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        io.read_exact(&mut body).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains(text), "{body:?}");
    }
}

/// A session as its user treats it: reads all, answers, ends.
async fn use_session(session: oneshot::Receiver<Result<Session, Error>>) {
    let Ok(Ok(session)) = session.await else { return };
    let Session { stdin, stdout, stderr, completion, .. } = session;
    let (mut stdin, mut stdout) = (stdin.unwrap(), stdout.unwrap());
    drop(stderr);
    let _ = tokio::io::copy(&mut stdin, &mut stdout).await;
    drop(stdout);
    let _ = completion.finish(ExitStatus::Exited(3)).await;
}

#[tokio::test(start_paused = true)]
async fn damaged_spdy_sessions_end() {
    let mut good = BytesMut::new();
    let mut encoder = crate::spdy::Encoder::new();
    for (kind, id) in STREAMS {
        encoder.open(id, &Headers::of(&[("streamtype", kind)]), &mut good);
    }
    let data = |stream, bytes: &'static [u8], fin| Outbound::Data { stream, bytes: bytes.into(), fin };
    for frame in [
        data(9, b"{\"Width\":80,\"Height\":24}", false),
        data(3, b"some input", false),
        Outbound::Pong { id: 1 },
        data(3, b"more", true),
        Outbound::Reset { stream: 5 },
        Outbound::Close,
    ] {
        encoder.encode(&frame, &mut good);
    }
    let options = RemoteCommandOptions { stderr: true, ..TERMINAL };
    for seed in 0..3000 {
        let mut random = Random::new(seed);
        let bytes = random.damage(&good);
        let (near, far) = tokio::io::duplex(1024);
        let (ready, session) = oneshot::channel();
        let serving = serve_spdy(far, options, "v4.channel.k8s.io", ready);
        let all = async { tokio::join!(serving, play(near, bytes, random), use_session(session)) };
        soon(&format!("seed {seed}"), Box::pin(all)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn damaged_websocket_sessions_end() {
    for (protocol, good) in [
        (
            "v5.channel.k8s.io",
            [
                client_frame(0x82, b"\x04{\"Width\":80,\"Height\":24}"),
                client_frame(0x82, b"\0some input"),
                client_frame(0x89, b"ping"),
                client_frame(0x02, b"\0in "),
                client_frame(0x80, b"pieces"),
                client_frame(0x81, b"\0text"),
                client_frame(0x82, b"\xff\0"),
                client_frame(0x88, b"\x03\xe8bye"),
            ]
            .concat(),
        ),
        (
            "v4.base64.channel.k8s.io",
            [
                client_frame(0x81, b"4eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9"),
                client_frame(0x81, b"0aW5wdXQ="),
                client_frame(0x01, b"0aW"),
                client_frame(0x80, b"5wdXQ="),
                client_frame(0x88, b""),
            ]
            .concat(),
        ),
    ] {
        for seed in 0..1500 {
            let mut random = Random::new(seed);
            let bytes = random.damage(&good);
            let (near, far) = tokio::io::duplex(1024);
            let (ready, session) = oneshot::channel();
            let serving = serve_websocket(far, TERMINAL, protocol, ready);
            let all = async { tokio::join!(serving, play(near, bytes, random), use_session(session)) };
            soon(&format!("{protocol}, seed {seed}"), Box::pin(all)).await;
        }
    }
}
