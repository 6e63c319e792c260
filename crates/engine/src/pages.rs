//! The page table of the KV cache, with its prefix cache: pages in use, prefixes kept for later requests, free pages.
//!
//! A page holds the keys and values of [`PAGE`] tokens. Full pages of computed tokens are *published*: they become
//! nodes of a prefix tree whose edges are the pages' tokens, so a path from the root is a text. A request walks down
//! from the root as far as its own text agrees, and shares those pages. Each adapter has a root of its own, for its
//! keys and values are others. Pages that nobody uses stay in the tree until their room is needed; then the leaf that
//! has not been used for the longest time goes first.
//!
//! **Invariants.** A page is free, or private to one sequence, or in the tree. A sequence uses whole paths: so of two
//! nodes on a path the upper one has at least as many users, and what has no users can be freed from the leaves up.

use std::collections::{BTreeSet, HashMap};

/// Tokens of a page.
pub(crate) const PAGE: usize = 16;

type Node = u32;

/// What is above a page in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Above {
    /// Where texts begin: 0, or an adapter's number.
    Root(u64),
    Node(Node),
}

impl Above {
    fn node(self) -> Option<Node> {
        match self {
            Above::Root(_) => None,
            Above::Node(node) => Some(node),
        }
    }
}

pub(crate) struct PageTable {
    free: Vec<u32>,
    count: usize,
    /// Pages up to the last that was ever in use.
    used: usize,
    nodes: Vec<Entry>,
    unused_nodes: Vec<Node>,
    /// By what is above and the page's tokens.
    children: HashMap<(Above, [u32; PAGE]), Node>,
    /// Leaves without users, by when they were last used.
    idle_leaves: BTreeSet<(u64, Node)>,
    /// Nodes without users.
    idle: usize,
    now: u64,
}

/// A node of the tree.
#[derive(Clone, Debug)]
struct Entry {
    page: u32,
    parent: Above,
    tokens: [u32; PAGE],
    children: usize,
    users: usize,
    used: u64,
}

/// The pages of a sequence, in order: first those of the tree, then private ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    pages: Vec<u32>,
    /// Nodes of the first pages.
    path: Vec<Node>,
}

impl Lease {
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// What the next page of the tree is below.
    fn end(&self, root: u64) -> Above {
        self.path.last().map_or(Above::Root(root), |node| Above::Node(*node))
    }

    /// Tokens for which there is room.
    pub fn room(&self) -> usize {
        self.pages.len() * PAGE
    }
}

impl PageTable {
    /// `count` free pages.
    pub fn new(count: usize) -> Self {
        PageTable {
            free: (0..count as u32).rev().collect(),
            count,
            used: 0,
            nodes: Vec::new(),
            unused_nodes: Vec::new(),
            children: HashMap::new(),
            idle_leaves: BTreeSet::new(),
            idle: 0,
            now: 0,
        }
    }

    /// All pages there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Pages up to the last that was ever in use; those behind it have never been touched.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Pages that hold nothing.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages that hold a prefix that nobody uses.
    pub fn idle(&self) -> usize {
        self.idle
    }

    /// Pages that can be had.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle
    }

    /// Leases the published pages with which `tokens` begin, as many as there are.
    pub fn find(&mut self, root: u64, tokens: &[u32]) -> Lease {
        let mut lease = Lease::default();
        for block in tokens.as_chunks::<PAGE>().0 {
            let Some(&node) = self.children.get(&(lease.end(root), *block)) else { break };
            self.use_node(node);
            lease.path.push(node);
            lease.pages.push(self.nodes[node as usize].page);
        }
        lease
    }

    /// Whether `tokens` begin with more published pages than `pages`.
    pub fn has_more_than(&self, root: u64, tokens: &[u32], pages: usize) -> bool {
        let mut parent = Above::Root(root);
        tokens.as_chunks::<PAGE>().0.iter().take(pages + 1).all(|block| {
            let node = self.children.get(&(parent, *block));
            parent = node.map_or(parent, |node| Above::Node(*node));
            node.is_some()
        }) && tokens.len() >= (pages + 1) * PAGE
    }

    /// Adds pages until there is room for `tokens`, at the expense of prefixes that nobody uses. `false` if there are
    /// not enough; what was added stays.
    pub fn grow(&mut self, lease: &mut Lease, tokens: usize) -> bool {
        while lease.room() < tokens {
            let Some(page) = self.free.pop().or_else(|| self.evict()) else { return false };
            self.used = self.used.max(page as usize + 1);
            lease.pages.push(page);
        }
        true
    }

    /// Publishes the pages of `lease` that the first `computed` of its `tokens` fill. Where another sequence has
    /// published the same text before, its page, which holds the same numbers, takes the place of the private one.
    pub fn publish(&mut self, lease: &mut Lease, root: u64, tokens: &[u32], computed: usize) {
        for (place, block) in tokens[..computed].as_chunks::<PAGE>().0.iter().enumerate().skip(lease.path.len()) {
            let parent = lease.end(root);
            let page = lease.pages[place];
            let node = match self.children.get(&(parent, *block)) {
                Some(&node) => {
                    self.free.push(page);
                    lease.pages[place] = self.nodes[node as usize].page;
                    node
                }
                None => self.insert(Entry { page, parent, tokens: *block, children: 0, users: 0, used: 0 }),
            };
            self.use_node(node);
            lease.path.push(node);
        }
    }

    /// Takes all pages back: published ones stay in the tree, private ones are free.
    pub fn release(&mut self, lease: Lease) {
        let Lease { pages, path } = lease;
        self.now += 1;
        for &node in path.iter().rev() {
            let entry = &mut self.nodes[node as usize];
            entry.users -= 1;
            entry.used = self.now;
            if entry.users == 0 {
                self.idle += 1;
                if entry.children == 0 {
                    self.idle_leaves.insert((entry.used, node));
                }
            }
        }
        self.free.extend_from_slice(&pages[path.len()..]);
    }

    /// Forgets every prefix.
    ///
    /// # Panics
    /// If one is in use.
    pub fn clear(&mut self) {
        while self.evict().map(|page| self.free.push(page)).is_some() {}
        assert!(self.children.is_empty(), "{} pages of the tree are in use", self.children.len());
    }

    fn insert(&mut self, entry: Entry) -> Node {
        if let Some(parent) = entry.parent.node() {
            self.nodes[parent as usize].children += 1;
        }
        let key = (entry.parent, entry.tokens);
        let node = match self.unused_nodes.pop() {
            Some(node) => {
                self.nodes[node as usize] = entry;
                node
            }
            None => {
                self.nodes.push(entry);
                (self.nodes.len() - 1) as Node
            }
        };
        self.children.insert(key, node);
        self.idle += 1;
        self.idle_leaves.insert((0, node));
        node
    }

    fn use_node(&mut self, node: Node) {
        let entry = &mut self.nodes[node as usize];
        if entry.users == 0 {
            self.idle -= 1;
            self.idle_leaves.remove(&(entry.used, node));
        }
        entry.users += 1;
    }

    /// Frees the leaf that nobody has used for the longest time; its page.
    fn evict(&mut self) -> Option<u32> {
        let (_, node) = self.idle_leaves.pop_first()?;
        let Entry { page, parent, tokens, .. } = self.nodes[node as usize].clone();
        self.children.remove(&(parent, tokens));
        self.unused_nodes.push(node);
        self.idle -= 1;
        if let Some(parent) = parent.node() {
            let above = &mut self.nodes[parent as usize];
            above.children -= 1;
            if above.children == 0 && above.users == 0 {
                self.idle_leaves.insert((above.used, parent));
            }
        }
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A text of `pages` pages, the first `shared` of them the same for all `own`.
    fn text(own: u32, shared: usize, pages: usize) -> Vec<u32> {
        (0..pages * PAGE).map(|i| if i < shared * PAGE { i as u32 } else { 1000 * (own + 1) + i as u32 }).collect()
    }

    fn publish_and_release(table: &mut PageTable, text: &[u32]) {
        let mut lease = table.find(0, text);
        assert!(table.grow(&mut lease, text.len()));
        table.publish(&mut lease, 0, text, text.len());
        table.release(lease);
    }

    #[test]
    fn what_one_leaves_the_next_one_finds() {
        let mut table = PageTable::new(8);
        publish_and_release(&mut table, &text(0, 2, 4));
        assert_eq!((table.free(), table.idle()), (4, 4));
        let lease = table.find(0, &text(1, 2, 4));
        assert_eq!((lease.pages().len(), table.idle()), (2, 2));
        assert!(table.has_more_than(0, &text(0, 2, 4), 3) && !table.has_more_than(0, &text(1, 2, 4), 2));
        table.release(lease);
        table.clear();
        assert_eq!((table.free(), table.idle()), (8, 0));
        assert_eq!(table.find(0, &text(0, 2, 4)), Lease::default());
    }

    #[test]
    fn the_leaf_unused_for_longest_goes_first() {
        let mut table = PageTable::new(4);
        publish_and_release(&mut table, &text(0, 0, 2));
        publish_and_release(&mut table, &text(1, 0, 2));
        let lease = table.find(0, &text(0, 0, 2));
        table.release(lease);
        let mut new = Lease::default();
        assert!(table.grow(&mut new, 1));
        let pages = |table: &mut PageTable, own| {
            let lease = table.find(0, &text(own, 0, 2));
            let pages = lease.pages().len();
            table.release(lease);
            pages
        };
        assert_eq!((pages(&mut table, 0), pages(&mut table, 1)), (2, 1));
    }

    #[test]
    fn two_that_compute_the_same_text_come_to_share_it() {
        let mut table = PageTable::new(4);
        let text = text(0, 0, 2);
        let (mut a, mut b) = (Lease::default(), Lease::default());
        assert!(table.grow(&mut a, 32) && table.grow(&mut b, 32));
        assert_eq!(table.available(), 0);
        table.publish(&mut a, 0, &text, 32);
        table.publish(&mut b, 0, &text, 32);
        assert_eq!((a.pages(), table.available()), (b.pages(), 2));
        table.release(a);
        assert_eq!((table.free(), table.idle()), (2, 0));
        table.release(b);
        assert_eq!((table.free(), table.idle()), (2, 2));
    }

    #[test]
    fn adapters_share_no_pages_with_each_other_or_with_none() {
        let (mut table, text) = (PageTable::new(8), text(0, 0, 2));
        for root in [0, 5] {
            let mut lease = table.find(root, &text);
            assert!(lease.pages().is_empty() && !table.has_more_than(root, &text, 0));
            assert!(table.grow(&mut lease, text.len()));
            table.publish(&mut lease, root, &text, text.len());
            table.release(lease);
        }
        let (of_none, of_adapter) = (table.find(0, &text), table.find(5, &text));
        assert_eq!((of_none.pages().len(), of_adapter.pages().len(), table.find(6, &text).pages().len()), (2, 2, 0));
        assert!(of_none.pages().iter().all(|page| !of_adapter.pages().contains(page)));
    }

    /// Every page is in exactly one place, and every count is what it counts.
    fn check(table: &PageTable, leases: &[(Lease, Vec<u32>)]) {
        let mut places = vec![0; table.count()];
        table.free.iter().for_each(|page| places[*page as usize] += 1);
        table.children.values().for_each(|node| places[table.nodes[*node as usize].page as usize] += 1);
        for (lease, _) in leases {
            lease.pages[lease.path.len()..].iter().for_each(|page| places[*page as usize] += 1);
        }
        assert!(places.iter().all(|count| *count == 1), "{places:?}");
        let mut idle = 0;
        for (&(parent, tokens), &node) in &table.children {
            let entry = &table.nodes[node as usize];
            assert_eq!((entry.parent, entry.tokens), (parent, tokens));
            assert_eq!(entry.users, leases.iter().filter(|(lease, _)| lease.path.contains(&node)).count());
            assert_eq!(entry.children, table.children.keys().filter(|key| key.0 == Above::Node(node)).count());
            let is_leaf = entry.users == 0 && entry.children == 0;
            assert_eq!(table.idle_leaves.contains(&(entry.used, node)), is_leaf);
            assert!(parent.node().is_none_or(|parent| table.nodes[parent as usize].users >= entry.users));
            idle += usize::from(entry.users == 0);
        }
        assert_eq!(table.idle, idle);
        for (lease, text) in leases {
            for (place, node) in lease.path.iter().enumerate() {
                let entry = &table.nodes[*node as usize];
                assert_eq!(entry.page, lease.pages[place]);
                assert_eq!(entry.tokens[..], text[place * PAGE..][..PAGE], "the path is the text");
            }
        }
    }

    proptest! {
        #[test]
        fn no_page_is_lost_or_in_two_places(
            count in 1usize..24,
            actions in prop::collection::vec((0u8..4, 0u32..3, 0usize..4, 1usize..6), 1..80),
        ) {
            let mut table = PageTable::new(count);
            let mut leases: Vec<(Lease, Vec<u32>)> = vec![];
            for (action, own, shared, pages) in actions {
                match action {
                    0 => {
                        let text = text(own, shared, pages);
                        leases.push((table.find(0, &text), text));
                    }
                    1 if !leases.is_empty() => {
                        let at = pages % leases.len();
                        let (lease, text) = &mut leases[at];
                        let (had, available) = (lease.pages.len(), table.available());
                        let grown = table.grow(lease, text.len());
                        prop_assert_eq!(grown, text.len() / PAGE - had <= available);
                    }
                    2 if !leases.is_empty() => {
                        let at = pages % leases.len();
                        let (lease, text) = &mut leases[at];
                        let computed = lease.room().saturating_sub(shared).min(text.len());
                        table.publish(lease, 0, text, computed);
                        prop_assert!(lease.path.len() >= computed / PAGE);
                    }
                    3 if !leases.is_empty() => {
                        let at = pages % leases.len();
                        table.release(leases.swap_remove(at).0);
                    }
                    _ => {}
                }
                check(&table, &leases);
            }
            leases.drain(..).for_each(|(lease, _)| table.release(lease));
            prop_assert_eq!(table.available(), count);
            table.clear();
            prop_assert_eq!(table.free(), count);
        }
    }
}
