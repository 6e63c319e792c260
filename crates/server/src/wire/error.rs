//! Errors in OpenAI's shape.

use serde_json::{Value, json};

/// What a client is told when its request is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP's.
    pub status: u16,
    /// OpenAI's `type`.
    pub kind: &'static str,
    /// OpenAI's `code`.
    pub code: Option<&'static str>,
    /// The parameter that is wrong.
    pub param: Option<String>,
    /// For people.
    pub message: String,
    /// When it makes sense to try again, in seconds.
    pub retry_after_s: Option<u64>,
}

impl ApiError {
    fn new(status: u16, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> ApiError {
        ApiError { status, kind, code, param: None, message: message.into(), retry_after_s: None }
    }

    /// 400 about one parameter.
    pub fn param(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        let error = ApiError::new(400, "invalid_request_error", Some("invalid_value"), message);
        ApiError { param: Some(param.into()), ..error }
    }

    /// 400 about the request as a whole.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "invalid_request_error", None, message)
    }

    /// 400: prompt and answer do not fit the model's context.
    pub fn context_length(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "invalid_request_error", Some("context_length_exceeded"), message)
    }

    /// 401.
    pub fn unauthorized() -> ApiError {
        let message = "No valid API key: send one as `Authorization: Bearer KEY`.";
        ApiError::new(401, "authentication_error", Some("invalid_api_key"), message)
    }

    /// 402.
    pub fn insufficient_balance(message: impl Into<String>) -> ApiError {
        ApiError::new(402, "insufficient_quota", Some("insufficient_balance"), message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(403, "permission_error", Some("forbidden"), message)
    }

    /// 404 about a model.
    pub fn no_model(model: &str) -> ApiError {
        let error = ApiError::new(
            404,
            "invalid_request_error",
            Some("model_not_found"),
            format!("The model `{model}` does not exist here."),
        );
        ApiError { param: Some("model".to_owned()), ..error }
    }

    /// 404 about a path.
    pub fn no_path() -> ApiError {
        ApiError::new(404, "invalid_request_error", Some("unknown_url"), "There is nothing at this address.")
    }

    /// 405.
    pub fn method() -> ApiError {
        ApiError::new(405, "invalid_request_error", Some("method_not_allowed"), "Not with this method.")
    }

    /// 408: the body did not arrive.
    pub fn slow_body() -> ApiError {
        ApiError::new(408, "invalid_request_error", Some("request_timeout"), "The body did not arrive in time.")
    }

    /// 413.
    pub fn too_large(limit: usize) -> ApiError {
        let message = format!("The body is larger than {limit} bytes.");
        ApiError::new(413, "invalid_request_error", Some("request_too_large"), message)
    }

    /// 429 about a key's limits.
    pub fn rate_limit(message: impl Into<String>, retry_after_s: Option<u64>) -> ApiError {
        let error = ApiError::new(429, "rate_limit_error", Some("rate_limit_exceeded"), message);
        ApiError { retry_after_s, ..error }
    }

    /// 503: too much to do.
    pub fn overloaded(message: impl Into<String>, retry_after_s: u64) -> ApiError {
        let error = ApiError::new(503, "server_error", Some("overloaded"), message);
        ApiError { retry_after_s: Some(retry_after_s), ..error }
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(500, "server_error", None, message)
    }

    /// The body of the response, or of an event in a stream that has begun.
    pub fn to_json(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}
