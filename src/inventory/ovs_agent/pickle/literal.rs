//! Numbers and strings in the syntax of pickles.

use std::borrow::Cow;

use super::Reason;
use super::node::Node;

/// The line of `INT`: `00` and `01` are how protocol 0 writes `False` and `True`.
pub(super) fn int(line: &[u8]) -> Result<Node<'static>, Reason> {
    match line {
        b"00" => Ok(Node::Bool(false)),
        b"01" => Ok(Node::Bool(true)),
        _ => decimal(line),
    }
}

/// The line of `LONG`, which Python 2 ends with an `L`.
pub(super) fn long(line: &[u8]) -> Result<Node<'static>, Reason> {
    decimal(line.strip_suffix(b"L").unwrap_or(line))
}

fn decimal(line: &[u8]) -> Result<Node<'static>, Reason> {
    let line = line.trim_ascii();
    let digits = line.strip_prefix(b"-").or_else(|| line.strip_prefix(b"+")).unwrap_or(line);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Reason::Literal { what: "an integer" });
    }
    // It has digits only, so there is but one reason left why it could not be read.
    Ok(str::from_utf8(line).ok().and_then(|line| line.parse().ok()).map_or(Node::HugeInt, Node::Int))
}

/// The bytes of `LONG1` and `LONG4`: two's complement, the lowest byte first; none is 0.
pub(super) fn binary_long(bytes: &[u8]) -> Node<'static> {
    let negative = bytes.last().is_some_and(|high| high & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    let mut low = [fill; 16];
    let (kept, rest) = bytes.split_at(bytes.len().min(low.len()));
    low[..kept.len()].copy_from_slice(kept);
    let value = i128::from_le_bytes(low);
    let fits = rest.iter().all(|byte| *byte == fill) && (value < 0) == negative;
    if fits { Node::Int(value) } else { Node::HugeInt }
}

/// The line of `FLOAT`: what `repr` writes.
pub(super) fn float(line: &[u8]) -> Result<Node<'static>, Reason> {
    let text = str::from_utf8(line.trim_ascii()).ok();
    text.and_then(|text| text.parse().ok()).map(Node::Float).ok_or(Reason::Literal { what: "a float" })
}

/// The line of `STRING`: what `repr` of Python 2 writes, with either quote.
pub(super) fn quoted(line: &[u8]) -> Result<Vec<u8>, Reason> {
    const WRONG: Reason = Reason::Literal { what: "a quoted string" };
    let line = line.trim_ascii_end();
    let (Some((first, _)), Some((last, body))) = (line.split_first(), line.split_last()) else { return Err(WRONG) };
    if line.len() < 2 || first != last || !matches!(first, b'\'' | b'"') {
        return Err(WRONG);
    }
    let mut rest = &body[1..];
    let mut text = Vec::with_capacity(rest.len());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            text.push(byte);
            continue;
        }
        let (&escape, after) = rest.split_first().ok_or(WRONG)?;
        rest = after;
        match escape {
            b'\\' | b'\'' | b'"' => text.push(escape),
            b'a' => text.push(0x07),
            b'b' => text.push(0x08),
            b't' => text.push(b'\t'),
            b'n' => text.push(b'\n'),
            b'v' => text.push(0x0b),
            b'f' => text.push(0x0c),
            b'r' => text.push(b'\r'),
            b'0'..=b'7' => {
                let more = rest.iter().take(2).take_while(|digit| matches!(digit, b'0'..=b'7')).count();
                let (digits, after) = rest.split_at(more);
                rest = after;
                let value =
                    digits.iter().fold(u16::from(escape - b'0'), |value, digit| value * 8 + u16::from(digit - b'0'));
                // Python drops the ninth bit as well.
                text.push((value & 0xff) as u8);
            }
            b'x' => {
                let digits = rest.get(..2).ok_or(WRONG)?;
                rest = &rest[2..];
                text.push(hexadecimal(digits).and_then(|value| value.try_into().ok()).ok_or(WRONG)?);
            }
            // No escape: Python leaves both.
            _ => text.extend_from_slice(&[b'\\', escape]),
        }
    }
    Ok(text)
}

/// The line of `UNICODE`: Latin-1, with `\uXXXX` and `\UXXXXXXXX` for the rest.
pub(super) fn raw_unicode(line: &[u8]) -> Result<String, Reason> {
    const WRONG: Reason = Reason::Literal { what: "an escaped character" };
    // As UTF-16, because Python 2 can write a character as two surrogates.
    let mut units: Vec<u16> = Vec::with_capacity(line.len());
    let mut backslashes = 0usize;
    let mut at = 0;
    while let Some(&byte) = line.get(at) {
        at += 1;
        // Of `\\u`, the first backslash is one for itself, and so is the second.
        let escape_len = match byte {
            b'u' if !backslashes.is_multiple_of(2) => 4,
            b'U' if !backslashes.is_multiple_of(2) => 8,
            _ => 0,
        };
        backslashes = if byte == b'\\' { backslashes + 1 } else { 0 };
        if escape_len == 0 {
            units.push(u16::from(byte));
            continue;
        }
        units.pop(); // the backslash of the escape
        let code = line.get(at..at + escape_len).and_then(hexadecimal).ok_or(WRONG)?;
        at += escape_len;
        match (u16::try_from(code), char::from_u32(code)) {
            (Ok(unit), _) => units.push(unit),
            (_, Some(character)) => units.extend_from_slice(character.encode_utf16(&mut [0; 2])),
            _ => return Err(WRONG),
        }
    }
    Ok(String::from_utf16_lossy(&units))
}

/// The text of the binary opcodes: UTF-8, in which Python leaves lone surrogates as they are.
pub(super) fn utf8(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// At most eight digits; no sign.
fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}
