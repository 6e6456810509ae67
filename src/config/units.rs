//! Sizes and durations in the config file.

use std::time::Duration;

/// A size in bytes: a number, or text as in [`parse_size`].
pub(super) fn size(value: &toml::Value) -> Option<u64> {
    let bytes = value.as_integer().and_then(|bytes| u64::try_from(bytes).ok());
    bytes.or_else(|| value.as_str().and_then(parse_size))
}

/// A size in bytes: a number, optionally with `B`, `KiB`, `MiB` or `GiB`.
pub fn parse_size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A duration as Go writes it, such as `1h30m`. It is not zero.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let parsed = text.parse::<jiff::SignedDuration>().ok()?;
    Duration::try_from(parsed).ok().filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_use_the_syntax_of_go() {
        for (text, expected) in [
            ("168h", Some(604_800_000)),
            ("1h30m", Some(5_400_000)),
            ("500ms", Some(500)),
            ("1.5h", Some(5_400_000)),
            ("0s", None),
            ("-1h", None),
            ("5", None),
            ("", None),
            ("soon", None),
        ] {
            assert_eq!(parse_duration(text).map(|duration| duration.as_millis()), expected, "{text:?}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("512B", Some(512)),
            ("4KiB", Some(4096)),
            ("10MiB", Some(10 << 20)),
            ("2 GiB", Some(2 << 30)),
            ("99999999999GiB", None),
            ("1.5MiB", None),
            ("10MB", None),
            ("-1", None),
            ("MiB", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text:?}");
            assert_eq!(size(&text.into()), expected, "{text:?}");
        }
        assert_eq!((size(&4096.into()), size(&(-1).into()), size(&1.5.into())), (Some(4096), None, None));
    }
}
