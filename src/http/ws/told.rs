//! What a client is told on a socket, beside errors: events as over server-sent events, with the client's own id.

use serde::Serialize;
use utoipa::ToSchema;
use workers::job::{Logged, RunId};

use crate::http::{
    event_body::{EventBody, Subject},
    openapi::schemas,
};

#[derive(Serialize)]
struct Event<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(flatten)]
    event: EventBody<'a>,
}

/// The answer to a cancellation of a run that is not followed here. One that is tells of its end itself.
#[derive(Serialize, ToSchema)]
#[schema(as = SocketCancelAccepted)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct CancelAccepted<'a> {
    #[serde(rename = "type")]
    #[schema(schema_with = schemas::cancel_accepted_type)]
    name: &'static str,
    /// What the client calls the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    id: Option<&'a str>,
    #[schema(value_type = Uuid)]
    run_id: RunId,
    /// `false` while a worker still has to end it.
    cancelled: bool,
}

/// `None` for an event that clients are not told of.
pub(super) fn event(id: Option<&str>, subject: Subject, logged: &Logged) -> Option<String> {
    let event = EventBody::new(subject, logged)?;
    // Strings, numbers and maps with string keys always serialise.
    Some(serde_json::to_string(&Event { id, event }).unwrap_or_default())
}

/// `cancelled`: now or since before; otherwise its worker was told.
pub(super) fn cancel_accepted(id: Option<&str>, run_id: RunId, cancelled: bool) -> String {
    serde_json::to_string(&CancelAccepted { name: "run.cancel.accepted", id, run_id, cancelled }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use workers::job::{Event, UnixMillis};

    use super::*;

    #[test]
    fn events_bear_the_client_s_id() {
        let subject = Subject { run: RunId::new(), prompt_version: 3, created_at: UnixMillis(0) };
        let logged = Logged { seq: 2, event: Event::Delta("Bon".into()) };
        let told = |id| serde_json::from_str::<Value>(&event(id, subject, &logged).unwrap()).unwrap();
        let bare = json!({"type": "run.output_text.delta", "runId": subject.run, "seq": 2, "delta": "Bon"});
        assert_eq!(told(None), bare);
        let mut named = bare;
        named["id"] = json!("a");
        assert_eq!(told(Some("a")), named);
        assert!(event(None, subject, &Logged { seq: 3, event: Event::Skipped }).is_none());
        [told(None), told(Some("a"))].iter().for_each(|told| crate::schema::assert_is("SocketEvent", told));
    }

    #[test]
    fn a_cancellation_is_answered_as_it_is_described() {
        for (id, cancelled) in [(None, true), (Some("a"), false)] {
            let told: Value = serde_json::from_str(&cancel_accepted(id, RunId::new(), cancelled)).unwrap();
            crate::schema::assert_is("SocketCancelAccepted", &told);
            assert_eq!((told["id"].as_str(), &told["cancelled"]), (id, &json!(cancelled)));
        }
    }
}
