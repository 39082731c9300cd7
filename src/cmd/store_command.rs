//! `edge store`: moves a cluster's objects between this machine and etcd.

use super::datastore::{self, Shared};
use super::server::{Failure, doing};
use super::{fail, instance, join_tokens};
use crate::config::TokenSource;
use clap::{Args, Subcommand, ValueEnum};
use edge_registry::{Catalog, StorageClass};
use edge_storage::{Etcd, EtcdOptions, Import, KeyValue, ListRequest, Lmdb, Revision, Storage, digest};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Below this are all objects.
const OBJECTS: &str = "/registry/";
/// What servers on one etcd keep there for each other.
const OF_SERVERS: [&str; 2] = ["/registry/masterleases/", "/registry/edge/"];
/// Where they say that they live.
const LIVING: &str = OF_SERVERS[0];

/// The flags of `edge store`.
#[derive(Args)]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Subcommand)]
enum StoreCommand {
    /// Move a cluster's objects from this machine to etcd, or back, with their UIDs and resourceVersions
    ///
    /// No server of the cluster may run. What is read stays as it is; what is written is read back and compared, and counts only
    /// when all of it is there: after an interruption the same command can be given again. Leases and events, which a store on
    /// this machine would forget at a restart, are not moved.
    Migrate(MigrateArgs),
}

#[derive(Args)]
struct MigrateArgs {
    /// Where the objects are to be
    #[arg(long, value_name = "STORE")]
    to: Target,
    /// etcd: https://HOST:2379,HOST:2379
    #[arg(long, env = "EDGE_DATASTORE_ENDPOINT", value_name = "URLS")]
    datastore_endpoint: String,
    /// Certificate authority (PEM) that vouches for etcd [default: those of the machine]
    #[arg(long, env = "EDGE_DATASTORE_CAFILE", value_name = "FILE")]
    datastore_cafile: Option<PathBuf>,
    /// Certificate (PEM) that is shown to etcd
    #[arg(long, env = "EDGE_DATASTORE_CERTFILE", value_name = "FILE")]
    datastore_certfile: Option<PathBuf>,
    /// Key (PEM) of that certificate
    #[arg(long, env = "EDGE_DATASTORE_KEYFILE", value_name = "FILE")]
    datastore_keyfile: Option<PathBuf>,
    /// The server's directory
    #[arg(long, short, env = "EDGE_DATA_DIR", default_value = "/var/lib/edge", value_name = "DIR")]
    data_dir: PathBuf,
    /// The cluster's token [default: that in the server's directory]
    #[arg(long, short, env = "EDGE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File that holds the token
    #[arg(long, env = "EDGE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Only look whether it could be done, and say how much there is
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// etcd.
    Etcd,
    /// The server's directory.
    Local,
}

impl MigrateArgs {
    fn etcd(&self) -> EtcdOptions {
        EtcdOptions {
            endpoints: self.datastore_endpoint.clone(),
            ca_file: self.datastore_cafile.clone(),
            cert_file: self.datastore_certfile.clone(),
            key_file: self.datastore_keyfile.clone(),
        }
    }

    fn token(&self) -> Result<edge_pki::JoinToken, Failure> {
        let given = TokenSource { text: self.token.clone(), file: self.token_file.clone() };
        let token = join_tokens::server_token(&given, &self.data_dir)?;
        token.ok_or(MigrateError::NoToken).map_err(doing("reading the token"))
    }
}

/// Why objects cannot be moved.
#[derive(Debug, thiserror::Error)]
enum MigrateError {
    #[error("{0} holds no store: nothing is there to be moved")]
    NoSource(String),
    #[error("{0} exists already: move it away")]
    TargetExists(String),
    #[error("servers use etcd at this moment: stop them first (one that crashed is forgotten after 15 s)")]
    InUse,
    #[error("there is no cluster in etcd, or one whose move there broke off")]
    NoCluster,
    #[error(
        "the token is needed that is in server/token in the data directory of the cluster's servers (--token, --token-file or EDGE_TOKEN)"
    )]
    NoToken,
    #[error("what was written is not what was read; it was removed")]
    Differs,
}

/// Runs `edge store migrate`.
pub(crate) fn main(args: StoreArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &doing("starting the runtime")(error)),
    };
    let StoreCommand::Migrate(args) = args.command;
    match runtime.block_on(run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

async fn run(args: &MigrateArgs) -> Result<(), Failure> {
    let options = args.etcd();
    let secret = |dir: &str| edge_sys::fsutil::create_dir_all_mode(&args.data_dir.join(dir), 0o700);
    ["server", "run"].into_iter().try_for_each(secret).map_err(doing("opening the data directory"))?;
    let _instance = instance::claim(&args.data_dir)?;
    let moved = match args.to {
        Target::Etcd => to_etcd(args, &options).await?,
        Target::Local => to_local(args, &options).await?,
    };
    let done = if args.dry_run { "would be moved; nothing was changed" } else { "moved" };
    super::print(format!("{} objects {done}\nrevision {}\nsha256 {}\n", moved.0, moved.1, moved.2).as_bytes());
    Ok(())
}

/// How many, up to which revision, and their hash.
type Moved = (usize, Revision, String);

async fn to_etcd(args: &MigrateArgs, options: &EtcdOptions) -> Result<Moved, Failure> {
    let what = || doing("moving the cluster to etcd");
    let db = args.data_dir.join("server/db");
    if !db.join("data.mdb").exists() {
        return Err(what()(MigrateError::NoSource(db.display().to_string())));
    }
    let (items, revision) = read_local(&db).await?;
    let token = args.token()?;
    let import = Import::open(options).await.map_err(doing("opening etcd"))?;
    let hash = digest(&items);
    if !args.dry_run {
        let last = datastore::sealed(&args.data_dir.join("server"), &token.secret)?;
        import.bring(&items, revision, last).await.map_err(doing("writing to etcd"))?;
        datastore::mark(&args.data_dir.join("server"), Some(&options.endpoints))?;
    }
    Ok((items.len(), revision, hash))
}

async fn read_local(db: &Path) -> Result<(Vec<KeyValue>, Revision), Failure> {
    let db = db.to_owned();
    let store = tokio::task::spawn_blocking(move || Lmdb::open(&db)).await.map_err(doing("opening the store"))?;
    let store = store.map_err(doing("opening the store"))?;
    let request = ListRequest { prefix: OBJECTS.into(), ..ListRequest::default() };
    let list = store.list(request).await.map_err(doing("reading the store"))?;
    Ok((list.items, list.revision))
}

async fn to_local(args: &MigrateArgs, options: &EtcdOptions) -> Result<Moved, Failure> {
    let what = || doing("moving the cluster out of etcd");
    let server_dir = args.data_dir.join("server");
    let db = server_dir.join("db");
    if db.exists() {
        return Err(what()(MigrateError::TargetExists(db.display().to_string())));
    }
    let etcd = Etcd::connect_without_compactor(options).await.map_err(doing("opening etcd"))?;
    let list = async |prefix: &str| {
        let request = ListRequest { prefix: prefix.to_owned().into(), ..ListRequest::default() };
        etcd.list(request).await.map_err(doing("reading etcd"))
    };
    if !list(LIVING).await?.items.is_empty() {
        return Err(what()(MigrateError::InUse));
    }
    let Some(shared) = etcd.get(datastore::BOOTSTRAP.as_bytes()).await.map_err(doing("reading etcd"))? else {
        return Err(what()(MigrateError::NoCluster));
    };
    let token = args.token()?;
    let all = list(OBJECTS).await?;
    let revision = all.revision;
    let kept = durable(all.items);
    let (count, hash) = (kept.len(), digest(&kept));
    if args.dry_run {
        return Ok((count, revision, hash));
    }
    let place = Shared::new(Arc::new(etcd), options.endpoints.clone(), server_dir.clone());
    place.take(&token, &shared.value)?;
    let target = db.clone();
    let written = tokio::task::spawn_blocking(move || write_local(&target, &kept, revision)).await;
    let found = written.map_err(doing("writing the store"))??;
    if found != hash {
        // what went wrong is told in any case
        let _ = std::fs::remove_dir_all(&db);
        return Err(what()(MigrateError::Differs));
    }
    datastore::mark(&server_dir, None)?;
    Ok((count, revision, hash))
}

/// What a store on this machine keeps over a restart, of what servers in common had.
fn durable(items: Vec<KeyValue>) -> Vec<KeyValue> {
    let rows = Catalog::builtin().rows();
    let volatile = rows.iter().filter(|row| matches!(row.storage, StorageClass::Volatile(_)));
    let mut left_out: Vec<String> = volatile.map(|row| row.key_prefix()).collect();
    left_out.extend(OF_SERVERS.map(str::to_owned));
    let stays = |kv: &KeyValue| !left_out.iter().any(|prefix| kv.key.starts_with(prefix.as_bytes()));
    items.into_iter().filter(stays).collect()
}

/// Makes the store and gives the hash of what it has. It is put into its place when it is whole.
fn write_local(db: &Path, items: &[KeyValue], revision: Revision) -> Result<String, Failure> {
    Lmdb::import(db, items, revision).map_err(doing("writing the store"))?;
    let store = Lmdb::open(db).map_err(doing("opening the store"))?;
    let listed = tokio::runtime::Handle::current().block_on(store.list(ListRequest::default()));
    Ok(digest(&listed.map_err(doing("reading the store"))?.items))
}
