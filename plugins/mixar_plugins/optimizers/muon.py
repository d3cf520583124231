"""Muon: momentum made orthogonal, for the matrices of hidden layers (Jordan et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import field, frozen
from attrs.validators import and_, ge, le, lt
from torch.optim import Muon as TorchMuon
from torch.optim import Optimizer as TorchOptimizer

from mixar_core.errors import UserError
from mixar_core.training.optimizer import AdamW, Optimizer, Weight, groups_of
from mixar_core.training.settings import TrainingConfig


@frozen
class MuonConfig:
    """Muon's own settings; betas and epsilon of `training:` are those of AdamW, which has the other weights.

    Args:
        momentum: of the gradient, Nesterov's.
        iterations: of Newton and Schulz, which make it orthogonal.
    """

    momentum: float = field(default=0.95, validator=and_(ge(0.0), lt(1.0)))
    iterations: int = field(default=5, validator=and_(ge(1), le(99)))


class Muon(Optimizer):
    """torch's Muon for the matrices inside blocks (backbone's, head's, prior's); AdamW for the rest.

    The rest are embeddings, position tables, the layers by which tokens come in and go out, convolutions, norms and
    biases. Updates are scaled to AdamW's size, 0.2 sqrt(max(rows, columns)) (Liu et al., 2025, Sec. 2.2), so that both
    take the learning rate and weight decay that AdamW is tuned for.
    """

    def __init__(self, config: MuonConfig) -> None:
        self.config = config

    def make(self, weights: Sequence[Weight], training: TrainingConfig) -> Sequence[TorchOptimizer]:
        """Muon, and AdamW.

        Raises:
            UserError: there is no such matrix.
        """
        hidden, rest = [w for w in weights if w.hidden], [w for w in weights if not w.hidden]
        if not hidden:
            raise UserError("what is trained has no matrices in blocks, AdamW would do all: take adamw")
        muon = TorchMuon(
            groups_of(hidden, training),
            lr=training.scale_lr(training.learning_rate),
            momentum=self.config.momentum,
            ns_steps=self.config.iterations,
            adjust_lr_fn="match_rms_adamw",
        )
        return [muon, *(AdamW().make(rest, training) if rest else ())]
