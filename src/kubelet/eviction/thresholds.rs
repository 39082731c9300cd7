//! How little of what the node has may be left: statements such as `memory.available<100Mi`, in the notation of kubelets.

use super::observe::{Observation, Observations};
use edge_api::Quantity;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What is measured, in the order in which a shortage is dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Signal {
    /// Memory in bytes.
    Memory,
    /// Bytes of the file system with the agent's state.
    NodeFs,
    /// Its inodes.
    NodeFsInodes,
    /// Bytes of the file system with the images.
    ImageFs,
    /// Its inodes.
    ImageFsInodes,
    /// Processes and threads.
    Pids,
}

impl Signal {
    const ALL: [Self; 6] =
        [Self::Memory, Self::NodeFs, Self::NodeFsInodes, Self::ImageFs, Self::ImageFsInodes, Self::Pids];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::NodeFs => "nodefs.available",
            Self::NodeFsInodes => "nodefs.inodesFree",
            Self::ImageFs => "imagefs.available",
            Self::ImageFsInodes => "imagefs.inodesFree",
            Self::Pids => "pid.available",
        }
    }

    pub(crate) fn resource(self) -> Resource {
        match self {
            Self::Memory => Resource::Memory,
            Self::NodeFs | Self::ImageFs => Resource::Storage,
            Self::NodeFsInodes | Self::ImageFsInodes => Resource::Inodes,
            Self::Pids => Resource::Pids,
        }
    }
}

/// What pods use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Memory,
    Storage,
    Inodes,
    Pids,
}

impl Resource {
    /// Kubernetes' name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Storage => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }

    /// An amount of it, as Kubernetes writes it.
    pub(crate) fn quantity(self, amount: i64) -> Quantity {
        match self {
            Self::Memory | Self::Storage => Quantity::from_bytes(amount),
            Self::Inodes | Self::Pids => Quantity::from_units(amount),
        }
    }
}

/// An amount, or so many percent of all there is. (As exact as Kubernetes': messages show it.)
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Amount(Quantity),
    Percent(f32),
}

impl Value {
    fn of(self, capacity: i64) -> Quantity {
        match self {
            Self::Amount(amount) => amount,
            Self::Percent(n) => Quantity::from_bytes((capacity as f64 * f64::from(n / 100.0)) as i64),
        }
    }
}

/// What is wrong with a statement; Kubernetes' words, where it has some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// It is no comparison.
    #[error("{0:?} is not SIGNAL<QUANTITY, such as memory.available<200Mi or nodefs.available<10%")]
    Form(String),
    /// Nothing of that name is measured.
    #[error("unsupported eviction signal {0}")]
    Signal(String),
    /// The value is neither a quantity nor a percentage.
    #[error("eviction threshold {0}: {1:?} is neither a quantity nor a percentage")]
    Value(&'static str, String),
    /// A quantity of nothing.
    #[error("eviction threshold {0} must be positive: {1}")]
    NotPositive(&'static str, String),
    /// No percentage.
    #[error("eviction percentage threshold {0} must be between 0% and 100%: {1}")]
    Percentage(&'static str, String),
}

/// Below what the node is short of something. The default is Kubernetes'.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds(BTreeMap<Signal, Value>);

impl Default for Thresholds {
    fn default() -> Self {
        let percent = |signal, n| (signal, Value::Percent(n));
        Self(BTreeMap::from([
            (Signal::Memory, Value::Amount(Quantity::from_bytes(100 << 20))),
            percent(Signal::NodeFs, 10.0),
            percent(Signal::NodeFsInodes, 5.0),
            percent(Signal::ImageFs, 15.0),
            percent(Signal::ImageFsInodes, 5.0),
            percent(Signal::Pids, 10.0),
        ]))
    }
}

impl FromStr for Thresholds {
    type Err = ThresholdError;

    /// Reads statements, separated by commas. What they do not name has no threshold.
    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let mut thresholds = BTreeMap::new();
        for statement in text.split(',').map(str::trim).filter(|s| !s.is_empty()) {
            let (name, value) = statement.split_once('<').ok_or_else(|| ThresholdError::Form(statement.to_owned()))?;
            let signal = Signal::ALL.into_iter().find(|signal| signal.name() == name);
            let signal = signal.ok_or_else(|| ThresholdError::Signal(name.to_owned()))?;
            match read_value(signal.name(), value)? {
                Some(value) => thresholds.insert(signal, value),
                None => thresholds.remove(&signal),
            };
        }
        Ok(Self(thresholds))
    }
}

/// `None` for what never or always is the case and counts as no threshold.
fn read_value(name: &'static str, text: &str) -> Result<Option<Value>, ThresholdError> {
    let malformed = || ThresholdError::Value(name, text.to_owned());
    if let Some(number) = text.strip_suffix('%') {
        if matches!(number, "0" | "100") {
            return Ok(None);
        }
        let percent = number.parse::<f32>().map_err(|_| malformed())?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(ThresholdError::Percentage(name, text.to_owned()));
        }
        return Ok(Some(Value::Percent(percent)));
    }
    let amount = Quantity::parse(text).map_err(|_| malformed())?;
    if amount.is_negative() || amount.is_zero() {
        return Err(ThresholdError::NotPositive(name, amount.to_string()));
    }
    Ok(Some(Value::Amount(amount)))
}

impl fmt::Display for Thresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (signal, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match value {
                Value::Amount(amount) => write!(f, "{comma}{}<{amount}", signal.name())?,
                Value::Percent(n) => write!(f, "{comma}{}<{n}%", signal.name())?,
            }
        }
        Ok(())
    }
}

impl Thresholds {
    /// What must stay free of a capacity; 0 without a threshold.
    pub(crate) fn reserved(&self, signal: Signal, capacity: u64) -> u64 {
        let capacity = i64::try_from(capacity).unwrap_or(i64::MAX);
        self.0.get(&signal).and_then(|value| u64::try_from(value.of(capacity).value()).ok()).unwrap_or(0)
    }

    /// What there is too little of.
    pub(crate) fn crossed(&self, observed: &Observations) -> Vec<Shortage> {
        let shortage = |(&signal, value): (&Signal, &Value)| {
            let &Observation { available, capacity } = observed.get(&signal)?;
            let threshold = value.of(capacity);
            let available = signal.resource().quantity(available);
            (threshold > available).then_some(Shortage { signal, threshold, available })
        };
        self.0.iter().filter_map(shortage).collect()
    }
}

/// Too little is left of something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shortage {
    pub(crate) signal: Signal,
    pub(crate) threshold: Quantity,
    pub(crate) available: Quantity,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(text: &str) -> Result<Thresholds, ThresholdError> {
        text.parse()
    }

    #[test]
    fn statements_are_read() {
        for (text, shown) in [
            ("", ""),
            ("memory.available<200Mi", "memory.available<200Mi"),
            ("nodefs.available<10%,memory.available<1024Ki", "memory.available<1Mi,nodefs.available<10%"),
            (" pid.available<1k , imagefs.inodesFree<2.5%", "imagefs.inodesFree<2.5%,pid.available<1k"),
            ("nodefs.available<10%,nodefs.available<20%", "nodefs.available<20%"),
            ("nodefs.available<0%,memory.available<100%,imagefs.available<1Gi", "imagefs.available<1Gi"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown, "{text}");
        }
        let usual = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,\
                     imagefs.inodesFree<5%,pid.available<10%";
        assert_eq!(Thresholds::default().to_string(), usual);
        assert_eq!(parse(usual).unwrap(), Thresholds::default());
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, error) in [
            ("memory.available", "\"memory.available\" is not SIGNAL<QUANTITY"),
            ("memory.available=1Mi", "is not SIGNAL<QUANTITY"),
            ("disk.available<1Gi", "unsupported eviction signal disk.available"),
            ("<1Gi", "unsupported eviction signal "),
            ("memory.available<", "eviction threshold memory.available: \"\" is neither"),
            ("memory.available<much", "eviction threshold memory.available: \"much\" is neither"),
            ("memory.available<x%", "\"x%\" is neither a quantity nor a percentage"),
            ("memory.available<0", "eviction threshold memory.available must be positive: 0"),
            ("memory.available<-1Mi", "must be positive: -1Mi"),
            (
                "nodefs.available<120%",
                "eviction percentage threshold nodefs.available must be between 0% and 100%: 120%",
            ),
            ("nodefs.available<-1%", "must be between 0% and 100%: -1%"),
            ("nodefs.available<NaN%", "must be between 0% and 100%: NaN%"),
        ] {
            let told = parse(text).unwrap_err().to_string();
            assert!(told.contains(error), "{text}: {told}");
        }
    }

    #[test]
    fn shortages_come_in_order() {
        let observed = |memory, disk| {
            let of = |signal, available, capacity| (signal, Observation { available, capacity });
            Observations::from([of(Signal::Memory, memory, 1 << 30), of(Signal::NodeFs, disk, 400 << 20)])
        };
        let thresholds = parse("nodefs.available<25%,memory.available<100Mi,pid.available<10%").unwrap();
        let crossed = |memory, disk| thresholds.crossed(&observed(memory, disk));
        assert_eq!(crossed(100 << 20, 100 << 20), [], "exactly so much may be left");
        let both = crossed((100 << 20) - 1, 99 << 20);
        let shown: Vec<String> =
            both.iter().map(|s| format!("{} {} {}", s.signal.name(), s.threshold, s.available)).collect();
        assert_eq!(shown, ["memory.available 100Mi 104857599", "nodefs.available 100Mi 99Mi"]);
        assert_eq!(thresholds.reserved(Signal::NodeFs, 1000), 250);
        assert_eq!(thresholds.reserved(Signal::Memory, 1), 100 << 20);
        assert_eq!(thresholds.reserved(Signal::ImageFs, 1000), 0);
    }
}
