use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn bytes(text: &str) -> Value {
    Value::Bytes(text.into())
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn reason(source: &[u8]) -> Reason {
    parse(source).unwrap_err().reason
}

#[test]
fn scalars() {
    let cases: Vec<(&[u8], Value)> = vec![
        (b"N.", Value::None),
        (b"I01\n.", Value::Bool(true)),
        (b"I00\n.", Value::Bool(false)),
        (b"\x80\x02\x88.", Value::Bool(true)),
        (b"I1\n.", Value::Int(1)),
        (b"I-7\r\n.", Value::Int(-7)),
        (b"J\xfe\xff\xff\xff.", Value::Int(-2)),
        (b"K\xff.", Value::Int(255)),
        (b"M\x00\x01.", Value::Int(256)),
        (b"L1099511627776L\n.", Value::Int(1 << 40)),
        (b"L-5\n.", Value::Int(-5)),
        (b"L999999999999999999999999999999999999999999L\n.", Value::HugeInt),
        (b"\x8a\x00.", Value::Int(0)),
        (b"\x8a\x01\xff.", Value::Int(-1)),
        (b"\x8a\x02\xff\x00.", Value::Int(255)),
        (b"\x8a\x11\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00.", Value::HugeInt),
        (b"\x8a\x11\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\xff.", Value::Int(i128::MIN)),
        (b"\x8b\x01\x00\x00\x00\x80.", Value::Int(-128)),
        (b"F1.5\n.", Value::Float(1.5)),
        (b"F-inf\n.", Value::Float(f64::NEG_INFINITY)),
        (b"G\x3f\xf8\x00\x00\x00\x00\x00\x00.", Value::Float(1.5)),
    ];
    for (source, expected) in cases {
        assert_eq!(parse(source), Ok(expected), "{}", source.escape_ascii());
    }
}

#[test]
fn strings() {
    let cases: Vec<(&[u8], Value)> = vec![
        (b"S'a'\n.", bytes("a")),
        (b"S\"it's\"\n.", bytes("it's")),
        (b"S'\\\\ \\' \\\" \\n\\r\\t\\x41\\101\\0'\n.", bytes("\\ ' \" \n\r\tAA\0")),
        (b"S'caf\\xc3\\xa9 \\d'\n.", bytes("café \\d")),
        (b"S''\n.", bytes("")),
        (b"U\x02ab.", bytes("ab")),
        (b"T\x02\x00\x00\x00ab.", bytes("ab")),
        (b"C\x02ab.", bytes("ab")),
        (b"B\x02\x00\x00\x00ab.", bytes("ab")),
        (b"\x8e\x02\x00\x00\x00\x00\x00\x00\x00ab.", bytes("ab")),
        (
            b"Vcaf\xe9 \\u03b1 \\U0001f600 \\ud83d\\ude00 \\ud800 \\n \\u005cu \\\\u0041\n.",
            text("café α 😀 😀 \u{fffd} \\n \\u \\\\u0041"),
        ),
        (b"\x8c\x02\xc3\xa9.", text("é")),
        (b"X\x02\x00\x00\x00\xc3\xa9.", text("é")),
        (b"X\x01\x00\x00\x00\xff.", text("\u{fffd}")),
        (b"\x8d\x02\x00\x00\x00\x00\x00\x00\x00\xc3\xa9.", text("é")),
    ];
    for (source, expected) in cases {
        assert_eq!(parse(source), Ok(expected), "{}", source.escape_ascii());
    }
}

#[test]
fn containers_marks_and_memo() {
    let ints = |numbers: &[i128]| numbers.iter().copied().map(Value::Int).collect::<Vec<_>>();
    let cases: Vec<(&[u8], Value)> = vec![
        (b"(lp0\nI1\naI2\na.", Value::List(ints(&[1, 2]))),
        (b"](K\x01K\x02e.", Value::List(ints(&[1, 2]))),
        (b"(K\x01K\x02t.", Value::Tuple(ints(&[1, 2]))),
        (b"K\x01K\x02K\x03\x87.", Value::Tuple(ints(&[1, 2, 3]))),
        (b").", Value::Tuple(vec![])),
        (b"(K\x01Nd.", Value::Dict(vec![(Value::Int(1), Value::None)])),
        (b"}q\x01(K\x01K\x02u.", Value::Dict(vec![(Value::Int(1), Value::Int(2))])),
        // Put aside while empty, filled, fetched.
        (b"(]q\x05K\x01ah\x05t.", Value::Tuple(vec![Value::List(ints(&[1])); 2])),
        (b"(U\x01ar\x00\x01\x00\x00j\x00\x01\x00\x00g256\nt.", Value::Tuple(vec![bytes("a"); 3])),
        (b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00K\x07\x94h\x00\x86.", Value::Tuple(ints(&[7, 7]))),
        (b"(K\x011K\x02.", Value::Int(2)),
        (b"K\x01(0.", Value::Int(1)),
        (b"K\x01K\x020.", Value::Int(1)),
        (b"K\x012\x86.", Value::Tuple(ints(&[1, 1]))),
        (b"N.and what follows", Value::None),
    ];
    for (source, expected) in cases {
        assert_eq!(parse(source), Ok(expected), "{}", source.escape_ascii());
    }
    let dict = parse(b"(dS'a'\nI1\nsVa\nI2\nsI3\nI4\ns.").unwrap();
    assert_eq!((dict.get("a"), dict.get("b")), (Some(&Value::Int(2)), None));
}

#[test]
fn what_does_more_than_data_is_refused_by_name() {
    let cases: [(&[u8], usize, &str); 12] = [
        (b"cos\nsystem\n(S'true'\ntR.", 0, "GLOBAL"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", 14, "STACK_GLOBAL"),
        (b"(S'true'\nios\nsystem\n.", 9, "INST"),
        (b"(No.", 2, "OBJ"),
        (b"NNR.", 2, "REDUCE"),
        (b"NNb.", 2, "BUILD"),
        (b"NN\x81.", 2, "NEWOBJ"),
        (b"\x92.", 0, "NEWOBJ_EX"),
        (b"Pid\n.", 0, "PERSID"),
        (b"NQ.", 1, "BINPERSID"),
        (b"\x82\x01.", 0, "EXT1"),
        (b"\x8f.", 0, "EMPTY_SET"),
    ];
    for (source, offset, opcode) in cases {
        let error = parse(source).unwrap_err();
        assert_eq!(error.offset, offset, "{}", source.escape_ascii());
        assert!(error.to_string().contains(&format!(": {opcode} ")), "{error}");
    }
}

#[test]
fn what_is_no_pickle_is_an_error() {
    let truncated: [&[u8]; 9] = [
        b"",
        b"N",
        b"I1",
        b"U\x05ab.",
        b"T\xff\xff\xff\x7fab.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.",
        b"J\x00",
        b"G.",
        b"p1",
    ];
    for source in truncated {
        assert_eq!(reason(source), Reason::Truncated, "{}", source.escape_ascii());
    }
    let misplaced: [&[u8]; 12] =
        [b".", b"0.", b"1.", b"2.", b"t.", b"a.", b"Na.", b"NNa.", b"NNNs.", b"}(Nu.", b"h\x00.", b"N(."];
    for source in misplaced {
        assert!(matches!(reason(source), Reason::StackMismatch { .. }), "{}", source.escape_ascii());
    }
    let literals: [&[u8]; 14] = [
        b"Ix\n.",
        b"I\n.",
        b"I0x1\n.",
        b"I1 2\n.",
        b"L1LL\n.",
        b"F\n.",
        b"Fx\n.",
        b"Sa\n.",
        b"S'a\n.",
        b"S'\n.",
        b"S'\\xg'\n.",
        b"V\\u12\n.",
        b"V\\U00110000\n.",
        b"T\xff\xff\xff\xff.",
    ];
    for source in literals {
        assert!(matches!(reason(source), Reason::Literal { .. }), "{}", source.escape_ascii());
    }
    assert_eq!(reason(b"\x00"), Reason::Unknown { byte: 0 });
    assert_eq!(reason(b"\x80\x06N."), Reason::Protocol { version: 6 });
}

/// What is small to write, but large or endless to have, is refused soon.
#[test]
fn nothing_grows_without_bounds() {
    let start = Instant::now();
    let nested = [b"]".repeat(5000), b"a".repeat(4999), b".".to_vec()].concat();
    let itself = b"]q\x00h\x00a.".to_vec();
    // Each list has ten of the one before it.
    let mut laughs = b"]q\x00".to_vec();
    for level in 1..20u8 {
        laughs.extend(b"](");
        for _ in 0..10 {
            laughs.extend([b'h', level - 1]);
        }
        laughs.extend([b'e', b'q', level]);
    }
    laughs.push(b'.');
    let mut long = [&b"T\x00\x00\x10\x00"[..], &b"x".repeat(1 << 20), b"q\x00]("].concat();
    long.extend(b"h\x00".repeat(1000));
    long.extend(b"e.");
    let doubled = [&b"("[..], &b"N".repeat(MAX_STEPS), b"t."].concat();
    let wide = [&b"("[..], &b"N".repeat(MAX_VALUES), b"t."].concat();
    let zeros = vec![b'N'; MAX_SOURCE + 1];
    for (source, what) in [
        (nested, "values inside of each other"),
        (itself, "values inside of each other"),
        (laughs, "values"),
        (long, "bytes of strings"),
        (doubled, "opcodes"),
        (wide, "values"),
        (zeros, "bytes"),
    ] {
        assert!(
            matches!(reason(&source), Reason::TooMuch { what: found, .. } if found == what),
            "{:?}",
            reason(&source)
        );
    }
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn the_deepest_value_is_read() {
    let source = |depth| [b"]".repeat(depth), b"a".repeat(depth - 1), b".".to_vec()].concat();
    assert!(parse(&source(MAX_DEPTH)).is_ok());
    assert!(parse(&source(MAX_DEPTH + 1)).is_err());
}

/// How Python writes a value as source.
fn python(value: &Value) -> String {
    let list = |items: &[Value]| items.iter().map(|item| python(item) + ", ").collect::<String>();
    match value {
        Value::None => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Int(number) => number.to_string(),
        Value::HugeInt => "1 << 200".into(),
        Value::Float(number) => format!("{number:?}"),
        Value::Bytes(bytes) => format!("bytes.fromhex('{}')", hex(bytes)),
        Value::Text(text) => format!("bytes.fromhex('{}').decode()", hex(text.as_bytes())),
        Value::List(items) => format!("[{}]", list(items)),
        Value::Tuple(items) => format!("({})", list(items)),
        Value::Dict(pairs) => {
            let pairs = pairs.iter().map(|(key, value)| format!("{}: {}, ", python(key), python(value)));
            format!("{{{}}}", pairs.collect::<String>())
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Values that a pickle of any protocol can have; bytes only from protocol 3 on.
fn any_value(with_bytes: bool) -> impl Strategy<Value = Value> {
    let string = if with_bytes {
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(Value::Bytes).boxed()
    } else {
        Just(Value::HugeInt).boxed()
    };
    let leaf = prop_oneof![
        Just(Value::None),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|number| Value::Int(number.into())),
        any::<i128>().prop_map(Value::Int),
        (-300..70000i128).prop_map(Value::Int),
        any::<f64>().prop_filter("not a number", |number| number.is_finite()).prop_map(Value::Float),
        any::<String>().prop_map(Value::Text),
        "[a-z\\\\'\"\n\ru0é\u{1F600}]{0,12}".prop_map(Value::Text),
        string,
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let key = any::<String>();
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::Tuple),
            proptest::collection::btree_map(key, inner, 0..6).prop_map(|pairs| {
                Value::Dict(pairs.into_iter().map(|(key, value)| (Value::Text(key), value)).collect())
            }),
        ]
    })
}

/// The pickles of a list of values in all protocols from `first` to `last`, by Python itself.
fn pickled(values: &[Value], first: u8, last: u8) -> Vec<Vec<u8>> {
    let program = "import pickle, sys, struct\nfor v in eval(sys.stdin.read()):\n for p in range(int(sys.argv[1]), int(sys.argv[2]) + 1):\n  d = pickle.dumps(v, p); sys.stdout.buffer.write(struct.pack('<I', len(d)) + d)";
    let mut child = Command::new("python3")
        .args(["-c", program, &first.to_string(), &last.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(python(&Value::List(values.to_vec())).as_bytes()).unwrap();
    let mut written = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut written).unwrap();
    assert!(child.wait().unwrap().success());
    let (mut rest, mut pickles) = (&written[..], Vec::new());
    while let Some((len, after)) = rest.split_first_chunk() {
        let (pickle, after) = after.split_at(u32::from_le_bytes(*len) as usize);
        pickles.push(pickle.to_vec());
        rest = after;
    }
    pickles
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn python_and_we_agree(
        plain in proptest::collection::vec(any_value(false), 30),
        with_bytes in proptest::collection::vec(any_value(true), 30),
    ) {
        for (values, first) in [(plain, 0u8), (with_bytes, 3)] {
            let protocols = usize::from(6 - first);
            let pickles = pickled(&values, first, 5);
            prop_assert_eq!(pickles.len(), values.len() * protocols);
            for (index, pickle) in pickles.iter().enumerate() {
                prop_assert_eq!(parse(pickle), Ok(values[index / protocols].clone()));
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_survive(source in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&source);
    }

    #[test]
    fn any_opcodes_survive(source in "[(.012FIJKLMNSTUVX\\]ade}ghjlpqrstu)0-9\n'\\\\]{0,200}") {
        let _ = parse(source.as_bytes());
    }
}
