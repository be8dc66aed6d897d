//! The configuration: the sources of settings, and the messages about mistakes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::support::certificates::Files;
use crate::support::program::{Program, keyward, text};

#[test]
fn all_mistakes_of_the_configuration_are_told_at_once_with_their_sources() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keyward.toml");
    fs::write(&file, "data_dri = \"x\"\nreflection = \"perhaps\"\nshutdown_deadline = \"soon\"\n").unwrap();
    let output = keyward(&["serve", "--listen", "0.0.0.0:1", "--listen", "nonsense", "--config"])
        .arg(&file)
        .env("KEYWARD_LOG_FORMAT", "yaml")
        .env("KEYWARD_HTTP2", "h3")
        .env("KEYWARD_LOG_FILTRE", "info")
        .output()
        .unwrap();
    let (_, error) = text(&output);
    assert_eq!(output.status.code(), Some(1));
    let expected = [
        "data_dri (in ",
        "reflection (in ",
        "shutdown_deadline (in ",
        "KEYWARD_LOG_FORMAT (in the environment): is yaml, and must be text or json",
        "KEYWARD_HTTP2 (in the environment): is h3, and must be own or hyper",
        "KEYWARD_LOG_FILTRE (in the environment): is not a setting",
        "listen (on the command line): must be an address",
    ];
    for part in expected {
        assert!(error.contains(part), "'{part}' in:\n{error}");
    }
    assert!(error.contains("has 7 mistakes"), "{error}");
}

#[test]
fn plaintext_is_not_offered_to_other_machines_unless_that_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let output = keyward(&["serve", "--listen", listen, "--data-dir"]).arg(dir.path()).output().unwrap();
        let (_, error) = text(&output);
        assert_eq!(output.status.code(), Some(1));
        assert!(error.contains("--allow-plaintext"), "{error}");
    }
    let output = keyward(&["config", "--listen", "0.0.0.0:0", "--allow-plaintext"]).output().unwrap();
    assert!(output.status.success());
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keyward.toml");
    fs::write(&file, "log_filter = \"warn\"\nlog_format = \"json\"\ndata_dir = \"from-file\"\n").unwrap();
    let output = keyward(&["config", "--data-dir", "from-flag", "--config"])
        .arg(&file)
        .env("KEYWARD_DATA_DIR", "from-env")
        .env("KEYWARD_LOG_FORMAT", "text")
        .env("KEYWARD_LISTEN", "127.0.0.1:1, unix:/x")
        // What Kubernetes puts there for a Service that is called keyward.
        .env("KEYWARD_SERVICE_HOST", "10.0.0.1")
        .env("KEYWARD_SERVICE_PORT_GRPC", "50051")
        .env("KEYWARD_PORT", "tcp://10.0.0.1:50051")
        .env("KEYWARD_PORT_50051_TCP", "tcp://10.0.0.1:50051")
        .env("KEYWARD_PORT_50051_TCP_ADDR", "10.0.0.1")
        .env("KEYWARD_HEADLESS_PORT_53_UDP_PROTO", "udp")
        .env("KEYWARD_HEADLESS_PORT", "sctp://10.0.0.1:50051")
        .output()
        .unwrap();
    let (listing, error) = text(&output);
    assert!(output.status.success(), "{error}");
    for line in [
        "data_dir = \"from-flag\" # on the command line",
        "listen = [\"127.0.0.1:1\", \"unix:/x\"] # in the environment",
        "ops_listen = \"off\" # in the environment",
        "pepper_file = \"from-flag/pepper\" # default",
        "log_format = \"text\" # in the environment",
        "reflection = true # default",
    ] {
        assert!(listing.lines().any(|printed| printed == line), "'{line}' in:\n{listing}");
    }
    assert!(listing.contains("log_filter = \"warn\" # in "), "{listing}");
    let own = dir.path().join("own.toml");
    fs::write(&own, &listing).unwrap();
    let again = keyward(&["config", "--config"]).arg(&own).output().unwrap();
    assert!(again.status.success(), "what it prints is a file that it reads: {}", text(&again).1);
}

#[test]
fn a_configuration_file_can_be_named_in_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keyward.toml");
    fs::write(&file, "reflection = false\n").unwrap();
    let output = keyward(&["config"]).env("KEYWARD_CONFIG", &file).output().unwrap();
    let (listing, error) = text(&output);
    assert!(listing.contains("reflection = false # in "), "{listing}{error}");
}

#[test]
fn a_configuration_file_that_is_not_there_or_not_toml_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keyward.toml");
    let output = keyward(&["config", "--config"]).arg(&file).output().unwrap();
    assert!(text(&output).1.contains("keyward.toml is not there"), "{}", text(&output).1);
    fs::write(&file, "listen = [").unwrap();
    let output = keyward(&["config", "--config"]).arg(&file).output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).1.contains("keyward.toml"), "{}", text(&output).1);
}

#[test]
fn a_variable_is_refused_unless_it_is_a_setting_or_a_link_of_kubernetes() {
    let wrong = [
        ("KEYWARD_PORT", "6000"),
        ("KEYWARD_GRPC_PORT", "1"),
        ("KEYWARD_IMPORT", "x"),
        ("KEYWARD_SERVICE_PORTS", "1"),
        ("KEYWARD_PORT_GRPC", "1"),
        ("KEYWARD_PORT_1_TCP_NAME", "x"),
        ("KEYWARD_PORT_X_TCP", "x"),
        ("KEYWARD_SERVICE_HOSTS", "x"),
    ];
    for (name, value) in wrong {
        let output = keyward(&["config"]).env(name, value).output().unwrap();
        let (_, error) = text(&output);
        assert!(error.contains(&format!("{name} (in the environment): is not a setting")), "{name}: {error}");
    }
}

/// A setting that may be empty says so by its default.
#[test]
fn what_is_empty_is_as_if_it_were_not_set_or_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keyward.toml");
    let unset = text(&keyward(&["config"]).env_remove("KEYWARD_OPS_LISTEN").output().unwrap()).0;
    assert!(unset.lines().count() > 30, "{unset}");
    for line in unset.lines() {
        let (name, value) = line.strip_suffix(" # default").unwrap().split_once(" = ").unwrap();
        let variable = format!("KEYWARD_{}", name.to_uppercase());
        for empty in ["", "  "] {
            fs::write(&file, format!("{name} = \"{empty}\"\n")).unwrap();
            let of_file = keyward(&["config", "--config"]).arg(&file).env_remove("KEYWARD_OPS_LISTEN").output();
            let of_environment = keyward(&["config"]).env(&variable, empty).output();
            for (output, source) in [
                (of_file.unwrap(), format!("{name} (in {})", file.display())),
                (of_environment.unwrap(), format!("{variable} (in the environment)")),
            ] {
                let (listing, error) = text(&output);
                if value == "\"\"" {
                    let is_listed = listing.lines().any(|line| line.starts_with(&format!("{name} = \"\" # in ")));
                    assert!(is_listed, "{source}: {listing}{error}");
                } else {
                    let said = format!("keyward: the configuration has 1 mistake:\n  - {source}: must not be empty\n");
                    assert_eq!((output.status.code(), error), (Some(1), said));
                }
            }
        }
    }
    for flag in ["--data-dir", "--pepper-file", "--config"] {
        let (_, error) = text(&keyward(&["config", flag, ""]).output().unwrap());
        assert!(error.contains(&format!("a value is required for '{flag}")), "{error}");
    }
    for flag in ["--ops-listen", "--log-filter"] {
        let (_, error) = text(&keyward(&["config", flag, ""]).output().unwrap());
        assert!(error.contains("(on the command line): must not be empty"), "{flag}: {error}");
    }
    let (_, error) = text(&keyward(&["config"]).env("KEYWARD_CONFIG", "").output().unwrap());
    assert!(error.contains("--config"), "{error}");
}

#[test]
fn a_value_of_another_kind_is_told_with_what_it_must_be() {
    for (name, value, said) in [
        ("KEYWARD_REFLECTION", "perhaps", "is perhaps, and must be true or false"),
        ("KEYWARD_OPS_TLS", "1", "is 1, and must be true or false"),
        ("KEYWARD_TENANTS_MAX", "many", "is many, and must be a whole number"),
        ("KEYWARD_TENANTS_MAX", "-1", "is -1, and must be a whole number"),
        ("KEYWARD_SERVING_THREADS", "1.5", "is 1.5, and must be a whole number"),
        ("KEYWARD_JOURNAL_SEGMENT_BYTES", "16MiB", "is 16MiB, and must be a whole number"),
        ("KEYWARD_LISTENER", "127.0.0.1:1", "is 127.0.0.1:1, and must be a list"),
        ("KEYWARD_LISTEN", "6000", "must be an address with a port, or a list of such"),
        ("KEYWARD_DATA_DIR", "[1]", "is a list, and must be a text"),
        ("KEYWARD_HTTP2", "2", "is 2, and must be own or hyper"),
        ("KEYWARD_DRAIN_DELAY", "5", "must be a duration such as 10s or 2m"),
    ] {
        let (_, error) = text(&keyward(&["config"]).env(name, value).output().unwrap());
        let line = format!("keyward: the configuration has 1 mistake:\n  - {name} (in the environment): {said}\n");
        assert_eq!(error, line);
    }
}

#[test]
fn what_is_not_a_setting_is_told_with_what_was_meant() {
    for (name, meant) in [
        ("KEYWARD_LOG_FILTRE", "; did you mean KEYWARD_LOG_FILTER?"),
        ("KEYWARD_DATADIR", "; did you mean KEYWARD_DATA_DIR?"),
        ("KEYWARD_PORT", "; a port is part of an address, as in KEYWARD_LISTEN"),
        ("KEYWARD_GRPC_PORT", "; a port is part of an address, as in KEYWARD_LISTEN"),
        ("KEYWARD_COLOUR", ""),
    ] {
        let (_, error) = text(&keyward(&["config"]).env(name, "6000").output().unwrap());
        assert!(error.ends_with(&format!("{name} (in the environment): is not a setting{meant}\n")), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keyward.toml");
    fs::write(&file, "data_dri = \"x\"\nport = 6000\n").unwrap();
    let (_, error) = text(&keyward(&["config", "--config"]).arg(&file).output().unwrap());
    assert!(error.contains("is not a setting; did you mean data_dir?\n"), "{error}");
    assert!(error.contains("is not a setting; a port is part of an address, as in listen\n"), "{error}");
}

#[test]
fn a_log_filter_that_would_silence_everything_is_refused() {
    for filter in ["inof", "keywrad=debug", "h2=debug", "keywards=debug", "keyward-core=info", "[span]=info"] {
        let (_, error) = text(&keyward(&["config", "--log-filter", filter]).output().unwrap());
        let said = "log_filter (on the command line): would silence every line";
        assert!(error.contains(said), "{filter}: {error}");
    }
    for filter in
        ["off", "WARN", "info,h2=debug", "keyward", "keyward[call]=info", "keyward::grpc=trace", "h2=off, error"]
    {
        let output = keyward(&["config", "--log-filter", filter]).output().unwrap();
        assert!(output.status.success(), "{filter}: {}", text(&output).1);
    }
}

#[test]
fn a_socket_outside_the_file_system_is_refused() {
    for flag in ["--listen", "--ops-listen"] {
        let (_, error) = text(&keyward(&["config", flag, "unix:@keyward"]).output().unwrap());
        assert!(error.contains("must be the path of a socket in the file system"), "{error}");
    }
}

#[test]
fn a_configuration_that_is_no_file_is_told_as_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (_, error) = text(&keyward(&["config", "--config"]).arg(dir.path()).output().unwrap());
    assert!(error.contains("is a directory"), "{error}");
    fs::write(dir.path().join("binary"), [0xff, 0xfe]).unwrap();
    let (_, error) = text(&keyward(&["config", "--config"]).arg(dir.path().join("binary")).output().unwrap());
    assert!(error.contains("is not UTF-8"), "{error}");
    // A pipe is as good as a file.
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, b"reflection = false\n").unwrap();
    drop(writer);
    let output = keyward(&["config", "--config", "/dev/stdin"]).stdin(reader).output().unwrap();
    assert!(text(&output).0.contains("reflection = false # in /dev/stdin"), "{}", text(&output).1);
}

#[test]
fn the_files_that_a_configuration_names_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let (data, pepper) = (dir.path().join("data"), dir.path().join("pepper"));
    let config = |listen: &str| {
        let mut command = keyward(&["config", "--listen", listen, "--data-dir"]);
        let output = command.arg(&data).arg("--pepper-file").arg(&pepper).output().unwrap();
        let (listing, error) = text(&output);
        assert!(listing.contains("log_format = "), "it prints what they come to all the same: {error}");
        (output.status.code(), error)
    };
    assert_eq!(config("127.0.0.1:1"), (Some(0), String::new()), "a first start makes what is missing");
    assert!(!data.exists() && !pepper.exists(), "and only that does");
    let (code, error) = config(&format!("unix:{}/none/socket", dir.path().display()));
    assert!(code == Some(1) && error.contains("/none is to have a socket"), "{error}");
    let (code, error) = config(&format!("unix:{}", std::env::current_exe().unwrap().display()));
    assert!(code == Some(1) && error.contains("is there, and no socket"), "{error}");

    fs::write(&pepper, "root 00\n").unwrap();
    fs::set_permissions(&pepper, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(config("127.0.0.1:1").1.contains("may be read by others"));
    fs::set_permissions(&pepper, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(config("127.0.0.1:1").1.contains("line 1: must have 64 hex digits"));
    fs::remove_file(&pepper).unwrap();
    fs::write(&data, "a file").unwrap();
    assert!(config("127.0.0.1:1").1.contains("data is not a directory"));
    let serve = keyward(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&data).output().unwrap();
    assert_eq!(text(&serve).1, format!("keyward: the data directory {}: is not a directory\n", data.display()));
    fs::remove_file(&data).unwrap();

    let certificates = Files::write(dir.path());
    let with_tls = |key: &str| {
        let mut command = keyward(&["config", "--data-dir"]);
        command.arg(&data).arg("--pepper-file").arg(&pepper);
        command.arg("--tls-certificate").arg(certificates.dir.join("server.pem"));
        let output = command.arg("--tls-key").arg(certificates.dir.join(key)).output().unwrap();
        (output.status.code(), text(&output).1)
    };
    assert_eq!(with_tls("server.key"), (Some(0), String::new()));
    let (code, error) = with_tls("ca.pem");
    assert!(code == Some(1) && error.contains("it has no private key in PEM"), "{error}");

    let program = Program::serve(&data, &["--pepper-file", pepper.to_str().unwrap()]);
    assert_eq!(config("127.0.0.1:1"), (Some(0), String::new()), "also while a server uses them");
    program.signal("TERM");
    program.end();
    fs::remove_file(&pepper).unwrap();
    let (code, error) = config("127.0.0.1:1");
    assert!(
        code == Some(1) && error.contains("pepper is missing, and the keys of this data verify only with it"),
        "{error}"
    );
    fs::write(data.join("format"), "keyward-data 9\n").unwrap();
    let (_, error) = config(&format!("unix:{}/none/socket", dir.path().display()));
    assert!(error.contains("2 files that the configuration names") && error.contains("keyward-data 9"), "{error}");
}

#[test]
fn unix_sockets_have_the_mode_and_the_group_that_are_set() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, ops) = (dir.path().join("socket"), dir.path().join("ops"));
    let (listen, ops_listen) = (format!("unix:{}", socket.display()), format!("unix:{}", ops.display()));
    // Only root may give a file to a group that it is not in.
    let own = fs::metadata(dir.path()).unwrap().gid();
    let group = if rustix::process::geteuid().is_root() { 4_321 } else { own };
    let serve = |environment: &[(&str, &str)]| {
        let mut command = keyward(&["serve", "--listen", "127.0.0.1:0", "--listen", &listen, "--data-dir"]);
        command.arg(dir.path().join("data")).env("KEYWARD_OPS_LISTEN", &ops_listen).envs(environment.iter().copied());
        let program = Program::of(command.stderr(std::process::Stdio::piped()).spawn().unwrap());
        let found = [&socket, &ops].map(|path| {
            let found = fs::metadata(path).unwrap();
            (found.mode() & 0o7777, found.gid())
        });
        program.signal("TERM");
        assert_eq!(program.end().0, Some(0));
        found
    };
    assert_eq!(serve(&[]), [(0o660, own); 2], "as it was");
    let number = group.to_string();
    assert_eq!(serve(&[("KEYWARD_SOCKET_MODE", "0666"), ("KEYWARD_SOCKET_GROUP", &number)]), [(0o666, group); 2]);
    assert_eq!(serve(&[("KEYWARD_SOCKET_MODE", "600")]), [(0o600, own); 2]);

    let file = dir.path().join("keyward.toml");
    let config = |text: &str| {
        fs::write(&file, text).unwrap();
        keyward(&["config", "--config"]).arg(&file).output().unwrap()
    };
    let (listing, error) = text(&config("socket_mode = \"0606\"\nsocket_group = \"root\"\n"));
    assert!(
        listing.contains("socket_mode = \"0606\" # in ") && listing.contains("socket_group = \"root\" # in "),
        "{error}"
    );
    for (wrong, said) in [
        ("socket_mode = 0o660", "socket_mode (in "),
        ("socket_mode = 660", "must be a text of octal digits"),
        ("socket_mode = \"0888\"", "must be a text of octal digits"),
        ("socket_mode = \"1777\"", "must be a text of octal digits"),
        ("socket_group = \"no such group\"", "socket_group (in "),
    ] {
        let (_, error) = text(&config(wrong));
        assert!(error.contains(said), "{wrong}: {error}");
    }
}

/// The table of docs/settings.md has every setting, and no other.
#[test]
fn the_table_of_settings_is_complete() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/settings.md")).unwrap();
    let table = page.split("| file | flag | default |").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut documented: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let (listing, _) = text(&keyward(&["config"]).output().unwrap());
    let mut settings: Vec<_> = listing.lines().filter_map(|line| line.split(' ').next()).collect();
    // What is described one by one has a heading of its own in the file.
    documented.iter_mut().for_each(|name| *name = name.trim_matches(['[', ']']));
    settings.sort_unstable();
    documented.sort_unstable();
    assert_eq!(documented, settings);
}
