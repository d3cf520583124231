"""Adaptive mixture, the MixAR paper's future work: an injector and a sampler that trust a code by its confidence."""

from __future__ import annotations

from mixar import Part, hookimpl

#: the version of mixar's interface that this was written for
MIXAR_INTERFACE = 2


@hookimpl
def mixar_parts() -> list[Part]:
    """The injector `dc-mix-adaptive` and the sampler `adaptive`."""
    from mixar_adaptive.injector import AdaptiveDCMix, AdaptiveDCMixConfig
    from mixar_adaptive.sampler import AdaptiveConfig, AdaptiveSampler

    return [
        Part("injector", "dc-mix-adaptive", AdaptiveDCMix, AdaptiveDCMixConfig),
        Part("sampler", "adaptive", AdaptiveSampler, AdaptiveConfig),
    ]
