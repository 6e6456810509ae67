use proptest::prelude::*;

use super::*;

const FIELD_SAMPLE: &str = r#"vif = ['mac=00:21:f6:aa:bb:cc,bridge=10238073c2']
OVM_simple_name = 'web-1'
guest_os_type='linux'
disk = ['file:/OVS/Repositories/0004fb/VirtualDisks/a.img,xvda,w',
        'file:/OVS/Repositories/0004fb/ISOs/b.iso,xvdb:cdrom,r',
        'phy:/dev/mapper/3600,xvdc,w',   # not in a repository
        'file:///EXAVMIMAGES/c.img,xvdd,w!']
uuid = '0004fb00-0006-0000-0000-000000000001'
name = '0004fb00000600000000000000000001'
memory='65536'
vfb = ['type=vnc,vncunused=1,vnclisten=127.0.0.1,keymap=en-us']
OVM_cpu_compat_group = ''
cpus = None; vcpus=2
OVM_description = 'caf\xc3\xa9, "quoted"'
"#;

fn file(path: &str) -> Medium {
    Medium::File(path.to_owned())
}

fn other(scheme: &str, target: &str) -> Medium {
    Medium::Other { scheme: scheme.to_owned(), target: target.to_owned() }
}

fn disk(medium: Medium, device: &str, cdrom: bool, mode: &'static str) -> Disk {
    Disk {
        medium,
        device: device.to_owned(),
        format: DiskFormat::Raw,
        role: if cdrom { DiskRole::Cdrom } else { DiskRole::Disk },
        writable: mode.contains('w'),
        shared: mode.ends_with('!'),
        mode,
    }
}

#[test]
fn a_real_file() {
    let expected = VmConfig {
        name: Some("0004fb00000600000000000000000001".to_owned()),
        uuid: Some("0004fb00-0006-0000-0000-000000000001".to_owned()),
        friendly_name: Some("web-1".to_owned()),
        description: Some("café, \"quoted\"".to_owned()),
        addresses: Vec::new(),
        disks: Some(vec![
            disk(file("/OVS/Repositories/0004fb/VirtualDisks/a.img"), "xvda", false, "w"),
            disk(file("/OVS/Repositories/0004fb/ISOs/b.iso"), "xvdb", true, "r"),
            disk(other("phy", "/dev/mapper/3600"), "xvdc", false, "w"),
            disk(file("/EXAVMIMAGES/c.img"), "xvdd", false, "w!"),
        ]),
    };
    assert_eq!(parse(FIELD_SAMPLE), Ok(expected.clone()));
    assert_eq!(parse(&FIELD_SAMPLE.replace('\n', "\r\n")), Ok(expected));
}

#[test]
fn a_half_written_file_has_missing_but_no_wrong_values() {
    let whole = parse(FIELD_SAMPLE).unwrap();
    for end in 0..FIELD_SAMPLE.len() {
        let Ok(cut) = parse(&FIELD_SAMPLE[..end]) else {
            continue;
        };
        assert!(cut.disks.is_none() || cut.disks == whole.disks, "cut at {end}");
        assert!(cut.name.is_none() || cut.name == whole.name, "cut at {end}");
        assert!(cut.uuid.is_none() || cut.uuid == whole.uuid, "cut at {end}");
    }
}

#[test]
fn entries_of_disk() {
    let cases = [
        ("file:/a.img,xvda,w", disk(file("/a.img"), "xvda", false, "w")),
        ("file:////a//b.img,xvda:disk,r", disk(file("/a//b.img"), "xvda", false, "r")),
        ("/a.img,ioemu:hda,w", disk(file("/a.img"), "hda", false, "w")),
        ("/a:b.img,hda,rw", disk(file("/a:b.img"), "hda", false, "rw")),
        ("tap:aio:/a.img,xvda,w", disk(file("/a.img"), "xvda", false, "w")),
        ("tap2:aio:/a:b.img,xvda,w!", disk(file("/a:b.img"), "xvda", false, "w!")),
        ("tap:tapdisk:vhd:/a.vhd,xvda,w", disk(file("/a.vhd"), "xvda", false, "w")),
        ("tap:/a.img,xvda,w", disk(file("/a.img"), "xvda", false, "w")),
        ("file:/a,b,c.img,xvda,w", disk(file("/a,b,c.img"), "xvda", false, "w")),
        (" file:/a b.img , xvda , w ", disk(file("/a b.img"), "xvda", false, "w")),
        ("file:,xvdc:cdrom,r", disk(Medium::Absent, "xvdc", true, "r")),
        (",hdc:cdrom,r", disk(Medium::Absent, "hdc", true, "r")),
        ("tap:aio:,hdc:cdrom,ro", disk(Medium::Absent, "hdc", true, "ro")),
        ("phy:/dev/sdb,xvdb,w", disk(other("phy", "/dev/sdb"), "xvdb", false, "w")),
        ("nbd:host:10809,xvdb,r", disk(other("nbd", "host:10809"), "xvdb", false, "r")),
        ("file:a.img,xvda,w", disk(other("file", "a.img"), "xvda", false, "w")),
        ("tap:aio:a.img,xvda,w", disk(other("tap", "aio:a.img"), "xvda", false, "w")),
        ("a.img,xvda,w", disk(other("", "a.img"), "xvda", false, "w")),
    ];
    for (entry, expected) in cases {
        let config = parse(&format!("disk = ['{entry}']")).unwrap();
        assert_eq!(config.disks, Some(vec![expected]), "{entry}");
    }
}

#[test]
fn modes_that_write_and_that_share() {
    for (mode, expected) in [
        ("w", (true, false)),
        ("w!", (true, true)),
        ("rw", (true, false)),
        ("r", (false, false)),
        ("r!", (false, true)),
        ("ro", (false, false)),
    ] {
        let disks = parse(&format!("disk = ['file:/a,xvda,{mode}']")).unwrap().disks.unwrap();
        assert_eq!((disks[0].mode, (disks[0].writable, disks[0].shared)), (mode, expected));
    }
}

#[test]
fn an_invalid_entry_of_disk_is_an_error() {
    let no_mode = "disk[0] has no mode, such as `r`, `w` or `w!`";
    let cases = [
        ("disk = ['file:/a,xvda,w', 'file:/b,xvdb']", "disk[1] is not `source,device,mode`"),
        ("disk = ['']", "disk[0] is not `source,device,mode`"),
        ("disk = [7]", "disk[0] is not a string"),
        ("disk = ['file:/a,,w']", "disk[0] has no device"),
        ("disk = ['file:/a,:cdrom,r']", "disk[0] has no device"),
        ("disk = ['file:/a,xvda,']", no_mode),
        ("disk = ['file:/a,xvda,w,0']", no_mode),
        ("disk = ['vdev=xvda,access=w,target=/a']", no_mode),
        ("disk = 'file:/a,xvda,w'", "`disk` is not a list"),
        ("disk = None", "`disk` is not a list"),
        ("disk = ['file:/a,xvda,w'", "line 1, column 8: missing `]` for this bracket"),
    ];
    for (source, expected) in cases {
        assert_eq!(parse(source).unwrap_err().to_string(), expected, "{source}");
    }
}

#[test]
fn keys_that_are_missing_or_of_another_type() {
    let nothing = VmConfig::default();
    assert_eq!(parse(""), Ok(nothing.clone()));
    assert_eq!(parse("disk = []").unwrap().disks, Some(vec![]));
    assert_eq!(parse("disk = ('file:/a,xvda,w',)").unwrap().disks.map(|disks| disks.len()), Some(1));
    assert_eq!(parse("name = 1"), Err(VmConfigError::NotAString { key: "name" }));
    assert_eq!(parse("name = None"), Err(VmConfigError::NotAString { key: "name" }));
    assert_eq!(parse("uuid = None; OVM_simple_name = ['a']; OVM_description = True"), Ok(nothing));
    let numbers = parse("uuid = 12345678901234567890123456789012; OVM_simple_name = 7; OVM_description = 1.0").unwrap();
    assert_eq!(numbers.uuid.as_deref(), Some("12345678901234567890123456789012"));
    assert_eq!(numbers.friendly_name.as_deref(), Some("7"));
    assert_eq!(numbers.description.as_deref(), Some("1.0"));
}

proptest! {
    #[test]
    fn any_text_is_accepted(source: String, entry in "[a-z:,/!. ]*") {
        let _ = parse(&source);
        let _ = parse(&format!("disk = ['{entry}']"));
    }

    /// The caller may not be allowed to read the file.
    #[test]
    fn errors_contain_nothing_of_the_file(secret in "[a-z]{12}", shape in 0..12) {
        let source = match shape {
            0 => secret.clone(),
            1 => format!("{secret}:x:0:0:root:/root:/bin/bash\n"),
            2 => format!("key = {secret}\n"),
            3 => format!("key = '{secret}\n"),
            4 => format!("key = 0x1{secret}\n"),
            5 => format!("disk = ['{secret}']\n"),
            6 => format!("disk = ['file:/x,{secret}']\n"),
            7 => format!("disk = ['file:/x,xvda,{secret}']\n"),
            8 => format!("disk = {{'{secret}': 1}}\n"),
            9 => format!("name = ['{secret}']\n"),
            10 => format!("name = 'a' {secret}\n"),
            _ => format!("name = b'{secret}\\xz'\n"),
        };
        let error = parse(&source).unwrap_err();
        for text in [error.to_string(), format!("{error:?}")] {
            prop_assert!(!text.contains(&secret), "{}", text);
        }
    }

    #[test]
    fn any_path_is_parsed(path in "/[a-z][a-z0-9,:/. -]*[a-z]", scheme in "(file:|tap:aio:|tap2:aio:)?") {
        let config = parse(&format!("disk = ['{scheme}{path},xvda,w']")).unwrap();
        prop_assert_eq!(config.disks, Some(vec![disk(file(&path), "xvda", false, "w")]));
    }
}

#[test]
fn addresses_of_the_interfaces() {
    let cases: [(&str, &[&str]); 10] = [
        ("['mac=00:21:f6:aa:bb:cc,bridge=10238073c2']", &[]),
        ("['mac=00:21:f6:aa:bb:cc', 'ip=10.0.0.5, bridge=b', 'ip=10.0.0.6']", &["10.0.0.5", "10.0.0.6"]),
        ("['bridge=b,ip=10.0.0.5 10.0.0.6']", &["10.0.0.5", "10.0.0.6"]),
        ("['ip=fd00::0005']", &["fd00::5"]),
        ("['ip=evil.example/', 'ip=10.0.0.6']", &[]),
        ("['ip=10.0.0.5 evil.example', 'ip=10.0.0.6']", &["10.0.0.5"]),
        ("['ip=']", &[]),
        ("['ip=', 'ip=10.0.0.6']", &[]),
        ("[1, None]", &[]),
        ("'ip=10.0.0.5'", &[]),
    ];
    for (vif, expected) in cases {
        let config = parse(&format!("vif = {vif}\nname = 'a'\n")).unwrap();
        assert_eq!(config.addresses, expected, "{vif}");
    }
}
