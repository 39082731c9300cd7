//! Sockets at which a plugin of a node is asked.

use edge_grpc::CallError;
use edge_grpc::server::{self, Call, Reply};
use std::fs;
use std::path::PathBuf;

/// A server on sockets; dropping it ends it, and removes them.
pub(crate) struct Sockets {
    paths: Vec<PathBuf>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Sockets {
    /// Answers at sockets, in whose places another's may still lie.
    pub(crate) fn serve<F>(paths: Vec<PathBuf>, answer: impl Fn(Call) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Reply, CallError>> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        for path in &paths {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let listener = runtime.block_on(server::listen(path)).unwrap();
            runtime.spawn(server::serve(listener, answer.clone()));
        }
        Self { paths, runtime: Some(runtime) }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for path in self.paths.iter().rev() {
            let _ = fs::remove_file(path);
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
