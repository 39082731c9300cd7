//! How fast nodes that stopped responding may be given up: zone by zone, slower when many fail at once, and not at all
//! when all do, since then it is more likely the control plane that is cut off.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Nodes a second, normally (Kubernetes' default).
const RATE: f64 = 0.1;
/// Nodes a second in a large zone of which most nodes fail.
const SECONDARY_RATE: f64 = 0.01;
/// A zone with more nodes is large.
const LARGE: usize = 50;
/// The part of a zone's nodes that must fail for the zone to count as disrupted.
const UNHEALTHY: f64 = 0.55;

/// Whether a zone works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Normal,
    /// Most of its nodes fail.
    Partial,
    /// All of its nodes fail.
    Full,
}

/// The state that the numbers of ready and other nodes make.
fn state(ready: usize, failing: usize) -> State {
    #[expect(clippy::cast_precision_loss, reason = "numbers of nodes")]
    let part = failing as f64 / (ready + failing).max(1) as f64;
    match (ready, failing) {
        (0, 1..) => State::Full,
        (_, 3..) if part >= UNHEALTHY => State::Partial,
        _ => State::Normal,
    }
}

/// Nodes a second that may be given up in a zone; zero for none.
fn rate(state: State, size: usize) -> f64 {
    match state {
        State::Normal | State::Full => RATE,
        State::Partial if size > LARGE => SECONDARY_RATE,
        State::Partial => 0.0,
    }
}

#[derive(Debug)]
struct Zone {
    state: State,
    rate: f64,
    /// When the next node may be given up.
    next: Option<Instant>,
    waiting: VecDeque<String>,
}

/// All zones.
#[derive(Debug, Default)]
pub(super) struct Zones {
    zones: BTreeMap<String, Zone>,
    /// Whether every zone fails.
    outage: bool,
}

/// What a new look at the nodes asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Nothing,
    /// Every node fails: taints are taken off, nobody is given up.
    OutageBegins,
    /// Some node works again: all have their grace period anew.
    OutageEnds,
}

impl Zones {
    /// Takes note of the numbers of ready and other nodes by zone.
    pub(super) fn update(&mut self, counts: &BTreeMap<String, (usize, usize)>) -> Turn {
        self.zones.retain(|name, _| counts.contains_key(name));
        for (name, (ready, failing)) in counts {
            let new = state(*ready, *failing);
            let zone = self.zones.entry(name.clone()).or_insert_with(|| Zone {
                state: State::Normal,
                rate: RATE,
                next: None,
                waiting: VecDeque::new(),
            });
            zone.state = new;
            zone.rate = rate(new, ready + failing);
        }
        let outage = !self.zones.is_empty() && self.zones.values().all(|z| z.state == State::Full);
        let turn = match (self.outage, outage) {
            (false, true) => Turn::OutageBegins,
            (true, false) => Turn::OutageEnds,
            _ => Turn::Nothing,
        };
        self.outage = outage;
        if outage {
            for zone in self.zones.values_mut() {
                zone.rate = 0.0;
            }
        }
        turn
    }

    /// Has a node wait for being given up.
    pub(super) fn enqueue(&mut self, zone: &str, node: &str) {
        if let Some(zone) = self.zones.get_mut(zone)
            && !zone.waiting.iter().any(|n| n == node)
        {
            zone.waiting.push_back(node.to_owned());
        }
    }

    /// Has a node no longer wait.
    pub(super) fn dequeue(&mut self, node: &str) {
        for zone in self.zones.values_mut() {
            zone.waiting.retain(|n| n != node);
        }
    }

    /// The next node of a zone to be given up, or after which time to ask again; `Err(None)`: not before something changes.
    pub(super) fn next(&mut self, zone: &str, now: Instant) -> Result<String, Option<Duration>> {
        let Some(zone) = self.zones.get_mut(zone) else { return Err(None) };
        if zone.rate == 0.0 || zone.waiting.is_empty() {
            return Err(None);
        }
        if let Some(next) = zone.next.filter(|n| *n > now) {
            return Err(Some(next - now));
        }
        zone.next = Some(now + Duration::from_secs_f64(1.0 / zone.rate));
        zone.waiting.pop_front().ok_or(None)
    }

    /// Gives a node its turn again, that it could not use.
    pub(super) fn give_back(&mut self, zone: &str, node: &str) {
        if let Some(zone) = self.zones.get_mut(zone) {
            zone.waiting.push_front(node.to_owned());
            zone.next = None;
        }
    }

    /// Whether every node fails.
    pub(super) fn is_outage(&self) -> bool {
        self.outage
    }

    /// The zones in which nodes wait.
    pub(super) fn waiting(&self) -> Vec<String> {
        self.zones.iter().filter(|(_, z)| !z.waiting.is_empty()).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_rates() {
        for (ready, failing, want, speed) in [
            (3, 0, State::Normal, RATE),
            (0, 0, State::Normal, RATE),
            (1, 2, State::Normal, RATE),
            (3, 3, State::Normal, RATE),
            (2, 3, State::Partial, 0.0),
            (30, 40, State::Partial, SECONDARY_RATE),
            (0, 1, State::Full, RATE),
        ] {
            assert_eq!(state(ready, failing), want, "{ready} {failing}");
            assert!((rate(want, ready + failing) - speed).abs() < f64::EPSILON, "{ready} {failing}");
        }
    }

    fn counts(of: &[(&str, usize, usize)]) -> BTreeMap<String, (usize, usize)> {
        of.iter().map(|(name, ready, failing)| ((*name).to_owned(), (*ready, *failing))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn one_node_at_a_time() {
        let mut zones = Zones::default();
        zones.update(&counts(&[("a", 3, 2)]));
        zones.enqueue("a", "n1");
        zones.enqueue("a", "n1");
        zones.enqueue("a", "n2");
        assert_eq!(zones.next("a", Instant::now()), Ok("n1".to_owned()));
        let Err(Some(wait)) = zones.next("a", Instant::now()) else { panic!("must wait") };
        assert_eq!(wait.as_secs(), 10);
        tokio::time::advance(wait).await;
        assert_eq!(zones.next("a", Instant::now()), Ok("n2".to_owned()));
        zones.give_back("a", "n2");
        assert_eq!(zones.next("a", Instant::now()), Ok("n2".to_owned()), "a turn that could not be used");
        assert_eq!(zones.next("a", Instant::now()), Err(None), "nobody waits any more");
        zones.enqueue("a", "n3");
        assert_eq!(zones.waiting(), ["a"]);
        zones.dequeue("n3");
        assert!(zones.waiting().is_empty());
    }

    #[test]
    fn an_outage_of_everything_stops_everything() {
        let mut zones = Zones::default();
        assert_eq!(zones.update(&counts(&[("a", 1, 0), ("b", 1, 1)])), Turn::Nothing);
        assert_eq!(zones.update(&counts(&[("a", 0, 1), ("b", 1, 1)])), Turn::Nothing, "one zone works");
        zones.enqueue("a", "n1");
        assert_eq!(zones.update(&counts(&[("a", 0, 1), ("b", 0, 2)])), Turn::OutageBegins);
        assert_eq!(zones.next("a", Instant::now()), Err(None));
        assert_eq!(zones.update(&counts(&[("a", 0, 1), ("b", 0, 2)])), Turn::Nothing);
        assert_eq!(zones.update(&counts(&[("a", 0, 1), ("b", 1, 1)])), Turn::OutageEnds);
        assert_eq!(zones.next("a", Instant::now()), Ok("n1".to_owned()));
        assert_eq!(zones.update(&counts(&[])), Turn::Nothing, "no nodes, no outage");
    }
}
