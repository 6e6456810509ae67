//! What the command line says of a new snapshot.

use std::collections::BTreeMap;

use super::args::Quiesce;
use super::exit::UsageError;
use crate::backup::Features;
use crate::client::NewSnapshot;

/// The labels of `KEY=VALUE`.
///
/// # Errors
/// One has no key or no value.
pub fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, UsageError> {
    let label = |text: &String| {
        let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, value) = pair.ok_or_else(|| UsageError(format!("--label {text:?}: expected KEY=VALUE")))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    texts.iter().map(label).collect()
}

/// The API's word.
pub fn quiesce(how: Quiesce) -> String {
    match how {
        Quiesce::Require => "require",
        Quiesce::Try => "try",
        Quiesce::Skip => "skip",
    }
    .to_owned()
}

/// What the service can do of a request. It is an error to leave out what the user asked for, except `quiesce=try`,
/// which every service does.
///
/// # Errors
/// It names the option that the service does not support.
pub fn supported(request: &NewSnapshot, features: &Features) -> Result<NewSnapshot, UsageError> {
    let mut request = request.clone();
    if !features.quiesce && request.quiesce.as_deref() == Some("try") {
        request.quiesce = None;
    }
    let unsupported = [
        ("--label", !request.labels.is_empty() && !features.labels),
        ("--description", request.description.is_some() && !features.labels),
        ("--quiesce", request.quiesce.is_some() && !features.quiesce),
        ("--disks", (request.disks.is_some() || request.exclude_disks.is_some()) && !features.choose_disks),
        ("--ttl", request.ttl.is_some() && features.is_original),
    ];
    match unsupported.iter().find(|(_, is_missing)| *is_missing) {
        Some((option, _)) => Err(UsageError(format!("the service does not support {option}; leave it out"))),
        None => Ok(request),
    }
}
