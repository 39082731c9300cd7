//! Chaos: a cluster of hollow nodes to which random things happen, while a watch checks what must always hold.
//!
//! `EDGE_SIM_SEED` repeats the decisions of a run (not its timing), `EDGE_SIM_ROUNDS` makes it longer (1).

mod driver;
mod model;
mod objects;
mod outcome;
mod random;
mod watching;

use crate::harness::Cluster;
use crate::hollow::{Fleet, Options, Wire};
use driver::Driver;
use model::Model;
use parking_lot::Mutex;
use random::Random;
use std::sync::Arc;
use std::time::Duration;

const NODES: usize = 30;
/// Decisions of a round in which nothing but edits and evictions happens, and of one in which anything does.
const EDITS: usize = 40;
const DISTURBANCES: usize = 60;
/// For how long leases are taken when nodes are to be missed soon, in seconds, and usually.
const SHORT_LEASE: u32 = 4;
const LEASE: u32 = 40;
/// Between two decisions.
const PAUSE: Duration = Duration::from_millis(120);

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_the_cluster_becomes_what_is_wanted() {
    let seed = setting("EDGE_SIM_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let rounds = setting("EDGE_SIM_ROUNDS").unwrap_or(1);
    eprintln!("EDGE_SIM_SEED={seed}");
    let mut cluster = Cluster::start_with(&["--disable-agent"]);
    let client = crate::common::connect(&cluster).await;
    let options = Options { renewal: Duration::from_secs(1), ..Options::default() };
    let fleet = Fleet::start(client.clone(), options, NODES).await;
    let model = Arc::new(Mutex::new(Model::default()));
    let _watches = watching::watch(&client, objects::NAMESPACE, &model);
    let mut driver = Driver::new(&mut cluster, Wire::new(client), &fleet, model.clone(), Random::new(seed));
    driver.begin().await;
    for round in 0..rounds {
        calm(&mut driver).await;
        storm(&mut driver).await;
        driver.fleet.take_leases_for(LEASE);
        driver.relent().await;
        outcome::converges(&mut driver, seed, round).await;
    }
    eprintln!("{} events checked, {} evictions", model.lock().events, driver.evicted);
}

/// Rollouts and evictions alone keep as many pods available as was promised.
async fn calm(driver: &mut Driver<'_>) {
    outcome::settled(driver).await;
    {
        let mut model = driver.model.lock();
        (model.calm, model.outage) = (true, false);
    }
    for _ in 0..EDITS {
        driver.edit().await;
        tokio::time::sleep(PAUSE).await;
        outcome::no_faults(driver);
    }
    driver.model.lock().calm = false;
}

/// Nodes are lost, pods deleted, and edge is killed twice.
async fn storm(driver: &mut Driver<'_>) {
    driver.fleet.take_leases_for(SHORT_LEASE);
    let kills = [DISTURBANCES / 3, DISTURBANCES * 2 / 3];
    for number in 0..DISTURBANCES {
        if kills.contains(&number) {
            driver.start_job().await;
            driver.kill();
        }
        driver.disturb().await;
        tokio::time::sleep(PAUSE).await;
        outcome::no_faults(driver);
    }
}
