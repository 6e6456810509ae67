//! The forms of texts in the bodies, for the OpenAPI document. In the bodies these are plain texts, so that a client
//! reads those of other versions too.
#![expect(dead_code, reason = "only the schemas are used")]

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// RFC 3339, UTC, with milliseconds.
#[derive(ToSchema)]
#[schema(value_type = String, format = DateTime, pattern = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$", example = "2026-11-27T09:14:03.127Z")]
pub struct Time(String);

/// A dashed uuid.
#[derive(ToSchema)]
#[schema(value_type = String, format = "uuid", pattern = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", example = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d")]
pub struct Id(String);

/// The name of a VM.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^[0-9a-f]{32}$", example = "0004fb00000600000000000000000001")]
pub struct VmName(String);

/// The name of a VM, or a dashed uuid that no other VM has.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^[0-9a-f]{32}$|^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", example = "0004fb00000600000000000000000001")]
pub struct VmReference(String);

/// 256 bits, hexadecimal.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^[0-9a-f]{64}$", example = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262")]
pub struct Digest(String);

/// A time span, such as `72h` or `1h30m5s`.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$", example = "1h30m")]
pub struct Duration(String);

/// How long to keep something: a time span, or `none`.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = r"^(none|([0-9]+(\.[0-9]+)?(ms|s|m|h))+)$", example = "72h")]
pub struct Ttl(String);

/// A file name, or a device in the guest such as `xvda`.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^[^/]{1,255}$", example = "xvda")]
pub struct DiskName(String);

/// The state of a restored disk.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum Consistency {
    /// As after a power cut.
    Crash,
    /// Hooks had quiesced the guest.
    Quiesced,
}

/// What a hook is: a program, or a server in the guest.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum HookKind {
    Directory,
    Sync,
}

/// When a hook was called: before the operation, or after it.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum HookStage {
    Pre,
    Post,
}

/// How a call of a hook ended.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum HookOutcome {
    Ok,
    Failed,
    Timeout,
    Skipped,
}

/// How a checksum is computed.
#[derive(ToSchema)]
pub enum Algorithm {
    #[schema(rename = "blake3")]
    Blake3,
    #[schema(rename = "sha256")]
    Sha256,
    #[schema(rename = "blake2b-256")]
    Blake2b256,
}

/// The labels of a snapshot.
pub struct Labels(());

impl PartialSchema for Labels {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        ObjectBuilder::new()
            .max_properties(Some(32))
            .property_names(Some(text().pattern(Some("^[A-Za-z0-9._/-]{1,63}$"))))
            .additional_properties(Some(text().max_length(Some(255))))
            .description(Some("At most 32 texts, for programs. A text is printable and has at most 255 bytes."))
            .examples([serde_json::json!({"job": "nightly"})])
            .into()
    }
}

impl ToSchema for Labels {}

/// Bytes of a disk, or of a file.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct Bytes(());
