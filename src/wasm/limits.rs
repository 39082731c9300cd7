//! What an instance may use of memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::ResourceLimiter;

/// Bytes that an element of a table takes.
const TABLE_ELEMENT: usize = size_of::<usize>();

/// Counts the bytes of all memories and tables of an instance, and refuses to let them grow beyond a limit.
#[derive(Debug)]
pub(crate) struct MemoryLimiter {
    limit: usize,
    used: usize,
    denied: Option<usize>,
    /// What all instances of the program use together, which the limit is for, too.
    total: Option<Arc<AtomicU64>>,
}

impl MemoryLimiter {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        let limit = limit.map_or(usize::MAX, |l| usize::try_from(l).unwrap_or(usize::MAX));
        Self { limit, used: 0, denied: None, total: None }
    }

    /// Adds what is used to a sum, as long as this lives. The limit is for the sum then.
    pub(crate) fn counted_in(mut self, total: Option<Arc<AtomicU64>>) -> Self {
        self.total = total;
        self
    }

    /// In words what was refused, if anything was.
    pub(crate) fn denied(&self) -> Option<String> {
        let wanted = self.denied?;
        Some(format!("it wanted {wanted} bytes of memory and may use {}", self.limit))
    }

    fn grow(&mut self, bytes: usize) -> bool {
        let wanted = match &self.total {
            Some(total) => {
                let sum = |used: u64| usize::try_from(used).unwrap_or(usize::MAX).saturating_add(bytes);
                let within = |used| Some(sum(used)).filter(|sum| *sum <= self.limit).map(|sum| sum as u64);
                match total.try_update(Ordering::Relaxed, Ordering::Relaxed, within) {
                    Ok(_) => 0,
                    Err(used) => sum(used),
                }
            }
            None => self.used.saturating_add(bytes),
        };
        if wanted > self.limit {
            self.denied = Some(wanted);
            return false;
        }
        self.used = self.used.saturating_add(bytes);
        true
    }
}

impl Drop for MemoryLimiter {
    fn drop(&mut self) {
        if let Some(total) = &self.total {
            total.fetch_sub(self.used as u64, Ordering::Relaxed);
        }
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        // Beyond what the module itself declared: the engine refuses, and that is no matter of the limit.
        if maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        Ok(self.grow(desired.saturating_sub(current)))
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        Ok(self.grow(desired.saturating_sub(current).saturating_mul(TABLE_ELEMENT)))
    }

    fn instances(&self) -> usize {
        usize::MAX
    }

    fn tables(&self) -> usize {
        usize::MAX
    }

    fn memories(&self) -> usize {
        usize::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_of_one_program_share_its_limit() {
        let total = Arc::new(AtomicU64::new(0));
        let new = || MemoryLimiter::new(Some(100)).counted_in(Some(Arc::clone(&total)));
        let (mut one, mut other) = (new(), new());
        assert!(one.grow(60) && !other.grow(50) && other.grow(40) && !one.grow(1));
        assert!(other.denied().is_some_and(|words| words.contains("110")));
        drop(one);
        assert!(other.grow(60) && total.load(Ordering::Relaxed) == 100);
        drop(other);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }
}
