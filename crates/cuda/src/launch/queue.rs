//! Launches of small steps, which wait for each other and go to the card as one graph.
//!
//! Between two kernels of a stream a card waits some microseconds, between two of a graph less. A step of decoding
//! launches some hundred kernels that take little longer than that, and the next step launches the same. So between
//! [`Queue::begin`] and [`Queue::end`] launches wait for each other, [`SEGMENT`] at a time; a segment whose kernels
//! come for the second time becomes a graph, and from then on is one launch.
//!
//! **Nothing stale can run.** A step is never replayed: it is asked for launch by launch like any other. The grid and
//! the arguments of each launch are held against those that its node of the graph has, and set where they differ. All
//! else that a driver is asked for, as a copy or the end of a step, has the launches before it go first, and memory is
//! given back behind those that may use it. Where the driver refuses a graph, its launches go one by one, as all do
//! from then on.

use std::collections::HashMap;

use super::{Address, Arguments, Fault, Grid};
use crate::kernels::Kernel;

/// Launches of a graph: few enough for the card to begin long before a step is all queued, and so many that what lies
/// between two graphs counts for little. A guess.
const SEGMENT: usize = 48;
/// Fewer go one by one.
const LEAST: usize = 4;
/// Segments that are remembered; beyond, the one that has not come for the longest time is forgotten.
const REMEMBERED: usize = 512;

/// A launch that waits.
#[derive(Clone)]
pub(super) struct Waiting {
    pub kernel: &'static Kernel,
    pub grid: Grid,
    pub arguments: Arguments,
}

impl Waiting {
    /// Whether a node for `other`, which is of the same kernel, does for this.
    fn is_as(&self, other: &Waiting) -> bool {
        self.grid == other.grid && self.arguments.are_as(&other.arguments, &self.kernel.signature.parameters)
    }
}

/// What a queue asks of its driver, which calls it with the queue locked.
pub(super) trait Sink {
    /// Kernels that run one after the other.
    type Graph: Send;

    /// Queues one launch.
    fn start(&self, launch: &mut Waiting) -> Result<(), Fault>;

    /// A graph of these, in this order.
    fn build(&self, launches: &mut [Waiting]) -> Result<Self::Graph, Fault>;

    /// Changes grid and arguments of a node from the next run on.
    fn set(&self, graph: &mut Self::Graph, node: usize, launch: &mut Waiting) -> Result<(), Fault>;

    /// Queues all of a graph.
    fn run(&self, graph: &mut Self::Graph) -> Result<(), Fault>;

    /// Gives memory back behind all that is queued.
    fn release(&self, at: Address, bytes: usize);
}

/// What a queue has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Launches that went one by one.
    pub alone: u64,
    /// Launches that went as nodes of graphs.
    pub nodes: u64,
    /// Graphs that were made.
    pub built: u64,
    /// Nodes that were changed.
    pub set: u64,
}

/// Which segment of a step, and the places of its kernels in the program's memory. Layers have the same kernels, but
/// not the same weights.
type Key = (usize, Vec<usize>);

/// A segment that has come before.
struct Segment<G> {
    /// From the second time on: its graph, and what each node of it was last set to.
    graph: Option<(G, Vec<Waiting>)>,
    /// When it last came.
    came: u64,
}

/// Launches that wait, and graphs.
pub(super) struct Queue<G> {
    /// Whether launches ever wait.
    pub uses_graphs: bool,
    pub counts: Counts,
    /// How many have begun and not ended.
    begun: usize,
    /// Segments since the first of them has.
    segment: usize,
    waiting: Vec<Waiting>,
    /// Memory to be given back behind what waits.
    freed: Vec<(Address, usize)>,
    segments: HashMap<Key, Segment<G>>,
    now: u64,
}

impl<G> Queue<G> {
    pub fn new(uses_graphs: bool) -> Queue<G> {
        Queue {
            uses_graphs,
            counts: Counts::default(),
            begun: 0,
            segment: 0,
            waiting: Vec::new(),
            freed: Vec::new(),
            segments: HashMap::new(),
            now: 0,
        }
    }

    /// From here on launches may wait.
    pub fn begin(&mut self) {
        if self.begun == 0 {
            self.segment = 0;
        }
        self.begun += 1;
    }

    /// Ends what the last [`Queue::begin`] began.
    pub fn end(&mut self, sink: &impl Sink<Graph = G>) -> Result<(), Fault> {
        self.begun -= 1;
        self.flush(sink)
    }

    /// Launches, now or with others.
    pub fn launch(&mut self, sink: &impl Sink<Graph = G>, mut launch: Waiting) -> Result<(), Fault> {
        if self.begun == 0 || !self.uses_graphs {
            self.flush(sink)?;
            self.counts.alone += 1;
            return sink.start(&mut launch);
        }
        self.waiting.push(launch);
        if self.waiting.len() == SEGMENT { self.flush(sink) } else { Ok(()) }
    }

    /// Gives memory back, at once or behind the launches that wait.
    pub fn free(&mut self, sink: &impl Sink<Graph = G>, at: Address, bytes: usize) {
        match self.waiting.is_empty() {
            true => sink.release(at, bytes),
            false => self.freed.push((at, bytes)),
        }
    }

    /// Whether anything waits.
    #[cfg(feature = "emulator")]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Launches all that waits.
    pub fn flush(&mut self, sink: &impl Sink<Graph = G>) -> Result<(), Fault> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut launches = std::mem::take(&mut self.waiting);
        let sent = self.send(sink, &mut launches);
        launches.clear();
        self.waiting = launches;
        self.freed.drain(..).for_each(|(at, bytes)| sink.release(at, bytes));
        sent
    }

    fn send(&mut self, sink: &impl Sink<Graph = G>, launches: &mut [Waiting]) -> Result<(), Fault> {
        if launches.len() >= LEAST && self.uses_graphs {
            let key = (self.segment, launches.iter().map(|it| std::ptr::from_ref(it.kernel).addr()).collect());
            self.segment += 1;
            match self.send_as_graph(sink, key, launches) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(fault) => self.give_up(&fault),
            }
        }
        self.counts.alone += launches.len() as u64;
        launches.iter_mut().try_for_each(|launch| sink.start(launch))
    }

    /// Whether there is a graph, and so everything is launched.
    fn send_as_graph(
        &mut self,
        sink: &impl Sink<Graph = G>,
        key: Key,
        launches: &mut [Waiting],
    ) -> Result<bool, Fault> {
        self.now += 1;
        let Some(segment) = self.segments.get_mut(&key) else {
            self.remember(key);
            return Ok(false);
        };
        segment.came = self.now;
        let graph = match &mut segment.graph {
            Some((graph, set_to)) => {
                for (node, (launch, set_to)) in launches.iter_mut().zip(set_to).enumerate() {
                    if !launch.is_as(set_to) {
                        sink.set(graph, node, launch)?;
                        set_to.clone_from(launch);
                        self.counts.set += 1;
                    }
                }
                graph
            }
            none => {
                let built = sink.build(launches)?;
                self.counts.built += 1;
                &mut none.insert((built, launches.to_vec())).0
            }
        };
        sink.run(graph)?;
        self.counts.nodes += launches.len() as u64;
        Ok(true)
    }

    fn remember(&mut self, key: Key) {
        if self.segments.len() == REMEMBERED
            && let Some(oldest) = self.segments.iter().min_by_key(|(_, it)| it.came).map(|(key, _)| key.clone())
        {
            self.segments.remove(&oldest);
        }
        self.segments.insert(key, Segment { graph: None, came: self.now });
    }

    fn give_up(&mut self, fault: &Fault) {
        eprintln!("warning: kernels are launched one by one, as the driver takes no graph of them: {fault}");
        self.uses_graphs = false;
        self.segments.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::Cell;
    use super::*;
    use crate::kernels;

    #[derive(Clone, Debug, PartialEq)]
    enum Did {
        /// Kernel, blocks, and the last argument.
        Launch(String, u32, i64),
        Free(u64),
    }

    /// Does what a driver does, and refuses what it is told to.
    #[derive(Default)]
    struct Log {
        did: RefCell<Vec<Did>>,
        refuses: &'static str,
    }

    impl Log {
        fn allows(&self, call: &'static str) -> Result<(), Fault> {
            match call == self.refuses {
                true => Err(Fault::Call { call, reason: "as planned".to_string() }),
                false => Ok(()),
            }
        }
    }

    impl Sink for Log {
        type Graph = Vec<Waiting>;

        fn start(&self, launch: &mut Waiting) -> Result<(), Fault> {
            self.did.borrow_mut().push(of(launch));
            Ok(())
        }

        fn build(&self, launches: &mut [Waiting]) -> Result<Vec<Waiting>, Fault> {
            self.allows("build").map(|()| launches.to_vec())
        }

        fn set(&self, graph: &mut Vec<Waiting>, node: usize, launch: &mut Waiting) -> Result<(), Fault> {
            graph[node] = launch.clone();
            self.allows("set")
        }

        fn run(&self, graph: &mut Vec<Waiting>) -> Result<(), Fault> {
            self.allows("run")?;
            graph.iter_mut().try_for_each(|launch| self.start(launch))
        }

        fn release(&self, Address(at): Address, _bytes: usize) {
            self.did.borrow_mut().push(Did::Free(at));
        }
    }

    fn launch(kernel: &str, blocks: u32, last: i64) -> Waiting {
        let kernel = kernels::find(kernel).expect("a kernel");
        let cells = kernel.signature.parameters.iter().map(|_| Cell { long: last }).collect();
        Waiting {
            kernel,
            grid: Grid { blocks: [blocks, 1, 1], threads: [32, 1, 1], shared: 0 },
            arguments: Arguments { cells },
        }
    }

    fn of(Waiting { kernel, grid, arguments }: &Waiting) -> Did {
        // SAFETY: `launch` made all cells so.
        let last = unsafe { arguments.cells.last().expect("arguments").long };
        Did::Launch(kernel.signature.name.clone(), grid.blocks[0], last)
    }

    /// A step of `len` launches with a piece of memory given back after every tenth, on `log`; what it asked for.
    fn step(
        queue: &mut Queue<Vec<Waiting>>,
        log: &Log,
        len: usize,
        blocks: u32,
        argument: impl Fn(usize) -> i64,
    ) -> Vec<Did> {
        let mut asked = Vec::new();
        queue.begin();
        for at in 0..len {
            let next = launch(["add", "swiglu", "widen"][at * at % 3], blocks, argument(at));
            asked.push(of(&next));
            queue.launch(log, next).unwrap();
            if at % 10 == 9 {
                queue.free(log, Address(at as u64), 4);
                asked.push(Did::Free(at as u64));
            }
        }
        queue.end(log).unwrap();
        asked
    }

    fn launches(did: &[Did]) -> Vec<Did> {
        did.iter().filter(|it| matches!(it, Did::Launch(..))).cloned().collect()
    }

    /// Holds what a log has against what was asked for: launches in order, and memory given back behind those before.
    fn assert_done(log: &Log, asked: &[Did]) {
        let did = log.did.take();
        assert_eq!(launches(&did), launches(asked));
        let before = |in_all: &[Did], freed: &Did| launches(in_all.split(|it| it == freed).next().unwrap()).len();
        for freed in asked.iter().filter(|it| matches!(it, Did::Free(_))) {
            assert!(before(&did, freed) >= before(asked, freed), "{freed:?} before a launch that may use it");
        }
        assert_eq!(did.len(), asked.len());
    }

    #[test]
    fn what_runs_is_what_was_asked_for() {
        let (mut queue, log, len) = (Queue::new(true), Log::default(), 2 * SEGMENT + 10);
        let counts = |alone, nodes, built, set| Counts { alone, nodes, built, set };
        let all = len as u64;
        for (blocks, changed, then) in [
            (1, 0, counts(all, 0, 0, 0)),
            (1, 0, counts(all, all, 3, 0)),
            (1, 0, counts(all, 2 * all, 3, 0)),
            // An argument in each of two segments, then the same again, then back.
            (1, 1, counts(all, 3 * all, 3, 2)),
            (1, 1, counts(all, 4 * all, 3, 2)),
            (1, 0, counts(all, 5 * all, 3, 4)),
            // All grids.
            (2, 0, counts(all, 6 * all, 3, 4 + all)),
        ] {
            let argument = |at| at as i64 + if at == 3 || at == SEGMENT + 5 { changed } else { 0 };
            let asked = step(&mut queue, &log, len, blocks, argument);
            assert_done(&log, &asked);
            assert_eq!(queue.counts, then);
        }
        // Another number of launches is another last segment.
        let asked = step(&mut queue, &log, len - 1, 2, |at| at as i64);
        assert_done(&log, &asked);
        assert_eq!(queue.counts.alone, all + 9);
    }

    #[test]
    fn what_is_asked_for_between_goes_between() {
        let (mut queue, log) = (Queue::new(true), Log::default());
        for _ in 0..3 {
            queue.begin();
            (0..5).for_each(|at| queue.launch(&log, launch("add", 1, at)).unwrap());
            assert_eq!(log.did.borrow().len(), 0);
            queue.flush(&log).unwrap();
            assert_eq!(log.did.take().len(), 5);
            queue.free(&log, Address(1), 4);
            assert_eq!(log.did.take(), [Did::Free(1)]);
            queue.end(&log).unwrap();
            queue.launch(&log, launch("add", 1, 7)).unwrap();
            assert_eq!(log.did.take().len(), 1, "outside of steps nothing waits");
        }
        assert_eq!((queue.counts.alone, queue.counts.nodes), (5 + 3, 10));
    }

    #[test]
    fn a_driver_that_refuses_a_graph_gets_launches_one_by_one() {
        for refuses in ["build", "set", "run"] {
            let (mut queue, log) = (Queue::new(true), Log { refuses, ..Log::default() });
            for round in 0..5 {
                let asked = step(&mut queue, &log, SEGMENT + 20, 1, |at| at as i64 + round);
                assert_done(&log, &asked);
            }
            assert!(!queue.uses_graphs && queue.segments.is_empty(), "{refuses}");
        }
    }

    #[test]
    fn the_segment_that_has_not_come_for_the_longest_time_is_forgotten() {
        let (mut queue, log) = (Queue::new(true), Log::default());
        let often = |queue: &mut Queue<_>| drop(step(queue, &log, LEAST, 1, |at| at as i64));
        often(&mut queue);
        // As many segments of one step as are remembered, of which each step has one more.
        for len in 1..=REMEMBERED {
            often(&mut queue);
            queue.now += 1;
            queue.remember((len, Vec::new()));
            assert!(queue.segments.len() <= REMEMBERED);
        }
        let has = |len| queue.segments.contains_key(&(len, Vec::new()));
        assert!(!has(1) && has(2) && has(REMEMBERED));
        assert_eq!(queue.counts.built, 1);
    }
}
