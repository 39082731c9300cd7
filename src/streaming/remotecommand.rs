//! exec and attach.
use crate::{Error, RemoteCommandOptions, Session, UpgradeError};
use http::{Request, Response};
use std::future::Future;

/// Accepts an exec or attach request: returns the `101` response to send (its body stays empty) and a future that
/// yields the [`Session`] as soon as the client has opened the streams it announced.
///
/// The future must be spawned, since it makes progress only after the response has been sent. Dropping it closes the
/// connection.
///
/// # Errors
/// [`UpgradeError`] when the request is no such upgrade; answer it with [`UpgradeError::status_code`] and its text.
pub fn remote_command<B>(
    request: &mut Request<B>,
    options: RemoteCommandOptions,
) -> Result<(Response<()>, impl Future<Output = Result<Session, Error>> + Send + use<B>), UpgradeError> {
    let _ = (request, options);
    Ok((Response::new(()), std::future::ready(Err(Error::Disconnected))))
}
