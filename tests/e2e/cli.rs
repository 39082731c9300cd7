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

#[test]
fn config_says_what_comes_from_where() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let path = config.to_str().unwrap();
    std::fs::create_dir(dir.path().join("config.yaml.d")).unwrap();
    std::fs::write(&config, "tls-san: [a.test]\ncluster-domain: edge.test\ntoken: secret\n").unwrap();
    std::fs::write(dir.path().join("config.yaml.d/more.yaml"), "tls-san+: [b.test]\n").unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge"));
        command.args(args).env("EDGE_DATA_DIR", "/srv/edge").env_remove("EDGE_DEBUG").output().unwrap()
    };
    let flag = format!("--config={path}");
    let out = run(&["config", "show", "--output=json", "server", &flag, "--node-name=pi"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let all: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    for (key, value, source) in [
        ("tls-san", serde_json::json!(["a.test", "b.test"]), format!("{path}, {path}.d/more.yaml")),
        ("cluster-domain", "edge.test".into(), path.to_owned()),
        ("data-dir", "/srv/edge".into(), "EDGE_DATA_DIR".into()),
        ("node-name", "pi".into(), "flag".into()),
        ("https-listen-port", "6443".into(), "default".into()),
        ("token", "<hidden>".into(), path.to_owned()),
    ] {
        assert_eq!(all[key], serde_json::json!({"value": value, "source": source}), "{key}: {all:#}");
    }
    let out = run(&["config", "show", "server", &flag]);
    assert!(text(&out.stdout).lines().any(|l| l.starts_with("cluster-domain: edge.test ") && l.ends_with(path)));

    assert!(run(&["config", "validate", "server", &flag]).status.success());
    std::fs::write(&config, "cluster-cidr: 10.0.0.0/8\n").unwrap();
    let out = run(&["config", "validate", "server", &flag]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("overlaps"), "{}", text(&out.stderr));
    let out = run(&["config", "validate", "agent", "--config=/nowhere/config.yaml"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("/nowhere/config.yaml"), "{}", text(&out.stderr));
}
