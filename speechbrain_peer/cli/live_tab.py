"""The page's live tab: a microphone in, one person out, as long as they talk.

The browser sends its microphone's samples to `/live`, where `live_session` extracts,
and plays what comes back (`live_tab.js`). Gradio's own streams lose blocks, are heard
through the browser's filters for calls, and played seconds late.
"""

import asyncio
import contextlib
from pathlib import Path

from speechbrain_peer.cli.limits import Limits, Places, Refusal, Voices
from speechbrain_peer.cli.live_session import live_endpoint
from speechbrain_peer.cli.page_files import without_folders
from speechbrain_peer.inference.live import check_causal

_INTRODUCTION = """\
Give a few seconds of one person alone, then press *Start*: of what the microphone
hears, this person's speech is played. Wear headphones: it would hear loudspeakers, too.
"""

_HTML = """\
<p><button class="start">Start</button> <span class="told" role="status"></span></p>
<p class="meters">
  <label>In <meter class="in" min="-60" max="0" low="-60" high="-1"></meter></label>
  <label>Out <meter class="out" min="-60" max="0" low="-60" high="-1"></meter></label>
  <span class="presence"></span>
</p>
<audio controls aria-label="Live"></audio>
<p class="late"></p>"""

_CSS = """\
.start { padding: 8px 32px; border-radius: 8px; font-weight: 600;
  color: var(--button-primary-text-color);
  background: var(--button-primary-background-fill); }
.start:disabled { opacity: 0.4; }
.meters label { margin-right: 24px; }
.meters meter { width: 160px; vertical-align: middle; }
audio { width: 100%; margin: 12px 0; }
p { min-height: 1.5em; }"""


class LiveTab:
    """Builds the tab, and answers its browser.

    Arguments
    ---------
    model : speechbrain_peer.TargetSpeechExtraction
        What extracts. One that looks ahead has a tab that tells what it takes.
    limits : Limits
    """

    def __init__(self, model, limits=Limits()):  # noqa: B008
        self.model = model
        # A voice is there as long as the page that shows its recording.
        self.voices = Voices(limits._replace(voice_seconds=float("inf")))
        self.places = Places(limits.sessions)
        self._names = {}

    def routes(self):
        """What the application answers besides the page.

        Returns
        -------
        list of starlette.routing.BaseRoute
        """
        from fastapi.routing import APIWebSocketRoute

        model, run = self.model, asyncio.to_thread
        endpoint = live_endpoint(model, self.voices, self.places, run, threads=1)
        return [APIWebSocketRoute("/live", endpoint)]

    def build(self, gradio, shown, page):
        """Fills the tab that is being made.

        Arguments
        ---------
        gradio : module
        shown : speechbrain_peer.cli.page_files.ShownFiles
            What keeps the recording of the voice.
        page : gradio.Blocks
            Which the tab is of.
        """
        try:
            check_causal(self.model.mods)
        except ValueError as error:
            gradio.Markdown(str(error))
            return

        # In the server's loop, as `/live`: one at a time looks at the voices.
        async def enroll(path, request: gradio.Request):
            shown.show(request.session_hash, "live", filter(None, [path]))
            try:
                return await self._enroll(request.session_hash, path)
            except (ValueError, OSError) as error:
                message = without_folders(str(error), path)
                # It stays until it is read.
                raise gradio.Error(
                    message, duration=None, print_exception=False
                ) from error

        async def close(request: gradio.Request):
            self._forget(request.session_hash)

        gradio.Markdown(_INTRODUCTION)
        voice = gradio.Audio(
            label="Voice of this person", type="filepath", buttons=["download"]
        )
        player = gradio.HTML(
            html_template=_HTML,
            css_template=_CSS,
            js_on_load=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"),
        )
        voice.change(enroll, voice, player, show_progress="hidden")
        page.unload(close)

    async def _enroll(self, page, path):
        """The name of the page's voice, in place of the one before."""
        self._forget(page)
        if path is None:
            return None
        enrolling = self._names[page] = object()
        voice = await asyncio.to_thread(self.model.encode_speaker_files, path)
        if self._names.get(page) is not enrolling:
            return None  # the page was closed meanwhile
        name = self._names[page] = self.voices.add(voice)
        return name

    def _forget(self, page):
        # It may have made room for others.
        with contextlib.suppress(KeyError, Refusal):
            self.voices.delete(self._names.pop(page))
