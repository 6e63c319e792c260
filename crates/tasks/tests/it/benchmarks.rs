//! Files of benchmarks and of one's own tasks: what is read, and what is said of damaged ones.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use wels_tasks::benchmarks::{Benchmark, Question, continuations, read};
use wels_tasks::file::{self, Checker};
use wels_tasks::{Format, Listed, Presentation, Prompt, Reason, Reference, Style, Task, TaskError};

use crate::file as temporary;

fn questions(benchmark: Benchmark, name: &str, text: &str) -> Result<Vec<Question>, TaskError> {
    let (_folder, path) = temporary(name, text.as_bytes());
    read(benchmark, &path)
}

/// The message without the temporary folder.
fn message<T>(result: Result<T, TaskError>) -> String {
    let text = result.map(|_| ()).unwrap_err().to_string();
    text.rsplit_once("/x.").map_or(text.clone(), |(_, rest)| rest.to_owned())
}

fn prompt(benchmark: Benchmark, questions: &[Question], shots: usize) -> String {
    match benchmark.item(&questions[shots], &questions[..shots], Style::Terse).prompt {
        Prompt::Text(text) => text,
        Prompt::Messages(_) => panic!("terse prompts are text"),
    }
}

#[test]
fn mmlu_is_read_with_and_without_a_header() {
    let with = "question,choice0,choice1,choice2,choice3,answer\nWhat is it?,0,1,\"2, or so\",3,2\n";
    let without = "What is it?,0,1,\"2, or so\",3,C\n";
    for text in [with, without] {
        let questions = questions(Benchmark::Mmlu, "x.csv", text).unwrap();
        let choices = ["0", "1", "2, or so", "3"].map(str::to_owned).to_vec();
        assert_eq!(questions[0].reference, Reference::Choice { choices, correct: 2 });
        let expected = "The following are multiple choice questions (with answers).\n\n\
                        What is it?\nA. 0\nB. 1\nC. 2, or so\nD. 3\nAnswer:";
        assert_eq!(prompt(Benchmark::Mmlu, &questions, 0), expected);
    }
    assert_eq!(continuations(4), [" A", " B", " C", " D"]);
}

#[test]
fn gpqa_has_its_choices_in_a_fixed_order() {
    let header = "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n";
    let rows: String = (0..40).map(|row| format!("r{row},Why?,yes,no,maybe,never\n")).collect();
    let first = questions(Benchmark::Gpqa, "x.csv", &format!("{header}{rows}")).unwrap();
    let mut places = [0; 4];
    for question in &first {
        let Reference::Choice { choices, correct } = &question.reference else { panic!() };
        assert_eq!(choices[*correct], "yes");
        places[*correct] += 1;
    }
    assert!(places.iter().all(|count| *count > 2), "{places:?}");
    let alone = questions(Benchmark::Gpqa, "x.csv", &format!("{header}r7,Why?,yes,no,maybe,never\n")).unwrap();
    assert_eq!(alone[0], first[7]);
}

#[test]
fn gsm8k_math_and_aime_are_read() {
    let text = "{\"question\": \"6*7?\", \"answer\": \"6*7=<<6*7=42>>42\\n#### 1,042\"}\n{\"question\": \"b\", \"answer\": \"#### 2\"}\n";
    let gsm = questions(Benchmark::Gsm8k, "x.jsonl", text).unwrap();
    assert_eq!(gsm[0].reference, Reference::Number(wels_tasks::number::parse("1042").unwrap()));
    let expected = "Question: 6*7?\nAnswer: 6*7=42\n#### 1,042\n\nQuestion: b\nAnswer:";
    assert_eq!(prompt(Benchmark::Gsm8k, &gsm, 1), expected);
    let math =
        questions(Benchmark::Math, "x.jsonl", "{\"problem\": \"p\", \"solution\": \"so $\\\\boxed{\\\\frac12}$.\"}\n")
            .unwrap();
    assert_eq!(math[0].reference, Reference::Maths("\\frac12".to_owned()));
    let aime =
        questions(Benchmark::Aime, "x.jsonl", "{\"id\": 60, \"problem\": \"p\", \"answer\": \"073\"}\n").unwrap();
    assert_eq!(
        (aime[0].id.as_str(), &aime[0].reference),
        ("60", &Reference::Number(wels_tasks::number::parse("73").unwrap()))
    );
}

#[test]
fn code_is_read_also_compressed() {
    let line = "{\"task_id\": \"T/0\", \"prompt\": \"def f(x):\\n\", \"entry_point\": \"f\", \"test\": \"def check(c): pass\"}\n";
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(line.as_bytes()).unwrap();
    let (_folder, path) = temporary("x.jsonl.gz", &gzip.finish().unwrap());
    let questions = read(Benchmark::HumanEval, &path).unwrap();
    assert_eq!(questions[0].id, "T/0");
    let mbpp = "{\"task_id\": 1, \"text\": \"Do it.\", \"code\": \"def g(x):\\n  return x\", \"test_list\": [\"assert g(1) == 1\"]}\n";
    let mbpp = self::questions(Benchmark::Mbpp, "x.jsonl", mbpp).unwrap();
    let Reference::Code { entry, tests, .. } = &mbpp[0].reference else { panic!() };
    assert_eq!((entry.as_str(), tests.as_str()), ("g", "\nassert g(1) == 1"));
    let helper = "{\"text\": \"Do it.\", \"code\": \"def h(x):\\n  return x\\ndef max_of(x):\\n  return h(x)\\ndef of(x):\\n  return x\", \
                  \"test_list\": [\"assert max_of(1) == 1\"]}\n";
    let helper = self::questions(Benchmark::Mbpp, "x.jsonl", helper).unwrap();
    assert!(matches!(&helper[0].reference, Reference::Code { entry, .. } if entry == "max_of"));
}

#[test]
fn code_is_read_out_of_fences_within_tags() {
    for benchmark in [Benchmark::HumanEval, Benchmark::Mbpp] {
        let format = benchmark.format(Style::R1Zero);
        let fenced = "<think>so</think>\n<answer>```python\ndef f(x):\n    return x\n```</answer>";
        let parsed = format.parse(fenced);
        assert_eq!((parsed.answer, parsed.fault), (Ok("def f(x):\n    return x"), None));
        let body = "<think>so</think>\n<answer>\n    y = x\n    return y\n</answer>";
        assert_eq!(format.parse(body).answer, Ok("    y = x\n    return y"));
    }
    assert_eq!(Benchmark::Gsm8k.format(Style::R1Zero), Format::TAGS);
    assert_eq!(Benchmark::Mmlu.format(Style::R1Zero), Format::TAGS);
}

#[test]
fn damaged_files_are_named() {
    let mmlu = "question,choice0,choice1,choice2,answer\na,b,c,d,0\n";
    assert!(message(questions(Benchmark::Mmlu, "x.csv", mmlu)).contains("there is no `choice3` or `D`"));
    let short = "question,choice0,choice1,choice2,choice3,answer\na,b,c,d\n";
    assert_eq!(
        message(questions(Benchmark::Mmlu, "x.csv", short)),
        "csv, line 2, column 0: the row has 4 cells and not 6"
    );
    let letter = "question,choice0,choice1,choice2,choice3,answer\na,b,c,d,e,E\n";
    assert!(message(questions(Benchmark::Mmlu, "x.csv", letter)).contains("`answer` is `E`"));
    let (_folder, path) = temporary("x.csv", b"question,choice0,choice1,choice2,choice3,answer\na,b,\xff,d,e,1\n");
    assert!(message(read(Benchmark::Mmlu, &path)).contains("cell 3 is not UTF-8"));
    let jsonl = "{\"problem\": \"a\", \"answer\": \"1\"}\n{\"problem\": }\n";
    assert_eq!(message(questions(Benchmark::Math, "x.jsonl", jsonl)), "jsonl, line 2, column 13: expected value");
    let twice = "{\"unique_id\": \"u\", \"problem\": \"a\", \"answer\": \"1\"}\n".repeat(2);
    assert_eq!(
        message(questions(Benchmark::Math, "x.jsonl", &twice)),
        "jsonl, line 2, column 0: the id `u` was there before"
    );
    let (_folder, path) = temporary("x.jsonl", b"{\"problem\": \"\xff\"}\n");
    assert_eq!(message(read(Benchmark::Math, &path)), "jsonl, line 1, column 14: the text is not UTF-8");
    let hashes = message(questions(Benchmark::Gsm8k, "x.jsonl", "{\"question\": \"a\", \"answer\": \"42\"}\n"));
    assert_eq!(hashes, "jsonl, line 1, column 0: `answer` has no `####`");
    assert!(read(Benchmark::Math, std::path::Path::new("nowhere.jsonl")).is_err());
}

#[test]
fn ones_own_file_is_a_task() {
    let lines = "{\"question\": \"2+2?\", \"answer\": \"4\"}\nnot json\n{\"question\": \"x\"}\n{\"question\": \"1/2?\", \"answer\": \"\\\\frac12\"}\n";
    let (_folder, path) = temporary("x.jsonl", lines.as_bytes());
    let presentation: Presentation = Style::R1Zero.into();
    assert_eq!(
        message(file::read(&path, Checker::Maths, &presentation, false)),
        "jsonl, line 2, column 2: expected ident"
    );
    let (items, skipped) = file::read(&path, Checker::Maths, &presentation, true).unwrap();
    assert_eq!((items.len(), skipped), (2, 2));
    let task = Listed { name: "own".to_owned(), items, format: presentation.format, language: None, jail: None };
    let item = task.item(1).unwrap();
    let reward = task.reward(&item, "<think>half</think><answer>0.5</answer>").unwrap();
    assert_eq!((reward.accuracy, reward.format), (1.0, 1.0));
    assert!(matches!(task.grade(&item, "<think>half</think><answer>2</answer>").unwrap().reason, Reason::Wrong(_)));
    assert!(matches!(task.item(2), Err(TaskError::NoItem { .. })));
}
