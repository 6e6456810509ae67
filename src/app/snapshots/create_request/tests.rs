use super::*;
use crate::inventory::{DiskFormat, DiskRole};

fn body(text: &str) -> api::CreateSnapshot {
    serde_json::from_str(text).unwrap()
}

fn request(text: &str) -> Result<CreateRequest, Error> {
    CreateRequest::new(body(text), Some("k"))
}

fn disk(medium: Medium, device: &str) -> Disk {
    Disk {
        medium,
        device: device.to_owned(),
        format: DiskFormat::Raw,
        role: DiskRole::Disk,
        writable: true,
        shared: false,
        mode: "w",
    }
}

fn file(path: &str, device: &str) -> Disk {
    disk(Medium::File(path.to_owned()), device)
}

#[test]
fn body_is_parsed() {
    let hours = |hours: u64| RetentionRequest::For(Duration::from_secs(hours * 3600));
    for (text, selection, retention) in [
        ("{}", DiskSelection::All, RetentionRequest::Default),
        (r#"{"disks": null, "ttl": "72h"}"#, DiskSelection::All, hours(72)),
        (r#"{"ttl": "none"}"#, DiskSelection::All, RetentionRequest::UntilDeleted),
        (r#"{"disks": ["a"]}"#, DiskSelection::Only(vec!["a".to_owned()]), RetentionRequest::Default),
        (r#"{"exclude_disks": []}"#, DiskSelection::AllBut(vec![]), RetentionRequest::Default),
    ] {
        let request = request(text).unwrap();
        assert_eq!((request.selection, request.retention), (selection, retention), "{text}");
    }
    for text in [
        r#"{"disks": ["a"], "exclude_disks": []}"#,
        r#"{"disks": []}"#,
        r#"{"ttl": ""}"#,
        r#"{"ttl": "soon"}"#,
        r#"{"ttl": "-1h"}"#,
        r#"{"ttl": "0s"}"#,
        r#"{"ttl": "999ms"}"#,
        r#"{"ttl": "87601h"}"#,
        r#"{"labels": {"a b": ""}}"#,
        r#"{"labels": {"a": "b\nc"}}"#,
        r#"{"description": "b\nc"}"#,
    ] {
        assert!(matches!(request(text), Err(Error::BadRequest(_))), "{text}");
    }
}

#[test]
fn equal_requests_have_equal_digests() {
    let digest = |text: &str| request(text).unwrap().key.unwrap().1;
    assert_eq!(digest("{}"), digest(r#" {"disks": null,  "ttl": null}"#));
    assert_eq!(digest(r#"{"ttl": "1h", "disks": ["a"]}"#), digest(r#"{"disks": ["a"], "ttl": "1h"}"#));
    assert_ne!(digest("{}"), digest(r#"{"ttl": "1h"}"#));
    assert_ne!(digest(r#"{"disks": ["a"]}"#), digest(r#"{"exclude_disks": ["a"]}"#));
    assert_eq!(digest(r#"{"labels": {"b": "1", "a": "2"}}"#), digest(r#"{"labels": {"a": "2", "b": "1"}}"#));
    assert_ne!(digest("{}"), digest(r#"{"labels": {"a": "2"}}"#));
    // Keys that were used before an update stay valid.
    let stored = [0xf0, 0xb6, 0x42, 0xaa, 0x18, 0x8b, 0x74, 0xb9];
    assert_eq!(digest("{}")[..8], stored, "SHA-256 of the body without the later members");
    assert_eq!(CreateRequest::new(body("{}"), None).unwrap().key, None);
}

#[test]
fn key_length_and_characters_are_checked() {
    for (header, key) in [
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", Some("8e03978e-40d5-43dd-bc93-6894a57f9324")),
        (r#""quoted as the draft has it""#, Some("quoted as the draft has it")),
        (" k ", Some("k")),
        ("", None),
        (r#""""#, None),
        (r#"""#, None),
        (r#"a"b"#, None),
        ("ä", None),
        ("a\tb", None),
        (&"x".repeat(255), Some(&"x".repeat(255))),
        (&"x".repeat(256), None),
    ] {
        assert_eq!(parse_key(header).ok().as_deref(), key, "{header:?}");
    }
}

#[test]
fn disks_are_selected_by_name_or_device() {
    use DiskChoice::{LeftOut, Named, Usual};
    let disks = [
        file("/r1/VirtualDisks/a.img", "xvda"),
        file("/r1/VirtualDisks/b.img", "xvdb"),
        disk(Medium::Absent, "xvdc"),
        disk(Medium::Other { scheme: "phy".to_owned(), target: "/dev/mapper/lun".to_owned() }, "xvdd"),
        file("/r1/VirtualDisks/b.img", "xvde"),
        file("/r2/VirtualDisks/same.img", "xvdf"),
        file("/r1/VirtualDisks/same.img", "xvdg"),
    ];
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let only = |all: &[&str]| DiskSelection::Only(names(all)).choices(&disks);
    let all_but = |all: &[&str]| DiskSelection::AllBut(names(all)).choices(&disks);
    assert_eq!(DiskSelection::All.choices(&disks).unwrap(), [Usual; 7]);
    assert_eq!(only(&["a.img"]).unwrap(), [Named, LeftOut, LeftOut, LeftOut, LeftOut, LeftOut, LeftOut]);
    // A file that is listed twice is one disk, under each of its names.
    let twice = [LeftOut, Named, LeftOut, LeftOut, Named, LeftOut, LeftOut];
    assert_eq!(only(&["b.img"]).unwrap(), twice);
    assert_eq!(only(&["xvde"]).unwrap(), twice);
    assert_eq!(all_but(&["xvdd", "xvdf"]).unwrap(), [Usual, Usual, Usual, LeftOut, Usual, LeftOut, Usual]);
    assert_eq!(all_but(&["lun"]).unwrap()[3], LeftOut);
    assert_eq!(all_but(&[]).unwrap(), [Usual; 7]);
    for unknown in ["", "xvdz", "VirtualDisks", "/r1/VirtualDisks/a.img"] {
        let message = only(&[unknown]).unwrap_err().to_string();
        assert!(message.contains("xvda (a.img), xvdb (b.img)"), "{unknown:?}: {message}");
    }
    let ambiguous = only(&["same.img"]).unwrap_err();
    assert!(matches!(ambiguous, Refusal::AmbiguousDisk { .. }), "{ambiguous}");
    let everything = all_but(&["xvda", "xvdb", "xvdc", "xvdd", "xvdf", "xvdg"]).unwrap_err();
    assert!(matches!(everything, Refusal::NoDiskLeft), "{everything}");
}
