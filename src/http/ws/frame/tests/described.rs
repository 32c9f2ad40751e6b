//! What the OpenAPI document says of messages is what is read: whatever it allows is an order, and whatever it forbids is refused.

use serde_json::Map;

use super::*;
use crate::{property, schema};

fn is_described(message: &Value) -> bool {
    let names = ["SocketCreate", "SocketCancel", "SocketResume"];
    names.iter().any(|name| schema::judge(schema::named(name), message).is_ok())
}

/// What a member may be, and what nearly is.
type Values = (Vec<Value>, Vec<Value>);

/// A value for a member: most often one that fits it or none, at times one that nearly does, or anything.
fn member((good, bad): Values) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        30 => Just(None),
        20 => prop::sample::select(good).prop_map(Some),
        1 => Just(Some(Value::Null)),
        2 => prop::sample::select(bad).prop_map(Some),
        1 => json_values().prop_map(Some),
    ]
}

/// Messages that are right, or wrong in few places.
fn messages() -> impl Strategy<Value = Value> {
    let words = |texts: &[&str]| texts.iter().map(|text| json!(text)).collect::<Vec<_>>();
    let numbers =
        |most: i64| (vec![json!(1), json!(most)], vec![json!(0), json!(-1), json!(1.5), json!(1.0), json!("1")]);
    let metadata = vec![
        json!({ "é".repeat(64): "é".repeat(512) }),
        Value::Object((0..16).map(|number| (number.to_string(), json!(""))).collect()),
    ];
    let no_metadata = vec![
        json!({ "é".repeat(65): "a" }),
        json!({ "": "a" }),
        json!({ "\n": "a" }),
        json!({ "a": "é".repeat(513) }),
        json!({ "a": "\0" }),
        json!({ "a": 1 }),
        Value::Object((0..17).map(|number| (number.to_string(), json!(""))).collect()),
    ];
    let (version, mut no_version) = numbers(i64::from(i32::MAX));
    no_version.push(json!(i64::from(i32::MAX) + 1));
    let (timeout, no_timeout) = numbers(i64::MAX);
    let flag = || (vec![json!(true), json!(false)], vec![json!(0), json!("true")]);
    let names = |most: usize| {
        let good = vec![json!("a"), json!("\u{a0}"), json!("é".repeat(most))];
        (good, vec![json!(""), json!("a\u{85}"), json!("\0"), json!("é".repeat(most + 1)), json!(1)])
    };
    let run_fields = [
        ("promptName", names(255)),
        ("variables", (vec![json!({}), json!({ "a": [null, 1.5, "\0"] })], vec![json!([]), json!("a")])),
        ("version", (version, no_version)),
        ("stream", flag()),
        ("timeoutMs", (timeout, no_timeout)),
        ("priority", (words(&["interactive", "default", "batch"]), words(&["", "Batch"]))),
        ("metadata", (metadata, no_metadata)),
        ("cache", flag()),
        ("webhookUrl", (words(&["https://example.com/", ""]), vec![json!(1)])),
        ("onDisconnect", (words(&["cancel", "continue"]), words(&["", "Cancel"]))),
    ];
    let fields = [
        ("id", names(MAX_ID)),
        ("runId", (words(&[RUN, &RUN.to_uppercase()]), words(&["", "a", RUN.trim_start_matches('0')]))),
    ];
    let after = (vec![json!(0), json!(i64::MAX)], vec![json!(-1), json!(1.5), json!(1.0), json!("1")]);
    let own = [("after", after), ("other", (vec![json!(1)], vec![json!(2)]))];
    let all = |fields: Vec<(&'static str, Values)>| {
        let fields = fields.into_iter().map(|(name, values)| member(values).prop_map(move |value| (name, value)));
        let fields: Vec<_> = fields.collect();
        fields.prop_map(|fields| {
            let there = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
            Value::Object(there.collect::<Map<_, _>>())
        })
    };
    let create = all([&run_fields[..], &fields[..1]].concat());
    let others = all([&fields[..], &own[..1]].concat()).boxed();
    let any = all([&run_fields[..], &fields[..], &own[..]].concat());

    let types = prop::sample::select(vec!["run.create", "run.cancel", "run.resume", "run.start"]);
    let (id, run, prompt) = (("id", json!("a")), ("runId", json!(RUN)), ("promptName", json!("p")));
    let (for_create, for_cancel, for_resume) = ([id.clone(), prompt], [id], [run]);
    let for_any = for_create.clone();
    prop_oneof![
        4 => create.prop_map(move |message| with_type(message, "run.create", &for_create)),
        2 => others.clone().prop_map(move |message| with_type(message, "run.cancel", &for_cancel)),
        2 => others.clone().prop_map(move |message| with_type(message, "run.resume", &for_resume)),
        1 => others.prop_map(|message| with_type(message, "run.cancel", &[])),
        1 => (any, types).prop_map(move |(message, name)| with_type(message, name, &for_any)),
        1 => json_values(),
    ]
}

/// The message as one of this type, with these members where it has none of the name.
fn with_type(mut message: Value, name: &str, needed: &[(&str, Value)]) -> Value {
    message["type"] = json!(name);
    for (name, value) in needed {
        if message.get(name).is_none() {
            message[name] = value.clone();
        }
    }
    message
}

proptest! {
    #![proptest_config(property::cases(2_000))]

    #[test]
    fn what_is_described_is_what_is_read(message in messages()) {
        let is_read = parse(&message.to_string()).is_ok();
        prop_assert_eq!(is_read, is_described(&message), "{}", message);
    }
}

/// The messages above are not all of one kind.
#[test]
fn messages_of_all_kinds_are_made() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};

    let mut runner = TestRunner::deterministic();
    let mut counts = std::collections::BTreeMap::<_, usize>::new();
    for _ in 0..2_000 {
        let message = messages().new_tree(&mut runner).unwrap().current();
        let kind = match parse(&message.to_string()) {
            Ok(Frame::Create { .. }) => "create",
            Ok(Frame::Cancel { .. }) => "cancel",
            Ok(Frame::Resume { .. }) => "resume",
            Err(_) => "refused",
        };
        *counts.entry(kind).or_default() += 1;
    }
    assert!(counts.len() == 4 && counts.values().all(|&count| count > 100), "{counts:?}");
}
