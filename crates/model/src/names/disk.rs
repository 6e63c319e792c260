//! Tensors of a Hugging Face directory, and the parameters whose numbers they hold.

use super::published::published;
use super::{ParamKind, ParamSpec, param_specs};
use crate::config::{Attention, ModelConfig};
use crate::family::Fused;

/// Some rows of a parameter, and the tensor on disk that holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HfTensor {
    /// Name in the safetensors file; several may share a tensor.
    pub name: String,
    /// Shape of the whole tensor in the file: one dimension for vectors, two for matrices, three for fused experts.
    pub shape: Vec<usize>,
    /// Index into [`param_specs`].
    pub param: usize,
    /// First row of the parameter.
    pub first_row: usize,
    /// Rows of the parameter.
    pub rows: usize,
    /// Their length.
    pub cols: usize,
    /// Where in the tensor they are.
    pub place: Place,
    /// Whether it is stored a second time under this name.
    pub role: Role,
}

/// Where rows are in a tensor: element (r, c) is its number `start + r·row + c·col`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub start: usize,
    pub row: usize,
    pub col: usize,
}

/// Whether a tensor is where a parameter lives or a repetition of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Has to be in the file.
    Own,
    /// A copy that DeepSeek-V3's files hold in each MTP layer (embedding and head): written, and ignored when read.
    MtpCopy,
}

impl HfTensor {
    /// Rows that are all of a tensor, in order.
    fn whole(name: String, shape: Vec<usize>, param: usize, first_row: usize, (rows, cols): (usize, usize)) -> Self {
        let place = Place { start: 0, row: cols, col: 1 };
        HfTensor { name, shape, param, first_row, rows, cols, place, role: Role::Own }
    }

    /// A tensor that is a parameter by itself.
    pub(crate) fn own(name: String, shape: Vec<usize>, param: usize) -> Self {
        let rows = if shape.len() == 1 { 1 } else { shape[0] };
        let cols = shape.iter().product::<usize>() / rows;
        HfTensor::whole(name, shape, param, 0, (rows, cols))
    }

    /// Whether the rows are all of the tensor, in order.
    pub fn is_whole(&self) -> bool {
        self.is_in_one_piece() && self.rows * self.cols == self.shape.iter().product::<usize>()
    }

    /// Whether the rows follow each other in the tensor.
    pub fn is_in_one_piece(&self) -> bool {
        self.place.row == self.cols && self.place.col == 1
    }

    /// The numbers of the tensor among which the rows are.
    pub(crate) fn span(&self) -> std::ops::Range<usize> {
        let Place { start, row, col } = self.place;
        start..start + (self.rows - 1) * row + (self.cols - 1) * col + 1
    }

    /// Copies the rows out of the numbers of [`HfTensor::span`].
    pub(crate) fn take(&self, span: &[f32], rows: &mut [f32]) {
        let Place { row, col, .. } = self.place;
        for (r, to) in rows.chunks_exact_mut(self.cols).enumerate() {
            let from = span[r * row..].iter().step_by(col);
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
    }

    /// Copies the rows to their places in the whole tensor: the reverse of [`HfTensor::take`].
    pub(crate) fn put(&self, rows: &[f32], tensor: &mut [f32]) {
        let Place { start, row, col } = self.place;
        for (r, from) in rows.chunks_exact(self.cols).enumerate() {
            let to = tensor[start + r * row..].iter_mut().step_by(col);
            to.zip(from).for_each(|(to, from)| *to = *from);
        }
    }
}

/// All tensors on disk, in the order of the parameters; copies come last.
pub fn hf_tensors(config: &ModelConfig) -> Vec<HfTensor> {
    let specs = param_specs(config);
    let mut tensors = Vec::with_capacity(specs.len());
    for (param, spec) in specs.iter().enumerate() {
        match config.family.row().fused {
            Fused::No => push_tensors(&mut tensors, param, spec),
            Fused::Renamed => push_renamed(&mut tensors, param, spec),
            Fused::Experts => push_fused_experts(&mut tensors, param, spec),
            Fused::Rows { .. } => match fused_rows(config, spec) {
                Some(fused) => tensors.push(fused.tensor(param, spec)),
                None => push_tensors(&mut tensors, param, spec),
            },
        }
    }
    let head = specs.iter().position(|spec| spec.kind == ParamKind::Head).unwrap_or(0);
    let (v, d) = (config.vocab_size, config.hidden_size);
    for layer in config.layers..config.layers + config.mtp_depth {
        for (name, param) in [("embed_tokens", 0), ("shared_head.head", head)] {
            let name = format!("model.layers.{layer}.{name}.weight");
            let copy = HfTensor::whole(name, vec![v, d], param, 0, (v, d));
            tensors.push(HfTensor { role: Role::MtpCopy, ..copy });
        }
    }
    tensors
}

fn push_tensors(tensors: &mut Vec<HfTensor>, param: usize, spec: &ParamSpec) {
    let (rows, cols) = (spec.rows, spec.cols);
    let shape = match spec.kind {
        ParamKind::Experts(experts) => {
            let (layer, projection) = spec.name.rsplit_once('.').expect("expert parameters have dotted names");
            let rows = rows / experts;
            tensors.extend((0..experts).map(|e| {
                let name = format!("{layer}.{e}.{projection}.weight");
                HfTensor::whole(name, vec![rows, cols], param, e * rows, (rows, cols))
            }));
            return;
        }
        ParamKind::Norm | ParamKind::Bias | ParamKind::RouterBias => vec![cols],
        ParamKind::Matrix
        | ParamKind::Router
        | ParamKind::Embedding
        | ParamKind::Head
        | ParamKind::ExpertBiases(_)
        | ParamKind::PlaceBias
        | ParamKind::Table => vec![rows, cols],
    };
    tensors.push(HfTensor::whole(spec.name.clone(), shape, param, 0, (rows, cols)));
}

/// As DeepSeek-V4's files name them.
fn push_renamed(tensors: &mut Vec<HfTensor>, param: usize, spec: &ParamSpec) {
    let first = tensors.len();
    push_tensors(tensors, param, spec);
    tensors[first..].iter_mut().for_each(|tensor| tensor.name = published(&tensor.name));
}

/// Where the rows of a parameter are in a matrix that it shares.
pub(crate) struct FusedRows {
    /// Name of the matrix here.
    pub name: String,
    /// Rows that the parameters have together.
    pub all: usize,
    /// First row of the parameter.
    pub first: usize,
}

impl FusedRows {
    fn tensor(self, param: usize, spec: &ParamSpec) -> HfTensor {
        let (rows, cols) = (spec.rows, spec.cols);
        HfTensor {
            place: Place { start: self.first * cols, row: cols, col: 1 },
            ..HfTensor::whole(self.name, vec![self.all, cols], param, 0, (rows, cols))
        }
    }
}

/// The matrix that holds a parameter's rows among others', if one does: `gate_up_proj` and `qkv_proj`.
pub(crate) fn fused_rows(config: &ModelConfig, spec: &ParamSpec) -> Option<FusedRows> {
    let Fused::Rows { query_key_value } = config.family.row().fused else { return None };
    let Attention::Gqa { heads, kv_heads, head_dim, .. } = config.attention else { return None };
    let (q, kv, m) = (heads * head_dim, kv_heads * head_dim, config.dense_intermediate);
    let parts = [
        ("q_proj.weight", "qkv_proj.weight", 0, q + 2 * kv),
        ("k_proj.weight", "qkv_proj.weight", q, q + 2 * kv),
        ("v_proj.weight", "qkv_proj.weight", q + kv, q + 2 * kv),
        ("gate_proj.weight", "gate_up_proj.weight", 0, 2 * m),
        ("up_proj.weight", "gate_up_proj.weight", m, 2 * m),
    ];
    let (layer, part) = spec.name.rsplit_once(".self_attn.").or(spec.name.rsplit_once(".mlp."))?;
    let (_, whole, first, all) = parts.into_iter().find(|(own, ..)| *own == part)?;
    let kind = if whole.starts_with("qkv") { "self_attn" } else { "mlp" };
    let fused = kind == "mlp" || query_key_value;
    fused.then(|| FusedRows { name: format!("{layer}.{kind}.{whole}"), all, first })
}

/// As `GptOssExperts` has them: `gate_up_proj` [E, D, 2M] with gate and up in turns, `down_proj` [E, M, D], biases [E,
/// 2M] and [E, D]; and `mlp.gate` is `mlp.router`.
fn push_fused_experts(tensors: &mut Vec<HfTensor>, param: usize, spec: &ParamSpec) {
    let gate_or_up = ["gate_proj", "up_proj"].iter().position(|part| spec.name.contains(&format!(".experts.{part}")));
    let name = match gate_or_up {
        Some(_) => spec.name.replace(".gate_proj", ".gate_up_proj").replace(".up_proj", ".gate_up_proj"),
        None => spec.name.replace(".mlp.gate.", ".mlp.router."),
    };
    let (step, offset) = gate_or_up.map_or((1, 0), |offset| (2, offset));
    match spec.kind {
        ParamKind::Experts(experts) => {
            let (rows, cols) = (spec.rows / experts, spec.cols);
            let wide = step * rows;
            tensors.extend((0..experts).map(|e| HfTensor {
                place: Place { start: e * cols * wide + offset, row: step, col: wide },
                ..HfTensor::whole(name.clone(), vec![experts, cols, wide], param, e * rows, (rows, cols))
            }));
        }
        ParamKind::ExpertBiases(experts) => {
            let wide = step * spec.cols;
            tensors.push(HfTensor {
                place: Place { start: offset, row: wide, col: step },
                ..HfTensor::whole(name, vec![experts, wide], param, 0, (experts, spec.cols))
            });
        }
        _ => push_tensors(tensors, param, &ParamSpec { name, ..spec.clone() }),
    }
}
