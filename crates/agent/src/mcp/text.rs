//! A call's result as text.

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};

use crate::tool::Outcome;

/// Texts as they are; of what a model that reads text cannot see, what and how much it is.
pub(super) fn outcome(result: CallToolResult) -> Outcome {
    let parts: Vec<String> = result.content.iter().map(part).collect();
    let structured = result.structured_content.filter(|_| parts.is_empty()).map(|value| value.to_string());
    let text = structured.unwrap_or_else(|| parts.join("\n"));
    let text = if text.is_empty() { "[the result is empty]".to_owned() } else { text };
    Outcome { text, worked: result.is_error != Some(true) }
}

fn part(block: &ContentBlock) -> String {
    let hidden = |what: &str, kind: &str, bytes: usize| format!("[{what}, {kind}, {bytes} bytes, not shown]");
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => hidden("an image", &image.mime_type, image.data.len() * 3 / 4),
        ContentBlock::Audio(audio) => hidden("a sound", &audio.mime_type, audio.data.len() * 3 / 4),
        ContentBlock::Resource(resource) => match &resource.resource {
            ResourceContents::TextResourceContents { text, .. } => text.clone(),
            ResourceContents::BlobResourceContents { uri, blob, .. } => hidden("a file", uri, blob.len() * 3 / 4),
            _ => "[a resource of an unknown kind]".to_owned(),
        },
        ContentBlock::ResourceLink(link) => format!("[a link to {}]", link.uri),
        _ => "[a part of an unknown kind]".to_owned(),
    }
}
