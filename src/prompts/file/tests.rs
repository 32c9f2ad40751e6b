use proptest::prelude::*;
use serde_json::json;

use super::*;

const EXAMPLE: &str = r#"
name = "Email de Bienvenue"
model = "gpt-4"
system = "Tu rédiges des courriels brefs et chaleureux."
template = """
Écris un courriel de bienvenue à {{ nom_utilisateur }} pour {{ nom_service }}.
"""
[parameters]
temperature = 0.7
max_tokens = 400
"#;

#[track_caller]
fn check_error(text: &str, expect: &str) {
    assert_eq!(parse("p.toml", text).unwrap_err().to_string(), expect);
}

#[test]
fn the_documented_file_reads() {
    let (name, content) = parse("p.toml", EXAMPLE).unwrap();
    assert_eq!(name, "Email de Bienvenue");
    assert_eq!(content.model, "gpt-4");
    assert_eq!(content.parameters.temperature, Some(0.7));
    assert_eq!(content.parameters.max_tokens, Some(400));
    assert_eq!(content.template, "Écris un courriel de bienvenue à {{ nom_utilisateur }} pour {{ nom_service }}.\n");
    let (_, full) = parse(
        "p.toml",
        r#"
        name = "a"
        model = "m"
        fallback = ["n", "o"]
        template = "t"
        note = "why"
        repeat_streamed = true
        cache_ttl_ms = 600000
        [output_schema]
        type = "object"
        required = ["x"]
        "#,
    )
    .unwrap();
    assert_eq!(full.fallbacks, ["n", "o"]);
    assert_eq!(full.output_schema, Some(json!({"type": "object", "required": ["x"]})));
    assert!(full.repeat_streamed);
    assert_eq!(full.cache_ttl_ms, Some(600_000));
}

#[test]
fn errors_name_the_file_and_the_line() {
    check_error(
        "name = \"a\"\nmodle = \"m\"\ntemplate = \"t\"\n",
        "p.toml:2: unknown field `modle`, expected one of `name`, `model`, `fallback`, `system`, `template`, `note`, `repeat_streamed`, `cache_ttl_ms`, `parameters`, `output_schema`",
    );
    check_error(
        "name = \"a\"\nmodel = \"m\"\ntemplate = \"t\"\n[parameters]\ntemprature = 1\n",
        "p.toml:5: unknown field `temprature`, expected one of `temperature`, `top_p`, `max_tokens`, `stop`, `seed`",
    );
    check_error("name = \"a\"\ntemplate = \"t\"\n", "p.toml:1: missing field `model`");
    check_error("name = 1\n", "p.toml:1: invalid type: integer `1`, expected a string");
    check_error(
        "name = \"a\"\nmodel = \"m\"\ntemplate = \"\"\"\nok\n{{ a | nope }}\"\"\"\n",
        "p.toml: template, line 2: there is no filter named 'nope'",
    );
    check_error("name = \" \"\nmodel = \"m\"\ntemplate = \"t\"\n", "p.toml: the name of a prompt must not be empty");
    check_error("name = \"a\"\nmodel = \"\"\ntemplate = \"t\"\n", "p.toml: the name of a model must not be empty");
    check_error("name = \"a\"\nmodel = \"m\"\ntemplate = \"\"\n", "p.toml: the template must not be empty");
    for (parameter, expect) in [
        ("temperature = 2.5", "temperature must be between 0 and 2"),
        ("temperature = nan", "temperature must be between 0 and 2"),
        ("top_p = -1.0", "top_p must be between 0 and 1"),
        ("max_tokens = 0", "max_tokens must be at least 1"),
    ] {
        check_error(
            &format!("name = \"a\"\nmodel = \"m\"\ntemplate = \"t\"\n[parameters]\n{parameter}\n"),
            &format!("p.toml: {expect}"),
        );
    }
    assert!(parse("p.toml", "name = \"a").unwrap_err().to_string().starts_with("p.toml:1: "));
    assert!(!parse("p.toml", "name = \"a").unwrap_err().to_string().contains('\n'));
}

#[test]
fn a_files_name_is_its_words() {
    assert_eq!(stem("Email de Bienvenue"), "email-de-bienvenue");
    assert_eq!(stem("  Été / 2026!  "), "été-2026");
    assert_eq!(stem("../../etc/passwd"), "etc-passwd");
    assert_eq!(stem("???"), "prompt");
}

fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|b| json!(b)),
        any::<u64>().prop_map(|n| json!(n)),
        any::<i64>().prop_map(|n| json!(n)),
        ".{0,9}".prop_map(|s| json!(s)),
    ];
    let value = leaf.prop_recursive(3, 16, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(|l| json!(l)),
            proptest::collection::btree_map(".{0,4}", inner, 0..3).prop_map(|m| json!(m)),
        ]
    });
    proptest::collection::btree_map(".{0,4}", value, 0..3).prop_map(|m| json!(m))
}

proptest! {
    #[test]
    fn what_is_written_reads_the_same(
        name in "[a-zé ]{0,8}[a-z]",
        model in "[a-z]{1,5}",
        fallbacks in proptest::collection::vec("[a-z]{1,5}", 0..3),
        system in proptest::option::of("[^{]{0,20}"),
        template in "(\\PC|[\\n\\r\\t\"'\\\\\u{0}\u{7f}]){0,30}",
        note in ".{0,9}",
        repeat_streamed: bool,
        cache_ttl_ms in proptest::option::of(1..=MAX_CACHE_TTL_MS),
        temperature in proptest::option::of(0.0..2.0),
        seed in proptest::option::of(any::<i64>()),
        stop in proptest::collection::vec(".{0,5}", 0..3),
        output_schema in proptest::option::of(any_schema()),
    ) {
        let template = format!("x{}", template.replace('{', ""));
        let content = Content {
            system, template, model, fallbacks, note, repeat_streamed, cache_ttl_ms, output_schema,
            parameters: Parameters { temperature, seed, stop, ..Parameters::default() },
        };
        let text = write(name.trim(), &content).unwrap();
        prop_assert_eq!(parse("p.toml", &text), Ok((name.trim().to_owned(), content)), "{}", text);
    }
}
