//! All settings: their names, their defaults, and how they are listed.

use std::fmt::Display;
use std::time::Duration;

use data_encoding::HEXLOWER;

use super::first_admin::FirstAdmin;
use super::{ListenerSettings, Settings, identities};
use crate::server::tls::{ClientTls, TlsFiles};

/// The value of an address that is not listened on.
pub(super) const OFF: &str = "off";

/// A setting.
pub(super) struct Setting {
    /// As it stands in the file.
    pub(super) name: &'static str,
    /// As TOML. Empty: it depends on others or on the machine.
    default: &'static str,
    /// The value as TOML.
    pub(super) listed: fn(&Settings) -> String,
}

impl Setting {
    /// Whether an empty text is as good as none.
    fn may_be_empty(&self) -> bool {
        self.default == r#""""#
    }
}

/// Whether an empty text is as good as none for a setting.
pub(super) fn may_be_empty(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.name == name && setting.may_be_empty())
}

/// Every setting, in the order in which they are listed.
pub(super) const SETTINGS: &[Setting] = &[
    Setting { name: "data_dir", default: r#""./data""#, listed: |s| text(&s.data_dir.display()) },
    Setting {
        name: "listen",
        default: r#"["127.0.0.1:50051"]"#,
        listed: |s| format!("[{}]", s.listen.iter().map(text).collect::<Vec<_>>().join(", ")),
    },
    Setting {
        name: "listener",
        default: "[]",
        listed: |s| format!("[{}]", s.listener.iter().map(ListenerSettings::to_toml).collect::<Vec<_>>().join(", ")),
    },
    Setting {
        name: "identity",
        default: "[]",
        listed: |s| format!("[{}]", s.identity.iter().map(identities::to_toml).collect::<Vec<_>>().join(", ")),
    },
    Setting {
        name: "ops_listen",
        default: r#""127.0.0.1:9464""#,
        listed: |s| s.ops_listen.as_ref().map_or_else(|| text(&OFF), text),
    },
    Setting { name: "pepper_file", default: "", listed: |s| text(&s.pepper_file.display()) },
    Setting {
        name: "bootstrap_admin_file",
        default: r#""""#,
        listed: |s| match &s.first_admin {
            FirstAdmin::File(path) => text(&path.display()),
            FirstAdmin::Made | FirstAdmin::Digest(_) => text(&""),
        },
    },
    Setting {
        name: "bootstrap_admin_digest",
        default: r#""""#,
        listed: |s| match &s.first_admin {
            FirstAdmin::Digest(digest) => text(&HEXLOWER.encode(digest.as_bytes())),
            FirstAdmin::Made | FirstAdmin::File(_) => text(&""),
        },
    },
    Setting { name: "socket_mode", default: r#""0660""#, listed: |s| text(&format_args!("{:04o}", s.sockets.mode)) },
    Setting {
        name: "socket_group",
        default: r#""""#,
        listed: |s| s.sockets.group.as_ref().map_or_else(|| text(&""), text),
    },
    Setting {
        name: "tls_certificate_file",
        default: r#""""#,
        listed: |s| of_tls(s, |tls| Some(text(&tls.certificate.display()))),
    },
    Setting { name: "tls_key_file", default: r#""""#, listed: |s| of_tls(s, |tls| Some(text(&tls.key.display()))) },
    Setting {
        name: "tls_client_ca_file",
        default: r#""""#,
        listed: |s| of_client_tls(s, |client| Some(text(&client.authorities.display()))),
    },
    Setting {
        name: "tls_client_crl_file",
        default: r#""""#,
        listed: |s| of_client_tls(s, |client| Some(text(&client.revoked.as_ref()?.display()))),
    },
    Setting {
        name: "tls_client_certificates",
        default: r#""""#,
        listed: |s| of_client_tls(s, |client| Some(word(&client.demand))),
    },
    Setting { name: "ops_tls", default: "false", listed: |s| s.ops_tls.to_string() },
    Setting { name: "allow_plaintext", default: "false", listed: |s| s.allow_plaintext.to_string() },
    Setting { name: "http2", default: r#""own""#, listed: |s| word(&s.http2) },
    Setting { name: "reflection", default: "true", listed: |s| s.reflection.to_string() },
    Setting { name: "serving_threads", default: "", listed: |s| s.serving_threads.to_string() },
    Setting { name: "drain_delay", default: r#""0s""#, listed: |s| duration(s.drain_delay) },
    Setting { name: "shutdown_deadline", default: r#""10s""#, listed: |s| duration(s.shutdown_deadline) },
    Setting { name: "connection_age_max", default: r#""1h""#, listed: |s| duration(s.connection_age_max) },
    Setting {
        name: "stranger_connections_per_address_max",
        default: "64",
        listed: |s| s.stranger_connections_per_address_max.to_string(),
    },
    Setting { name: "slow_calls_max", default: "2048", listed: |s| s.slow_calls_max.to_string() },
    Setting {
        name: "failed_authentication_delay",
        default: r#""1s""#,
        listed: |s| duration(s.failed_authentication_delay),
    },
    Setting { name: "journal_segment_bytes", default: "16777216", listed: |s| s.journal_segment_bytes.to_string() },
    Setting {
        name: "journal_retention_bytes",
        default: "4294967296",
        listed: |s| s.journal_retention_bytes.to_string(),
    },
    Setting { name: "journal_retention_time", default: r#""1year""#, listed: |s| duration(s.journal_retention_time) },
    Setting { name: "backup_time_max", default: r#""10m""#, listed: |s| duration(s.backup_time_max) },
    Setting { name: "backup_aside_bytes_max", default: "268435456", listed: |s| s.backup_aside_bytes_max.to_string() },
    Setting { name: "tenants_max", default: "10000", listed: |s| s.tenants_max.to_string() },
    Setting { name: "owners_per_tenant_max", default: "100000", listed: |s| s.owners_per_tenant_max.to_string() },
    Setting { name: "scopes_per_tenant_max", default: "10000", listed: |s| s.scopes_per_tenant_max.to_string() },
    Setting {
        name: "stranger_request_bytes_max",
        default: "67108864",
        listed: |s| s.stranger_request_bytes_max.to_string(),
    },
    Setting { name: "request_bytes_max", default: "", listed: |s| s.request_bytes_max.to_string() },
    Setting {
        name: "expect_head",
        default: r#""""#,
        listed: |s| s.expect_head.as_ref().map_or_else(|| text(&""), text),
    },
    Setting { name: "access_log_sample", default: "0", listed: |s| s.access_log_sample.to_string() },
    Setting { name: "log_filter", default: r#""info""#, listed: |s| text(&s.log_filter) },
    Setting { name: "log_format", default: r#""text""#, listed: |s| word(&s.log_format) },
];

/// The defaults, as a TOML file.
pub(super) fn defaults() -> String {
    let with_default = SETTINGS.iter().filter(|setting| !setting.default.is_empty());
    with_default.map(|setting| format!("{} = {}\n", setting.name, setting.default)).collect()
}

/// A part of the settings of TLS, or an empty text.
fn of_tls(settings: &Settings, part: impl Fn(&TlsFiles) -> Option<String>) -> String {
    settings.tls.as_ref().and_then(part).unwrap_or_else(|| text(&""))
}

fn of_client_tls(settings: &Settings, part: impl Fn(&ClientTls) -> Option<String>) -> String {
    of_tls(settings, |tls| part(tls.client.as_ref()?))
}

/// A value of a few words, which are its variants.
pub(super) fn word(value: &impl std::fmt::Debug) -> String {
    text(&format!("{value:?}").to_lowercase())
}

fn duration(value: Duration) -> String {
    text(&humantime::format_duration(value))
}

/// A text as TOML. Characters that a terminal does not show are escaped.
pub(super) fn text(value: &impl Display) -> String {
    let mut toml = String::from('"');
    for c in value.to_string().chars() {
        match c {
            '"' | '\\' => toml.extend(['\\', c]),
            '\'' => toml.push(c),
            // `escape_debug` knows which characters are shown, but its escapes are Rust's.
            _ if c.escape_debug().len() == 1 => toml.push(c),
            _ => toml.push_str(&format!("\\U{:08X}", u32::from(c))),
        }
    }
    toml.push('"');
    toml
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use figment::Figment;
    use figment::providers::{Format, Toml};

    use super::*;
    use crate::config::Flags;

    #[test]
    fn every_setting_is_in_the_table_and_has_a_field() {
        let settings = Settings::load(&Flags::default(), None).unwrap().settings;
        let shown = format!("{settings:#?}");
        let fields = shown.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(": "));
        let fields: BTreeSet<&str> = fields.map(|(name, _)| name).filter(|name| !name.starts_with(' ')).collect();
        let listed: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
        // Three fields hold several settings, and one is on the command line alone.
        let elsewhere = BTreeSet::from(["first_admin", "sockets", "tls", "accept_watermark_loss"]);
        let parts = BTreeSet::from([
            "bootstrap_admin_file",
            "bootstrap_admin_digest",
            "socket_mode",
            "socket_group",
            "tls_certificate_file",
            "tls_key_file",
            "tls_client_ca_file",
            "tls_client_crl_file",
            "tls_client_certificates",
        ]);
        assert_eq!(&fields - &listed, elsewhere, "fields that are not in the table");
        assert_eq!(&listed - &fields, parts, "settings that have no field");
        assert_eq!(listed.len(), SETTINGS.len(), "a setting stands there once");
    }

    #[test]
    fn what_is_listed_reads_back_as_the_same() {
        let settings = Settings::load(&Flags::default(), None).unwrap().settings;
        let listed: String =
            SETTINGS.iter().map(|setting| format!("{} = {}\n", setting.name, (setting.listed)(&settings))).collect();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keyward.toml");
        std::fs::write(&file, listed).unwrap();
        let again = Settings::load(&Flags::default(), Some(file)).unwrap().settings;
        assert_eq!(format!("{again:?}"), format!("{settings:?}"));
    }

    #[test]
    fn any_text_is_listed_as_toml() {
        let shown = "/data 'of' \u{e9}\u{4e2d}";
        assert_eq!(text(&shown), format!("\"{shown}\""));
        for text in ["", "a\"b\\c\\u0041", "\0\t\n\u{7f}\u{85}", "\u{200b}\u{202e}\u{301}\u{e0001}", shown] {
            let read = Figment::from(Toml::string(&format!("text = {}", super::text(&text))));
            assert_eq!(read.extract_inner::<String>("text").as_deref(), Ok(text), "{}", super::text(&text));
        }
    }
}
