//! The image config that grows while a stage is lowered. A stage that starts from another shares its config until
//! it changes something, and only notes where its history goes on, so that long chains of stages stay linear.

use std::sync::Arc;

use rbuild_oci::{ContainerConfig, History, ImageConfig, Platform};

use crate::gotext;

/// Comment of every history entry that this frontend makes.
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

/// `PATH` of images that set none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A config without its history.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    config: Arc<ImageConfig>,
    /// The stage whose history comes first.
    pub(crate) history_of: Option<usize>,
    /// The entries of this stage (and, for a stage that starts from an image, the image's before them).
    pub(crate) history: Vec<History>,
}

impl Image {
    /// Nothing at all.
    pub(crate) fn blank() -> Self {
        Self { config: Arc::default(), history_of: None, history: vec![] }
    }

    /// What `FROM scratch` starts from.
    pub(crate) fn scratch(platform: &Platform) -> Self {
        let config = ImageConfig {
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            os: platform.os.clone(),
            os_version: platform.os_version.clone(),
            os_features: platform.os_features.clone(),
            config: ContainerConfig {
                working_dir: "/".to_owned(),
                env: vec![format!("PATH={DEFAULT_PATH}")],
                ..ContainerConfig::default()
            },
            ..ImageConfig::default()
        };
        Self { config: Arc::new(config), history_of: None, history: vec![] }
    }

    /// What `FROM image` starts from: the parts of its config that BuildKit knows, without layers and time.
    pub(crate) fn from_base(base: &ImageConfig) -> Self {
        let mut config = base.clone();
        config.created = None;
        config.rootfs.diff_ids.clear();
        config.extra.clear();
        config.config.extra.clear();
        let history = std::mem::take(&mut config.history);
        Self { config: Arc::new(config), history_of: None, history }
    }

    /// What `FROM stage` starts from. Triggers are not inherited.
    pub(crate) fn from_stage(base: &Self, stage: usize) -> Self {
        let mut out = Self { config: base.config.clone(), history_of: Some(stage), history: vec![] };
        if !out.config.config.on_build.is_empty() {
            out.edit().on_build.clear();
        }
        out
    }

    /// The config, without history.
    pub(crate) fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The `config` object, to be changed.
    pub(crate) fn edit(&mut self) -> &mut ContainerConfig {
        &mut Arc::make_mut(&mut self.config).config
    }

    /// `MAINTAINER`.
    pub(crate) fn set_author(&mut self, author: &str) {
        author.clone_into(&mut Arc::make_mut(&mut self.config).author);
    }

    /// Gives the config a `PATH` if it has none. Windows decides for itself.
    pub(crate) fn ensure_path(&mut self, os: &str) {
        let has = self.config.config.env.iter().any(|entry| crate::env::split(entry).0 == "PATH");
        if !has && os != "windows" {
            self.edit().env.push(format!("PATH={DEFAULT_PATH}"));
        }
    }

    /// Notes an instruction.
    pub(crate) fn commit(&mut self, created_by: String, layer: bool, epoch: Option<i64>) {
        self.history.push(History {
            created: epoch.map(gotext::rfc3339),
            created_by,
            author: String::new(),
            comment: HISTORY_COMMENT.to_owned(),
            empty_layer: !layer,
        });
    }

    /// The whole config, given the history that comes first.
    pub(crate) fn finish(self, mut before: Vec<History>) -> ImageConfig {
        let mut config = Arc::unwrap_or_clone(self.config);
        before.extend(self.history);
        config.history = before;
        config
    }
}

/// The shell of shell forms.
pub(crate) fn shell(config: &ImageConfig) -> Vec<String> {
    if !config.config.shell.is_empty() {
        return config.config.shell.clone();
    }
    let default: &[&str] = if config.os == "windows" { &["cmd", "/S", "/C"] } else { &["/bin/sh", "-c"] };
    default.iter().map(|word| (*word).to_owned()).collect()
}
