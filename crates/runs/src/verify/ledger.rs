//! The lines of the ledger as they stand: names, times, stages. That they follow from one another was seen when they
//! were read.

use super::{Examination, is_within};
use crate::ledger::{RESUME, STAGE_DONE, STOPPED};
use crate::receipt::{CHECKPOINT, METRICS};

const EVENTS: [&str; 6] = ["start", RESUME, "plan", CHECKPOINT, STAGE_DONE, STOPPED];

impl Examination<'_> {
    /// Finds lines that no program writes. Names that lead out of the run are taken out, so that nothing opens them.
    pub(super) fn check_lines(&mut self) {
        let stages = self.stages();
        let mut before = 0;
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let line = index + 1;
            let mut wrong = |message: String| self.found.problem("ledger.jsonl", format!("line {line}: {message}"));
            if entry.time < before {
                wrong(format!("its time is {} seconds before that of the line before it", before - entry.time));
            }
            before = entry.time;
            if !EVENTS.contains(&&*entry.event) {
                wrong(format!("{:?} is no event", entry.event));
            }
            let of_stage = [CHECKPOINT, STAGE_DONE, STOPPED].contains(&&*entry.event);
            let known = stages.as_ref().is_none_or(|stages| stages.contains(&entry.stage));
            if of_stage && !known {
                wrong(format!("the recipe has no stage {:?}", entry.stage));
            }
            let leads_out = !is_within(&entry.stage) && of_stage;
            entry.files.retain(|name, _| {
                let metrics = entry.event == CHECKPOINT && name == METRICS;
                let within = !leads_out && (metrics || is_within(name));
                if !within {
                    wrong(format!("{name:?} of {:?} is no file within the run", entry.stage));
                }
                within
            });
        }
    }
}
