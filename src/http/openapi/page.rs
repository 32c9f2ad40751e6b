//! The document as a page of plain HTML: no script, nothing from elsewhere.

use minijinja::{Environment, value::Serde};
use serde::Serialize;
use utoipa::openapi::{
    Components, Content, OpenApi, RefOr, Required, Response, Schema,
    path::{Operation, Parameter, ParameterIn, PathItem},
    schema::Object,
    security::{ApiKey, SecurityScheme},
};

use super::html::{self, prose};

/// The page. Every text of the document is escaped.
pub(super) fn render(document: &OpenApi) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    // The ending is what makes values be escaped.
    environment.add_template("page.html", include_str!("page.html"))?;
    let components = document.components.as_ref();
    let info = &document.info;
    let page = Page {
        title: &info.title,
        version: &info.version,
        about: prose(info.description.as_deref().unwrap_or_default()),
        keys: components.map(keys).unwrap_or_default(),
        groups: groups(document),
        schemas: components.map(schemas).unwrap_or_default(),
        headers: components.map(headers).unwrap_or_default(),
    };
    environment.get_template("page.html")?.render(Serde(page))
}

#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    version: &'a str,
    about: String,
    keys: Vec<Named>,
    groups: Vec<Group>,
    schemas: Vec<SchemaShown>,
    headers: Vec<Named>,
}

#[derive(Serialize)]
struct Named {
    name: String,
    about: String,
}

#[derive(Serialize)]
struct Group {
    name: String,
    about: String,
    operations: Vec<Shown>,
}

#[derive(Serialize)]
struct Shown {
    id: String,
    method: &'static str,
    path: String,
    about: String,
    needs_key: bool,
    parameters: Vec<Row>,
    body: Option<String>,
    answers: Vec<Answer>,
}

/// A parameter, or a field of a schema.
#[derive(Serialize)]
struct Row {
    name: String,
    place: &'static str,
    kind: String,
    required: bool,
    about: String,
}

#[derive(Serialize)]
struct Answer {
    status: String,
    about: String,
    body: String,
    headers: Vec<String>,
}

#[derive(Serialize)]
struct SchemaShown {
    name: String,
    about: String,
    forms: Vec<Form>,
    example: Option<String>,
}

/// One of the shapes that a schema may have.
#[derive(Serialize, Default)]
struct Form {
    about: String,
    fields: Vec<Row>,
}

fn keys(components: &Components) -> Vec<Named> {
    let about = |scheme: &RefOr<SecurityScheme>| match scheme {
        RefOr::T(SecurityScheme::ApiKey(ApiKey::Header(key))) => {
            format!("In the header `{}`. {}", key.name, key.description.as_deref().unwrap_or_default())
        }
        RefOr::T(SecurityScheme::Http(http)) => {
            format!("In `Authorization: Bearer`. {}", http.description.as_deref().unwrap_or_default())
        }
        _ => String::new(),
    };
    let named =
        |(name, scheme): (&String, &RefOr<SecurityScheme>)| Named { name: name.clone(), about: prose(&about(scheme)) };
    components.security_schemes.iter().map(named).collect()
}

fn groups(document: &OpenApi) -> Vec<Group> {
    let tags = document.tags.iter().flatten();
    tags.map(|tag| Group {
        name: tag.name.clone(),
        about: prose(tag.description.as_deref().unwrap_or_default()),
        operations: document.paths.paths.iter().flat_map(|(path, item)| of_tag(path, item, &tag.name)).collect(),
    })
    .collect()
}

fn of_tag(path: &str, item: &PathItem, tag: &str) -> Vec<Shown> {
    let PathItem { get, put, post, delete, options, head, patch, trace, .. } = item;
    let all = [
        ("GET", get),
        ("PUT", put),
        ("POST", post),
        ("DELETE", delete),
        ("OPTIONS", options),
        ("HEAD", head),
        ("PATCH", patch),
        ("TRACE", trace),
    ];
    let of_tag = |operation: &&Operation| operation.tags.iter().flatten().any(|name| name == tag);
    let operations = all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_ref()?)));
    operations
        .filter(|(_, operation)| of_tag(operation))
        .map(|(method, operation)| shown(method, path, operation))
        .collect()
}

fn shown(method: &'static str, path: &str, operation: &Operation) -> Shown {
    let about = [operation.summary.as_deref(), operation.description.as_deref()].into_iter().flatten();
    let contents = operation.request_body.as_ref().map(|body| match body {
        RefOr::T(body) => bodies(body.content.iter()),
        RefOr::Ref(reference) => html::link(&reference.ref_location),
    });
    Shown {
        id: operation.operation_id.clone().unwrap_or_default(),
        method,
        path: path.to_owned(),
        about: prose(&about.collect::<Vec<_>>().join("\n\n")),
        needs_key: operation.security.is_none(),
        parameters: operation.parameters.iter().flatten().filter_map(parameter).collect(),
        body: contents,
        answers: operation.responses.responses.iter().map(|(status, response)| answer(status, response)).collect(),
    }
}

fn parameter(parameter: &RefOr<Parameter>) -> Option<Row> {
    let RefOr::T(Parameter { name, parameter_in, description, required, schema, .. }) = parameter else { return None };
    Some(Row {
        name: name.clone(),
        place: match parameter_in {
            ParameterIn::Query => "query",
            ParameterIn::Path => "path",
            ParameterIn::Header => "header",
            ParameterIn::Cookie => "cookie",
            _ => "",
        },
        kind: schema.as_ref().map(html::kind).unwrap_or_default(),
        required: matches!(required, Required::True),
        about: prose(description.as_deref().unwrap_or_default()),
    })
}

fn answer(status: &str, response: &RefOr<Response>) -> Answer {
    let status = status.to_owned();
    match response {
        RefOr::T(response) => Answer {
            status,
            about: prose(&response.description),
            body: bodies(response.content.iter()),
            headers: response.headers.keys().cloned().collect(),
        },
        RefOr::Ref(reference) => {
            Answer { status, about: String::new(), body: html::link(&reference.ref_location), headers: Vec::new() }
        }
    }
}

fn bodies<'a>(contents: impl Iterator<Item = (&'a String, &'a RefOr<Content>)>) -> String {
    let body = |(media, content): (&String, &RefOr<Content>)| {
        let schema = match content {
            RefOr::T(content) => content.schema.as_ref().map(html::kind).unwrap_or_default(),
            RefOr::Ref(reference) => html::link(&reference.ref_location),
        };
        format!("{schema} as <code>{}</code>", html::escape(media))
    };
    contents.map(body).collect::<Vec<_>>().join("; ")
}

fn schemas(components: &Components) -> Vec<SchemaShown> {
    components
        .schemas
        .iter()
        .map(|(name, schema)| {
            let (about, example) = match schema {
                RefOr::T(Schema::Object(object)) => (object.description.as_deref(), object.example.as_ref()),
                RefOr::T(Schema::OneOf(one)) => (one.description.as_deref(), one.example.as_ref()),
                _ => (None, None),
            };
            SchemaShown {
                name: name.clone(),
                about: prose(about.unwrap_or_default()),
                forms: forms(schema),
                example: example.and_then(|example| serde_json::to_string_pretty(example).ok()),
            }
        })
        .collect()
}

fn forms(schema: &RefOr<Schema>) -> Vec<Form> {
    match schema {
        RefOr::T(Schema::Object(object)) => vec![Form { about: String::new(), fields: fields(object) }],
        RefOr::T(Schema::OneOf(one)) => one.items.iter().map(form).collect(),
        RefOr::T(Schema::AllOf(_)) => vec![form(schema)],
        _ => Vec::new(),
    }
}

/// A shape that is put together shows its own fields, and points to those of others.
fn form(schema: &RefOr<Schema>) -> Form {
    match schema {
        RefOr::T(Schema::Object(object)) => {
            Form { about: prose(object.description.as_deref().unwrap_or_default()), fields: fields(object) }
        }
        RefOr::T(Schema::AllOf(all)) => {
            let mut whole = Form { about: prose(all.description.as_deref().unwrap_or_default()), ..Form::default() };
            for part in &all.items {
                let Form { about, fields } = form(part);
                whole.about.push_str(&about);
                whole.fields.extend(fields);
            }
            whole
        }
        RefOr::Ref(reference) => {
            Form { about: format!("<p>The fields of {}</p>", html::link(&reference.ref_location)), ..Form::default() }
        }
        _ => Form::default(),
    }
}

fn fields(object: &Object) -> Vec<Row> {
    let row = |(name, schema): (&String, &RefOr<Schema>)| Row {
        name: name.clone(),
        place: "",
        kind: html::kind(schema),
        required: object.required.contains(name),
        about: prose(html::description(schema)),
    };
    object.properties.iter().map(row).collect()
}

fn headers(components: &Components) -> Vec<Named> {
    let about = |header: &RefOr<utoipa::openapi::Header>| match header {
        RefOr::T(header) => header.description.clone().unwrap_or_default(),
        RefOr::Ref(_) => String::new(),
    };
    components.headers.iter().map(|(name, header)| Named { name: name.clone(), about: prose(&about(header)) }).collect()
}
