//! What failures say, and their exit codes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{User, done};
use crate::support::program::keyward;

#[test]
fn exit_codes_tell_kinds_of_failure_apart() {
    let user = User::start();
    user.does(&["key", "create", "zapier", "--display-name", "Zapier"]);
    let viewer = user.caller("viewer", "viewer@default");
    for (args, code, says) in [
        (&["key", "create"][..], 2, &["--display-name <TEXT>"][..]),
        (&["key", "create", "--display-name", "x", "--expires", "soon"], 2, &["--expires <TIME>", "in 90d"]),
        (&["key", "create", "--display-name", "x", "--scope", "a b"], 2, &["scopes[0] (--scope, --role): must be"]),
        (&["key", "create", "--display-name", "x", "--expires", "2020-01-01"], 2, &["expire_time (--expires): "]),
        (&["key", "get", "nobody"], 4, &["KEY_NOT_FOUND", "keyward key list"]),
        (&["tenant", "get", "nobody"], 4, &["TENANT_NOT_FOUND", "keyward tenant list"]),
        (&["key", "create", "zapier", "--display-name", "x"], 6, &["KEY_EXISTS", "another KEY_ID"]),
        (&["key", "disable", "zapier", "--etag", "old"], 6, &["ETAG_MISMATCH", "keyward key get"]),
        (&["key", "disable", "zapier", "--key-file", &viewer], 5, &["DisableKey needs the role keyward.operator"]),
        (&["tenant", "create", "acme", "--key-file", &viewer], 5, &["keyward.admin of all tenants"]),
        (&["caller", "create", "king", "--display-name", "x", "--role", "king"], 2, &["must be a role"]),
        (&["key", "list", "--key-file", "nowhere"], 1, &["nowhere: No such file", "--key-file"]),
        (&["key", "list", "--server", "127.0.0.1:1"], 3, &["no server answers at 127.0.0.1:1"]),
        (&["key", "list", "--timeout", "1000years"], 2, &["must be at most 1h"]),
        (&["key", "list", "--server", "127.0.0.1"], 2, &["a host or an address with a port"]),
        (&["key", "list", "--context", "other"], 4, &["no context 'other'", "keyward context list"]),
    ] {
        user.fails(args, code, says);
    }
    let exposed = user.path("exposed.key");
    fs::copy(user.path("data/admin.key"), &exposed).unwrap();
    fs::set_permissions(&exposed, fs::Permissions::from_mode(0o644)).unwrap();
    user.fails(&["key", "list", "--key-file", &exposed], 1, &["has mode 0644", "chmod 600"]);
    let wrong = user.path("wrong.key");
    fs::write(&wrong, "none\n").unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).unwrap();
    user.fails(&["key", "list", "--key-file", &wrong], 5, &["CREDENTIAL_REFUSED", "--key-file"]);

    // A server that stands still, and one that is gone.
    user.server.signal("STOP");
    let disable = ["key", "disable", "zapier", "--timeout", "300ms"];
    user.fails(&disable, 3, &["has not answered DisableKey within 300ms", "may have been made"]);
    // A read, and a change that was never sent, have changed nothing.
    for (args, says) in [
        (&["key", "list"][..], "has not answered ListKeys within 300ms"),
        (&["key", "disable", "zapier", "--tls"], "has not answered a connection within 300ms"),
    ] {
        let done = user.tries(&[args, &["--timeout", "300ms"]].concat());
        assert_eq!(done.code, 3, "{args:?} {}", done.err);
        assert!(done.err.contains(says) && !done.err.contains("may have been made"), "{args:?} {}", done.err);
    }
    user.server.signal("CONT");
    let User { server, dir } = user;
    server.signal("KILL");
    let addr = server.addr.clone();
    server.end();
    let gone = done(&keyward(&["key", "list"]).env("HOME", dir.path()).output().unwrap());
    assert_eq!(gone.code, 3);
    assert!(gone.err.contains(&format!("no server answers at {addr}")), "{}", gone.err);
}
