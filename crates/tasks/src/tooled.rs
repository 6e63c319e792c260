//! Tasks with a tool: the environments whose turns are calls in the text that a model writes.

use crate::completion::{AnswerStyle, Format, Thinking};
use crate::draw::Draw;
use crate::environment::{Demonstration, DemonstrationOptions, Environment, Episode, Observation, Said, Step};
use crate::prompt::{Presentation, Style};
use crate::task::{Item, Prompt, Reason, Reward, Task, TaskError};

/// What a model writes around a call of the environment's tool.
pub const CALL: [&str; 2] = ["<tool>", "</tool>"];
/// What stands around the tool's answer.
pub const RESULT: [&str; 2] = ["<result>", "</result>"];

/// Most bytes of a tool's answer; longer ones lose their middle.
pub const RESULT_BYTES_MAX: usize = 4096;

/// Random numbers of demonstrations.
const STREAM_DEMONSTRATION: u64 = 0x6465_6d6f;

/// A tool that a model calls with a text and that answers with one.
pub trait Tool: Send + Sync {
    /// What it is for, for models that have not learnt it: a sentence, and an example of a call.
    fn about(&self) -> [&str; 2];

    /// For one episode.
    fn open<'a>(&'a self, item: &'a Item, seed: u64) -> Result<Box<dyn Open + 'a>, TaskError>;

    /// See [`Environment::is_slow`].
    fn is_slow(&self) -> bool {
        false
    }
}

/// A tool in use.
pub trait Open: Send {
    /// Its answer to a call. A call that makes no sense is answered so; an error is a tool that cannot work.
    fn call(&mut self, text: &str) -> Result<String, TaskError>;
}

/// What somebody who knows the way would call and answer.
pub trait Demonstrator: Send + Sync {
    /// The item, the calls and the answer of a demonstration.
    fn show(&self, index: u64, options: &DemonstrationOptions, draw: &mut Draw) -> Result<Shown, TaskError>;
}

/// See [`Demonstrator`].
pub struct Shown {
    pub item: Item,
    pub calls: Vec<String>,
    pub answer: String,
}

/// A task with a tool: the model calls it between [`CALL`], and reads what it says between [`RESULT`]. What it writes
/// besides calls is its answer, and is graded as the task grades.
pub struct Tooled {
    pub name: String,
    pub task: Box<dyn Task>,
    pub tool: Box<dyn Tool>,
    pub demonstrator: Option<Box<dyn Demonstrator>>,
}

/// How a question is put where a tool can be called: as without, but that thinking is free.
pub fn presentation(style: Style) -> Presentation {
    let presentation = Presentation::from(style);
    match style {
        Style::Terse => {
            Presentation { format: Format { thinking: Thinking::Free, answer: AnswerStyle::Whole }, ..presentation }
        }
        _ => presentation,
    }
}

impl Task for Tooled {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Option<u64> {
        self.task.len()
    }

    /// The task's, and unless it is put in the fewest words, what the tool is for.
    fn item(&self, index: u64) -> Result<Item, TaskError> {
        let mut item = self.task.item(index)?;
        let [what, example] = self.tool.about();
        let about = format!(
            "{what} To use it write {}…{}, as in {}{example}{}; what it says follows between {} and {}.",
            CALL[0], CALL[1], CALL[0], CALL[1], RESULT[0], RESULT[1]
        );
        match &mut item.prompt {
            Prompt::Messages(messages) => {
                let last = messages.last_mut().filter(|message| message.content.is_string());
                if let Some(message) = last {
                    let text = message.content.as_str().unwrap_or_default();
                    message.content = format!("{text}\n\n{about}").into();
                }
            }
            Prompt::Text(text) => {
                if let Some(question) = text.strip_suffix(" Assistant:") {
                    *text = format!("{question} {about} Assistant:");
                }
            }
        }
        Ok(item)
    }

    fn format(&self) -> Format {
        self.task.format()
    }

    fn check(&self, item: &Item, answer: &str) -> Result<Reason, TaskError> {
        self.task.check(item, answer)
    }

    fn environment(&self) -> Option<&dyn Environment> {
        Some(self)
    }
}

impl Environment for Tooled {
    fn stops(&self) -> Vec<String> {
        vec![CALL[1].to_owned()]
    }

    fn begin<'a>(&'a self, item: &'a Item, seed: u64) -> Result<Box<dyn Episode + 'a>, TaskError> {
        let open = self.tool.open(item, seed)?;
        Ok(Box::new(ToolEpisode { task: &*self.task, item, open, answer: String::new() }))
    }

    fn is_slow(&self) -> bool {
        self.tool.is_slow()
    }

    fn demonstration(&self, index: u64, options: &DemonstrationOptions) -> Result<Demonstration, TaskError> {
        let Some(demonstrator) = &self.demonstrator else {
            let reason = format!("nobody shows how {} is done", self.name);
            return Err(TaskError::Options { task: "demonstrations", reason });
        };
        let mut draw = Draw::new(options.seed, STREAM_DEMONSTRATION, index);
        let Shown { item, calls, answer } = demonstrator.show(index, options, &mut draw)?;
        let mut episode = self.begin(&item, options.seed)?;
        let mut turns = Vec::new();
        for call in calls {
            let turn = format!("{}{call}{}", CALL[0], CALL[1]);
            let Step::Observation(observation) = episode.step(&turn)? else { unreachable!("a call ends no episode") };
            turns.extend([Said::Model(turn), Said::Environment(observation)]);
        }
        let Step::Done(reward) = episode.step(&answer)? else { unreachable!("an answer ends the episode") };
        turns.push(Said::Model(answer));
        Ok(Demonstration { prompt: item.prompt.clone(), turns, correct: reward.grade.correct })
    }
}

/// An episode with a tool.
struct ToolEpisode<'a> {
    task: &'a dyn Task,
    item: &'a Item,
    open: Box<dyn Open + 'a>,
    /// What the model has written besides calls.
    answer: String,
}

impl Episode for ToolEpisode<'_> {
    fn step(&mut self, turn: &str) -> Result<Step, TaskError> {
        let Some(end) = turn.rfind(CALL[1]) else { return Ok(Step::Done(self.cut(turn)?)) };
        let said = match turn[..end].rfind(CALL[0]) {
            Some(begin) => {
                self.answer.push_str(&turn[..begin]);
                self.open.call(turn[begin + CALL[0].len()..end].trim())?
            }
            None => format!("error: {} closes nothing", CALL[1]),
        };
        let said = format!("{}{}{}", RESULT[0], shortened(&said, RESULT_BYTES_MAX), RESULT[1]);
        Ok(Step::Observation(Observation::Text(said)))
    }

    fn cut(&mut self, turn: &str) -> Result<Reward, TaskError> {
        self.answer.push_str(turn);
        self.task.reward(self.item, &self.answer)
    }
}

/// `text`, without its middle if it has more bytes than `most`.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let (begin, end) = (text.floor_char_boundary(most / 2), text.ceil_char_boundary(text.len() - most / 2));
    format!("{}\n… {} bytes are left out …\n{}", &text[..begin], end - begin, &text[end..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arithmetic::{Arithmetic, Kind};
    use crate::countdown::{Countdown, Options};
    use crate::task::Split;
    use crate::tools::calculator::{Calculator, Chains, Tries};
    use crate::tools::facts::Facts;
    use crate::tools::files::{Folder, Largest};
    use crate::tools::search::Search;

    fn sums(style: Style) -> Tooled {
        let kind = Kind::Chain { terms: 2..=3, digits: 2..=3, operations: vec!['+', '-', '*'] };
        let task = || Arithmetic::new(kind.clone(), presentation(style), Split::Train, 0.1, 0).unwrap();
        let demonstrator = Some(Box::new(Chains(task())) as Box<dyn Demonstrator>);
        Tooled { name: "calculator".to_owned(), task: Box::new(task()), tool: Box::new(Calculator), demonstrator }
    }

    fn all() -> Vec<Tooled> {
        let terse = presentation(Style::Terse);
        let countdown = || Countdown::new(Options::default(), terse, Split::Train).unwrap();
        let facts = || Facts::new(terse, Split::Train, 0);
        let largest = || Largest::new(terse, Split::Train, 0);
        let tooled = |name: &str, task: Box<dyn Task>, tool: Box<dyn Tool>, demonstrator: Box<dyn Demonstrator>| {
            Tooled { name: name.to_owned(), task, tool, demonstrator: Some(demonstrator) }
        };
        vec![
            sums(Style::Terse),
            tooled("countdown", Box::new(countdown()), Box::new(Calculator), Box::new(Tries(countdown()))),
            tooled("search", Box::new(facts()), Box::new(Search { documents: 1 }), Box::new(facts())),
            tooled("files", Box::new(largest()), Box::new(Folder), Box::new(largest())),
        ]
    }

    fn options(slips: f64, direct: f64, quit: f64) -> DemonstrationOptions {
        DemonstrationOptions { slips, direct, quit: vec![quit], seed: 3 }
    }

    #[test]
    fn faultless_demonstrations_are_right_and_faulty_ones_often_wrong() {
        let share = |environment: &Tooled, options: &DemonstrationOptions| {
            let shown = (0..200).map(|index| environment.demonstration(index, options).unwrap());
            shown.filter(|shown| shown.correct).count() as f64 / 200.0
        };
        for environment in all() {
            // A puzzle may take more tries than are shown.
            let least = if environment.name == "countdown" { 0.15 } else { 1.0 };
            let right = share(&environment, &options(0.0, 0.0, 0.0));
            assert!(right >= least, "{}: {right}", environment.name);
            for worse in [options(0.9, 0.0, 0.0), options(0.0, 0.9, 0.0), options(0.0, 0.0, 0.9)] {
                let wrong = share(&environment, &worse);
                assert!(wrong < right, "{}: {wrong} of {right} with {worse:?}", environment.name);
            }
        }
    }

    #[test]
    fn demonstrations_are_functions_of_their_number_and_say_what_the_tool_says() {
        for environment in all() {
            let options = options(0.2, 0.2, 0.3);
            for index in 0..20 {
                let shown = environment.demonstration(index, &options).unwrap();
                assert_eq!(shown, environment.demonstration(index, &options).unwrap());
                assert!(matches!(shown.turns.last(), Some(Said::Model(_))));
                assert!(shown.turns.chunks(2).all(|pair| !matches!(pair, [Said::Environment(_), ..])));
            }
        }
    }

    #[test]
    fn calls_are_answered_and_what_is_left_is_graded() {
        let environment = sums(Style::Terse);
        let item = environment.item(7).unwrap();
        let (crate::task::Reference::Number(value), Prompt::Text(prompt)) = (&item.reference, &item.prompt) else {
            panic!("{item:?}")
        };
        let expression = prompt.strip_suffix('=').unwrap();
        let said = |step: Step| match step {
            Step::Observation(Observation::Text(text)) => text,
            other => panic!("{other:?}"),
        };
        let mut episode = environment.begin(&item, 0).unwrap();
        assert_eq!(
            said(episode.step(&format!("<tool>{expression}</tool>")).unwrap()),
            format!("<result>{value}</result>")
        );
        assert_eq!(said(episode.step("<tool>7/2</tool>\n").unwrap()), "<result>7/2</result>");
        assert!(said(episode.step("<tool>7/0</tool>").unwrap()).contains("error: it divides by zero"));
        assert!(said(episode.step("12</tool>").unwrap()).contains("error: </tool> closes nothing"));
        let Step::Done(reward) = episode.step(&value.to_string()).unwrap() else { panic!("an answer ends it") };
        assert!(reward.grade.correct && reward.accuracy == 1.0 && reward.format == 1.0);
        // What it writes before a call is part of the answer; a result of its own making is not taken for one.
        for forged in [format!("it is {value}"), format!("<result>{value}</result>")] {
            let mut episode = environment.begin(&item, 0).unwrap();
            let Step::Done(reward) = episode.step(&forged).unwrap() else { panic!("an answer ends it") };
            assert!(!reward.grade.correct, "{forged}");
        }
        let mut cut = environment.begin(&item, 0).unwrap();
        assert!(!cut.cut("<tool>12*").unwrap().grade.correct);
    }

    #[test]
    fn whoever_does_not_know_the_tool_is_told() {
        let text = |style| match sums(style).item(0).unwrap().prompt {
            Prompt::Text(text) => text,
            Prompt::Messages(messages) => messages[0].content.as_str().unwrap().to_owned(),
        };
        let about = "You have a calculator. To use it write <tool>…</tool>, as in <tool>12*34</tool>; what it says \
                     follows between <result> and </result>.";
        assert!(text(Style::Chat).ends_with(about) && text(Style::Short).ends_with(about));
        assert!(text(Style::R1Zero).ends_with(&format!(". {about} Assistant:")), "{}", text(Style::R1Zero));
        assert!(!text(Style::Terse).contains("tool"));
    }

    #[test]
    fn long_answers_lose_their_middle() {
        let text = "é".repeat(3000);
        let short = shortened(&text, 100);
        assert!(short.starts_with("éé") && short.ends_with("éé") && short.contains("\n… 5900 bytes are left out …\n"));
        assert_eq!(shortened("as it is", 100), "as it is");
    }

    proptest! {
        /// Whatever a model writes, an episode ends or says something.
        #[test]
        fn no_turn_is_an_error(turns in prop::collection::vec("(<tool>|</tool>|<result>|[0-9*/()+ é]|list|read a){0,12}", 1..6)) {
            for environment in all() {
                let item = environment.item(1).unwrap();
                let mut episode = environment.begin(&item, 0).unwrap();
                for turn in &turns {
                    if let Step::Done(_) = episode.step(turn).unwrap() {
                        break;
                    }
                }
            }
        }
    }
}
