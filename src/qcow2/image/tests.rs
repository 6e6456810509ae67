use std::fs::{self, File};
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::qcow2::{Backing, Layout};

const SIZE: u64 = 65_536;

/// A folder with `root`, in which chains are opened.
struct Files {
    folder: TempDir,
    root: Folder,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("root/a/b")).unwrap();
        let root = Folder::open(&folder.path().join("root")).unwrap();
        Self { folder, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("root").join(name)
    }

    /// Writes an image without data.
    fn image(&self, name: &str, backing: Option<&str>) {
        self.image_on(name, backing.map(|file| (file, Format::Qcow2)));
    }

    fn image_on(&self, name: &str, backing: Option<(&str, Format)>) {
        let backing = backing.map(|(file, format)| Backing { file: file.to_owned(), format, size: SIZE });
        let layout = Layout::new(SIZE, [], backing).unwrap();
        let file = File::create(self.path(name)).unwrap();
        layout.write_metadata(&file).unwrap();
        layout.finish(&file).unwrap();
    }

    /// Replaces bytes of the header, such as a name by one of the same length.
    fn replace(&self, name: &str, from: &[u8], to: &[u8]) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes.splice(at..at + from.len(), to.iter().copied());
        fs::write(self.path(name), bytes).unwrap();
    }

    fn open(&self, name: &str) -> Result<Image, ImageError> {
        Image::open(&self.root, Path::new(name), Format::Qcow2)
    }

    fn error(&self, name: &str) -> String {
        self.open(name).unwrap_err().to_string()
    }
}

#[test]
fn backing_names_are_relative_to_the_folder_of_their_image() {
    let files = Files::new();
    fs::write(files.path("base"), vec![7; SIZE as usize]).unwrap();
    files.image_on("a/one", Some(("../base", Format::Raw)));
    files.image("a/b/two", Some("./.././one"));
    files.image("three", Some("a/b/two"));
    let image = files.open("a/../three").unwrap();
    assert_eq!(image.files().collect::<Vec<_>>(), ["three", "a/b/two", "a/one", "base"].map(Path::new));
    let mut bytes = [0; 9];
    image.read_at(SIZE - 9, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 9]);
}

#[test]
fn chains_stay_in_their_folder() {
    let files = Files::new();
    fs::write(files.folder.path().join("secret"), vec![7; SIZE as usize]).unwrap();
    files.image("outside", Some("a/../../secret"));
    assert!(files.error("outside").contains(r#""outside": the path "a/../../secret" leads out of the folder"#));
    for (number, name) in ["/etc/shadow", "json:{x}/yz", "nbd:unix:/x"].into_iter().enumerate() {
        let image = format!("image{number}");
        files.image(&image, Some("elevenbytes"));
        files.replace(&image, b"elevenbytes", name.as_bytes());
        assert!(files.error(&image).contains("is not a relative path"), "{name}");
    }
    assert!(files.error("../secret").contains("leads out of the folder"));
    let absolute = files.path("outside");
    assert!(files.error(absolute.to_str().unwrap()).contains("leads out of the folder"));
}

#[test]
fn links_and_other_files_are_not_opened() {
    let files = Files::new();
    files.image("base", None);
    symlink(files.path("base"), files.path("link")).unwrap();
    symlink(files.path("a"), files.path("folder")).unwrap();
    files.image("a/base", None);
    files.image("on-link", Some("link"));
    files.image("through-link", Some("folder/base"));
    files.image("on-folder", Some("a"));
    assert!(files.error("on-link").contains("symbolic link, which is not followed"));
    assert!(files.error("through-link").contains("symbolic link, which is not followed"));
    assert!(files.error("on-folder").contains("is not a regular file"));
    files.image("on-nothing", Some("a/missing"));
    assert!(files.error("on-nothing").starts_with(r#""a/missing": "#));
}

#[test]
fn circles_and_too_long_chains_are_refused() {
    let files = Files::new();
    files.image("x", Some("y"));
    files.image("y", Some("z"));
    files.image("z", Some("x"));
    assert!(files.error("x").contains("occurs twice in its chain"));
    fs::hard_link(files.path("y"), files.path("other-name")).unwrap();
    files.image("z", Some("other-name"));
    assert!(files.error("x").contains("occurs twice in its chain"));
    files.image("self", Some("self"));
    assert!(files.error("self").contains("occurs twice in its chain"));

    files.image("0001", None);
    files.image("0002", Some("0001"));
    let image = fs::read(files.path("0002")).unwrap();
    let at = image.windows(4).position(|window| window == b"0001").unwrap();
    for number in 3..=MAX_FILES + 1 {
        let mut image = image.clone();
        image[at..at + 4].copy_from_slice(format!("{:04}", number - 1).as_bytes());
        fs::write(files.path(&format!("{number:04}")), image).unwrap();
    }
    let longest = files.open("1000").unwrap();
    assert_eq!(longest.files().count(), MAX_FILES);
    let mut bytes = [1; 9];
    longest.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 9]);
    assert!(files.error("1001").contains("has more than 1000 files"));
}

#[test]
fn unsupported_and_inconsistent_headers_are_refused() {
    let files = Files::new();
    files.image("base", None);
    files.image("image", Some("base"));
    let good = fs::read(files.path("image")).unwrap();
    let error_with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(files.path("image"), image).unwrap();
        files.error("image")
    };
    assert!(error_with(0, b"X").contains("is not a qcow2 image"));
    let incompatible = 79;
    for (at, bytes, text) in [
        (4, &4_u32.to_be_bytes()[..], "version 4"),
        (20, &8_u32.to_be_bytes(), "the size of its clusters"),
        (20, &22_u32.to_be_bytes(), "the size of its clusters"),
        (24, &u64::MAX.to_be_bytes(), "the size of its disk"),
        (24, &(1_u64 << 40).to_be_bytes(), "its L1 table is too short"),
        (32, &1_u32.to_be_bytes(), "encryption"),
        (36, &u32::MAX.to_be_bytes(), "its L1 table of 4294967295 entries"),
        (40, &4097_u64.to_be_bytes(), "not at the start of a cluster"),
        (40, &(1_u64 << 62).to_be_bytes(), "is cut off"),
        (8, &(1_u64 << 40).to_be_bytes(), "outside of the first cluster"),
        (16, &2000_u32.to_be_bytes(), "longer than 1,023 bytes"),
        (104, &[0], "does not say which format"),
        (incompatible, &[1], "marked as dirty"),
        (incompatible, &[2], "marked as corrupt"),
        (incompatible, &[4], "an external data file"),
        (incompatible, &[8], "compression"),
        (incompatible, &[16], "subclusters"),
        (incompatible - 1, &[1], "a feature that this program does not know"),
    ] {
        let error = error_with(at, bytes);
        assert!(error.starts_with("\"image\": ") && error.contains(text), "{error}, not {text}");
    }
}
