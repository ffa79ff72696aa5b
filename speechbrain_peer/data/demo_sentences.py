"""The sentences of the demo corpus, put together from parts."""

import math
from itertools import product

# One part of each makes a sentence.
SUBJECTS = (
    "the old farmer",
    "my younger sister",
    "a tall stranger",
    "our new neighbour",
    "the village doctor",
    "her best friend",
    "the bus driver",
    "a group of children",
    "the captain",
    "my grandfather",
    "the quiet librarian",
    "one of the painters",
    "the baker's daughter",
    "a young musician",
)
ACTIONS = (
    "carried three heavy baskets",
    "found a small wooden box",
    "sold fresh bread and honey",
    "wrote a long letter home",
    "painted the kitchen door blue",
    "lost a pair of brown gloves",
    "fixed the broken window",
    "planted nine apple trees",
    "told a very strange story",
    "bought a cheap yellow bicycle",
    "played an old song twice",
    "fed the ducks and the geese",
    "counted all the empty chairs",
    "opened the wrong parcel",
    "cooked soup for everybody",
    "took a picture of the moon",
)
PLACES = (
    "near the railway station",
    "on the other side of the river",
    "behind the yellow house",
    "in the middle of the market",
    "at the edge of the forest",
    "by the frozen lake",
    "under the stone bridge",
    "in front of the theatre",
    "at the foot of the hill",
    "beside the open fire",
    "across the narrow street",
    "on the way to school",
)
ENDINGS = (
    "before the rain began",
    "and nobody knew why",
    "while the others slept",
    "because it was a holiday",
    "and then went home again",
    "until the lights went out",
    "just as the bell rang",
    "without asking anyone",
    "and laughed about it",
    "though it was getting late",
)
PARTS = (SUBJECTS, ACTIONS, PLACES, ENDINGS)
N_SENTENCES = math.prod(len(part) for part in PARTS)


def draw_sentences(n_sentences, rng):
    """Draws different English sentences of about five seconds.

    Arguments
    ---------
    n_sentences : int
        How many, at most `N_SENTENCES`.
    rng : random.Random
        Source of randomness.

    Returns
    -------
    list of str
        The sentences.

    Example
    -------
    >>> import random
    >>> [sentence] = draw_sentences(1, random.Random(2))
    >>> sentence.endswith(".")
    True
    """
    choices = rng.sample(list(product(*PARTS)), n_sentences)
    return [" ".join(choice) + "." for choice in choices]
