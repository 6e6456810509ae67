use proptest::prelude::*;

use super::*;
use crate::app::audit::seal;

fn key(secret: &str) -> AuditKey {
    AuditKey::new(&secret.into())
}

/// The lines of a chain after `head`, with their newlines.
fn chain(head: &mut Head, key: Option<&AuditKey>, fields: impl IntoIterator<Item = String>) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for field in fields {
        let line = serde_json::to_string(&serde_json::json!({ "time": "now", "what": field })).unwrap() + "\n";
        let (sealed, next) = seal(line.as_bytes(), head, key);
        lines.push(sealed);
        *head = next;
    }
    lines
}

fn numbered(numbers: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    numbers.map(|n| format!("vm {n}"))
}

fn verify(lines: &[Vec<u8>], key: Option<&AuditKey>, expected: &[Head]) -> Result<Summary, Difference> {
    let mut verifier = Verifier::new(key, expected);
    for (n, line) in lines.iter().enumerate() {
        verifier.line(Place { file: 0, line: n as u64 + 1 }, line)?;
    }
    verifier.finish()
}

/// The line and the text of a difference.
fn difference(lines: &[Vec<u8>], key: Option<&AuditKey>) -> (u64, String) {
    let Difference { place, what } = verify(lines, key, &[]).unwrap_err();
    (place.map_or(0, |place| place.line), what)
}

/// What someone may do to a file of lines.
#[derive(Clone, Debug)]
enum Edit {
    Remove(usize),
    Swap(usize, usize),
    Repeat(usize, usize),
    Add(usize, Vec<u8>),
    /// One byte of one line becomes another one.
    Change(usize, usize, u8),
    Cut(usize, usize),
}

fn edits() -> impl Strategy<Value = Edit> {
    let index = any::<usize>;
    prop_oneof![
        index().prop_map(Edit::Remove),
        (index(), index()).prop_map(|(a, b)| Edit::Swap(a, b)),
        (index(), index()).prop_map(|(a, b)| Edit::Repeat(a, b)),
        (index(), "[ -~]{0,40}\n").prop_map(|(at, line)| Edit::Add(at, line.into_bytes())),
        (index(), index(), any::<u8>()).prop_map(|(line, at, byte)| Edit::Change(line, at, byte)),
        (index(), index()).prop_map(|(line, at)| Edit::Cut(line, at)),
    ]
}

/// Applies an edit. `false` if it changes nothing, or if it only removes from the start or the end: the first is what
/// rotation does, and the last is found only with an expected head.
fn apply(edit: Edit, lines: &mut Vec<Vec<u8>>) -> bool {
    let count = lines.len();
    match edit {
        Edit::Remove(at) => {
            lines.remove(at % count);
            at % count != 0 && at % count != count - 1
        }
        Edit::Swap(a, b) => {
            lines.swap(a % count, b % count);
            a % count != b % count
        }
        Edit::Repeat(from, to) => {
            let line = lines[from % count].clone();
            lines.insert(to % (count + 1), line);
            true
        }
        Edit::Add(at, line) => {
            lines.insert(at % (count + 1), line);
            // Before the first line of a chain, lines of an older version may be. The summary counts them.
            at % (count + 1) > 0
        }
        Edit::Change(line, at, byte) => {
            let line = &mut lines[line % count];
            // Without the newline, the line and the next one are one. The last one ends where the file ends.
            let at = at % (line.len() - 1);
            let changes = line[at] != byte && byte != b'\n';
            line[at] = byte;
            changes
        }
        Edit::Cut(line, at) => {
            let number = line % count;
            let at = at % (lines[number].len() - 1);
            lines[number].truncate(at);
            if number + 1 < count {
                let rest = lines.remove(number + 1);
                lines[number].extend(rest);
                (number, at) != (0, 0)
            } else {
                false
            }
        }
    }
}

proptest! {
    #[test]
    fn a_chain_is_whole(fields in prop::collection::vec("\\PC{0,20}", 1..20), keyed: bool) {
        let key = key("a secret of tests");
        let key = keyed.then_some(&key);
        let lines = chain(&mut Head::start(), key, fields);
        let summary = verify(&lines, key, &[]).unwrap();
        let (first, last) = summary.lines.unwrap();
        prop_assert_eq!((first, last.seq as usize), (1, lines.len()));
        prop_assert_eq!(summary.proven as usize, if keyed { lines.len() } else { 0 });
        // Others read the lines as JSON.
        for line in &lines {
            let value: serde_json::Value = serde_json::from_slice(line).unwrap();
            prop_assert!(value["seq"].is_u64() && value["what"].is_string());
        }
    }

    #[test]
    fn every_edit_is_found(count in 3..12_usize, starts_at in 0..3_usize, edit in edits(), keyed: bool) {
        let key = key("a secret of tests");
        let key = keyed.then_some(&key);
        let mut head = Head::start();
        chain(&mut head, key, numbered(0..starts_at));
        let mut lines = chain(&mut head, key, numbered(starts_at..starts_at + count));
        prop_assert!(verify(&lines, key, &[]).is_ok());
        if apply(edit, &mut lines) {
            let found = verify(&lines, key, &[]);
            prop_assert!(found.is_err(), "{:?}", found);
        }
    }

    #[test]
    fn removed_newest_lines_are_found_with_a_head(count in 2..12_usize, removed in 1..12_usize) {
        let mut head = Head::start();
        let mut lines = chain(&mut head, None, numbered(0..count));
        lines.truncate(count.saturating_sub(removed).max(1));
        prop_assert!(verify(&lines, None, &[]).is_ok(), "a removed end cannot be noticed in the files");
        prop_assert!(verify(&lines, None, &[head]).is_err());
    }
}

#[test]
fn a_difference_is_named() {
    let whole = chain(&mut Head::start(), None, numbered(0..6));
    let edited = |edit: fn(&mut Vec<Vec<u8>>)| {
        let mut lines = whole.clone();
        edit(&mut lines);
        difference(&lines, None)
    };
    let change =
        |lines: &mut Vec<Vec<u8>>| lines[2] = String::from_utf8(lines[2].clone()).unwrap().replace("vm", "VM").into();
    for ((line, what), (at, text)) in [
        (edited(|lines| drop(lines.remove(3))), (4, "is line 5, after line 3: line 4 was removed or moved")),
        (edited(|lines| drop(lines.drain(2..4))), (3, "is line 5, after line 2: lines 3 to 4 were removed or moved")),
        (edited(change), (3, "was changed")),
        (edited(|lines| lines.swap(1, 2)), (2, "is line 3, after line 1: line 2 was removed or moved")),
        (edited(|lines| lines.insert(2, lines[1].clone())), (3, "repeats the line before it (2)")),
        (edited(|lines| lines.insert(4, lines[1].clone())), (5, "is line 2, after line 4: it was repeated or moved")),
        (edited(|lines| lines.insert(2, b"{\"who\":\"admin\"}\n".to_vec())), (3, "has no hash")),
        (edited(|lines| lines.push(b"{\"who\":\"admin\"}\n".to_vec())), (7, "has no hash")),
    ] {
        assert!(line == at && what.contains(text), "{line}: {what}");
    }
}

#[test]
fn a_chain_that_was_computed_without_the_key_is_found() {
    let (ours, theirs) = (key("a secret of tests"), key("another secret"));
    let mut head = Head::start();
    let mut lines = chain(&mut head, Some(&ours), numbered(0..3));
    // Someone continues it: without a proof, with a proof of another key, and with a made-up one.
    let forged = chain(&mut head.clone(), None, numbered(3..4));
    let with_other_key = chain(&mut head.clone(), Some(&theirs), numbered(3..4));
    let text = String::from_utf8(with_other_key[0].clone()).unwrap().replace(theirs.id(), ours.id());
    let (hashed, _) = text.rsplit_once(",\"hash\"").unwrap();
    let hash = crate::model::hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, hashed.as_bytes()).as_ref());
    let made_up = format!("{hashed},\"hash\":\"{hash}\"}}\n").into_bytes();
    for (line, what) in [
        (forged[0].clone(), "has not the key of the lines before it"),
        (with_other_key[0].clone(), "has not the key of the lines before it"),
        (made_up, "its mac is wrong"),
    ] {
        lines.push(line);
        assert!(verify(&lines, None, &[]).is_ok(), "the hashes alone are right");
        let (line, found) = difference(&lines, Some(&ours));
        assert!(line == 4 && found.contains(what), "{found}");
        lines.pop();
    }
    // All lines are replaced.
    let replaced = chain(&mut Head::start(), None, numbered(0..3));
    assert!(difference(&replaced, Some(&ours)).1.contains("has not the key of this service"));
}

#[test]
fn a_new_key_continues_the_chain() {
    let (old, new) = (key("an old secret"), key("a new secret"));
    let mut head = Head::start();
    let mut lines = chain(&mut head, Some(&old), numbered(0..3));
    lines.extend(chain(&mut head, Some(&new), numbered(3..5)));
    let summary = verify(&lines, Some(&new), &[]).unwrap();
    assert_eq!((summary.other_key, summary.proven), (3, 2));
    assert!(verify(&lines, Some(&old), &[]).is_err());
}

#[test]
fn incomplete_lines_are_right_only_where_the_next_line_says_so() {
    let key = key("a secret of tests");
    let mut head = Head::start();
    let mut lines = chain(&mut head, Some(&key), numbered(0..2));
    let parts = [b"{\"seq\":3,\"ti".to_vec(), b"{".to_vec()];
    let mut incomplete = Incomplete::default();
    parts.iter().for_each(|part| incomplete.add(part));
    let record = format!("{{\"what\":\"incomplete-lines\",\"incomplete\":\"{}\"}}\n", incomplete.hash());
    lines.extend(parts.iter().map(|part| [part, &b"\n"[..]].concat()));
    let (sealed, next) = seal(record.as_bytes(), &head, Some(&key));
    lines.push(sealed);
    head = next;
    lines.extend(chain(&mut head, Some(&key), numbered(2..4)));
    let summary = verify(&lines, Some(&key), &[]).unwrap();
    assert_eq!((summary.incomplete, summary.proven), (2, 5));
    // A file may end with it, if the newline is missing too.
    let at_end = [&lines[..2], &[parts[0].clone()]].concat();
    assert!(verify(&at_end, Some(&key), &[]).unwrap().ends_incomplete);
    let edits: [fn(&mut Vec<Vec<u8>>); 5] = [
        |lines| lines[2] = b"{\"who\":\"admin\"}\n".to_vec(),
        |lines| drop(lines.remove(2)),
        |lines| drop(lines.drain(2..4)),
        |lines| lines.insert(2, b"\n".to_vec()),
        |lines| lines.swap(2, 3),
    ];
    for edit in edits {
        let mut edited = lines.clone();
        edit(&mut edited);
        assert!(verify(&edited, Some(&key), &[]).is_err());
    }
}

#[test]
fn lines_of_an_older_version_come_only_before_the_chain() {
    let older = [b"{\"who\":\"admin\"}\n".to_vec(), b"{\"who\":\"admin\"}\n".to_vec()];
    let chained = chain(&mut Head::start(), None, numbered(0..3));
    let all = [&older[..], &chained].concat();
    assert_eq!(verify(&all, None, &[]).unwrap().unchained, 2);
    // Not before a later line: there they have replaced lines.
    let (line, what) = difference(&[&older[..], &chained[1..]].concat(), None);
    assert!(line == 1 && what.contains("has no hash"), "{what}");
    let (line, what) = difference(&[&chained[..], &older].concat(), None);
    assert!(line == 4 && what.contains("has no hash"), "{what}");
    let unchained = verify(&older, None, &[]).unwrap();
    assert_eq!((unchained.unchained, unchained.lines), (2, None));
    assert!(verify(&older, None, &[Head { seq: 1, hash: String::new() }]).is_err());
}

#[test]
fn a_second_chain_is_a_difference() {
    let lines = chain(&mut Head::start(), None, numbered(0..3));
    let (line, what) = difference(&[&lines[..], &chain(&mut Head::start(), None, numbered(7..9))].concat(), None);
    assert!(line == 4 && what.contains("begins a new chain after line 3"), "{what}");
}

#[test]
fn expected_heads_are_compared() {
    let mut head = Head::start();
    let first = chain(&mut head, None, numbered(0..2));
    let second = head.clone();
    let lines = [first, chain(&mut head, None, numbered(2..4))].concat();
    assert!(verify(&lines, None, &[second.clone(), head.clone()]).is_ok());
    let other = Head { hash: "0".repeat(64), ..second.clone() };
    assert!(verify(&lines, None, &[other]).unwrap_err().what.contains("another hash than expected"));
    // Rotation has deleted it.
    assert_eq!(verify(&lines[2..], None, &[second]).unwrap().older_heads, 1);
}
