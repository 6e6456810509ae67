//! Images that are written here are right for qemu-img, and the other way round.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use coriolis_ovm_exporter::testing::ByteRange;
use coriolis_ovm_exporter::testing::Folder;
use coriolis_ovm_exporter::testing::qcow2::{Backing, Content, Format, Image, Layout};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Random, eventually};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

type Runs = Vec<(ByteRange, Content)>;

/// A folder with images, and the bytes that the disk of each must have.
struct Images {
    folder: TempDir,
    disks: Vec<(String, Vec<u8>)>,
}

impl Images {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), disks: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self, name: &str, format: Format) -> Image {
        Image::open(&Folder::open(self.folder.path()).unwrap(), Path::new(name), format).unwrap()
    }

    fn disk(&self, name: &str) -> &[u8] {
        &self.disks.iter().find(|(found, _)| found == name).unwrap().1
    }

    fn qemu_img(&self, arguments: &[&str]) -> Output {
        Command::new("qemu-img").args(arguments).current_dir(self.folder.path()).output().unwrap()
    }

    fn qemu_img_json(&self, arguments: &[&str]) -> Value {
        let output = self.qemu_img(&[arguments, &["--output=json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn raw(&mut self, name: &str, disk: Vec<u8>) {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(disk.len() as u64).unwrap();
        for (index, piece) in disk.chunks(4096).enumerate().filter(|(_, piece)| piece.iter().any(|byte| *byte != 0)) {
            file.write_all_at(piece, index as u64 * 4096).unwrap();
        }
        self.disks.push((name.to_owned(), disk));
    }

    /// Writes an image with random data in the data runs, and checks it.
    fn write(
        &mut self,
        name: &str,
        size: u64,
        runs: &Runs,
        backing: Option<(&str, Format)>,
        random: &mut Random,
    ) -> Layout {
        self.write_with(name, size, runs, backing, random, &[12, 14, 16])
    }

    fn write_with(
        &mut self,
        name: &str,
        size: u64,
        runs: &Runs,
        backing: Option<(&str, Format)>,
        random: &mut Random,
        cluster_bits: &[u32],
    ) -> Layout {
        let below = backing.map(|(file, format)| self.open(file, format));
        let mut disk = backing.map(|(file, _)| self.disk(file).to_vec()).unwrap_or_default();
        disk.resize(size as usize, 0);
        let backing =
            backing.map(|(file, format)| Backing { file: file.to_owned(), format, size: self.disk(file).len() as u64 });
        let layout = Layout::with_clusters(size, runs.iter().copied(), backing, cluster_bits).unwrap();
        let file = File::create(self.path(name)).unwrap();
        for (range, content) in runs {
            let bytes = &mut disk[range.start() as usize..range.end() as usize];
            match content {
                Content::Data => {
                    fill(bytes, random);
                    layout.write_at(&file, range.start(), bytes).unwrap();
                }
                Content::Zero => bytes.fill(0),
            }
        }
        layout.write_metadata(&file).unwrap();
        layout.fill_gaps(&file, below.as_ref()).unwrap();
        layout.finish(&file).unwrap();
        disk.resize(disk.len().next_multiple_of(512), 0);
        self.disks.push((name.to_owned(), disk));
        self.check(name);
        layout
    }

    /// qemu-img finds no fault in the image, nothing that belongs to no cluster, and the bytes of the disk.
    fn check(&self, name: &str) {
        let check = self.qemu_img_json(&["check", "-f", "qcow2", name]);
        for problem in ["check-errors", "corruptions", "leaks"] {
            assert_eq!(check[problem].as_u64().unwrap_or(0), 0, "{name}: {check}");
        }
        let converted = format!("{name}.converted");
        let output = self.qemu_img(&["convert", "-f", "qcow2", "-O", "raw", name, &converted]);
        assert!(output.status.success(), "{output:?}");
        assert!(fs::read(self.path(&converted)).unwrap() == self.disk(name), "{name} has other bytes");
        let compared = self.qemu_img(&["compare", "-f", "qcow2", "-F", "raw", name, &converted]);
        assert!(compared.status.success(), "{compared:?}");
        fs::remove_file(self.path(&converted)).unwrap();
    }

    /// This reader finds the bytes of the disk, and says about each range the same as qemu-img.
    fn check_reader(&self, name: &str, format: Format) {
        let image = self.open(name, format);
        let disk = self.disk(name);
        let mut bytes = vec![1; image.size() as usize];
        image.read_at(0, &mut bytes).unwrap();
        assert!(bytes == disk, "{name} has other bytes");
        let mut of_qemu: Vec<(u64, u64, bool)> = Vec::new();
        let qemu_format = if format == Format::Raw { "raw" } else { "qcow2" };
        for part in self.qemu_img_json(&["map", "-f", qemu_format, name]).as_array().unwrap() {
            let start = part["start"].as_u64().unwrap();
            let (end, data) = (start + part["length"].as_u64().unwrap(), part["data"].as_bool().unwrap());
            match of_qemu.last_mut() {
                Some(last) if last.2 == data => last.1 = end,
                _ => of_qemu.push((start, end, data)),
            }
        }
        let runs = image.runs().map(Result::unwrap);
        let ours: Vec<_> =
            runs.map(|(range, content)| (range.start(), range.end(), content == Content::Data)).collect();
        assert_eq!(ours, of_qemu, "{name}");
    }
}

fn run(start: u64, end: u64, content: Content) -> (ByteRange, Content) {
    (ByteRange::new(start, end).unwrap(), content)
}

fn fill(bytes: &mut [u8], random: &mut Random) {
    bytes.copy_from_slice(&random.bytes(bytes.len() as u64));
}

/// Runs whose bounds are multiples of `unit`, about as long as the gaps between them, up to `longest`.
fn random_runs(random: &mut Random, size: u64, unit: u64, longest: u64) -> Runs {
    let (mut at, mut runs) = (0, Vec::new());
    loop {
        let start = at + random.below(longest / unit + 1) * unit;
        at = start + (1 + random.below(longest / unit)) * unit;
        if start >= size {
            return runs;
        }
        let content = if random.below(3) == 0 { Content::Zero } else { Content::Data };
        runs.push(run(start, at.min(size), content));
    }
}

#[test]
fn qemu_img_reads_chains_that_grow_and_shrink() {
    let mut random = Random(12);
    for base in [Format::Raw, Format::Qcow2] {
        let mut images = Images::new();
        let full = random_runs(&mut random, 9 * MIB, 4096, MIB);
        if base == Format::Raw {
            let mut disk = vec![0; 9 * MIB as usize];
            for (range, _) in &full {
                fill(&mut disk[range.start() as usize..range.end() as usize], &mut random);
            }
            disk.truncate(9 * MIB as usize - 100);
            images.raw("0", disk);
        } else {
            images.write("0", 9 * MIB, &full, None, &mut random);
        }
        let mut below = ("0".to_owned(), base);
        // The sizes are multiples of sectors only, or not even that.
        for (number, (size, unit, longest, cluster_bits)) in [
            (9 * MIB, 512, 20 * KIB, 12),
            (11 * MIB + 512, 4096, 4096, 12),
            (7 * MIB + 1536, 512, 200 * KIB, 14),
            (7 * MIB + 1000, 1, 3 * KIB, 14),
            (12 * MIB, 16 * KIB, 32 * KIB, 16),
            (16 * MIB, 512, 2 * MIB, 16),
        ]
        .into_iter()
        .enumerate()
        {
            let name = (number + 1).to_string();
            let runs = random_runs(&mut random, size, unit, longest);
            images.write_with(&name, size, &runs, Some((&below.0, below.1)), &mut random, &[cluster_bits]);
            images.check_reader(&name, Format::Qcow2);
            below = (name, Format::Qcow2);
        }
    }
}

#[test]
fn zeros_hide_the_backing_file_without_using_space() {
    let (mut images, mut random) = (Images::new(), Random(12));
    images.write("base", 8 * MIB, &vec![run(0, 8 * MIB, Content::Data)], None, &mut random);
    let zeros = vec![run(0, 4 * MIB, Content::Zero), run(5 * MIB, 8 * MIB, Content::Zero)];
    let layout = images.write("zeros", 8 * MIB, &zeros, Some(("base", Format::Qcow2)), &mut random);
    assert!(layout.file_len() < 512 * KIB, "{}", layout.file_len());
    images.check_reader("zeros", Format::Qcow2);
    let empty = images.write("same", 8 * MIB, &Vec::new(), Some(("zeros", Format::Qcow2)), &mut random);
    assert!(empty.file_len() <= 64 * KIB, "{}", empty.file_len());
    images.write("nothing", 0, &Vec::new(), None, &mut random);
    images.write("nothing-again", 0, &Vec::new(), Some(("base", Format::Qcow2)), &mut random);
}

/// 10 to 1,000 scattered changes of 4 KiB copy at most 4 KiB around each change; a long one uses few tables.
#[test]
fn clusters_fit_the_changes() {
    let backing = Backing { file: "base".to_owned(), format: Format::Raw, size: 1 << 40 };
    let layout = |runs: Runs| Layout::new(1 << 40, runs, Some(backing.clone())).unwrap();
    let scattered = layout((0..1000).map(|index| run(index << 30, (index << 30) + 4096, Content::Data)).collect());
    assert_eq!(scattered.cluster_size(), 4096);
    assert_eq!(layout(vec![run(0, 1 << 39, Content::Data)]).cluster_size(), 64 * KIB);
}

#[test]
fn images_of_qemu_img_are_read() {
    let (mut images, mut random) = (Images::new(), Random(12));
    for (number, options) in [
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=64k",
        "cluster_size=2M",
        "compat=0.10",
        "cluster_size=16k,preallocation=metadata",
        "cluster_size=64k,lazy_refcounts=on",
    ]
    .into_iter()
    .enumerate()
    {
        let size = 5 * MIB + 512;
        let mut disk = vec![0; size as usize];
        for (range, content) in random_runs(&mut random, size, 512, 300 * KIB) {
            if content == Content::Data {
                fill(&mut disk[range.start() as usize..range.end() as usize], &mut random);
            }
        }
        let (raw, image, above) = (format!("{number}.raw"), format!("{number}.qcow2"), format!("{number}.above"));
        images.raw(&raw, disk);
        let convert = images.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-o", options, &raw, &image]);
        assert!(convert.status.success(), "{convert:?}");
        images.disks.push((image.clone(), images.disk(&raw).to_vec()));
        images.check_reader(&image, Format::Qcow2);
        // An image of qemu-img on top of it, with the differences to another disk.
        let mut changed = images.disk(&raw).to_vec();
        fill(&mut changed[MIB as usize..MIB as usize + 70_000], &mut random);
        changed[3 * MIB as usize..4 * MIB as usize].fill(0);
        images.raw("changed", changed);
        let create = ["create", "-q", "-f", "qcow2", "-b", &image, "-F", "qcow2", "-o", options, &above];
        let with_backing = !options.contains("preallocation");
        if with_backing {
            let create = images.qemu_img(&create);
            assert!(create.status.success(), "{create:?}");
            let differences =
                ["convert", "-n", "-f", "raw", "-O", "qcow2", "-B", &image, "-F", "qcow2", "changed", &above];
            let convert = images.qemu_img(&differences);
            assert!(convert.status.success(), "{convert:?}");
            images.disks.push((above.clone(), images.disk("changed").to_vec()));
            images.check_reader(&above, Format::Qcow2);
        }
        images.disks.retain(|(name, _)| name != "changed");
    }
}

#[test]
fn unsupported_images_of_qemu_img_are_refused_by_name() {
    let images = Images::new();
    let root = Folder::open(images.folder.path()).unwrap();
    for (options, text) in [
        ("data_file=external.raw", "an external data file"),
        ("extended_l2=on", "subclusters"),
        ("compression_type=zstd", "compression"),
        ("encrypt.format=luks,encrypt.key-secret=key", "encryption"),
    ] {
        let arguments =
            ["create", "-q", "--object", "secret,id=key,data=x", "-f", "qcow2", "-o", options, "image", "1M"];
        // It measures the CPU for the key of an encrypted image, and gives up on a busy machine.
        eventually("qemu-img makes the image", || images.qemu_img(&arguments).status.success());
        let error = Image::open(&root, Path::new("image"), Format::Qcow2).unwrap_err().to_string();
        assert!(error.contains("\"image\"") && error.contains(text), "{error}");
    }
    fs::write(images.path("raw"), vec![7; MIB as usize]).unwrap();
    let converted = images.qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "compressed"]);
    assert!(converted.status.success(), "{converted:?}");
    let image = Image::open(&root, Path::new("compressed"), Format::Qcow2).unwrap();
    assert!(image.read_at(0, &mut [0]).unwrap_err().to_string().contains("compressed clusters"));
    let not_finished = images.path("empty");
    fs::write(&not_finished, [0; 4096]).unwrap();
    let error = Image::open(&root, Path::new("empty"), Format::Qcow2).unwrap_err().to_string();
    assert!(error.contains("never finished"), "{error}");
}
