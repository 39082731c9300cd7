//! The commands and flags.

use crate::columns::Columns;
use clap::{Args, Parser, Subcommand, ValueEnum};
use edge_api::jsonpath::Template;
use std::path::PathBuf;
use std::sync::Arc;

/// What edge has of kubectl; used where there is no kubectl on the PATH.
#[derive(Debug, Parser)]
#[command(
    name = "edge kubectl",
    subcommand_required = true,
    arg_required_else_help = true,
    disable_version_flag = true
)]
pub struct Kubectl {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args, Debug)]
pub(crate) struct Global {
    /// The kubeconfig
    #[arg(long, env = "KUBECONFIG", value_name = "FILE", global = true)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long, value_name = "NAME", global = true)]
    pub(crate) context: Option<String>,
    /// The namespace
    #[arg(long, short, value_name = "NAME", global = true)]
    pub(crate) namespace: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show objects
    Get(GetArgs),
    /// Show everything about objects, with their events
    Describe(DescribeArgs),
    /// Make objects what files say they are
    Apply(ApplyArgs),
    /// Create objects
    #[command(subcommand_negates_reqs = true)]
    Create(CreateArgs),
    /// Delete objects
    Delete(DeleteArgs),
    /// Print what a container has written
    Logs(LogsArgs),
    /// Run a program in a container
    Exec(ExecArgs),
    /// Reach ports of a pod from this machine
    PortForward(PortForwardArgs),
    /// Make a service for the pods of something
    Expose(ExposeArgs),
    /// Run an image in a pod
    Run(RunArgs),
    /// Set labels of objects: KEY=VALUE, or KEY- to remove one
    Label(MetadataArgs),
    /// Set annotations of objects: KEY=VALUE, or KEY- to remove one
    Annotate(MetadataArgs),
    /// Set the number of pods
    Scale(ScaleArgs),
    /// Follow, restart and undo the rollout of a workload
    Rollout(RolloutArgs),
    /// Show what nodes and pods use
    Top(TopArgs),
    /// Say what the fields of a type are for
    Explain(ExplainArgs),
    /// Show the kinds of objects that the server has
    ApiResources,
    /// Show the version of the server
    Version,
}

#[derive(Args, Debug)]
pub(crate) struct TopArgs {
    #[command(subcommand)]
    pub(crate) what: TopWhat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopWhat {
    /// Of nodes
    #[command(visible_aliases = ["nodes", "no"])]
    Node(TopNodeArgs),
    /// Of pods
    #[command(visible_aliases = ["pods", "po"])]
    Pod(TopPodArgs),
}

/// By what `top` sorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TopSort {
    Cpu,
    Memory,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct TopNodeArgs {
    /// Only this one
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Only those with these labels
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
    /// Those that use most first
    #[arg(long, value_name = "WHAT")]
    pub(crate) sort_by: Option<TopSort>,
    /// Print no headers
    #[arg(long)]
    pub(crate) no_headers: bool,
    /// Percentages of what the node has, and not of what pods can have of it
    #[arg(long)]
    pub(crate) show_capacity: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct TopPodArgs {
    /// Only this one
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Of all namespaces
    #[arg(long, short = 'A', conflicts_with = "name")]
    pub(crate) all_namespaces: bool,
    /// Only those with these labels
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
    /// Only those with these fields
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) field_selector: Option<String>,
    /// Those that use most first
    #[arg(long, value_name = "WHAT")]
    pub(crate) sort_by: Option<TopSort>,
    /// Each container for itself
    #[arg(long)]
    pub(crate) containers: bool,
    /// Print no headers
    #[arg(long)]
    pub(crate) no_headers: bool,
    /// All together as the last line
    #[arg(long)]
    pub(crate) sum: bool,
}

/// Forms besides the table.
#[derive(Clone, Debug)]
pub(crate) enum Output {
    Wide,
    Json,
    Yaml,
    Name,
    JsonPath(Arc<Template>),
    Columns(Arc<Columns>),
}

fn output(text: &str) -> Result<Output, String> {
    let (form, template) = text.split_once('=').map_or((text, None), |(form, template)| (form, Some(template)));
    match (form, template) {
        ("wide", None) => Ok(Output::Wide),
        ("json", None) => Ok(Output::Json),
        ("yaml", None) => Ok(Output::Yaml),
        ("name", None) => Ok(Output::Name),
        ("jsonpath", Some(template)) => {
            Template::parse(template).map(|t| Output::JsonPath(Arc::new(t))).map_err(|e| e.to_string())
        }
        ("jsonpath", None) => {
            Err("template format specified but no template given: -o jsonpath='{.metadata.name}'".into())
        }
        ("custom-columns", columns) => {
            Columns::parse(columns.unwrap_or_default()).map(|c| Output::Columns(Arc::new(c))).map_err(|e| e.to_string())
        }
        _ => Err("edge has wide, json, yaml, name, jsonpath=… and custom-columns=…; the real kubectl has more".into()),
    }
}

/// Which objects.
#[derive(Args, Debug, Default)]
pub(crate) struct Which {
    /// TYPE, TYPE NAME… or TYPE/NAME…; several types are separated by commas
    #[arg(value_name = "TYPE[/NAME]")]
    pub(crate) objects: Vec<String>,
    /// Only those with these labels
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
    /// Only those with these fields
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) field_selector: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Of all namespaces
    #[arg(long, short = 'A')]
    pub(crate) all_namespaces: bool,
    /// wide, json, yaml, name, jsonpath=TEMPLATE or custom-columns=HEADER:PATH,…
    #[arg(long, short, value_name = "FORM", value_parser = output)]
    pub(crate) output: Option<Output>,
    /// Go on showing what changes
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Show labels as a column
    #[arg(long)]
    pub(crate) show_labels: bool,
    /// Print no headers
    #[arg(long)]
    pub(crate) no_headers: bool,
    /// No error when there is no such object
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DescribeArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Of all namespaces
    #[arg(long, short = 'A')]
    pub(crate) all_namespaces: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ApplyArgs {
    /// Files or directories with manifests, YAML or JSON; - is the standard input
    #[arg(long = "filename", short, required = true, value_name = "FILE", value_delimiter = ',')]
    pub(crate) files: Vec<PathBuf>,
    /// Take fields over that others manage
    #[arg(long)]
    pub(crate) force_conflicts: bool,
    /// Let the server say what would happen, and change nothing
    #[arg(long, value_name = "server")]
    pub(crate) dry_run: Option<DryRun>,
    #[arg(long, hide = true)]
    pub(crate) server_side: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DryRun {
    None,
    Server,
}

#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// Files or directories with manifests, YAML or JSON; - is the standard input
    #[arg(long = "filename", short, required = true, value_name = "FILE", value_delimiter = ',')]
    pub(crate) files: Vec<PathBuf>,
    #[command(subcommand)]
    pub(crate) what: Option<CreateWhat>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CreateWhat {
    /// Create a deployment
    #[command(visible_alias = "deploy")]
    Deployment {
        /// Its name
        name: String,
        /// The image of its pods
        #[arg(long, required = true)]
        image: String,
        /// How many pods
        #[arg(long, short, default_value_t = 1)]
        replicas: i32,
        /// A port of the container
        #[arg(long)]
        port: Option<u16>,
        /// What the container runs, in place of the image's command
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Create a namespace
    #[command(visible_alias = "ns")]
    Namespace {
        /// Its name
        name: String,
    },
}

#[derive(Args, Debug, Default)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The objects of these files or directories
    #[arg(long = "filename", short, value_name = "FILE", value_delimiter = ',')]
    pub(crate) files: Vec<PathBuf>,
    /// All objects of the type in the namespace
    #[arg(long)]
    pub(crate) all: bool,
    /// Seconds that pods get to end
    #[arg(long, value_name = "SECONDS")]
    pub(crate) grace_period: Option<u32>,
    /// At once, whether the node answers or not; needs a grace period of 0
    #[arg(long)]
    pub(crate) force: bool,
    /// The same as --grace-period=1
    #[arg(long, conflicts_with = "grace_period")]
    pub(crate) now: bool,
    /// Wait until they are gone
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) wait: bool,
    /// No error when there is no such object
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

#[derive(Args, Debug, Default)]
pub(crate) struct LogsArgs {
    /// A pod, or TYPE/NAME of something that has pods
    pub(crate) pod: String,
    /// The container
    #[arg(long, short)]
    pub(crate) container: Option<String>,
    /// Go on
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Of the container before this one
    #[arg(long, short)]
    pub(crate) previous: bool,
    /// Only so many of the last lines
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<i64>,
    /// With the times of the lines
    #[arg(long)]
    pub(crate) timestamps: bool,
    /// Only of the last seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) since: Option<i64>,
}

#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// A pod, or TYPE/NAME of something that has pods
    pub(crate) pod: String,
    /// The container
    #[arg(long, short)]
    pub(crate) container: Option<String>,
    /// Pass the standard input on
    #[arg(long, short = 'i')]
    pub(crate) stdin: bool,
    /// With a terminal
    #[arg(long, short = 't')]
    pub(crate) tty: bool,
    /// The program and its arguments, after --
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct PortForwardArgs {
    /// A pod, or TYPE/NAME of a service or something that has pods
    pub(crate) pod: String,
    /// [LOCAL:]REMOTE; a LOCAL of nothing or 0 is any free port
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    pub(crate) ports: Vec<String>,
    /// The addresses of this machine on which to listen
    #[arg(long, default_value = "127.0.0.1", value_name = "IP", value_delimiter = ',')]
    pub(crate) address: Vec<std::net::IpAddr>,
}

#[derive(Args, Debug)]
pub(crate) struct ExposeArgs {
    /// TYPE NAME or TYPE/NAME of a deployment, replica set, replication controller, pod or service
    #[arg(required = true, num_args = 1..=2, value_name = "TYPE[/NAME]")]
    pub(crate) objects: Vec<String>,
    /// The port of the service [default: those of the containers]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// The port of the pods, by number or name [default: that of the service]
    #[arg(long)]
    pub(crate) target_port: Option<String>,
    /// TCP, UDP or SCTP
    #[arg(long, default_value = "TCP")]
    pub(crate) protocol: String,
    /// ClusterIP, NodePort or LoadBalancer
    #[arg(long = "type", default_value = "ClusterIP", value_name = "TYPE")]
    pub(crate) kind: String,
    /// The name of the service [default: that of what is exposed]
    #[arg(long)]
    pub(crate) name: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// The name of the pod
    pub(crate) name: String,
    /// The image
    #[arg(long, required = true)]
    pub(crate) image: String,
    /// A variable of the environment, NAME=VALUE (can be repeated)
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// A port of the container
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Labels in place of run=NAME
    #[arg(long, short = 'l', value_name = "LABELS", value_delimiter = ',')]
    pub(crate) labels: Vec<String>,
    /// Always, OnFailure or Never
    #[arg(long, default_value = "Always", value_name = "POLICY")]
    pub(crate) restart: String,
    /// What follows is the command, not the arguments of the image's
    #[arg(long)]
    pub(crate) command: bool,
    /// Pass the standard input on, and show what the container writes
    #[arg(long, short = 'i')]
    pub(crate) stdin: bool,
    /// With a terminal
    #[arg(long, short = 't')]
    pub(crate) tty: bool,
    /// Delete the pod when its program has ended; needs -i
    #[arg(long, requires = "stdin")]
    pub(crate) rm: bool,
    /// What the container runs, after --
    #[arg(last = true)]
    pub(crate) words: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct MetadataArgs {
    /// TYPE NAME… or TYPE/NAME…, and then what changes: KEY=VALUE or KEY-
    #[arg(required = true, value_name = "TYPE[/NAME] | KEY=VALUE | KEY-")]
    pub(crate) words: Vec<String>,
    /// Give another value to what is there
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// All objects of the type in the namespace
    #[arg(long)]
    pub(crate) all: bool,
    /// Of all namespaces
    #[arg(long, short = 'A')]
    pub(crate) all_namespaces: bool,
    /// Only those with these labels
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
    /// Only those with these fields
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) field_selector: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// TYPE, or TYPE.FIELD.FIELD…
    #[arg(value_name = "TYPE[.FIELD]")]
    pub(crate) what: String,
    /// The fields of the fields, too, without descriptions
    #[arg(long)]
    pub(crate) recursive: bool,
    /// Of this group and version
    #[arg(long, value_name = "GROUP/VERSION")]
    pub(crate) api_version: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ScaleArgs {
    /// TYPE NAME… or TYPE/NAME…
    #[arg(required = true, value_name = "TYPE[/NAME]")]
    pub(crate) objects: Vec<String>,
    /// How many pods
    #[arg(long)]
    pub(crate) replicas: i32,
}

#[derive(Args, Debug)]
pub(crate) struct RolloutArgs {
    #[command(subcommand)]
    pub(crate) command: RolloutCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RolloutCommand {
    /// Wait until it is done, and say how it goes
    Status {
        /// TYPE NAME or TYPE/NAME
        #[arg(required = true, num_args = 1..=2, value_name = "TYPE[/NAME]")]
        objects: Vec<String>,
        /// Give up after so long, such as 60s or 5m; 0s: never
        #[arg(long, default_value = "0s", value_name = "TIME")]
        timeout: String,
    },
    /// Replace all pods, as after a change
    Restart {
        /// TYPE NAME or TYPE/NAME
        #[arg(required = true, num_args = 1..=2, value_name = "TYPE[/NAME]")]
        objects: Vec<String>,
    },
    /// Go back to the revision before, or another one (deployments)
    Undo {
        /// TYPE NAME or TYPE/NAME
        #[arg(required = true, num_args = 1..=2, value_name = "TYPE[/NAME]")]
        objects: Vec<String>,
        /// Which revision; 0: the one before
        #[arg(long, default_value_t = 0, value_name = "N")]
        to_revision: i64,
    },
    /// Show the revisions (deployments)
    History {
        /// TYPE NAME or TYPE/NAME
        #[arg(required = true, num_args = 1..=2, value_name = "TYPE[/NAME]")]
        objects: Vec<String>,
    },
}
