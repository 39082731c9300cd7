//! End-to-end tests: the real binary, real kubectl, real containers, the real kernel. They need root.
//!
//! Each test starts its own cluster (see [`harness`]). `EDGE_E2E_KEEP=1` keeps a failed one for a look;
//! `EDGE_LOG=trace` makes edge say more.
#![expect(clippy::unwrap_used, reason = "tests")]

mod harness;

mod aggregation;
mod apps;
mod audit;
mod autoscale;
mod backup;
mod bad_input;
mod cli;
mod coexistence;
mod commands;
mod conformance;
mod controllers;
mod csi;
mod custom;
mod device_drivers;
mod device_plugins;
mod device_sharing;
mod devices;
mod etcd;
mod eviction;
mod healing;
mod idle;
mod images;
mod install;
mod interrupted;
mod join;
mod kubectl;
mod kubelet_port;
mod manifests;
mod migrate;
mod network;
mod node_clock;
mod node_joining;
mod node_life;
mod offline;
mod partition;
mod pod_network;
mod pods;
mod policies;
mod power;
mod read_only;
mod restart;
mod rust_client;
mod scheduling;
mod services;
mod several_servers;
mod streams;
mod vm;
mod volumes;
mod walkthrough;
mod wasm;
mod wasm_dense;
mod wasm_images;
mod wasm_run;
mod webhooks;
