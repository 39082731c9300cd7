#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;

fn is_match(pattern: &str, text: &str) -> bool {
    compile(pattern, 1 << 20).unwrap_or_else(|e| panic!("{pattern}: {e}")).is_match(text)
}

#[test]
fn patterns_mean_what_they_mean_in_go() {
    for (pattern, yes, no) in [
        (r"^\pL+$", "naïveté日本", "a1"),
        (r"^\p{Greek}\P{Lu}$", "αβ", "αΒ"),
        (r"^\p{^Lu}\P{^Lu}$", "aB", "Ba"),
        (r"^[\p{L}\p{Nd}_-]+$", "ä٣_-", "ä b"),
        (r"^[^\p{L}]$", "1", "ж"),
        // of ASCII, not of Unicode
        (r"^\d\w\s$", "1a ", "١a "),
        (r"^\w$", "a", "ä"),
        (r"^[\d\s]+$", "1 2", "1\u{a0}2"),
        (r"^[\D]$", "١", "1"),
        (r"^[^\W]$", "a", "-"),
        (r"a\bä", "aä", "aa"),
        (r"a\Bb", "ab", "a b"),
        (r"^\x41\x{1F600}\101\0?$", "A😀A", "A"),
        (r"^\Qa.b*\E+$", "a.b***", "axb"),
        (r"^\Q[", "[a", "a"),
        (r"\A[[:alpha:]]+[[:^digit:]]\z", "ab-", "ab1"),
        // no sets of sets
        (r"^[a&&b]+$", "a&b", "c"),
        (r"^[a~~b-]+$", "a~b-", "c"),
        (r"^(?)a(?:)$", "a", "b"),
        (r"^[[a]+]$", "[a]", "a"),
        (r"^[]a]+$", "]a", "b"),
        (r"^[^]a]$", "b", "]"),
        (r"^[a-]+[-b]$", "a-b", "c"),
        (r"^[+--]+$", "+,-", "."),
        (r"^[\]\-\\]+$", r"]-\", "a"),
        // braces that count nothing
        (r"^a{,2}$", "a{,2}", "aa"),
        (r"^{{x}{2$", "{{x}{2", "x"),
        (r"^a{2}b{1,}c{0,2}$", "aabbb", "ab"),
        (r"^}$", "}", "{"),
        (r"^(?i)straße(?-i:X)$", "STRAßEX", "STRAßEx"),
        (r"^(?P<year>\d{4})-(?<month>\d\d)$", "2026-11", "2026-1"),
        (r"^(?sU:a.*?)$", "a\nb", "b"),
        (r"(?m)^b$", "a\nb", "ab"),
        (r"a$", "a", "a\n"),
        (r"^#\/ \<\>$", "#/ <>", "#"),
        (r"^(|a)+()$", "aa", "b"),
        (r"^\a\f\t\n\r\v$", "\u{7}\u{c}\t\n\r\u{b}", ""),
        (r"^*a$", "a", "b"),
    ] {
        assert!(is_match(pattern, yes), "{pattern} matches {yes:?}");
        assert!(!is_match(pattern, no), "{pattern} does not match {no:?}");
    }
}

#[test]
fn what_go_refuses_is_refused_in_its_words() {
    for (pattern, why) in [
        ("(a", "missing closing ): `(a`"),
        ("a)", "unexpected ): `a)`"),
        ("[a", "missing closing ]: `[a`"),
        ("[", "missing closing ]: `[`"),
        ("[b--]", "invalid character class range: `b--`"),
        ("[z-a]", "invalid character class range: `z-a`"),
        ("[[:nope:]]", "invalid character class range: `[:nope:]`"),
        (r"\p{Klingon}", r"invalid character class range: `\p{Klingon}`"),
        (r"[\p{^Nope}]", r"invalid character class range: `\p{^Nope}`"),
        (r"\p{L", r"invalid character class range: `\p{L`"),
        (r"[a-\d]", r"invalid escape sequence: `\d`"),
        ("*", "missing argument to repetition operator: `*`"),
        ("a|+?", "missing argument to repetition operator: `+?`"),
        ("(?i){2}", "missing argument to repetition operator: `{2}`"),
        ("a**", "invalid nested repetition operator: `**`"),
        ("a*?{2}", "invalid nested repetition operator: `*?{2}`"),
        ("a{1001}", "invalid repeat count: `{1001}`"),
        ("a{2,1}", "invalid repeat count: `{2,1}`"),
        ("a{99999999999}", "invalid repeat count: `{99999999999}`"),
        (r"\E", r"invalid escape sequence: `\E`"),
        ("(?", "invalid or unsupported Perl syntax: `(?`"),
        (r"\y", r"invalid escape sequence: `\y`"),
        (r"(a)\1", r"invalid escape sequence: `\1`"),
        (r"\C", r"invalid escape sequence: `\C`"),
        (r"\Z", r"invalid escape sequence: `\Z`"),
        (r"\x{110000}", r"invalid escape sequence: `\x{110000}`"),
        ("a\\", "trailing backslash at end of expression: ``"),
        ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
        ("(?<!a)", "invalid named capture: `(?<!a)`"),
        ("(?x)a", "invalid or unsupported Perl syntax: `(?x`"),
        ("(?P<a-b>x)", "invalid named capture: `(?P<a-b>`"),
        ("(?P<a>x)(?P<a>y)", "duplicate capture group name: `a`"),
        ("((a{1000}){1000}){1000}", "expression too large: `((a{1000}){1000}){1000}`"),
    ] {
        let told = compile(pattern, 1 << 20).unwrap_err().to_string();
        assert_eq!(told, format!("error parsing regexp: {why}"), "{pattern}");
    }
    let deep = format!("{}a{}", "(".repeat(5000), ")".repeat(5000));
    assert!(compile(&deep, 1 << 20).is_err());
}

#[test]
fn no_pattern_panics() {
    // all short ones of the signs that mean something
    let signs = ['\\', '[', ']', '(', ')', '{', '}', '?', '*', '^', '-', ':', 'p', 'Q', 'E', '1', ',', '<', 'ä', '|'];
    let mut all = vec![String::new()];
    for _ in 0..3 {
        let longer = all.iter().flat_map(|p| signs.iter().map(move |c| format!("{p}{c}")));
        all = longer.collect();
        for pattern in &all {
            if let Ok(translated) = translate(pattern) {
                let built = is_built(&translated.text);
                assert!(built || !translated.classes.is_empty(), "{pattern} became {}", translated.text);
            }
        }
    }
}

fn is_built(text: &str) -> bool {
    RegexBuilder::new(text).build().is_ok()
}
