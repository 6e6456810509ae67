//! A VM's definition as it was at a snapshot.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The longest text, in bytes. Of a longer one, only the length is kept.
pub const MAX_TEXT: usize = 64 << 10;

/// The most network interfaces.
const MAX_NETWORKS: usize = 32;

/// The most options of a network interface.
const MAX_OPTIONS: usize = 16;

/// The longest other text, in bytes.
const MAX_VALUE: usize = 255;

/// A VM's definition, as far as it is known, independent of the platform. A field that is not known is missing, except
/// `networks`. Everything in it was written by the owner of the VM: it is data for a restore, and the service acts on none
/// of it.
///
/// It has one form in the API, the manifest and the database, because a restore may read any of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Definition {
    /// The format of `text`: `vm.cfg`.
    pub format: String,
    /// The file's text. Line ends are `\n`, invalid UTF-8 is replaced by U+FFFD, and secrets are masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Why `text` is missing: it has more than 65,536 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_omitted: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// What the memory can grow to while the VM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum_memory_mb: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u64>,
    /// What the number of processors can grow to while the VM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum_vcpus: Option<u64>,
    /// `floppy`, `disk`, `cdrom`, `network`, in the order in which the VM boots from them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boot: Vec<String>,
    /// The options of each network interface, such as `mac` and `bridge`.
    #[serde(default)]
    #[schema(required)]
    pub networks: Vec<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_type: Option<String>,
}

impl Definition {
    /// Leaves out what is longer than the limits.
    #[must_use]
    pub fn within_limits(mut self) -> Self {
        if let Some(length) = self.text.as_ref().map(String::len).filter(|length| *length > MAX_TEXT) {
            self.text = None;
            self.text_omitted = Some(format!("the text has {length} bytes; at most {MAX_TEXT} are kept"));
        }
        let fits = |text: &str| text.len() <= MAX_VALUE;
        self.format.truncate(self.format.floor_char_boundary(MAX_VALUE));
        for text in [&mut self.text_omitted, &mut self.vm_type, &mut self.os_type] {
            text.take_if(|text| !fits(text));
        }
        self.boot.truncate(MAX_OPTIONS);
        self.boot.retain(|device| fits(device));
        self.networks.truncate(MAX_NETWORKS);
        for network in &mut self.networks {
            network.retain(|key, value| fits(key) && fits(value));
            while network.len() > MAX_OPTIONS {
                network.pop_last();
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_beyond_the_limits_is_left_out() {
        let long = "x".repeat(MAX_VALUE + 1);
        let network = |count: usize| -> BTreeMap<_, _> {
            (0..count)
                .map(|number| (number.to_string(), String::new()))
                .chain([("mac".to_owned(), long.clone())])
                .collect()
        };
        let definition = Definition {
            format: "vm.cfg".to_owned(),
            text: Some("x".repeat(MAX_TEXT + 1)),
            boot: vec!["disk".to_owned(), long.clone()],
            networks: vec![network(40); 50],
            vm_type: Some(long.clone()),
            os_type: Some("x".repeat(MAX_VALUE)),
            ..Definition::default()
        };
        let kept = definition.clone().within_limits();
        assert_eq!(kept.text, None);
        assert_eq!(kept.text_omitted.as_deref(), Some("the text has 65537 bytes; at most 65536 are kept"));
        assert_eq!((kept.boot, kept.networks.len(), kept.networks[0].len()), (vec!["disk".to_owned()], 32, 16));
        assert!(kept.networks[0].values().all(String::is_empty));
        assert_eq!((kept.vm_type, kept.os_type), (None, definition.os_type));
        let fitting = Definition { text: Some("x".repeat(MAX_TEXT)), ..Definition::default() };
        assert_eq!(fitting.clone().within_limits(), fitting);
    }
}
