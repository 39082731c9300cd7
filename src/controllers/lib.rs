//! Room `controllers`.
