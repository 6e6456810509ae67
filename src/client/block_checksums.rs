//! The checksums of a disk's blocks, parsed while they arrive.

use std::fmt;
use std::io::BufReader;
use std::ops::Range;

use reqwest::Method;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::connection::unreadable;
use super::error::ClientError;
use super::server::Client;

impl Client {
    /// Calls `each` with the BLAKE3 of each block of `range`, in order. The server reads the range for that.
    ///
    /// # Errors
    /// It may have called `each` for some blocks before.
    pub fn block_checksums(
        &self,
        disk_path: &str,
        range: &Range<u64>,
        block_size: u64,
        each: &mut dyn FnMut([u8; 32]),
    ) -> Result<(), ClientError> {
        let Range { start, end } = range;
        let query = format!("algorithm=blake3&blockSize={block_size}&blocks=true&start={start}&length={}", end - start);
        let path = format!("{disk_path}/checksum?{query}");
        let body = self.send_once(&|to| to.request(Method::GET, &path))?;
        let mut count = 0;
        let expected = (end - start).div_ceil(block_size);
        let mut counted = |digest| {
            count += 1;
            // A server that sends more must not fill the memory.
            if count <= expected {
                each(digest);
            }
        };
        let mut deserializer = serde_json::Deserializer::from_reader(BufReader::new(body));
        Document(&mut counted).deserialize(&mut deserializer).map_err(|error| unreadable(disk_path, error))?;
        if count == expected {
            return Ok(());
        }
        Err(ClientError::Protocol(format!("{disk_path}: the service sent {count} checksums of blocks")))
    }
}

struct Document<'a>(&'a mut dyn FnMut([u8; 32]));

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a checksum")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut is_complete = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "blocks" => map.next_value_seed(Blocks(&mut *self.0))?,
                // The last member: without it the document was cut.
                "checksum" => {
                    map.next_value::<IgnoredAny>()?;
                    is_complete = true;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if is_complete { Ok(()) } else { Err(A::Error::missing_field("checksum")) }
    }
}

struct Blocks<'a>(&'a mut dyn FnMut([u8; 32]));

impl<'de> DeserializeSeed<'de> for Blocks<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Blocks<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("checksums of blocks")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut blocks: A) -> Result<(), A::Error> {
        while let Some(hex) = blocks.next_element::<String>()? {
            let digest = blake3::Hash::from_hex(&hex).map_err(A::Error::custom)?;
            (self.0)(*digest.as_bytes());
        }
        Ok(())
    }
}
