"""Systems: runs that differ only in their seed, among runs that may be compared."""

import itertools
import statistics
import string
from dataclasses import dataclass

from recipes.LibriMix.comparison.runs import BACKBONES, Run
from speechbrain_peer.peer_learning.exchange import has_predictors
from speechbrain_peer.utils.files import DataError

LENDING = ("none", "itself", "anyway", "better", "other", "coin")
"""Exchanges in the order of the ablation's rows, each with all that the first has."""

PAPER_CORPUS = "Libri2Mix test, first speakers, 8000 Hz, min, clean"
"""How the sentence of a run on the paper's test set begins."""

# They say where a run is, how long it lasts (which tells groups apart) or how fast it
# is, not what it learns.
_IGNORED = {
    "seed",
    "experiment",
    "corpus",
    "prepared",
    "librimix_metadata",
    "enrollment_maps",
    "n_steps",
    "optimizer_step_limit",
    "ckpt_interval_minutes",
    "num_workers",
    "n_scoring_processes",
    "n_examples",
    "use_tensorboard",
    "peer_learning.exchange",  # `exchange` says it
}


@dataclass(frozen=True)
class System:
    """Runs that differ only in their seed."""

    name: str
    runs: list[Run]
    """By seed, at least one."""

    @property
    def first(self):
        """A run that stands for all in what is not measured."""
        return self.runs[0]

    def mean(self, score):
        """Mean of a score over the seeds; None if one of them has no value."""
        values = [run.scores[score] for run in self.runs]
        return None if None in values else statistics.fmean(values)

    def spread(self, score):
        """Standard deviation over the seeds (of a sample); None for less than two."""
        values = [run.scores[score] for run in self.runs]
        return None if None in values or len(values) < 2 else statistics.stdev(values)

    @property
    def tested_step(self):
        """Mean of the optimizer steps of the checkpoints tested, or None."""
        steps = [run.tested_step for run in self.runs]
        return None if None in steps else statistics.fmean(steps)


@dataclass(frozen=True)
class Group:
    """Systems tested on the same mixtures after training of the same length."""

    label: str
    corpus: str
    items: int
    mixture: dict
    """Scores of the mixtures by name."""
    budget: str
    systems: list[System]

    @property
    def is_the_papers(self):
        """Whether the test set is the paper's: the 3000 mixtures of Libri2Mix."""
        return self.corpus.startswith(PAPER_CORPUS) and self.items == 3000


def group_runs(runs):
    """Puts together what may be compared.

    Arguments
    ---------
    runs : list of Run

    Returns
    -------
    list of Group
        In the order of the runs; systems are in the order of the tables.

    Raises
    ------
    DataError
        If two runs of a system have the same seed.
    """
    groups = {}
    for run in runs:
        groups.setdefault(_group_key(run), []).append(run)
    return [
        Group(label, key[0], key[1], members[0].mixture, key[-1], _systems(members))
        for label, (key, members) in zip(_labels(), groups.items(), strict=False)
    ]


def _labels():
    """A, B ... Z, AA, AB ..."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_uppercase, repeat=length):
            yield "".join(letters)


def _group_key(run):
    # Other mixtures have other scores, also where the sentence is the same.
    mixture_si_sdr = round(run.mixture["si_sdr"] or 0.0, 3)
    return run.corpus, run.items, mixture_si_sdr, _budget(run.settings)


def _budget(settings):
    start = " from trained weights" if settings.get("start_from") else ""
    if settings.get("n_steps"):
        return f"{settings['n_steps']} steps{start}"
    return f"at most {settings.get('n_epochs')} epochs{start}"


def _systems(runs):
    alike = {}
    for run in runs:
        alike.setdefault((run.backbone, *_details(run)), []).append(run)
    systems = []
    for members in alike.values():
        keys = differing_settings(members)
        by_settings = {}
        for run in members:
            more = tuple(f"{key} {_setting(run, key)}" for key in keys)
            by_settings.setdefault(more, []).append(run)
        systems += [
            System(_name(runs_of_one[0], more), _by_seed(runs_of_one))
            for more, runs_of_one in by_settings.items()
        ]
    return sorted(systems, key=_order)


def _details(run):
    """What the name says of peers, if anything."""
    if run.peers == "off" and not has_predictors(run.exchange):
        return ()
    return f"exchange {run.exchange}", f"peers {run.peers}"


def _name(run, more):
    method = " + PL" if has_predictors(run.exchange) else ""
    details = ", ".join((*_details(run), *more))
    return run.backbone + method + (f" ({details})" if details else "")


def differing_settings(runs):
    """Finds the settings that runs have in different values.

    Runs of older versions lack the keys that came later; that is no difference.

    Arguments
    ---------
    runs : list of Run

    Returns
    -------
    list of str
        Their keys.
    """
    values = {}
    for run in runs:
        for key in run.settings:
            place = key.endswith("_folder") and not key.startswith("mixing.")
            if key not in _IGNORED and not place:
                values.setdefault(key, set()).add(_setting(run, key))
    return [key for key, different in values.items() if len(different) > 1]


def _setting(run, key):
    """A run's value of a setting, without what its seed alone makes different."""
    value = run.settings.get(key, "-")
    if key.endswith("_folder"):
        return "given" if value else None  # noise or rooms, wherever they are
    if key == "start_from" and value:
        # Every seed goes on from the run of its own.
        return value.rstrip("/").removesuffix(f"/{run.seed}")
    return value


def _by_seed(runs):
    runs = sorted(runs, key=lambda run: run.seed)
    for one, other in itertools.pairwise(runs):
        if one.seed == other.seed:
            raise DataError(
                f"{one.folder} and {other.folder}: have the same seed and settings; "
                "give one of them"
            )
    return runs


def _order(system):
    run = system.first
    names = list(BACKBONES.values())
    rank = names.index(run.backbone) if run.backbone in names else len(names)
    lending = LENDING.index(run.exchange)
    return rank, run.backbone, run.peers != "off", lending, system.name
