//! Where replicas of experts stand so that devices are loaded evenly: DeepSeek's expert-parallel load balancer
//! (deepseek-ai/EPLB, MIT; DeepSeek-V3 report §3.4), written anew.
//!
//! Loads of a layer's experts in, a place for each replica out. Slots are numbered device by device, devices node by
//! node.
//!
//! * *Hierarchical*, where the nodes divide the groups of node-limited routing: whole groups are packed into nodes;
//!   in each node its experts are replicated and the replicas packed into its devices, so that what a token sends
//!   between nodes stays limited.
//! * *Global* otherwise: the same with one group and one node.
//!
//! Packing takes the heaviest first, each into the lightest bin that has room. Replication gives one more replica to
//! the expert whose replicas carry most, as often as there is room. Of equals the first is taken. Both are greedy: the
//! heaviest replica is never heavier than the heaviest expert was, but a device may by chance get more than it would
//! have had without replicas.

use thiserror::Error;

/// What replicas are placed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Slots for experts, as many on each device.
    pub replicas: usize,
    /// Groups of consecutive experts of which routing takes some (`n_group`); 1 for none.
    pub groups: usize,
    pub nodes: usize,
    /// Of all nodes together.
    pub devices: usize,
}

/// Where a layer's experts stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Which expert each slot holds.
    pub experts: Vec<usize>,
    /// The slots of each expert, at least one, in the order in which they were added.
    pub slots: Vec<Vec<usize>>,
}

/// Why replicas cannot be placed.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum EplbError {
    #[error("{replicas} replicas are fewer than the {experts} experts, of which each needs one")]
    TooFew { replicas: usize, experts: usize },
    #[error("{count} {what} are not divided evenly by {by} {by_what}")]
    Uneven { count: usize, what: &'static str, by: usize, by_what: &'static str },
    #[error("load {load} of expert {expert} is no number from 0")]
    Load { expert: usize, load: f64 },
}

fn divides(count: usize, what: &'static str, by: usize, by_what: &'static str) -> Result<(), EplbError> {
    match by > 0 && count.is_multiple_of(by) {
        true => Ok(()),
        false => Err(EplbError::Uneven { count, what, by, by_what }),
    }
}

/// Places the experts with these loads.
///
/// # Errors
/// [`EplbError`].
pub fn place(loads: &[f64], room: Room) -> Result<Placement, EplbError> {
    let Room { replicas, groups, nodes, devices } = room;
    if let Some((expert, load)) = loads.iter().enumerate().find(|(_, load)| !load.is_finite() || **load < 0.0) {
        return Err(EplbError::Load { expert, load: *load });
    }
    if replicas < loads.len() {
        return Err(EplbError::TooFew { replicas, experts: loads.len() });
    }
    divides(loads.len(), "experts", groups, "groups")?;
    divides(replicas, "replicas", devices, "devices")?;
    divides(devices, "devices", nodes, "nodes")?;
    // Without room for whole groups in each node there is nothing to limit.
    let (groups, nodes) = if groups.is_multiple_of(nodes) { (groups, nodes) } else { (1, 1) };
    Ok(in_nodes(loads, groups, nodes, devices / nodes, replicas / nodes))
}

fn in_nodes(loads: &[f64], groups: usize, nodes: usize, devices: usize, replicas: usize) -> Placement {
    let size = loads.len() / groups;
    let of_groups: Vec<f64> = loads.chunks(size).map(|group| group.iter().sum()).collect();
    let per_device = replicas / devices;
    let mut placement = Placement { experts: Vec::new(), slots: vec![Vec::new(); loads.len()] };
    for groups in pack(&of_groups, nodes) {
        let here: Vec<usize> = groups.iter().flat_map(|group| group * size..(group + 1) * size).collect();
        let of_here: Vec<f64> = here.iter().map(|expert| loads[*expert]).collect();
        let (which, counts) = replicate(&of_here, replicas);
        let of_replicas: Vec<f64> = which.iter().map(|i| of_here[*i] / counts[*i] as f64).collect();
        let first = placement.experts.len();
        let mut slot_of = vec![0; replicas];
        placement.experts.resize(first + replicas, 0);
        for (device, items) in pack(&of_replicas, devices).into_iter().enumerate() {
            for (rank, replica) in items.into_iter().enumerate() {
                slot_of[replica] = first + device * per_device + rank;
                placement.experts[slot_of[replica]] = here[which[replica]];
            }
        }
        for (replica, i) in which.iter().enumerate() {
            placement.slots[here[*i]].push(slot_of[replica]);
        }
    }
    placement
}

/// As many items in each of `bins` bins, by the order in which they came.
fn pack(loads: &[f64], bins: usize) -> Vec<Vec<usize>> {
    let room = loads.len() / bins;
    if room == 1 {
        return (0..bins).map(|item| vec![item]).collect();
    }
    let mut heaviest: Vec<usize> = (0..loads.len()).collect();
    heaviest.sort_by(|a, b| loads[*b].total_cmp(&loads[*a]));
    let (mut packed, mut sums) = (vec![Vec::new(); bins], vec![0f64; bins]);
    for item in heaviest {
        let open = (0..bins).filter(|bin| packed[*bin].len() < room);
        let bin = open.min_by(|a, b| sums[*a].total_cmp(&sums[*b])).expect("as many places as items");
        packed[bin].push(item);
        sums[bin] += loads[item];
    }
    packed
}

/// The expert of each replica, first one each; and how many each has.
fn replicate(loads: &[f64], replicas: usize) -> (Vec<usize>, Vec<usize>) {
    let mut which: Vec<usize> = (0..loads.len()).collect();
    let mut counts = vec![1usize; loads.len()];
    while which.len() < replicas {
        let carried = |expert: usize| loads[expert] / counts[expert] as f64;
        // The last of equal maxima in reverse is the first.
        let most = (0..loads.len()).rev().max_by(|a, b| carried(*a).total_cmp(&carried(*b)));
        let most = most.expect("a layer has experts");
        counts[most] += 1;
        which.push(most);
    }
    (which, counts)
}

impl Placement {
    /// The load of each of `devices` devices, if an expert's tokens are spread evenly over its replicas.
    pub fn device_loads(&self, loads: &[f64], devices: usize) -> Vec<f64> {
        let carried = |expert: &usize| loads[*expert] / self.slots[*expert].len() as f64;
        self.experts.chunks(self.experts.len() / devices).map(|device| device.iter().map(carried).sum()).collect()
    }

    /// The most loaded of `devices` devices over their mean: 1 is even.
    pub fn imbalance(&self, loads: &[f64], devices: usize) -> f64 {
        let loads = self.device_loads(loads, devices);
        let mean = loads.iter().sum::<f64>() / devices as f64;
        if mean > 0.0 { loads.iter().fold(0.0, |a: f64, b| a.max(*b)) / mean } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The example of the original's README.
    const LOADS: [[f64; 12]; 2] = [
        [90., 132., 40., 61., 104., 165., 39., 4., 73., 56., 183., 86.],
        [20., 107., 104., 64., 19., 197., 187., 157., 172., 86., 16., 27.],
    ];

    #[test]
    fn the_example_of_the_original() {
        let room = Room { replicas: 16, groups: 4, nodes: 2, devices: 8 };
        let placed = LOADS.map(|loads| place(&loads, room).unwrap());
        assert_eq!(placed[0].experts, [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]);
        assert_eq!(placed[1].experts, [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]);
        assert_eq!(placed[0].slots[5], [0, 2]);
        let imbalance = |placed: &Placement, loads: &[f64]| format!("{:.4}", placed.imbalance(loads, 8));
        assert_eq!([0, 1].map(|i| imbalance(&placed[i], &LOADS[i])), ["1.2081", "1.2422"]);
        // Three nodes do not divide four groups, nor one group anything: the global policy.
        let global = Room { groups: 1, ..room };
        let placed = LOADS.map(|loads| place(&loads, global).unwrap());
        assert_eq!([0, 1].map(|i| imbalance(&placed[i], &LOADS[i])), ["1.0726", "1.1903"]);
    }

    #[test]
    fn what_cannot_be_placed_is_said() {
        let room = Room { replicas: 16, groups: 4, nodes: 2, devices: 8 };
        let wrong = |loads: &[f64], room| place(loads, room).unwrap_err().to_string();
        assert_eq!(
            wrong(&LOADS[0], Room { replicas: 8, ..room }),
            "8 replicas are fewer than the 12 experts, of which each needs one"
        );
        assert_eq!(wrong(&LOADS[0], Room { groups: 5, ..room }), "12 experts are not divided evenly by 5 groups");
        assert_eq!(wrong(&LOADS[0], Room { devices: 0, ..room }), "16 replicas are not divided evenly by 0 devices");
        assert_eq!(wrong(&LOADS[0], Room { nodes: 3, ..room }), "8 devices are not divided evenly by 3 nodes");
        assert_eq!(wrong(&[1.0, f64::NAN], room), "load NaN of expert 1 is no number from 0");
    }

    fn rooms() -> impl Strategy<Value = (Vec<f64>, Room)> {
        (1..5usize, 1..4usize, 1..4usize, 1..4usize, 1..5usize).prop_flat_map(
            |(per_node, nodes, size, devices, extra)| {
                let (groups, per_device) = (per_node * nodes, (per_node * size).div_ceil(devices) + extra - 1);
                let devices = devices * nodes;
                let room = Room { replicas: per_device * devices, groups, nodes, devices };
                (proptest::collection::vec(0..1000u32, groups * size), Just(room))
                    .prop_map(|(loads, room)| (loads.into_iter().map(f64::from).collect(), room))
            },
        )
    }

    proptest! {
        #[test]
        fn every_expert_has_its_places((loads, room) in rooms(), one_group in any::<bool>()) {
            let room = if one_group { Room { groups: 1, ..room } } else { room };
            let placed = place(&loads, room).unwrap();
            prop_assert_eq!(placed.experts.len(), room.replicas);
            prop_assert!(placed.slots.iter().all(|slots| !slots.is_empty()));
            prop_assert_eq!(placed.slots.iter().map(Vec::len).sum::<usize>(), room.replicas);
            for (expert, slots) in placed.slots.iter().enumerate() {
                prop_assert!(slots.iter().all(|slot| placed.experts[*slot] == expert));
            }
            let sum: f64 = placed.device_loads(&loads, room.devices).iter().sum();
            prop_assert!((sum - loads.iter().sum::<f64>()).abs() < 1e-6 * (1.0 + sum));
        }

        #[test]
        fn a_group_stays_in_a_node((loads, room) in rooms()) {
            let placed = place(&loads, room).unwrap();
            let (size, per_node) = (loads.len() / room.groups, room.replicas / room.nodes);
            for group in 0..room.groups {
                let nodes = placed.slots[group * size..(group + 1) * size].iter().flatten().map(|slot| slot / per_node);
                let nodes: std::collections::BTreeSet<usize> = nodes.collect();
                prop_assert_eq!(nodes.len(), 1);
            }
        }

        #[test]
        fn replicas_carry_no_more_than_experts((loads, room) in rooms()) {
            let placed = place(&loads, room).unwrap();
            let heaviest = |carried: &mut dyn Iterator<Item = f64>| carried.fold(0.0, f64::max);
            let carried = heaviest(&mut loads.iter().zip(&placed.slots).map(|(load, slots)| load / slots.len() as f64));
            prop_assert!(carried <= heaviest(&mut loads.iter().copied()));
        }
    }

    /// Loads as they are skewed in practice: devices are more even with replicas than without, layer by layer.
    #[test]
    fn replicas_even_out_skewed_loads() {
        for seed in 1..50u64 {
            let skewed = |i: u64| 1e6 / (1.0 + (i * (2 * seed + 1) * 40_503 % 256) as f64).powf(0.8);
            let loads: Vec<f64> = (0..256).map(skewed).collect();
            let room = Room { replicas: 256, groups: 8, nodes: 4, devices: 32 };
            let without = place(&loads, room).unwrap().imbalance(&loads, 32);
            let with = place(&loads, Room { replicas: 288, ..room }).unwrap().imbalance(&loads, 32);
            assert!(with <= without, "seed {seed}: {with} {without}");
        }
    }
}
