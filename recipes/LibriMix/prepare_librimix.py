#!/usr/bin/env python3
r"""Prepares LibriMix (clean mixtures) for target speech extraction.

From mixtures that the LibriMix scripts have generated:
> python prepare_librimix.py --data_folder Libri2Mix --output_folder prepared

From LibriSpeech and the LibriMix metadata, rendering only what is needed:
> python prepare_librimix.py --librispeech_folder LibriSpeech \
    --librimix_metadata LibriMix/metadata/Libri2Mix --output_folder prepared
"""

import argparse
import logging
import sys

from speechbrain_peer.data.layout import SUBSETS
from speechbrain_peer.utils.files import DataError


def parse_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data_folder", help="generated LibriMix, holds wav8k ...")
    source.add_argument("--librispeech_folder", help="holds train-clean-100 ...")
    add("--librimix_metadata", help="metadata/Libri2Mix of the LibriMix repository")
    add("--output_folder", required=True, help="for all that is written")
    add("--subsets", nargs="+", default=["train-100", "dev", "test"], choices=SUBSETS)
    add("--sample_rate", type=int, default=8000, choices=[8000, 16000], help="in Hz")
    add("--mode", default="min", choices=["min", "max"], help="length of a mixture")
    add("--targets", default="first", choices=["first", "both"])
    add("--peers", default="off", choices=["off", "listed", "drawn"])
    add("--peer_interferer", default="any", choices=["any", "same"])
    add("--enrollment_maps", help="folder of enrollment maps; drawn if left out")
    add("--seed", type=int, default=1234, help="of drawn maps and peers, 0 or more")
    add("--n_processes", type=int, help="that render; all CPUs if left out")
    return parser.parse_args()


def main():
    """Runs the preparation; wrong data gives one line and exit status 1."""
    arguments = parse_arguments()
    # Imported here: the rendering processes import this file, but not SpeechBrain.
    from speechbrain_peer.data.prepare import prepare_librimix

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        prepare_librimix(**vars(arguments))
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
