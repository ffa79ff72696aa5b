"""Finished runs side by side: the paper's Tables I, II and III and its Fig. 4.

    python -m recipes.LibriMix.comparison results --output results/comparison

`runs` reads what single runs have left, `systems` puts together what may be compared,
`tables` (scores), `differences` (to a control), `costs` and `epochs` (curves) make the
parts of the report.
"""
