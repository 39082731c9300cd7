//! `edge token`: bootstrap tokens, with which machines join until the tokens expire.

use super::access::{Access, Cluster};
use super::fail;
use super::join_tokens::{self, SERVER_TOKEN};
use super::server::{Failure, doing};
use crate::config::parse_time;
use clap::{Args, Subcommand, ValueEnum};
use edge_client::{Api, DeleteParams, ListParams, PostParams};
use edge_pki::{JoinToken, full_token, random_secret};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const PREFIX: &str = "bootstrap-token-";
const DEFAULT_GROUP: &str = "system:bootstrappers:edge:default-node-token";

/// `edge token`
#[derive(Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a token
    Create {
        /// The token, such as abcdef.0123456789abcdef [default: a random one]
        token: Option<String>,
        /// How long it is valid, such as 24h or 90m; 0 for ever
        #[arg(long, default_value = "24h", value_name = "TIME")]
        ttl: String,
        /// What it is for
        #[arg(long, default_value = "", value_name = "TEXT")]
        description: String,
        /// Further groups of who presents it
        #[arg(long, value_delimiter = ',', default_value = DEFAULT_GROUP, value_name = "GROUP")]
        groups: Vec<String>,
        /// What it may be used for
        #[arg(long, value_delimiter = ',', default_value = "signing,authentication", value_name = "USAGE")]
        usages: Vec<String>,
        /// Form of the output
        #[arg(long, short, default_value = "text", value_name = "FORM")]
        output: Output,
        #[command(flatten)]
        access: Access,
    },
    /// Show the tokens
    List {
        /// Form of the output
        #[arg(long, short, default_value = "text", value_name = "FORM")]
        output: Output,
        #[command(flatten)]
        access: Access,
    },
    /// Delete tokens, by their identifiers or in full
    Delete {
        #[arg(required = true)]
        tokens: Vec<String>,
        #[command(flatten)]
        access: Access,
    },
    /// Show a random token, without telling the server
    Generate,
    /// Replace the server's standing token; nodes that have joined are not affected
    Rotate {
        /// The new secret [default: a random one]
        #[arg(long, value_name = "SECRET")]
        new_token: Option<String>,
        /// The server's directory for all state
        #[arg(long, short, env = "EDGE_DATA_DIR", default_value = "/var/lib/edge", value_name = "DIR")]
        data_dir: PathBuf,
    },
}

/// What a user got wrong.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error("{0:?} is not a time such as 24h, 90m or 0")]
    Time(String),
    #[error("{0:?} is not a token such as abcdef.0123456789abcdef")]
    Token(String),
    #[error("{0:?} is not a usage: signing or authentication")]
    Usage(String),
    #[error("{0:?} does not begin with system:bootstrappers:")]
    Group(String),
}

/// Runs a subcommand.
pub(crate) fn main(args: TokenArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &doing("starting the runtime")(error)),
    };
    match runtime.block_on(run(args.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

fn secrets(cluster: &Cluster) -> Api<Secret> {
    Api::namespaced(cluster.client.clone(), NAMESPACE)
}

fn say(text: &str) {
    use std::io::Write as _;
    // a closed pipe cannot be told anything
    let _ = writeln!(io::stdout(), "{text}");
}

async fn run(command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Generate => {
            say(&random_token().map_err(doing("making a token"))?);
            Ok(())
        }
        TokenCommand::Create { token, ttl, description, groups, usages, output, access } => {
            let cluster = Cluster::open(&access).await?;
            let spec = New { token, ttl, description, groups, usages };
            let secret = spec.secret(Timestamp::now()).map_err(doing("making a token"))?;
            let made = cluster.call(secrets(&cluster).create(&PostParams::default(), &secret)).await?;
            let shown = Shown::of(&made, Timestamp::now());
            let full = full_token(&cluster.ca, "", &shown.token);
            match output {
                Output::Text => say(&full),
                Output::Json => {
                    let mut value = shown.json();
                    value["joinToken"] = full.into();
                    say(&format!("{value:#}"));
                }
            }
            Ok(())
        }
        TokenCommand::List { output, access } => {
            let cluster = Cluster::open(&access).await?;
            let of_type = ListParams::default().fields(&format!("type={TYPE}"));
            let list = cluster.call(secrets(&cluster).list(&of_type)).await?;
            let shown: Vec<Shown> = list.iter().map(|s| Shown::of(s, Timestamp::now())).collect();
            match output {
                Output::Json => say(&format!("{:#}", Value::from(shown.iter().map(Shown::json).collect::<Vec<_>>()))),
                Output::Text => table(&shown),
            }
            Ok(())
        }
        TokenCommand::Delete { tokens, access } => {
            let cluster = Cluster::open(&access).await?;
            for token in tokens {
                let secret = JoinToken::parse(&token).map(|t| t.secret).unwrap_or_else(|_| token.clone());
                let id = secret.split('.').next().unwrap_or_default();
                if id.len() != 6 {
                    return Err(doing("deleting a token")(Wrong::Token(token)));
                }
                let name = format!("{PREFIX}{id}");
                cluster.call(secrets(&cluster).delete(&name, &DeleteParams::default())).await?;
                say(&format!("token {id:?} deleted"));
            }
            Ok(())
        }
        TokenCommand::Rotate { new_token, data_dir } => rotate(new_token, &data_dir),
    }
}

/// Writes the server's token file, which the server follows.
fn rotate(new: Option<String>, data_dir: &std::path::Path) -> Result<(), Failure> {
    let secret = match new {
        Some(text) => JoinToken::parse(&text).map(|t| t.secret).map_err(doing("reading the new token"))?,
        None => random_secret(16).map_err(doing("making a token"))?,
    };
    let dir = data_dir.join("server");
    let ca = std::fs::read(dir.join("tls/server-ca.crt")).map_err(doing("reading the cluster's authority"))?;
    // where agents have no secret of their own, theirs follows
    let of = |name: &str| {
        std::fs::read_to_string(dir.join(name)).ok().and_then(|t| JoinToken::parse(&t).ok()).map(|t| t.secret)
    };
    let same = of("agent-token") == of(SERVER_TOKEN);
    let write = |name: &str, user: &str| join_tokens::write(&dir.join(name), &full_token(&ca, user, &secret));
    if same {
        write("agent-token", "node").map_err(doing("writing the token"))?;
    }
    write(SERVER_TOKEN, "server").map_err(doing("writing the token"))?;
    say(&full_token(&ca, "server", &secret));
    Ok(())
}

/// Identifier and secret, random.
fn random_token() -> io::Result<String> {
    let text = random_secret(11)?;
    let (id, secret) = text.split_at(6);
    Ok(format!("{id}.{secret}"))
}

/// A token to be made.
struct New {
    token: Option<String>,
    ttl: String,
    description: String,
    groups: Vec<String>,
    usages: Vec<String>,
}

impl New {
    fn secret(self, now: Timestamp) -> Result<Secret, Box<dyn std::error::Error + Send + Sync>> {
        let token = match self.token {
            Some(token) => token,
            None => random_token()?,
        };
        let Some((id, secret)) = edge_auth::split_bootstrap_token(&token) else {
            return Err(Wrong::Token(token).into());
        };
        let life = parse_time(&self.ttl).ok_or(Wrong::Time(self.ttl))?;
        let mut data =
            BTreeMap::from([("token-id".to_owned(), id.to_owned()), ("token-secret".to_owned(), secret.to_owned())]);
        for usage in self.usages {
            if !["signing", "authentication"].contains(&usage.as_str()) {
                return Err(Wrong::Usage(usage).into());
            }
            data.insert(format!("usage-bootstrap-{usage}"), "true".to_owned());
        }
        if let Some(group) = self.groups.iter().find(|g| !g.starts_with("system:bootstrappers:")) {
            return Err(Wrong::Group(group.clone()).into());
        }
        if !self.groups.is_empty() {
            data.insert("auth-extra-groups".to_owned(), self.groups.join(","));
        }
        if !self.description.is_empty() {
            data.insert("description".to_owned(), self.description);
        }
        if !life.is_zero() {
            let end = now.checked_add(life)?;
            let end = Timestamp::from_second(end.as_second())?;
            data.insert("expiration".to_owned(), end.to_string());
        }
        let mut object = Secret {
            type_: Some(TYPE.to_owned()),
            data: Some(data.into_iter().map(|(k, v)| (k, ByteString(v.into_bytes()))).collect()),
            ..Secret::default()
        };
        object.metadata.name = Some(format!("{PREFIX}{id}"));
        object.metadata.namespace = Some(NAMESPACE.to_owned());
        Ok(object)
    }
}

/// A token as it is shown.
struct Shown {
    token: String,
    expires: Option<String>,
    left: Option<Duration>,
    usages: Vec<String>,
    description: String,
    groups: Vec<String>,
}

impl Shown {
    fn of(secret: &Secret, now: Timestamp) -> Self {
        let text = |key: &str| {
            let bytes = secret.data.as_ref().and_then(|d| d.get(key)).map(|b| b.0.clone()).unwrap_or_default();
            String::from_utf8(bytes).unwrap_or_default()
        };
        let expires = Some(text("expiration")).filter(|e| !e.is_empty());
        let left = expires.as_ref().map(|e| {
            let end = e.parse::<Timestamp>().map_or(0, |t| t.as_second());
            Duration::from_secs(u64::try_from(end - now.as_second()).unwrap_or(0))
        });
        let usages = ["authentication", "signing"];
        let usages = usages.into_iter().filter(|u| text(&format!("usage-bootstrap-{u}")) == "true").map(str::to_owned);
        let groups = text("auth-extra-groups");
        Self {
            token: format!("{}.{}", text("token-id"), text("token-secret")),
            expires,
            left,
            usages: usages.collect(),
            description: text("description"),
            groups: groups.split(',').filter(|g| !g.is_empty()).map(str::to_owned).collect(),
        }
    }

    fn json(&self) -> Value {
        let mut value = json!({"token": self.token, "usages": self.usages, "groups": self.groups});
        if !self.description.is_empty() {
            value["description"] = self.description.clone().into();
        }
        if let Some(expires) = &self.expires {
            value["expires"] = expires.clone().into();
        }
        value
    }

    fn ttl(&self) -> String {
        match self.left.map(|l| l.as_secs()) {
            None => "<forever>".to_owned(),
            Some(0) => "<expired>".to_owned(),
            Some(s) if s >= 3600 => format!("{}h", s / 3600),
            Some(s) if s >= 60 => format!("{}m", s / 60),
            Some(s) => format!("{s}s"),
        }
    }
}

fn table(tokens: &[Shown]) {
    let mut rows = vec![["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "GROUPS"].map(str::to_owned)];
    for t in tokens {
        let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
        rows.push([
            t.token.clone(),
            t.ttl(),
            t.expires.clone().unwrap_or_else(|| "<never>".to_owned()),
            or_none(t.usages.join(",")),
            or_none(t.description.clone()),
            or_none(t.groups.join(",")),
        ]);
    }
    let widths: Vec<usize> = (0..6).map(|c| rows.iter().map(|r| r[c].len()).max().unwrap_or(0)).collect();
    for row in rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say(line.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use edge_client::ResourceExt;

    fn new(token: Option<&str>, ttl: &str) -> New {
        New {
            token: token.map(str::to_owned),
            ttl: ttl.to_owned(),
            description: "a test".to_owned(),
            groups: vec![DEFAULT_GROUP.to_owned()],
            usages: vec!["authentication".to_owned()],
        }
    }

    #[test]
    fn tokens_are_made_and_shown() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let secret = new(Some("abcdef.0123456789abcdef"), "1h30m").secret(now).unwrap();
        assert_eq!(secret.name_any(), "bootstrap-token-abcdef");
        let shown = Shown::of(&secret, now);
        assert_eq!(shown.token, "abcdef.0123456789abcdef");
        assert_eq!((shown.expires.as_deref(), shown.ttl().as_str()), (Some("2026-01-01T01:30:00Z"), "1h"));
        assert_eq!(shown.json()["usages"], json!(["authentication"]));
        let forever = Shown::of(&new(None, "0").secret(now).unwrap(), now);
        assert_eq!(forever.ttl(), "<forever>");
        assert!(edge_auth::split_bootstrap_token(&forever.token).is_some());
        assert!(new(Some("abc"), "0").secret(now).is_err() && new(None, "soon").secret(now).is_err());
    }
}
