//! Stages for tests. All share one Postgres server, which lives as long as this process; each has a database of its own,
//! made from a migrated template, so that tests can run side by side.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use paybridge::clock::Clock;
use paybridge::dev::postgres::{self, Postgres};
use paybridge::dev::stage::{Options, Stage, prepare_database};
use paybridge::dev::story::{Narrator, Scenery};
use tokio::net::TcpSocket;
use tokio::sync::OnceCell;

/// The binary under test, for what needs a process of its own.
pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_paybridge"))
}

/// The HTTP client of all tests: building one reads the machine's certificates, which takes longer than most requests.
/// It keeps no connection open, since each test has a runtime of its own.
pub fn http() -> &'static reqwest::Client {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client")
    })
}

/// The one Postgres of this process. It need not survive a crash of the machine, so it does not wait for the disk.
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

/// A process that is ended when it is dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port of the loopback, and the socket that holds it: bound and not listening, it keeps the port from others until a
/// process listens there.
pub fn reserved_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    let address = socket.local_addr().expect("a bound socket");
    (socket, address)
}

/// Starts a process that removes `folder`, gigabytes by then, when this one has ended however it ended: statics are never
/// dropped. It waits for the end of its input, which we hold open and never write to.
fn remove_at_exit(folder: &Path) -> Child {
    let script = r#"cat; until rm -rf "$0" && [ ! -e "$0" ]; do sleep 0.1; done"#;
    let mut remover = Command::new("sh");
    remover.args(["-c", script]).arg(folder).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // Not in our group: what a terminal interrupts is not it.
    remover.process_group(0).spawn().expect("a shell")
}

/// A migrated database of its own, by its connection string.
pub async fn database() -> String {
    static TEMPLATE: OnceCell<()> = OnceCell::const_new();
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    // Postgres copies a template for one at a time.
    static COPYING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let postgres = tokio::task::spawn_blocking(postgres).await.expect("Postgres starts");
    TEMPLATE
        .get_or_init(|| async {
            prepare_database(postgres, "template", None).await.expect("the template is migrated");
        })
        .await;
    let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let _turn = COPYING.lock().await;
    prepare_database(postgres, &name, Some("template")).await.expect("a database from the template")
}

/// A stage with the given options, on a clock of its own.
pub async fn stage(options: Options) -> Stage {
    Stage::set_up(database().await, Clock::system(), options).await.expect("the stage stands")
}

/// A silent stage for a step of the story.
pub async fn scenery(options: Options) -> Scenery {
    Scenery { stage: stage(options).await, program: program(), narrator: Narrator { is_loud: false } }
}
