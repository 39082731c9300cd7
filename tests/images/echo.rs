//! A small HTTP/1.1 server for the tests, one static binary: answers every request with facts about itself.
//!
//! `GET /` gives `version=… host=… peer=… path=… method=…`; `/env/NAME` a variable; `/file/PATH` a file; `/exit/N` ends the
//! process; `/unhealthy` makes `/healthz` fail from then on; `/page` is HTML with a link, `/moved` leads to it. SIGTERM ends it
//! at once: the tests drain with a preStop sleep.
//!
//! On the port of the variable `RAW_PORT`, if there is one, it sends back whatever comes; on that of `UDP_PORT` it answers
//! datagrams with its name.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

static HEALTHY: AtomicBool = AtomicBool::new(true);

fn main() {
    let port = std::env::var("PORT").unwrap_or_else(|_| "8080".into());
    let listener = listen(&port);
    if let Ok(port) = std::env::var("RAW_PORT") {
        std::thread::spawn(move || send_back(&port));
    }
    if let Ok(port) = std::env::var("UDP_PORT") {
        std::thread::spawn(move || answer_datagrams(&port));
    }
    println!("listening on {port}");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve(stream));
    }
}

/// Listens on all addresses, of both families where there are both.
fn listen(port: &str) -> TcpListener {
    let any = TcpListener::bind(format!("[::]:{port}")).or_else(|_| TcpListener::bind(format!("0.0.0.0:{port}")));
    any.unwrap_or_else(|e| {
        eprintln!("cannot listen on {port}: {e}");
        std::process::exit(1);
    })
}

fn send_back(port: &str) {
    let listener = listen(port);
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
    }
}

fn answer_datagrams(port: &str) {
    let any = UdpSocket::bind(format!("[::]:{port}")).or_else(|_| UdpSocket::bind(format!("0.0.0.0:{port}")));
    let Ok(socket) = any else { return eprintln!("cannot listen on UDP {port}") };
    let mut buffer = [0; 1500];
    while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(format!("host={} peer={}", host(), peer.ip().to_canonical()).as_bytes(), peer);
    }
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

fn serve(mut stream: TcpStream) {
    let Ok(peer) = stream.peer_addr() else { return };
    let Ok(clone) = stream.try_clone() else { return };
    let mut reader = BufReader::new(clone);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let method = line.split(' ').next().unwrap_or_default().to_owned();
        let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
        let (mut length, mut close) = (0usize, false);
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
                break;
            }
            let lower = header.to_ascii_lowercase();
            if let Some(v) = lower.strip_prefix("content-length:") {
                length = v.trim().parse().unwrap_or(0);
            }
            close |= lower.starts_with("connection:") && lower.contains("close");
        }
        let mut body = vec![0; length.min(1 << 20)];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let (code, mut text) = answer(&path, &method, &peer.ip().to_canonical().to_string());
        println!("{code} {path}");
        let kind = if path == "/page" { "text/html" } else { "text/plain" };
        let more = if path == "/moved" { "Location: /page\r\n" } else { "" };
        let head = format!("HTTP/1.1 {code}\r\nContent-Length: {}\r\nContent-Type: {kind}\r\n{more}\r\n", text.len());
        if method == "HEAD" {
            text.clear();
        }
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(text.as_bytes())).is_err() || close {
            return;
        }
    }
}

fn answer(path: &str, method: &str, peer: &str) -> (&'static str, String) {
    if let Some(name) = path.strip_prefix("/env/") {
        return ("200 OK", std::env::var(name).unwrap_or_default());
    }
    if let Some(file) = path.strip_prefix("/file/") {
        return match std::fs::read_to_string(format!("/{file}")) {
            Ok(text) => ("200 OK", text),
            Err(e) => ("404 Not Found", e.to_string()),
        };
    }
    if let Some(code) = path.strip_prefix("/exit/") {
        std::process::exit(code.parse().unwrap_or(1));
    }
    match path {
        "/unhealthy" => {
            HEALTHY.store(false, Ordering::Relaxed);
            ("200 OK", "as you wish\n".into())
        }
        "/healthz" if !HEALTHY.load(Ordering::Relaxed) => ("500 Internal Server Error", "unhealthy\n".into()),
        "/healthz" => ("200 OK", "ok\n".into()),
        "/page" => ("200 OK", "<a href=\"/elsewhere\">there</a>".into()),
        "/moved" => ("302 Found", String::new()),
        _ => {
            let version = std::env::var("ECHO_VERSION").unwrap_or_default();
            ("200 OK", format!("version={version} host={} peer={peer} path={path} method={method}\n", host()))
        }
    }
}
