"""Tries a model under conditions that its test set does not have."""

from speechbrain_peer.cli.options import (
    add_device,
    add_judge,
    add_manifest,
    add_trust,
    folder_to_fill,
    load_interface,
    load_judge,
)

EXAMPLES = [
    "tse evaluate small-8k prepared/manifests/wav8k_min_first/test.json",
    "tse evaluate my-model test.json --judge resemblyzer",
    "tse evaluate results/td_speakerbeam_pl/1234/model test.json --second-take",
    "tse evaluate results/peers/1234/model dev.json --second-recording",
    "tse evaluate results/peers/1234/model test.json --microphones phones -o tables",
    "tse evaluate small-8k test.json --asr speechbrain/asr-crdnn-rnnlm-librispeech "
    "--librispeech_folder LibriSpeech",
]


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add("model", help="folder, model of this package or of the Hugging Face Hub")
    add_manifest(add, "manifest of a test set")
    add(
        "-o",
        "--output",
        type=folder_to_fill,
        help="folder for evaluation.md and evaluation.json (or second_takes.*, "
        "second_recordings.*, microphones.* or words.*)",
    )
    instead = parser.add_mutually_exclusive_group().add_argument
    instead(
        "--second-take",
        action="store_true",
        help="instead: what further mixtures of the same target are worth, averaged or "
        "lent (peer learning)",
    )
    instead(
        "--second-recording",
        action="store_true",
        help="instead: what a second recording of the same target is worth that is "
        "better or worse than the first, in what `tse extract --together` does",
    )
    instead(
        "--microphones",
        metavar="ROOMS",
        help="instead: what two to four microphones of a room are worth, in rooms of "
        "`tse rooms`: alone, averaged, as a beamformer, lent",
    )
    add_judge(instead, "also ask a judge with whom the model has been calibrated")
    instead(
        "--asr",
        metavar="MODEL",
        help="instead: what speech recognition gains, by an EncoderDecoderASR of "
        "SpeechBrain, a folder or one of the Hugging Face Hub; its YAML can run any "
        "code, so trust its author",
    )
    add(
        "--librispeech_folder",
        metavar="FOLDER",
        help="with --asr: holds test-clean ... with their transcripts",
    )
    add_device(add)
    add_trust(add)


def run(options):
    """Evaluates, prints the tables and writes them."""
    from speechbrain_peer.evaluation import (
        conditions,
        microphones,
        second_recordings,
        second_takes,
        words,
    )
    from speechbrain_peer.evaluation.tables import write_tables
    from speechbrain_peer.evaluation.trials import read_trials

    if options.librispeech_folder and not options.asr:
        options.parser.error("--librispeech_folder is for --asr")
    model, judge = load_interface(options), load_judge(options)
    if judge is not None:
        judge.scorer_of(model)
    trials = read_trials(options.manifest, options.data_root, model.hparams.sample_rate)
    if options.microphones:
        kind = microphones
        result = kind.evaluate(model, trials, options.microphones)
    elif options.asr:
        kind = words
        result = kind.evaluate(model, trials, *_recogniser(options, trials))
    elif options.second_recording:
        kind = second_recordings
        result = kind.evaluate(model, trials)
    elif options.second_take:
        kind = second_takes
        result = kind.evaluate(model, trials)
    else:
        kind = conditions
        result = kind.evaluate(model, trials, judge)
    text = kind.markdown(result)
    print(text)
    if options.output:
        by_item = isinstance(result.get("items"), list)
        items = result.pop("items") if by_item else None
        write_tables(options.output, kind.NAME, text, result, items)
    return 0


def _recogniser(options, trials):
    """What listens, and the transcripts of the targets, if there are any."""
    from speechbrain_peer.data.transcripts import read_transcripts
    from speechbrain_peer.evaluation.recognition import Recogniser

    transcripts = None
    if options.librispeech_folder:
        utterances = (trial.utterance for trial in trials)
        transcripts = read_transcripts(options.librispeech_folder, utterances)
    return Recogniser(options.asr, options.device), transcripts
