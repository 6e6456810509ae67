use std::time::Duration;

use super::*;

const GOOD: &str = r#"
ovm_endpoint = "https://manager.example:7002/"
[jwt]
secret = "0123456789abcdef0123456789abcdef"
[repositories]
paths = ["/OVS/Repositories/0004fb0000030000a1b2c3d4e5f60718"]
"#;

#[test]
fn the_example_lists_every_key_with_its_default() {
    let sample: toml::Table = include_str!("../../config.example.toml").parse().unwrap();
    assert_eq!(sample, toml::Table::try_from(file::File::default()).unwrap());
}

#[test]
fn a_short_file_is_enough() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.manager.endpoint.as_deref(), Some("https://manager.example:7002"));
    assert_eq!(config.manager.path, "/ovm/core/wsapi/rest/Repository/id");
    assert_eq!(config.manager.trust, Trust::System);
    assert_eq!(config.jwt.time_to_live, Duration::from_secs(168 * 3600));
    assert_eq!((config.api.bind.to_string(), config.api.port), ("0.0.0.0".to_owned(), 5544));
    let (id, path) = &config.repositories.paths[0];
    assert_eq!(id, "0004fb0000030000a1b2c3d4e5f60718");
    assert_eq!(path, Path::new("/OVS/Repositories/0004fb0000030000a1b2c3d4e5f60718"));
}

#[test]
fn the_log_is_rotated_as_configured() {
    let text = GOOD.replace("[jwt]", "log_file = \"/x.log\"\n[log]\nmax_size = 4096\nmax_files = 2\n[jwt]");
    let log = parse(&text).unwrap().log;
    assert_eq!((log.file.as_deref(), log.max_size, log.max_files), (Some(Path::new("/x.log")), 4096, 2));
}

#[test]
fn every_wrong_key_is_named_with_a_remedy() {
    let with_text = |from: &str, to: &str| {
        assert!(GOOD.contains(from), "{from:?} is not in the good file");
        GOOD.replace(from, to)
    };
    let with = |from: &str, to: &str| parse(&with_text(from, to)).unwrap_err().to_string();
    let secret = r#"secret = "0123456789abcdef0123456789abcdef""#;
    let published = r#"secret = "yoidthOcBauphFeykCotdidNorjAnAtGhonsabShegAtfexbavlyakPak4SletEd""#;
    let repositories = r#"paths = ["/OVS/Repositories/0004fb0000030000a1b2c3d4e5f60718"]"#;
    let without_agent = |line: &str| {
        let text = with_text("https://manager.example:7002/", "").replace(repositories, line);
        parse(&(text + "ovs_agent_db = \"\"\n")).unwrap_err().to_string()
    };
    let cases = [
        (
            with(secret, r#"secret = "short""#),
            "jwt.secret: is shorter than 32 bytes; leave it empty and the service makes one",
        ),
        (with(secret, published), "jwt.secret: is a published sample"),
        (
            with(secret, "secret = \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\""),
            "jwt.secret: has fewer than 8 different",
        ),
        (with("[jwt]", "[hooks.sync]\nsecret = \"…\"\n[jwt]"), "hooks.sync.secret: is the placeholder"),
        (
            with("[jwt]", "[hooks.sync]\nsecret = \"0123456789abcdef0123456789abcdef\"\n[jwt]"),
            "jwt.secret: is the same as hooks.sync.secret",
        ),
        (with("https://manager", "http://manager"), "ovm_endpoint: would send passwords in the clear"),
        (with("https://manager.example:7002/", "manager"), "ovm_endpoint: "),
        (with("https://manager", "https://root:x@manager"), "ovm_endpoint: contains a user name"),
        (with("https://manager", "root:x@manager"), "ovm_endpoint: invalid URL \"(not shown)@manager"),
        (without_agent(r#"paths = ["/OVS/Repositories/a"]"#), "ovm_endpoint: is empty"),
        (without_agent(""), "repositories.paths: is empty"),
        (with(repositories, r#"paths = ["relative"]"#), "repositories.paths: invalid path \"relative\"; "),
        (with(repositories, r#"paths = ["/a/repo", "/b/repo"]"#), "have the same folder name"),
        (with("[jwt]", "[jwt]\ntime_to_live = \"7 parsecs\""), "jwt.time_to_live: invalid duration \"7 parsecs\"; "),
        (with("[jwt]", "[jwt]\nsecret_overlap = \"-1h\""), "jwt.secret_overlap: invalid duration \"-1h\"; "),
        (with("[jwt]", "[jwt]\naccess_time_to_live = \"0\""), "jwt.access_time_to_live: invalid duration \"0\"; "),
        (with("[jwt]", "[jwt]\nrecheck_after = \"often\""), "jwt.recheck_after: invalid duration \"often\"; "),
        (with("[jwt]", "[login]\nfailures_per_address = -1\n[jwt]"), "line "),
        (with("[jwt]", "[api]\nbind = \"localhost\"\n[jwt]"), "api.bind: invalid IP address \"localhost\"; "),
        (with("[jwt]", "[api]\nport = 0\n[jwt]"), "api.port: invalid port 0; "),
        (with("[jwt]", "[api]\nport = 70000\n[jwt]"), "line 4: "),
        (with("[jwt]", "[api]\nmax_connections_per_address = 0\n[jwt]"), "api.max_connections_per_address: is 0"),
        (with("[jwt]", "[api]\nsocket = \"api.sock\"\n[jwt]"), "api.socket: invalid path \"api.sock\"; "),
        (with("[jwt]", &format!("[api]\nsocket = \"/{}\"\n[jwt]", "a".repeat(107))), "api.socket: has 108 bytes; "),
        (
            with("[jwt]", "[api]\nsocket = \"\"\nsocket_group = \"backup\"\n[jwt]"),
            "api.socket_group: is set, but api.socket is \"\"; ",
        ),
        (
            with("[jwt]", "[api]\ntrusted_proxies = [\"proxy\"]\n[jwt]"),
            "api.trusted_proxies: invalid address \"proxy\"; ",
        ),
        (
            with("[jwt]", "[api]\nforwarded_for_from = [\"proxy\"]\n[jwt]"),
            "api.forwarded_for_from: invalid address \"proxy\"; ",
        ),
        (
            with("[jwt]", "[api]\nkeepalive_timeout = \"never\"\n[jwt]"),
            "api.keepalive_timeout: invalid duration \"never\"; ",
        ),
        (with("[jwt]", "[api]\nkeepalive_timeout = \"2h\"\n[jwt]"), "api.keepalive_timeout: is longer than an hour"),
        (with("[jwt]", "[api.tls]\nclient_auth = true\n[jwt]"), "api.tls.ca_certificate: is required with client_auth"),
        (with("[jwt]", "[manager]\npath = \"x\"\n[jwt]"), "manager.path: invalid path \"x\"; "),
        (
            with("[jwt]", "[manager]\nfingerprint = \"sha256:12\"\n[jwt]"),
            "manager.fingerprint: invalid fingerprint; expected sha256:",
        ),
        (
            with("[jwt]", "[manager]\nca_certificate = \"x\"\ninsecure_skip_verify = true\n[jwt]"),
            "manager: has more than one",
        ),
        (with("[jwt]", "[log]\nmax_size = \"10 parsecs\"\n[jwt]"), "log.max_size: invalid size \"10 parsecs\"; "),
        (with("[jwt]", "[log]\nmax_size = -1\n[jwt]"), "log.max_size: invalid size -1; "),
        (with("[jwt]", "[log]\nmax_files = 0\n[jwt]"), "log.max_files: is 0"),
        (with("[jwt]", "log_file = \"/x\"\ndb_file = \"/x\"\n[jwt]"), "log_file: is the same file as db_file"),
        (with("[jwt]", "[audit]\nmax_size = \"much\"\n[jwt]"), "audit.max_size: invalid size \"much\"; "),
        (with("[jwt]", "[audit]\nmax_files = 0\n[jwt]"), "audit.max_files: is 0"),
        (with("[jwt]", "db_file = \"/x\"\n[audit]\nfile = \"/x\"\n[jwt]"), "audit.file: is the same file as db_file"),
        (with("[jwt]", "log_file = \"/x\"\n[audit]\nfile = \"/x\"\n[jwt]"), "audit.file: is the same file as log_file"),
        (with("[jwt]", "[compare]\nrefine = 3000\n[jwt]"), "compare.refine: invalid block size 3000; "),
        (with("[jwt]", "[compare]\nrefine = \"always\"\n[jwt]"), "compare.refine: invalid block size \"always\"; "),
        (with("[jwt]", "[compare]\nrefine_limit = -1\n[jwt]"), "compare.refine_limit: invalid size -1; "),
        (with("[jwt]", "[hooks]\ndirectory = \"hooks.d\"\n[jwt]"), "hooks.directory: invalid path \"hooks.d\"; "),
        (with("[jwt]", "[hooks]\non_failure = \"stop\"\n[jwt]"), "hooks.on_failure: invalid value \"stop\"; "),
        (with("[jwt]", "[hooks]\npost_order = \"random\"\n[jwt]"), "hooks.post_order: invalid order \"random\"; "),
        (with("[jwt]", "[hooks]\ntimeout = \"0s\"\n[jwt]"), "hooks.timeout: invalid duration \"0s\"; "),
        (with("[jwt]", "[hooks.sync]\nport = 0\n[jwt]"), "hooks.sync.port: invalid port 0; "),
        (
            with("[jwt]", "[hooks.sync]\nhosts = [\"https://a\"]\n[jwt]"),
            "hooks.sync.hosts: invalid host \"https://a\"; ",
        ),
        (with("[jwt]", "[hooks.sync]\nretries = 11\n[jwt]"), "hooks.sync.retries: invalid number 11; expected 0 to 10"),
        (
            with("[jwt]", "[hooks.sync]\nca_certificate = \"x\"\ninsecure_skip_verify = true\n[jwt]"),
            "hooks.sync: has both",
        ),
        (with("[jwt]", "[hooks.sync.urls]\nweb = \"https://a\"\n[jwt]"), "hooks.sync.urls.web: a VM is named by"),
        (with("[jwt]", "[hooks]\nsync.urls.0004fb00000600000000000000000001 = \"a\"\n[jwt]"), "is not a URL; expected"),
        (with("[jwt]", "secrets = 1\n[jwt]"), "unknown field `secrets`"),
        (with("[jwt]", "[jwt"), "line 3: "),
        (
            with("[jwt]", "[api]\nport = 70000\n[jwt]"),
            "line 4: api.port: is 70000; expected a whole number from 0 to 65535",
        ),
        (with("[jwt]", "[api]\nport = \"5544\"\n[jwt]"), "line 4: api.port: is text; expected a whole number from 0"),
        (with("[jwt]", "[metrics]\nenabled = \"yes\"\n[jwt]"), "metrics.enabled: is text; expected true or false"),
        (with(repositories, "paths = [\"/r/a\", \"/r/b\", \"/r/a/c\"]"), "\"/r/a/c\" lies below \"/r/a\"; "),
        (with(repositories, "paths = \"/a\""), "repositories.paths: is text; expected a list, such as"),
        (
            with("[jwt]", "manager = 1\n[jwt]"),
            "line 3: manager: is a whole number; expected a section, such as [section]",
        ),
        (
            with("[jwt]", "[jwt]\ntimetolive = \"1h\""),
            "jwt.timetolive: unknown field `timetolive`; did you mean `time_to_live`?",
        ),
        (
            with("[jwt]", "[jwt]\ndb_file = \"/x\""),
            "jwt.db_file: unknown field `db_file`; `db_file` belongs at the top",
        ),
        (with("[jwt]", "[jwt]\nclient_auth = true"), "`client_auth` belongs in the section [api.tls]"),
        (with("[jwt]", "[jwt]\nx = 1"), "jwt.x: unknown field `x`; the keys here are access_time_to_live, long_tokens"),
        (with("[jwt]", "[manger]\n[jwt]"), "manger: unknown field `manger`; did you mean `manager`?"),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }
}

#[test]
fn all_problems_are_reported_at_once_without_secrets() {
    let text = "[jwt]\nsecret = \"hush hush\"\nsecrt = \"hush hush\"\n[repositories]\novs_agent_db = \"\"\npaths = \"hush\"\n\
                [api]\nport = 70000\nbind = \"nowhere\"\n[hooks.sync]\nport = \"hush\"\nhosts = [5, \"hush\"]\n[log]\nmax_files = hush\n";
    let message = parse(text).unwrap_err().to_string();
    for expected in [
        "ovm_endpoint",
        "jwt.secret: is shorter",
        "line 3: jwt.secrt",
        "repositories.paths: is empty",
        "line 6: repositories.paths: is text",
        "line 8: api.port: is 70000",
        "api.bind: invalid IP address \"nowhere\"",
        "line 11: hooks.sync.port: is text",
        "line 12: hooks.sync.hosts: ",
        "line 14: max_files: ",
    ] {
        assert!(message.contains(expected), "{message} lacks {expected:?}");
    }
    assert!(!message.contains("hush"), "{message}");
    // The secret may be in the line that is malformed.
    let message = parse("[jwt]\nsecret = \"hush hush\" x\n").unwrap_err().to_string();
    assert!(message.contains("line 2") && !message.contains("hush"), "{message:?}");
    assert!(!format!("{:?}", parse(GOOD).unwrap()).contains("0123456789abcdef"));
}

#[test]
fn on_an_oracle_vm_server_only_the_secret_must_be_set() {
    let config = parse("[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n").unwrap();
    assert_eq!(config.manager.endpoint, None);
    assert!(config.repositories.paths.is_empty());
    assert_eq!(config.repositories.agent_db.as_deref(), Some(Path::new("/etc/ovs-agent/db")));
}

#[test]
fn metrics_may_need_a_token() {
    for (keys, expected) in [
        ("", MetricsRoute::Off),
        ("require_token = true", MetricsRoute::Off),
        ("enabled = true", MetricsRoute::Open),
        ("enabled = true\nrequire_token = true", MetricsRoute::NeedsToken),
    ] {
        assert_eq!(parse(&format!("{GOOD}[metrics]\n{keys}\n")).unwrap().metrics, expected, "{keys}");
    }
}

#[test]
fn hooks_have_the_documented_defaults() {
    let hooks = parse(GOOD).unwrap().hooks;
    assert_eq!((hooks.directory, hooks.timeout), (None, Duration::from_secs(60)));
    assert_eq!((hooks.on_failure, hooks.post_on_failure), (OnFailure::Abort, false));
    assert_eq!(hooks.post_order, PostOrder::Reverse);
    assert!(hooks.sync.is_none(), "without a secret no guest is asked");
    let text = GOOD.replace(
        "[jwt]",
        "[hooks.sync]\nsecret = \"hush\"\n\
         urls.0004fb00-0006-0000-0000-000000000001 = \"https://10.0.0.5:1727/\"\n[jwt]",
    );
    let config = parse(&text).unwrap();
    assert!(!format!("{config:?}").contains("hush"));
    let sync = config.hooks.sync.unwrap();
    assert_eq!((sync.port, sync.timeout, sync.retries), (1727, Duration::from_secs(60), 0));
    assert_eq!((sync.on_failure, sync.post_on_failure), (OnFailure::Continue, true));
    assert_eq!((sync.trust, sync.retry_delay), (Trust::System, Duration::from_secs(60)));
    let vm = "0004fb00000600000000000000000001".parse().unwrap();
    assert_eq!(sync.urls.get(&vm).map(String::as_str), Some("https://10.0.0.5:1727"));
}

#[test]
fn the_sync_secret_is_sent_only_over_https() {
    for (url, expected) in [
        ("https://guest", Ok("https://guest")),
        ("https://guest:99/a/", Ok("https://guest:99/a")),
        ("https://[::1]:1727", Ok("https://[::1]:1727")),
        ("http://guest", Err("would send the secret in the clear")),
        ("ftp://guest", Err("is not a URL")),
        ("guest:1727", Err("is not a URL")),
        ("/sync", Err("is not a URL")),
        ("https://", Err("is not a URL")),
        ("https://me:pass@guest", Err("contains a user name")),
        ("https://guest/?a=b", Err("has a query or a fragment, so no path can be appended")),
        ("https://guest/#b", Err("has a query or a fragment, so no path can be appended")),
        ("", Err("is not a URL")),
    ] {
        assert_eq!(sync_url(url, &Trust::System), expected.map(str::to_owned), "{url:?}");
    }
    assert!(sync_url("http://guest", &Trust::InsecureSkipVerify).is_ok());
}
