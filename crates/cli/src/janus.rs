//! Janus models: what sees and draws, opened for a conversation, a server or a picture.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use wels_data::chat::PictureTokens;
use wels_data::tokenizer::Tokenizer;
use wels_engine::{Engine, LoadedModel, Options, Preprocessing};
use wels_model::config::Note;
use wels_model::inference::{LoadOptions, Purpose};
use wels_model::janus::config::JanusConfig;
use wels_model::janus::count::params;
use wels_model::janus::{Janus, read_config};
use wels_pipeline::model::read_tokenizer;
use wels_pipeline::refusal::refuse;
use wels_runs::files;
use wels_server::prompt::{ServedModel, ServedPictures};

use crate::model::{LoadArgs, Location, Quant, report, served_model};

/// Which models have to do with pictures.
pub const WHICH: &str =
    "models with pictures are those of transformers' janus form, as deepseek-community/Janus-Pro-1B";

/// A Janus model whose configuration and tokenizer have been read.
pub struct OpenJanus {
    folder: PathBuf,
    pub config: JanusConfig,
    pub tokenizer: Arc<Tokenizer>,
    pub around: PictureTokens,
}

impl OpenJanus {
    /// `None` for a model of text.
    pub fn find(location: &Location) -> Result<Option<OpenJanus>> {
        let Location::Directory(folder) = location else { return Ok(None) };
        let Some((config, notes)) = read_config(&folder.join("config.json"))? else { return Ok(None) };
        report(&notes);
        let none = || refuse("the model has no tokenizer", "put its tokenizer.json beside the weights");
        let tokenizer = read_tokenizer(location)?.ok_or_else(none)?;
        let hint = "the vocabulary needs <begin_of_image>, <end_of_image> and a token to pad with";
        let none = || refuse("the model's tokenizer has no tokens of pictures", hint);
        let around = PictureTokens::of(&tokenizer).ok_or_else(none)?;
        Ok(Some(OpenJanus { folder: folder.clone(), config, tokenizer: Arc::new(tokenizer), around }))
    }

    /// What answers to conversations are made from besides the engine, as [`served_model`].
    pub fn served(&self, context: usize) -> Result<ServedModel> {
        let served = served_model(&self.config.text, &self.tokenizer, context)?;
        let place = self.config.image_token_id;
        let none = || refuse(format!("the tokenizer has no token {place}, which stands for pictures"), WHICH);
        let pictures = ServedPictures {
            around: self.around,
            place,
            place_text: self.tokenizer.token(place).ok_or_else(none)?,
            places: self.config.vision.tokens(),
            preprocessing: self.preprocessing()?,
            takes_parts: served.template.as_ref().is_some_and(|template| template.takes_parts()),
            codes: self.config.vq.tokens(),
            side: self.config.vq.image_size(),
        };
        Ok(ServedModel { pictures: Some(pictures), ..served })
    }

    fn preprocessing(&self) -> Result<Preprocessing> {
        let path = self.folder.join("preprocessor_config.json");
        let cannot = || format!("cannot use {}", path.display());
        let text = files::read_text(&path, files::SMALL_BYTES_MAX).with_context(cannot)?;
        let (preprocessing, notes): (Preprocessing, Vec<Note>) =
            Preprocessing::from_hf_json(&text).with_context(cannot)?;
        report(&notes);
        let (found, expected) = (preprocessing.size, self.config.vision.image_size);
        if found != expected {
            let message = format!("{} makes pictures of {found} pixels, and the model sees {expected}", path.display());
            return Err(refuse(message, "config.json and preprocessor_config.json have to come from one model"));
        }
        Ok(preprocessing)
    }

    /// With its weights, to draw pictures after up to `context` tokens and codes.
    pub fn load_to_draw(&self, quant: Quant, context: usize) -> Result<Arc<Janus>> {
        self.load_on(&wels_cpu::device(), quant, Purpose::Pictures, context)
    }

    fn load_on(
        &self,
        device: &Arc<dyn wels_device::Device>,
        quant: Quant,
        purpose: Purpose,
        context: usize,
    ) -> Result<Arc<Janus>> {
        let options = LoadOptions { purpose, ..LoadOptions::packed(quant.into()) };
        let (janus, notes) = Janus::open_with(&self.folder, device, context, options)?;
        report(&notes);
        Ok(Arc::new(janus))
    }

    /// An engine of it; `own` changes the options.
    pub fn engine(&self, load: &LoadArgs, context: usize, own: impl FnOnce(Options) -> Options) -> Result<Engine> {
        let placement = load.place.open(&self.config.text)?;
        let janus = self.load_on(placement.main(), load.quant, Purpose::TextAndPictures, context)?;
        let options = own(load.options(&placement, &self.config.text));
        let loaded = LoadedModel { tokenizer: Some(Arc::clone(&self.tokenizer)), ..LoadedModel::from(janus) };
        Ok(Engine::new(loaded, options)?)
    }

    /// Bytes that it takes at most, besides the caches.
    pub fn bytes(&self) -> u64 {
        params(&self.config).total() * size_of::<f32>() as u64
    }
}
