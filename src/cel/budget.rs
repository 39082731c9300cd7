//! What evaluations may cost. A unit is about a step; going through ten bytes of text is one, too, as in cel-go.

use crate::error::Error;

/// What one evaluation may cost (Kubernetes' `PerCallLimit`).
pub const PER_CALL: u64 = 1_000_000;
/// What all evaluations for one request may cost (Kubernetes' `RuntimeCELCostBudget`).
pub const PER_REQUEST: u64 = 10_000_000;

/// What is left.
#[derive(Clone, Debug)]
pub struct Budget {
    request: u64,
    call: u64,
    depth: u16,
}

/// Levels of evaluation at most, those of variables that are worked out on the way included.
const DEEPEST: u16 = 300;

impl Default for Budget {
    fn default() -> Self {
        Self { request: PER_REQUEST, call: PER_CALL, depth: 0 }
    }
}

impl Budget {
    /// So much for one evaluation, so much for all.
    pub fn new(call: u64, request: u64) -> Self {
        Self { request, call, depth: 0 }
    }

    /// What is left for all.
    pub fn left(&self) -> u64 {
        self.request
    }

    /// Begins an evaluation; gives back what the one around it had left.
    pub(crate) fn begin(&mut self) -> u64 {
        std::mem::replace(&mut self.call, PER_CALL)
    }

    /// Goes on with the evaluation around.
    pub(crate) fn resume(&mut self, call: u64) {
        self.call = call;
    }

    /// Goes a level down.
    pub(crate) fn enter(&mut self) -> Result<(), Error> {
        if self.depth >= DEEPEST {
            return Err(Error::new("evaluation is nested too deeply"));
        }
        self.depth += 1;
        Ok(())
    }

    /// Comes back from a level.
    pub(crate) fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    /// Takes units.
    pub(crate) fn pay(&mut self, units: u64) -> Result<(), Error> {
        let Some(request) = self.request.checked_sub(units) else {
            self.request = 0;
            return Err(Error::BudgetSpent);
        };
        self.request = request;
        self.call = self.call.checked_sub(units).ok_or(Error::TooExpensive)?;
        Ok(())
    }

    /// Takes the units for going through so many bytes.
    pub(crate) fn pay_bytes(&mut self, bytes: usize) -> Result<(), Error> {
        self.pay(1 + bytes as u64 / 10)
    }
}
