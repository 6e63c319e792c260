//! Constrained decoding: which tokens may come next in an answer of a given form.
//!
//! The `llguidance` crate follows the grammar over the bytes of the vocabulary; its own limits bound the work for a
//! grammar and for a token. Grammars are limited in size and nesting before it sees them, so that nothing can overflow
//! its stack. A stop token is allowed where the text may end.

use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory, panic_utils};
use serde_json::{Map, Value};
use wels_data::tokenizer::Tokenizer;
use wels_device::Tensor;

use crate::picture::{Seer, refused};
use crate::request::{Constraint, Request, RequestError};

/// The most bytes of a schema or grammar.
const BYTES_MAX: usize = 256 << 10;
/// The most properties of a schema's objects. Compiling takes a time that grows with their square: on a Zen 3, with
/// others at work, 0.5 s for 1,000, 1.8 s for 2,000, 6.8 s for 4,000.
const PROPERTIES_MAX: usize = 2000;
/// The deepest nesting of brackets in one.
const NESTING_MAX: usize = 100;

/// Makes requests ready for the engine. The work for a schema or a picture can take seconds, so it is apart from the
/// engine: a thread of its own may do it while the engine goes on.
#[derive(Clone)]
pub struct Preparer {
    tokenizer: Option<Arc<Tokenizer>>,
    vocab_size: usize,
    /// Made for the first constraint: a tree of the vocabulary.
    compiler: Arc<OnceLock<Result<Compiler, RequestError>>>,
    /// Of a model that sees.
    seer: Option<Arc<Seer>>,
}

/// A request whose constraint has been compiled, and whose pictures have been looked at.
pub struct Prepared {
    pub(crate) request: Request,
    pub(crate) guide: Option<Guide>,
    /// `[places, D]` of each picture.
    pub(crate) features: Vec<Tensor>,
}

impl Prepared {
    /// A request without constraint and pictures; `None` for one that takes work.
    pub fn plain(request: Request) -> Option<Prepared> {
        let plain = request.constraint.is_none() && request.pictures.is_empty();
        plain.then_some(Prepared { request, guide: None, features: Vec::new() })
    }

    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Another request with the same constraint and pictures, ready without the work done again; `None` if they differ.
    pub fn twin(&self, request: &Request) -> Option<Prepared> {
        let same = request.constraint == self.request.constraint && request.pictures == self.request.pictures;
        let Prepared { guide, features, .. } = self;
        same.then(|| Prepared { request: request.clone(), guide: guide.clone(), features: features.clone() })
    }
}

impl Preparer {
    pub(crate) fn new(tokenizer: Option<Arc<Tokenizer>>, vocab_size: usize, seer: Option<Arc<Seer>>) -> Preparer {
        Preparer { tokenizer, vocab_size, compiler: Arc::default(), seer }
    }

    /// Compiles the request's constraint, if it has one, and computes the features of its pictures.
    ///
    /// # Errors
    /// [`RequestError::Constraint`] for one that is wrong or too large; pictures that the model cannot see.
    pub fn prepare(&self, request: Request) -> Result<Prepared, RequestError> {
        let none = || refused("the model sees no pictures".into());
        let features = request.pictures.iter().map(|picture| self.seer.as_ref().ok_or_else(none)?.features(picture));
        let features = features.collect::<Result<Vec<Tensor>, _>>()?;
        let Some(constraint) = &request.constraint else { return Ok(Prepared { request, guide: None, features }) };
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| refusal("the model has no tokenizer"))?;
        let compiler = self.compiler.get_or_init(|| Compiler::new(tokenizer, self.vocab_size));
        let guide = compiler.as_ref().map_err(Clone::clone).and_then(|compiler| compiler.compile(constraint));
        match guide {
            Ok(guide) => Ok(Prepared { request, guide: Some(guide), features }),
            Err(_) if request.constraint_may_fail => Ok(Prepared { request, guide: None, features }),
            Err(refusal) => Err(refusal),
        }
    }
}

/// Makes guides for the constraints of requests.
struct Compiler {
    factory: ParserFactory,
    eos: u32,
}

/// Follows one answer.
pub(crate) struct Guide {
    matcher: Matcher,
    eos: u32,
    mask: Vec<u32>,
}

/// A copy shares nothing with what it is a copy of: the states of a lexer, of which there may be only so many, are made
/// on the way, and an answer must not depend on how many another one has made.
impl Clone for Guide {
    fn clone(&self) -> Guide {
        Guide { matcher: self.matcher.deep_clone(), eos: self.eos, mask: self.mask.clone() }
    }
}

/// A guide that cannot go on: the work for a token exceeded its limits, or a bug.
#[derive(Debug)]
pub(crate) struct Broken;

impl Compiler {
    /// For a model of `vocab_size` tokens. Builds a tree of the vocabulary.
    fn new(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Self, RequestError> {
        let eos = tokenizer.special().eos.ok_or_else(|| refusal("the tokenizer has no end token"))?;
        let word = |id: u32| {
            let bytes = tokenizer.token_bytes(id);
            match tokenizer.is_special(id) && !bytes.is_empty() {
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat(),
                false => bytes,
            }
        };
        let words: Vec<Vec<u8>> = (0..vocab_size as u32).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, eos), &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(refusal)?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Compiler { factory, eos })
    }

    /// A guide for a new answer.
    fn compile(&self, constraint: &Constraint) -> Result<Guide, RequestError> {
        let grammar = match constraint {
            Constraint::JsonObject => json_schema("{\"type\":\"object\"}")?,
            Constraint::JsonSchema(schema) => json_schema(checked(schema)?)?,
            Constraint::Regex(regex) => TopLevelGrammar::from_regex(checked(regex)?),
            Constraint::Lark(grammar) => {
                bounded(schemas_of(checked(grammar)?).iter().map(properties).sum())?;
                TopLevelGrammar::from_lark(grammar.clone())
            }
        };
        let parser = panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| self.factory.create_parser(grammar)));
        let mut matcher = Matcher::new(Ok(parser.map_err(refusal)?));
        // Some contradictions show only when the first token is asked for.
        matcher.compute_mask_or_eos().map_err(refusal)?;
        Ok(Guide { matcher, eos: self.eos, mask: Vec::new() })
    }
}

impl Guide {
    /// The tokens that may come next, `stop` among them where the text may end: token t is bit t mod 32 of word t/32.
    pub fn allowed(&mut self, stop: &[u32]) -> Result<&[u32], Broken> {
        let mask: SimpleVob = self.matcher.compute_mask_or_eos().map_err(|_| Broken)?;
        self.mask.clear();
        self.mask.extend_from_slice(mask.as_slice());
        if self.matcher.is_accepting().map_err(|_| Broken)? {
            let words = self.mask.len();
            let known = stop.iter().filter(|stop| (**stop as usize) < 32 * words);
            known.for_each(|stop| self.mask[*stop as usize / 32] |= 1 << (stop % 32));
        }
        Ok(&self.mask)
    }

    /// As [`Guide::allowed`], and one token more.
    pub fn allowed_or(&mut self, stop: &[u32], more: Option<u32>) -> Result<&[u32], Broken> {
        self.allowed(stop)?;
        if let Some(more) = more.filter(|more| (*more as usize) < 32 * self.mask.len()) {
            self.mask[more as usize / 32] |= 1 << (more % 32);
        }
        Ok(&self.mask)
    }

    /// Follows a token that was allowed and is no stop token. Whether the text is complete.
    pub fn push(&mut self, token: u32) -> Result<bool, Broken> {
        self.matcher.consume_token(token).map_err(|_| Broken)?;
        Ok(self.matcher.is_stopped())
    }

    /// The vocabulary's own end token, which ends the text also where the request does not name it.
    pub fn eos(&self) -> u32 {
        self.eos
    }
}

/// White space is kept short: a model could go on with it for ever.
fn json_schema(schema: &str) -> Result<TopLevelGrammar, RequestError> {
    let mut schema = serde_json::from_str(schema).map_err(|error| refusal(format!("not JSON: {error}")))?;
    bounded(properties(&schema))?;
    let options =
        JsonCompileOptions { whitespace_pattern: Some("[ \\n]{0,16}".into()), ..JsonCompileOptions::default() };
    options.apply_to(&mut schema);
    Ok(TopLevelGrammar::from_json_schema(schema))
}

fn bounded(properties: usize) -> Result<(), RequestError> {
    match properties > PROPERTIES_MAX {
        true => Err(refusal(format!("it has {properties} properties, more than {PROPERTIES_MAX}"))),
        false => Ok(()),
    }
}

/// Properties of all objects in a schema.
fn properties(schema: &Value) -> usize {
    match schema {
        Value::Array(items) => items.iter().map(properties).sum(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| {
                let own = if key.ends_with("roperties") { value.as_object().map_or(0, Map::len) } else { 0 };
                own + properties(value)
            })
            .sum(),
        _ => 0,
    }
}

/// The schemas that stand in a grammar, behind `%json`.
fn schemas_of(grammar: &str) -> Vec<Value> {
    let after = grammar.split("%json").skip(1);
    after.filter_map(|rest| serde_json::Deserializer::from_str(rest).into_iter().next()?.ok()).collect()
}

fn checked(text: &str) -> Result<&str, RequestError> {
    if text.len() > BYTES_MAX {
        return Err(refusal(format!("it has {} bytes, more than {BYTES_MAX}", text.len())));
    }
    let mut depth = 0usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_MAX {
            return Err(refusal(format!("its brackets nest deeper than {NESTING_MAX}")));
        }
    }
    Ok(text)
}

fn refusal(reason: impl ToString) -> RequestError {
    // The first line; what follows is the parser's state.
    let reason = reason.to_string();
    RequestError::Constraint { reason: reason.lines().next().unwrap_or_default().to_owned() }
}
