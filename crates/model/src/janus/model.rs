//! A Janus model: what it makes of text and pictures.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::config::JanusConfig;
use super::draw::{DrawPrompt, Painter, draw_all};
use super::error::{JanusError, check_ids};
use super::files::{Opened, in_file_names, read_head};
use super::layers::{Aligner, Linear, Matrix, Source, gelu};
use super::read::is_janus;
use super::vision::Vision;
use super::vq::{Vq, VqPart};
use crate::config::{ConfigError, Note};
use crate::generate::Sampling;
use crate::inference::{LoadOptions, Purpose, Quantise};
use crate::model::Model;
use crate::names::ParamKind;
use crate::paged::{Chunk, PagedCache};
use crate::params::Params;
use crate::tape::Execution;
use crate::weights::{Files, MAX_CONFIG_BYTES, WeightsError, read_text};
use wels_device::{Device, Tensor, WeightRef};

/// A model with its weights. The towers' are read when something first asks for them: who draws needs half of one.
pub struct Janus {
    config: JanusConfig,
    /// All but the language model's.
    files: Files,
    language: Arc<Model>,
    params: Arc<Params>,
    sight: OnceLock<Sight>,
    vq: OnceLock<Vq>,
    /// The half of the tokenizer that draws, if no more was asked for.
    vq_decoder: OnceLock<Vq>,
    /// `[codes, dim]`.
    code_embeddings: Tensor,
    code_aligner: Aligner,
    head_in: Linear,
    /// [`CODE_HEAD`](super::network::CODE_HEAD).
    head_out: Matrix,
}

/// What sees.
struct Sight {
    tower: Vision,
    aligner: Aligner,
}

/// The configuration in a file, if that is a Janus model's `config.json`.
///
/// # Errors
/// The file cannot be read, or is a Janus model's and not usable.
pub fn read_config(file: &Path) -> Result<Option<(JanusConfig, Vec<Note>)>, WeightsError> {
    let text = read_text(file, MAX_CONFIG_BYTES)?;
    let in_file = |source: ConfigError| WeightsError::Config { dir: file.to_owned(), source: Box::new(source) };
    is_janus(&text).then(|| JanusConfig::from_hf_json(&text).map_err(in_file)).transpose()
}

impl Janus {
    /// [`Janus::open_with`] with the matrices of the language model as stored.
    ///
    /// # Errors
    /// As there.
    pub fn open(dir: &Path, device: &Arc<dyn Device>, context: usize) -> Result<(Janus, Vec<Note>), JanusError> {
        let purpose = Purpose::TextAndPictures;
        Janus::open_with(dir, device, context, LoadOptions { purpose, ..LoadOptions::packed(Quantise::AsStored) })
    }

    /// Reads a directory of `transformers`: `config.json` and safetensors. For texts of up to `context` tokens, places
    /// of pictures included. The matrices of the language model, and of what is between it and codes, are held by
    /// `options`; those of the towers as stored, but the VQ tokenizer's in f32.
    ///
    /// # Errors
    /// Whatever is wrong with configuration or files, or the device has no operations of images.
    pub fn open_with(
        dir: &Path,
        device: &Arc<dyn Device>,
        context: usize,
        options: LoadOptions,
    ) -> Result<(Janus, Vec<Note>), JanusError> {
        let Opened { config, language, files, mut notes } = Opened::read(dir, device)?;
        let (params, more) = Params::from_files(device, &language, &config.text, options).map_err(in_file_names)?;
        notes.extend(more);
        let context = context.min(config.text.rope.max_positions);
        let source = Source { files: &files, device, quantise: options.quantise };
        let JanusConfig { text, vq, .. } = &config;
        let width = vq.head_width;
        let janus = Janus {
            language: Arc::new(Model::new(text.clone(), context)),
            params: Arc::new(params),
            sight: OnceLock::new(),
            vq: OnceLock::new(),
            vq_decoder: OnceLock::new(),
            code_embeddings: source.matrix("model.generation_embeddings.weight", vq.code_dim),
            code_aligner: Aligner::new(&source, "model.generation_aligner", vq.code_dim, width, vq.aligner_layers),
            head_in: Linear::new(&source, "model.generation_head.proj_out", text.hidden_size),
            head_out: source.weight(&read_head(&files), width + 1, ParamKind::Head),
            config,
            files,
        };
        Ok((janus, notes))
    }

    /// Files of the towers, whose numbers nothing quantises.
    fn source(&self) -> Source<'_> {
        Source { files: &self.files, device: self.device(), quantise: Quantise::AsStored }
    }

    fn sight(&self) -> &Sight {
        self.sight.get_or_init(|| {
            let (source, JanusConfig { text, vision, .. }) = (&self.source(), &self.config);
            let (seen, width) = (vision.hidden_size, text.hidden_size);
            let aligner = Aligner::new(source, "model.aligner", seen, width, vision.aligner_layers);
            Sight { tower: Vision::new(source, vision), aligner }
        })
    }

    fn vq(&self) -> &Vq {
        self.vq.get_or_init(|| Vq::read(&self.source(), &self.config.vq, VqPart::Both))
    }

    fn vq_decoder(&self) -> &Vq {
        let decoder = || self.vq_decoder.get_or_init(|| Vq::read(&self.source(), &self.config.vq, VqPart::Decoder));
        self.vq.get().unwrap_or_else(decoder)
    }

    /// What it was opened as.
    pub fn config(&self) -> &JanusConfig {
        &self.config
    }

    /// What reads and goes on, without the towers.
    pub fn language(&self) -> &Arc<Model> {
        &self.language
    }

    /// What computes its towers.
    pub fn device(&self) -> &Arc<dyn Device> {
        self.code_embeddings.device()
    }

    /// The language model's weights.
    pub fn params(&self) -> &Arc<Params> {
        &self.params
    }

    /// The states of the SigLIP tower, `[tokens, width]`, of pixels `[channels, side, side]`.
    ///
    /// # Errors
    /// They are not as many.
    pub fn vision_states(&self, execution: &Execution, pixels: &[f32]) -> Result<Tensor, JanusError> {
        let vision = &self.config.vision;
        check_pixels(pixels, vision.channels, vision.image_size)?;
        Ok(self.sight().tower.run(execution, pixels))
    }

    /// What stands in the language model in place of a picture's tokens, `[tokens, D]`.
    ///
    /// # Errors
    /// The pixels `[channels, side, side]` are not as many.
    pub fn image_features(&self, execution: &Execution, pixels: &[f32]) -> Result<Tensor, JanusError> {
        Ok(self.sight().aligner.run(execution, &self.vision_states(execution, pixels)?))
    }

    /// The logits `[T, V]` of a text with pictures, whose features stand in the places of the image token.
    ///
    /// # Errors
    /// An unknown token, too many, or more or fewer places than features.
    pub fn logits(&self, execution: &Execution, tokens: &[u32], pictures: &[Tensor]) -> Result<Tensor, JanusError> {
        let embeddings = self.embeddings(execution, tokens, pictures)?;
        let states = self.language.states_of(&self.params, execution, embeddings);
        Ok(self.language.logits_of(&self.params, execution, states))
    }

    /// The logits `[1 + codes, codes]` of the next code after a text, and after each of these codes.
    ///
    /// # Errors
    /// An unknown token or code, or too many.
    pub fn code_logits(&self, execution: &Execution, tokens: &[u32], codes: &[u32]) -> Result<Tensor, JanusError> {
        check_ids("code", codes, self.config.vq.codes)?;
        self.check_length(tokens.len() + codes.len())?;
        let text = self.embeddings(execution, tokens, &[])?;
        let drawn = self.code_states(execution, codes);
        let mut all = execution.pool.tensor(text.rows() + codes.len(), text.cols());
        execution.device().copy_rows(&text, 0, &mut all, 0, text.rows());
        execution.device().copy_rows(&drawn, 0, &mut all, text.rows(), codes.len());
        let states = self.language.states_of(&self.params, execution, all);
        let mut wanted = execution.pool.tensor(1 + codes.len(), states.cols());
        execution.device().copy_rows(&states, tokens.len() - 1, &mut wanted, 0, 1 + codes.len());
        Ok(self.code_head(execution, &wanted))
    }

    /// Draws a picture after a text, code by code and without guidance: the choice at a place depends on the logits,
    /// the seed and the place. Several at once, and with guidance: [`super::DrawBatch`].
    ///
    /// # Errors
    /// As [`Janus::code_logits`].
    pub fn draw(&self, execution: &Execution, tokens: &[u32], sampling: Sampling) -> Result<Vec<u32>, JanusError> {
        let prompt = DrawPrompt { tokens, unconditional: &[], guidance: 1.0 };
        let drawn = draw_all(self, execution, &[(prompt, vec![sampling])])?;
        Ok(drawn.into_iter().flatten().next().expect("one picture").codes)
    }

    /// The codes of a picture, row by row, of pixels `[channels, side, side]` from −1 to 1.
    ///
    /// # Errors
    /// They are not as many.
    pub fn encode(&self, execution: &Execution, pixels: &[f32]) -> Result<Vec<u32>, JanusError> {
        check_pixels(pixels, self.config.vq.in_channels, self.config.vq.image_size())?;
        Ok(self.vq().encode(execution, pixels))
    }

    /// The latents `[tokens, dim]` that [`Janus::encode`] looks for codes near.
    ///
    /// # Errors
    /// The pixels are not as many.
    pub fn latents(&self, execution: &Execution, pixels: &[f32]) -> Result<Tensor, JanusError> {
        check_pixels(pixels, self.config.vq.in_channels, self.config.vq.image_size())?;
        Ok(self.vq().latents(execution, pixels))
    }

    /// The pixels `[channels, side, side]` of a picture's codes, around −1 to 1.
    ///
    /// # Errors
    /// An unknown code, or they are not those of one picture.
    pub fn decode(&self, execution: &Execution, codes: &[u32]) -> Result<Vec<f32>, JanusError> {
        let expected = self.config.vq.tokens();
        if codes.len() != expected {
            return Err(JanusError::Codes { found: codes.len(), expected });
        }
        check_ids("code", codes, self.config.vq.codes)?;
        Ok(self.vq_decoder().decode(execution, codes))
    }

    /// What the language model is given, `[T, D]`.
    fn embeddings(&self, execution: &Execution, tokens: &[u32], pictures: &[Tensor]) -> Result<Tensor, JanusError> {
        check_ids("token", tokens, self.config.text.vocab_size)?;
        self.check_length(tokens.len())?;
        if tokens.is_empty() {
            return Err(JanusError::Empty);
        }
        let mut embeddings = self.language.embeddings(&self.params, execution, tokens);
        let is_place = |place: &usize| tokens[*place] == self.config.image_token_id;
        // Text to draw after has no pictures; its image tokens, if any, are like others.
        let places: Vec<usize> = (0..tokens.len()).filter(is_place).collect();
        let features: usize = pictures.iter().map(Tensor::rows).sum();
        if !pictures.is_empty() && places.len() != features {
            return Err(JanusError::Places { places: places.len(), features });
        }
        let rows = pictures.iter().flat_map(|picture| (0..picture.rows()).map(move |row| (picture, row)));
        for (place, (picture, row)) in places.into_iter().zip(rows) {
            execution.device().copy_rows(picture, row, &mut embeddings, place, 1);
        }
        Ok(embeddings)
    }

    /// `[T, codes]` of states `[T, D]`, to the bits of [`Network::code_logits`](super::network::Network::code_logits).
    fn code_head(&self, execution: &Execution, states: &Tensor) -> Tensor {
        let inner = gelu(execution, &self.head_in.run(execution, states));
        let (device, pool, rows, width) = (execution.device(), &execution.pool, inner.rows(), inner.cols());
        let mut ones = pool.tensor(rows, 1);
        ones.fill(1.0);
        let mut x = pool.tensor(rows, width + 1);
        device.copy_columns(&inner, 0, &mut x, 0, width);
        device.copy_columns(&ones, 0, &mut x, width, 1);
        self.head_out.product(execution, &x)
    }

    fn check_length(&self, tokens: usize) -> Result<(), JanusError> {
        let context = self.language.context_len();
        if tokens > context { Err(JanusError::TooLong { tokens, context }) } else { Ok(()) }
    }
}

impl Painter for Janus {
    fn config(&self) -> &JanusConfig {
        &self.config
    }

    fn language(&self) -> &Model {
        &self.language
    }

    fn token_states(&self, execution: &Execution, tokens: &[u32]) -> Tensor {
        self.language.embeddings(&self.params, execution, tokens)
    }

    fn code_states(&self, execution: &Execution, codes: &[u32]) -> Tensor {
        let mut embeddings = execution.pool.tensor(codes.len(), self.config.vq.code_dim);
        execution.device().gather(WeightRef::Plain(&self.code_embeddings), &codes.into(), &mut embeddings);
        self.code_aligner.run(execution, &embeddings)
    }

    fn next_code_logits(
        &self,
        execution: &Execution,
        cache: &mut PagedCache,
        chunks: &[Chunk],
        embeddings: Tensor,
    ) -> Tensor {
        let states = self.language.step_states(&self.params, execution, cache, chunks, embeddings);
        self.code_head(execution, &states)
    }
}

fn check_pixels(pixels: &[f32], channels: usize, side: usize) -> Result<(), JanusError> {
    let (found, expected) = (pixels.len(), channels * side * side);
    if found == expected { Ok(()) } else { Err(JanusError::Pixels { found, expected }) }
}
