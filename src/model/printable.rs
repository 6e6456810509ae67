//! Foreign text made harmless for people's eyes: on a terminal, in a log, on a page of text.

use std::borrow::Cow;

/// The text with each character escaped that does more than to be seen: control characters, which end lines and
/// steer terminals, and marks that turn the direction of what follows or are not seen at all.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_plain(c) { escaped.push(c) } else { escaped.extend(c.escape_debug()) }
    }
    Cow::Owned(escaped)
}

fn is_plain(c: char) -> bool {
    // One character: the library's table of what can be printed has it. Quotes and backslashes can be.
    matches!(c, '\\' | '\'' | '"') || c.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_stays_and_all_else_is_escaped() {
        for plain in ["", "a.img", "Größe 漢字 'x' \"y\" \\z", "[0m"] {
            assert!(matches!(printable(plain), Cow::Borrowed(_)), "{plain}");
        }
        for (text, expected) in [
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\x1b[2J\x07\0\x7f", "\\u{1b}[2J\\u{7}\\0\\u{7f}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("gpj.\u{202e}exe", "gpj.\\u{202e}exe"),
            ("\u{2066}\u{2069}\u{200f}\u{61c}", "\\u{2066}\\u{2069}\\u{200f}\\u{61c}"),
            ("\u{2028}\u{2029}\u{200b}\u{feff}", "\\u{2028}\\u{2029}\\u{200b}\\u{feff}"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(printable(text), expected);
        }
    }
}
