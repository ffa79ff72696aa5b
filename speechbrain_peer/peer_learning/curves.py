"""Curves of the training set: how the peers' branches do, as in the paper's Fig. 4."""

import math

import torch

from speechbrain_peer.utils.totals import EpochTotals

COLUMNS = (
    "better_mask",
    "worse_mask",
    "better_predictor",
    "worse_predictor",
    "refined",
    "agreement",
)


class PeerCurves(EpochTotals):
    """Means over an epoch's training items of the SI-SNR of both peers.

    Items whose talker is absent have none, and are left out.

    Example
    -------
    >>> curves = PeerCurves()
    >>> mask = torch.tensor([[4.0, 1.0], [2.0, 5.0]])
    >>> predictor = torch.tensor([[1.0, 3.0], [0.0, 2.0]])
    >>> curves.update(mask, predictor, refined=predictor + 2)
    >>> curves.means()["better_mask"], curves.means()["agreement"]
    (4.5, 0.5)
    """

    @torch.no_grad()
    def update(self, mask, predictor=None, refined=None):
        """Adds the items of one batch; does not wait for the device.

        Arguments
        ---------
        mask : torch.Tensor
            SI-SNR of the estimates in dB, (peers, batch), NaN of absent talkers. Of a
            single mixture, (1, batch), the better and the worse peer are the same.
        predictor : torch.Tensor, optional
            SI-SNR of Decoder(p) in dB, (peers, batch).
        refined : torch.Tensor, optional
            SI-SNR of Decoder(r) in dB, (peers, batch).
        """
        mask = mask.double()
        never = torch.full_like(mask, math.nan)
        predictor = never if predictor is None else predictor.double()
        refined = never if refined is None else refined.double()
        agreement = (mask.argmax(0) == predictor.argmax(0)).double()
        agreement[predictor.isnan().any(0)] = math.nan
        per_item = (
            mask.amax(0),
            mask.amin(0),
            predictor.amax(0),
            predictor.amin(0),
            refined.mean(0),
            agreement,
        )
        active = ~mask.isnan().any(0)
        sums = torch.where(active, torch.stack(per_item), 0.0).sum(1)
        self.add(items=active.sum(), **dict(zip(COLUMNS, sums, strict=True)))

    def means(self):
        """Means over the items of all processes, which must all call this.

        Returns
        -------
        dict
            By the names in `COLUMNS`: SI-SNR in dB, and the share of items (0..1)
            of which both branches prefer the same peer. NaN: never given.
        """
        totals = self.of_all()
        if not totals["items"]:
            return dict.fromkeys(COLUMNS, math.nan)
        return {name: totals[name] / totals["items"] for name in COLUMNS}
