//! What the commands that call a server have in common: where it is, who calls, and how a call is run.

pub(super) mod context;
mod contexts;
mod retry;
mod secret;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

pub(super) use self::contexts::VARIABLES;
use self::contexts::{Context, Contexts};
pub(super) use self::retry::RetryArgs;
pub(super) use self::secret::{SecretFile, as_argument as secret_as_argument, ask_for_secret};
use super::failure::{Exit, Failure};
use super::tls::TlsArgs;
use crate::remote::{Client, ClientTls, RemoteAddr, Target};
use crate::server::lifecycle::{Caught, Signals};

/// The server, where neither a flag nor a context names one.
const SERVER_DEFAULT: &str = "127.0.0.1:50051";
/// The key file of a server on this machine, where neither a flag nor a context names one, if it is there.
const KEY_FILE_DEFAULT: &str = "./data/admin.key";

/// The longest time that a call may be given. gRPC has no form for one without end.
const CALL_TIME_MAX: Duration = Duration::from_secs(3600);

/// Where the server is and who calls it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server and caller")]
pub(super) struct ConnectArgs {
    /// The context to use, see `keyward context` [default: KW_CONTEXT, or the current one]
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,
    /// The server: a host or an address with a port, or unix:/path [default: the context's, or
    /// 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR", global = true)]
    server: Option<RemoteAddr>,
    /// The file of the caller's key [default: the context's; of a server on this machine ./data/admin.key]
    #[arg(long, value_name = "FILE", global = true)]
    key_file: Option<PathBuf>,
    /// How long connecting may take, and how long each call
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = call_time, global = true)]
    timeout: Duration,
    #[command(flatten)]
    tls: TlsArgs,
}

/// A server to call, as flags and contexts say.
#[derive(Debug)]
pub(super) struct Session {
    target: Target,
    /// The context's tenant.
    tenant: Option<String>,
}

impl ConnectArgs {
    /// Reads the context, and puts the flags above it.
    pub(super) fn session(self) -> Result<Session, Failure> {
        let Self { context, server, key_file, timeout, tls } = self;
        let context = Contexts::chosen(context.as_deref())?;
        let Context { server: its_server, key_file: its_key, tenant, .. } = context.clone().unwrap_or_default();
        let addr = match (server, its_server) {
            (Some(addr), _) => addr,
            (None, text) => text.as_deref().unwrap_or(SERVER_DEFAULT).parse().map_err(|rule| {
                Failure::new(Exit::Usage, format!("the server of the context {rule}"))
                    .hint("mend it with `keyward context set NAME --server ADDR`")
            })?,
        };
        let tls = tls.read_over(context.as_ref().and_then(Context::tls));
        let key_file = key_file.or(its_key).or_else(|| default_key_file(&addr));
        let may_be_known = key_file.is_some()
            || matches!(addr, RemoteAddr::Unix(_))
            || tls.as_ref().is_some_and(|tls| tls.identity.is_some());
        if !may_be_known {
            return Err(Failure::new(Exit::Usage, format!("nothing says to {addr} who calls"))
                .hint("name the file of a key of tenant system (--key-file), or a certificate (--cert, --key)")
                .hint("`keyward context set NAME --server ADDR --key-file FILE` keeps them"));
        }
        if !addr.is_local() && tls.is_none() {
            eprintln!(
                "keyward: the key goes to {addr} unencrypted, unless something in between encrypts (--tls, --ca)"
            );
        }
        Ok(Session { target: Target { addr, tls, key_file, within: timeout }, tenant })
    }
}

fn call_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time <= CALL_TIME_MAX {
        true => Ok(time),
        false => Err(format!("must be at most {}", humantime::format_duration(CALL_TIME_MAX))),
    }
}

fn default_key_file(addr: &RemoteAddr) -> Option<PathBuf> {
    // Another machine is not shown a key that nobody has named.
    (addr.is_local() && Path::new(KEY_FILE_DEFAULT).exists()).then(|| KEY_FILE_DEFAULT.into())
}

impl Session {
    /// The tenant: that of the flag, or of the context. Empty: the server's default.
    pub(super) fn tenant(&self, flag: Option<String>) -> String {
        flag.or_else(|| self.tenant.clone()).unwrap_or_default()
    }

    /// Connects and does the work. A signal ends it: what it holds is dropped, so that no half-written file
    /// and no silent terminal is left.
    pub(super) fn run<T>(self, work: impl AsyncFnOnce(Client) -> Result<T, Failure>) -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let done = runtime.block_on(async {
            let mut signals = Signals::listen(&[Caught::Terminate, Caught::Interrupt, Caught::Hangup])?;
            let work = async { work(Client::connect(&self.target).await?).await };
            tokio::select! {
                done = work => done,
                caught = signals.next() => Err(Failure::new(Exit::Failed, format!("ended by {}", caught.name()))
                    .hint("if a change was under way, it may have been made: look before you try again")),
            }
        });
        // Without waiting for a thread that still resolves a name, or reads a terminal.
        runtime.shutdown_background();
        done
    }
}

impl Context {
    /// How to encrypt. `None`: not at all.
    fn tls(&self) -> Option<ClientTls> {
        let identity = self.cert.clone().zip(self.key.clone());
        let is_wanted = self.tls || self.ca.is_some() || identity.is_some() || self.server_name.is_some();
        is_wanted.then(|| ClientTls { ca: self.ca.clone(), identity, server_name: self.server_name.clone() })
    }
}
