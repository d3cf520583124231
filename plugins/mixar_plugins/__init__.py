"""The parts that come with mixar, offered through the same hooks as anyone's. To add one: its file, and a line here."""

from __future__ import annotations

from pathlib import Path

from mixar import Part, hookimpl

#: the version of mixar's interface that this was written for
MIXAR_INTERFACE = 2


@hookimpl
def mixar_parts() -> list[Part]:
    """Every component of this package, by kind; imported here, so that `mixar --help` waits for no torch."""
    from mixar_core.training.optimizer import AdamW, AdamWConfig
    from mixar_plugins.backbones.acdit import ACDiTBackbone, ACDiTConfig
    from mixar_plugins.backbones.causal import CausalBackbone, CausalConfig
    from mixar_plugins.backbones.detok_ar import DeTokARBackbone, DeTokARConfig
    from mixar_plugins.backbones.flowar import FlowARBackbone, FlowARConfig
    from mixar_plugins.backbones.masked import MaskedBackbone, MaskedConfig
    from mixar_plugins.callbacks.health import Health, HealthConfig
    from mixar_plugins.callbacks.progress import ProgressBar, ProgressConfig
    from mixar_plugins.callbacks.sample_grid import SampleGrid, SampleGridConfig
    from mixar_plugins.callbacks.stall_watch import StallWatch, StallWatchConfig
    from mixar_plugins.callbacks.tensorboard import TensorBoard, TensorBoardConfig
    from mixar_plugins.callbacks.throughput import Throughput, ThroughputConfig
    from mixar_plugins.callbacks.wandb import WandB, WandBConfig
    from mixar_plugins.datasets.folder import ImageFolder, ImageFolderConfig
    from mixar_plugins.datasets.hugging_face import HuggingFaceConfig, HuggingFaceDataset
    from mixar_plugins.datasets.parquet import ParquetConfig, ParquetDataset
    from mixar_plugins.discriminators.maskbit import MaskBitDiscriminator, MaskBitDiscriminatorConfig
    from mixar_plugins.discriminators.patchgan import PatchGAN, PatchGANConfig
    from mixar_plugins.extractors.efficientnet_lite import (
        EfficientNetLite0,
        EfficientNetLite0Config,
        EfficientNetLite1,
        EfficientNetLite1Config,
        EfficientNetLite2,
        EfficientNetLite2Config,
    )
    from mixar_plugins.extractors.timm_model import TimmConfig, TimmExtractor
    from mixar_plugins.heads.categorical import CategoricalHead, CategoricalHeadConfig
    from mixar_plugins.heads.denoising import DenoisingHead, DenoisingHeadConfig
    from mixar_plugins.heads.diffusion import DiffusionHead, DiffusionHeadConfig
    from mixar_plugins.heads.energy import EnergyHead, EnergyHeadConfig
    from mixar_plugins.heads.flow import FlowHead, FlowHeadConfig
    from mixar_plugins.heads.flowar import FlowARHead, FlowARHeadConfig
    from mixar_plugins.heads.joint import JointHead, JointHeadConfig
    from mixar_plugins.heads.mixture import MixtureHead, MixtureHeadConfig
    from mixar_plugins.heads.mse import MseHead, MseHeadConfig
    from mixar_plugins.injectors.dc_mix import DCMix, DCMixConfig
    from mixar_plugins.injectors.embedding import DCCA, DCSA, CodeEmbeddingConfig
    from mixar_plugins.injectors.none import NoGuidance, NoGuidanceConfig
    from mixar_plugins.optimizers.muon import Muon, MuonConfig
    from mixar_plugins.optimizers.schedule_free import ScheduleFree, ScheduleFreeConfig
    from mixar_plugins.priors.ground_truth import GroundTruthConfig, GroundTruthPrior
    from mixar_plugins.priors.hart import HARTPrior, HARTPriorConfig
    from mixar_plugins.priors.llamagen import LlamaGenPrior, LlamaGenPriorConfig
    from mixar_plugins.priors.magvit2 import Magvit2Prior, Magvit2PriorConfig
    from mixar_plugins.priors.masked_transformer import BitTokenPrior, EmbeddingTokenPrior, MaskBitConfig, MaskGitConfig
    from mixar_plugins.priors.randar import RandARConfig, RandARPrior
    from mixar_plugins.priors.rar import RARConfig, RARPrior
    from mixar_plugins.priors.titok import TiTokPrior, TiTokPriorConfig, TiTokUViTConfig, TiTokUViTPrior
    from mixar_plugins.priors.var import VARPrior, VARPriorConfig
    from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler
    from mixar_plugins.samplers.groups import GroupsConfig, GroupsSampler
    from mixar_plugins.samplers.gtr import GtRConfig, GtRSampler
    from mixar_plugins.samplers.reuse import LazyMARConfig, LazyMARSampler, ReCAPConfig, ReCAPSampler
    from mixar_plugins.tokenizers.detok import DeTok, DeTokConfig
    from mixar_plugins.tokenizers.hart import HARTConfig, HARTResidual, HARTResidualConfig, HARTTokenizer
    from mixar_plugins.tokenizers.kl import KLAutoencoder, KLConfig
    from mixar_plugins.tokenizers.llamagen import LlamaGenConfig, LlamaGenTokenizer
    from mixar_plugins.tokenizers.magvit2 import Magvit2, Magvit2Config
    from mixar_plugins.tokenizers.maskbit import LFQConfig, LFQTokenizer, VQConfig, VQTokenizer
    from mixar_plugins.tokenizers.residual import PyramidConfig, PyramidTokenizer, RVQConfig, RVQTokenizer
    from mixar_plugins.tokenizers.titok import TiTok, TiTokConfig, TiTokVAE, TiTokVAEConfig
    from mixar_plugins.tokenizers.var import VARConfig, VARTokenizer

    return [
        Part("continuous-tokenizer", "kl", KLAutoencoder, KLConfig),
        Part("continuous-tokenizer", "detok", DeTok, DeTokConfig),
        Part("continuous-tokenizer", "titok-vae", TiTokVAE, TiTokVAEConfig),
        Part("continuous-tokenizer", "hart-residual", HARTResidual, HARTResidualConfig),
        Part("discrete-tokenizer", "lfq", LFQTokenizer, LFQConfig),
        Part("discrete-tokenizer", "vq", VQTokenizer, VQConfig),
        Part("discrete-tokenizer", "rvq", RVQTokenizer, RVQConfig),
        Part("discrete-tokenizer", "pyramid", PyramidTokenizer, PyramidConfig),
        Part("discrete-tokenizer", "llamagen", LlamaGenTokenizer, LlamaGenConfig),
        Part("discrete-tokenizer", "var", VARTokenizer, VARConfig),
        Part("discrete-tokenizer", "hart", HARTTokenizer, HARTConfig),
        Part("discrete-tokenizer", "titok", TiTok, TiTokConfig),
        Part("discrete-tokenizer", "magvit2", Magvit2, Magvit2Config),
        Part("prior", "maskbit", BitTokenPrior, MaskBitConfig),
        Part("prior", "maskgit", EmbeddingTokenPrior, MaskGitConfig),
        Part("prior", "llamagen", LlamaGenPrior, LlamaGenPriorConfig),
        Part("prior", "magvit2", Magvit2Prior, Magvit2PriorConfig),
        Part("prior", "hart", HARTPrior, HARTPriorConfig),
        Part("prior", "var", VARPrior, VARPriorConfig),
        Part("prior", "randar", RandARPrior, RandARConfig),
        Part("prior", "rar", RARPrior, RARConfig),
        Part("prior", "titok", TiTokPrior, TiTokPriorConfig),
        Part("prior", "titok-uvit", TiTokUViTPrior, TiTokUViTConfig),
        Part("prior", "ground-truth", GroundTruthPrior, GroundTruthConfig),
        Part("backbone", "masked", MaskedBackbone, MaskedConfig),
        Part("backbone", "causal", CausalBackbone, CausalConfig),
        Part("backbone", "acdit", ACDiTBackbone, ACDiTConfig),
        Part("backbone", "detok-ar", DeTokARBackbone, DeTokARConfig),
        Part("backbone", "flowar", FlowARBackbone, FlowARConfig),
        Part("injector", "none", NoGuidance, NoGuidanceConfig),
        Part("injector", "dc-mix", DCMix, DCMixConfig),
        Part("injector", "dc-sa", DCSA, CodeEmbeddingConfig),
        Part("injector", "dc-ca", DCCA, CodeEmbeddingConfig),
        Part("head", "diffusion", DiffusionHead, DiffusionHeadConfig),
        Part("head", "denoising", DenoisingHead, DenoisingHeadConfig),
        Part("head", "flow", FlowHead, FlowHeadConfig),
        Part("head", "joint", JointHead, JointHeadConfig),
        Part("head", "flowar", FlowARHead, FlowARHeadConfig),
        Part("head", "mixture", MixtureHead, MixtureHeadConfig),
        Part("head", "energy", EnergyHead, EnergyHeadConfig),
        Part("head", "categorical", CategoricalHead, CategoricalHeadConfig),
        Part("head", "mse", MseHead, MseHeadConfig),
        Part("sampler", "cosine", CosineSampler, CosineConfig),
        Part("sampler", "groups", GroupsSampler, GroupsConfig),
        Part("sampler", "gtr", GtRSampler, GtRConfig),
        Part("sampler", "lazymar", LazyMARSampler, LazyMARConfig),
        Part("sampler", "recap", ReCAPSampler, ReCAPConfig),
        Part("dataset", "parquet", ParquetDataset, ParquetConfig),
        Part("dataset", "image-folder", ImageFolder, ImageFolderConfig),
        Part("dataset", "datasets", HuggingFaceDataset, HuggingFaceConfig),
        Part("extractor", "efficientnet-lite0", EfficientNetLite0, EfficientNetLite0Config),
        Part("extractor", "efficientnet-lite1", EfficientNetLite1, EfficientNetLite1Config),
        Part("extractor", "efficientnet-lite2", EfficientNetLite2, EfficientNetLite2Config),
        Part("extractor", "timm", TimmExtractor, TimmConfig),
        Part("discriminator", "patchgan", PatchGAN, PatchGANConfig),
        Part("discriminator", "maskbit", MaskBitDiscriminator, MaskBitDiscriminatorConfig),
        Part("optimizer", "adamw", AdamW, AdamWConfig),
        Part("optimizer", "muon", Muon, MuonConfig),
        Part("optimizer", "schedule-free", ScheduleFree, ScheduleFreeConfig),
        Part("callback", "progress", ProgressBar, ProgressConfig),
        Part("callback", "tensorboard", TensorBoard, TensorBoardConfig),
        Part("callback", "sample-grid", SampleGrid, SampleGridConfig),
        Part("callback", "throughput", Throughput, ThroughputConfig),
        Part("callback", "stall-watch", StallWatch, StallWatchConfig),
        Part("callback", "health", Health, HealthConfig),
        Part("callback", "wandb", WandB, WandBConfig),
    ]


@hookimpl
def mixar_recipe_folders() -> list[Path]:
    """The recipes of the published systems: inside a wheel, and beside the packages in a checkout."""
    here = Path(__file__).resolve().parent
    return [folder for folder in (here / "recipes", here.parents[1] / "recipes") if folder.is_dir()]


@hookimpl
def mixar_preset_folders() -> list[Path]:
    """Presets of sampling: published ways of computing less."""
    return [Path(__file__).resolve().parent / "presets"]
