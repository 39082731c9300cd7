//! The body of requests and responses: one whole piece of bytes or a stream.
//!
//! Most bodies are whole, and stay so from the hub to the client in the same process: [`Body::into_bytes`] gives the
//! shared bytes back without copying.

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use std::pin::Pin;
use std::task::{Context, Poll};

/// What a stream may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request or response body.
pub struct Body(Inner);

enum Inner {
    Full(Option<Bytes>),
    Stream(UnsyncBoxBody<Bytes, BoxError>),
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is longer than allowed.
    #[error("request body is longer than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The sender stopped or broke the framing.
    #[error("cannot read the request body")]
    Read(#[source] BoxError),
}

impl Body {
    /// No bytes at all.
    pub fn empty() -> Self {
        Self(Inner::Full(None))
    }

    /// Whole bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self(Inner::Full(Some(bytes.into())))
    }

    /// A body that is produced piece by piece.
    pub fn stream<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(Inner::Stream(body.map_err(Into::into).boxed_unsync()))
    }

    /// The same body, which keeps something until it has been sent, or dropped.
    pub(crate) fn holding<T: Send + 'static>(self, held: T) -> Self {
        Self::stream(Held { body: self, _held: held })
    }

    /// Whether the body is whole (and not a stream such as a watch).
    pub fn is_full(&self) -> bool {
        matches!(self.0, Inner::Full(_))
    }

    /// Reads everything.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`] beyond `limit` bytes, [`BodyError::Read`] when the sender fails.
    pub async fn into_bytes(self, limit: usize) -> Result<Bytes, BodyError> {
        let mut stream = match self.0 {
            Inner::Full(bytes) => {
                let bytes = bytes.unwrap_or_default();
                return if bytes.len() > limit { Err(BodyError::TooLarge { limit }) } else { Ok(bytes) };
            }
            Inner::Stream(stream) => stream,
        };
        // a body that announces its length is refused before its first byte is read
        if stream.size_hint().lower() > limit as u64 {
            return Err(BodyError::TooLarge { limit });
        }
        let mut first: Option<Bytes> = None;
        let mut all = BytesMut::new();
        while let Some(frame) = stream.frame().await {
            let Ok(data) = frame.map_err(BodyError::Read)?.into_data() else { continue };
            let so_far = if all.is_empty() { first.as_ref().map_or(0, Bytes::len) } else { all.len() };
            if so_far + data.len() > limit {
                return Err(BodyError::TooLarge { limit });
            }
            match first.take() {
                None if all.is_empty() => first = Some(data),
                None => all.extend_from_slice(&data),
                Some(head) => {
                    all.extend_from_slice(&head);
                    all.extend_from_slice(&data);
                }
            }
        }
        Ok(first.unwrap_or_else(|| all.freeze()))
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Inner::Full(b) => write!(f, "Body({} bytes)", b.as_ref().map_or(0, Bytes::len)),
            Inner::Stream(_) => f.write_str("Body(stream)"),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::full(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::full(bytes)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Inner::Full(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            Inner::Stream(stream) => Pin::new(stream).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Inner::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Inner::Stream(stream) => stream.size_hint(),
        }
    }
}

struct Held<T> {
    body: Body,
    _held: T,
}

/// What is held is never looked at.
impl<T> Unpin for Held<T> {}

impl<T> HttpBody for Held<T> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use futures::stream;
    use http_body_util::StreamBody;

    fn chunks(parts: &[&'static str]) -> Body {
        let frames: Vec<Result<_, BoxError>> =
            parts.iter().map(|p| Ok(Frame::data(Bytes::from_static(p.as_bytes())))).collect();
        Body::stream(StreamBody::new(stream::iter(frames)))
    }

    #[tokio::test]
    async fn reads_whole_and_streamed_up_to_the_limit() {
        let shared = Bytes::from_static(b"abc");
        let got = Body::full(shared.clone()).into_bytes(3).await.unwrap();
        assert_eq!(got.as_ptr(), shared.as_ptr(), "whole bytes are handed on, not copied");
        assert!(matches!(Body::full("abcd").into_bytes(3).await, Err(BodyError::TooLarge { limit: 3 })));
        assert_eq!(chunks(&["ab", "c", "def"]).into_bytes(6).await.unwrap(), "abcdef");
        assert_eq!(chunks(&[]).into_bytes(6).await.unwrap(), "");
        assert!(matches!(chunks(&["ab", "c", "def"]).into_bytes(5).await, Err(BodyError::TooLarge { .. })));
        assert!(matches!(chunks(&["abcdef"]).into_bytes(5).await, Err(BodyError::TooLarge { .. })));
    }
}
