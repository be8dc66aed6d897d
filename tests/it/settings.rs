//! The configuration: where settings come from, and what is said of mistakes.

use std::fs;

use crate::binary::{keyward, text};

#[test]
fn all_mistakes_of_the_configuration_are_told_at_once_with_their_sources() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keyward.toml");
    fs::write(&file, "data_dri = \"x\"\nreflection = \"perhaps\"\nshutdown_deadline = \"soon\"\n").unwrap();
    let output = keyward(&["serve", "--listen", "0.0.0.0:1", "--listen", "nonsense", "--config"])
        .arg(&file)
        .env("KEYWARD_LOG_FORMAT", "yaml")
        .env("KEYWARD_LOG_FILTRE", "info")
        .output()
        .unwrap();
    let (_, error) = text(&output);
    assert_eq!(output.status.code(), Some(1));
    let expected = [
        "data_dri (in ",
        "reflection (in ",
        "shutdown_deadline (in ",
        "KEYWARD_LOG_FORMAT (in the environment)",
        "KEYWARD_LOG_FILTRE (in the environment): is not a setting",
        "listen (on the command line): must be an address",
    ];
    for part in expected {
        assert!(error.contains(part), "'{part}' in:\n{error}");
    }
    assert!(error.contains("has 6 mistakes"), "{error}");
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

#[test]
fn what_is_empty_is_refused_by_name() {
    for name in
        ["KEYWARD_DATA_DIR", "KEYWARD_PEPPER_FILE", "KEYWARD_LISTEN", "KEYWARD_LOG_FILTER", "KEYWARD_DRAIN_DELAY"]
    {
        let output = keyward(&["config"]).env(name, "").output().unwrap();
        let (listing, error) = text(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {listing}");
        assert!(error.contains(&format!("{name} (in the environment): ")), "{name}: {error}");
        assert!(!error.contains("  ,") && !error.contains(": :"), "{error}");
    }
    for flag in ["--data-dir", "--pepper-file", "--config"] {
        let (_, error) = text(&keyward(&["config", flag, ""]).output().unwrap());
        assert!(error.contains(&format!("a value is required for '{flag}")), "{error}");
    }
    let (_, error) = text(&keyward(&["config"]).env("KEYWARD_CONFIG", "").output().unwrap());
    assert!(error.contains("--config"), "{error}");
}

#[test]
fn a_log_filter_that_would_silence_everything_is_refused() {
    for filter in ["inof", "keywrad=debug", "h2=debug", "", "[span]=info"] {
        let (_, error) = text(&keyward(&["config", "--log-filter", filter]).output().unwrap());
        let said = "log_filter (on the command line): would silence every line";
        assert!(error.contains(said), "{filter}: {error}");
    }
    for filter in ["off", "WARN", "info,h2=debug", "keyward::http2=trace", "h2=off, error"] {
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
