//! Embedding: rows of a table by token id, and the gradient of the table.

use crate::gemm::Start;
use crate::par::{self, SharedMut, TASK};

/// y [T, d]: row `ids[t]` of table [V, d] for each t.
pub fn gather(table: &[f32], ids: &[u32], y: &mut [f32], d: usize) {
    check(table.len(), ids, y.len(), d);
    let rows = par::rows_per_task(ids.len(), d);
    par::chunks_mut(y, rows * d, |task, y| {
        for (y, &id) in y.chunks_exact_mut(d).zip(&ids[task * rows..]) {
            y.copy_from_slice(&table[id as usize * d..(id as usize + 1) * d]);
        }
    });
}

/// dtable [V, d] (+)= dy [T, d], row t added to row `ids[t]`: for each row of the table a chain of additions over its
/// tokens in order. With [`Start::Continue`] the other rows are not touched.
pub fn gather_backward(dy: &[f32], ids: &[u32], dtable: &mut [f32], start: Start, d: usize) {
    check(dtable.len(), ids, dy.len(), d);
    if start == Start::Zero {
        par::chunks_mut(dtable, TASK, |_, piece| piece.fill(0.0));
    }
    // Sorted by id, then by token, so that a run of equal ids is the chain of one row.
    let mut order: Vec<u64> = ids.iter().zip(0u64..).map(|(&id, t)| u64::from(id) << 32 | t).collect();
    order.sort_unstable();
    let runs: Vec<&[u64]> = order.chunk_by(|a, b| a >> 32 == b >> 32).collect();
    let dtable = SharedMut::new(dtable);
    let per_task = par::rows_per_task(runs.len(), d);
    par::run(runs.len().div_ceil(per_task), |task| {
        for run in &runs[task * per_task..((task + 1) * per_task).min(runs.len())] {
            let id = (run[0] >> 32) as usize;
            // SAFETY: each row of the table is written by one task.
            let sum = unsafe { dtable.slice(id * d, d) };
            for key in *run {
                let t = *key as u32 as usize;
                sum.iter_mut().zip(&dy[t * d..(t + 1) * d]).for_each(|(sum, dy)| *sum += dy);
            }
        }
    });
}

fn check(table_len: usize, ids: &[u32], y_len: usize, d: usize) {
    assert_eq!(y_len, ids.len() * d, "rows are [T, d] with T = {}, d = {d}", ids.len());
    assert_eq!(table_len % d, 0, "the table is [V, d] with d = {d}");
    let rows = table_len / d;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        panic!("token id {id} of a table of {rows} rows");
    }
}
