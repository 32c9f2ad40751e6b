//! What the headers of answers mean. A route names those that it sends; here they are described, once.

use utoipa::openapi::{
    Components, Header, Ref, RefOr, Response as Answer,
    schema::{KnownFormat, Object, ObjectBuilder, SchemaFormat, Type},
};

enum Kind {
    Text,
    Number,
    Uuid,
}

/// Name, kind and meaning.
const HEADERS: &[(&str, Kind, &str)] = &[
    ("x-request-id", Kind::Text, "The request's own `x-request-id`, if it is a good one, or a new id"),
    ("x-run-id", Kind::Uuid, "The id of the run"),
    ("x-prompt-version", Kind::Number, "The version of the prompt that runs"),
    (
        "x-cache",
        Kind::Text,
        "Where the output came from, if the run may share it: `hit` (it was there), `miss` (a call of its own), `joined` (the call of another run \
        that was under way). An answer that begins before the run has ended says `hit` or `miss`",
    ),
    ("x-queue-ms", Kind::Number, "How long the run waited before its last call, in milliseconds, once that is known"),
    ("RateLimit", Kind::Text, "What is left of the caller's limits, where there are any: `\"account\";r=2;t=60`"),
    ("RateLimit-Policy", Kind::Text, "The caller's limits, where there are any: `\"account\";q=5;w=60`"),
    ("Retry-After", Kind::Number, "Seconds to wait"),
    ("Location", Kind::Text, "Where to ask for the run, or the batch"),
    ("Idempotent-Replayed", Kind::Text, "`true` when an earlier request with this `Idempotency-Key` made the run"),
    ("Preference-Applied", Kind::Text, "What was understood of `Prefer`"),
    ("WWW-Authenticate", Kind::Text, "`Bearer`"),
    ("Content-Security-Policy", Kind::Text, "What the page may load: nothing from elsewhere, and no script"),
    ("Upgrade", Kind::Text, "`websocket`"),
    ("Sec-WebSocket-Accept", Kind::Text, "The answer to `Sec-WebSocket-Key`"),
    ("Sec-WebSocket-Protocol", Kind::Text, "`prompt-manager.v1`, if it was offered"),
    ("Sec-WebSocket-Version", Kind::Text, "The version that is spoken here: `13`"),
];

/// Describes every header once, where answers refer to.
pub(super) fn describe(components: &mut Components) {
    for (name, kind, meaning) in HEADERS {
        let mut header = Header::new(schema(kind));
        header.description = Some((*meaning).to_owned());
        components.headers.insert((*name).to_owned(), RefOr::T(header));
    }
}

/// Adds the headers of every answer, and those of its status; then all refer to their descriptions.
pub(super) fn complete(status: &str, answer: &mut Answer) {
    let of_status: &[&str] = match status {
        "401" => &["WWW-Authenticate"],
        "429" | "503" => &["Retry-After"],
        _ => &[],
    };
    for name in ["x-request-id"].iter().chain(of_status) {
        answer.headers.entry((*name).to_owned()).or_insert_with(|| RefOr::T(Header::default()));
    }
    for (name, header) in &mut answer.headers {
        *header = RefOr::Ref(Ref::new(format!("#/components/headers/{name}")));
    }
}

fn schema(kind: &Kind) -> Object {
    match kind {
        Kind::Text => Object::with_type(Type::String),
        Kind::Number => ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).build(),
        Kind::Uuid => ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)))
            .build(),
    }
}
