//! Bounds on what a template may do: memory, time, stack.
//!
//! minijinja counts the instructions that it runs, but one instruction can double a string, pad a line with 10^10
//! spaces, or compare two values of which each holds the one before twice. So a compiled template is rewritten: before
//! each instruction whose cost depends on its operands stands a call that charges for it, and what would be computed
//! only when it is looked at is computed at once, and charged for. Nothing else changes.
//!
//! A template comes from one file, so the instructions of inheritance are left as they are: there is nothing to inherit
//! from.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind};

use super::charges;

/// Bytes of a template. The longest known has about 30,000.
pub(super) const SOURCE_BYTES_MAX: usize = 256 << 10;

/// What one rendering may spend: about the bytes of all values that it makes, and of those that it looks through.
pub(super) const WORK_MAX: u64 = 256 << 20;

/// Lists, maps and calls of one rendering. Each can be one level of a value that the rest of the program walks down
/// recursively, if only to free it.
pub(super) const NESTS_MAX: u64 = 200_000;

/// So many levels fit any thread's stack; where they do not suffice, the rendering is done again on one with
/// [`STACK_BYTES`].
pub(super) const NESTS_ANYWHERE: u64 = 1_500;

/// For the deepest value, and for the deepest expression of a template. It is taken from the system as it is used.
pub(super) const STACK_BYTES: usize = 512 << 20;

thread_local! {
    static WORK_LEFT: Cell<u64> = const { Cell::new(0) };
    static NESTS_LEFT: Cell<u64> = const { Cell::new(0) };
}

/// Gives the rendering that begins on this thread what it may spend.
pub(super) fn begin(nests: u64) {
    WORK_LEFT.set(WORK_MAX);
    NESTS_LEFT.set(nests);
}

/// Whether the rendering on this thread ended because of its nests.
pub(super) fn is_out_of_nests() -> bool {
    NESTS_LEFT.get() == 0
}

pub(super) fn charge(work: u64) -> Result<(), Error> {
    spend(&WORK_LEFT, work)
}

fn nest() -> Result<(), Error> {
    spend(&NESTS_LEFT, 1)
}

fn spend(left: &'static std::thread::LocalKey<Cell<u64>>, amount: u64) -> Result<(), Error> {
    let rest = left.get().checked_sub(amount);
    left.set(rest.unwrap_or(0));
    rest.map(|_| ()).ok_or_else(|| Error::from(ErrorKind::OutOfFuel))
}

/// A template that has been compiled and rewritten.
pub(super) struct Bounded {
    instructions: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
}

impl Bounded {
    /// Compiles `source` and adds to `environment` the functions that its instructions call.
    pub fn compile(
        source: &str,
        syntax: SyntaxConfig,
        environment: &mut Environment<'static>,
    ) -> Result<Bounded, Error> {
        let source = keep(source);
        let ast = parse(source, super::NAME, syntax)?;
        let mut generator = CodeGenerator::new(super::NAME, source);
        generator.compile_stmt(&ast);
        let (instructions, blocks) = generator.finish();
        let mut names = BTreeSet::new();
        let instructions = rewrite(&instructions, source, &mut names);
        let blocks = blocks.iter().map(|(name, block)| (*name, rewrite(block, source, &mut names))).collect();
        names.into_iter().for_each(|name| add_function(environment, name));
        Ok(Bounded { instructions, blocks })
    }

    /// Renders into a string.
    pub fn render(&self, environment: &Environment<'static>, root: Value) -> Result<String, Error> {
        let mut text = String::new();
        let mut output = minijinja::machinery::make_string_output(&mut text);
        let escape = minijinja::AutoEscape::None;
        minijinja::machinery::eval(environment, &self.instructions, root, &self.blocks, &mut output, escape)
            .map(|_| ())?;
        drop(output);
        Ok(text)
    }
}

/// minijinja's instructions borrow from the source. It is kept for good, once for each text: a program has few.
fn keep(source: &str) -> &'static str {
    static KEPT: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = kept.get_or_insert_default();
    if let Some(known) = kept.get(source) {
        return known;
    }
    let known: &'static str = Box::leak(source.to_owned().into_boxed_str());
    kept.insert(known);
    known
}

/// What stands in front of the names of functions that charge: no template can spell it.
const MARK: char = '\0';
/// Makes a list of what would be computed later.
const NOW: &str = "\0now";
/// Counts a list or map that is built.
const NEST: &str = "\0nest";

/// The instructions with charges, and the names of the functions that charge.
fn rewrite(
    old: &Instructions<'static>,
    source: &'static str,
    names: &mut BTreeSet<&'static str>,
) -> Instructions<'static> {
    let mut groups: Vec<Vec<Instruction<'static>>> = Vec::new();
    while let Some(instruction) = old.get(groups.len() as u32) {
        groups.push(expand(instruction, names));
    }
    // Where each instruction has come to, and the end.
    let mut places = vec![0];
    places.extend(groups.iter().scan(0, |end, group| {
        *end += group.len() as u32;
        Some(*end)
    }));
    let mut new = Instructions::new(old.name(), source);
    for (at, group) in groups.into_iter().enumerate() {
        let line = old.get_line(at as u32).unwrap_or(0).min(usize::from(u16::MAX)) as u16;
        for mut instruction in group {
            match &mut instruction {
                Instruction::Iterate(target)
                | Instruction::Jump(target)
                | Instruction::JumpIfFalse(target)
                | Instruction::JumpIfFalseOrPop(target)
                | Instruction::JumpIfTrueOrPop(target)
                | Instruction::BuildMacro(_, target, _) => *target = places[*target as usize],
                _ => {}
            }
            new.add_with_line(instruction, line);
        }
    }
    new
}

/// An instruction with what comes before and after it.
fn expand(instruction: &Instruction<'static>, names: &mut BTreeSet<&'static str>) -> Vec<Instruction<'static>> {
    use Instruction as I;
    let own = instruction.clone();
    let mut name = |kind: char, name: &str| {
        let name = keep(&format!("{MARK}{kind}{name}"));
        names.insert(name);
        name
    };
    // Charges for operands on the stack and leaves them there.
    let charged = |function: &'static str, count: Option<u16>| {
        let mut group = vec![I::CallFunction(function, count), I::UnpackLists(1)];
        // The number of operands lies on top now; only calls of a variable number want it.
        group.extend(count.is_some().then_some(I::DiscardTop));
        group
    };
    let now = [I::CallFunction(NOW, Some(1))];
    let operator = |function: &'static str, count: u16| charged(function, Some(count)).into_iter().chain([own.clone()]);
    match instruction {
        I::EmitRaw(text) => vec![I::LoadConst(Value::from(*text)), I::Emit],
        I::Add | I::Mul => operator(name('o', "add"), 2).chain(now).collect(),
        I::Slice => operator(name('o', "slice"), 4).chain(now).collect(),
        I::StringConcat => operator(name('o', "join"), 2).collect(),
        I::Eq | I::Ne | I::Lt | I::Lte | I::Gt | I::Gte => operator(name('o', "compare"), 2).collect(),
        // The operand that is kept is charged for again with the next comparison.
        I::CompareAndPreserve(_) => operator(name('o', "contain"), 2).collect(),
        I::In => operator(name('o', "contain"), 2).collect(),
        I::GetItem => operator(name('o', "item"), 2).chain(now).collect(),
        I::BuildMap(pairs) => {
            let count = u16::try_from(2 * pairs).unwrap_or(u16::MAX);
            let nest = [I::CallFunction(NEST, Some(0)), I::DiscardTop];
            nest.into_iter().chain(operator(name('o', "map"), count)).collect()
        }
        I::BuildList(_) | I::BuildTuple(_) | I::BuildKwargs(_) => {
            vec![I::CallFunction(NEST, Some(0)), I::DiscardTop, own]
        }
        I::UnpackLists(_) => vec![I::CallFunction(NOW, Some(1)), own],
        I::ApplyFilter(filter, count, _) => {
            let mut group = charged(name('f', filter), *count);
            group.push(own);
            group.extend(now);
            group
        }
        I::PerformTest(test, count, _) => {
            let mut group = charged(name('t', test), *count);
            group.push(own);
            group
        }
        I::CallMethod(method, count) => {
            let mut group = charged(name('m', method), *count);
            group.push(own);
            group.extend(now);
            group
        }
        I::CallFunction(..) | I::CallObject(_) => vec![own, now[0].clone()],
        _ => vec![own],
    }
}

fn add_function(environment: &mut Environment<'static>, name: &'static str) {
    let kind = name.chars().nth(1).unwrap_or_default();
    let of = &name[2..];
    environment.add_function(name, move |arguments: Rest<ValueOrKwargs>| -> Result<Value, Error> {
        let arguments: Vec<Value> = arguments.into_values();
        charge(32 * arguments.len() as u64 + 32)?;
        match kind {
            'o' => charges::operator(of, &arguments)?,
            't' => charges::test(of, &arguments)?,
            _ => charges::call(of, &arguments)?,
        }
        Ok(Value::from(arguments))
    });
}

/// The functions that every template's instructions may call.
pub(super) fn add_functions(environment: &mut Environment<'static>) {
    environment.add_function(NOW, |value: ValueOrKwargs| now(value.into_value()));
    environment.add_function(NEST, nest);
}

/// The value, with everything in it computed: what a list is made of may otherwise be a recipe that is followed each
/// time it is looked at.
fn now(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Iterable => {
            nest()?;
            let mut items = Vec::new();
            for item in value.try_iter()? {
                charge(64)?;
                items.push(now(item)?);
            }
            Ok(Value::from(items))
        }
        ValueKind::Seq | ValueKind::Map | ValueKind::Plain => nest().map(|()| value),
        ValueKind::String => {
            charge(value.as_str().map_or(0, str::len) as u64)?;
            Ok(value)
        }
        _ => Ok(value),
    }
}
