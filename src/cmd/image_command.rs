//! `edge image`: the images of this node, asked of the edge that runs here.

use super::agent::local_socket;
use super::server::{Failure, doing};
use super::{credentials, fail};
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use edge_image::{Credentials, Reference};
use edge_kubelet::{ImageInfo, ImageProgress, ImageType, ImagesRemoved};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::net::UnixStream;

/// `edge image`
#[derive(Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
    /// Directory for all state, as edge was told
    #[arg(long, short, env = "EDGE_DATA_DIR", default_value = "/var/lib/edge", value_name = "DIR", global = true)]
    data_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Subcommand)]
enum ImageCommand {
    /// Show the images
    #[command(visible_alias = "ls")]
    List {
        /// Form of the output
        #[arg(long, short, default_value = "table", value_name = "FORM")]
        output: Output,
    },
    /// Show everything that is known of images, as JSON
    Inspect {
        /// Names or ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Fetch images from their registries, whether they are here or not
    Pull {
        /// Names
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Name and password for the registry; without them those of ~/.docker/config.json and registries.yaml are tried
        #[arg(long, env = "EDGE_CREDS", hide_env_values = true, value_name = "USER:PASSWORD", value_parser = credentials::parse)]
        creds: Option<Credentials>,
    },
    /// Take images out of archives (OCI or docker save; plain, gzip or zstd)
    Import {
        /// Archives
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Also images that pods of this node use
        #[arg(long, short)]
        force: bool,
    },
    /// Remove all images that no pod of this node uses
    Prune {
        /// Also those that came out of archives
        #[arg(long, short)]
        all: bool,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("no edge answers at {}; does it run, and are you root?", path.display())]
    NotRunning { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Said(String),
    #[error("edge broke off")]
    BrokeOff,
}

/// Runs a subcommand.
pub(crate) fn main(args: ImageArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &error),
    };
    let agent = Agent { socket: local_socket(&args.data_dir) };
    match runtime.block_on(run(&agent, args.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

async fn run(agent: &Agent, command: ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::List { output } => {
            let images: Vec<ImageInfo> =
                agent.ask(Method::GET, "/images", &[]).await.map_err(doing("listing images"))?;
            print(&match output {
                Output::Table => table(&images),
                Output::Json => pretty(&images),
            });
        }
        ImageCommand::Inspect { images } => {
            let mut found: Vec<ImageInfo> = Vec::new();
            for name in &images {
                let one = agent.ask(Method::GET, "/images/inspect", &[("name", name)]).await;
                found.push(one.map_err(doing("inspecting an image"))?);
            }
            print(&pretty(&found));
        }
        ImageCommand::Pull { images, creds } => {
            for name in &images {
                let reference: Reference = name.parse().map_err(doing(name.clone()))?;
                let credentials = credentials::find(creds.clone(), &reference)?;
                // plain data always serializes
                let body = serde_json::to_vec(&credentials).unwrap_or_default();
                agent.follow("/images/pull", name, body).await.map_err(doing("pulling an image"))?;
            }
        }
        ImageCommand::Import { files } => {
            for file in &files {
                let file = std::path::absolute(file).map_err(doing("importing an archive"))?;
                let name = file.to_string_lossy();
                agent.follow("/images/import", &name, Vec::new()).await.map_err(doing("importing an archive"))?;
            }
        }
        ImageCommand::Rm { images, force } => {
            for name in &images {
                let force = if force { "true" } else { "false" };
                let removed = agent.ask(Method::POST, "/images/remove", &[("name", name), ("force", force)]).await;
                print(&gone(&removed.map_err(doing("removing an image"))?));
            }
        }
        ImageCommand::Prune { all } => {
            let all = if all { "true" } else { "false" };
            let removed = agent.ask(Method::POST, "/images/prune", &[("all", all)]).await;
            print(&gone(&removed.map_err(doing("removing images"))?));
        }
    }
    Ok(())
}

/// The edge of this machine.
struct Agent {
    socket: PathBuf,
}

impl Agent {
    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, query: &[(&str, &str)]) -> Result<T, Refused> {
        let answer = self.send(method, path, query, Vec::new()).await?;
        let body = answer.into_body().collect().await.map_err(|_| Refused::BrokeOff)?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| Refused::Said(error.to_string()))
    }

    /// Shows how the work goes on, until it has ended.
    async fn follow(&self, path: &str, name: &str, body: Vec<u8>) -> Result<(), Refused> {
        let mut body = self.send(Method::POST, path, &[("name", name)], body).await?.into_body();
        let (mut pending, mut display) = (Vec::new(), Display::new(name));
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Refused::BrokeOff)?.into_data() else { continue };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                match serde_json::from_slice(&line).map_err(|error| Refused::Said(error.to_string()))? {
                    ImageProgress::Done(images) => {
                        display.clear();
                        print(&images.iter().map(|image| format!("{}\n", full_name(image))).collect::<String>());
                        return Ok(());
                    }
                    ImageProgress::Failed(reason) => {
                        display.clear();
                        return Err(Refused::Said(reason));
                    }
                    progress => display.show(&progress),
                }
            }
        }
        Err(Refused::BrokeOff)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<http::Response<Incoming>, Refused> {
        let not_running = |source| Refused::NotRunning { path: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(not_running)?;
        let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|_| Refused::BrokeOff)?;
        tokio::spawn(connection);
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let request = Request::builder().method(method).uri(format!("{path}?{query}")).header("host", "edge");
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| Refused::Said(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(|_| Refused::BrokeOff)?;
        if answer.status() == StatusCode::OK {
            return Ok(answer);
        }
        let body = answer.into_body().collect().await.map_err(|_| Refused::BrokeOff)?.to_bytes();
        Err(Refused::Said(String::from_utf8_lossy(&body).into_owned()))
    }
}

/// One line on a terminal that says how far it is; where there is none, nothing.
struct Display {
    what: String,
    terminal: bool,
    total: u64,
    blobs: std::collections::BTreeMap<String, u64>,
}

impl Display {
    fn new(what: &str) -> Self {
        let what = Path::new(what).file_name().map_or(what.into(), |name| name.to_string_lossy().into_owned());
        Self { what, terminal: io::stderr().is_terminal(), total: 0, blobs: Default::default() }
    }

    fn show(&mut self, progress: &ImageProgress) {
        let text = match progress {
            ImageProgress::Resolved { total, .. } => {
                self.total = *total;
                format!("{} to fetch or unpack", size(self.total))
            }
            ImageProgress::Received { digest, received, .. } => {
                self.blobs.insert(digest.clone(), *received);
                format!("{} of {}", size(self.blobs.values().sum()), size(self.total))
            }
            ImageProgress::Unpacked { .. } => "unpacking".to_owned(),
            ImageProgress::Compiling { image } => format!("compiling {image}"),
            ImageProgress::Done(_) | ImageProgress::Failed(_) => return,
        };
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K{}: {text}", self.what);
        }
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// A closed pipe is no failure of ours.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

fn pretty(images: &[ImageInfo]) -> String {
    // plain data always serializes
    serde_json::to_string_pretty(images).unwrap_or_default() + "\n"
}

fn kind(kind: ImageType) -> &'static str {
    match kind {
        ImageType::Linux => "linux",
        ImageType::WasmImage => "wasm-image",
        ImageType::WasmArtifact => "wasm-artifact",
    }
}

fn full_name(image: &ImageInfo) -> &str {
    image.repo_tags.first().or(image.repo_digests.first()).unwrap_or(&image.id)
}

/// The images by name, a line for each of their tags.
fn table(images: &[ImageInfo]) -> String {
    let mut rows = Vec::new();
    for image in images {
        let id = image.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        let used = if image.in_use { "yes" } else { "no" };
        let tail = |name: &str, tag: &str| {
            let cells = [name, tag, kind(image.kind), &id, &size(image.size), used];
            cells.map(str::to_owned)
        };
        if image.repo_tags.is_empty() {
            let name = image.repo_digests.first().and_then(|d| d.split_once('@')).map_or("<none>", |(name, _)| name);
            rows.push(tail(name, "<none>"));
        }
        for full in &image.repo_tags {
            let (name, tag) = full.rsplit_once(':').unwrap_or((full, "latest"));
            rows.push(tail(name, tag));
        }
    }
    rows.sort();
    rows.insert(0, ["IMAGE", "TAG", "KIND", "ID", "SIZE", "IN USE"].map(str::to_owned));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn gone(removed: &ImagesRemoved) -> String {
    let mut text: String = removed.images.iter().map(|image| format!("{} removed\n", full_name(image))).collect();
    text += &format!("{} freed\n", size(removed.bytes));
    text
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tags: &[&str], kind: ImageType) -> ImageInfo {
        ImageInfo {
            id: format!("sha256:{}", "ab".repeat(32)),
            repo_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            repo_digests: vec![format!("r.io:5000/x@sha256:{}", "cd".repeat(32))],
            kind,
            size: 1_234_567,
            pinned: false,
            in_use: kind == ImageType::WasmArtifact,
            last_used: 0,
            module: None,
            platform: "linux/amd64".into(),
            command: Vec::new(),
            env: Vec::new(),
            working_dir: String::new(),
            user: String::new(),
            labels: Default::default(),
        }
    }

    #[test]
    fn every_tag_is_a_line() {
        let images =
            [image(&["r.io:5000/x:2", "docker.io/library/a:1"], ImageType::WasmArtifact), image(&[], ImageType::Linux)];
        let expected = "\
IMAGE                 TAG      KIND            ID             SIZE     IN USE
docker.io/library/a   1        wasm-artifact   abababababab   1.2 MB   yes
r.io:5000/x           2        wasm-artifact   abababababab   1.2 MB   yes
r.io:5000/x           <none>   linux           abababababab   1.2 MB   no
";
        assert_eq!(table(&images), expected);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(
            [0, 999, 1_500, 2_000_000, 3_210_000_000].map(size),
            ["0 B", "999 B", "1.5 kB", "2.0 MB", "3.21 GB"]
        );
    }
}
