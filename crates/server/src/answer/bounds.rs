//! Whether checking arguments by a tool's schema ends soon. References let a schema of some lines lead to more parts
//! than could ever be looked at: where each of 60 levels asks for the next one twice, there are 2^60.

use serde_json::Value;

/// Values of a schema, each counted as often as references lead to it.
const VALUES_MAX: usize = 10_000;
/// How deep one may lie in another. Arguments are up to 128 deep, and a check of both goes down their product.
const DEPTH_MAX: usize = 64;

/// Whether what a schema leads to is bounded. References may go in circles.
pub(super) fn is_bounded(schema: &Value) -> bool {
    let in_draft_4 = schema["$schema"].as_str().is_some_and(|draft| draft.contains("draft-04"));
    is_plain(schema, true, in_draft_4) && Expansion { schema, trail: Vec::new(), left: VALUES_MAX }.ends(schema, 0)
}

/// Whether all references of a part can be followed here: nothing but the schema as a whole has a name or a dialect of
/// its own, from which they would count, and none depends on where it is looked at from.
fn is_plain(part: &Value, is_whole: bool, in_draft_4: bool) -> bool {
    match part {
        Value::Array(parts) => parts.iter().all(|part| is_plain(part, false, in_draft_4)),
        Value::Object(members) => members.iter().all(|(key, part)| match (key.as_str(), part) {
            ("$dynamicRef" | "$recursiveRef", Value::String(_)) => false,
            ("$id" | "$schema", Value::String(_)) => is_whole,
            ("id", Value::String(_)) => is_whole || !in_draft_4,
            (_, part) => is_plain(part, false, in_draft_4),
        }),
        _ => true,
    }
}

/// What is left to be counted.
struct Expansion<'s> {
    /// As the client sent it.
    schema: &'s Value,
    /// References that are being followed.
    trail: Vec<&'s str>,
    /// Values.
    left: usize,
}

impl<'s> Expansion<'s> {
    /// Whether a part, with all that it leads to, is within the bounds.
    fn ends(&mut self, part: &'s Value, depth: usize) -> bool {
        if self.left == 0 || depth == DEPTH_MAX {
            return false;
        }
        self.left -= 1;
        let is_whole = std::ptr::eq(part, self.schema);
        match part {
            Value::Array(parts) => parts.iter().all(|part| self.ends(part, depth + 1)),
            Value::Object(members) => members.iter().all(|(key, part)| match (key.as_str(), part) {
                ("$ref", Value::String(reference)) => self.follow(reference, depth + 1),
                // Looked at where they are referred to.
                ("$defs" | "definitions", _) if is_whole => true,
                (_, part) => self.ends(part, depth + 1),
            }),
            _ => true,
        }
    }

    fn follow(&mut self, reference: &'s str, depth: usize) -> bool {
        // A circle, which the check recognises: it remembers what it has found of a value.
        if self.trail.contains(&reference) {
            return true;
        }
        // Of a path that is written otherwise it is not known here where it leads.
        let (schema, path) = (self.schema, reference.strip_prefix('#').filter(|path| !path.contains('%')));
        let Some(target) = path.and_then(|path| schema.pointer(path)) else { return false };
        self.trail.push(reference);
        let ends = self.ends(target, depth);
        self.trail.pop();
        ends
    }
}
