//! What a tool is, and the tools that a model is told of.

use serde_json::{Value, json};

/// Bytes of a result that the model is given; what is longer is cut in its middle.
const RESULT_BYTES_MAX: usize = 24 << 10;

/// Asked now and then by what takes time: whether the user wants it to end.
pub type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// What a model is told of a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// 1 to 64 letters, digits, `_` and `-`.
    pub name: String,
    pub description: String,
    /// The JSON schema of the arguments, an object.
    pub parameters: Value,
}

/// What a call may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It reads what the user has opened to the model, and need not be asked for.
    Reads,
    /// It writes, runs something, or is not ours.
    Acts,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For the model.
    pub text: String,
    /// Whether the call did what it was for.
    pub worked: bool,
}

impl Outcome {
    /// Of a call that worked.
    pub fn done(text: impl Into<String>) -> Outcome {
        Outcome { text: text.into(), worked: true }
    }

    /// Of one that did not: why.
    pub fn failed(text: impl Into<String>) -> Outcome {
        Outcome { text: text.into(), worked: false }
    }

    /// With what does not fit left out of its middle.
    pub(crate) fn fitted(self) -> Outcome {
        Outcome { text: shortened(&self.text, RESULT_BYTES_MAX), worked: self.worked }
    }
}

/// Something that a model can call.
pub trait Tool {
    fn definition(&self) -> Definition;

    fn effect(&self) -> Effect;

    /// What a call would do, in lines for people.
    fn preview(&self, arguments: &Value) -> String {
        listed(arguments)
    }

    /// Makes the call. What goes wrong is an outcome, too.
    fn call(&mut self, arguments: &Value, stop: Stop) -> Outcome;
}

/// The tools of a conversation, in the order in which they were added.
#[derive(Default)]
pub struct Toolbox {
    tools: Vec<(Definition, Box<dyn Tool>)>,
}

impl Toolbox {
    /// Adds tools of one origin. A name that is taken gets the origin's before it: `origin__name`.
    pub fn add(&mut self, origin: &str, tools: Vec<Box<dyn Tool>>) {
        for tool in tools {
            let definition = tool.definition();
            let mut name = fit_name(&definition.name);
            if self.position(&name).is_some() {
                name = fit_name(&format!("{origin}__{name}"));
            }
            let plain = name.clone();
            for number in 2.. {
                if self.position(&name).is_none() {
                    break;
                }
                name = format!("{}_{number}", &plain[..plain.len().min(NAME_MAX - 5)]);
            }
            self.tools.push((Definition { name, ..definition }, tool));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    pub fn definitions(&self) -> Vec<Definition> {
        self.tools.iter().map(|(definition, _)| definition.clone()).collect()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tools.iter().map(|(definition, _)| definition.name.as_str())
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.tools.iter().position(|(definition, _)| definition.name == name)
    }

    /// The tool with this name.
    pub fn find(&mut self, name: &str) -> Option<&mut dyn Tool> {
        let at = self.position(name)?;
        Some(&mut *self.tools[at].1)
    }
}

/// Bytes of a name.
const NAME_MAX: usize = 64;

/// A name that all chat templates and grammars take.
fn fit_name(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' };
    let name: String = name.chars().take(NAME_MAX).map(fits).collect();
    if name.is_empty() { "tool".to_owned() } else { name }
}

/// Arguments, one a line; texts of several lines below their name.
pub fn listed(arguments: &Value) -> String {
    let Value::Object(arguments) = arguments else { return arguments.to_string() };
    let line = |(name, value): (&String, &Value)| match value {
        Value::String(text) if text.contains('\n') => {
            let inner: Vec<String> = text.lines().map(|line| format!("  {line}")).collect();
            format!("{name}:\n{}", inner.join("\n"))
        }
        Value::String(text) => format!("{name}: {text}"),
        value => format!("{name}: {value}"),
    };
    arguments.iter().map(line).collect::<Vec<String>>().join("\n")
}

/// The schema of an object with these properties, all required but those named last.
pub(crate) fn object(properties: Value, optional: &[&str]) -> Value {
    let names = properties.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let required: Vec<&str> = names.filter(|name| !optional.contains(name)).collect();
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
}

/// A text of at most so many bytes and a note, with its middle left out.
pub(crate) fn shortened(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let head = &text[..text.floor_char_boundary(bytes_max * 2 / 3)];
    let tail = &text[text.ceil_char_boundary(text.len() - bytes_max / 3)..];
    let left_out = text.len() - head.len() - tail.len();
    format!("{head}\n[… {left_out} bytes left out …]\n{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(&'static str);

    impl Tool for Named {
        fn definition(&self) -> Definition {
            Definition { name: self.0.to_owned(), description: String::new(), parameters: object(json!({}), &[]) }
        }

        fn effect(&self) -> Effect {
            Effect::Acts
        }

        fn call(&mut self, _arguments: &Value, _stop: Stop) -> Outcome {
            Outcome::done(self.0)
        }
    }

    #[test]
    fn names_that_clash_get_their_origin_before_them() {
        let mut tools = Toolbox::default();
        tools.add("files", vec![Box::new(Named("read"))]);
        tools.add("web", vec![Box::new(Named("read")), Box::new(Named("a.b/c d"))]);
        tools.add("web", vec![Box::new(Named("read"))]);
        assert_eq!(tools.names().collect::<Vec<_>>(), ["read", "web__read", "a_b_c_d", "web__read_2"]);
        assert!(tools.find("web__read").is_some() && tools.find("web").is_none());
    }

    #[test]
    fn long_names_stay_apart() {
        let long: &'static str = Box::leak("x".repeat(90).into_boxed_str());
        let mut tools = Toolbox::default();
        (0..3).for_each(|_| tools.add("s", vec![Box::new(Named(long))]));
        let names: std::collections::HashSet<&str> = tools.names().collect();
        assert!(names.len() == 3 && names.iter().all(|name| name.len() <= NAME_MAX), "{names:?}");
    }

    #[test]
    fn what_is_too_long_loses_its_middle() {
        let text = "é".repeat(1000);
        let short = shortened(&text, 300);
        assert!(short.len() < 340 && short.starts_with("éé") && short.ends_with("éé"), "{short}");
        assert!(short.contains("bytes left out"));
        assert_eq!(shortened(&text, 2000), text);
    }

    #[test]
    fn arguments_are_shown_one_a_line() {
        let shown = listed(&json!({"path": "a.txt", "content": "x\ny\n", "n": 3}));
        assert_eq!(shown, "path: a.txt\ncontent:\n  x\n  y\nn: 3");
    }
}
