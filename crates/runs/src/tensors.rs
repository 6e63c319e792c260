//! The optimizer's state as one safetensors file, written and read tensor by tensor, so that neither takes memory for
//! more than one of them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo, View};

use crate::error::RunError;

struct F32View<'a> {
    shape: [usize; 1],
    values: Cow<'a, [f32]>,
}

impl View for F32View<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }
    fn data_len(&self) -> usize {
        self.values.len() * 4
    }
}

/// Writes named f32 vectors, and `metadata`, to `path`.
pub fn save<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, Cow<'a, [f32]>)>,
    metadata: HashMap<String, String>,
) -> Result<(), RunError> {
    let views = tensors.into_iter().map(|(name, values)| (name, F32View { shape: [values.len()], values }));
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => RunError::io("write", path)(source),
        other => panic!("f32 vectors cannot be wrong: {other}"),
    })
}

/// Reads the vectors of these names and lengths back, bit for bit, one at a time: `set` is told the place of the name.
///
/// # Errors
/// [`RunError::Damaged`] if the file holds other names or lengths.
pub fn load(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, usize)>,
    set: &mut dyn FnMut(usize, &[f32]),
) -> Result<(), RunError> {
    let damaged = |message: String| RunError::Damaged {
        path: path.to_path_buf(),
        message,
        hint: "it does not belong to this model; remove its checkpoint to go on from the one before it".into(),
    };
    let mut file = File::open(path).map_err(RunError::io("open", path))?;
    let len = file.metadata().map_err(RunError::io("read", path))?.len();
    let mut header = vec![0; 8];
    file.read_exact(&mut header).map_err(RunError::io("read", path))?;
    let header_len = u64::from_le_bytes(header[..].try_into().expect("eight bytes"));
    if header_len > len.saturating_sub(8) {
        return Err(damaged(format!("its header of {header_len} bytes is longer than the file")));
    }
    header.resize(8 + header_len as usize, 0);
    file.read_exact(&mut header[8..]).map_err(RunError::io("read", path))?;
    let metadata: Metadata = serde_json::from_slice(&header[8..]).map_err(|error| damaged(error.to_string()))?;
    let infos: HashMap<String, &TensorInfo> = metadata.tensors();
    let mut found = 0;
    let mut values = Vec::new();
    for (name, expected) in tensors {
        let info = infos.get(&name).ok_or_else(|| damaged(format!("tensor {name} is missing")))?;
        let (from, to) = info.data_offsets;
        if info.dtype != Dtype::F32 || info.shape != [expected] || (header.len() + to) as u64 > len {
            return Err(damaged(format!(
                "tensor {name} is {:?} {:?}, expected F32 [{expected}]",
                info.dtype, info.shape,
            )));
        }
        file.seek(SeekFrom::Start((header.len() + from) as u64)).map_err(RunError::io("read", path))?;
        values.resize(expected, 0.0);
        read_f32(&mut file, &mut values).map_err(RunError::io("read", path))?;
        set(found, &values);
        found += 1;
    }
    match infos.len() == found {
        true => Ok(()),
        false => Err(damaged(format!("it holds {} tensors, expected {found}", infos.len()))),
    }
}

fn read_f32(file: &mut File, values: &mut [f32]) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    for chunk in values.chunks_mut(bytes.len() / 4) {
        let bytes = &mut bytes[..chunk.len() * 4];
        file.read_exact(bytes)?;
        for (value, bytes) in chunk.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        let a = [1.5, -0.0, f32::MIN_POSITIVE / 2.0, f32::MAX];
        let b = vec![0.1; 40_000];
        let both = [("m.a".to_string(), Cow::Borrowed(&a[..])), ("v.a".to_string(), Cow::Borrowed(&b[..]))];
        save(&path, both, HashMap::new()).unwrap();
        let mut back = Vec::new();
        let names = [("m.a".to_string(), 4), ("v.a".to_string(), 40_000)];
        load(&path, names, &mut |place, values| back.push((place, values.to_vec()))).unwrap();
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!([(0, bits(&a)), (1, bits(&b))], [(back[0].0, bits(&back[0].1)), (back[1].0, bits(&back[1].1))]);
        let error = load(&path, [("m.a".to_string(), 3)], &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("tensor m.a is F32 [4], expected F32 [3]"), "{error}");
        let error = load(&path, [("m.a".to_string(), 4)], &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("2 tensors, expected 1"), "{error}");
    }
}
