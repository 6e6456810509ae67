use super::log::parse_size;
use super::manager::parse_fingerprint;
use super::*;

const GOOD: &str = r#"
ovm_endpoint = "https://manager.example:7002/"
[jwt]
secret = "0123456789abcdef0123456789abcdef"
[repositories]
paths = ["/OVS/Repositories/0004fb0000030000a1b2c3d4e5f60718"]
"#;

#[test]
fn the_sample_names_every_key_with_its_default() {
    let sample: toml::Table = include_str!("../../config.example.toml").parse().unwrap();
    assert_eq!(sample, toml::Table::try_from(File::default()).unwrap());
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
fn durations_are_those_of_go() {
    for (text, expected) in [
        ("168h", Some(604_800_000)),
        ("1h30m", Some(5_400_000)),
        ("500ms", Some(500)),
        ("1.5h", Some(5_400_000)),
        ("0s", None),
        ("-1h", None),
        ("5", None),
        ("", None),
        ("soon", None),
    ] {
        let mut check = Check::default();
        let parsed = check.duration("jwt.time_to_live", text);
        assert_eq!(check.problems.is_empty().then_some(parsed.as_millis()), expected, "{text:?}");
    }
}

#[test]
fn sizes_have_units() {
    for (text, expected) in [
        ("0", Some(0)),
        ("512", Some(512)),
        ("512B", Some(512)),
        ("4KiB", Some(4096)),
        ("10MiB", Some(10 << 20)),
        ("2 GiB", Some(2 << 30)),
        ("99999999999GiB", None),
        ("1.5MiB", None),
        ("10MB", None),
        ("-1", None),
        ("MiB", None),
        ("", None),
    ] {
        assert_eq!(parse_size(text), expected, "{text:?}");
    }
    let text = GOOD.replace("[jwt]", "log_file = \"/x.log\"\n[log]\nmax_size = 4096\nmax_files = 2\n[jwt]");
    let log = parse(&text).unwrap().log;
    assert_eq!((log.file.as_deref(), log.max_size, log.max_files), (Some(Path::new("/x.log")), 4096, 2));
}

#[test]
fn each_wrong_key_is_named_with_a_remedy() {
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
            "jwt.secret: is shorter than 32 bytes; leave it empty, and the service makes one",
        ),
        (with(secret, published), "jwt.secret: is a published sample"),
        (
            with(secret, "secret = \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\""),
            "jwt.secret: has fewer than 8 different",
        ),
        (with("[jwt]", "[hooks.sync]\nsecret = \"…\"\n[jwt]"), "hooks.sync.secret: is the placeholder"),
        (
            with("[jwt]", "[hooks.sync]\nsecret = \"0123456789abcdef0123456789abcdef\"\n[jwt]"),
            "jwt.secret: is hooks.sync.secret, which guests are sent",
        ),
        (with("https://manager", "http://manager"), "ovm_endpoint: would send passwords in the clear"),
        (with("https://manager.example:7002/", "manager"), "ovm_endpoint: "),
        (with("https://manager", "https://root:x@manager"), "ovm_endpoint: has a user in it"),
        (without_agent(r#"paths = ["/OVS/Repositories/a"]"#), "ovm_endpoint: is empty"),
        (without_agent(""), "repositories.paths: is empty"),
        (with(repositories, r#"paths = ["relative"]"#), "repositories.paths: \"relative\" is no absolute path"),
        (with(repositories, r#"paths = ["/a/repo", "/b/repo"]"#), "have one folder name"),
        (with("[jwt]", "[jwt]\ntime_to_live = \"7 parsecs\""), "jwt.time_to_live: \"7 parsecs\" is no duration"),
        (with("[jwt]", "[api]\nbind = \"localhost\"\n[jwt]"), "api.bind: \"localhost\" is no IP address"),
        (with("[jwt]", "[api]\nport = 0\n[jwt]"), "api.port: 0 is no port"),
        (with("[jwt]", "[api]\nport = 70000\n[jwt]"), "line 4: "),
        (with("[jwt]", "[api]\nmax_connections_per_address = 0\n[jwt]"), "api.max_connections_per_address: 0 would"),
        (with("[jwt]", "[api]\ntrusted_proxies = [\"proxy\"]\n[jwt]"), "api.trusted_proxies: \"proxy\" is no address"),
        (
            with("[jwt]", "[api]\nkeepalive_timeout = \"never\"\n[jwt]"),
            "api.keepalive_timeout: \"never\" is no duration",
        ),
        (with("[jwt]", "[api]\nkeepalive_timeout = \"2h\"\n[jwt]"), "api.keepalive_timeout: is longer than an hour"),
        (with("[jwt]", "[api.tls]\nclient_auth = true\n[jwt]"), "api.tls.ca_certificate: is needed with client_auth"),
        (with("[jwt]", "[manager]\npath = \"x\"\n[jwt]"), "manager.path: \"x\" does not start with a slash"),
        (with("[jwt]", "[manager]\nfingerprint = \"sha256:12\"\n[jwt]"), "manager.fingerprint: is not sha256:"),
        (
            with("[jwt]", "[manager]\nca_certificate = \"x\"\ninsecure_skip_verify = true\n[jwt]"),
            "manager: has more than one",
        ),
        (with("[jwt]", "[log]\nmax_size = \"10 parsecs\"\n[jwt]"), "log.max_size: \"10 parsecs\" is no size"),
        (with("[jwt]", "[log]\nmax_size = -1\n[jwt]"), "log.max_size: -1 is no size"),
        (with("[jwt]", "[log]\nmax_files = 0\n[jwt]"), "log.max_files: is 0"),
        (with("[jwt]", "log_file = \"/x\"\ndb_file = \"/x\"\n[jwt]"), "log_file: is db_file"),
        (with("[jwt]", "[audit]\nmax_size = \"much\"\n[jwt]"), "audit.max_size: \"much\" is no size"),
        (with("[jwt]", "[audit]\nmax_files = 0\n[jwt]"), "audit.max_files: is 0"),
        (with("[jwt]", "db_file = \"/x\"\n[audit]\nfile = \"/x\"\n[jwt]"), "audit.file: is db_file"),
        (with("[jwt]", "log_file = \"/x\"\n[audit]\nfile = \"/x\"\n[jwt]"), "audit.file: is log_file"),
        (with("[jwt]", "[compare]\nrefine = 3000\n[jwt]"), "compare.refine: 3000 is no block size"),
        (with("[jwt]", "[compare]\nrefine = \"always\"\n[jwt]"), "compare.refine: \"always\" is no block size"),
        (with("[jwt]", "[compare]\nrefine_limit = -1\n[jwt]"), "compare.refine_limit: -1 is no size"),
        (with("[jwt]", "[hooks]\ndirectory = \"hooks.d\"\n[jwt]"), "hooks.directory: \"hooks.d\" is no absolute path"),
        (with("[jwt]", "[hooks]\non_failure = \"stop\"\n[jwt]"), "hooks.on_failure: \"stop\" is neither"),
        (with("[jwt]", "[hooks]\npost_order = \"random\"\n[jwt]"), "hooks.post_order: \"random\" is neither"),
        (with("[jwt]", "[hooks]\ntimeout = \"0s\"\n[jwt]"), "hooks.timeout: \"0s\" is no duration"),
        (with("[jwt]", "[hooks.sync]\nport = 0\n[jwt]"), "hooks.sync.port: 0 is no port"),
        (with("[jwt]", "[hooks.sync]\nhosts = [\"https://a\"]\n[jwt]"), "hooks.sync.hosts: \"https://a\" is no host"),
        (with("[jwt]", "[hooks.sync]\nretries = 11\n[jwt]"), "hooks.sync.retries: is over 10"),
        (
            with("[jwt]", "[hooks.sync]\nca_certificate = \"x\"\ninsecure_skip_verify = true\n[jwt]"),
            "hooks.sync: has both",
        ),
        (with("[jwt]", "[hooks.sync.urls]\nweb = \"https://a\"\n[jwt]"), "hooks.sync.urls.web: a VM is named by"),
        (with("[jwt]", "[hooks]\nsync.urls.0004fb00000600000000000000000001 = \"a\"\n[jwt]"), "is no URL; write"),
        (with("[jwt]", "secrets = 1\n[jwt]"), "unknown field `secrets`"),
        (with("[jwt]", "[jwt"), "line 3: "),
        (
            with("[jwt]", "[api]\nport = 70000\n[jwt]"),
            "line 4: api.port: is 70000; write a whole number from 0 to 65535",
        ),
        (with("[jwt]", "[api]\nport = \"5544\"\n[jwt]"), "line 4: api.port: is text; write a whole number from 0"),
        (with("[jwt]", "[metrics]\nenabled = \"yes\"\n[jwt]"), "metrics.enabled: is text; write true or false"),
        (with(repositories, "paths = [\"/r/a\", \"/r/b\", \"/r/a/c\"]"), "\"/r/a/c\" lies below \"/r/a\"; "),
        (with(repositories, "paths = \"/a\""), "repositories.paths: is text; write a list, as"),
        (with("[jwt]", "manager = 1\n[jwt]"), "line 3: manager: is a whole number; write a section, as [section]"),
        (
            with("[jwt]", "[jwt]\ntimetolive = \"1h\""),
            "jwt.timetolive: unknown field `timetolive`; did you mean `time_to_live`?",
        ),
        (
            with("[jwt]", "[jwt]\ndb_file = \"/x\""),
            "jwt.db_file: unknown field `db_file`; `db_file` belongs at the top",
        ),
        (with("[jwt]", "[jwt]\nclient_auth = true"), "`client_auth` belongs into the section [api.tls]"),
        (with("[jwt]", "[jwt]\nx = 1"), "jwt.x: unknown field `x`; the keys here are secret, time_to_live"),
        (with("[jwt]", "[manger]\n[jwt]"), "manger: unknown field `manger`; did you mean `manager`?"),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }
}

#[test]
fn all_problems_come_at_once_and_no_secret_is_shown() {
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
        "api.bind: \"nowhere\"",
        "line 11: hooks.sync.port: is text",
        "line 12: hooks.sync.hosts: ",
        "line 14: max_files: ",
    ] {
        assert!(message.contains(expected), "{message} lacks {expected:?}");
    }
    assert!(!message.contains("hush"), "{message}");
    // Not even where the line with the secret is the one that cannot be read.
    let message = parse("[jwt]\nsecret = \"hush hush\" x\n").unwrap_err().to_string();
    assert!(message.contains("line 2") && !message.contains("hush"), "{message:?}");
    assert!(!format!("{:?}", parse(GOOD).unwrap()).contains("0123456789abcdef"));
}

#[test]
fn a_fingerprint_is_taken_as_openssl_prints_it() {
    let digits = "AB".repeat(32);
    let colons = vec!["ab"; 32].join(":");
    for text in [digits.clone(), format!("sha256:{digits}"), format!("sha256:{colons}")] {
        assert_eq!(parse_fingerprint(&text), Some([0xab; 32]), "{text}");
    }
    assert_eq!(parse_fingerprint(&"é".repeat(32)), None);
}

#[test]
fn on_a_host_of_oracle_vm_the_agent_knows_manager_and_repositories() {
    let config = parse("[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n").unwrap();
    assert_eq!(config.manager.endpoint, None);
    assert!(config.repositories.paths.is_empty());
    assert_eq!(config.repositories.agent_db.as_deref(), Some(Path::new("/etc/ovs-agent/db")));
}

#[test]
fn hooks_have_the_defaults_that_are_told() {
    let hooks = parse(GOOD).unwrap().hooks;
    assert_eq!((hooks.directory, hooks.timeout), (None, Duration::from_secs(60)));
    assert_eq!((hooks.on_failure, hooks.post_on_failure), (OnFailure::Abort, false));
    assert_eq!(hooks.post_order, PostOrder::Reverse);
    assert!(hooks.sync.is_none(), "without a secret nobody is asked");
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
fn the_secret_of_hooks_goes_nowhere_else() {
    for (url, expected) in [
        ("https://guest", Ok("https://guest")),
        ("https://guest:99/a/", Ok("https://guest:99/a")),
        ("https://[::1]:1727", Ok("https://[::1]:1727")),
        ("http://guest", Err("would send the secret in the clear")),
        ("ftp://guest", Err("is no URL")),
        ("guest:1727", Err("is no URL")),
        ("/sync", Err("is no URL")),
        ("https://", Err("is no URL")),
        ("https://me:pass@guest", Err("holds a user's name")),
        ("https://guest/?a=b", Err("holds a query, to which no path can be added")),
        ("https://guest/#b", Err("holds a query, to which no path can be added")),
        ("", Err("is no URL")),
    ] {
        assert_eq!(sync_url(url, &Trust::System), expected.map(str::to_owned), "{url:?}");
    }
    assert!(sync_url("http://guest", &Trust::InsecureSkipVerify).is_ok());
}
