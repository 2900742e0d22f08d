//! A PostgreSQL for the tests: one from outside, or a private cluster that ends with the test process.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_postgres::{Client, NoTls};

use crate::support::free_port;

/// Runs `test` with a database of its own, where there is a PostgreSQL: `CARNET_TEST_POSTGRES` is the URL of one, or
/// `required` where a test must not be skipped; without it, the distribution's binaries are looked for.
pub async fn with_database(test: impl AsyncFnOnce(&Database)) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let Some(server) = server() else { return };
    let name = format!("carnet_test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let database = Database { server, name };
    let admin = connect(&server.url).await;
    admin.batch_execute(&format!("CREATE DATABASE {} TEMPLATE template0", database.name)).await.expect("a database");
    test(&database).await;
    admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", database.name)).await.expect("dropped");
}

/// Like [`with_database`], on a server that nobody else uses: `test` may kill it. Not on one from outside.
pub async fn with_server_of_its_own(test: impl AsyncFnOnce(&Database)) {
    let shared = server();
    let Some(binaries) = shared.and_then(|server| server.cluster.as_ref()).and_then(|_cluster| binaries()) else {
        return say_skipped("it needs a server that the tests set up");
    };
    // It ends with the process.
    let server: &'static Server = Box::leak(Box::new(start(&binaries)));
    let database = Database { server, name: "postgres".to_owned() };
    test(&database).await;
}

/// An empty database.
pub struct Database {
    server: &'static Server,
    name: String,
}

impl Database {
    pub fn url(&self) -> String {
        let (address, options) = self.server.url.split_once('?').unwrap_or((&self.server.url, ""));
        let (server, _database) = address.rsplit_once('/').expect("a URL with a database");
        format!("{server}/{}?{options}", self.name)
    }

    /// A connection beside those of the store.
    pub async fn client(&self) -> Client {
        connect(&self.url()).await
    }

    /// From now on nobody is let in, and whoever is in is put out; or everybody is let in again.
    pub async fn is_away(&self, away: bool) {
        let admin = connect(&self.server.url).await;
        let sql = format!("ALTER DATABASE {} ALLOW_CONNECTIONS {}", self.name, !away);
        admin.batch_execute(&sql).await.expect("altered");
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        admin.execute(sql, &[&self.name]).await.expect("ended");
    }

    /// The server is killed, with all that it does, and started again; returns when it takes connections. Only on a server
    /// of its own.
    pub async fn is_killed_and_started(&self) {
        let cluster = self.server.cluster.as_ref().expect("a server of the tests' own");
        tokio::task::spawn_blocking(|| cluster.start_again()).await.expect("no panic");
    }

    /// Ends every connection but the one that does it.
    pub async fn cut_connections(&self) {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        self.client().await.batch_execute(sql).await.expect("ended");
    }

    /// The authority of the server's certificate; that of a server from outside is not known.
    pub fn authority(&self) -> Option<PathBuf> {
        Some(self.cluster()?.folder.join("ca.crt"))
    }

    /// A server from outside may let everybody in.
    pub fn asks_for_passwords(&self) -> bool {
        self.cluster().is_some()
    }

    fn cluster(&self) -> Option<&Cluster> {
        if self.server.cluster.is_none() {
            say_skipped("it needs a server that the tests set up, not that of CARNET_TEST_POSTGRES");
        }
        self.server.cluster.as_ref()
    }

    /// The same database by a way on which something can happen to connections.
    pub async fn by_proxy(&self) -> (String, Proxy) {
        let url = self.url();
        let (user, rest) = url.split_once('@').expect("a user");
        let (address, rest) = rest.split_once('/').expect("a path");
        let proxy = Proxy::start(address.to_owned()).await;
        (format!("{user}@{}/{rest}", proxy.address), proxy)
    }
}

/// Between a store and its database.
pub struct Proxy {
    address: SocketAddr,
    partitions: watch::Sender<()>,
    deaf: watch::Sender<bool>,
}

impl Proxy {
    async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, partitions) = (listener.local_addr().expect("an address"), watch::Sender::new(()));
        let (cut, deaf) = (partitions.clone(), watch::Sender::new(false));
        let heard = deaf.clone();
        tokio::spawn(async move {
            loop {
                let (mut near, _peer) = listener.accept().await.expect("a connection");
                let (server, mut cut, mut heard) = (server.clone(), cut.subscribe(), heard.subscribe());
                tokio::spawn(async move {
                    heard.wait_for(|deaf| !deaf).await.expect("a proxy");
                    let mut far = TcpStream::connect(server).await.expect("a connection");
                    tokio::select! {
                        _ended = copy_bidirectional(&mut near, &mut far) => {}
                        // Open at both ends, and nothing passes any more.
                        Ok(()) = cut.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { address, partitions, deaf }
    }

    /// Nothing passes: neither what is connected now, for ever, nor what connects before this ends.
    pub fn is_cut(&self, cut: bool) {
        self.deaf.send_replace(cut);
        if cut {
            self.partition();
        }
    }

    /// What is connected now is silent from now on; what connects later is not.
    pub fn partition(&self) {
        self.partitions.send_replace(());
    }
}

struct Server {
    url: String,
    cluster: Option<Cluster>,
}

/// Its shell ends, and ends the cluster, when this process has gone and with it the other end of its standard input.
struct Cluster {
    folder: PathBuf,
    shell: Mutex<(Child, BufReader<ChildStdout>)>,
}

impl Cluster {
    fn start_again(&self) {
        let (shell, said) = &mut *self.shell.lock().expect("no panic");
        shell.stdin.as_mut().expect("a pipe").write_all(b"again\n").expect("told");
        let mut line = String::new();
        said.read_line(&mut line).expect("a line");
        assert_eq!(line, "again\n", "the cluster did not start again");
    }
}

fn server() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    let found = SERVER.get_or_init(|| match std::env::var("CARNET_TEST_POSTGRES") {
        Ok(url) if url != "required" => Some(Server { url, cluster: None }),
        required => match binaries() {
            Some(binaries) => Some(start(&binaries)),
            None if required.is_ok() => panic!("CARNET_TEST_POSTGRES is `required`, and there is no PostgreSQL"),
            None => None,
        },
    });
    if found.is_none() {
        say_skipped("there is no PostgreSQL: install it, or set CARNET_TEST_POSTGRES to a URL");
    }
    found.as_ref()
}

pub fn say_skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    say(&format!("SKIPPED {test}: {why}"));
}

/// Past the harness, which keeps what a test that succeeds prints to itself.
pub fn say(what: &str) {
    std::io::stderr().write_all(format!("{what}\n").as_bytes()).expect("said");
}

/// Those of the newest version that the distribution has installed.
fn binaries() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let version = |path: &Path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let installed =
        versions.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.join("bin/initdb").exists());
    installed.max_by_key(|path| version(path)).map(|path| path.join("bin"))
}

fn start(binaries: &Path) -> Server {
    let port = free_port();
    let (ca_key, key) = (rcgen::KeyPair::generate().expect("a key"), rcgen::KeyPair::generate().expect("a key"));
    let mut authority = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&ca_key).expect("an authority").pem();
    let issuer = rcgen::Issuer::new(authority, ca_key);
    let leaf = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("parameters");
    let certificate = leaf.signed_by(&key, &issuer).expect("a certificate").pem();

    // PostgreSQL refuses to run as root.
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let mut command = Command::new(if is_root { "setpriv" } else { "sh" });
    if is_root {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "sh"]);
    }
    command.args(["-c", CLUSTER, "cluster"]).arg(binaries).arg(port.to_string());
    // Whatever language the environment asks for may not be installed.
    command.env("LC_ALL", "C");
    command.env("PASSWORD", PASSWORD).env("CA", ca).env("CERTIFICATE", certificate).env("KEY", key.serialize_pem());
    let spawned = command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut shell = spawned.expect("a shell");
    let mut folder = String::new();
    let mut said = BufReader::new(shell.stdout.take().expect("a pipe"));
    said.read_line(&mut folder).expect("a line");
    assert!(!folder.is_empty(), "the cluster did not start");
    let folder = PathBuf::from(folder.trim_end());
    let url = format!("postgres://carnet:{PASSWORD}@127.0.0.1:{port}/postgres");
    Server { url, cluster: Some(Cluster { folder, shell: Mutex::new((shell, said)) }) }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("a connection");
    tokio::spawn(connection);
    client
}

/// Only ever on loopback, for as long as the tests run.
const PASSWORD: &str = "pa55-w0rd-of-the-tests";

/// Says where the cluster is once it takes connections; then kills and starts it for each line of its standard input, and
/// ends with it.
const CLUSTER: &str = r#"
set -eu
trap '' INT
umask 077
folder=$(mktemp -d /tmp/carnet-postgres.XXXXXX)
trap 'rm -rf "$folder"' EXIT
printf '%s' "$PASSWORD" > "$folder/password"
"$1/initdb" -D "$folder/data" -U carnet -A scram-sha-256 --pwfile="$folder/password" -E UTF8 --locale=C -N > "$folder/log" 2>&1 ||
  { cat "$folder/log" >&2; exit 1; }
printf '%s' "$CA" > "$folder/ca.crt"
printf '%s' "$CERTIFICATE" > "$folder/data/server.crt"
printf '%s' "$KEY" > "$folder/data/server.key"
serve() {
  "$1/postgres" -D "$folder/data" -p "$2" -k "$folder" -c listen_addresses=127.0.0.1 -c ssl=on -c fsync=off \
    -c max_connections=300 < /dev/null >> "$folder/log" 2>&1 &
  until "$1/pg_isready" -q -h 127.0.0.1 -p "$2"; do
    kill -0 $! || { cat "$folder/log" >&2; exit 1; }
    sleep 0.05
  done
}
serve "$@"
echo "$folder"
while read -r again; do
  kill -QUIT $!
  wait $! || true
  serve "$@"
  echo "$again"
done
kill -INT $!
wait
"#;
