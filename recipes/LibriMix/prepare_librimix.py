#!/usr/bin/env python3
"""Prepares LibriMix for training: `tse prepare`, where SpeechBrain's recipes have it.

    python prepare_librimix.py --help

The function that does it, which the YAMLs name and train.py calls, is
`speechbrain_peer.data.prepare.prepare_librimix`.
"""

import sys

from speechbrain_peer.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
