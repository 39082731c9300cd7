//! Room `streaming`.
