"""All claims, and the jobs that they need."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.claims import guiding, limits
from benchmarks.claims.claim import Claim, Entry
from benchmarks.claims.jobs import Drawn, Job, Training

CLAIMS = {
    claim.name: claim
    for claim in (
        guiding.GUIDANCE,
        guiding.TI_MIX,
        guiding.TI_MIX_SCHEDULES,
        guiding.PRIOR_GAP,
        limits.STEPS_CLAIM,
        limits.FILL,
        limits.FILL_WHERE,
        limits.CODE_WIDTH,
        limits.FIGURE_2,
        limits.SIZE,
        guiding.STABILITY,
        limits.TEMPERATURE,
        guiding.GUIDANCE_EMOJI,
        guiding.TI_MIX_EMOJI,
        limits.STEPS_EMOJI,
        limits.FIGURE_2_EMOJI,
    )
}
#: runs that others build on, by name
PARTS = {
    run.name: run
    for run in (
        *(limits.TOKENIZER_64, limits.MAR_64[0], *limits.CODES.values(), *limits.PRIORS.values()),
        *(run for weak in limits.WEAK.values() for run in weak.values()),
        *guiding.BASE.values(),
        *guiding.EMOJI.values(),
    )
}


def jobs_of(claims: Iterable[Claim], *, quick: bool = False) -> list[Job]:
    """What these claims need, the most important first, and every run behind those that it builds on.

    Args:
        quick: seed 0 and the first two arms of each claim alone, at two places of x.
    """
    ranked: dict[tuple[str, int], tuple[Training, dict[Drawn, None]]] = {}
    for claim in claims:
        for entry in few(claim) if quick else claim.entries:
            _, sets = ranked.setdefault((entry.training.name, entry.rank), (entry.training, {}))
            sets[entry.drawn] = None
    order: dict[str, Job] = {}
    taken: set[tuple[str, str]] = set()

    def put(job: Job) -> None:
        for name in sorted(job.needs):
            if all(placed.run != name for placed in order.values()):
                put(Job(PARTS[name]))
        order.setdefault(job.name, job)

    for (_, _), (training, sets) in sorted(ranked.items(), key=lambda item: (item[0][1], item[1][0].seed)):
        fresh = tuple(drawn for drawn in sets if (training.name, drawn.name) not in taken)
        taken |= {(training.name, drawn.name) for drawn in fresh}
        put(Job(training, fresh))
    return list(order.values())


def few(claim: Claim) -> list[Entry]:
    """The first entries of a claim, from which `--quick` makes all that the report shows."""
    found: list[Entry] = []
    for entry in claim.entries:
        arms, places = dict.fromkeys(e.arm for e in found), dict.fromkeys(e.x for e in found)
        known_arm, known_x = entry.arm in arms or len(arms) < 2, entry.x in places or len(places) < 2
        if entry.training.seed == 0 and known_arm and known_x:
            found.append(entry)
    return found
