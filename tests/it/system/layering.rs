//! Imports point inward. The compiler checks that for `keyward-core`; this test does for the rest.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// For each module of the crate, the modules that it may name.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    (
        "app",
        &[
            "authority",
            "config",
            "disk_monitor",
            "fast_path",
            "faults",
            "feed",
            "first_use",
            "grpc",
            "health",
            "index",
            "keyring",
            "layer",
            "metrics",
            "server",
            "services",
            "store",
            "systemd",
            "util",
            "verify",
        ],
    ),
    ("authority", &["fair", "first_use", "index", "store", "util"]),
    ("bytes_codec", &[]),
    ("cli", &["app", "config", "offline", "remote", "server", "telemetry", "util"]),
    ("config", &["server", "services", "telemetry", "util"]),
    ("disk_monitor", &["health", "store"]),
    ("fair", &[]),
    ("fast_path", &["bytes_codec", "grpc", "index", "layer", "metrics", "server", "services", "verify"]),
    ("faults", &[]),
    ("feed", &[]),
    ("first_use", &[]),
    ("grpc", &["authority", "first_use", "health", "index", "metrics", "services", "util", "verify"]),
    ("health", &[]),
    ("index", &["bytes_codec", "store", "util"]),
    ("keyring", &["util"]),
    ("layer", &["authority", "grpc", "index", "metrics", "server", "services", "verify"]),
    ("main", &[]),
    ("metrics", &[]),
    ("offline", &["authority", "config", "keyring", "server", "store", "util"]),
    ("remote", &["grpc", "offline", "server", "util"]),
    ("server", &["metrics", "util"]),
    ("services", &[]),
    ("store", &["bytes_codec", "fair", "feed", "util"]),
    ("systemd", &["server"]),
    ("telemetry", &[]),
    ("util", &[]),
    ("verify", &["index"]),
];

/// What names an engine. Outside of `store`, only [`ENGINE_USERS`] may.
const ENGINES: &[&str] = &["store::local", "store::memory"];

/// What configures an engine for a server, and what works offline on what an engine keeps.
const ENGINE_USERS: &[&str] = &["app/engines.rs", "offline.rs"];

/// For each room of the local engine, the rooms that it may name: none leads back. `mod.rs` puts them
/// together and may name all; `engine.rs` lies above it.
const LOCAL_MAY_IMPORT: &[(&str, &[&str])] = &[
    ("cached_stats", &[]),
    ("checkpoint", &["cached_stats", "dir", "disk_space", "journal", "options", "replies", "table"]),
    ("committer", &["checkpoint", "disk_space", "journal", "retries", "table", "write_buffer"]),
    ("dir", &["disk_space", "error"]),
    ("disk_probe", &["cached_stats", "disk_space"]),
    ("disk_space", &[]),
    ("error", &["journal", "table"]),
    ("journal", &["disk_space"]),
    ("log_reader", &["journal", "recovery"]),
    ("options", &["disk_space"]),
    ("replies", &[]),
    ("retries", &["checkpoint", "error", "journal", "recovery", "replies"]),
    ("recovery", &["checkpoint", "dir", "disk_space", "error", "journal", "options", "table"]),
    ("table", &["disk_space", "journal", "write_buffer"]),
    ("write_buffer", &[]),
];

/// Crates that only some modules may name.
const CRATES: &[(&str, &[&str])] = &[
    ("sled", &["store"]),
    ("tonic", &["app", "fast_path", "grpc", "layer", "remote", "server"]),
    ("clap", &["cli", "main"]),
    ("figment", &["config"]),
    ("grpc_h2", &["app", "fast_path", "grpc", "layer", "server"]),
    ("hyper", &["layer", "server"]),
    ("hyper_util", &["server"]),
    ("icu_properties", &["grpc", "util"]),
    ("indicatif", &["util"]),
    ("prometheus_client", &["metrics"]),
    ("rand", &["util"]),
    ("rustls", &["remote", "server", "util"]),
    ("sd_listen_fds", &["server"]),
    ("tokio_rustls", &["server"]),
    ("x509_parser", &["server"]),
    ("sd_notify", &["systemd"]),
    ("unicode_normalization", &["grpc"]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The modules and crates that a file names, by `crate::…` and `use …`.
fn names(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut names = BTreeSet::new();
    for line in code {
        for (at, _) in line.match_indices("crate::") {
            let name: String = line[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            names.insert(format!("crate::{name}"));
        }
        if let Some(used) = line.trim_start().strip_prefix("use ").or(line.trim_start().strip_prefix("pub use ")) {
            names.insert(used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    names
}

#[test]
fn every_module_names_only_what_lies_further_in() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![];
    sources(&root, &mut files);
    let mut modules = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let relative = file.strip_prefix(&root).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if module == "lib" {
            continue;
        }
        let (_, allowed) =
            MAY_IMPORT.iter().find(|(name, _)| *name == module).unwrap_or_else(|| panic!("{module} has no rule"));
        for name in names(&text) {
            if let Some(inner) = name.strip_prefix("crate::") {
                assert!(
                    inner == module || allowed.contains(&inner),
                    "{}: {module} may not name {inner}",
                    file.display()
                );
            } else if let Some((_, users)) = CRATES.iter().find(|(krate, _)| *krate == name) {
                assert!(users.contains(&&*module), "{}: {module} may not name the crate {name}", file.display());
            }
        }
        if module != "store" && !ENGINE_USERS.iter().any(|user| relative == Path::new(user)) {
            for engine in ENGINES {
                assert!(!text.contains(engine), "{}: only {ENGINE_USERS:?} name an engine", file.display());
            }
        }
        modules.insert(module);
    }
    let ruled: BTreeSet<_> = MAY_IMPORT.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(modules, ruled, "every rule is about a module that is there");
}

#[test]
fn rooms_of_the_local_engine_name_only_those_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/local");
    let mut files = vec![];
    sources(&root, &mut files);
    let mut rooms = BTreeSet::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let room = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if ["mod", "engine", "tests", "fuzz_targets"].contains(&&*room) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let path = if relative.components().count() == 1 { "super::" } else { "crate::store::local::" };
        let (_, allowed) =
            LOCAL_MAY_IMPORT.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("{room} has no rule"));
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for (at, _) in line.match_indices(path) {
                let name: String =
                    line[at + path.len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(name == room || allowed.contains(&&*name), "{}: {room} may not name {name:?}", file.display());
            }
        }
        assert!(room == "table" || !code.contains("sled::"), "{}: only the table names sled", file.display());
        rooms.insert(room);
    }
    let ruled: BTreeSet<_> = LOCAL_MAY_IMPORT.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(rooms, ruled, "every rule is about a room that is there");
    for (name, below) in LOCAL_MAY_IMPORT {
        assert!(!leads_to(below, name), "the rules lead from {name} back to it");
    }
}

/// Whether rooms lead to another one, by the rules.
fn leads_to(rooms: &[&str], to: &str) -> bool {
    let below = |room: &str| LOCAL_MAY_IMPORT.iter().find(|(name, _)| *name == room).map(|(_, below)| *below);
    // A path without a cycle is no longer than there are rooms.
    let mut reached: BTreeSet<&str> = rooms.iter().copied().collect();
    for _ in LOCAL_MAY_IMPORT {
        reached = reached
            .iter()
            .flat_map(|room| below(room).unwrap_or(&[]).iter().copied())
            .chain(reached.iter().copied())
            .collect();
    }
    reached.contains(to)
}

/// The wire counts by the handle it is given, and knows of no other metric.
#[test]
fn grpc_has_metrics_only_by_a_handle_in_ready() {
    let mut files = vec![];
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/grpc"), &mut files);
    for file in files.iter().filter(|file| !file.ends_with("state.rs")) {
        let text = fs::read_to_string(file).unwrap();
        assert!(!names(&text).contains("crate::metrics"), "{}", file.display());
    }
}

/// What a verdict reads is memory. The store is known where the index follows it, and nowhere else.
#[test]
fn the_index_knows_a_store_only_where_it_follows_the_log() {
    let mut files = vec![];
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/index"), &mut files);
    let knows = |file: &&PathBuf| names(&fs::read_to_string(file).unwrap()).contains("crate::store");
    let found: Vec<_> = files.iter().filter(knows).filter_map(|file| file.file_name()).collect();
    assert_eq!(found, ["follow.rs"]);
}

#[test]
fn the_verdict_never_waits() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = [
        "src/fast_path/mod.rs",
        "src/fast_path/reply.rs",
        "src/fast_path/codec.rs",
        "src/fast_path/prefetch.rs",
        "src/grpc/query.rs",
        "src/verify.rs",
        "core/src/decision.rs",
        "core/src/secret.rs",
        "core/src/digest.rs",
    ];
    for file in files {
        let text = fs::read_to_string(root.join(file)).unwrap();
        for word in ["async", ".await", "std::fs", "std::io", "Mutex", "RwLock"] {
            let code = text.split("#[cfg(test)]").next().unwrap();
            let found = code.lines().find(|line| line.contains(word) && !line.trim_start().starts_with("//"));
            assert_eq!(found, None, "{file} has {word}");
        }
    }
}

#[test]
fn the_core_depends_on_nothing_that_does_io() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("core/Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split('[').next().unwrap();
    let names: Vec<_> = dependencies
        .lines()
        .filter_map(|line| line.split([' ', '=']).next())
        .filter(|n| !["", "#"].contains(n))
        .collect();
    assert_eq!(names, ["blake3", "crc", "ipnet", "thiserror", "ulid", "zeroize"], "each new one is a decision");
}
