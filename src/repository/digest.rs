//! Checksum algorithms and their digests.

/// Each makes 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Blake3,
    /// FIPS 180-4.
    Sha256,
    /// With a digest of 32 bytes (RFC 7693), as oVirt imageio uses it.
    Blake2b256,
}

impl Algorithm {
    pub const ALL: [Self; 3] = [Self::Blake3, Self::Sha256, Self::Blake2b256];

    /// The name in requests and responses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
            Self::Blake2b256 => "blake2b-256",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl std::fmt::Display for Digest {
    /// Lower-case hexadecimal digits, as `sha256sum` prints them.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// A text is not a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotADigest;

impl std::str::FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
        let digits = digits.ok_or(NotADigest)?;
        let bytes: Vec<u8> =
            digits.chunks(2).filter_map(|pair| u8::try_from(pair[0] * 16 + pair.get(1)?).ok()).collect();
        // With an odd number of digits, the last one has no pair.
        if digits.len() != 64 { Err(NotADigest) } else { Ok(Self(bytes.try_into().map_err(|_| NotADigest)?)) }
    }
}
