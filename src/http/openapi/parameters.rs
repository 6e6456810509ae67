//! The parameters of the operations.
#![expect(dead_code, reason = "only for the OpenAPI document: `http::query` parses the parameters")]

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::api::formats;

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(in crate::http) struct Vm {
    /// The name of the VM (32 hexadecimal digits), or a dashed uuid that no other VM has.
    #[param(value_type = formats::VmReference)]
    vm: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(in crate::http) struct Snapshot {
    /// The id of the snapshot.
    #[param(value_type = formats::Id)]
    snapshot: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(in crate::http) struct Disk {
    /// The name of the disk in the snapshot.
    #[param(min_length = 1, max_length = 255, pattern = r"^[^./\x00][^/\x00]*$", example = "system.img")]
    disk: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(in crate::http) struct Ticket {
    /// The id of the ticket.
    #[param(pattern = "^[0-9a-f]{16}$", example = "5d1c0b7a9e3f2486")]
    ticket: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(in crate::http) struct DocumentationFile {
    /// The name of the file.
    #[param(pattern = "^[a-z][a-z.-]*$", example = "start.js")]
    file: String,
}

/// Options of a comparison.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(in crate::http) struct Comparison {
    /// The id of an older snapshot of the VM, the base. The chunks then list the changes since it.
    #[param(value_type = Option<formats::Id>, nullable = false)]
    compare_to: Option<String>,
    /// With `compareTo`: what to do if a disk's `mode` would be `full`. `full` lists the whole disk, `error` answers 409
    /// `full_required`.
    #[param(inline, nullable = false)]
    if_full: Option<IfFull>,
    /// With `compareTo`: list the way back. The disks are those of the base, and the chunks say how to turn the newer
    /// snapshot into it. The answer has `reverse: true`.
    #[param(nullable = false, default = false)]
    reverse: Option<bool>,
    /// With `compareTo`: read the ranges that the extent maps list as changed, compare their contents in blocks of this
    /// size, and list only the blocks that differ. 0 turns this off. The default for snapshots is in the config of the
    /// service (`[compare]`); for the chunks of one disk it is 0.
    #[param(value_type = Option<RefineBlock>, inline, nullable = false)]
    refine: Option<u64>,
}

/// Options of a map.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(in crate::http) struct Map {
    /// Whether to join adjacent chunks of one type; otherwise there is one chunk per extent. Default: `true`, and `false`
    /// for a new snapshot.
    #[param(nullable = false)]
    squash_chunks: Option<bool>,
    /// Whether to list ranges that became zeros. Default: `include` with `compareTo`, else `omit`.
    #[param(inline, nullable = false)]
    zero: Option<Zero>,
}

/// Options of a snapshot's document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(in crate::http) struct Document {
    /// Whether to list chunks.
    #[param(nullable = false, default = true)]
    chunks: Option<bool>,
    /// Whether to give only the sums of the chunks: an estimate before any transfer.
    #[param(nullable = false, default = false)]
    summary: Option<bool>,
    /// Whether to include the VM's definition. Default: `true`, and `false` in lists.
    #[param(nullable = false)]
    definition: Option<bool>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Label {
    /// Only snapshots that have this label (`key`), or have it with this value (`key=value`). With several, only
    /// snapshots that match all of them.
    #[param(nullable = false, max_items = 32, example = json!(["job=nightly"]))]
    label: Option<Vec<String>>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(in crate::http) struct IdempotencyKey {
    /// Makes the request safe to repeat: for 24 hours, the same user, VM, key and body get the snapshot that the first
    /// request created, even after a crash, and while it is still being created. If the first request failed, the next
    /// one tries again.
    #[param(
        rename = "Idempotency-Key",
        nullable = false,
        min_length = 1,
        max_length = 255,
        example = "5ab42a9c-1b7c-4d3f-9d9b-0e2a6a3f1c55"
    )]
    idempotency_key: Option<String>,
}

/// A part of a list of chunks.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(in crate::http) struct Page {
    /// Only chunks of this type. `zero` implies `zero=include`.
    #[param(rename = "type", inline, nullable = false)]
    kind: Option<crate::api::ChunkType>,
    /// List from this offset on, in bytes. A chunk that spans it is cut.
    #[param(nullable = false, default = 0)]
    starting_offset: Option<u64>,
    /// At most this many chunks. Default: 10,000 for a page; lines are unlimited.
    #[param(nullable = false, minimum = 1, maximum = 100_000)]
    max_results: Option<u64>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(in crate::http) struct Checksum {
    /// How to compute the checksum.
    #[param(inline, nullable = false)]
    algorithm: Option<formats::Algorithm>,
    /// The first byte.
    #[param(nullable = false, default = 0)]
    start: Option<u64>,
    /// The number of bytes. Default: up to the end of the disk. A part that passes the end is an error.
    #[param(nullable = false)]
    length: Option<u64>,
    /// The result is the checksum of the blocks' checksums: H(H(block 1) ‖ H(block 2) ‖ …), for blocks of this size.
    /// Blocks start at `start`; the last one may be shorter. `block_size` is another name of this parameter.
    #[param(value_type = Option<ChecksumBlock>, inline, nullable = false)]
    block_size: Option<u64>,
    /// With `blockSize`: whether to include the checksums of the blocks.
    #[param(nullable = false, default = false)]
    blocks: Option<bool>,
}

/// Which bytes of a disk, and under which conditions (RFC 9110).
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(in crate::http) struct Range {
    /// The bytes to send: single, open and suffix ranges, and up to 64 ranges, together no larger than the disk, as
    /// `multipart/byteranges`. One that is malformed, past the end or in another unit gets 416.
    #[param(rename = "Range", nullable = false, example = "bytes=0-65535")]
    range: Option<String>,
    /// The `ETag` of the disk. If the disk has another one, the whole disk is sent.
    #[param(rename = "If-Range", nullable = false)]
    if_range: Option<String>,
}

/// Under which conditions (RFC 9110) to answer, and with which digests (RFC 9530).
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(in crate::http) struct Conditions {
    /// An `ETag`. If the disk has another one, the answer is 412.
    #[param(rename = "If-Match", nullable = false)]
    if_match: Option<String>,
    /// An `ETag`. If the disk has it, the answer is 304.
    #[param(rename = "If-None-Match", nullable = false)]
    if_none_match: Option<String>,
    /// A time. If the snapshot is not younger, the answer is 304.
    #[param(rename = "If-Modified-Since", nullable = false, example = "Fri, 27 Nov 2026 09:14:03 GMT")]
    if_modified_since: Option<String>,
    /// A time. If the snapshot is younger, the answer is 412.
    #[param(rename = "If-Unmodified-Since", nullable = false, example = "Fri, 27 Nov 2026 09:14:03 GMT")]
    if_unmodified_since: Option<String>,
    /// With `sha-256=1`, the answer has a `Repr-Digest` of the whole disk. The service computes it before it sends the
    /// first byte, which takes minutes for a large disk.
    #[param(rename = "Want-Repr-Digest", nullable = false, example = "sha-256=1")]
    want_repr_digest: Option<String>,
    /// With `sha-256=1`, the answer has a `Content-Digest` of its body, if that has at most 16 MiB. With several ranges it
    /// is the digest of the multipart body.
    #[param(rename = "Want-Content-Digest", nullable = false, example = "sha-256=1")]
    want_content_digest: Option<String>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Cost {
    /// Whether to include `snapshots`. This reads the extent maps of all snapshots, for one caller at a time.
    #[param(nullable = false, default = false)]
    cost: Option<bool>,
    /// With `cost`: only this VM.
    #[param(value_type = Option<formats::VmReference>, nullable = false)]
    vm: Option<String>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(in crate::http) struct Adoption {
    /// Whether to only report what would be done.
    #[param(nullable = false, default = false)]
    dry_run: Option<bool>,
    /// Whether to include folders with a `.manifest.json`. Use it only if the database was lost: otherwise such folders
    /// belong to another exporter.
    #[param(nullable = false, default = false)]
    manifests: Option<bool>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(in crate::http) enum IfFull {
    Full,
    Error,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(in crate::http) enum Zero {
    Include,
    Omit,
}

/// 0, or a power of two from 512 to 1048576.
pub(in crate::http) struct RefineBlock(());

impl PartialSchema for RefineBlock {
    fn schema() -> RefOr<Schema> {
        let sizes = std::iter::once(0).chain((9..=20).map(|power| 1_u64 << power));
        ObjectBuilder::new().schema_type(Type::Integer).enum_values(Some(sizes)).into()
    }
}

impl ToSchema for RefineBlock {}

/// A power of two from 4096 to 16777216.
pub(in crate::http) struct ChecksumBlock(());

impl PartialSchema for ChecksumBlock {
    fn schema() -> RefOr<Schema> {
        let sizes = (12..=24).map(|power| 1_u64 << power);
        ObjectBuilder::new().schema_type(Type::Integer).enum_values(Some(sizes)).into()
    }
}

impl ToSchema for ChecksumBlock {}
