"""Scores of a set of images: Inception Score; precision and recall. Through torch-fidelity, for any extractor."""

from __future__ import annotations

from attrs import frozen
from torch import Tensor

from mixar_eval.distances import SEED, check_features


@frozen
class InceptionScore:
    """Mean and standard deviation over the splits."""

    mean: float
    deviation: float


@frozen
class PrecisionRecall:
    """Shares in [0, 1]: of drawn images near real ones, and of real images near drawn ones."""

    precision: float
    recall: float


def inception_score(logits_AL: Tensor, *, splits: int = 10, seed: int = SEED) -> InceptionScore:
    """exp of the mean KL divergence of an image's classes from the split's (Salimans et al., 2016), over `splits`.

    The rows are shuffled first: in splits of samples that come class after class the score would collapse.

    Args:
        logits_AL: one row an image, (A, L).
        seed: of the shuffling.

    Raises:
        ValueError: there are fewer images than splits.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    if len(logits_AL) < splits:
        raise ValueError(f"{len(logits_AL)} images make no {splits} splits")
    found = isc_features_to_metric(logits_AL.detach().cpu(), splits=splits, shuffle=True, rng_seed=seed)
    return InceptionScore(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])


def precision_recall(features_AF: Tensor, reference_BF: Tensor, *, neighborhood: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., 2019).

    An image is near a set where it lies no further from one of its members than that one's k-th neighbour in the set.

    Args:
        features_AF: of drawn images, (A, F).
        reference_BF: of real images, (B, F). ADM takes 10,000 real ones beside 50,000 drawn ones.
        neighborhood: k.

    Raises:
        ValueError: a set has no k-th neighbour, or the features do not compare.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    check_features(features_AF, reference_BF)
    for side in (features_AF, reference_BF):
        if len(side) <= neighborhood:
            raise ValueError(f"among {len(side)} images none has {neighborhood} neighbours")
    found = prc_features_to_metric(
        features_AF.detach().cpu().float(),
        reference_BF.detach().cpu().float(),
        prc_neighborhood=neighborhood,
        prc_batch_size=2000,  # at a time, against the whole other set: memory, not the result, depends on it
        save_cpu_ram=True,
        verbose=False,
    )
    return PrecisionRecall(found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL])
