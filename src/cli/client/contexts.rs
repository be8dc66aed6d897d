//! The file of contexts: servers by name, each with how it is reached and the file of the caller's key.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::failure::{Exit, Failure};
use crate::util::files::{create_private_dir, exposed_mode, lock_with_retry, write_durably};

/// The variables of the client, for the manual. They do not begin with KEYWARD_, where the server expects its
/// settings, and the client reads none of the server's.
pub(in crate::cli) const VARIABLES: [(&str, &str); 2] = [
    (FILE_VARIABLE, "the file of contexts; otherwise keyward/contexts.toml in XDG_CONFIG_HOME or in .config in HOME"),
    (NAME_VARIABLE, "the context to use; --context goes before it, and it before the current one"),
];

/// The variable that names the file.
pub(super) const FILE_VARIABLE: &str = "KW_CONTEXTS";
/// The variable that names the context to use.
const NAME_VARIABLE: &str = "KW_CONTEXT";
/// The first line of a file that is written.
const HEAD: &str = "# Written by `keyward context`. It names key files, and has no key in it.\n";

/// All contexts.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contexts {
    /// The one that is used where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) current: Option<String>,
    /// By name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) contexts: BTreeMap<String, Context>,
}

/// A server, how it is reached, and who calls.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Context {
    /// As `--server`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server: Option<String>,
    /// As `--tls`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) tls: bool,
    /// As `--ca`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ca: Option<PathBuf>,
    /// As `--cert`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cert: Option<PathBuf>,
    /// As `--key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<PathBuf>,
    /// As `--server-name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server_name: Option<String>,
    /// As `--key-file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key_file: Option<PathBuf>,
    /// As `--tenant`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tenant: Option<String>,
}

impl Contexts {
    /// The context that a command uses: the one that is named, or `KW_CONTEXT`, or the current one.
    pub(super) fn chosen(name: Option<&str>) -> Result<Option<Context>, Failure> {
        let variable = env::var(NAME_VARIABLE).ok().filter(|name| !name.is_empty());
        let all = path().map(|path| Self::read(&path)).transpose()?.unwrap_or_default();
        let Some(name) = name.map(str::to_owned).or(variable).or(all.current) else { return Ok(None) };
        all.contexts.get(&name).cloned().map(Some).ok_or_else(|| unknown(&name))
    }

    /// Reads the file. A missing one has no contexts.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |what: String| Failure::new(Exit::Failed, format!("the contexts in {}: {what}", path.display()));
        let found = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            found => found.map_err(|error| failed(error.to_string()))?,
        };
        if let Some(mode) = exposed_mode(&found) {
            let what = format!("the file has mode {mode:04o}: who can write it can have your key sent elsewhere");
            return Err(failed(what).hint(format!("chmod 600 {}", path.display())));
        }
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        toml::from_str(&text).map_err(|error| failed(error.to_string().trim_end().to_owned()))
    }

    /// Reads the file, changes what is in it, and writes it back whole.
    pub(super) fn change<T>(change: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Failure> {
        let path = path().ok_or_else(|| {
            Failure::new(Exit::Failed, "there is no place for contexts")
                .hint(format!("name a file in {FILE_VARIABLE}, or set HOME"))
        })?;
        // What a link leads to is replaced, not the link.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let of_file = |error: io::Error| Failure::new(Exit::Failed, format!("{}: {error}", path.display()));
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        create_private_dir(dir).map_err(of_file)?;
        // Held until the end: two changes at a time would lose one.
        let lock = File::open(dir).map_err(of_file)?;
        lock_with_retry(&lock).map_err(|error| of_file(error.into()))?;
        let mut contexts = Self::read(&path)?;
        let changed = change(&mut contexts)?;
        let text = toml::to_string(&contexts).map_err(|error| of_file(io::Error::other(error)))?;
        write_durably(&path, format!("{HEAD}{text}").as_bytes()).map_err(of_file)?;
        Ok(changed)
    }
}

/// The file: `KW_CONTEXTS`, or `keyward/contexts.toml` where the user's configuration is.
pub(super) fn path() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = || set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    set(FILE_VARIABLE).or_else(|| Some(config()?.join("keyward/contexts.toml")))
}

pub(super) fn unknown(name: &str) -> Failure {
    Failure::new(Exit::NotFound, format!("there is no context '{name}'"))
        .hint("`keyward context list` has those that there are; `keyward context set` makes one")
}
