//! The layers of the configuration, and the mistakes in them.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use data_encoding::HEXLOWER_PERMISSIVE;
use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider};
use keyward_core::digest::Digest;
use keyward_core::head::Head;
use keyward_core::identity::Assignment;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::first_admin::FirstAdmin;
use super::hints::{hint, told, unsuitable};
use super::identities::IdentityTable;
use super::listeners::{ListenerSettings, ListenerTable, TlsTable};
use super::table::{OFF, SETTINGS, defaults, may_be_empty};
use super::{Flags, Mistakes, Settings};
use crate::server::addr::{Group, ListenAddr, SocketAccess};
use crate::server::tls::{ClientCertificates, TlsFiles};

const ENV_PREFIX: &str = "KEYWARD_";
/// The environment, as mistakes and listings name it.
const ENVIRONMENT: &str = "in the environment";
/// The source of a setting that nobody has set.
const DEFAULT: &str = "default";
/// The variable that names the file. It belongs to the command line and is not a setting.
const ENV_CONFIG: &str = "config";

/// Threads that serve connections, at most.
const SERVING_THREADS_MAX: usize = 256;

/// The smallest limit of bytes held for requests under way.
const REQUEST_BYTES_MIN: u64 = 1024 * 1024;

pub(super) struct Layers {
    figment: Figment,
    mistakes: Vec<String>,
}

/// One value or several, as a list or as text with commas.
#[derive(Deserialize)]
#[serde(untagged, expecting = "must be an address with a port, or a list of such")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A number, or a text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a text")]
pub(super) enum NumberOrText {
    Number(u32),
    Text(String),
}

impl fmt::Display for NumberOrText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text.trim()),
        }
    }
}

impl Layers {
    pub(super) fn read(flags: &Flags, file: Option<PathBuf>) -> Self {
        let mut layers = Self { figment: Figment::from(Toml::string(&defaults())), mistakes: vec![] };
        if let Some(path) = file {
            match fs::read_to_string(&path) {
                Ok(text) => layers.add(&format!("in {}", path.display()), &Toml::string(&text)),
                Err(error) => layers.mistakes.push(unreadable(&path, &error)),
            }
        }
        let links = service_links();
        let environment = Env::prefixed(ENV_PREFIX).filter(move |name| {
            let name = name.as_str();
            !name.eq_ignore_ascii_case(ENV_CONFIG) && !links.contains(&variable(name))
        });
        layers.add(ENVIRONMENT, &environment);
        layers.add("on the command line", &Serialized::defaults(flags));
        layers
    }

    /// A setting's value. `None`: it is wrong, and the mistake is noted. The methods below do the same.
    pub(super) fn value<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        // A setting without a default is absent, not wrong.
        let mut found = self.figment.find_value(name).unwrap_or_else(|_| Value::from(figment::value::Empty::None));
        if found.as_str().is_some_and(|text| text.trim().is_empty()) {
            if !may_be_empty(name) {
                self.mistake(name, "must not be empty");
                return None;
            }
            found = Value::from("");
        }
        let mut read = found.deserialize();
        let word = match read.as_ref().err().map(|error| &error.kind) {
            Some(Kind::InvalidType(found, expected)) if expected.starts_with("enum ") => Some(told(found)),
            _ => None,
        };
        if let Some(word) = word {
            // As a text, it is told with the words that it may be.
            read = Value::from(word).deserialize();
        }
        read.map_err(|error| self.mistake(name, &unsuitable(&error.kind))).ok()
    }

    pub(super) fn serving_threads(&mut self) -> Option<usize> {
        let threads: Option<usize> = self.value("serving_threads")?;
        let threads =
            threads.unwrap_or_else(|| available_parallelism().map_or(1, NonZero::get).min(SERVING_THREADS_MAX));
        if threads > SERVING_THREADS_MAX {
            self.mistake("serving_threads", &format!("must be at most {SERVING_THREADS_MAX}"));
            return None;
        }
        Some(threads)
    }

    /// A limit of bytes held for requests under way.
    pub(super) fn request_bytes(&mut self, name: &str, default: impl FnOnce() -> u64) -> Option<usize> {
        let bytes: Option<u64> = self.value(name)?;
        let bytes = bytes.unwrap_or_else(default);
        if bytes < REQUEST_BYTES_MIN {
            self.mistake(name, &format!("must be at least {REQUEST_BYTES_MIN} bytes"));
            return None;
        }
        usize::try_from(bytes).ok()
    }

    /// The listeners that are described one by one. `access` applies to sockets of which they do not speak.
    /// `tls` has the files of those with `tls = true`.
    pub(super) fn listeners(
        &mut self,
        name: &str,
        access: &SocketAccess,
        tls: Option<&TlsFiles>,
    ) -> Option<Vec<ListenerSettings>> {
        let found: Vec<Value> = self.value(name)?;
        let read = |found: &Value| entry::<ListenerTable>(found)?.read(access, tls);
        self.each(name, &found, read)
    }

    /// What is given to the identities of connections.
    pub(super) fn identities(&mut self, name: &str) -> Option<Vec<Assignment>> {
        let found: Vec<Value> = self.value(name)?;
        let read = |found: &Value| entry::<IdentityTable>(found)?.read();
        self.each(name, &found, read)
    }

    /// Reads the entries of a list. A mistake in one is noted with its number.
    fn each<T>(
        &mut self,
        name: &str,
        found: &[Value],
        read: impl Fn(&Value) -> Result<T, Vec<String>>,
    ) -> Option<Vec<T>> {
        let mut all = Vec::with_capacity(found.len());
        for (nth, found) in found.iter().enumerate() {
            match read(found) {
                Ok(one) => all.push(one),
                Err(mistakes) => {
                    let number = nth + 1;
                    mistakes.iter().for_each(|what| self.mistake(name, &format!("number {number}: {what}")));
                }
            }
        }
        (all.len() == found.len()).then_some(all)
    }

    /// Where the key of the first administrator comes from, by two settings of which one may be set.
    pub(super) fn first_admin(&mut self, file: &str, digest: &str) -> Option<FirstAdmin> {
        let (path, text) = (self.value::<PathBuf>(file)?, self.value::<String>(digest)?);
        match (path.as_os_str().is_empty(), text.trim()) {
            (true, "") => Some(FirstAdmin::Made),
            (false, "") => Some(FirstAdmin::File(path)),
            (true, text) => match HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map(<[u8; 32]>::try_from) {
                Ok(Ok(bytes)) => Some(FirstAdmin::Digest(Digest::from_bytes(bytes))),
                _ => {
                    self.mistake(digest, "must be 64 hex digits, as `keyward digest` prints them");
                    None
                }
            },
            (false, _) => {
                self.mistake(digest, &format!("and {file} must not both be set"));
                None
            }
        }
    }

    /// The files of TLS. `Some(None)`: none is named.
    pub(super) fn tls(&mut self) -> Option<Option<TlsFiles>> {
        let demand = match self.value::<String>("tls_client_certificates")?.trim() {
            "" => None,
            "required" => Some(ClientCertificates::Required),
            "optional" => Some(ClientCertificates::Optional),
            _ => {
                self.mistake("tls_client_certificates", "must be required or optional");
                return None;
            }
        };
        let mut file =
            |name| self.value::<PathBuf>(name).map(|path| Some(path).filter(|path| !path.as_os_str().is_empty()));
        let table = TlsTable {
            certificate_file: file("tls_certificate_file")?,
            key_file: file("tls_key_file")?,
            client_ca_file: file("tls_client_ca_file")?,
            client_crl_file: file("tls_client_crl_file")?,
            client_certificates: demand,
        };
        let files = [&table.certificate_file, &table.key_file, &table.client_ca_file, &table.client_crl_file];
        if files.into_iter().all(Option::is_none) && demand.is_none() {
            return Some(None);
        }
        match table.read() {
            Ok(files) => Some(Some(files)),
            Err(what) => {
                // Its first word is the field.
                let (field, rest) = what.split_once(' ').unwrap_or((&what, ""));
                self.mistake(&format!("tls_{field}"), rest);
                None
            }
        }
    }

    /// Whether a setting has its default.
    pub(super) fn is_default(&self, name: &str) -> bool {
        self.source(name) == DEFAULT
    }

    /// May be empty.
    pub(super) fn listen_addrs(&mut self, name: &str) -> Option<Vec<ListenAddr>> {
        let texts = match self.value::<OneOrMany>(name)? {
            OneOrMany::Many(texts) => texts,
            OneOrMany::One(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
        };
        let parsed: Vec<_> = texts.iter().map(|text| text.parse::<ListenAddr>()).collect();
        for error in parsed.iter().filter_map(|p| p.as_ref().err()) {
            self.mistake(name, error);
        }
        parsed.into_iter().collect::<Result<_, _>>().ok()
    }

    pub(super) fn listen_addr_or_off(&mut self, name: &str) -> Option<Option<ListenAddr>> {
        let text: String = self.value(name)?;
        match text.trim() {
            OFF => Some(None),
            text => match text.parse() {
                Ok(addr) => Some(Some(addr)),
                Err(error) => {
                    self.mistake(name, &format!("{error}, or {OFF}"));
                    None
                }
            },
        }
    }

    pub(super) fn head(&mut self, name: &str) -> Option<Option<Head>> {
        let text: String = self.value(name)?;
        match text.trim() {
            "" => Some(None),
            text => match text.parse() {
                Ok(head) => Some(Some(head)),
                Err(error) => {
                    self.mistake(name, &error.to_string());
                    None
                }
            },
        }
    }

    pub(super) fn bytes(&mut self, name: &str, allowed: RangeInclusive<u64>) -> Option<u64> {
        let bytes: u64 = self.value(name)?;
        if !allowed.contains(&bytes) {
            self.mistake(name, &format!("must be from {} to {} bytes", allowed.start(), allowed.end()));
            return None;
        }
        Some(bytes)
    }

    /// The mode of a file, as octal digits.
    pub(super) fn mode(&mut self, name: &str) -> Option<u32> {
        let text = match self.value::<NumberOrText>(name)? {
            NumberOrText::Text(text) => Some(text),
            // The digits of a variable are a text. In a file, a number has base 10, so it is refused.
            NumberOrText::Number(number) => (self.source(name) == ENVIRONMENT).then(|| number.to_string()),
        };
        let mode = text.and_then(|text| octal_mode(&text));
        if mode.is_none() {
            self.mistake(name, "must be a text of octal digits, such as \"0660\"");
        }
        mode
    }

    /// A group of the system, by name or number. `Some(None)`: an empty text.
    pub(super) fn group(&mut self, name: &str) -> Option<Option<Group>> {
        let text = self.value::<NumberOrText>(name)?.to_string();
        if text.is_empty() {
            return Some(None);
        }
        match text.parse() {
            Ok(group) => Some(Some(group)),
            Err(error) => {
                self.mistake(name, &error);
                None
            }
        }
    }

    /// A limit of at least 1.
    pub(super) fn count(&mut self, name: &str) -> Option<usize> {
        let count: usize = self.value(name)?;
        if count == 0 {
            self.mistake(name, "must be at least 1");
            return None;
        }
        Some(count)
    }

    pub(super) fn duration(&mut self, name: &str, allowed: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.value::<NumberOrText>(name)?.to_string();
        match humantime::parse_duration(&text) {
            Ok(duration) if allowed.contains(&duration) => Some(duration),
            Ok(duration) => {
                let (bound, limit) = match duration > *allowed.end() {
                    true => ("most", *allowed.end()),
                    false => ("least", *allowed.start()),
                };
                self.mistake(name, &format!("must be at {bound} {}", humantime::format_duration(limit)));
                None
            }
            Err(_) => {
                self.mistake(name, "must be a duration such as 10s or 2m");
                None
            }
        }
    }

    /// Adds a mistake of a setting, with its source.
    pub(super) fn mistake(&mut self, name: &str, what: &str) {
        let source = self.source(name);
        let name = if source == ENVIRONMENT { variable(name) } else { name.to_owned() };
        self.mistakes.push(format!("{name} ({source}): {what}"));
    }

    /// Every setting with its value as TOML and its source.
    pub(super) fn listing(&self, settings: &Settings) -> Vec<(&'static str, String, String)> {
        SETTINGS.iter().map(|setting| (setting.name, (setting.listed)(settings), self.source(setting.name))).collect()
    }

    pub(super) fn finish<T>(self, read: Option<T>) -> Result<T, Mistakes> {
        match read {
            Some(read) if self.mistakes.is_empty() => Ok(read),
            _ => Err(Mistakes(self.mistakes)),
        }
    }

    /// Puts a layer on top. Names in it that are not settings are mistakes.
    fn add(&mut self, place: &str, layer: &impl Provider) {
        match layer.data() {
            Ok(data) => {
                let names = data.values().flat_map(BTreeMap::keys);
                for name in names.filter(|name| !SETTINGS.iter().any(|setting| setting.name == **name)) {
                    let shown = |name: &str| if place == ENVIRONMENT { variable(name) } else { name.to_owned() };
                    let (hint, name) = (hint(name, shown), shown(name));
                    self.mistakes.push(format!("{name} ({place}): is not a setting{hint}"));
                }
                let source = Layer { place: place.to_owned(), data };
                self.figment = std::mem::take(&mut self.figment).merge(source);
            }
            Err(error) => self.mistakes.push(format!("{place}: {error}")),
        }
    }

    fn source(&self, name: &str) -> String {
        let layer = self.figment.find_metadata(name).map(|metadata| metadata.name.to_string());
        layer.filter(|place| place.starts_with("in ") || place.starts_with("on ")).unwrap_or_else(|| DEFAULT.into())
    }
}

/// An entry of a list.
///
/// # Errors
/// With the field that is wrong, if it is one.
fn entry<T: DeserializeOwned>(found: &Value) -> Result<T, Vec<String>> {
    found.deserialize().map_err(|error| {
        let what = unsuitable(&error.kind);
        vec![error.path.last().map_or_else(|| what.clone(), |field| format!("{field} {what}"))]
    })
}

/// The mode of a file, of octal digits.
pub(super) fn octal_mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim(), 8).ok().filter(|mode| *mode <= 0o777)
}

/// A layer, with the name of its source.
struct Layer {
    place: String,
    data: BTreeMap<Profile, Dict>,
}

impl Provider for Layer {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named(self.place.clone())
    }

    fn data(&self) -> Result<figment::value::Map<Profile, Dict>, figment::Error> {
        Ok(self.data.clone())
    }
}

/// The name of a setting's variable.
fn variable(name: &str) -> String {
    format!("{ENV_PREFIX}{}", name.to_ascii_uppercase())
}

/// Why a configuration file cannot be read.
fn unreadable(path: &Path, error: &io::Error) -> String {
    let file = format!("the configuration file {}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => format!("{file} is not there"),
        io::ErrorKind::IsADirectory => format!("{file} is a directory"),
        io::ErrorKind::InvalidData => format!("{file} is not UTF-8"),
        _ => format!("{file} cannot be read: {error}"),
    }
}

/// The variables that Kubernetes sets for a Service whose name begins with `keyward`.
fn service_links() -> HashSet<String> {
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let links = variables.filter(|(name, value)| {
        let value = value.to_string_lossy();
        name.strip_prefix("KEYWARD").is_some_and(|rest| is_service_link(rest, &value))
    });
    links.map(|(name, _)| name).collect()
}

/// Whether a variable is one of those. `name` is the rest after `KEYWARD`, such as `_SERVICE_HOST`, `_PORT`
/// or `_HEADLESS_PORT_50051_TCP_ADDR`. `_PORT` alone may be a misspelt setting, so its value must be a link
/// too.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_port = name.match_indices("_SERVICE_PORT").any(|(at, found)| {
        let rest = &name[at + found.len()..];
        rest.is_empty() || rest.starts_with('_')
    });
    let is_link = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_part = name.match_indices("_PORT_").any(|(at, found)| {
        let parts: Vec<_> = name[at + found.len()..].split('_').collect();
        let (port, protocol, what) = match parts[..] {
            [port, protocol] => (port, protocol, "PORT"),
            [port, protocol, what] => (port, protocol, what),
            _ => return false,
        };
        !port.is_empty()
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && ["TCP", "UDP", "SCTP"].contains(&protocol)
            && ["PROTO", "PORT", "ADDR"].contains(&what)
    });
    name.ends_with("_SERVICE_HOST") || is_port || is_part || name.ends_with("_PORT") && is_link
}
