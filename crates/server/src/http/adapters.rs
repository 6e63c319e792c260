//! Adapters that are loaded and unloaded while the server runs: `POST /v1/adapters`, `GET`, `DELETE
//! /v1/adapters/NAME`. For keys made with `--admin` alone, and from a directory that the operator names.

use std::sync::Arc;

use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Value, json};
use wels_engine::Adapter;

use super::app::{App, Model, json_response};
use super::body;
use super::record::Record;
use crate::prompt::ServedAdapter;
use crate::wire::{AdapterRequest, ApiError};

/// Where adapters come from.
pub trait AdapterSource: Send + Sync {
    /// Loads an adapter of the model with this number, from a path within what the operator allows.
    ///
    /// # Errors
    /// Why not, for the operator who asked.
    fn load(&self, model: usize, path: &str) -> Result<LoadedAdapter, String>;
}

/// An adapter in memory.
pub struct LoadedAdapter {
    pub adapter: Arc<Adapter>,
    /// Of its weights.
    pub sha256: String,
}

/// Three short texts.
const BODY_BYTES_MAX: usize = 1 << 16;

/// Loads one, `{"name": …, "path": …, "model": …}`; the model may be left out where there is one. Nothing is read of
/// requests of others than operators.
pub(super) async fn add(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let record = Record::of(&request);
    operator(&app, request.headers(), &record).await?;
    let body = body::read(request, BODY_BYTES_MAX, app.settings.body_timeout, app.queue.buffered()).await?;
    let AdapterRequest { name, path, model: asked } = AdapterRequest::parse(&body.bytes)?;
    let base = match asked {
        Some(asked) => app.model(&asked)?,
        None => app.only_base().ok_or_else(|| ApiError::param("model", "There are several models: name one."))?,
    };
    if base.served.adapter.is_some() {
        return Err(ApiError::param("model", "An adapter belongs to a model, and this is an adapter."));
    }
    let Some(source) = app.adapter_source() else {
        let message = "This server loads no adapters: start it with `--adapters-dir DIR`.";
        return Err(ApiError::forbidden(message));
    };
    let number = base.number;
    let loaded = tokio::task::spawn_blocking(move || source.load(number, &path));
    let loaded = loaded.await.map_err(|_| ApiError::internal("The adapter could not be read."))?;
    let loaded = loaded.map_err(|message| ApiError::param("path", message))?;
    let model = app.add_adapter(&base, &name, loaded)?;
    Ok(json_response(201, &describe(&model)))
}

/// Those that are loaded.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    operator(&app, &headers, &record).await?;
    let models = app.models();
    let adapters = models.iter().filter(|model| model.served.adapter.is_some());
    let data: Vec<Value> = adapters.map(|model| describe(model)).collect();
    Ok(json_response(200, &json!({"object": "list", "data": data})))
}

/// Unloads one. Answers that it has begun are written to their end.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
    Extension(record): Extension<Record>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    operator(&app, &headers, &record).await?;
    let Path(name) = name.map_err(|_| ApiError::no_path())?;
    let model = app.remove_adapter(&name)?;
    Ok(json_response(200, &json!({"id": model.served.names[0], "object": "adapter", "deleted": true})))
}

async fn operator(app: &App, headers: &HeaderMap, record: &Record) -> Result<(), ApiError> {
    match app.authenticate(headers, record).await?.admin {
        true => Ok(()),
        false => Err(ApiError::forbidden("Only keys made with `wels keys add NAME --admin` may change adapters.")),
    }
}

fn describe(model: &Model) -> Value {
    let adapter = model.served.adapter.as_ref().map(ServedAdapter::describe);
    json!({"id": model.served.names[0], "object": "adapter", "adapter": adapter})
}
