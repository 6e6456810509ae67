//! The config file: read once at start, and refused whole where a key is not right.

mod file;
mod policy;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

pub use file::File;
pub use policy::{LONGEST, Policy, SpaceFloor};

/// Where the config is looked for when no other place is named.
pub const DEFAULT_PATH: &str = "/etc/coriolis-ovm-exporter/config.toml";

/// A config that can be run with.
#[derive(Debug)]
pub struct Config {
    /// `db_file`.
    pub db_file: PathBuf,
    /// `log_file` and `[log]`.
    pub log: Log,
    /// `[jwt]`.
    pub jwt: Jwt,
    /// `[api]`.
    pub api: Api,
    /// `ovm_endpoint` and `[manager]`.
    pub manager: Manager,
    /// `[repositories]`.
    pub repositories: Repositories,
    /// `[policy]`.
    pub policy: Policy,
}

/// `log_file` and `[log]`: where the log goes.
#[derive(Debug)]
pub struct Log {
    /// `log_file`; standard error where there is none.
    pub file: Option<PathBuf>,
    /// `log.max_size`: the file is rotated before it is larger, bytes. 0: it is not.
    pub max_size: u64,
    /// `log.max_files`: how many rotated files are kept, at least one.
    pub max_files: u32,
}

/// `[jwt]`: how tokens are made.
#[derive(Debug)]
pub struct Jwt {
    /// `secret`, the key of HMAC-SHA-256. Never printed.
    pub secret: SecretString,
    /// `time_to_live`.
    pub time_to_live: Duration,
}

/// `[api]`: where the service listens.
#[derive(Debug)]
pub struct Api {
    /// `bind`.
    pub bind: IpAddr,
    /// `port`.
    pub port: u16,
    /// `tls.certificate`, a chain in PEM.
    pub certificate: PathBuf,
    /// `tls.key`, in PEM.
    pub key: PathBuf,
    /// `tls.ca_certificate`, where `tls.client_auth` asks for certificates of clients.
    pub client_ca: Option<PathBuf>,
}

/// `ovm_endpoint` and `[manager]`: who knows the users.
#[derive(Debug)]
pub struct Manager {
    /// `ovm_endpoint`, without a slash at its end; else ovs-agent knows it.
    pub endpoint: Option<String>,
    /// `manager.path`, what is asked there.
    pub path: String,
    /// How the manager proves who it is.
    pub trust: Trust,
    /// `manager.timeout`, for one whole answer.
    pub timeout: Duration,
}

/// `[repositories]`: where disks are.
#[derive(Debug)]
pub struct Repositories {
    /// `paths`: id (the folder's name) and mount point.
    pub paths: Vec<(String, PathBuf)>,
    /// `ovs_agent_db`, a folder.
    pub agent_db: Option<PathBuf>,
}

/// How the manager's certificate is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Against the host's own list of authorities.
    System,
    /// Against `manager.ca_certificate`, or as being one of the certificates in it.
    CaFile(PathBuf),
    /// As the one certificate with this SHA-256 (`manager.fingerprint`).
    Fingerprint([u8; 32]),
    /// Not at all (`manager.insecure_skip_verify`).
    Nothing,
}

/// All that is wrong with a config file, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

/// Secrets that stand in public documents, as SHA-256: whoever reads those could make tokens.
const PUBLISHED_SECRETS: &[&str] = &["4d52bc2f2a1489b6bcde025a04a7c18c92c8cb6e280b309e10b473fff431ea15"];

/// What RFC 7518, 3.2 asks of an HS256 key, bytes.
const SECRET_MIN: usize = 32;

/// Reads the config at `path`.
///
/// # Errors
/// [`ConfigError`], each line of which names a key and says what to do.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(vec![format!("{}: {error}; name the file with --config", path.display())]))?;
    parse(&text).map_err(|ConfigError(lines)| {
        ConfigError(lines.into_iter().map(|line| format!("{}: {line}", path.display())).collect())
    })
}

/// Reads a config from its text.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    let file: File = toml::from_str(text).map_err(|error| {
        // The whole error would quote the line, which may be the one with the secret.
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        ConfigError(vec![format!("line {line}: {}", error.message())])
    })?;
    let mut check = Check::default();
    let config = Config {
        db_file: check.path("db_file", &file.db_file),
        log: check.log(&file),
        jwt: check.jwt(&file.jwt),
        api: check.api(&file.api),
        manager: check.manager(&file),
        repositories: check.repositories(&file.repositories),
        policy: check.policy(&file.policy),
    };
    if check.problems.is_empty() { Ok(config) } else { Err(ConfigError(check.problems)) }
}

fn optional(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Collects what is wrong, so that an operator mends it all at once.
#[derive(Default)]
struct Check {
    problems: Vec<String>,
}

impl Check {
    fn problem(&mut self, key: &str, remedy: impl std::fmt::Display) {
        self.problems.push(format!("{key}: {remedy}"));
    }

    fn path(&mut self, key: &str, path: &str) -> PathBuf {
        if path.is_empty() {
            self.problem(key, "is empty; name a file");
        }
        PathBuf::from(path)
    }

    fn duration(&mut self, key: &str, text: &str) -> Duration {
        let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
        match parsed {
            Some(duration) if !duration.is_zero() => duration,
            _ => {
                self.problem(key, format_args!("{text:?} is no duration over zero; write it as 168h, 1h30m or 500ms"));
                Duration::ZERO
            }
        }
    }

    fn log(&mut self, file: &File) -> Log {
        let size = &file.log.max_size;
        let bytes = size.as_integer().and_then(|bytes| u64::try_from(bytes).ok());
        let max_size = bytes.or_else(|| size.as_str().and_then(parse_size)).unwrap_or_else(|| {
            self.problem("log.max_size", format_args!("{size} is no size; write it as 10MiB, 512KiB or 10485760"));
            0
        });
        if file.log.max_files == 0 {
            self.problem("log.max_files", "is 0; keep one at least, or set log.max_size = 0 to rotate nothing");
        }
        if optional(&file.log_file).is_some_and(|log| log == file.db_file) {
            self.problem("log_file", "is db_file; name another file");
        }
        Log { file: optional(&file.log_file).map(PathBuf::from), max_size, max_files: file.log.max_files }
    }

    fn jwt(&mut self, jwt: &file::Jwt) -> Jwt {
        let secret = jwt.secret.expose_secret();
        let digest = hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.as_bytes()).as_ref());
        let make_one = "make one with: openssl rand -hex 32";
        if secret.len() < SECRET_MIN {
            self.problem("jwt.secret", format_args!("is shorter than {SECRET_MIN} bytes; {make_one}"));
        } else if PUBLISHED_SECRETS.contains(&digest.as_str()) {
            self.problem(
                "jwt.secret",
                format_args!("is a published sample, with which anybody can log in; {make_one}"),
            );
        }
        Jwt { secret: jwt.secret.clone(), time_to_live: self.duration("jwt.time_to_live", &jwt.time_to_live) }
    }

    fn api(&mut self, api: &file::Api) -> Api {
        let bind = api.bind.parse().unwrap_or_else(|_| {
            self.problem("api.bind", format_args!("{:?} is no IP address; write 0.0.0.0 for all of IPv4", api.bind));
            IpAddr::from([127, 0, 0, 1])
        });
        if api.port == 0 {
            self.problem("api.port", "0 is no port to be found at; the usual one is 5544");
        }
        let client_ca = optional(&api.tls.ca_certificate).map(PathBuf::from);
        if api.tls.client_auth && client_ca.is_none() {
            self.problem(
                "api.tls.ca_certificate",
                "is needed with client_auth: clients' certificates must chain to it",
            );
        }
        Api {
            bind,
            port: api.port,
            certificate: self.path("api.tls.certificate", &api.tls.certificate),
            key: self.path("api.tls.key", &api.tls.key),
            client_ca: client_ca.filter(|_| api.tls.client_auth),
        }
    }

    fn manager(&mut self, file: &file::File) -> Manager {
        let (endpoint, manager) = (file.ovm_endpoint.trim_end_matches('/'), &file.manager);
        let url = format!("{endpoint}{}", manager.path);
        let scheme = url.parse::<http::Uri>().ok().and_then(|uri| uri.scheme_str().map(str::to_owned));
        match scheme.as_deref() {
            _ if endpoint.is_empty() => {
                if file.repositories.ovs_agent_db.is_empty() {
                    self.problem("ovm_endpoint", "is empty; name the manager, as https://manager.example:7002");
                }
            }
            Some("https") => {}
            Some("http") if manager.insecure_skip_verify => {}
            Some("http") => self.problem("ovm_endpoint", "would send passwords in the clear; use https://"),
            _ => {
                self.problem("ovm_endpoint", format_args!("{url:?} is no address; write https://manager.example:7002"))
            }
        }
        if !manager.path.starts_with('/') {
            self.problem("manager.path", format_args!("{:?} does not start with a slash", manager.path));
        }
        Manager {
            endpoint: optional(endpoint).map(str::to_owned),
            path: manager.path.clone(),
            trust: self.trust(manager),
            timeout: self.duration("manager.timeout", &manager.timeout),
        }
    }

    fn trust(&mut self, manager: &file::Manager) -> Trust {
        let named = [!manager.ca_certificate.is_empty(), !manager.fingerprint.is_empty(), manager.insecure_skip_verify];
        if named.iter().filter(|named| **named).count() > 1 {
            self.problem(
                "manager",
                "has more than one of ca_certificate, fingerprint and insecure_skip_verify; keep one",
            );
        }
        if manager.insecure_skip_verify {
            Trust::Nothing
        } else if let Some(fingerprint) = optional(&manager.fingerprint) {
            let parsed = parse_fingerprint(fingerprint).unwrap_or_else(|| {
                self.problem(
                    "manager.fingerprint",
                    "is not sha256: and 64 hexadecimal digits; get it with: openssl x509 -noout -fingerprint -sha256",
                );
                [0; 32]
            });
            Trust::Fingerprint(parsed)
        } else {
            optional(&manager.ca_certificate).map_or(Trust::System, |path| Trust::CaFile(path.into()))
        }
    }

    fn repositories(&mut self, repositories: &file::Repositories) -> Repositories {
        let key = "repositories.paths";
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        let agent_db = optional(&repositories.ovs_agent_db).map(PathBuf::from);
        if repositories.paths.is_empty() && agent_db.is_none() {
            self.problem(key, "is empty, and so is ovs_agent_db; name the folder of at least one repository");
        }
        for path in &repositories.paths {
            let path = PathBuf::from(path);
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| path.is_absolute() && !name.starts_with('.')) else {
                self.problem(key, format_args!("{path:?} is no absolute path of a visible folder"));
                continue;
            };
            if let Some((_, other)) = found.iter().find(|(id, _)| id == name) {
                self.problem(
                    key,
                    format_args!("{path:?} and {other:?} have one folder name, which is a repository's id; rename one"),
                );
            }
            found.push((name.to_owned(), path));
        }
        Repositories { paths: found, agent_db }
    }
}

/// A number and `B`, `KiB`, `MiB` or `GiB`; bytes.
fn parse_size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `sha256:` (or nothing) and 64 hexadecimal digits, colons between bytes allowed.
fn parse_fingerprint(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text).replace(':', "");
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
