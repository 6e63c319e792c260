//! Gradients of a rank's shards, added up by the fixed tree.

use wels_device::Tensor;
use wels_model::params::Grads;

/// The gradients of a rank's shards, added up in the order of the tree as they come. The newest sum is in the trainer's
/// own buffers; those that wait for another of their size have buffers of this, which are kept from step to step: as
/// many as the logarithm of the rank's shards to base 2, none for one shard.
#[derive(Default)]
pub(crate) struct Partials {
    /// Sums that wait, with how many shards each is of, the largest first.
    waiting: Vec<(usize, Vec<Tensor>)>,
    /// How many shards the sum in the trainer's buffers is of.
    newest: usize,
    free: Vec<Vec<Tensor>>,
    /// Parameters of the last shard whose gradients have been added up over all shards already.
    ahead: Vec<usize>,
}

impl Partials {
    /// Forgets a step that was not finished.
    pub fn begin(&mut self) {
        self.free.extend(self.waiting.drain(..).map(|(_, buffers)| buffers));
        self.newest = 0;
        self.ahead.clear();
    }

    /// Sets what `grads` holds aside, if it holds a sum, so that another shard can be computed there.
    pub fn make_room(&mut self, grads: &mut Grads) {
        if self.newest > 0 {
            let free = self.free.pop().unwrap_or_else(|| grads.spare());
            self.waiting.push((self.newest, grads.exchange(free)));
            self.newest = 0;
        }
    }

    /// Adds to the gradient of one parameter, of the rank's last shard, the sums that wait for it: all of them.
    pub fn take_ahead(&mut self, param: usize, newest: &mut Tensor) {
        self.waiting.iter().rev().for_each(|(_, left)| newest.device().clone().add(&left[param], newest));
        self.ahead.push(param);
    }

    /// Adds to the shard that `grads` holds the sums of its size. A sum of two is the same either way round.
    pub fn take(&mut self, grads: &mut Grads) {
        self.newest = 1;
        while self.waiting.last().is_some_and(|(of, _)| *of == self.newest) {
            let (of, left) = self.waiting.pop().expect("looked at");
            for (param, left) in left.iter().enumerate().filter(|(param, _)| !self.ahead.contains(param)) {
                left.device().add(left, grads.completed(param));
            }
            self.free.push(left);
            self.newest += of;
        }
    }

    /// # Panics
    /// If the shards were no power of two, so that the trainer's buffers do not hold the sum of all.
    pub fn finish(&self) {
        assert!(self.waiting.is_empty() && self.newest > 0, "a power of two of shards");
    }

    /// Bytes of the buffers.
    pub fn bytes(&self) -> usize {
        let waiting = self.waiting.iter().map(|(_, buffers)| buffers);
        waiting.chain(&self.free).flatten().map(Tensor::bytes).sum()
    }
}
