//! Texts and types of the document as HTML.

use utoipa::openapi::{
    RefOr, Schema,
    schema::{ArrayItems, Object, SchemaFormat, SchemaType},
};

/// Makes paragraphs of a description, and code of what stands between backticks. The rest of Markdown is not used.
pub(super) fn prose(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty());
    let paragraph = |text: &str| {
        let parts = text.split('`').enumerate().map(|(index, part)| {
            let part = escape(part);
            if index % 2 == 1 { format!("<code>{part}</code>") } else { part }
        });
        format!("<p>{}</p>", parts.collect::<String>())
    };
    paragraphs.map(paragraph).collect()
}

/// A text inside an element or an attribute in double quotes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Leads to the schema of a reference.
pub(super) fn link(reference: &str) -> String {
    let name = escape(reference.rsplit('/').next().unwrap_or_default());
    format!("<a href=\"#schema-{name}\">{name}</a>")
}

/// What a schema says of itself.
pub(super) fn description(schema: &RefOr<Schema>) -> &str {
    match schema {
        RefOr::Ref(reference) => &reference.description,
        RefOr::T(Schema::Object(object)) => object.description.as_deref().unwrap_or_default(),
        RefOr::T(Schema::Array(array)) => array.description.as_deref().unwrap_or_default(),
        RefOr::T(Schema::OneOf(one)) => one.description.as_deref().unwrap_or_default(),
        RefOr::T(Schema::AllOf(all)) => all.description.as_deref().unwrap_or_default(),
        RefOr::T(Schema::AnyOf(any)) => any.description.as_deref().unwrap_or_default(),
        RefOr::T(_) => "",
    }
}

/// The type of a schema in a few words.
pub(super) fn kind(schema: &RefOr<Schema>) -> String {
    match schema {
        RefOr::Ref(reference) => link(&reference.ref_location),
        RefOr::T(Schema::Object(object)) => of_object(object),
        RefOr::T(Schema::Array(array)) => match &array.items {
            ArrayItems::RefOrSchema(item) => format!("list of {}", kind(item)),
            ArrayItems::False => "list".to_owned(),
        },
        RefOr::T(Schema::OneOf(one)) => joined(&one.items, " or "),
        RefOr::T(Schema::AnyOf(any)) => joined(&any.items, " or "),
        RefOr::T(Schema::AllOf(all)) => joined(&all.items, " and "),
        RefOr::T(_) => String::new(),
    }
}

fn joined(items: &[RefOr<Schema>], word: &str) -> String {
    items.iter().map(kind).collect::<Vec<_>>().join(word)
}

fn of_object(object: &Object) -> String {
    let words = object.enum_values.iter().flatten().map(|word| format!("<code>{}</code>", escape(&word.to_string())));
    let words: Vec<_> = words.collect();
    if !words.is_empty() {
        return words.join(", ");
    }
    let mut text = match &object.schema_type {
        SchemaType::Type(one) => word(one),
        SchemaType::Array(several) => several.iter().map(word).collect::<Vec<_>>().join(" or "),
        SchemaType::AnyValue => "any JSON".to_owned(),
    };
    let format = object.format.as_ref().and_then(|format| match format {
        SchemaFormat::Custom(name) => Some(name.clone()),
        SchemaFormat::KnownFormat(known) => serde_json::to_value(known).ok()?.as_str().map(str::to_owned),
    });
    let bound = |name: &str, value: Option<String>| value.map(|value| format!("{name} {value}"));
    let number =
        |number: &Option<utoipa::Number>| number.as_ref().and_then(|number| serde_json::to_string(number).ok());
    let facts = [
        format,
        bound("from", number(&object.minimum)),
        bound("to", number(&object.maximum)),
        bound("characters from", object.min_length.map(|length| length.to_string())),
        bound("characters to", object.max_length.map(|length| length.to_string())),
        bound("default", object.default.as_ref().map(ToString::to_string)),
    ];
    let facts: Vec<_> = facts.into_iter().flatten().collect();
    if !facts.is_empty() {
        text = format!("{text} ({})", escape(&facts.join(", ")));
    }
    text
}

fn word(kind: &utoipa::openapi::Type) -> String {
    serde_json::to_value(kind).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        assert_eq!(escape(r#"<a href="x">&"#), "&lt;a href=&quot;x&quot;&gt;&amp;");
        let paragraphs = "<p>One <code>a &lt; b</code>.</p><p>Two</p>";
        assert_eq!(prose("One `a < b`.\n\nTwo\n"), paragraphs);
        assert_eq!(prose(""), "");
    }
}
