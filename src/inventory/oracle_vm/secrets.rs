//! Masks passwords in a definition: `vfb` and `vncpasswd` can have one, and users write them into descriptions.
//!
//! Better too much is masked than too little. A text that is masked still parses, to the same values but for the mask.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;

use super::python_literal::{Places, Scalar};

/// In the place of a secret.
pub const MASK: &str = "***";

/// A name or text that contains one of these words, without regard to case, `-` and `_`, is about a secret.
const WORDS: [&str; 8] = ["passw", "passphrase", "pwd", "secret", "token", "credential", "apikey", "privatekey"];

/// A word that ends like this, such as `rootpw`, is about a secret too.
const ENDINGS: [&str; 2] = ["pass", "pw"];

fn is_about_a_secret(text: &str) -> bool {
    let plain = text.chars().filter(|c| !"-_".contains(*c)).collect::<String>().to_ascii_lowercase();
    let mut words = plain.split(|c: char| !c.is_alphanumeric());
    WORDS.iter().any(|word| plain.contains(word)) || words.any(|word| ENDINGS.iter().any(|end| word.ends_with(end)))
}

/// `source` with masked secrets. `places` are its scalars and comments.
pub fn mask_source(source: &str, places: &Places) -> String {
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    // A name of a secret that is a string of its own, such as the key of a dictionary: its value follows.
    let mut hidden_from: Option<usize> = None;
    for Scalar { place, text, assignment, name } in &places.scalars {
        let masked = match text.as_deref() {
            Some("") => None,
            _ if hidden_from == Some(*assignment) || is_about_a_secret(name) => Some(MASK.to_owned()),
            Some(text) => {
                if is_about_a_secret(text) && (!text.contains('=') || text.trim_end().ends_with('=')) {
                    hidden_from = Some(*assignment);
                }
                match mask_options(text) {
                    Cow::Owned(masked) => Some(masked),
                    Cow::Borrowed(_) => None,
                }
            }
            None => None,
        };
        edits.extend(masked.map(|masked| (place.clone(), literal(&masked))));
    }
    // A secret in a comment may continue in the next one.
    let comments = || places.comments.iter().map(|place| (place.clone(), &source[place.clone()]));
    // A comment beside a secret may have an older one.
    let is_doubtful = |text: &str| is_about_a_secret(text) || matches!(without_user_info(text), Cow::Owned(_));
    if !edits.is_empty() || comments().any(|(_, text)| is_doubtful(text)) {
        edits.extend(comments().map(|(place, _)| (place, format!("# {MASK}"))));
    }
    edits.sort_by_key(|(place, _)| place.start);
    let (mut masked, mut end) = (String::with_capacity(source.len()), 0);
    for (place, text) in edits {
        // A comment between the parts of a string that is masked.
        if place.start < end {
            continue;
        }
        masked.push_str(&source[end..place.start]);
        masked.push_str(&text);
        end = place.end;
    }
    masked.push_str(&source[end..]);
    masked
}

/// Masks the secrets in the value of a string, which may be a list of options: `type=vnc,vncpasswd=…`.
pub fn mask_options(text: &str) -> Cow<'_, str> {
    if !is_about_a_secret(text) {
        return without_user_info(text);
    }
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte))
    };
    // Only if each part has a name, and only names are about secrets, it is clear which values are secrets.
    let options: Option<Vec<(&str, &str)>> = text.split(',').map(|part| part.split_once('=')).collect();
    let is_clear = |(name, value): &(&str, &str)| is_name(name.trim()) && !is_about_a_secret(value);
    let Some(options) = options.filter(|options| options.iter().all(is_clear)) else {
        return Cow::Owned(MASK.to_owned());
    };
    let masked = options.iter().map(|(name, value)| match *value {
        "" => format!("{name}="),
        _ if is_about_a_secret(name) => format!("{name}={MASK}"),
        value => format!("{name}={}", without_user_info(value)),
    });
    Cow::Owned(masked.collect::<Vec<_>>().join(","))
}

/// Masks the user and password of each URL.
fn without_user_info(text: &str) -> Cow<'_, str> {
    let mut masked = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        // A password may have a slash.
        let authority = &after[..after.find(char::is_whitespace).unwrap_or(after.len())];
        masked.push_str(before);
        masked.push_str("://");
        rest = after;
        if let Some(at) = authority.rfind('@') {
            masked.push_str(MASK);
            rest = &after[at..];
        }
    }
    masked.push_str(rest);
    if masked == text { Cow::Borrowed(text) } else { Cow::Owned(masked) }
}

/// A Python string with this value.
fn literal(text: &str) -> String {
    let mut literal = String::from("'");
    for c in text.chars() {
        match c {
            '\\' => literal.push_str("\\\\"),
            '\'' => literal.push_str("\\'"),
            '\n' => literal.push_str("\\n"),
            c if c.is_ascii_control() => {
                let _ = write!(literal, "\\x{:02x}", u32::from(c));
            }
            c => literal.push(c),
        }
    }
    literal.push('\'');
    literal
}

#[cfg(test)]
mod tests {
    use super::super::python_literal::{parse_assignments, parse_with_places};
    use super::*;

    fn masked(source: &str) -> String {
        let (_, source, places) = parse_with_places(source).unwrap();
        let masked = mask_source(&source, &places);
        parse_assignments(&masked).unwrap_or_else(|error| panic!("{error}: {masked}"));
        masked
    }

    #[test]
    fn sources_without_secrets_stay_as_they_are() {
        for source in [
            "",
            "name = 'x'\nvfb = ['type=vnc,vncunused=1,vnclisten=127.0.0.1,keymap=en-us']\n# a comment\nvcpus = 2\n",
            "vncpasswd = ''\nvfb = ['type=vnc,vncpasswd=,keymap=en-us']\npassthrough = 1\n",
            "url = 'https://10.0.0.5:1727/a/b'\n",
        ] {
            assert_eq!(masked(source), source);
        }
    }

    #[test]
    fn secrets_are_masked_however_they_are_written() {
        for (source, expected) in [
            ("vncpasswd = 'S3CRET'\nvcpus = 2\n", "vncpasswd = '***'\nvcpus = 2\n"),
            ("vncpasswd=5353;vcpus=2", "vncpasswd='***';vcpus=2"),
            ("VNC_PassWord = [u'S3CRET', 7]", "VNC_PassWord = ['***', '***']"),
            ("vfb = ['type=vnc,vncpasswd=S3CRET,keymap=en-us']", "vfb = ['type=vnc,vncpasswd=***,keymap=en-us']"),
            ("vfb = ['type=vnc, vncpasswd = S3CRET,S3CRET']", "vfb = ['***']"),
            ("vfb = ['type=vnc,vnc\\x70asswd=S3CRET']", "vfb = ['type=vnc,vncpasswd=***']"),
            ("vfb = ['type=vnc,vncpas' # S3CRETx password\n 'swd=S3CRET']", "vfb = ['type=vnc,vncpasswd=***']"),
            ("vfb = [{'vncpasswd': 'S3CRET', 'a': 1}]\nb = 'c'", "vfb = [{'***': '***', '***': '***'}]\nb = 'c'"),
            ("d = 'it''s \\\\ the password: S3CRET, S3CRET'", "d = '***'"),
            ("d = '''password: S3CRET\nuser=S3CRET'''", "d = '***'"),
            ("d = 'note=the token is S3CRET'", "d = '***'"),
            ("d = 'name=password,value=S3CRET'", "d = '***'"),
            ("extra = '-object secret,id=s0,data=S3CRET'", "extra = '***'"),
            ("d = 'S3CRET, that is the root password'", "d = '***'"),
            ("a = ['vncpasswd=', 'S3CRET']", "a = ['vncpasswd=', '***']"),
            ("a = {'vncpasswd=': 'S3CRET'}", "a = {'vncpasswd=': '***'}"),
            ("vncpasswd = 'new'  # was S3CRET", "vncpasswd = '***'  # ***"),
            ("u = 'https://u:S3CRET/S3CRET@host/x'", "u = 'https://***@host/x'"),
            ("extra = 'rootpw=S3CRET,a=b'", "extra = 'rootpw=***,a=b'"),
            ("root_pass = 'S3CRET'", "root_pass = '***'"),
            (
                "d = 'xo:notify-on-snapshot=https://u:S3CRET@[::1]:1/x'",
                "d = 'xo:notify-on-snapshot=https://***@[::1]:1/x'",
            ),
            ("a = 1 # vncpasswd='S3CRET'\n# S3CRET\n", "a = 1 # ***\n# ***\n"),
            ("# https://u:S3CRET@host\na = 'ü'", "# ***\na = 'ü'"),
            ("a = 'secret=x\\\\'\r\nb = '\\t'", "a = 'secret=***'\nb = '\\t'"),
        ] {
            let found = masked(source);
            assert_eq!(found, expected, "{source}");
            assert!(!found.contains("S3CRET") && !found.contains("5353"), "{source}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_masked_source_has_the_other_values(values in proptest::collection::vec("\\PC{0,12}", 1..6)) {
            let source: String = values.iter().enumerate().map(|(i, value)| format!("k{i} = {}\n", literal(value))).collect();
            let source = source + "vncpasswd = 'S3CRET'\n";
            let before = parse_assignments(&source).unwrap();
            let after = parse_assignments(&masked(&source)).unwrap();
            for (name, value) in before.iter().filter(|(name, _)| *name != "vncpasswd") {
                let text = value.as_str().unwrap();
                proptest::prop_assert_eq!(after[name].as_str().unwrap(), &*mask_options(text));
            }
        }
    }
}
