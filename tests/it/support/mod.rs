//! Environments for tests. All share one Postgres server, which lives as long as this process. Each has a database of
//! its own, copied from a migrated template, so that tests can run in parallel.

pub mod customers;
pub mod errors;
pub mod harness;
pub mod payments;
pub mod query_plans;
pub mod reconciliation;
pub mod refunds;
pub mod restores;
pub mod sql;
pub mod wait;
pub mod webhooks;

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use paybridge::clock::Clock;
use paybridge::dev::postgres::{self, Postgres};
use paybridge::dev::scenarios::{Reporter, ScenarioContext};
use paybridge::dev::test_environment::{Options, TestEnvironment, prepare_database};
use tokio::net::TcpSocket;
use tokio::sync::OnceCell;

/// The path of the binary under test.
pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_paybridge"))
}

/// The HTTP client of all tests: building one reads the machine's certificates, which takes longer than most requests.
/// It keeps no connection open, since each test has its own runtime.
pub fn http() -> &'static reqwest::Client {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client")
    })
}

/// The one Postgres of this process. It does not sync to disk, since it need not survive a crash of the machine.
pub fn postgres() -> &'static Postgres {
    static SERVER: OnceLock<(Child, Postgres)> = OnceLock::new();
    let (_, postgres) = SERVER.get_or_init(|| {
        let folder = tempfile::Builder::new().prefix("paybridge-it-").tempdir().expect("a temporary folder").keep();
        let remover = remove_at_exit(&folder);
        let options = postgres::Options { durable: false, ..postgres::Options::default() };
        let postgres = Postgres::start(&folder.join("postgres"), &options).expect("Postgres starts");
        (remover, postgres)
    });
    postgres
}

/// A process that is killed on drop.
pub struct KillOnDrop(pub Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A loopback port, and a socket that reserves it: bound but not listening, it keeps the port free for the process
/// under test.
pub fn reserved_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    let address = socket.local_addr().expect("a bound socket");
    (socket, address)
}

/// Starts a process that removes `folder`, which grows to gigabytes, once this process has ended in any way: statics
/// are never dropped. It waits for the end of its input, which stays open and is never written to.
fn remove_at_exit(folder: &Path) -> Child {
    let script = r#"cat; until rm -rf "$0" && [ ! -e "$0" ]; do sleep 0.1; done"#;
    let mut remover = Command::new("sh");
    remover.args(["-c", script]).arg(folder).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // A process group of its own, so that an interrupt from the terminal does not reach it.
    remover.process_group(0).spawn().expect("a shell")
}

/// Creates a migrated database, and returns its connection string.
pub async fn database() -> String {
    static TEMPLATE: OnceCell<()> = OnceCell::const_new();
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    // Postgres makes one copy of a template at a time.
    static COPYING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let postgres = tokio::task::spawn_blocking(postgres).await.expect("Postgres starts");
    TEMPLATE
        .get_or_init(|| async {
            prepare_database(postgres, "template", None).await.expect("the template is migrated");
        })
        .await;
    let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let _guard = COPYING.lock().await;
    prepare_database(postgres, &name, Some("template")).await.expect("a database from the template")
}

/// An environment with these options, with a clock of its own.
pub async fn environment(options: Options) -> TestEnvironment {
    TestEnvironment::start(database().await, Clock::system(), options).await.expect("the environment starts")
}

/// The context for a scenario, which prints nothing.
pub async fn context(options: Options) -> ScenarioContext {
    ScenarioContext {
        environment: environment(options).await,
        program: program(),
        reporter: Reporter { is_enabled: false },
    }
}

/// A request id that no other call has.
pub fn next_request_id() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("request-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}
