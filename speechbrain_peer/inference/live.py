"""Live extraction: samples go in as they come, and those of one talker come out.

A `Stream` joins what a live signal needs: a resampler to the model's rate, the steps of
the network, the level, a presence, and a resampler back. Each of these is causal up to
the delay that `Stream.latency` tells, and keeps its state in tensors.
"""

import math

import numpy as np
import torch
from speechbrain.utils.autocast import AMPConfig, TorchAutocast

from speechbrain_peer.inference.inputs import (
    as_tensor,
    check_embeddings,
    check_waveforms,
)
from speechbrain_peer.inference.presence import (
    new_energies,
    recent_energies,
    tell_presence,
)
from speechbrain_peer.inference.resampling import (
    HALF_WIDTH,
    StreamResampler,
    check_rate,
)
from speechbrain_peer.nnet.voice import Frames, features_of, repeat_voice
from speechbrain_peer.peer_learning import streams
from speechbrain_peer.utils.signal import match_level_so_far


def check_causal(modules):
    """Refuses a model that looks ahead.

    Arguments
    ---------
    modules : Mapping
        The stages.

    Raises
    ------
    ValueError
        If it does; the message tells what to train.
    """
    if streams.init_state(modules, batch=1) is None:
        raise ValueError(
            "The model cannot extract from live streams, as it looks ahead: use a "
            "causal one, such as a TD-SpeakerBeam trained with `--causal True`"
        )


class Stream:
    """One talker of a live signal, or one each of several; `model.stream` makes it.

    Push samples as they come, of any number, and get those that are complete: all of
    them together, with those that `flush` gives, are the estimate of the whole. Each
    stream is for one thread at a time; any number may use one model side by side.

    A model with `level: network` gives its level. Of others, whose estimates have no
    level, every sample is multiplied by the projection of the mixture on the estimate
    *so far*, <mixture, estimate> / <estimate, estimate> up to this sample. It settles
    within the first seconds of the talker's speech, and ends as the one factor that a
    whole file would have.

    What changes is in `state_dict()` and never changed in place: a `copy.copy` of a
    stream goes on by itself.

    Arguments
    ---------
    model : speechbrain_peer.TargetSpeechExtraction
        What extracts.
    voice : torch.Tensor or Frames
        From `encode_speaker`: of one talker for all rows, or of one for each.
    rate : int or None
        Of the samples, in Hz; by default the model's.
    block : int or None
        Samples of every push. As many come out then, `latency` samples late: the first
        ones are zeros. By default a push takes any number, and what is complete comes
        out.

    Raises
    ------
    ValueError
        If the model looks ahead, or an argument cannot be used.
    """

    def __init__(self, model, voice, rate=None, block=None):
        check_causal(model.mods)
        self.model_rate = model.hparams.sample_rate
        self.rate = (
            self.model_rate if rate is None else check_rate(self.model_rate, rate)
        )
        if block is not None and (block < 1 or block != int(block)):
            raise ValueError(f"block {block}: give a whole number of samples from 1 on")
        self.block = None if block is None else int(block)
        self._model = model
        dtype = AMPConfig.from_name(model.precision).dtype
        # Of its own: the model's may be entered in another thread.
        self._autocast = TorchAutocast(device_type=model.device_type, dtype=dtype)
        self._resamplers = None
        if self.rate != self.model_rate:
            rates = self.rate, self.model_rate
            self._resamplers = StreamResampler(*rates), StreamResampler(*rates[::-1])
        self._schedule = streams.measure_schedule(model.mods)
        self.latency = self._measure_latency()
        """Samples, at the stream's rate, by which the output is late: of the network's
        frames and the resamplers. A block's own length and the time that computing
        takes come on top."""
        self._state = None
        self.change_voice(voice)

    def push(self, samples):
        """Takes the next samples.

        Arguments
        ---------
        samples : torch.Tensor, np.ndarray or list
            Floating point, full scale at 1: (time,), or (rows, time) of several
            channels or streams, whose number then stays the same. There may be none.

        Returns
        -------
        torch.Tensor
            fp32 on the CPU, (time,) or (rows, time): with `block`, as many as went
            in; else all that are complete, from the first one on.

        Raises
        ------
        ValueError
            If they are no block, of another number of rows, not finite or no floats;
            the stream can go on.
        """
        (outputs,) = push_together([self], [samples])
        if isinstance(outputs, ValueError):
            raise outputs
        return outputs

    def flush(self):
        """Ends the stream: gives what is left, and begins anew.

        Returns
        -------
        torch.Tensor
            (time,) or (rows, time); of a stream without samples (0,).
        """
        state, self._state = self._state, None
        if state is None:
            return torch.zeros(0)
        outputs = state["queue"], *self._finish(state)
        outputs = torch.cat(outputs, dim=1)
        return outputs if state["rows"] else outputs[0]

    def reset(self):
        """Forgets what has been heard, not the voice."""
        self._state = None

    def change_voice(self, voice):
        """Extracts another talker from the next push on.

        What the network remembers of the signal stays, so that nothing clicks: the
        change takes as long as its memory of frames. `reset` as well to begin anew.

        Arguments
        ---------
        voice : torch.Tensor or Frames
            As for the stream.

        Raises
        ------
        ValueError
            If it cannot be used.
        """
        modules = self._model.mods
        if not isinstance(voice, Frames):
            voice = torch.atleast_2d(as_tensor("voice", voice))
        count, weight = len(features_of(voice)), next(modules.parameters())
        voice = check_embeddings(voice, count, modules.speaker_encoder, weight, "rows")
        rows = None if self._state is None else max(1, self._state["rows"])
        if count > 1 and rows not in (None, count):
            raise ValueError(f"{count} voices, but the stream has {rows} rows")
        self._voice, self._voices = voice, count

    @property
    def presence(self):
        """Whether the talker speaks in the last second that came out, bool, (rows,).

        It is told every tenth of a second, by the rule of `tells_presence`; None of a
        model that tells none.
        """
        if not self._model.tells_presence:
            return None
        if self._state is None:
            return torch.zeros(self._voices, dtype=torch.bool)
        energies, _ = self._state["recent"]
        return tell_presence(*energies.sum(-1))

    def state_dict(self):
        """All that the stream remembers, to be saved with `torch.save`; not the voice.

        Returns
        -------
        dict or None
            None of a stream that has not begun.
        """
        return None if self._state is None else dict(self._state)

    def load_state_dict(self, state):
        """Goes on from what `state_dict` gave of a stream of the same settings."""
        self._state = None if state is None else dict(state)

    def _checked(self, samples):
        """(rows, time) of what `push` takes."""
        if samples.dim() not in (1, 2):
            raise ValueError(
                "samples must be (time,) or (rows, time), but have shape "
                f"{tuple(samples.shape)}"
            )
        rows = 0 if samples.dim() == 1 else len(samples)
        before = None if self._state is None else self._state["rows"]
        if before is not None and rows != before:
            raise ValueError(
                f"samples of shape {tuple(samples.shape)} do not go on with a stream "
                f"of {before or 'no'} rows"
            )
        if samples.dim() == 2 and not rows:
            raise ValueError("samples have no rows")
        if self._voices > 1 and rows != self._voices:
            raise ValueError(f"Give {self._voices} rows of samples, one for each voice")
        if self.block not in (None, samples.shape[-1]):
            raise ValueError(
                f"{samples.shape[-1]} samples are no block of {self.block}: pad the "
                "last one with zeros"
            )
        waveforms = torch.atleast_2d(samples)
        if waveforms.numel():
            waveforms, _ = check_waveforms("samples", waveforms, None, "cpu")
        return waveforms.float()

    def _begin(self, samples):
        """The state of a stream that has not begun."""
        rows = 0 if samples.dim() == 1 else len(samples)
        batch = max(rows, 1)
        late = 0 if self.block is None else self.latency
        resamplers = self._resamplers or ()
        return {
            "rows": rows,
            "taken": 0,
            "given": 0,
            "resamplers": tuple(one.init_state(batch) for one in resamplers),
            "network": streams.init_state(self._model.mods, batch),
            # Of the mixture, at the model's rate: what has no estimate yet.
            "late": torch.zeros(batch, 0),
            # Energy of the estimate, and what it shares with the mixture.
            "sums": torch.zeros(2, batch, 1, dtype=torch.float64),
            "recent": new_energies(2, batch),  # of estimate and mixture
            "queue": torch.zeros(batch, late),
        }

    def _take(self, samples):
        """The next samples at the model's rate, (rows, time), and the state then."""
        samples = as_tensor("samples", samples)
        waveforms = self._checked(samples)
        state = dict(self._state or self._begin(samples))
        state["taken"] += waveforms.shape[1]
        if self._resamplers:
            there, back = state["resamplers"]
            waveforms, there = self._resamplers[0].step(waveforms, there)
            state["resamplers"] = there, back
        return waveforms, state

    def _give(self, estimates, state):
        """What is complete with the network's next estimates."""
        estimates, state = self._set_level(estimates, state)
        outputs, state = self._resample_back(estimates, state)
        if self.block is not None:
            outputs = torch.cat((state["queue"], outputs), dim=1)
            state["queue"] = outputs[:, self.block :].clone()
            outputs = outputs[:, : self.block]
        self._state = state
        return outputs if state["rows"] else outputs[0]

    @torch.no_grad()
    def _finish(self, state):
        """Yields what is left."""
        if self._resamplers:
            rest = self._resamplers[0].finish(state["resamplers"][0])
            ((estimates, state),) = _step([(self, rest, state)])
            estimates, state = self._set_level(estimates, state)
            outputs, state = self._resample_back(estimates, state)
            yield outputs
        left = state["late"].shape[1]
        with self._autocast:
            estimates = streams.finish(
                self._model.mods, self._voice_of(state), state["network"], left
            )
        estimates, state = self._set_level(estimates.float().cpu(), state)
        outputs, state = self._resample_back(estimates, state)
        yield outputs
        if self._resamplers:
            outputs = self._resamplers[1].finish(state["resamplers"][1])
            yield outputs[:, : state["taken"] - state["given"]]

    def _set_level(self, estimates, state):
        """The estimates with their level; what is told of them goes into the state."""
        mixtures, late = state["late"].tensor_split((estimates.shape[1],), dim=1)
        state = {**state, "late": late.clone()}
        if self._model.tells_presence:
            signals = torch.stack((estimates, mixtures))
            heard = recent_energies(signals, state["recent"], self.model_rate)
            state["recent"] = heard
        else:
            level = match_level_so_far(estimates, mixtures, state["sums"])
            estimates, state["sums"] = level
        return estimates, state

    def _resample_back(self, estimates, state):
        """The output, and the state with what has been given."""
        outputs = estimates
        if self._resamplers:
            there, back = state["resamplers"]
            outputs, back = self._resamplers[1].step(estimates, back)
            state = {**state, "resamplers": (there, back)}
        # There and back there is a sample more than went in.
        outputs = outputs[:, : state["taken"] - state["given"]]
        return outputs, {**state, "given": state["given"] + outputs.shape[1]}

    def _voice_of(self, state):
        """The voice of every row."""
        rows = max(state["rows"], 1)
        return repeat_voice(self._voice, rows // self._voices)

    def _completed(self, taken):
        """How many outputs are complete when so many samples are in."""
        there, back = self._resamplers or (None, None)
        count = taken if there is None else there.completed(taken)
        count = self._schedule.completed(count)
        return count if back is None else back.completed(count)

    def _measure_latency(self):
        """The most by which outputs are behind, of all pushes until it is periodic."""
        divisor = math.gcd(self.rate, self.model_rate)
        up, down = self.model_rate // divisor, self.rate // divisor
        hop, block = self._schedule.hop, self.block or 1
        period = math.lcm(down * hop // math.gcd(hop, up), block)
        # After the first estimates, through both resamplers.
        start = (self._schedule.first + 4 * HALF_WIDTH) * max(1, -(-down // up))
        taken = np.arange(0, start + 2 * period, block)
        return int((taken - self._completed(taken)).max())


@torch.no_grad()
def push_together(members, samples):
    """Pushes the next samples of several streams of one model.

    The network computes those together whose blocks are of one length and begin at the
    same place in its frames: short steps cost calls more than products. What comes out
    is that of each stream's own `push`, within 1e-5.

    Arguments
    ---------
    members : list of Stream
        All different, of one model.
    samples : list
        As each stream's `push` takes them.

    Returns
    -------
    list of (torch.Tensor or ValueError)
        What each stream's `push` gives, or raises: it leaves the others alone.

    Raises
    ------
    ValueError
        If the streams are of several models.
    """
    if len({id(stream._model) for stream in members}) > 1:
        raise ValueError("streams of several models cannot be computed together")
    outcomes, groups = {}, {}
    for stream, block in zip(members, samples, strict=True):
        try:
            waveforms, state = stream._take(block)
        except ValueError as error:
            outcomes[stream] = error
            continue
        alike = waveforms.shape[1], streams.outline(state["network"])
        groups.setdefault(alike, []).append((stream, waveforms, state))
    for group in groups.values():
        for (stream, *_), step in zip(group, _step(group), strict=True):
            outcomes[stream] = stream._give(*step)
    return [outcomes[stream] for stream in members]


def _step(group):
    """Goes on with (stream, waveforms, state) of several: estimates and states."""
    members, waveforms, states = zip(*group, strict=True)
    model = members[0]._model
    with members[0]._autocast:
        estimates, networks = streams.step_together(
            model.mods,
            [one.to(model.device) for one in waveforms],
            [s._voice_of(state) for s, state in zip(members, states, strict=True)],
            [state["network"] for state in states],
        )
    for one, of_one, state, network in zip(
        waveforms, estimates, states, networks, strict=True
    ):
        late = torch.cat((state["late"], one), dim=1)
        yield of_one.float().cpu(), {**state, "network": network, "late": late}
