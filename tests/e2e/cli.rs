//! The command line: help, mistakes, data directories that edge must not touch.

use crate::harness::Cluster;
use std::process::{Command, Output};

fn edge(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edge")).args(args).output().unwrap()
}

fn text(out: &[u8]) -> String {
    String::from_utf8_lossy(out).into_owned()
}

#[test]
fn help_explains_every_flag() {
    let out = edge(&["server", "--help"]);
    assert!(out.status.success());
    let help = text(&out.stdout);
    for flag in ["--data-dir", "--tls-san", "--cluster-cidr", "--node-name", "--disable-agent", "--config"] {
        assert!(help.contains(flag), "{flag}: {help}");
    }
}

#[test]
fn mistakes_are_refused_before_anything_happens() {
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--data-dir={}", dir.path().join("data").display());
    let config = dir.path().join("config.yaml");
    let out = edge(&["server", &data, "--node-nmae=a"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("--node-name"), "{}", text(&out.stderr));
    std::fs::write(&config, "node-nmae: a\n").unwrap();
    let out = edge(&["server", &data, &format!("--config={}", config.display())]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("did you mean \"node-name\""), "{}", text(&out.stderr));
    let out = edge(&["server", &data, "--cluster-cidr=nonsense"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("--cluster-cidr"));
    assert!(!dir.path().join("data").exists());
}

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    let cluster = Cluster::start();
    let out = cluster.server_command().arg("--https-listen-port=7443").output().unwrap();
    assert!(!out.status.success());
    let reason = text(&out.stderr);
    assert!(reason.contains("another edge works there (process "), "{reason}");
    cluster.kubectl(&["get", "nodes"]);
}
