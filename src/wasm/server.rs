//! HTTP servers: each request gets an instance of its own, which nobody had before it.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime::{Engine, Store};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi_config::WasiConfigVariables;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpCtx, WasiHttpView};

use crate::dial::Network;
use crate::directories::preopen;
use crate::host::{ComponentHost, config, wasi_builder};
use crate::invocation::Invocation;
use crate::limits::MemoryLimiter;
use crate::meter::Meter;
use crate::outgoing::Client;
use crate::run::{Given, PrepareError, new_store, table, trap_of};
use crate::stdio::{Output, Stdio};

/// For how long a connection may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait before more connections are accepted when there are no descriptors left for them.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server that listens, but does not answer yet.
pub(crate) struct Server {
    engine: Engine,
    pre: ProxyPre<ComponentHost>,
    invocation: Invocation,
    listeners: Vec<StdListener>,
    stdio: Stdio,
    /// Most requests at the same time; others wait.
    places: usize,
    memory: Option<Arc<AtomicU64>>,
    network: Network,
    handles: Option<usize>,
    /// Its directories, opened; none if the component cannot see them anyway.
    files: Option<WasiFilesystemCtx>,
}

/// What all requests share.
struct Shared {
    engine: Engine,
    pre: ProxyPre<ComponentHost>,
    invocation: Invocation,
    stdio: Stdio,
    places: Arc<Semaphore>,
    files: Option<WasiFilesystemCtx>,
    handles: Option<usize>,
    client: Arc<Client>,
    config: Arc<WasiConfigVariables>,
    memory: Option<Arc<AtomicU64>>,
    meter: Arc<Meter>,
    /// Cancelled when nobody wants the server any more, whatever it is doing.
    given_up: CancellationToken,
    /// Programs that run, which may go on after they have answered.
    programs: TaskTracker,
}

/// Listens where the invocation says.
pub(crate) fn listen(addresses: &[SocketAddr]) -> Result<Vec<StdListener>, PrepareError> {
    let listen = |address: &SocketAddr| {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    addresses
        .iter()
        .map(|address| listen(address).map_err(|source| PrepareError::Listen { address: *address, source }))
        .collect()
}

impl Server {
    pub(crate) fn prepare(
        engine: &Engine,
        pre: ProxyPre<ComponentHost>,
        given: Given<'_>,
    ) -> Result<Self, PrepareError> {
        let Given { invocation, stdio, listeners, places, memory, network, handles, .. } = given;
        if listeners.is_empty() {
            return Err(PrepareError::NowhereToListen);
        }
        let component = pre.instance_pre().component();
        let sees_files =
            component.component_type().imports(engine).any(|(name, _)| name.starts_with("wasi:filesystem/"));
        // Opened once for all requests, as the volumes of a container are mounted once; what cannot be opened is told now.
        let files = sees_files.then(|| {
            let mut builder = WasiCtxBuilder::new();
            preopen(&mut builder, invocation)?;
            Ok::<_, PrepareError>(builder.build().filesystem().clone())
        });
        Ok(Self {
            engine: engine.clone(),
            pre,
            invocation: invocation.clone(),
            listeners,
            stdio: stdio.clone(),
            places,
            memory,
            network,
            handles,
            files: files.transpose()?,
        })
    }

    pub(crate) fn listening(&self) -> Vec<SocketAddr> {
        // Of a socket that listens this cannot fail.
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Answers until the shutdown comes, and then what has begun.
    /// When the future is dropped all ends at once.
    pub(crate) async fn serve(self, meter: Arc<Meter>, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let mut shutdown = pin!(shutdown);
        let shared = Arc::new(Shared {
            client: Arc::new(Client::new(&self.invocation, self.network)),
            config: config(&self.invocation),
            memory: self.memory,
            meter,
            given_up: CancellationToken::new(),
            engine: self.engine,
            pre: self.pre,
            invocation: self.invocation,
            stdio: self.stdio,
            places: Arc::new(Semaphore::new(self.places)),
            files: self.files,
            handles: self.handles,
            programs: TaskTracker::new(),
        });
        let _given_up = shared.given_up.clone().drop_guard();
        let connections = GracefulShutdown::new();
        let mut accepting = tokio::task::JoinSet::new();
        let (accepted, mut streams) = tokio::sync::mpsc::channel(64);
        for listener in self.listeners {
            accepting.spawn(accept(TcpListener::from_std(listener)?, accepted.clone(), shared.stdio.stderr.clone()));
        }
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).pipeline_flush(true);
        server.http2().timer(TokioTimer::new());
        loop {
            let stream = tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(stream) = streams.recv() => stream,
            };
            let shared = Arc::clone(&shared);
            let server = server.clone();
            let watcher = connections.watcher();
            tokio::spawn(async move {
                let service = service_fn(|request| answer(Arc::clone(&shared), request));
                let connection = server.serve_connection(TokioIo::new(stream), service);
                let connection = watcher.watch(connection.into_owned());
                // One that breaks is the client's matter.
                let _ = shared.given_up.run_until_cancelled(connection).await;
            });
        }
        drop(accepting);
        drop(streams);
        connections.shutdown().await;
        shared.programs.close();
        shared.programs.wait().await;
        Ok(())
    }
}

async fn accept(listener: TcpListener, accepted: tokio::sync::mpsc::Sender<TcpStream>, stderr: Output) {
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                told = false;
                // Only a hint; without it answers come as well.
                let _ = stream.set_nodelay(true);
                if accepted.send(stream).await.is_err() {
                    return;
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
            Err(e) => {
                if !std::mem::replace(&mut told, true) {
                    stderr.line(&format!("cannot accept connections: {e}"));
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Why a request got no answer from the program.
enum Failure {
    /// The request is not one that a program can be given.
    Request(String),
    /// The program ended, or could not begin.
    Program(String),
    /// The program says that it failed.
    Said(ErrorCode),
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<WasiBody>, Infallible> {
    let what = format!("{} {}", request.method(), request.uri().path());
    let (status, text, line) = match shared.ask_program(request).await {
        Ok(response) => return Ok(response),
        Err(Failure::Request(why)) => (StatusCode::BAD_REQUEST, why, None),
        Err(Failure::Program(why)) => (StatusCode::INTERNAL_SERVER_ERROR, "the program failed".to_owned(), Some(why)),
        Err(Failure::Said(code)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "the program failed".to_owned(), Some(format!("it said {code:?}")))
        }
    };
    if let Some(why) = line {
        shared.stdio.stderr.line(&format!("{what}: {why}"));
    }
    let body = Full::new(Bytes::from(text + "\n")).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    Ok(response)
}

impl Shared {
    async fn ask_program(self: &Arc<Self>, request: Request<Incoming>) -> Result<Response<WasiBody>, Failure> {
        let host = request.uri().authority().is_some() || request.headers().contains_key(http::header::HOST);
        if !host {
            return Err(Failure::Request("the request names no host".to_owned()));
        }
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .map_err(|_| Failure::Program("the server has ended".to_owned()))?;
        let mut store = self.store();
        let (sender, mut receiver) = oneshot::channel();
        let mut view = store.data_mut().http();
        let given = view
            .new_incoming_request(Scheme::Http, request)
            .map_err(|e| Failure::Request(format!("the request cannot be understood: {e:#}")))?;
        let out = view.new_response_outparam(sender).map_err(|e| Failure::Program(format!("{e:#}")))?;
        let shared = Arc::clone(self);
        // It computes in its connection's task, so most answers are there without anybody having been woken. While nobody has an
        // answer it goes with the client that asked.
        let mut program: Running = Box::pin(async move {
            let asked = shared.meter.count(async {
                let proxy = shared.pre.instantiate_async(&mut store).await?;
                proxy.wasi_http_incoming_handler().call_handle(&mut store, given, out).await
            });
            let result = shared.given_up.run_until_cancelled(asked).await.unwrap_or(Ok(()));
            let failure = result.err().map(|e| trap_of(&e, &store.data().limiter).to_string());
            // The sender of the answer goes with the store, so it must go before the answer is waited for.
            drop(store);
            drop(place);
            failure
        });
        tokio::select! {
            biased;
            failure = &mut program => match receiver.try_recv() {
                // Of what a program has begun and died over nothing has been sent.
                Ok(answer) if failure.is_none() => whole(answer.map_err(Failure::Said)?),
                _ => Err(no_answer(failure)),
            },
            answer = &mut receiver => match answer {
                // From here on it may finish what it does.
                Ok(answer) => {
                    let rest = Rest { program: Some(program), shared: Arc::clone(self), failed: false };
                    Ok(answer.map_err(Failure::Said)?.map(|body| Growing { body, rest }.boxed_unsync()))
                }
                Err(_) => Err(no_answer(program.await)),
            },
        }
    }

    /// Tells of a program that failed when its answer had begun, which nobody else can.
    fn tell(&self, failure: Option<String>) {
        if let Some(trap) = failure {
            self.stdio.stderr.line(&format!("after its answer had begun: {trap}"));
        }
    }

    fn store(&self) -> Store<ComponentHost> {
        let mut wasi = wasi_builder(&self.invocation, &self.stdio);
        if let Some(cwd) = &self.invocation.cwd {
            wasi.initial_cwd(cwd.to_string_lossy());
        }
        let mut wasi = wasi.build();
        if let Some(files) = &self.files {
            wasi.filesystem().clone_from(files);
        }
        let host = ComponentHost {
            table: table(self.handles),
            wasi,
            http: WasiHttpCtx::new(),
            outgoing: self.client.for_instance(),
            config: Arc::clone(&self.config),
            limiter: MemoryLimiter::new(self.invocation.limits.memory).counted_in(self.memory.clone()),
        };
        new_store(&self.engine, host, |host| &mut host.limiter)
    }
}

/// A program that runs; at its end it says what it died of, if it did.
type Running = Pin<Box<dyn Future<Output = Option<String>> + Send>>;

fn no_answer(failure: Option<String>) -> Failure {
    Failure::Program(failure.unwrap_or_else(|| "it gave no answer".to_owned()))
}

/// The answer of a program that has ended, so that all of it is there: it goes with its length, and in one piece.
fn whole(answer: Response<WasiBody>) -> Result<Response<WasiBody>, Failure> {
    let (head, body) = answer.into_parts();
    let incomplete = || Failure::Program("it ended before its answer was complete".to_owned());
    let body = body.collect().now_or_never().and_then(Result::ok).ok_or_else(incomplete)?;
    let trailers = body.trailers().cloned();
    let body = Full::new(body.to_bytes()).map_err(|never| match never {});
    let body = match trailers {
        Some(trailers) => body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed_unsync(),
        None => body.boxed_unsync(),
    };
    Ok(Response::from_parts(head, body))
}

/// A program that has begun to answer. It goes on, whatever becomes of its answer.
struct Rest {
    program: Option<Running>,
    shared: Arc<Shared>,
    failed: bool,
}

impl Rest {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(program) = &mut self.program
            && let Poll::Ready(failure) = program.as_mut().poll(cx)
        {
            self.program = None;
            self.failed = failure.is_some();
            self.shared.tell(failure);
        }
    }

    /// Lets it go on by itself.
    fn leave(&mut self) {
        if let Some(program) = self.program.take() {
            let shared = Arc::clone(&self.shared);
            self.shared.programs.spawn(async move { shared.tell(program.await) });
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.leave();
    }
}

/// An answer's body that its program is still making. It computes whenever more is wanted than there is, so that writer and reader need
/// not wake each other for each piece.
struct Growing {
    body: WasiBody,
    rest: Rest,
}

impl Body for Growing {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let mut polled = Pin::new(&mut this.body).poll_frame(cx);
        // It may have written before it began to wait, or ended.
        if polled.is_pending() {
            this.rest.poll(cx);
            polled = Pin::new(&mut this.body).poll_frame(cx);
        }
        // The body of a program that is gone just ends; nobody shall take what is there of it for all.
        if this.rest.failed && matches!(polled, Poll::Ready(None)) {
            polled = Poll::Ready(Some(Err(Error::HttpProtocolError)));
        }
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            this.rest.leave();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
