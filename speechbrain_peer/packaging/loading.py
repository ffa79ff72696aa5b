"""Loading an exported model: no code of its own, every weight in its place."""

import io
import re
from contextlib import contextmanager
from pathlib import Path

import ruamel.yaml
import torch
from speechbrain.utils.data_utils import recursive_update
from speechbrain.utils.fetching import FetchConfig, FetchFrom, fetch, guess_source

from speechbrain_peer.packaging.safe_yaml import build_yaml, check_yaml, read_text
from speechbrain_peer.utils.audio import SAMPLE_RATES
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.folders import whole_one
from speechbrain_peer.utils.messages import one_line
from speechbrain_peer.utils.signal import check_level

# Models that come with the package, each in a folder of its name.
BUNDLED = Path(__file__).parent / "bundled"

HPARAMS_FILE = "hyperparams.yaml"
WEIGHTS_FILE = "weights.ckpt"
SOURCE_FILE = "source.txt"
CARD_FILE = "README.md"

HUB_MODEL = re.compile(r"[\w.-]+/[\w.-]+")


def load_model(
    source,
    savedir=None,
    trust=False,
    hparams_file=HPARAMS_FILE,
    revision=None,
    overrides=None,
):
    """Loads the stages of an exported model, on the CPU.

    Arguments
    ---------
    source : str or pathlib.Path
        A folder, which is read in place, a model of `bundled_models`, or one of the
        Hugging Face Hub.
    savedir : str or pathlib.Path or None
        Where a model from the Hub is put; by default the Hub's cache.
    trust : bool
        Builds whatever the YAML says. That runs any code it names.
    hparams_file : str
        Name of the YAML in the source.
    revision : str or None
        A branch, a tag or a commit of a model from the Hub.
    overrides : dict or str or None
        Values, or YAML, for entries of the YAML in place of its own; they are checked
        as these are.

    Returns
    -------
    modules : torch.nn.ModuleDict
        The stages.
    hparams : dict
        All entries of the YAML.

    Raises
    ------
    FileNotFoundError
        If there is no such model, or it lacks a file.
    ValueError
        If the YAML holds something it should not, the weights do not fit, an override
        has no entry, or `savedir` holds another model.
    """
    hparams_path, weights_path = fetch_model(source, savedir, hparams_file, revision)
    text = read_text(hparams_path)
    if overrides:
        # Before it is read in any other way.
        if not trust:
            check_yaml(text, hparams_path)
        text = _override(text, overrides, hparams_path)
    hparams = build_yaml(text, hparams_path, trust)
    level_of(hparams, hparams_path)
    _check_rate(hparams, hparams_path)
    modules = stages_of(hparams, hparams_path)
    load_weights(modules, weights_path)
    return modules, hparams


def fetch_model(source, savedir=None, hparams_file=HPARAMS_FILE, revision=None):
    """Gets the files of a model, by download if they are not here.

    Arguments
    ---------
    source : str or pathlib.Path
        As for `load_model`.
    savedir : str or pathlib.Path or None
        As for `load_model`.
    hparams_file : str
        As for `load_model`.
    revision : str or None
        As for `load_model`.

    Returns
    -------
    hparams_path, weights_path : pathlib.Path
    """
    source, names = locate_model(source), (hparams_file, WEIGHTS_FILE)
    with _claimed(savedir, source, revision, names) as savedir:
        return tuple(_fetch(name, source, savedir, revision) for name in names)


def _check_rate(hparams, name):
    rate = hparams.get("sample_rate")
    if rate is not None and not (isinstance(rate, int) and rate in SAMPLE_RATES):
        raise DataError(f"{name}: its sample_rate, {rate!r}, is no whole number of Hz")


def stages_of(hparams, name):
    """The modules of a built YAML.

    Arguments
    ---------
    hparams : dict
        With `modules`.
    name : str or pathlib.Path
        Of the file; named in errors.

    Returns
    -------
    torch.nn.ModuleDict

    Raises
    ------
    DataError
        If they are no networks by name.
    """
    try:
        return torch.nn.ModuleDict(hparams["modules"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{name}: its entry 'modules' holds no networks") from error


def level_of(hparams, name):
    """Tells where the level of a model's estimates comes from.

    Arguments
    ---------
    hparams : Mapping
        The entries of the model's or the run's YAML. Those of models from before there
        was `level` lack it.
    name : str or pathlib.Path
        Of the file; named in errors.

    Returns
    -------
    str
        One of `utils.signal.LEVELS`.

    Raises
    ------
    DataError
        If there is no such level.

    Example
    -------
    >>> level_of({"sample_rate": 8000}, "hyperparams.yaml")
    'mixture'
    """
    try:
        return check_level(hparams.get("level", "mixture"))
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None


def load_card(source):
    """Reads a model's card.

    Arguments
    ---------
    source : str or pathlib.Path
        As for `load_model`.

    Returns
    -------
    str or None
        Its text; None where there is none.
    """
    try:
        path = _fetch(CARD_FILE, locate_model(source), savedir=None)
    except FileNotFoundError:
        return None
    return read_text(path)


def load_weights(modules, path):
    """Loads a state dict, strictly.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        The stages to fill.
    path : str or pathlib.Path
        A state dict with names such as `encoder.weight`.

    Raises
    ------
    ValueError
        If the file is no state dict, or lacks a weight, has one too many or one of
        another shape; the message names all of them.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file raises errors of many classes, with messages about its insides.
    except Exception as error:
        raise ValueError(
            f"{path}: cannot be read as weights; export or fetch the model again"
        ) from error
    try:
        modules.load_state_dict(weights, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: does not fit the model. {one_line(error)}"
        ) from error


def _override(text, overrides, name):
    """The YAML with other values; nothing in it is resolved or built."""
    yaml, stream = ruamel.yaml.YAML(), io.StringIO()
    try:
        document = yaml.load(text)
        if isinstance(overrides, str):
            overrides = yaml.load(overrides)
        recursive_update(document, overrides, must_match=True)
        yaml.dump(document, stream)
    except (ruamel.yaml.error.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{name}: cannot take the overrides. {one_line(error)}"
        ) from error
    return stream.getvalue()


@contextmanager
def _claimed(savedir, source, revision, names):
    """Gives the folder to download to, which is this model's once all is there."""
    if savedir is None or guess_source(source)[0] is FetchFrom.LOCAL:
        yield None
        return
    savedir = Path(savedir)
    if revision is not None:
        source = f"{source}@{revision}"
    record = savedir / SOURCE_FILE
    present = {name for name in names if (savedir / name).exists()}
    owner = "an unknown source" if present else source
    if record.exists():
        owner = read_text(record).strip()
    if owner != source:
        raise ValueError(
            f"{savedir}: holds the model of {owner}, not of {source}; "
            "give another savedir"
        )
    savedir.mkdir(parents=True, exist_ok=True)
    try:
        yield savedir
    except BaseException:
        # Half a model would be taken for a part of the next one.
        for name in set(names) - present:
            (savedir / name).unlink(missing_ok=True)
        raise
    record.write_text(f"{source}\n", encoding="utf-8")


def bundled_models():
    """Names of the models that come with the package, sorted."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{HPARAMS_FILE}"))


def locate_model(source):
    """Tells where a model is.

    Arguments
    ---------
    source : str or pathlib.Path
        As for `load_model`.

    Returns
    -------
    str
        A folder, also for the name of a bundled model, or a name on the Hub.

    Raises
    ------
    FileNotFoundError
        If it is neither.
    """
    source = str(source)
    folder = whole_one(source)
    if folder.exists():
        return str(folder)
    if source in bundled_models():
        return str(BUNDLED / source)
    # Told before the network is asked for it.
    kind, _ = guess_source(source)
    if kind is FetchFrom.HUGGING_FACE and not HUB_MODEL.fullmatch(source):
        names = ", ".join(bundled_models())
        raise FileNotFoundError(
            f"{source}: no such folder; the models of this package: {names or 'none'}"
        )
    return source


def _fetch(filename, source, savedir, revision=None):
    """Path of one file of a model: in the source itself, or downloaded."""
    # The user's token for the Hub, where one is logged in, opens private models.
    config = FetchConfig(token=None, revision=revision)
    try:
        path = Path(fetch(filename, source, savedir, fetch_config=config))
    # Whatever the Hub's client raises, for an unknown name as for a lost network.
    except Exception as error:
        raise FileNotFoundError(
            f"'{source}' is neither a folder here nor a model that can be fetched: "
            f"{error}"
        ) from error
    # A pipe or a device would never end.
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; '{source}' is not an exported model"
        )
    return path
