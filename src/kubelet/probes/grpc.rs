//! gRPC health checks of probes: one call of `grpc.health.v1.Health/Check`. The two messages of that protocol have one field each.

use bytes::Bytes;
use edge_grpc::wire::{Fields, Message};
use edge_grpc::{CallError, Channel, UNIMPLEMENTED};
use tokio::net::TcpStream;

/// The status of a service that is well.
const SERVING: u64 = 1;

/// Why a server is not healthy; the texts are the kubelet's where it has some.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrpcError {
    #[error("failed to connect service {address:?}")]
    Connect {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("error: health rpc probe failed: {0}")]
    Call(CallError),
    #[error("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)")]
    Unimplemented,
    #[error("service unhealthy (responded with {0:?})")]
    Unhealthy(&'static str),
}

impl From<CallError> for GrpcError {
    fn from(error: CallError) -> Self {
        if error.code == UNIMPLEMENTED { Self::Unimplemented } else { Self::Call(error) }
    }
}

/// Asks whether a service is well.
pub(crate) async fn check(host: &str, port: u16, service: &str) -> Result<(), GrpcError> {
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let connected = TcpStream::connect((host, port)).await;
    let tcp = connected.map_err(|source| GrpcError::Connect { address: address.clone(), source })?;
    let channel = Channel::over(tcp, &address, "kube-probe/1.36").await?;
    let answer = channel.call("/grpc.health.v1.Health/Check", Message::default().text(1, service)).await?;
    match status(answer) {
        SERVING => Ok(()),
        0 => Err(GrpcError::Unhealthy("UNKNOWN")),
        2 => Err(GrpcError::Unhealthy("NOT_SERVING")),
        3 => Err(GrpcError::Unhealthy("SERVICE_UNKNOWN")),
        _ => Err(GrpcError::Unhealthy("something else")),
    }
}

/// The status (field 1, a number) of a `HealthCheckResponse`; 0, "unknown", when there is none.
fn status(answer: Bytes) -> u64 {
    let mut fields = Fields::of(answer);
    let mut status = 0;
    while let Ok(Some((field, value))) = fields.next() {
        if field == 1 {
            status = value.number();
        }
    }
    status
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use edge_grpc::server::{self, Call};
    use std::sync::Arc;

    /// A server that answers one question as the service's name asks: with a status, or a code.
    async fn server() -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::new(|call: Call| async move {
            assert_eq!(call.method, "/grpc.health.v1.Health/Check");
            let name = Fields::of(call.message).next().unwrap().map(|(_, value)| value.text().unwrap());
            match name.as_deref().unwrap_or_default() {
                "" | "well" => Ok(Message::default().number(1, SERVING).into()),
                "ill" => Ok(Message::default().number(1, 2).into()),
                "unknown" => Ok(Message::default().into()),
                "unimplemented" => Err(server::unknown(&call.method)),
                _ => Err(CallError::new(5, "no such service")),
            }
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(server::connection(stream, answer.clone()));
            }
        });
        port
    }

    #[tokio::test]
    async fn a_service_is_well_or_says_what_it_lacks() {
        let port = server().await;
        let ask = async |name: &str| check("127.0.0.1", port, name).await.map_err(|error| error.to_string());
        assert_eq!(ask("").await, Ok(()));
        assert_eq!(ask("well").await, Ok(()));
        for (name, words) in [
            ("ill", "NOT_SERVING"),
            ("unknown", "UNKNOWN"),
            ("unimplemented", "does not implement"),
            ("x", "code = NotFound"),
        ] {
            assert!(ask(name).await.unwrap_err().contains(words), "{name}: {:?}", ask(name).await);
        }
        assert!(check("127.0.0.1", 1, "").await.unwrap_err().to_string().contains("failed to connect"));
    }

    #[test]
    fn odd_answers_say_nothing() {
        assert_eq!(status(Bytes::from_static(&[8, 1])), SERVING);
        for odd in [&[][..], &[8], &[8, 0x80], &[9; 30], &[0x0a, 1, 1]] {
            assert_eq!(status(Bytes::copy_from_slice(odd)), 0);
        }
    }
}
