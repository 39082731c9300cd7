//! What the HTTP component answers, answered by hyper: this program again, in a container.

use super::harness::images::{archive_of, layer};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The argument with which this program is that server.
pub(crate) const SERVE: &str = "--serve";
/// The image's name.
pub(crate) const IMAGE: &str = "docker.io/library/native:bench";

/// Serves on port 8080 for ever.
pub(crate) fn serve() {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:8080").await.unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(async |request| answer(&request)));
            // a client that goes away is no matter
            tokio::spawn(async move { drop(connection.await) });
        }
    });
}

fn answer(request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = format!("hello from native {}\n", request.uri().path());
    Ok(Response::new(Full::new(text.into())))
}

/// An archive of this program and of the libraries that it is linked with.
pub(crate) fn archive(directory: &Path) -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let linked = Command::new("ldd").arg(&program).output().unwrap();
    let text = String::from_utf8_lossy(&linked.stdout).into_owned();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned);
    let files: Vec<(String, Vec<u8>)> = libraries
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .chain([("/server".to_owned(), std::fs::read(&program).unwrap())])
        .collect();
    let entries: Vec<(&str, u32, &[u8])> =
        files.iter().map(|(path, data)| (path.trim_start_matches('/'), 0o755, data.as_slice())).collect();
    let to = directory.join("native.tar");
    archive_of(&layer(&entries), &json!({"Entrypoint": ["/server", SERVE]}), &[IMAGE], &to);
    to
}
