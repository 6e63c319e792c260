//! The description of the API: as OpenAPI 3.1 at `/openapi.json`, and for people at `/docs`.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::header;
use axum::routing::get;
use serde_json::{Map, Value};

use super::app::App;

const OPENAPI: &str = include_str!("openapi.json");
const STYLE: &str = include_str!("../web/docs.css");
/// The page has no script.
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// Adds the description's routes, which need no key.
pub(super) fn routes(router: Router<Arc<App>>) -> Router<Arc<App>> {
    let json = [(header::CONTENT_TYPE, "application/json")];
    let style = [(header::CONTENT_TYPE, "text/css; charset=utf-8")];
    let page = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)];
    static PAGE: LazyLock<String> = LazyLock::new(page_text);
    router
        .route("/openapi.json", get(move || async move { (json, OPENAPI) }))
        .route("/docs.css", get(move || async move { (style, STYLE) }))
        .route("/docs", get(move || async move { (page, PAGE.as_str()) }))
}

/// The page: a section for each address.
fn page_text() -> String {
    let api: Value = serde_json::from_str(OPENAPI).expect("the file of this program is JSON");
    let mut page = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
        <meta name=\"viewport\" content=\"width=device-width\"><title>Wels: API</title>\
        <link rel=\"stylesheet\" href=\"docs.css\"><main><h1>API</h1>"
        .to_owned();
    let about = prose(&api["info"]["description"]);
    page += &format!("<p>{about} <a href=\"openapi.json\">OpenAPI 3.1</a></p>");
    for (path, methods) in entries(&api["paths"]) {
        for (method, operation) in entries(methods) {
            let (method, summary) = (method.to_uppercase(), prose(&operation["summary"]));
            page += &format!("<section><h2><code>{method} {path}</code></h2><p>{summary}</p>");
            page += &parameters(&api, &operation["requestBody"]);
            page += "</section>";
        }
    }
    page + "</main></html>\n"
}

/// A table of what a body may have; those that are taken and not used are named together.
fn parameters(api: &Value, body: &Value) -> String {
    let schema = &resolved(api, body)["content"]["application/json"]["schema"];
    let required = |name: &str| schema["required"].as_array().is_some_and(|names| names.iter().any(|n| n == name));
    let (mut rows, mut unused) = (String::new(), Vec::new());
    for (name, property) in entries(&schema["properties"]) {
        if property["$ref"] == "#/components/schemas/notUsed" {
            unused.push(format!("<code>{name}</code>"));
            continue;
        }
        let property = resolved(api, property);
        let (kind, about) = (kind(property), prose(&property["description"]));
        let mark = if required(name) { " <em>required</em>" } else { "" };
        rows += &format!("<tr><th scope=\"row\"><code>{name}</code>{mark}</th><td>{kind}</td><td>{about}</td></tr>");
    }
    if rows.is_empty() {
        return String::new();
    }
    let unused = match unused.is_empty() {
        true => String::new(),
        false => format!("<p>Taken and not used: {}</p>", unused.join(", ")),
    };
    format!("<table>{rows}</table>{unused}")
}

/// What a value may be, in words.
fn kind(property: &Value) -> String {
    let texts = |values: &Value| {
        let one = |value: &Value| value.as_str().map_or_else(|| kind(value), |text| format!("<code>{text}</code>"));
        values.as_array().map(|values| values.iter().map(one).collect::<Vec<_>>().join(", "))
    };
    let mut words = texts(&property["oneOf"])
        .or_else(|| texts(&property["enum"]))
        .unwrap_or_else(|| property["type"].as_str().unwrap_or("any").to_owned());
    match (&property["minimum"], &property["maximum"]) {
        (Value::Null, _) => {}
        (least, Value::Null) => words += &format!(" from {least}"),
        (least, most) => words += &format!(" {least} to {most}"),
    }
    if !property["default"].is_null() {
        words += &format!(", {} if left out", property["default"]);
    }
    words
}

/// What a reference stands for, or the value itself.
fn resolved<'a>(api: &'a Value, value: &'a Value) -> &'a Value {
    let pointer = value["$ref"].as_str().and_then(|name| name.strip_prefix('#'));
    pointer.and_then(|pointer| api.pointer(pointer)).unwrap_or(value)
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

/// Text of the file as HTML, with what stands in backticks as code.
fn prose(text: &Value) -> String {
    let text = text.as_str().unwrap_or_default().replace('&', "&amp;").replace('<', "&lt;");
    let parts = text.split('`').enumerate();
    parts.map(|(at, part)| if at % 2 == 0 { part.to_owned() } else { format!("<code>{part}</code>") }).collect()
}
