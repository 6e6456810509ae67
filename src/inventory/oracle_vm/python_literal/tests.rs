use proptest::prelude::*;

use super::*;

fn text(text: &str) -> Value {
    Value::Str(text.to_owned())
}

fn ints(numbers: &[i128]) -> Vec<Value> {
    numbers.iter().copied().map(Value::Int).collect()
}

/// The value of `x`, the only name the source may assign.
fn value_of(source: &str) -> Value {
    let mut assignments = parse_assignments(source).unwrap_or_else(|error| panic!("{source:?}: {error}"));
    let value = assignments.remove("x").unwrap();
    assert!(assignments.is_empty(), "{source:?}");
    value
}

#[test]
fn strings() {
    let cases = [
        (r#"'a"b'"#, "a\"b"),
        (r#""a'b""#, "a'b"),
        ("''", ""),
        ("'''a\n'b''\\''''", "a\n'b'''"),
        ("\"\"\"a\r\nb\rc\"\"\"", "a\nb\nc"),
        (r"'\n\t\r\a\b\f\v\\\'\0'", "\n\t\r\x07\x08\x0c\x0b\\'\0"),
        (r#""\"""#, "\""),
        (r"'\101\1018\18'", "AA8\u{1}8"),
        (r"'caf\xc3\xa9'", "café"),
        (r"'caf\303\251'", "café"),
        (r"'caf\xe9'", "caf\u{fffd}"),
        (r"u'caf\xe9 \351 \u00e9 \U0001F600'", "café é é 😀"),
        (r"'\u00e9'", "é"),
        (r"'C:\users\U1'", r"C:\users\U1"),
        (r"b'\u00e9\xc3\xa9'", r"\u00e9é"),
        (r"u'\ud800'", "\u{fffd}"),
        (r"'\d\.\N'", r"\d\.\N"),
        (r"r'\n\x\'\\'", r"\n\x\'\\"),
        (r"U'a' B'b' R'\c' bR'\d' rB'\e'", r"ab\c\d\e"),
        (r"'\xc3' '\xa9'", "é"),
        ("'a' \"b\"\\\n 'c''d' # e", "abcd"),
        ("'a\\\nb'", "ab"),
        ("'a\\\r\nb'", "ab"),
        ("'é # not a comment; ='", "é # not a comment; ="),
        ("('a'\n  # first\n  'b')", "ab"),
    ];
    for (literal, expected) in cases {
        assert_eq!(value_of(&format!("x = {literal}\n")), text(expected), "{literal}");
    }
}

#[test]
fn numbers_and_constants() {
    let cases = [
        ("0", Value::Int(0)),
        ("65536", Value::Int(65536)),
        ("-1", Value::Int(-1)),
        ("+1", Value::Int(1)),
        ("- 5", Value::Int(-5)),
        ("12L", Value::Int(12)),
        ("0l", Value::Int(0)),
        ("0755", Value::Int(0o755)),
        ("0O17", Value::Int(0o17)),
        ("0xFFl", Value::Int(255)),
        ("0x1e", Value::Int(30)),
        ("0b101", Value::Int(5)),
        ("170141183460469231731687303715884105727", Value::Int(i128::MAX)),
        ("1.5", Value::Float(1.5)),
        ("-.5", Value::Float(-0.5)),
        ("1.", Value::Float(1.0)),
        ("09.5", Value::Float(9.5)),
        ("1e3", Value::Float(1000.0)),
        ("1.5E-3", Value::Float(0.0015)),
        ("2e+3", Value::Float(2000.0)),
        ("True", Value::Bool(true)),
        ("False", Value::Bool(false)),
        ("None", Value::None),
    ];
    for (literal, expected) in cases {
        assert_eq!(value_of(&format!("x={literal}")), expected, "{literal}");
    }
}

#[test]
fn containers() {
    let cases = [
        ("[]", Value::List(vec![])),
        ("[1,2,]", Value::List(ints(&[1, 2]))),
        ("[ # one\n\n  1 # two\r\n  ,\n  2\n]", Value::List(ints(&[1, 2]))),
        ("[1, \\\n 2]", Value::List(ints(&[1, 2]))),
        ("()", Value::Tuple(vec![])),
        ("(1)", Value::Int(1)),
        ("((1))", Value::Int(1)),
        ("(1,)", Value::Tuple(ints(&[1]))),
        ("(1, 2)", Value::Tuple(ints(&[1, 2]))),
        ("{}", Value::Dict(vec![])),
        ("{'a':1,\n 'b' : [2,],}", Value::Dict(vec![(text("a"), Value::Int(1)), (text("b"), Value::List(ints(&[2])))])),
        ("{1: {(): None}}", Value::Dict(vec![(Value::Int(1), Value::Dict(vec![(Value::Tuple(vec![]), Value::None)]))])),
        ("['a'\n 'b', 'c']", Value::List(vec![text("ab"), text("c")])),
    ];
    for (literal, expected) in cases {
        assert_eq!(value_of(&format!("x = {literal} # end")), expected, "{literal}");
    }
}

#[test]
fn statements() {
    let cases: [(&str, &[(&str, i128)]); 11] = [
        ("", &[]),
        ("\u{feff}", &[]),
        (" \n\t\r\n# only a comment", &[]),
        ("\u{feff}a = 1", &[("a", 1)]),
        ("a=1\r\nb=2\r\n", &[("a", 1), ("b", 2)]),
        ("a=1\rb=2", &[("a", 1), ("b", 2)]),
        ("a=1;b=2 ; c=3;\nd=4", &[("a", 1), ("b", 2), ("c", 3), ("d", 4)]),
        ("a \\\n = \\\n 1\nb=2", &[("a", 1), ("b", 2)]),
        ("a = 1\na = 2", &[("a", 2)]),
        ("  a = 1\n_B9=2", &[("a", 1), ("_B9", 2)]),
        ("a=1#b=2\\\nc=3", &[("a", 1), ("c", 3)]),
    ];
    for (source, expected) in cases {
        let expected = expected.iter().map(|&(name, number)| (name.to_owned(), Value::Int(number))).collect();
        assert_eq!(parse_assignments(source), Ok(expected), "{source:?}");
    }
}

#[test]
fn errors_say_where_and_what() {
    let cases = [
        ("import os", "line 1, column 8: expected `=` after the name"),
        ("a = 1\nos.system('x')", "line 2, column 3: expected `=` after the name"),
        ("a = open('x')", "line 1, column 5: expected a literal value, and a name is none"),
        ("a = b", "line 1, column 5: expected a literal value, and a name is none"),
        ("a = b = 1", "line 1, column 5: expected a literal value, and a name is none"),
        ("a = f'b'", "line 1, column 5: expected a literal value, and a name is none"),
        ("a = ur'b'", "line 1, column 5: expected a literal value, and a name is none"),
        ("a = 1 + 2", "line 1, column 7: expected the end of the line"),
        ("a = 1, 2", "line 1, column 6: expected the end of the line"),
        ("a = 'b' % 1", "line 1, column 9: expected the end of the line"),
        ("a = True()", "line 1, column 9: expected the end of the line"),
        ("a = [1][0]", "line 1, column 8: expected the end of the line"),
        ("a += 1", "line 1, column 3: expected `=` after the name"),
        ("a == 1", "line 1, column 4: expected a value"),
        ("a = 1;;b = 2", "line 1, column 7: expected `name = value`"),
        ("9a = 1", "line 1, column 1: expected `name = value`"),
        ("é = 1", "line 1, column 1: expected `name = value`"),
        ("a = 1 b = 2", "line 1, column 7: expected the end of the line"),
        ("a =", "line 1, column 4: expected a value, found the end of the file"),
        ("a =\n1", "line 1, column 4: expected a value, found the end of the line"),
        ("a", "line 1, column 2: expected `=` after the name, found the end of the file"),
        ("\na = 'b", "line 2, column 5: unterminated string"),
        ("a = 'b\n'", "line 1, column 5: unterminated string"),
        ("a = 'b\\", "line 1, column 5: unterminated string"),
        ("a = r'\\'", "line 1, column 5: unterminated string"),
        ("\n\na = '''b\nc\n''", "line 3, column 5: unterminated string"),
        ("a = '\\x1'", "line 1, column 7: `\\x` without two hexadecimal digits"),
        ("a = u'\\u12'", "line 1, column 8: `\\u` without its hexadecimal digits"),
        ("a = u'\\N{DASH}'", "line 1, column 8: `\\N` is not supported"),
        ("a = [1,\n2\n", "line 1, column 5: missing `]`: what opens here is never closed"),
        ("a = [\n(1,\n]", "line 3, column 1: expected a value"),
        ("a = [1 2]", "line 1, column 8: expected `,` or `]`"),
        ("a = [,]", "line 1, column 6: expected a value"),
        ("a = [1,,]", "line 1, column 8: expected a value"),
        ("a = {1}", "line 1, column 7: expected `:` after a key"),
        ("a = {'b':", "line 1, column 10: expected a value, found the end of the file"),
        ("a = 'b' \\\n", "line 1, column 9: the file ends inside of a continued line"),
        ("a = 1 \\ \n", "line 1, column 7: expected the end of the line"),
        ("a = -", "line 1, column 6: expected a number after its sign"),
        ("a = --1", "line 1, column 6: expected a number after its sign"),
        ("a = -inf", "line 1, column 6: expected a number after its sign"),
        ("a = 089", "line 1, column 5: expected a number; this is none, or is out of range"),
        ("a = 0x", "line 1, column 5: expected a number; this is none, or is out of range"),
        ("a = 1e", "line 1, column 5: expected a number; this is none, or is out of range"),
        ("a = 1_000", "line 1, column 5: expected a number; this is none, or is out of range"),
        ("a = 1j", "line 1, column 5: expected a number; this is none, or is out of range"),
        ("a = 1\n\0\0\0", "line 2, column 1: NUL byte: the file is damaged"),
        ("a = 'b\0'", "line 1, column 7: NUL byte: the file is damaged"),
    ];
    for (source, expected) in cases {
        let error = parse_assignments(source).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), expected, "{source:?}");
    }
}

#[test]
fn bounds() {
    let nested = |depth: usize| format!("x = {}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(parse_assignments(&nested(MAX_DEPTH)).is_ok());
    assert!(parse_assignments(&nested(MAX_DEPTH + 1)).is_err());
    assert!(parse_assignments(&"{(".repeat(100_000)).is_err());
    assert!(parse_assignments(&format!("x = {}", "[{1: (".repeat(100_000))).is_err());

    let sized = |size: usize| format!("x = '{}'", "a".repeat(size - 6));
    assert!(parse_assignments(&sized(MAX_SOURCE)).is_ok());
    assert!(parse_assignments(&sized(MAX_SOURCE + 1)).is_err());

    let long = parse_assignments(&"a".repeat(MAX_SOURCE)).unwrap_err();
    assert!(long.reason.len() < 100, "{long}");
}

/// A value as Python's `repr` prints it.
fn repr(value: &Value) -> String {
    let all = |items: &[Value]| items.iter().map(|item| repr(item) + ", ").collect::<String>();
    match value {
        Value::Str(text) => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n")),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::None => "None".to_owned(),
        Value::List(items) => format!("[{}]", all(items)),
        Value::Tuple(items) => format!("({})", all(items)),
        Value::Dict(pairs) => {
            let pairs = pairs.iter().map(|(key, value)| format!("{}:\n{},", repr(key), repr(value)));
            format!("{{{}}}", pairs.collect::<String>())
        }
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        "[ -~é\n]*".prop_map(Value::Str),
        any::<i64>().prop_map(|number| Value::Int(number.into())),
        prop::num::f64::NORMAL.prop_map(Value::Float),
        any::<bool>().prop_map(Value::Bool),
        Just(Value::None),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Tuple),
            prop::collection::vec((inner.clone(), inner), 0..3).prop_map(Value::Dict),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_survived(anything: String, python in "[x=' \"\\\\\\[\\](){},:#;0-9.eEuUrbLT\n+-]*") {
        let _ = parse_assignments(&anything);
        let _ = parse_assignments(&python);
        let _ = parse_assignments(&format!("x = {python}"));
        let _ = parse_assignments(&format!("x = u'''{anything}"));
    }

    #[test]
    fn what_repr_prints_comes_back(value in any_value()) {
        prop_assert_eq!(value_of(&format!("x = {}\n", repr(&value))), value);
    }

    #[test]
    fn a_cut_list_is_an_error(items in prop::collection::vec(any_value(), 0..4), cut: prop::sample::Index) {
        let source = format!("x = {}", repr(&Value::List(items)));
        let ends: Vec<usize> = source.char_indices().map(|(at, _)| at).filter(|&at| at > 0).collect();
        prop_assert!(parse_assignments(&source[..ends[cut.index(ends.len())]]).is_err());
    }
}
