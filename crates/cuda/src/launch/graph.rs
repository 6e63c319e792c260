//! Kernels of a card that run one after the other: a graph of the driver's.

use std::ptr;

use cudarc::driver::sys::{self, CUDA_KERNEL_NODE_PARAMS, CUfunction, CUgraph, CUgraphExec, CUgraphNode, CUstream};

use super::Fault;
use super::card::check;
use super::queue::Waiting;

/// Switches graphs off, with 0.
pub const VARIABLE: &str = "WELS_CUDA_GRAPHS";

/// Whether graphs are wanted.
pub(super) fn wanted() -> bool {
    std::env::var_os(VARIABLE).is_none_or(|value| value != "0")
}

/// A chain of kernels.
pub(super) struct Graph {
    graph: CUgraph,
    nodes: Vec<CUgraphNode>,
    /// What is launched; null until it is made.
    exec: CUgraphExec,
}

// SAFETY: graphs belong to the process, not to a thread, and one thread at a time has this.
unsafe impl Send for Graph {}

/// Has the driver take a launch as the parameters of a node, which it copies.
fn with_params<T>(function: CUfunction, launch: &mut Waiting, take: impl FnOnce(&CUDA_KERNEL_NODE_PARAMS) -> T) -> T {
    let ([bx, by, bz], [tx, ty, tz]) = (launch.grid.blocks, launch.grid.threads);
    let mut pointers = launch.arguments.pointers();
    take(&CUDA_KERNEL_NODE_PARAMS {
        func: function,
        gridDimX: bx,
        gridDimY: by,
        gridDimZ: bz,
        blockDimX: tx,
        blockDimY: ty,
        blockDimZ: tz,
        sharedMemBytes: launch.grid.shared as u32,
        kernelParams: pointers.as_mut_ptr(),
        extra: ptr::null_mut(),
        kern: ptr::null_mut(),
        ctx: ptr::null_mut(),
    })
}

impl Graph {
    /// Of these launches, each with its kernel's function, in this order; the context is current.
    pub fn of<'a>(launches: impl Iterator<Item = (CUfunction, &'a mut Waiting)>) -> Result<Graph, Fault> {
        let mut made = Graph { graph: ptr::null_mut(), nodes: Vec::new(), exec: ptr::null_mut() };
        // SAFETY: a context is current, and the graph is written to its place.
        check("cuGraphCreate", unsafe { sys::cuGraphCreate(&mut made.graph, 0) })?;
        for (function, launch) in launches {
            let before = made.nodes.as_slice();
            let last = &before[before.len().saturating_sub(1)..];
            let mut node = ptr::null_mut();
            // SAFETY: the dependencies are nodes of this graph, as many as is said; function and arguments are those
            // of a launch, and the driver copies them.
            let added = with_params(function, launch, |params| unsafe {
                sys::cuGraphAddKernelNode_v2(&mut node, made.graph, last.as_ptr(), last.len(), params)
            });
            check("cuGraphAddKernelNode", added)?;
            made.nodes.push(node);
        }
        // SAFETY: the graph is whole; what is made of it is written to its place.
        let made_of = unsafe { sys::cuGraphInstantiateWithFlags(&mut made.exec, made.graph, 0) };
        check("cuGraphInstantiate", made_of).map(|()| made)
    }

    /// Changes a node from the next run on.
    pub fn set(&mut self, node: usize, function: CUfunction, launch: &mut Waiting) -> Result<(), Fault> {
        // SAFETY: the node is of the graph that `exec` was made of, which is there as long; the rest as in `of`.
        let set = with_params(function, launch, |params| unsafe {
            sys::cuGraphExecKernelNodeSetParams_v2(self.exec, self.nodes[node], params)
        });
        check("cuGraphExecKernelNodeSetParams", set)
    }

    /// Queues it.
    pub fn run(&self, stream: CUstream) -> Result<(), Fault> {
        // SAFETY: it was made, and the stream is the card's own. The memory that kernels use is given back behind it in
        // the same stream.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.exec, stream) })
    }
}

impl Drop for Graph {
    /// What is running runs to its end.
    fn drop(&mut self) {
        // SAFETY: both are this one's, or null, and not used again; what is in flight the driver keeps until it is
        // done.
        unsafe {
            if !self.exec.is_null() {
                sys::cuGraphExecDestroy(self.exec);
            }
            if !self.graph.is_null() {
                sys::cuGraphDestroy(self.graph);
            }
        }
    }
}
