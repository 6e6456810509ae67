//! Makes foreign text safe to show on a terminal, in a log, or on a text page.

use std::borrow::Cow;

/// Escapes each character that is not simply visible: control characters, which end lines and drive terminals, and
/// marks that are invisible or change the text direction.
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

/// Whether each character of `text` is visible, or combines with the one before it.
pub fn is_printable(text: &str) -> bool {
    // Of a text, `escape_debug` keeps combining marks. It escapes quotes and backslashes, which are printable.
    let quoted = text.chars().filter(|c| matches!(c, '\\' | '\'' | '"')).count();
    text.escape_debug().count() == text.chars().count() + quoted
}

fn is_plain(c: char) -> bool {
    // `escape_debug` leaves one character if it is printable. It also escapes quotes and backslashes, which are
    // printable.
    matches!(c, '\\' | '\'' | '"') || c.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_characters_stay_and_all_others_are_escaped() {
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
