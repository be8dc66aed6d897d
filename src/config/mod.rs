//! Settings. Flags override the environment (`KEYWARD_…`), which overrides the TOML file.
//!
//! Unknown names are refused, and so are empty texts where they do not mean that nothing is set. All mistakes
//! are reported at once, each with its source. Secrets are not settings; the paths of their files are.

pub mod first_admin;
mod hints;
mod identities;
mod layers;
mod listeners;
mod table;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use keyward_core::head::Head;
use keyward_core::identity::Assignment;
use serde::Serialize;

use self::first_admin::FirstAdmin;
use self::layers::Layers;
pub use self::listeners::ListenerSettings;
use crate::server::addr::{ListenAddr, SocketAccess};
use crate::server::connections::Http2;
use crate::server::tls::TlsFiles;
use crate::services::ServiceGroup;
use crate::telemetry::{LogFormat, check_filter};
use crate::util::machine;

const CENTURY: Duration = Duration::from_secs(100 * 31_557_600);
/// Bytes held for requests under way of callers with a credential, if the machine has enough memory.
const REQUEST_BYTES_DEFAULT: u64 = 1024 * 1024 * 1024;
/// Bytes held for requests under way of callers without a credential.
const STRANGER_REQUEST_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;
const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The settings of a server. The name of a field is its name in the file. Its variable is `KEYWARD_` and the
/// name in capitals; its flag has dashes instead of underscores.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The data directory. Default `./data`; made if it is missing.
    pub data_dir: PathBuf,
    /// The addresses to serve everything on, with ports, or `unix:/path`, or `fd:NAME` for a socket that is
    /// passed to the process. Default `127.0.0.1:50051`, and nothing if there are listeners in `listener`.
    pub listen: Vec<ListenAddr>,
    /// The listeners that are described one by one. Default none.
    pub listener: Vec<ListenerSettings>,
    /// What the identities of connections are given: client certificates, and users on Unix sockets. Default
    /// none. It is read again on SIGHUP.
    pub identity: Vec<Assignment>,
    /// The address of probes and metrics over HTTP: `/livez`, `/readyz`, `/metrics`. `off` for none.
    /// Addresses that other machines can reach are allowed, because Prometheus is often elsewhere, and
    /// nothing secret is served here. Default `127.0.0.1:9464`.
    pub ops_listen: Option<ListenAddr>,
    /// The pepper file. Default `<data_dir>/pepper`; made at the first start.
    pub pepper_file: PathBuf,
    /// Where the key of the first administrator comes from, by `bootstrap_admin_file` or
    /// `bootstrap_admin_digest`. Default: it is made.
    pub first_admin: FirstAdmin,
    /// The permissions of the Unix sockets of `listen` and `ops_listen`. Default: mode 0660, and the group of
    /// the process.
    pub sockets: SocketAccess,
    /// The files of TLS, for the addresses of `listen` that are not sockets in the file system, and for each
    /// listener with `tls = true`. Default none.
    pub tls: Option<TlsFiles>,
    /// Whether probes and metrics are encrypted too, with the same certificate. Callers need none. Default
    /// false.
    pub ops_tls: bool,
    /// Whether to listen, without encryption, on addresses that other machines can reach. Default false.
    pub allow_plaintext: bool,
    /// The implementation of HTTP/2, `own` or `hyper`. Default `own`.
    pub http2: Http2,
    /// Whether to serve reflection on the addresses of `listen`. Default true.
    pub reflection: bool,
    /// Threads that serve connections, one runtime each. Default: one for each core; at most 256. With 0, the
    /// runtime that does everything else serves connections too.
    pub serving_threads: usize,
    /// How long a server that was told to stop says NOT_SERVING and still answers, so that load balancers
    /// send calls elsewhere before it refuses them. The shutdown deadline begins afterwards. Default 0, at
    /// most 1 h.
    pub drain_delay: Duration,
    /// How long connections may take to finish when the server stops. Default 10 s, at most 1 h.
    pub shutdown_deadline: Duration,
    /// How long a connection of a caller lasts, more or less by a tenth: then it gets a GOAWAY, and its
    /// caller opens another one. Default 1 h; from 1 s to a hundred years.
    pub connection_age_max: Duration,
    /// Connections from one address (of IPv6, one network of 64 bits) that have not made an authenticated
    /// call in their first five seconds, at most: the oldest make room for the next. Default 64; at least 1.
    pub stranger_connections_per_address_max: usize,
    /// Calls of authenticated callers under way at most, streams included, save Verify, BatchVerify, and
    /// changes that only take power away. Of one caller, at most half as many. Default 2,048; at least 1.
    pub slow_calls_max: usize,
    /// So late a failed authentication is answered, after the first twenty of its origin in a minute. Default
    /// 1 s; from 0 s, which is at once, to 10 s.
    pub failed_authentication_delay: Duration,
    /// Size of new journal segments. Default 16 MiB; from 64 KiB to 1 GiB.
    pub journal_segment_bytes: u64,
    /// If the journal is larger than this, its oldest segments are deleted once a snapshot covers them.
    /// Default 4 GiB; at least 1 MiB.
    pub journal_retention_bytes: u64,
    /// A segment of the journal whose last change is older than this is deleted once a snapshot covers it.
    /// Default one year, at most a hundred.
    pub journal_retention_time: Duration,
    /// How long one backup may take before it is aborted. Default 10 minutes; from 1 s to 7 days.
    pub backup_time_max: Duration,
    /// Bytes in memory for the old versions of records that change during a backup; with more, it is aborted.
    /// Default 256 MiB; at least 1 MiB.
    pub backup_aside_bytes_max: u64,
    /// Tenants, at most. Default 10,000. What exists already stays; so it does with the two limits below.
    pub tenants_max: usize,
    /// Different owners of the keys of one tenant, at most. Default 100,000.
    pub owners_per_tenant_max: usize,
    /// Different scopes of the keys of one tenant, at most. Default 10,000.
    pub scopes_per_tenant_max: usize,
    /// Bytes held for requests under way, of all connections that have not had a working credential. Further
    /// requests are refused. Default 64 MiB; at least 1 MiB. Each connection may hold 12 KiB in any case.
    pub stranger_request_bytes_max: usize,
    /// The same for all other connections, of which one may have an eighth. Default 1 GiB, or a quarter of
    /// the memory that the process may have if that is less; at least 1 MiB.
    pub request_bytes_max: usize,
    /// A head of the log that was kept apart from it, as text ([`Head`]). Nothing is served unless the
    /// journal leads through it. Default: none, also as an empty text.
    pub expect_head: Option<Head>,
    /// Whether to start although the watermark is missing beside a journal with changes. Only on the command
    /// line: that start writes a new one. Default false.
    pub accept_watermark_loss: bool,
    /// Of so many calls for verdicts one has a line in the log, at level info. Default 0: none.
    pub access_log_sample: u32,
    /// The filter of log lines, such as `info` or `keyward=debug,h2=warn`. Default `info`.
    pub log_filter: String,
    /// `text` or `json`. Default `text`.
    pub log_format: LogFormat,
}

/// The settings of the command line. Those that are absent come from the layers below.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Flags {
    /// See [`Settings::data_dir`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// See [`Settings::listen`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<String>,
    /// See [`Settings::ops_listen`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_listen: Option<String>,
    /// See [`Settings::pepper_file`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pepper_file: Option<PathBuf>,
    /// See [`Settings::allow_plaintext`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_plaintext: Option<bool>,
    /// See [`Settings::tls`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate_file: Option<PathBuf>,
    /// See [`Settings::tls`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key_file: Option<PathBuf>,
    /// See [`Settings::tls`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_ca_file: Option<PathBuf>,
    /// See [`Settings::expect_head`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_head: Option<String>,
    /// See [`Settings::accept_watermark_loss`].
    #[serde(skip)]
    pub accept_watermark_loss: bool,
    /// See [`Settings::log_filter`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_filter: Option<String>,
    /// See [`Settings::log_format`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
}

/// All mistakes in the configuration.
#[derive(Debug)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "" } else { "s" };
        write!(f, "the configuration has {} mistake{plural}:", self.0.len())?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  - {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

/// The effective settings, with their sources.
#[derive(Debug)]
pub struct Effective {
    /// The settings.
    pub settings: Settings,
    /// For each setting, in order: its name, its value as TOML, and its source.
    pub listing: Vec<(&'static str, String, String)>,
}

impl Settings {
    /// All listeners of callers: those of `listen`, and those that are described.
    #[must_use]
    pub fn listeners(&self) -> Vec<ListenerSettings> {
        let short = self.listen.iter().map(|addr| {
            let all = ListenerSettings::of(addr.clone(), self.sockets.clone());
            let services = if self.reflection { all.services } else { all.services.without(ServiceGroup::Reflection) };
            let tls = self.tls.clone().filter(|_| !matches!(addr, ListenAddr::Unix(_)));
            ListenerSettings { services, tls, ..all }
        });
        short.chain(self.listener.iter().cloned()).collect()
    }

    /// Reads all layers: `flags` over the environment over `file` over the defaults.
    ///
    /// # Errors
    /// With all mistakes.
    pub fn load(flags: &Flags, file: Option<PathBuf>) -> Result<Effective, Mistakes> {
        let mut layers = Layers::read(flags, file);
        let first_admin = layers.first_admin("bootstrap_admin_file", "bootstrap_admin_digest");
        let (data_dir, ops_listen) = (layers.value::<PathBuf>("data_dir"), layers.listen_addr_or_off("ops_listen"));
        let pepper_file = layers.value::<Option<PathBuf>>("pepper_file");
        let (socket_mode, socket_group) = (layers.mode("socket_mode"), layers.group("socket_group"));
        let sockets = socket_mode.zip(socket_group).map(|(mode, group)| SocketAccess { mode, group });
        let (tls, ops_tls) = (layers.tls(), layers.value("ops_tls"));
        let listener =
            layers.listeners("listener", &sockets.clone().unwrap_or_default(), tls.as_ref().and_then(Option::as_ref));
        let is_described = listener.as_ref().is_none_or(|listener| !listener.is_empty());
        let listen = match layers.is_default("listen") && is_described {
            true => Some(vec![]),
            false => layers.listen_addrs("listen"),
        };
        if listen.as_ref().is_some_and(Vec::is_empty) && !is_described {
            layers.mistake("listen", "must have at least one address, unless there is a [[listener]]");
        }
        let identity = layers.identities("identity");
        let allow_plaintext = layers.value("allow_plaintext");
        let (http2, reflection) = (layers.value("http2"), layers.value("reflection"));
        let serving_threads = layers.serving_threads();
        let drain_delay = layers.duration("drain_delay", Duration::ZERO..=Duration::from_secs(3_600));
        let shutdown_deadline = layers.duration("shutdown_deadline", Duration::ZERO..=Duration::from_secs(3_600));
        let connection_age_max = layers.duration("connection_age_max", Duration::from_secs(1)..=CENTURY);
        let stranger_connections_per_address_max = layers.count("stranger_connections_per_address_max");
        let failed_authentication_delay =
            layers.duration("failed_authentication_delay", Duration::ZERO..=Duration::from_secs(10));
        let journal_segment_bytes = layers.bytes("journal_segment_bytes", 64 * 1024..=1024 * 1024 * 1024);
        let journal_retention_bytes = layers.bytes("journal_retention_bytes", 1024 * 1024..=i64::MAX as u64);
        let journal_retention_time = layers.duration("journal_retention_time", Duration::ZERO..=CENTURY);
        let backup_time_max = layers.duration("backup_time_max", Duration::from_secs(1)..=WEEK);
        let backup_aside_bytes_max = layers.bytes("backup_aside_bytes_max", 1024 * 1024..=i64::MAX as u64);
        let (tenants_max, slow_calls_max) = (layers.count("tenants_max"), layers.count("slow_calls_max"));
        let owners_per_tenant_max = layers.count("owners_per_tenant_max");
        let scopes_per_tenant_max = layers.count("scopes_per_tenant_max");
        let stranger_request_bytes_max =
            layers.request_bytes("stranger_request_bytes_max", || STRANGER_REQUEST_BYTES_DEFAULT);
        let request_bytes_max = layers.request_bytes("request_bytes_max", || {
            machine::memory_bytes().map_or(REQUEST_BYTES_DEFAULT, |bytes| REQUEST_BYTES_DEFAULT.min(bytes / 4))
        });
        if ops_tls == Some(true) && matches!(tls, Some(None)) {
            layers.mistake("ops_tls", "needs tls_certificate_file and tls_key_file");
        }
        let expect_head = layers.head("expect_head");
        let log_filter: Option<String> = layers.value("log_filter");
        let (log_format, access_log_sample) = (layers.value("log_format"), layers.value("access_log_sample"));

        if let Some(Err(error)) = log_filter.as_deref().map(check_filter) {
            layers.mistake("log_filter", &error);
        }
        if allow_plaintext == Some(false) {
            let listen = listen.iter().flatten().filter(|_| matches!(tls, Some(None)));
            refuse_plaintext(&mut layers, listen, listener.iter().flatten());
        }

        let settings = (|| {
            let data_dir = data_dir?;
            let pepper_file = pepper_file?.unwrap_or_else(|| data_dir.join("pepper"));
            Some(Self {
                data_dir,
                listen: listen?,
                listener: listener?,
                identity: identity?,
                ops_listen: ops_listen?,
                pepper_file,
                first_admin: first_admin?,
                sockets: sockets?,
                tls: tls?,
                ops_tls: ops_tls?,
                allow_plaintext: allow_plaintext?,
                http2: http2?,
                reflection: reflection?,
                serving_threads: serving_threads?,
                drain_delay: drain_delay?,
                shutdown_deadline: shutdown_deadline?,
                connection_age_max: connection_age_max?,
                stranger_connections_per_address_max: stranger_connections_per_address_max?,
                slow_calls_max: slow_calls_max?,
                failed_authentication_delay: failed_authentication_delay?,
                journal_segment_bytes: journal_segment_bytes?,
                journal_retention_bytes: journal_retention_bytes?,
                journal_retention_time: journal_retention_time?,
                backup_time_max: backup_time_max?,
                backup_aside_bytes_max: backup_aside_bytes_max?,
                tenants_max: tenants_max?,
                owners_per_tenant_max: owners_per_tenant_max?,
                scopes_per_tenant_max: scopes_per_tenant_max?,
                stranger_request_bytes_max: stranger_request_bytes_max?,
                request_bytes_max: request_bytes_max?,
                expect_head: expect_head?,
                accept_watermark_loss: flags.accept_watermark_loss,
                access_log_sample: access_log_sample?,
                log_filter: log_filter?,
                log_format: log_format?,
            })
        })();
        for settings in settings.as_slice() {
            let mistakes = identities::mistakes_of(&settings.identity, &settings.listeners());
            mistakes.iter().for_each(|what| layers.mistake("identity", what));
        }
        let listing = settings.as_ref().map(|s| layers.listing(s)).unwrap_or_default();
        layers.finish(settings.map(|settings| Effective { settings, listing }))
    }
}

/// Notes a mistake for each address that other machines can reach, and at which keys would cross the network
/// unencrypted: of `listen`, and of listeners.
fn refuse_plaintext<'s>(
    layers: &mut Layers,
    listen: impl Iterator<Item = &'s ListenAddr>,
    listeners: impl Iterator<Item = &'s ListenerSettings>,
) {
    let secret = listeners.filter(|listener| listener.tls.is_none() && !listener.services.are_public());
    let all = listen.map(|addr| ("listen", addr)).chain(secret.map(|listener| ("listener", &listener.address)));
    for (name, addr) in all.filter(|(_, addr)| !addr.is_local()) {
        layers.mistake(
            name,
            &format!(
                "{addr} can be reached from other machines, and keys would cross the network unencrypted; set \
                 tls_certificate_file and tls_key_file, or listen on 127.0.0.1, or pass --allow-plaintext if \
                 something in between encrypts"
            ),
        );
    }
}
