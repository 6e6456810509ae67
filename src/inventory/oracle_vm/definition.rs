//! What a snapshot keeps of a `vm.cfg`.

use std::collections::BTreeMap;

use super::python_literal::{Value, parse_with_places};
use super::secrets::{mask_options, mask_source};
use super::vm_cfg::{VmConfigError, label};
use crate::model::Definition;
use crate::model::layout::VM_CFG;
use crate::model::printable::is_printable;

/// The definition in a `vm.cfg`, without its disks, which the snapshot has. Secrets are masked.
///
/// # Errors
/// The file is malformed.
pub fn describe(source: &str) -> Result<Definition, VmConfigError> {
    let (assignments, source, places) = parse_with_places(source)?;
    let number = |key| label(&assignments, key).and_then(|text| text.trim().parse().ok());
    let text = |key| label(&assignments, key).filter(|text| !text.is_empty() && is_printable(text));
    let text = |key| text(key).map(|text| mask_options(&text).into_owned());
    let definition = Definition {
        format: VM_CFG.to_owned(),
        text: Some(mask_source(&source, &places)),
        text_omitted: None,
        memory_mb: number("memory"),
        maximum_memory_mb: number("maxmem"),
        vcpus: number("vcpus"),
        maximum_vcpus: number("maxvcpus"),
        boot: text("boot").map(|order| order.chars().map(boot_device).collect()).unwrap_or_default(),
        networks: networks(&assignments),
        vm_type: text("OVM_domain_type").or_else(|| text("builder")),
        os_type: text("OVM_os_type").or_else(|| text("guest_os_type")),
    };
    Ok(definition.within_limits())
}

/// The name of a letter of `boot`.
fn boot_device(letter: char) -> String {
    match letter {
        'a' => "floppy".to_owned(),
        'c' => "disk".to_owned(),
        'd' => "cdrom".to_owned(),
        'n' => "network".to_owned(),
        other => other.to_string(),
    }
}

/// The options of each entry of `vif`.
fn networks(assignments: &BTreeMap<String, Value>) -> Vec<BTreeMap<String, String>> {
    let interfaces = assignments.get("vif").and_then(Value::as_sequence).unwrap_or_default();
    let options = |interface: &str| {
        let masked = mask_options(interface);
        let pairs = masked.split(',').filter_map(|option| option.split_once('='));
        let pairs = pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()));
        pairs.filter(|(key, value)| !key.is_empty() && is_printable(key) && is_printable(value)).collect()
    };
    interfaces.iter().filter_map(Value::as_str).map(options).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_has_what_the_file_says() {
        let source = "vif = ['mac=00:21:f6:aa:bb:cc,bridge=10238073c2', 'mac=00:21:f6:aa:bb:cd, type = netfront']\n\
            OVM_simple_name = 'web-1'\nmemory = '2048'\nmaxmem = 4096\nvcpus = 2\nmaxvcpus = 4\nboot = 'cdn'\n\
            OVM_domain_type = 'xen_hvm'\nOVM_os_type = 'Oracle Linux 7'\nbuilder = 'hvm'\n\
            vfb = ['type=vnc,vncpasswd=S3CRET']\nname = 'x'\ndisk = []\n";
        let found = describe(source).unwrap();
        let network = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let expected = Definition {
            format: "vm.cfg".to_owned(),
            text: Some(source.replace("S3CRET", "***")),
            text_omitted: None,
            memory_mb: Some(2048),
            maximum_memory_mb: Some(4096),
            vcpus: Some(2),
            maximum_vcpus: Some(4),
            boot: ["disk", "cdrom", "network"].map(str::to_owned).to_vec(),
            networks: vec![
                network(&[("bridge", "10238073c2"), ("mac", "00:21:f6:aa:bb:cc")]),
                network(&[("mac", "00:21:f6:aa:bb:cd"), ("type", "netfront")]),
            ],
            vm_type: Some("xen_hvm".to_owned()),
            os_type: Some("Oracle Linux 7".to_owned()),
        };
        assert_eq!(found, expected);
        assert_eq!(serde_json::from_str::<Definition>(&serde_json::to_string(&found).unwrap()).unwrap(), found);
    }

    #[test]
    fn unknown_and_unfit_values_are_left_out() {
        let source = "vif = ['', 'mac', 7, 'mac=a\\x1bb,bridge=x,vncpasswd=S3CRET']\nmemory = 'much'\nvcpus = -1\n\
            maxmem = [1]\nboot = ''\nOVM_os_type = 'a\\nb'\nguest_os_type = 'the password is S3CRET'\n";
        let found = describe(source).unwrap();
        assert_eq!((found.memory_mb, found.vcpus, found.maximum_memory_mb), (None, None, None));
        assert!(found.boot.is_empty() && found.vm_type.is_none());
        assert_eq!(found.os_type.as_deref(), Some("***"));
        assert_eq!(found.networks.iter().map(BTreeMap::len).collect::<Vec<_>>(), [0, 0, 2]);
        assert!(!format!("{found:?}").contains("S3CRET"), "{found:?}");
        assert!(describe("memory = 2048 +").is_err());
        let long = describe(&format!("a = '{}'\nmemory = 1\n", "x".repeat(70_000))).unwrap();
        assert_eq!((long.text, long.memory_mb), (None, Some(1)));
        assert!(long.text_omitted.unwrap().contains("at most 65536"));
    }
}
