//! The terminal of this process.

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::{self, IsTerminal};

/// Whether the standard input is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Columns and rows of the terminal; `None` when there is none.
pub(crate) fn window_size() -> Option<(u16, u16)> {
    edge_sys::tty::window_size(&io::stdin())
}

/// Passes every key on as it is, until it is dropped.
pub(crate) struct RawTerminal(Termios);

impl RawTerminal {
    /// # Errors
    /// When the standard input is no terminal.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // nothing better can be done for a terminal that has gone
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
