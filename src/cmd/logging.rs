//! Log lines on standard error, which systemd keeps.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging. `EDGE_LOG` takes directives such as `info,edge_kubelet=debug`.
pub(crate) fn start(debug: bool) {
    let default = if debug { "debug,hyper=info,h2=info,rustls=info,tower=info" } else { "info" };
    let filter = EnvFilter::try_from_env("EDGE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).compact().init();
}
