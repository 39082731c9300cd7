//! Terminal sizes, which come as JSON objects one after the other in a byte stream.

use crate::TerminalSize;
use serde::Deserialize;
use tokio::sync::mpsc;

/// Sizes that may wait; nobody drags a window faster than a terminal can be resized.
const QUEUE: usize = 64;
/// Most bytes of one unfinished object.
const LIMIT: usize = 1024;

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// Parses sizes and passes them on.
pub(crate) struct ResizeSender {
    /// `None` after something that is no size; the terminal then stays as it is.
    sizes: Option<mpsc::Sender<TerminalSize>>,
    unparsed: Vec<u8>,
}

impl ResizeSender {
    pub(crate) fn new() -> (Self, mpsc::Receiver<TerminalSize>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { sizes: Some(sender), unparsed: Vec::new() }, receiver)
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let Some(sizes) = &self.sizes else { return };
        self.unparsed.extend_from_slice(bytes);
        let mut parser = serde_json::Deserializer::from_slice(&self.unparsed).into_iter::<Size>();
        let mut broken = false;
        for size in parser.by_ref() {
            match size {
                // A full queue means that nobody resizes: dropping is as good as waiting, and does not block the rest.
                Ok(size) => drop(sizes.try_send(TerminalSize { columns: size.width, rows: size.height })),
                Err(error) => {
                    broken = !error.is_eof();
                    break;
                }
            }
        }
        let parsed = parser.byte_offset();
        self.unparsed.drain(..parsed);
        if broken || self.unparsed.len() > LIMIT {
            (self.sizes, self.unparsed) = (None, Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_any_pieces_and_garbage_ends_them() {
        let (mut sender, mut sizes) = ResizeSender::new();
        for piece in
            ["{\"Width\":80,", "\"Height\":24}\n{\"Width\":1,\"Height\":2}", "{\"Wid", "th\":3,\"Height\":4}\n"]
        {
            sender.feed(piece.as_bytes());
        }
        let mut seen = Vec::new();
        while let Ok(size) = sizes.try_recv() {
            seen.push((size.columns, size.rows));
        }
        assert_eq!(seen, [(80, 24), (1, 2), (3, 4)]);
        sender.feed(b"nonsense{\"Width\":3,\"Height\":4}");
        assert_eq!(sizes.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        let (mut sender, mut sizes) = ResizeSender::new();
        sender.feed(&b"{\"Width\":1,\"x\":\""[..]);
        sender.feed(&[b'a'; 2000]);
        assert_eq!(sizes.try_recv(), Err(mpsc::error::TryRecvError::Disconnected), "an endless object");
    }
}
