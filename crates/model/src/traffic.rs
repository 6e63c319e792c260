//! What tokens send over the network when experts are spread over the devices of several nodes: counted for given
//! choices, and expected for even ones.
//!
//! Experts stand in order, as many on each device. A token goes once to each node that has one of its experts, to the
//! device there with the number that its own has in its node, and from there over the node's own links to every
//! device with one of its experts (DeepSeek-V3 report, §3.2.2). So what a token sends between nodes does not grow with
//! its experts but with the nodes that it visits, which node-limited routing bounds by `topk_group` (§2.1.2).

use crate::config::{MoeConfig, Router, SoftmaxMethod};

/// How the experts of a layer are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    pub experts: usize,
    /// Over which they are spread evenly, node by node.
    pub devices: usize,
    pub devices_per_node: usize,
}

/// Where one token goes, or what some tokens do together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Visits {
    /// Nodes with one of its experts.
    pub nodes: f64,
    /// Of these, nodes other than its own: copies sent between nodes.
    pub other_nodes: f64,
    /// Copies sent inside nodes, from where a token came in to its experts.
    pub inside: f64,
}

/// Bytes over the two kinds of links.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sent {
    pub between_nodes: f64,
    pub inside_nodes: f64,
}

impl Visits {
    /// What these copies are in bytes, of so many each.
    pub fn sent(&self, bytes: f64) -> Sent {
        Sent { between_nodes: self.other_nodes * bytes, inside_nodes: self.inside * bytes }
    }
}

impl Spread {
    /// How many nodes hold the experts.
    pub fn nodes(&self) -> usize {
        self.devices.div_ceil(self.devices_per_node)
    }

    /// Where a token of device `source` goes with these experts.
    ///
    /// # Panics
    /// If there is no such expert or device.
    pub fn visits(&self, source: usize, chosen: &[usize]) -> Visits {
        assert!(source < self.devices, "device {source} of {}", self.devices);
        let mut devices: Vec<usize> = chosen
            .iter()
            .map(|expert| {
                assert!(*expert < self.experts, "expert {expert} of {}", self.experts);
                expert * self.devices / self.experts
            })
            .collect();
        devices.sort_unstable();
        devices.dedup();
        let node = |device: usize| device / self.devices_per_node;
        let mut nodes: Vec<usize> = devices.iter().map(|device| node(*device)).collect();
        nodes.dedup();
        let entered = devices.iter().filter(|device| *device % self.devices_per_node == source % self.devices_per_node);
        Visits {
            nodes: nodes.len() as f64,
            other_nodes: nodes.iter().filter(|other| **other != node(source)).count() as f64,
            inside: (devices.len() - entered.count()) as f64,
        }
    }

    /// Where a token goes on average if every choice that the router allows is as likely as any other.
    pub fn expected(&self, moe: &MoeConfig) -> Visits {
        let nodes = self.nodes();
        let inside_node = self.devices_per_node.min(self.devices);
        let touched = |parts: usize| parts as f64 * (1.0 - untouched(moe, moe.experts / parts));
        let (visited, devices) = (touched(nodes), touched(self.devices));
        Visits {
            nodes: visited,
            other_nodes: visited * (1.0 - 1.0 / nodes as f64),
            inside: devices * (1.0 - 1.0 / inside_node as f64),
        }
    }
}

/// Groups of consecutive experts, and of how many of them a token may choose.
pub fn groups(moe: &MoeConfig) -> (usize, usize) {
    match moe.router {
        Router::Sigmoid { groups, top_groups, .. } => (groups, top_groups),
        Router::Softmax { method: SoftmaxMethod::GroupLimited { groups, top_groups }, .. } => (groups, top_groups),
        Router::Softmax { method: SoftmaxMethod::Greedy, .. } | Router::SqrtSoftplus { .. } => (1, 1),
    }
}

/// How likely it is that none of `set` consecutive experts, whole groups or a part of one, is chosen.
fn untouched(moe: &MoeConfig, set: usize) -> f64 {
    let (groups, allowed) = groups(moe);
    let group = moe.experts / groups;
    // Of experts that a token may choose, so many stand in the set.
    let none = |of: usize, in_set: usize| {
        (0..moe.top_k).map(|i| of.saturating_sub(in_set + i) as f64 / (of - i) as f64).product::<f64>()
    };
    if set <= group && group.is_multiple_of(set) {
        let chosen = allowed as f64 / groups as f64;
        return 1.0 - chosen + chosen * none(allowed * group, set);
    }
    if set.is_multiple_of(group) {
        let inside = set / group;
        let ways = |of: usize, take: usize| {
            (0..take).map(|i| (of as f64 - i as f64) / (i + 1) as f64).product::<f64>().max(0.0)
        };
        return (0..=inside.min(allowed))
            .map(|here| {
                let likely = ways(inside, here) * ways(groups - inside, allowed - here) / ways(groups, allowed);
                likely * none(allowed * group, here * group)
            })
            .sum();
    }
    // Sets across groups: as if there were none.
    none(moe.experts, set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;

    fn moe(name: &str) -> MoeConfig {
        presets::preset(name).unwrap().moe.unwrap()
    }

    const V3: Spread = Spread { experts: 256, devices: 64, devices_per_node: 8 };

    #[test]
    fn a_token_goes_once_to_a_node_and_on_inside_it() {
        // Device 3 of node 0; experts on devices 0 (twice), 3 and, in node 7, 56 and 59.
        let visits = V3.visits(3, &[0, 1, 12, 224, 236]);
        assert_eq!(visits, Visits { nodes: 2.0, other_nodes: 1.0, inside: 2.0 });
        // In node 7 it comes in at device 59 and stays there for one of them.
        assert_eq!(V3.visits(3, &[236]), Visits { nodes: 1.0, other_nodes: 1.0, inside: 0.0 });
        assert_eq!(V3.visits(60, &[240]), Visits { nodes: 1.0, other_nodes: 0.0, inside: 0.0 });
        let sent = visits.sent(7168.0);
        assert_eq!(sent, Sent { between_nodes: 7168.0, inside_nodes: 14336.0 });
    }

    /// Choices drawn as the router allows them, by a small generator of its own.
    fn drawn(moe: &MoeConfig, spread: Spread, tokens: usize) -> Visits {
        let mut state = 1u64;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        let mut take = |from: &mut Vec<usize>, count: usize| -> Vec<usize> {
            (0..count).map(|_| from.swap_remove(below(from.len()))).collect()
        };
        let (groups, allowed) = groups(moe);
        let group = moe.experts / groups;
        let mut sum = Visits::default();
        for token in 0..tokens {
            let chosen_groups = take(&mut (0..groups).collect(), allowed);
            let mut open = chosen_groups.iter().flat_map(|g| g * group..(g + 1) * group).collect();
            let visits = spread.visits(token % spread.devices, &take(&mut open, moe.top_k));
            assert!(groups < spread.nodes() || visits.nodes <= allowed as f64);
            sum.nodes += visits.nodes / tokens as f64;
            sum.other_nodes += visits.other_nodes / tokens as f64;
            sum.inside += visits.inside / tokens as f64;
        }
        sum
    }

    #[test]
    fn expected_visits_are_those_of_even_choices() {
        let v3 = V3.expected(&moe("deepseek-v3"));
        assert_eq!(format!("{:.4} {:.4}", v3.nodes, v3.other_nodes), "3.6290 3.1754");
        for (name, devices, per_node) in [
            ("deepseek-v3", 64, 8),
            ("deepseek-v3", 32, 8),
            ("deepseek-v3", 256, 8),
            ("deepseek-v3", 16, 4),
            ("deepseek-v3", 8, 8),
            ("deepseek-v3", 4, 1),
            ("deepseek-v2", 8, 8),
            ("deepseek-v2", 8, 1),
            ("deepseek-v2-lite", 16, 4),
        ] {
            let moe = moe(name);
            let spread = Spread { experts: moe.experts, devices, devices_per_node: per_node };
            let (counted, expected) = (drawn(&moe, spread, 64 * 500), spread.expected(&moe));
            for (a, b) in [
                (counted.nodes, expected.nodes),
                (counted.other_nodes, expected.other_nodes),
                (counted.inside, expected.inside),
            ] {
                assert!((a - b).abs() < 0.03, "{name} over {devices}: {counted:?}, expected {expected:?}");
            }
        }
    }
}
