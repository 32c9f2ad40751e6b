//! What callers write, and what happens to a run, as types that only describe: requests are read field by field
//! ([`RunRequest`](crate::run::RunRequest)), so that all problems are told at once, and events are written from the engine's own. Tests
//! hold each of these types and its counterpart together.

#![expect(dead_code, reason = "these types are read by the document's generator alone")]

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        KnownFormat, Ref, RefOr, Schema, SchemaFormat,
        schema::{AdditionalProperties, AllOfBuilder, Object, ObjectBuilder, OneOfBuilder, SchemaType, Type},
    },
};
use uuid::Uuid;
use workers::job::{AttemptOutcome, Lane, RunState};

use super::super::run_body::UsageBody;

const NO_CONTROL_CHARACTERS: &str = r"^[^\u0000-\u001f\u007f-\u009f]+$";

/// A run to start. `null` means the same as leaving a field out; a field that is not listed here is refused.
#[derive(Deserialize, ToSchema)]
#[schema(as = RunRequest, example = json!({
    "promptName": "Email de Bienvenue",
    "variables": { "nom_utilisateur": "Steph", "nom_service": "Prompt Manager" },
}))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::http) struct RunRequestBody {
    /// The prompt's name.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$")]
    prompt_name: String,
    /// Values of the prompt's variables: any JSON. Names that the prompt does not use are ignored; missing ones are a 400 that lists them.
    #[schema(value_type = Option<Object>)]
    variables: Option<Value>,
    /// The version to run, whatever its status; the PRODUCTION version if there is none.
    #[schema(minimum = 1)]
    version: Option<i32>,
    /// Whether the answer is a stream of server-sent events.
    #[schema(default = false)]
    stream: Option<bool>,
    /// The run's deadline, in milliseconds from now, waiting and retries included; at most `limits.max_timeout_ms`, an hour by default.
    #[schema(minimum = 1)]
    timeout_ms: Option<u64>,
    #[schema(schema_with = optional_lane)]
    priority: Option<String>,
    #[schema(schema_with = optional_metadata)]
    metadata: Option<Value>,
    /// Whether the output may be that of another run of the account which is the same call (the same version of the prompt, model, parameters and
    /// rendered text), and the other way round. As the prompt has it, if it is left out. `true` is refused with `not_supported` by a server that keeps no content.
    cache: Option<bool>,
    /// Where to tell of the run's end: an `https` URL on the public Internet, without user name and password.
    webhook_url: Option<String>,
    #[schema(schema_with = on_disconnect)]
    on_disconnect: Option<String>,
}

/// One event of a stream of server-sent events. The last one has nothing but `[DONE]` as its data.
#[derive(ToSchema)]
#[schema(as = ServerSentEvent)]
pub(in crate::http) struct StreamedEvent {
    /// The `seq` of the event, to go on from.
    #[schema(nullable = false)]
    id: Option<String>,
    /// The `type` of the event.
    #[schema(nullable = false)]
    event: Option<String>,
    /// A `RunEvent` in JSON, on one line.
    #[schema(required = true)]
    data: String,
}

/// What happens to a run: the `data` of a server-sent event, and a message on a socket.
#[derive(Deserialize, ToSchema)]
#[schema(as = RunEvent)]
#[serde(tag = "type", deny_unknown_fields)]
pub(in crate::http) enum RunEventBody {
    /// The run was accepted.
    #[serde(rename = "run.queued", rename_all = "camelCase")]
    Queued { run_id: Uuid, seq: u64, prompt_version: i32 },
    /// A worker makes this call to a model. The same number may come twice.
    #[serde(rename = "run.started", rename_all = "camelCase")]
    Started { run_id: Uuid, seq: u64, attempt: i32 },
    /// More text.
    #[serde(rename = "run.output_text.delta", rename_all = "camelCase")]
    Delta { run_id: Uuid, seq: u64, delta: String },
    /// A call broke off and is made again: what was streamed so far does not count.
    #[serde(rename = "run.retrying", rename_all = "camelCase")]
    Retrying { run_id: Uuid, seq: u64 },
    /// The end of a run that succeeded. `output` is the whole text.
    #[serde(rename = "run.completed", rename_all = "camelCase")]
    Completed {
        run_id: Uuid,
        seq: u64,
        success: bool,
        output: String,
        prompt_version: i32,
        duration_ms: u64,
        model: String,
        #[schema(value_type = UsageBody)]
        usage: Value,
        cached: bool,
        #[schema(required = true)]
        finish_reason: Option<String>,
    },
    /// The end of a run that failed or missed its deadline.
    #[serde(rename = "run.failed", rename_all = "camelCase")]
    Failed { run_id: Uuid, seq: u64, success: bool, error: String, code: String, retryable: bool },
    /// The end of a run that was cancelled.
    #[serde(rename = "run.cancelled", rename_all = "camelCase")]
    Cancelled { run_id: Uuid, seq: u64, success: bool, error: String, code: String, retryable: bool },
}

/// The fields of a run request, and two more.
pub(in crate::http) struct SocketCreateBody;

impl ToSchema for SocketCreateBody {
    fn name() -> Cow<'static, str> {
        "SocketCreate".into()
    }
}

impl PartialSchema for SocketCreateBody {
    fn schema() -> RefOr<Schema> {
        let mut schema = RunRequestBody::schema();
        if let RefOr::T(Schema::Object(object)) = &mut schema {
            let id = with_about(client_id(), "What the client calls the run.");
            for (name, property) in [("type", words(&["run.create"], "")), ("id", id)] {
                object.properties.insert(name.to_owned(), Schema::from(property).into());
                object.required.push(name.to_owned());
            }
            object.description = Some(
                "A client's message on a socket: starts a run, which is called `id` there. Beside `type` and `id` it has the fields of a \
                 `RunRequest`."
                    .to_owned(),
            );
            object.example = None;
        }
        schema
    }
}

/// One of two messages, so that nothing but one of the two ids can be left out.
pub(in crate::http) struct SocketCancelBody;

impl ToSchema for SocketCancelBody {
    fn name() -> Cow<'static, str> {
        "SocketCancel".into()
    }
}

impl PartialSchema for SocketCancelBody {
    fn schema() -> RefOr<Schema> {
        let absent = ObjectBuilder::new().schema_type(Type::Null).build();
        let by_run = [("runId", uuid(), true), ("id", or_null(client_id(), Type::String), false)];
        let by_name = [("id", client_id(), true), ("runId", absent, false)];
        let schema = OneOfBuilder::new()
            .description(Some("A client's message on a socket: cancels a run, the one of `runId`, or the one that this socket calls `id`."))
            .item(message("run.cancel", "The run of an id, whether this socket has it or not.", by_run))
            .item(message("run.cancel", "A run that this socket has.", by_name));
        Schema::from(schema.build()).into()
    }
}

pub(in crate::http) struct SocketResumeBody;

impl ToSchema for SocketResumeBody {
    fn name() -> Cow<'static, str> {
        "SocketResume".into()
    }
}

impl PartialSchema for SocketResumeBody {
    fn schema() -> RefOr<Schema> {
        let after = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(0))
            .build();
        let about = "A client's message on a socket: tells what happened to a run after the event `after`, and goes on as it happens.";
        let properties = [
            ("runId", uuid(), true),
            ("after", or_null(after, Type::Integer), false),
            ("id", or_null(client_id(), Type::String), false),
        ];
        Schema::from(message("run.resume", about, properties)).into()
    }
}

/// An event of a run as a socket tells it.
pub(in crate::http) struct SocketEventBody;

impl ToSchema for SocketEventBody {
    fn name() -> Cow<'static, str> {
        "SocketEvent".into()
    }
}

impl PartialSchema for SocketEventBody {
    fn schema() -> RefOr<Schema> {
        let id = ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("What the client calls the run; absent where it gave it no name."));
        let schema = AllOfBuilder::new()
            .description(Some("An event as a socket tells it."))
            .item(Ref::from_schema_name(RunEventBody::name()))
            .item(ObjectBuilder::new().schema_type(Type::Object).property("id", id.build()));
        Schema::from(schema.build()).into()
    }
}

/// A message of a client with these members, and whether each must be there.
fn message<const N: usize>(name: &str, about: &str, members: [(&str, Object, bool); N]) -> Object {
    let mut message = ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some(about))
        .property("type", words(&[name], ""))
        .required("type")
        .additional_properties(Some(AdditionalProperties::FreeForm(false)));
    for (name, member, is_required) in members {
        message = message.property(name, member);
        if is_required {
            message = message.required(name);
        }
    }
    message.build()
}

/// What a client calls a run, or a message about one.
fn client_id() -> Object {
    let id = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(128));
    id.pattern(Some(NO_CONTROL_CHARACTERS)).build()
}

fn uuid() -> Object {
    ObjectBuilder::new().schema_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))).build()
}

fn with_about(mut object: Object, about: &str) -> Object {
    object.description = Some(about.to_owned());
    object
}

pub(in crate::http) fn state() -> Object {
    words(&RunState::ALL.map(RunState::as_str), "The state of a run; the last four are for ever.")
}

pub(in crate::http) fn lane() -> Object {
    words(&Lane::ALL.map(Lane::as_str), "The lane in which a run waits.")
}

pub(in crate::http) fn outcome() -> Object {
    words(&AttemptOutcome::ALL.map(AttemptOutcome::as_str), "How the call ended.")
}

/// The `metadata` of a run.
pub(in crate::http) fn metadata() -> Object {
    let value = ObjectBuilder::new().schema_type(Type::String).max_length(Some(512)).pattern(Some(r"^[^\u0000]*$"));
    let name = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(64))
        .pattern(Some(NO_CONTROL_CHARACTERS));
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .max_properties(Some(16))
        .property_names(Some(Schema::from(name.build())))
        .additional_properties(Some(AdditionalProperties::RefOr(RefOr::T(Schema::from(value.build())))))
        .description(Some("Strings by name: at most 16; names of 1 to 64 characters, values of up to 512."))
        .build()
}

fn words(words: &[&str], about: &str) -> Object {
    let about = (!about.is_empty()).then_some(about);
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words.iter().copied())).description(about).build()
}

pub(in crate::http) fn error_type() -> Object {
    words(&["error"], "")
}

pub(in crate::http) fn cancel_accepted_type() -> Object {
    words(&["run.cancel.accepted"], "")
}

fn optional_lane() -> Object {
    let mut object = or_null(lane(), Type::String);
    object.default = Some(Lane::default().as_str().into());
    object
}

fn on_disconnect() -> Object {
    let about = "What becomes of the run when its caller hangs up while it waits or reads. Without it: `continue` for a request with an \
                 `Idempotency-Key`, `cancel` for any other.";
    or_null(words(&["cancel", "continue"], about), Type::String)
}

fn optional_metadata() -> Object {
    or_null(metadata(), Type::Object)
}

fn or_null(mut object: Object, of: Type) -> Object {
    object.schema_type = SchemaType::Array(vec![of, Type::Null]);
    if let Some(values) = &mut object.enum_values {
        values.push(Value::Null);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Answer, RunRequest};

    #[test]
    fn a_request_has_the_fields_that_are_read() {
        let schema = serde_json::to_value(RunRequestBody::schema()).unwrap();
        let mut described: Vec<_> = schema["properties"].as_object().unwrap().keys().cloned().collect();
        let mut read = RunRequest::field_names();
        described.sort();
        read.sort();
        assert_eq!(described, read);
        assert_eq!(schema["required"], serde_json::json!(["promptName"]));
        assert_eq!(schema["additionalProperties"], false);
        // The example is one.
        assert!(RunRequest::parse(schema["example"].to_string().as_bytes(), Answer::Wait).is_ok());
    }

    #[test]
    fn a_request_is_described_as_large_as_it_may_be() {
        let schema = serde_json::to_value(RunRequestBody::schema()).unwrap();
        let check = |body: Value, expect: bool| {
            assert_eq!(RunRequest::parse(body.to_string().as_bytes(), Answer::Wait).is_ok(), expect, "{body}");
        };
        let length = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
        let name = length(&schema["properties"]["promptName"]["maxLength"]);
        check(serde_json::json!({ "promptName": "é".repeat(name) }), true);
        check(serde_json::json!({ "promptName": "é".repeat(name + 1) }), false);
        let metadata = &schema["properties"]["metadata"];
        let with = |entries: usize, name: usize, value: usize| {
            let entry = |index: usize| (format!("{index:0>name$}"), Value::from("é".repeat(value)));
            let map: serde_json::Map<_, _> = (0..entries).map(entry).collect();
            serde_json::json!({ "promptName": "a", "metadata": map })
        };
        let entries = length(&metadata["maxProperties"]);
        let name = length(&metadata["propertyNames"]["maxLength"]);
        let value = length(&metadata["additionalProperties"]["maxLength"]);
        check(with(entries, name, value), true);
        check(with(entries + 1, name, value), false);
        check(with(entries, name + 1, value), false);
        check(with(entries, name, value + 1), false);
        for (field, words) in
            [("priority", &schema["properties"]["priority"]), ("onDisconnect", &schema["properties"]["onDisconnect"])]
        {
            for word in words["enum"].as_array().unwrap() {
                check(serde_json::json!({ "promptName": "a", field: word }), true);
            }
        }
    }
}
