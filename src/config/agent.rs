//! What `edge agent` can be told, and the checked form of it.

use super::node::{ConfigError, NodeArgs, NodeConfig, TokenSource, wrong};
use clap::Args;
use edge_client::Server;
use std::path::PathBuf;

/// The flags of `edge agent`.
#[derive(Args, Clone, Debug)]
pub(crate) struct AgentArgs {
    /// Configuration file: flags' names as keys; drop-ins in FILE.d/*.yaml
    #[arg(long, short, env = "EDGE_CONFIG_FILE", default_value = "/etc/edge/config.yaml", value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Directory for all state
    #[arg(long, short, env = "EDGE_DATA_DIR", default_value = "/var/lib/edge", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Log more
    #[arg(long, env = "EDGE_DEBUG")]
    pub(crate) debug: bool,

    /// URL of a server of the cluster, such as https://192.0.2.1:6443; with several (repeated, or separated by commas) the
    /// next is used where one fails. K3S_URL is read too
    #[arg(long, short, env = "EDGE_URL", value_name = "URL", value_delimiter = ',', help_heading = "Cluster")]
    pub(crate) server: Vec<String>,
    /// Token with which to join: the content of the server's server/agent-token or server/token, or one made by `edge token
    /// create`. K3S_TOKEN is read too
    #[arg(long, short, env = "EDGE_TOKEN", value_name = "TOKEN", hide_env_values = true, help_heading = "Cluster")]
    pub(crate) token: Option<String>,
    /// File that holds the token. K3S_TOKEN_FILE is read too
    #[arg(long, env = "EDGE_TOKEN_FILE", value_name = "FILE", help_heading = "Cluster")]
    pub(crate) token_file: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// The configuration of `edge agent`, checked before anything is opened or connected.
#[derive(Clone, Debug)]
pub(crate) struct AgentConfig {
    pub(crate) data_dir: PathBuf,
    /// Never empty.
    pub(crate) servers: Vec<Server>,
    pub(crate) token: TokenSource,
    pub(crate) node: NodeConfig,
}

impl AgentArgs {
    /// Checks everything that can be checked without opening anything. `variable` reads the environment.
    ///
    /// # Errors
    /// [`ConfigError`] names the flag and says what is expected.
    pub(crate) fn check(self, variable: impl Fn(&str) -> Option<String>) -> Result<AgentConfig, ConfigError> {
        let mut urls = self.server;
        if urls.is_empty() {
            let value = variable("K3S_URL").unwrap_or_default();
            urls = value.split(',').filter(|u| !u.trim().is_empty()).map(str::to_owned).collect();
        }
        if urls.is_empty() {
            return Err(wrong("server", "the URL of a server is needed, such as https://192.0.2.1:6443"));
        }
        let servers = urls
            .iter()
            .map(|u| Server::parse(u).map_err(|e| wrong("server", e.to_string())))
            .collect::<Result<_, _>>()?;
        let mut token = TokenSource { text: self.token, file: self.token_file };
        if token.text.is_none() && token.file.is_none() {
            token.text = variable("K3S_TOKEN").filter(|t| !t.trim().is_empty());
            token.file = variable("K3S_TOKEN_FILE").map(PathBuf::from);
        }
        Ok(AgentConfig { data_dir: self.data_dir, servers, token, node: self.node.check()? })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: AgentArgs,
    }

    fn check(args: &[&str], environment: &[(&str, &str)]) -> Result<AgentConfig, String> {
        let all = ["edge", "--node-name=a"].iter().chain(args);
        let variable = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Only::try_parse_from(all).unwrap().args.check(variable).map_err(|e| e.to_string())
    }

    #[test]
    fn servers_and_tokens_as_k3s_users_give_them() {
        let c = check(&["--server=https://192.0.2.1,https://edge.example:7000", "-t", "x"], &[]).unwrap();
        let urls: Vec<String> = c.servers.iter().map(ToString::to_string).collect();
        assert_eq!(urls, ["https://192.0.2.1:6443", "https://edge.example:7000"]);
        assert_eq!(c.token.read().unwrap().as_deref(), Some("x"));
        let c = check(&[], &[("K3S_URL", "https://192.0.2.1:6443"), ("K3S_TOKEN", "y")]).unwrap();
        assert_eq!((c.servers.len(), c.token.read().unwrap().as_deref()), (1, Some("y")));
        assert!(check(&[], &[]).unwrap_err().starts_with("--server"));
        assert!(check(&["--server=192.0.2.1"], &[]).unwrap_err().starts_with("--server"));
        let e = check(&["-s=https://a", "--node-label=node-role.kubernetes.io/control-plane=true"], &[]).unwrap_err();
        assert!(e.starts_with("--node-label"), "{e}");
    }
}
