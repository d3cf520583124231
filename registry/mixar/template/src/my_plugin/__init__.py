"""Parts for mixar."""

from __future__ import annotations

from mixar import Part, hookimpl

#: the version of mixar's abstract classes that these parts were written for
MIXAR_INTERFACE = 2


@hookimpl
def mixar_parts() -> list[Part]:
    """What recipes can name; imported here, so that `mixar --help` waits for no torch."""
    from my_plugin.backbone import MyPluginBackbone, MyPluginBackboneConfig
    from my_plugin.callback import MyPluginCallback, MyPluginCallbackConfig
    from my_plugin.conditioner import MyPluginConditioner, MyPluginConditionerConfig
    from my_plugin.continuous_tokenizer import MyPluginContinuousTokenizer, MyPluginContinuousTokenizerConfig
    from my_plugin.dataset import MyPluginDataset, MyPluginDatasetConfig
    from my_plugin.discrete_tokenizer import MyPluginDiscreteTokenizer, MyPluginDiscreteTokenizerConfig
    from my_plugin.discriminator import MyPluginDiscriminator, MyPluginDiscriminatorConfig
    from my_plugin.extractor import MyPluginExtractor, MyPluginExtractorConfig
    from my_plugin.head import MyPluginHead, MyPluginHeadConfig
    from my_plugin.injector import MyPluginInjector, MyPluginInjectorConfig
    from my_plugin.optimizer import MyPluginOptimizer, MyPluginOptimizerConfig
    from my_plugin.prior import MyPluginPrior, MyPluginPriorConfig
    from my_plugin.sampler import MyPluginSampler, MyPluginSamplerConfig

    return [
        Part("backbone", "my-plugin", MyPluginBackbone, MyPluginBackboneConfig),
        Part("callback", "my-plugin", MyPluginCallback, MyPluginCallbackConfig),
        Part("conditioner", "my-plugin", MyPluginConditioner, MyPluginConditionerConfig),
        Part("continuous-tokenizer", "my-plugin", MyPluginContinuousTokenizer, MyPluginContinuousTokenizerConfig),
        Part("dataset", "my-plugin", MyPluginDataset, MyPluginDatasetConfig),
        Part("discrete-tokenizer", "my-plugin", MyPluginDiscreteTokenizer, MyPluginDiscreteTokenizerConfig),
        Part("discriminator", "my-plugin", MyPluginDiscriminator, MyPluginDiscriminatorConfig),
        Part("extractor", "my-plugin", MyPluginExtractor, MyPluginExtractorConfig),
        Part("head", "my-plugin", MyPluginHead, MyPluginHeadConfig),
        Part("injector", "my-plugin", MyPluginInjector, MyPluginInjectorConfig),
        Part("optimizer", "my-plugin", MyPluginOptimizer, MyPluginOptimizerConfig),
        Part("prior", "my-plugin", MyPluginPrior, MyPluginPriorConfig),
        Part("sampler", "my-plugin", MyPluginSampler, MyPluginSamplerConfig),
    ]
