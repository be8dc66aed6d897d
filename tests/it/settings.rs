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
        .env("KEYWARD_PORT_50051_TCP_ADDR", "10.0.0.1")
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
