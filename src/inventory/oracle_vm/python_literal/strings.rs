//! Python strings: prefixes, quotes and escapes.

use super::{Parser, SyntaxError};

/// The meaning of backslashes, by prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flavor {
    /// No prefix: `\xHH` is a byte; a well-formed `\uXXXX` is a character.
    Plain,
    /// `u`: `\xHH` and `\uXXXX` are characters.
    Unicode,
    /// `b`: `\xHH` is a byte, and there is no `\u`.
    Bytes,
    /// `r`: a backslash is kept, and keeps a quote from closing the string.
    Raw,
}

impl<'a> Parser<'a> {
    /// The string that starts here, if any. Adjacent strings are joined as bytes, because a character may be split.
    pub(super) fn strings(&mut self) -> Result<Option<String>, SyntaxError> {
        if self.string_start().is_none() {
            return Ok(None);
        }
        let (mut bytes, first, mut end) = (Vec::new(), self.rest, self.rest);
        while let Some((flavor, quote, body)) = self.string_start() {
            let start = self.rest;
            self.rest = body;
            self.string_body(flavor, quote, start, &mut bytes)?;
            end = self.rest;
            self.skip_space()?;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        self.note_scalar(first, end, Some(&text));
        Ok(Some(text))
    }

    /// The flavor, quote and body of the string that starts here, if any.
    fn string_start(&self) -> Option<(Flavor, &'static str, &'a str)> {
        let prefix_len = self.rest.bytes().take(3).take_while(u8::is_ascii_alphabetic).count();
        let (prefix, quoted) = self.rest.split_at_checked(prefix_len)?;
        let flavor = match prefix.to_ascii_lowercase().as_str() {
            "" => Flavor::Plain,
            "u" => Flavor::Unicode,
            "b" => Flavor::Bytes,
            "r" | "br" | "rb" => Flavor::Raw,
            _ => return None,
        };
        // Triple quotes first, because they start with a single one.
        let mut quotes = ["'''", "\"\"\"", "'", "\""].into_iter();
        quotes.find_map(|quote| Some((flavor, quote, quoted.strip_prefix(quote)?)))
    }

    fn string_body(&mut self, flavor: Flavor, quote: &str, start: &str, out: &mut Vec<u8>) -> Result<(), SyntaxError> {
        loop {
            if let Some(rest) = self.rest.strip_prefix(quote) {
                self.rest = rest;
                return Ok(());
            }
            match self.bump() {
                None => return Err(self.error_at(start, "unterminated string")),
                Some('\n') if quote.len() == 1 => {
                    return Err(self.error_at(start, "unterminated string"));
                }
                Some('\\') if flavor == Flavor::Raw => {
                    out.push(b'\\');
                    if let Some(kept) = self.bump() {
                        push_char(out, kept);
                    }
                }
                Some('\\') => self.escape(flavor, out)?,
                Some(c) => push_char(out, c),
            }
        }
    }

    /// Parses the escape after a backslash.
    fn escape(&mut self, flavor: Flavor, out: &mut Vec<u8>) -> Result<(), SyntaxError> {
        let at = self.rest;
        let Some(letter) = self.bump() else {
            return Ok(()); // the caller reports the end of the file
        };
        match letter {
            '\n' => {}
            '\\' | '\'' | '"' => push_char(out, letter),
            'a' => out.push(0x07),
            'b' => out.push(0x08),
            't' => out.push(b'\t'),
            'n' => out.push(b'\n'),
            'v' => out.push(0x0b),
            'f' => out.push(0x0c),
            'r' => out.push(b'\r'),
            '0'..='7' => {
                self.rest = at;
                let mut digits = 0;
                let octal = self.take_while(|c| {
                    digits += 1;
                    digits <= 3 && matches!(c, '0'..='7')
                });
                push_code(
                    out,
                    flavor,
                    octal.chars().filter_map(|c| c.to_digit(8)).fold(0, |code, digit| code * 8 + digit),
                );
            }
            'x' => match self.hex(2) {
                Some(code) => push_code(out, flavor, code),
                None => return Err(self.error_at(at, "`\\x` without two hexadecimal digits")),
            },
            'u' | 'U' if flavor != Flavor::Bytes => match self.hex(if letter == 'u' { 4 } else { 8 }) {
                Some(code) => push_char(out, char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)),
                None if flavor == Flavor::Plain => out.extend([b'\\', if letter == 'u' { b'u' } else { b'U' }]),
                None => {
                    return Err(self.error_at(at, format!("`\\{letter}` without its hexadecimal digits")));
                }
            },
            'N' if flavor == Flavor::Unicode => {
                return Err(self.error_at(at, "`\\N` is not supported"));
            }
            unknown => {
                out.push(b'\\');
                push_char(out, unknown);
            }
        }
        Ok(())
    }

    /// Reads exactly `digits` hexadecimal digits, or nothing.
    fn hex(&mut self, digits: usize) -> Option<u32> {
        let (text, rest) = self.rest.split_at_checked(digits)?;
        if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        self.rest = rest;
        u32::from_str_radix(text, 16).ok()
    }
}

/// Appends the number of an `\x` or octal escape: a character in a unicode string, otherwise a byte.
fn push_code(out: &mut Vec<u8>, flavor: Flavor, code: u32) {
    match char::from_u32(code) {
        Some(c) if flavor == Flavor::Unicode => push_char(out, c),
        _ => out.push(code as u8), // `\777` is cut to a byte, as in Python
    }
}

fn push_char(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}
