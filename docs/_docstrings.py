"""Lets mkdocstrings read SpeechBrain's docstrings: numpy's with other names."""

import griffe

NAMES = {"Arguments\n---------": "Parameters\n----------"}
NAMES |= {"Example\n-------\n": "Examples\n--------\n"}


class SpeechBrainDocstrings(griffe.Extension):
    """Renames the sections."""

    def on_instance(self, *, obj, **kwargs):
        """Of every module, class, function and attribute."""
        if obj.docstring:
            for theirs, numpys in NAMES.items():
                obj.docstring.value = obj.docstring.value.replace(theirs, numpys)
