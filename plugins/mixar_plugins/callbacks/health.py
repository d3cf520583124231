"""Is the run healthy? Early warning of what a falling loss does not show, and of a run unlike those that went well."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping

from attrs import field, frozen
from attrs.validators import and_, ge, gt, lt

from mixar_core.training.callback import Callback, RunInfo, StepReport
from mixar_core.training.log import RunLog
from mixar_core.training.reference import FIGURES

#: The figures whose leaving the reference's band is told; the others vary too much from one step to the next.
_TOLD = tuple(name for name in FIGURES if name != "run/gradient_norm")
#: Reports of a state, at least, before it is told.
_REPORTS = 3
#: A state is told again once it is so many times as bad.
_WORSE = 2.0


@frozen
class HealthConfig:
    """When to warn; of nothing that did not last for `steps` steps and three reports.

    Args:
        steps: how long something lasts before it is told.
        codes: share of the codebook in use under which it counts as collapsed (see `codes_used`, mixar_core's usage).
        channels: share of a continuous tokenizer's channels that carry something, under which its posterior counts as
            collapsed.
        latent_std: standard deviation of raw latents above which they count as blown up; that of MAR's KL-16 is 4.3.
        discriminator: its loss under which it counts as having won; it is about 1 where it cannot tell.
    """

    steps: int = field(default=50, validator=ge(1))
    codes: float = field(default=0.05, validator=and_(ge(0.0), lt(1.0)))
    channels: float = field(default=0.25, validator=and_(ge(0.0), lt(1.0)))
    latent_std: float = field(default=100.0, validator=gt(0.0))
    discriminator: float = field(default=0.1, validator=ge(0.0))


@frozen
class Finding:
    """Something that is wrong: `about` names it, `badness` is larger the worse it is, `text` says what to do."""

    about: str
    badness: float
    text: str


class Health(Callback):
    """Warns on standard error, and in log.jsonl, of collapse, of latents that blow up, of a run unlike its reference.

    Each is told once, and again only when it became twice as bad. The run is not changed by it.
    """

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        #: since which step, and for how many reports, something has been wrong
        self._lasting: dict[str, tuple[int, int]] = {}
        self._told: dict[str, float] = {}
        self._before = 0

    def on_start(self, run: RunInfo) -> None:
        self._log, self._before = RunLog(run.folder), run.first_step
        if run.first_step and self._log.path.is_file():  # what was told before the run was stopped
            for entry in map(json.loads, self._log.path.read_text(encoding="utf-8").splitlines()):
                if entry["kind"] == "warning":
                    self._told[entry["about"]] = entry["badness"]

    def on_step(self, run: RunInfo, report: StepReport) -> None:
        found = [*self._tokenizers(report.losses), *self._beside(run, report.step, report.figures())]
        self._hear(report.step, found, self.config.steps, _REPORTS, validation=False)
        self._before = report.step

    def on_evaluation(self, run: RunInfo, step: int, losses: Mapping[str, float]) -> None:
        figures = {f"validation/{name}": value for name, value in losses.items()}
        self._hear(step, [*self._beside(run, step, figures)], 0, 2, validation=True)

    def _tokenizers(self, losses: Mapping[str, float]) -> Iterator[Finding]:
        """What is wrong with a tokenizer in training; its figures may have the part's name before them."""
        config = self.config
        for name, value in losses.items():
            part, _, figure = name.rpartition("/")
            of = f" of {part}" if part else ""
            if figure == "codes_used" and value < config.codes:
                even = losses[f"{part}/codes_perplexity" if part else "codes_perplexity"]
                yield Finding(
                    f"codes{of}",
                    1.0 / max(value, 1e-9),
                    f"codes{of} collapse: {value:.2%} of those that could be met are in use (as if {even:.0f} were "
                    "equally likely), so images lose what tells them apart; try a larger entropy_weight of the "
                    "tokenizer, a smaller training.learning_rate, or a longer training.warmup_steps",
                )
            elif figure == "channels_used" and value < config.channels:
                yield Finding(
                    f"channels{of}",
                    1.0 / max(value, 1e-9),
                    f"the posterior{of} collapses: {value:.0%} of the latents' channels carry more than noise; try a "
                    "smaller reconstruction.kl_weight",
                )
            elif figure == "latent_std" and value > config.latent_std:
                yield Finding(
                    f"latents{of}",
                    value,
                    f"latents{of} blow up: their standard deviation is {value:.0f}; try a larger "
                    "reconstruction.kl_weight, or a smaller training.learning_rate",
                )
            elif figure == "discriminator" and value < config.discriminator:
                yield Finding(
                    "discriminator",
                    1.0 / max(value, 1e-9),
                    f"the discriminator wins: its loss is {value:.2g} (about 1 where it cannot tell), and the "
                    "tokenizer learns little from it; try a smaller adversarial.learning_rate, a later "
                    "adversarial.start_step, or LeCam (adversarial.lecam_weight)",
                )

    def _beside(self, run: RunInfo, step: int, figures: Mapping[str, float]) -> Iterator[Finding]:
        """Figures that are outside of the reference's band: how far, in halves of its width."""
        for name in _TOLD if run.reference else ():
            band = run.reference.at(name, step) if run.reference and name in figures else None
            if band is None or band[0] <= (value := figures[name]) <= band[2]:
                continue
            low, middle, high = band
            side, edge = ("above", high) if value > high else ("below", low)
            yield Finding(
                f"{name} {side}",
                abs(value - middle) / max(abs(edge - middle), 1e-9),
                f"{name} is {value:.3g}, {side} its reference ({low:.3g} to {high:.3g} at step {step}): this run goes "
                "another way than those of its recipe that went well; are the data, and the weights of frozen parts, "
                "the same?",
            )

    def _hear(self, step: int, found: list[Finding], steps: int, reports: int, *, validation: bool) -> None:
        """Tell of what has lasted, and forget what is over."""
        now = {finding.about for finding in found}
        for about in [
            each for each in self._lasting if each not in now and each.startswith("validation") == validation
        ]:
            del self._lasting[about]
        for finding in found:
            since, count = self._lasting.get(finding.about, (step if validation else self._before, 0))
            self._lasting[finding.about] = since, count + 1
            lasted = step - since >= steps and count + 1 >= reports
            if lasted and finding.badness >= _WORSE * self._told.get(finding.about, 0.0):
                self._told[finding.about] = finding.badness
                text = f"since step {since}: {finding.text}"
                print(f"warning: {text}", file=sys.stderr, flush=True)
                self._log.write("warning", step, about=finding.about, badness=finding.badness, text=text)
