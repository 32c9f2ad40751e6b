use proptest::prelude::*;
use serde_json::json;

use super::*;

const MAX: usize = 10_000;

fn render(template: &str, variables: serde_json::Value) -> Result<String, String> {
    let templates = Templates::compile(None, template).map_err(|error| error.to_string())?;
    let serde_json::Value::Object(variables) = variables else { panic!("not an object") };
    templates.render(&variables, MAX).map(|rendered| rendered.user).map_err(|error| error.to_string())
}

#[track_caller]
fn check(template: &str, variables: serde_json::Value, expect: Result<&str, &str>) {
    let got = render(template, variables);
    assert_eq!(got.as_deref().map_err(String::as_str), expect, "{template:?}");
}

/// The variables of a template, optional ones with a question mark.
#[track_caller]
fn check_variables(template: &str, expect: &str) {
    let templates = Templates::compile(None, template).unwrap();
    let names = templates.variables().iter().map(|v| format!("{}{}", v.name, if v.required { "" } else { "?" }));
    assert_eq!(names.collect::<Vec<_>>().join(" "), expect, "{template:?}");
}

#[test]
fn values_stand_for_themselves() {
    check("Bonjour {{ nom }} !", json!({"nom": "Steph"}), Ok("Bonjour Steph !"));
    check("{{ a }}", json!({"a": "<b> & \"c\" {{ d }}"}), Ok("<b> & \"c\" {{ d }}"));
    check("{{ a }}", json!({"a": ""}), Ok(""));
    check("{{ a }}", json!({"a": "a", "unused": [1]}), Ok("a"));
    check("{{ a }}", json!({"a": 3}), Ok("3"));
    check("{{ a }}", json!({"a": -3}), Ok("-3"));
    check("{{ a }}", json!({"a": 18446744073709551615u64}), Ok("18446744073709551615"));
    check("{{ a * 2 }}", json!({"a": i64::MAX}), Ok("18446744073709551614"));
    check("{{ a }}", json!({"a": 0.1}), Ok("0.1"));
    check("{{ a }}", json!({"a": 2.0}), Ok("2.0"));
    check("{{ a }}", json!({"a": 1e300}), Ok("1e+300"));
    check("{{ a }}", json!({"a": true}), Ok("true"));
    check("{{ a }}", json!({"a": null}), Ok("null"));
    check("{{ a }}", json!({"a": ["é", 1, null, {"b": false}]}), Ok(r#"["é",1,null,{"b":false}]"#));
    check("{{ a }}", json!({"a": {"b": [1.5]}}), Ok(r#"{"b":[1.5]}"#));
    check("{{ a.b[0] }}", json!({"a": {"b": ["x"]}}), Ok("x"));
    check("{{ range }}", json!({"range": "0-10"}), Ok("0-10"));
}

#[test]
fn the_language_is_there() {
    check("{% for i in l %}{{ loop.index }}{{ i }} {% endfor %}", json!({"l": ["a", "b"]}), Ok("1a 2b "));
    check("{% for i in range(3) %}{{ i }}{% else %}none{% endfor %}", json!({}), Ok("012"));
    check("{{ a | upper }}{{ b | join(', ') }}", json!({"a": "x", "b": ["y", "z"]}), Ok("Xy, z"));
    check("{% set x = a %}{{ x }}{# gone #}", json!({"a": 1}), Ok("1"));
    check("{{ l | tojson }}", json!({"l": ["<"]}), Ok("[\"\\u003c\"]"));
    check("{% raw %}{{ a }}{% endraw %}", json!({}), Ok("{{ a }}"));
    check("no variable\n", json!({}), Ok("no variable"));
    check("", json!({}), Ok(""));
}

#[test]
fn all_missing_names_are_told_in_the_order_of_the_text() {
    check("{{ z }} {{ a }} {{ z }} {{ m }}", json!({"a": 1}), Err("missing variables: z, m"));
    let templates = Templates::compile(Some("{{ s }} {{ b }}"), "{{ b }} {{ a }}").unwrap();
    let error = templates.render(&Map::new(), MAX).unwrap_err();
    assert_eq!(error, RenderError::Missing(vec!["s".into(), "b".into(), "a".into()]));
    check("{% if nom %}{{ nom }}{% endif %}", json!({}), Err("missing variables: nom"));
}

#[test]
fn what_is_guarded_is_optional() {
    check_variables("{{ a }} {{ b.c }} {{ d[e] }}", "a b d e");
    check_variables("{{ a | default('x') }} {{ b | d }}", "a? b?");
    check_variables("{{ a | default('x') }} {{ a }}", "a");
    check_variables("{{ a.b | default('x') }}", "a");
    check_variables("{{ a | upper | default('x') }}", "a");
    check_variables("{{ a | default(b) }}", "a? b");
    check_variables("{% if a is defined %}{{ a }}{% endif %}", "a?");
    check_variables("{% if a is defined %}{{ a }}{% else %}{{ b }}{% endif %}", "a? b");
    check_variables("{% if a is not defined %}{{ b }}{% else %}{{ a }}{% endif %}", "a? b");
    check_variables("{% if a is undefined %}{{ b }}{% elif c %}{{ a }}{% endif %}", "a? b c");
    check_variables("{% if a is defined and a > 3 and b %}{{ a }}{% endif %}", "a? b");
    check_variables("{% if a is defined or b %}{{ a }}{% endif %}", "a b");
    check_variables("{% if a is not defined or a > 3 %}x{% endif %}", "a?");
    check_variables("{% if not (a is not defined or b is not defined) %}{{ a }}{{ b }}{% endif %}", "a? b?");
    check_variables("{{ a if a is defined else b }}", "a? b");
    check_variables("{% if a is defined %}x{% endif %}{{ a }}", "a");
    check("{% if a is defined %}<{{ a }}>{% else %}-{% endif %}", json!({}), Ok("-"));
    check("{% if a is defined %}<{{ a }}>{% else %}-{% endif %}", json!({"a": 1}), Ok("<1>"));
    check("{{ a | default('x') }}", json!({}), Ok("x"));
    check("{% if a is defined and a > 3 %}x{% endif %}", json!({}), Ok(""));
}

#[test]
fn the_templates_own_names_are_not_the_callers() {
    check_variables(
        "{% set x = x0 %}{{ x }}{% for i, j in l if j %}{{ i }}{{ loop.index }}{% endfor %}{{ i }}",
        "x0 l i",
    );
    check_variables("{% set x = x | default(1) %}{{ x }}", "x?");
    check_variables("{% with a = b %}{{ a }}{% endwith %}{{ a }}", "b a");
    check_variables("{% set a %}{{ b }}{% endset %}{{ a }}", "b");
    check_variables("{% if q %}{% set a = 1 %}{% else %}{% set a = 2 %}{% endif %}{{ a }}", "q");
    check_variables("{% if q %}{% set a = 1 %}{% endif %}{{ a }}", "q a?");
    check_variables("{% for i in range(n) %}{{ i }}{% endfor %}", "n");
}

#[test]
fn what_a_template_cannot_do_with_its_values_is_one_sentence() {
    let undefined = "template, line 2: a value that the text uses is not defined";
    check("\n{{ user.name }}", json!({"user": {}}), Err(undefined));
    check("\n{% for i in user.list %}{% endfor %}", json!({"user": {}}), Err(undefined));
    check(
        "{{ a + 1 }}",
        json!({"a": "x"}),
        Err("template, line 1: tried to use + operator on unsupported types string and number"),
    );
    let large = "the rendered prompt is larger than 10000 bytes";
    check("{{ a }}", json!({"a": "x".repeat(MAX)}), Ok(&"x".repeat(MAX)));
    check("{{ a }}", json!({"a": "x".repeat(MAX + 1)}), Err(large));
    check("{% for i in range(9999) %}{{ i }}{% endfor %}", json!({}), Err(large));
    let steps = "template: rendering takes too many steps";
    check("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", json!({}), Err(steps));
    check("{% set x = 'x' * 100000000000 %}", json!({}), Err(steps));
    let templates = Templates::compile(Some("{{ a }}"), "{{ a }}").unwrap();
    let half = Map::from_iter([("a".to_owned(), json!("x".repeat(MAX / 2)))]);
    assert!(templates.render(&half, MAX).is_ok());
    assert!(templates.render(&half, MAX - 1).is_err(), "both texts share the limit");
}

#[test]
fn what_is_no_template_is_told_with_its_line() {
    check("a\nb {{ c", json!({}), Err("template, line 2: unexpected end of input, expected end of variable block"));
    check("a\n\n{% if c %}", json!({}), Err("template, line 3: unexpected end of input, expected end of block"));
    check("{{ 1 }}\n{{ a | uper }}", json!({}), Err("template, line 2: there is no filter named 'uper'"));
    check("{{ a is oddish }}", json!({}), Err("template, line 1: there is no test named 'oddish'"));
    check("{{ now() }}", json!({}), Err("template, line 1: there is no function named 'now'"));
    for forbidden in ["{{ namespace(a=1) }}", "{{ debug() }}", "{% macro m() %}{% endmacro %}", "{% include 'a' %}"] {
        let error = render(forbidden, json!({})).unwrap_err();
        assert!(error.starts_with("template, line 1: "), "{forbidden}: {error}");
    }
    check(
        "\n{% for i in [1] recursive %}{{ loop([i]) }}{% endfor %}",
        json!({}),
        Err("template, line 2: a prompt has no recursive loops"),
    );
    assert_eq!(Templates::compile(Some("{{"), "{{").unwrap_err().part, Part::System);
}

/// Runs on a stack of two MiB, as threads of a runtime have: what overflows it ends the process.
#[test]
fn nothing_nests_deep_enough_to_end_the_process() {
    let many = MAX_TEMPLATE_BYTES / 8;
    let chains = [
        format!("{{{{ {}1 }}}}", "-".repeat(many)),
        format!("{{{{ {}1 }}}}", "not ".repeat(many)),
        format!("{{{{ {}1 }}}}", "1+".repeat(many)),
        format!("{{{{ a{} }}}}", ".a".repeat(many)),
        format!("{{{{ a{} }}}}", "|list".repeat(many)),
        format!("{{{{ {}{} }}}}", "[".repeat(many), "]".repeat(many)),
        format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(many / 2)),
        "{% if a %}".repeat(many / 2),
        "{% set x = [x|default(1)] %}".repeat(many / 4),
    ];
    for template in chains {
        assert!(Templates::compile(None, &template).is_err(), "{}", template.chars().take(20).collect::<String>());
    }
    // The deepest that is accepted, written, compared and dropped.
    let deepest = format!("{{% set x = 1 %}}{}{{{{ x }}}}", "{% set x = [x] %}".repeat(MAX_NESTING_TOKENS));
    check(&deepest, json!({}), Ok(&format!("{}1{}", "[".repeat(1000), "]".repeat(1000))));
    let not = format!("{{{{ {}1 }}}}", "not ".repeat(MAX_TAG_TOKENS - 1));
    assert!(render(&not, json!({})).is_ok());
    let sum = format!("{{{{ 1{} }}}}", "+a".repeat(MAX_TAG_TOKENS / 2 - 1));
    check(&sum, json!({"a": 1}), Ok("200"));
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|b| json!(b)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        ".{0,20}".prop_map(|s| json!(s)),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|l| json!(l)),
            proptest::collection::btree_map("[a-c]", inner, 0..4).prop_map(|m| json!(m)),
        ]
    })
}

/// Pieces that make templates which often parse.
fn any_template() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[ -~é\\n]{0,12}",
        4 => "\\{\\{ (a|b|c)(\\.(a|b)|\\[0\\]|\\|(upper|list|length|tojson|first|sort|join|default\\(1\\)|batch\\(2\\)|int|round))? \\}\\}",
        2 => "\\{\\{ (a|b|1|'x')( ?(\\+|-|\\*|/|//|%|\\*\\*|~|==|<|in|and|or) ?(a|b|2|-3|'y')){0,2} \\}\\}",
        1 => Just("{% for i in a %}{{ i }}{% endfor %}".to_owned()),
        1 => Just("{% for i in range(a) %}{{ i }}{{ loop.index * b }}{% endfor %}".to_owned()),
        1 => Just("{% if b is defined %}{{ b }}{% endif %}".to_owned()),
        1 => Just("{% set c = [a, b, c] %}".to_owned()),
        1 => "[{}%|()\\[\\]a-c ]{0,8}",
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(crate::property::cases(2_000))]

    #[test]
    fn no_template_panics_or_exceeds_the_limit(
        template in any_template(),
        variables in proptest::collection::btree_map("[a-c]", any_json(), 0..4),
        max in 0usize..200,
    ) {
        if let Ok(templates) = Templates::compile(Some(&template), &template) {
            let given: Map<_, _> = variables.into_iter().collect();
            match templates.render(&given, max) {
                Ok(rendered) => prop_assert!(rendered.user.len() + rendered.system.map_or(0, |s| s.len()) <= max),
                Err(RenderError::Missing(names)) => {
                    prop_assert!(!names.is_empty() && names.iter().all(|name| !given.contains_key(name)));
                }
                Err(RenderError::TooLarge { max_bytes }) => prop_assert_eq!(max_bytes, max),
                Err(RenderError::Failed(sentence)) => prop_assert!(!sentence.is_empty() && !sentence.contains('\n')),
            }
        }
    }

    /// A template that was given all it requires never fails for want of a top-level name.
    #[test]
    fn optional_means_optional(template in any_template()) {
        if let Ok(templates) = Templates::compile(None, &template) {
            let given: Map<_, _> =
                templates.variables().iter().filter(|v| v.required).map(|v| (v.name.clone(), json!([[1]]))).collect();
            if let Err(RenderError::Missing(names)) = templates.render(&given, MAX) {
                prop_assert!(false, "{names:?}");
            }
        }
    }
}
