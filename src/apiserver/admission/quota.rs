//! `ResourceQuota`: what a namespace may use is charged before it is used.
//!
//! The charge goes into the quota's status, on condition that nobody charged meanwhile. What is not used after all, or no
//! longer, the quota controller takes out again by counting.

use super::{AttributesExt, Cluster};
use edge_api::quota::{Amounts, add, amounts, concerns, in_words, includes, unsaid, usage};
use edge_api::{Object, Quantity, Reason, Status};
use edge_registry::{Attributes, Operation};
use jiff::Timestamp;
use serde_json::Value;

/// Whether a write can use anything at all.
fn is_charged(a: &Attributes<'_>) -> bool {
    if a.namespace.is_empty() || !a.info.is_stored() || a.info.plural == "events" {
        return false;
    }
    match a.operation {
        Operation::Create => a.subresource.is_empty(),
        Operation::Update if a.is("", "services") || a.is("", "persistentvolumeclaims") => true,
        Operation::Update => a.info.group.is_empty() && a.info.plural == "pods" && a.subresource == "resize",
        Operation::Delete | Operation::Connect => false,
    }
}

/// Charges all quotas that are about the object, or refuses it.
pub(super) async fn charge(cluster: &dyn Cluster, a: &Attributes<'_>, object: &Object) -> Result<(), Status> {
    if !is_charged(a) {
        return Ok(());
    }
    let quotas = cluster.list("", "resourcequotas", a.namespace).await?;
    if quotas.is_empty() {
        return Ok(());
    }
    let (group, resource) = (a.info.group.as_ref(), a.info.plural.as_ref());
    let now = Timestamp::now();
    let mut delta = usage(group, resource, object, now);
    if let Some((name, _)) = delta.iter().find(|(_, amount)| amount.is_negative()) {
        return Err(a.forbidden(Some(object), &format!("quota usage is negative for resource(s): {name}")));
    }
    if let Some(old) = a.old {
        let before = usage(group, resource, old, now);
        for (name, amount) in &mut delta {
            let used = before.get(name).copied().unwrap_or(Quantity::ZERO);
            *amount = if *amount > used { amount.sub(&used) } else { Quantity::ZERO };
        }
    }
    let mut concerned = Vec::new();
    for quota in &quotas {
        if !includes(quota, group, resource, object) {
            continue;
        }
        let hard = amounts(quota.pointer("/status/hard"));
        let names: Vec<&str> = hard.keys().map(String::as_str).filter(|n| concerns(group, resource, n)).collect();
        if names.is_empty() {
            continue;
        }
        if a.is("", "pods")
            && let Some(why) = unsaid(object, names.iter().copied())
        {
            return Err(a.forbidden(Some(object), &format!("failed quota: {}: {why}", quota.name())));
        }
        let used = amounts(quota.pointer("/status/used"));
        if names.iter().any(|n| !used.contains_key(*n)) {
            let why = format!("status unknown for quota: {}, resources: {}", quota.name(), names.join(","));
            return Err(a.forbidden(Some(object), &why));
        }
        let charge: Amounts = delta
            .iter()
            .filter(|(name, amount)| names.contains(&name.as_str()) && !amount.is_zero())
            .map(|(name, amount)| (name.clone(), *amount))
            .collect();
        if !charge.is_empty() {
            charged(quota, &charge).map_err(|why| a.forbidden(Some(object), &why))?;
            concerned.push((quota.name().to_owned(), charge));
        }
    }
    if a.dry_run {
        return Ok(());
    }
    for (name, charge) in &concerned {
        let change = |quota: Object| charged(&quota, charge).map_err(|why| a.forbidden(Some(object), &why));
        match cluster.update_status("", "resourcequotas", a.namespace, name, &change).await {
            // the quota is gone: nothing to charge
            Err(e) if e.reason == Reason::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// A quota after a charge, or why it does not allow it.
fn charged(quota: &Object, charge: &Amounts) -> Result<Object, String> {
    let (hard, used) = (amounts(quota.pointer("/status/hard")), amounts(quota.pointer("/status/used")));
    let mut sum = used.clone();
    add(&mut sum, charge);
    let exceeded = |name: &String| sum.get(name).zip(hard.get(name)).is_some_and(|(sum, hard)| sum > hard);
    let over: Vec<&String> = charge.keys().filter(|n| exceeded(n)).collect();
    if !over.is_empty() {
        let of = |all: &Amounts| in_words(&over.iter().filter_map(|n| Some(((*n).clone(), *all.get(*n)?))).collect());
        let (requested, used, limited) = (of(charge), of(&used), of(&hard));
        let name = quota.name();
        return Err(format!("exceeded quota: {name}, requested: {requested}, used: {used}, limited: {limited}"));
    }
    let mut changed = quota.clone();
    let slot = edge_api::object::object_entry(changed.section_mut("status"), "used");
    for name in charge.keys() {
        if let Some(amount) = sum.get(name) {
            slot.insert(name.clone(), Value::from(amount.to_string()));
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::{Fake, POD, attributes};
    use super::*;
    use futures::executor::block_on;
    use serde_json::json;

    fn quota(name: &str, scopes: Value, hard: Value, used: Value) -> (String, Value) {
        let value = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"hard": hard, "scopes": scopes},
            "status": {"hard": hard, "used": used}});
        (format!("/resourcequotas/ns/{name}"), value)
    }

    fn cluster(quotas: Vec<(String, Value)>) -> Fake {
        quotas.into_iter().fold(Fake::default(), |fake, (key, value)| fake.with(&key, value))
    }

    fn create(cluster: &Fake, pod: Value) -> Result<Vec<String>, String> {
        let pod = Object::from_value(pod).unwrap();
        attributes(Operation::Create, POD, "ns", "p", |a| block_on(charge(cluster, a, &pod))).map_err(|e| e.message)?;
        let all = cluster.changed.lock();
        Ok(all.iter().map(|q| format!("{} {}", q.name(), in_words(&amounts(q.pointer("/status/used"))))).collect())
    }

    fn pod(cpu: &str) -> Value {
        json!({"metadata": {"name": "p"}, "status": {"qosClass": "Burstable"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    #[test]
    fn what_fits_is_charged_and_what_does_not_is_refused() {
        let one = || {
            cluster(vec![
                quota(
                    "q",
                    json!([]),
                    json!({"pods": "2", "requests.cpu": "1"}),
                    json!({"pods": "1", "requests.cpu": "400m"}),
                ),
                quota("services", json!([]), json!({"services": "1"}), json!({"services": "0"})),
                quota("best", json!(["BestEffort"]), json!({"pods": "0"}), json!({"pods": "0"})),
            ])
        };
        assert_eq!(create(&one(), pod("600m")).unwrap(), ["q pods=2,requests.cpu=1"]);
        assert_eq!(
            create(&one(), pod("601m")).unwrap_err(),
            "pods \"p\" is forbidden: exceeded quota: q, requested: requests.cpu=601m, used: requests.cpu=400m, limited: requests.cpu=1"
        );
        let silent = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        assert_eq!(
            create(&one(), silent).unwrap_err(),
            "pods \"p\" is forbidden: failed quota: q: must specify requests.cpu for: c"
        );
        let mut best = pod("1m");
        best["status"]["qosClass"] = "BestEffort".into();
        assert!(
            create(&one(), best)
                .unwrap_err()
                .contains("exceeded quota: best, requested: pods=1, used: pods=0, limited: pods=0")
        );
        assert!(create(&cluster(Vec::new()), pod("9")).unwrap().is_empty());
        let unknown = cluster(vec![quota("q", json!([]), json!({"pods": "2"}), json!({}))]);
        assert!(create(&unknown, pod("1")).unwrap_err().contains("status unknown for quota: q, resources: pods"));
    }

    #[test]
    fn a_change_is_charged_with_what_it_adds() {
        let cluster = cluster(vec![quota(
            "q",
            json!([]),
            json!({"requests.storage": "5Gi"}),
            json!({"requests.storage": "2Gi"}),
        )]);
        let claim = |size: &str| {
            Object::from_value(
                json!({"metadata": {"name": "c"}, "spec": {"resources": {"requests": {"storage": size}}}}),
            )
            .unwrap()
        };
        let update = |size: &str| {
            let (old, new) = (claim("2Gi"), claim(size));
            attributes(Operation::Update, ("", "persistentvolumeclaims", "PersistentVolumeClaim"), "ns", "c", |a| {
                block_on(charge(&cluster, &Attributes { old: Some(&old), ..*a }, &new))
            })
        };
        update("1Gi").unwrap();
        assert!(cluster.changed.lock().is_empty(), "less costs nothing");
        update("5Gi").unwrap();
        assert_eq!(cluster.changed.lock()[0].pointer("/status/used/requests.storage").unwrap(), "5Gi");
        assert!(update("6Gi").unwrap_err().message.contains("requested: requests.storage=4Gi"));
    }
}
