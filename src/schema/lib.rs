//! Room `schema`.
