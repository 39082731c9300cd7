//! What is in the packet filter and why: services, host ports of pods, and policies of pods.
//!
//! Comes in: changes from the room `proxy` and from attached pods. Goes out: changes of the nftables tables, and of the
//! kernel's connections where these would go on to lead to the wrong place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::conntrack::{self, Affected};
use crate::nft::{Change, Networks, PodRules, Table};
use crate::{Error, Frontend, Isolation, PolicyChanges, Protocol, Route, ServiceChanges, ServiceTable};

/// Told the UID and the addresses of every pod that is attached.
type Attached = Box<dyn Fn(&str, &[IpAddr]) + Send>;

/// A pod that is attached.
#[derive(Debug)]
struct Pod {
    addresses: Vec<IpAddr>,
    host_ports: Vec<(Frontend, Route)>,
}

/// The rules of this node. A change that fails is part of what is wanted nevertheless: the next one tries it again.
pub(crate) struct Rules {
    table: Table,
    /// The frontends that services have; until the room `proxy` has said so, what an earlier process left in the table.
    services: BTreeSet<Frontend>,
    pods: BTreeMap<String, Pod>,
    isolation: BTreeMap<String, Isolation>,
    /// Whether new pods are closed until it is known what they may do.
    enforcing: bool,
    /// Pods that are closed for that.
    closed: BTreeSet<String>,
    attached: Option<Attached>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("services", &self.services.len())
            .field("pods", &self.pods)
            .finish_non_exhaustive()
    }
}

impl Rules {
    /// Opens the tables. `pods` are those of an earlier process: UID, addresses, host ports.
    pub(crate) fn open(
        networks: Vec<Networks>,
        pods: impl Iterator<Item = (String, Vec<IpAddr>, Vec<(Frontend, Route)>)>,
    ) -> Result<Self, Error> {
        let table = Table::open(networks)?;
        let pods: BTreeMap<String, Pod> =
            pods.map(|(uid, addresses, host_ports)| (uid, Pod { addresses, host_ports })).collect();
        let host_ports: BTreeSet<Frontend> =
            pods.values().flat_map(|pod| &pod.host_ports).map(|(frontend, _)| *frontend).collect();
        let mut rules = Self {
            services: table.frontends().difference(&host_ports).copied().collect(),
            table,
            pods,
            isolation: BTreeMap::new(),
            enforcing: false,
            closed: BTreeSet::new(),
            attached: None,
        };
        // Pods that were attached when the table was lost, and addresses of pods that are gone.
        let all: ServiceChanges = rules.host_port_changes(&host_ports);
        let known: BTreeSet<IpAddr> = rules.pods.values().flat_map(|pod| pod.addresses.clone()).collect();
        let gone = rules.table.isolated().difference(&known).map(|address| (*address, None)).collect();
        rules.apply(all, &Change { pods: gone, ..Change::default() })?;
        Ok(rules)
    }

    /// What some frontends should lead to, now that no service has said otherwise.
    fn host_port_changes<'a>(&self, frontends: impl IntoIterator<Item = &'a Frontend>) -> ServiceChanges {
        let all: BTreeMap<Frontend, &Route> =
            self.pods.values().flat_map(|pod| &pod.host_ports).map(|(frontend, route)| (*frontend, route)).collect();
        let mut changes = ServiceChanges::new();
        for frontend in frontends.into_iter().filter(|frontend| !self.services.contains(*frontend)) {
            changes.insert(*frontend, all.get(frontend).map(|route| (*route).clone()));
        }
        changes
    }

    /// The one place that writes.
    fn apply(&mut self, services: ServiceChanges, change: &Change<'_>) -> Result<(), Error> {
        let udp = || services.keys().filter(|frontend| frontend.protocol == Protocol::Udp);
        let before: BTreeMap<Frontend, BTreeSet<_>> =
            udp().map(|frontend| (*frontend, self.table.endpoints_of(frontend))).collect();
        let sticky = self.table.with_affinity(services.keys());
        self.table.apply(&Change {
            services: Some(&services),
            pods: change.pods.clone(),
            policies: change.policies,
        })?;
        if !sticky.is_empty() {
            self.table.forget_stale_affinity(&sticky)?;
        }
        let mut affected = Affected::new();
        for (frontend, old) in before {
            let now = self.table.endpoints_of(&frontend);
            if !old.is_subset(&now) || old.is_empty() != now.is_empty() {
                affected.insert(frontend, now);
            }
        }
        let forgotten = conntrack::forget(&affected)?;
        tracing::debug!(frontends = services.len(), forgotten, "rules written");
        Ok(())
    }

    /// New routes of some frontends.
    pub(crate) fn change_services(&mut self, mut changes: ServiceChanges) -> Result<(), Error> {
        let ended: Vec<Frontend> = changes.iter().filter(|(_, r)| r.is_none()).map(|(frontend, _)| *frontend).collect();
        self.services.extend(changes.keys());
        for frontend in &ended {
            self.services.remove(frontend);
        }
        changes.extend(self.host_port_changes(&ended));
        self.apply(changes, &Change::default())
    }

    /// The routes of all frontends: others end.
    pub(crate) fn set_services(&mut self, table: ServiceTable) -> Result<(), Error> {
        let mut changes: ServiceChanges = self.services.iter().map(|frontend| (*frontend, None)).collect();
        changes.extend(table.into_iter().map(|(frontend, route)| (frontend, Some(route))));
        self.change_services(changes)
    }

    /// From now on a pod is closed from when it is attached until it is known what it may do. `attached` is told about every
    /// pod that is attached; it must not call back.
    pub(crate) fn enforce_policies(&mut self, attached: Attached) {
        self.enforcing = true;
        for (uid, pod) in &self.pods {
            attached(uid, &pod.addresses);
        }
        self.attached = Some(attached);
    }

    /// News about policies.
    pub(crate) fn change_policies(&mut self, changes: &PolicyChanges) -> Result<(), Error> {
        if changes.complete {
            self.isolation.clear();
        }
        for (uid, isolation) in &changes.pods {
            match isolation {
                Some(isolation) => drop(self.isolation.insert(uid.clone(), isolation.clone())),
                None => drop(self.isolation.remove(uid)),
            }
            self.closed.remove(uid);
        }
        let isolation = std::mem::take(&mut self.isolation);
        let mut pods = Vec::new();
        for uid in changes.pods.keys() {
            let Some((known, pod)) = isolation.get(uid).zip(self.pods.get(uid)) else { continue };
            pods.extend(pod.addresses.iter().map(|address| (*address, Some(PodRules::Known(known)))));
        }
        let change = Change { pods, policies: Some(changes), ..Change::default() };
        let result = self.apply(ServiceChanges::new(), &change);
        self.isolation = isolation;
        result
    }

    /// Puts the rules of a pod in force, before its first packet.
    pub(crate) fn attach(
        &mut self,
        uid: &str,
        addresses: Vec<IpAddr>,
        host_ports: Vec<(Frontend, Route)>,
    ) -> Result<(), Error> {
        let pod = Pod { addresses, host_ports };
        let before = self.pods.insert(uid.to_owned(), pod);
        let fresh = before.is_none();
        let changed = before.as_ref().is_none_or(|before| {
            let now = &self.pods[uid];
            before.addresses != now.addresses || before.host_ports != now.host_ports
        });
        if let (true, Some(attached)) = (fresh || changed, &self.attached) {
            attached(uid, &self.pods[uid].addresses);
        }
        let frontends: BTreeSet<Frontend> = before
            .iter()
            .chain(self.pods.get(uid))
            .flat_map(|pod| &pod.host_ports)
            .map(|(frontend, _)| *frontend)
            .collect();
        let services = if changed { self.host_port_changes(&frontends) } else { ServiceChanges::new() };
        if fresh && self.enforcing && !self.isolation.contains_key(uid) {
            self.closed.insert(uid.to_owned());
        }
        self.write_pod(uid, services)
    }

    fn write_pod(&mut self, uid: &str, services: ServiceChanges) -> Result<(), Error> {
        let isolation = self.isolation.remove(uid);
        let rules = match &isolation {
            Some(isolation) => Some(PodRules::Known(isolation)),
            None => self.closed.contains(uid).then_some(PodRules::Closed),
        };
        let addresses = self.pods.get(uid).map(|pod| pod.addresses.clone()).unwrap_or_default();
        // What an earlier process put in force for a pod stays until something better is known.
        let pods = match rules {
            Some(rules) => addresses.iter().map(|address| (*address, Some(rules))).collect(),
            None => Vec::new(),
        };
        let result = if services.is_empty() && pods.is_empty() {
            Ok(())
        } else {
            self.apply(services, &Change { pods, ..Change::default() })
        };
        self.isolation.extend(isolation.map(|isolation| (uid.to_owned(), isolation)));
        result
    }

    /// Takes the rules of a pod away, after its last packet.
    pub(crate) fn detach(&mut self, uid: &str) -> Result<(), Error> {
        self.closed.remove(uid);
        let Some(pod) = self.pods.remove(uid) else { return Ok(()) };
        let frontends: Vec<Frontend> = pod.host_ports.iter().map(|(frontend, _)| *frontend).collect();
        let services = self.host_port_changes(&frontends);
        let pods: Vec<_> = pod.addresses.iter().map(|address| (*address, None)).collect();
        self.apply(services, &Change { pods, ..Change::default() })
    }

    /// What the kernel holds, in words.
    pub(crate) fn in_kernel(&self) -> Result<BTreeSet<String>, Error> {
        self.table.in_kernel()
    }

    /// Whether the tables were in the kernel when this process began.
    pub(crate) fn adopted(&self) -> bool {
        self.table.adopted
    }

    /// Writes the tables anew if others have taken one away; tells whether it was so.
    pub(crate) fn restore(&mut self) -> Result<bool, Error> {
        self.table.restore()
    }

    /// Removes everything.
    pub(crate) fn delete(&mut self) -> Result<(), Error> {
        self.table.delete()
    }
}
